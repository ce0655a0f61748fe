//! What every transport between processes promises, as one module of tests for each of them.

/// One test for each function of a module, over one transport.
macro_rules! tests_of {
    ($kind:literal, $module:ident: $($promise:ident),+ $(,)?) => {
        $(#[test] fn $promise() { crate::$module::$promise($kind); })+
    };
}

/// What arrives, and what happens when a peer dies or gives up.
macro_rules! over_transports {
    ($($transport:ident: $kind:literal),+ $(,)?) => { $(
        mod $transport {
            tests_of! { $kind, moves:
                any_plan_arrives_whole_and_touches_nothing_else,
                pulls_of_many_sizes_run_side_by_side,
                what_was_not_granted_or_does_not_exist_is_refused,
                only_a_grant_that_holds_may_be_named,
                a_thread_with_nothing_to_do_uses_no_time,
            }
            tests_of! { $kind, faults:
                an_aborted_pull_is_quiet_when_it_says_so,
                an_idle_peer_that_dies_is_noticed,
                a_killed_peer_is_told_once_and_its_pulls_are_quiet,
                what_changes_after_a_withdrawal_never_arrives_as_done,
                nothing_is_done_after_the_end_of_the_transport_that_is_read,
            }
        }
    )+ };
}

/// What the side that is read promises when readers vanish. Not over TCP of UCX, which ends the
/// process that is read with an abort then, now and again.
macro_rules! over_transports_that_stand_readers {
    ($($transport:ident: $kind:literal),+ $(,)?) => {
        mod readers { $(
            mod $transport {
                tests_of! { $kind, faults:
                    a_source_outlives_those_who_die_while_they_read,
                    a_frozen_peer_ends_in_a_deadline_and_writes_nothing_later,
                }
            }
        )+ }
    };
}
