//! One front end's stream, as a rank's thread sees it: what waits to be sent, and what was told.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::credit;
use super::kv::KvOut;
use crate::actors::link::{Frame, LinkId, Report};
use crate::engine::{EngineError, Load, Reach, Tier};
use crate::ids::{BlockHash, LegId, RankIndex};

/// One front end's stream and what could not be sent yet.
pub(super) struct Stream {
    pub(super) link: LinkId,
    pub(super) frames: mpsc::Sender<Frame>,
    pub(super) pending: Frame,
    /// There was no room for what is pending.
    pub(super) is_full: bool,
    /// Its legs here.
    pub(super) legs: usize,
    /// The credit that it goes by; 0 if a leg of it was refused since.
    told: usize,
    /// The load that it was told last, and when.
    load: Option<(Load, Instant)>,
    /// `None` if the engine does not tell what it has cached.
    pub(super) kv: Option<KvOut>,
}

/// Puts what changed in the prefix cache next to a frame's report; `cached` lists all that is cached.
pub(super) fn tell(
    kv: &mut KvOut,
    frame: &mut Frame,
    rank: RankIndex,
    cached: impl FnOnce(&mut Vec<(BlockHash, Tier)>),
) {
    frame.kv = kv.take(rank, cached).map(Box::new);
    if let Some(report) = &mut frame.report {
        report.kv_number = kv.number();
    }
}

impl Stream {
    pub(super) fn new(link: LinkId, frames: mpsc::Sender<Frame>, kv: Option<KvOut>) -> Self {
        let pending = Frame::default();
        Self { link, frames, pending, is_full: false, legs: 0, told: 0, load: None, kv }
    }

    /// Whether anything waits to be sent that will not send itself with the next step.
    pub(super) fn has_unsent(&self) -> bool {
        !self.pending.is_empty() || self.kv.as_ref().is_some_and(KvOut::has_news)
    }

    /// Whether it should hear of this load though there is nothing else to tell it.
    fn is_news(&self, load: &Load, interval: Duration) -> bool {
        let has_changed = |(told, at): &(Load, Instant)| {
            told != load && (load.running == 0 || at.elapsed() >= interval)
        };
        self.load.as_ref().is_none_or(has_changed)
    }

    /// Puts what it may ask for next to what there is to say; `false` if there is nothing to say.
    pub(super) fn report(
        &mut self,
        mut report: Report,
        free: usize,
        links: usize,
        every: Duration,
    ) -> bool {
        let credit = credit::credit(self.legs, free, links);
        let is_news = credit::is_news(self.told, self.legs, credit)
            || self.is_news(&report.load, every)
            || self.kv.as_ref().is_some_and(KvOut::has_news);
        if self.pending.is_empty() && !is_news {
            return false;
        }
        self.load = Some((report.load, Instant::now()));
        report.credit = u32::try_from(credit).unwrap_or(u32::MAX);
        self.pending.report = Some(report);
        let refused = |(_, error): &(LegId, EngineError)| error.reach() == Reach::Retry;
        self.told = if self.pending.failed.iter().any(refused) { 0 } else { credit };
        true
    }
}
