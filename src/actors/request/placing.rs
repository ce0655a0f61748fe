//! How the choices of a request that have no leg get one: at once, by standing in line for a rank with
//! room, or, once the request has begun, by waiting for a rank before all that stand there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::ActorRef;

use super::choice::Choice;
use super::inbox::RequestInbox;
use super::legs::NotPlaced;
use super::{Flow, Msg, State};
use crate::actors::failure::Failure;
use crate::actors::requests;
use crate::actors::router::{Begun, Line, Place, Turn};
use crate::metrics::ModelMetrics;

/// How a request waits for a rank.
#[derive(Default)]
pub(super) struct Wait {
    /// Since when there has been none for one of its choices.
    since: Option<Instant>,
    /// Counts it while there is none.
    without: Option<WithoutRank>,
    /// It has begun, and waits for room.
    first: Option<Begun>,
    /// `Requests` tells it when to try again.
    will_be_told: bool,
    /// Its place in line, before it has begun.
    in_line: Option<Place>,
    /// Its turn has come, and no rank has taken it yet.
    turn: Option<Turn>,
}

/// A request has no rank for one of its choices; counted until this is dropped.
struct WithoutRank(Arc<ModelMetrics>);

impl WithoutRank {
    fn now(metrics: &Arc<ModelMetrics>) -> Self {
        metrics.without_rank.inc();
        Self(metrics.clone())
    }
}

impl Drop for WithoutRank {
    fn drop(&mut self) {
        self.0.without_rank.dec();
    }
}

impl Wait {
    /// A rank has taken a leg; others of the request may still have none.
    pub(super) fn took_one(&mut self, has_all: bool, line: &Line) {
        self.since = None;
        self.turn.take().into_iter().for_each(|turn| line.used(turn));
        if has_all {
            (self.first, self.without) = (None, None);
        }
    }
}

impl State {
    /// Its turn has come.
    pub(super) fn turn(&mut self, inbox: &Arc<RequestInbox>, turn: Turn) -> Flow {
        (self.wait.in_line, self.wait.turn) = (None, Some(turn));
        self.place(inbox)
    }

    /// A rank may have become free.
    pub(super) fn try_again(&mut self, inbox: &Arc<RequestInbox>) -> Flow {
        self.wait.will_be_told = false;
        self.place(inbox)
    }

    /// Places every choice that has no leg and has not ended; who has not begun goes behind those
    /// that wait, unless it is its turn.
    pub(super) fn place(&mut self, inbox: &Arc<RequestInbox>) -> Flow {
        if self.wait.in_line.is_some() {
            return Flow::On; // its turn will come
        }
        let line = &self.legs.model.router.line;
        if self.wait.turn.is_none() && !self.has_begun() && line.is_in_use() {
            return self.stand_in_line(inbox);
        }
        for index in 0..self.choices.len() {
            if !self.needs_leg(&self.choices[index]) {
                continue;
            }
            match self.legs.place(&mut self.choices[index], index, inbox) {
                Ok(None) => {}
                Ok(Some(explanation)) => self.reply.routed(index, explanation),
                Err(NotPlaced::Failed(failure)) => return self.fail(&failure),
                Err(NotPlaced::NoRank(reason)) => return self.await_rank(&inbox.actor, reason),
                Err(NotPlaced::Full) if self.has_begun() => {
                    let reason = "all ranks are full".to_string();
                    return self.await_rank(&inbox.actor, reason);
                }
                Err(NotPlaced::Full) => return self.stand_in_line(inbox),
            }
        }
        self.card.state("running");
        Flow::On
    }

    /// Whether ranks have taken any of it, or are about to.
    fn has_begun(&self) -> bool {
        self.choices.iter().any(|choice| choice.has_begun() || choice.has_leg())
    }

    /// All ranks are full, or others wait for them, and the request has not begun.
    fn stand_in_line(&mut self, inbox: &Arc<RequestInbox>) -> Flow {
        let (turn, wants) = (self.wait.turn.take(), self.legs.wants());
        let claim = || self.legs.claim(&self.choices);
        match self.legs.model.router.line.stand(inbox.actor.clone(), turn, claim, wants) {
            Ok(place) => {
                (self.wait.since, self.wait.without) = (None, None);
                self.wait.in_line = Some(place);
                self.card.state("in line for a rank");
                Flow::On
            }
            Err(full) => {
                let what = "requests wait for a rank with room (frontend.router.queue)";
                self.too_many(what, full.limit, full.limit)
            }
        }
    }

    fn too_many(&mut self, what: &'static str, current: usize, limit: usize) -> Flow {
        let retry_after = self.limits.retry_after;
        self.fail(&Failure::TooManyRequests { what, current, limit, retry_after })
    }

    pub(super) fn waited_too_long(&mut self) -> Flow {
        if self.wait.in_line.is_none() {
            return Flow::On; // its turn had come before
        }
        let seconds = self.legs.model.router.line.wait().as_secs() as usize;
        self.too_many("s in line for a rank (frontend.router.queue_wait_s)", seconds, seconds)
    }

    /// Waits for a rank, but not for ever.
    pub(super) fn await_rank(&mut self, myself: &ActorRef<Msg>, reason: String) -> Flow {
        // One that has not begun may be waiting for one rank: nobody stands back for that.
        let (wants_any, line) = (self.legs.wants().is_none(), &self.legs.model.router.line);
        let may_go_anywhere = |choice: &&Choice| choice.has_begun() || wants_any;
        let without = self.choices.iter().filter(|choice| self.needs_leg(choice));
        let lost_its_leg = without.clone().any(Choice::has_begun);
        let for_room = self.has_begun()
            && without.clone().filter(may_go_anywhere).any(|choice| self.legs.has_ranks(choice));
        let wait = &mut self.wait;
        match &wait.first {
            Some(first) if for_room => first.wait_on(),
            None if for_room => {
                wait.first = Some(line.go_first(myself.clone()));
            }
            _ => wait.first = None,
        }
        let since = *wait.since.get_or_insert_with(Instant::now);
        wait.without.get_or_insert_with(|| WithoutRank::now(&self.metrics));
        let longest = match lost_its_leg {
            true => self.limits.no_rank_wait,
            // It might as well stand in line.
            false => {
                self.limits.no_rank_wait.max(if for_room { line.wait() } else { Duration::ZERO })
            }
        };
        if since.elapsed() >= longest {
            let retry_after = self.limits.retry_after;
            let model = self.legs.model.name.clone();
            return self.fail(&Failure::NotReady { model, reason, retry_after });
        }
        self.card.state("waiting for a rank");
        if std::mem::replace(&mut wait.will_be_told, true) {
            return Flow::On;
        }
        let request = myself.clone();
        if self.requests.cast(requests::Msg::AwaitRank { request }).is_err() {
            return self.fail(&Failure::Internal("the front end is restarting"));
        }
        Flow::On
    }
}
