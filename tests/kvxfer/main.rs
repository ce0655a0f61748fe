//! KV transfers between real processes: what arrives, and what happens when a side dies, freezes,
//! gives up or lies. This binary starts itself again as the peer.
#![allow(clippy::unwrap_used)]

mod faults;
mod garbage;
mod late;
mod local;
mod moves;
mod peer;
mod puller;
mod quarantine;

/// Runs the named promises over each transport that works between processes.
macro_rules! over_transports {
    ($module:ident: $($promise:ident),+ $(,)?) => {
        mod tcp {
            $(#[test] fn $promise() { super::$module::$promise("tcp"); })+
        }
        mod ucx {
            $(#[test] fn $promise() { super::$module::$promise("ucx"); })+
        }
        /// UCX without shared memory: what it does between hosts.
        mod ucx_tcp {
            $(#[test] fn $promise() { super::$module::$promise("ucx-tcp"); })+
        }
    };
}

mod moving {
    over_transports! { moves:
        any_plan_arrives_whole_and_touches_nothing_else,
        pulls_of_many_sizes_run_side_by_side,
        what_was_not_granted_or_does_not_exist_is_refused,
        only_a_grant_that_holds_may_be_named,
        a_thread_with_nothing_to_do_uses_no_time,
    }
    use super::moves;
}

mod failing {
    over_transports! { faults:
        an_aborted_pull_is_quiet_when_it_says_so,
        an_idle_peer_that_dies_is_noticed,
        a_killed_peer_is_told_once_and_its_pulls_are_quiet,
        a_frozen_peer_ends_in_a_deadline_and_writes_nothing_later,
        what_changes_after_a_withdrawal_never_arrives_as_done,
        nothing_is_done_after_the_end_of_the_transport_that_is_read,
    }
    use super::faults;
}

/// The other process: does nothing unless it was started as one.
#[test]
fn peer_process() {
    if let Ok(kind) = std::env::var(peer::KIND) {
        peer::serve(&kind);
    }
}
