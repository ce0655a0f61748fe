//! KV transfers between real processes: what arrives, and what happens when a side dies, freezes,
//! gives up or lies. This binary starts itself again as the peer.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod promises;

mod faults;
mod garbage;
mod late;
mod local;
mod moves;
mod peer;
mod puller;
mod quarantine;

// `ucx_tcp` is UCX without shared memory: what it does between hosts.
over_transports! { tcp: "tcp", ucx: "ucx", ucx_tcp: "ucx-tcp" }

/// The other process: does nothing unless it was started as one.
#[test]
fn peer_process() {
    if let Ok(kind) = std::env::var(peer::KIND) {
        peer::serve(&kind);
    }
}
