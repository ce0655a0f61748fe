//! The same promises over NIXL, in a binary of its own: NIXL brings a UCX along, and workers never
//! have two of them in one process.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod promises;

mod faults;
mod moves;
mod peer;
mod puller;

// `tcp` is without shared memory: what it does between hosts.
over_transports! { any: "nixl", tcp: "nixl-tcp" }
over_transports_that_stand_readers! { any: "nixl" }

/// The other process: does nothing unless it was started as one.
#[test]
fn peer_process() {
    if let Ok(kind) = std::env::var(peer::KIND) {
        peer::serve(&kind);
    }
}
