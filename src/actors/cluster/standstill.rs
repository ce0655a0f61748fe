//! Notices that this process stood still (SIGSTOP, a frozen machine) for so long that the other nodes
//! must have given it up: it then joins them again as a new incarnation.

use std::time::{Duration, Instant};

use ractor::ActorRef;

use crate::actors::root;
use crate::task::Task;

/// Looks in the time that a failure takes to be detected.
const LOOKS: u32 = 8;

/// Tells the root when this process stood still for `detection` or longer.
pub(super) fn watch(detection: Duration, root: ActorRef<root::Msg>) -> Task {
    Task::spawn(async move {
        let nap = detection / LOOKS;
        loop {
            let began = Instant::now();
            tokio::time::sleep(nap).await;
            let stood = began.elapsed();
            if stood >= detection {
                let _ = root.cast(root::Msg::StoodStill(stood)); // ending
                return;
            }
        }
    })
}
