//! A fork-join team of threads: the caller and its helpers share out numbered tasks.
//!
//! Which thread runs a task is decided by an atomic counter; results must not depend on it. Helpers
//! spin for a moment after a job, because the next one is usually near, then sleep. A helper that
//! wakes up too late for a job is not waited for.

mod ffi;

pub(super) use ffi::Team;
