//! The way from a `Reply` to its connection: bytes gather here and leave as one frame.
//!
//! The sender writes into its own buffer and takes the lock once a flush; the connection takes all
//! that has gathered at once. So events that are ready together leave in one write, and a
//! connection that is already woken is not woken again.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use prometheus_client::metrics::gauge::Gauge;

/// What a send buffer asks for before its sender knows how large a burst is.
const FIRST_HINT: usize = 512;
/// Most that a send buffer asks for ahead of its bytes.
const LARGEST_HINT: usize = 16 << 10;

/// Connects a sender with the body of a response. `backlog` counts the bytes between them.
pub(super) fn outbox(backlog: Gauge) -> (Outlet, Outbox) {
    let shared = Arc::new(Shared { state: Mutex::default(), backlog });
    let outlet = Outlet { shared: shared.clone(), pending: Vec::new(), hint: FIRST_HINT };
    (outlet, Outbox { shared })
}

struct Shared {
    state: Mutex<State>,
    backlog: Gauge,
}

#[derive(Default)]
struct State {
    /// Flushed, not yet taken.
    bytes: Vec<u8>,
    /// Nothing more will come.
    ended: bool,
    /// Nobody reads any more.
    closed: bool,
    /// The connection, if it waits.
    waker: Option<Waker>,
}

impl Shared {
    /// Every change under the lock is complete, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sender's half. Dropped without `end`, it still ends the body.
pub(super) struct Outlet {
    shared: Arc<Shared>,
    pending: Vec<u8>,
    hint: usize,
}

impl Outlet {
    /// Where to write; nothing leaves before `flush`.
    #[inline]
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        if self.pending.capacity() == 0 {
            self.pending.reserve(self.hint);
        }
        &mut self.pending
    }

    /// Hands everything written to the connection and wakes it if it waits. Returns the bytes that
    /// it has not taken yet.
    pub(super) fn flush(&mut self) -> usize {
        let mut state = self.shared.lock();
        if state.closed {
            self.pending.clear();
        }
        if self.pending.is_empty() {
            return state.bytes.len();
        }
        self.hint = self.pending.len().next_power_of_two().min(LARGEST_HINT);
        self.shared.backlog.inc_by(self.pending.len() as i64);
        if state.bytes.is_empty() {
            state.bytes = std::mem::take(&mut self.pending);
        } else {
            state.bytes.append(&mut self.pending);
        }
        let unread = state.bytes.len();
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        unread
    }

    /// Flushes, and says that nothing more will come.
    pub(super) fn end(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        if !state.closed {
            self.shared.backlog.inc_by(self.pending.len() as i64);
            state.bytes.append(&mut self.pending);
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.end();
    }
}

/// The connection's half, before the answer has begun.
pub(super) struct Outbox {
    shared: Arc<Shared>,
}

impl Outbox {
    /// The body of the response; `guard` lives exactly as long.
    pub(super) fn into_body<G>(self, guard: G) -> OutboxBody<G> {
        OutboxBody { outbox: self, _guard: guard }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.backlog.dec_by(state.bytes.len() as i64);
        state.bytes = Vec::new();
        state.waker = None;
    }
}

/// A response body made of whatever has gathered in an outbox.
pub(super) struct OutboxBody<G> {
    outbox: Outbox,
    _guard: G,
}

impl<G: Unpin> Body for OutboxBody<G> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut state = self.outbox.shared.lock();
        if !state.bytes.is_empty() {
            let bytes = std::mem::take(&mut state.bytes);
            drop(state);
            self.outbox.shared.backlog.dec_by(bytes.len() as i64);
            return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        match &mut state.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            waker => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        let state = self.outbox.shared.lock();
        state.ended && state.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Polls once: `None` for pending, `Some(None)` at the end.
    fn poll<G: Unpin>(body: &mut OutboxBody<G>, wakes: &Arc<Wakes>) -> Option<Option<String>> {
        let waker = Waker::from(wakes.clone());
        match Pin::new(body).poll_frame(&mut Context::from_waker(&waker)) {
            Poll::Pending => None,
            Poll::Ready(None) => Some(None),
            Poll::Ready(Some(frame)) => {
                let bytes = frame.unwrap().into_data().unwrap();
                Some(Some(String::from_utf8(bytes.to_vec()).unwrap()))
            }
        }
    }

    #[test]
    fn what_was_flushed_between_two_polls_leaves_as_one_frame_after_one_wake() {
        let wakes = Arc::new(Wakes::default());
        let (mut outlet, outbox) = outbox(Gauge::default());
        let mut body = outbox.into_body(());
        assert_eq!(poll(&mut body, &wakes), None);
        for (word, unread) in [("a", 1), ("b", 2), ("c", 3)] {
            outlet.buffer().extend_from_slice(word.as_bytes());
            assert_eq!(outlet.flush(), unread);
        }
        outlet.buffer().extend_from_slice(b"unflushed");
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(poll(&mut body, &wakes), Some(Some("abc".into())));
        assert_eq!(poll(&mut body, &wakes), None);
        outlet.end();
        assert_eq!(poll(&mut body, &wakes), Some(Some("unflushed".into())));
        assert!(body.is_end_stream());
        assert_eq!(poll(&mut body, &wakes), Some(None));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn an_empty_flush_wakes_nobody() {
        let wakes = Arc::new(Wakes::default());
        let (mut outlet, outbox) = outbox(Gauge::default());
        let mut body = outbox.into_body(());
        assert_eq!(poll(&mut body, &wakes), None);
        assert_eq!(outlet.flush(), 0);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_dropped_sender_ends_the_body_and_a_dropped_body_frees_its_bytes_and_guard() {
        let wakes = Arc::new(Wakes::default());
        let (outlet, first) = outbox(Gauge::default());
        drop(outlet);
        assert_eq!(poll(&mut first.into_body(()), &wakes), Some(None));

        let (mut outlet, second) = outbox(Gauge::default());
        let guard = Arc::new(());
        let body = second.into_body(guard.clone());
        outlet.buffer().extend_from_slice(b"lost");
        assert_eq!(outlet.flush(), 4);
        drop(body);
        assert_eq!(Arc::strong_count(&guard), 1);
        outlet.buffer().extend_from_slice(b"late");
        assert_eq!(outlet.flush(), 0);
    }
}
