//! Work for a transport's thread, and what wakes it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::error::XferError;

/// A queue with a file descriptor that is readable while something is in it.
#[derive(Debug)]
pub(super) struct Commands<T> {
    queue: Mutex<VecDeque<T>>,
    wake: OwnedFd,
    /// Whether `take` is worth its system call: threads that spin ask often.
    waiting: AtomicBool,
    limit: usize,
}

impl<T> Commands<T> {
    pub(super) fn new(limit: usize) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { queue: Mutex::default(), wake, waiting: AtomicBool::new(false), limit })
    }

    /// Adds a command that starts something.
    pub(super) fn push(&self, command: T) -> Result<(), XferError> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (have, limit) = (queue.len(), self.limit);
        if have >= limit {
            return Err(XferError::Limit { what: "waiting commands", have, limit });
        }
        queue.push_back(command);
        drop(queue);
        self.wake();
        Ok(())
    }

    /// Adds a command that ends something: there are no more of them than were admitted by `push`.
    pub(super) fn push_end(&self, command: T) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(command);
        self.wake();
    }

    /// Takes all of them, in order.
    pub(super) fn take(&self) -> VecDeque<T> {
        if !self.waiting.swap(false, Acquire) {
            return VecDeque::new();
        }
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count); // empty: nothing to clear
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes()); // full: it is awake already
        // After the write: whoever sees it also clears the descriptor.
        self.waiting.store(true, Release);
    }
}

impl<T> AsFd for Commands<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
