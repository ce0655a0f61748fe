//! The cluster as the harness sees it: processes, addresses, networks, clocks, an etcd.

mod clock;
mod etcd;
mod net;
mod outline;
mod probe;
mod process;

pub(super) use clock::Clock;
pub(super) use etcd::Etcd;
pub(super) use net::{Net, Shape};
pub(super) use outline::Outline;
pub(super) use probe::{Card, Health, Probe, Ranks, Samples};
pub(super) use process::{Ended, Launch, Process, Signal, Usage};
