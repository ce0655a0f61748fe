//! A request's state, where both its actor and the links to its workers can reach it.
//!
//! A token that changes nothing but the answer is taken in where it arrives, in the middle of a
//! step that has tokens for many requests: waking an actor for each would cost several times as
//! much as the token itself. Everything else waits for the actor.
//!
//! Locks are taken in this order: the state, then a link's table of legs, then the client's buffer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ractor::ActorRef;

use super::choice::Choice;
use super::{Flow, Msg, State};
use crate::actors::inbox::{Inbox, LegEvent};
use crate::ids::LegId;

/// See the module's description.
pub(super) struct RequestInbox {
    pub(super) actor: ActorRef<Msg>,
    /// `None` once the request has ended.
    state: Mutex<Option<State>>,
}

/// What the actor holds: the state goes with it, however it ends.
pub struct Owner(pub(super) Arc<RequestInbox>);

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.0.lock().take());
    }
}

/// The request's own code panicked while a link brought it a token.
#[derive(Debug, thiserror::Error)]
#[error("the request panicked while it took in a token")]
pub(super) struct Panicked;

impl RequestInbox {
    pub(super) fn new(actor: ActorRef<Msg>, state: State) -> Arc<Self> {
        Arc::new(Self { actor, state: Mutex::new(Some(state)) })
    }

    /// Runs a decision of the actor; a request that ends leaves nothing behind for links to find.
    ///
    /// # Errors
    /// There is no state any more, though the actor has not ended it.
    pub(super) fn decide(
        &self,
        decision: impl FnOnce(&mut State) -> Flow,
    ) -> Result<Flow, Panicked> {
        let mut guard = self.lock();
        let flow = decision(guard.as_mut().ok_or(Panicked)?);
        if let Flow::Ended = flow {
            *guard = None;
        }
        Ok(flow)
    }

    /// Runs a link's part, which must not take the link down: a panic ends this request alone.
    fn deliver<T: Default>(&self, part: impl FnOnce(&mut State) -> T) -> T {
        // Poisoned: the actor has just panicked, and takes the state with it.
        let Ok(mut guard) = self.state.lock() else { return T::default() };
        let Some(state) = guard.as_mut() else { return T::default() };
        catch_unwind(AssertUnwindSafe(|| part(state))).unwrap_or_else(|_| {
            let dropped = catch_unwind(AssertUnwindSafe(|| *guard = None));
            drop(dropped); // it has panicked before: there is nothing to add
            let _ = self.actor.cast(Msg::Wake); // finds no state, and fails
            T::default()
        })
    }

    /// Whoever finds it poisoned only takes the state away.
    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox for RequestInbox {
    fn put(&self, leg: LegId, event: LegEvent) -> bool {
        self.deliver(|state| state.put(leg, event))
    }

    fn flush(&self, now: Instant) {
        if self.deliver(|state| state.flush(now)) {
            // An actor that has ended does not need to know.
            let _ = self.actor.cast(Msg::Wake);
        }
    }
}

impl State {
    /// Takes in a token that is not the last, or keeps the event for the actor.
    fn put(&mut self, leg: LegId, event: LegEvent) -> bool {
        match event {
            LegEvent::Token { token, logprobs, finish: None } if self.came.events.is_empty() => {
                let choice = usize::from(leg.choice);
                if !self.choices[choice].is_on(leg) {
                    return false; // what an earlier leg of this choice still said
                }
                self.token(choice, token, logprobs, None);
            }
            event => self.came.events.push((leg, event)),
        }
        !std::mem::replace(&mut self.came.burst, true)
    }

    /// Sends what was said; `true` if the actor must be woken.
    fn flush(&mut self, now: Instant) -> bool {
        self.came.burst = false;
        let mut decide = !self.came.events.is_empty();
        if !decide {
            self.count(now);
            let unread = self.reply.flush();
            decide = unread > self.limits.stream_buffer_bytes
                || self.choices.iter().all(Choice::has_ended);
        }
        decide && !std::mem::replace(&mut self.came.woken, true)
    }
}
