//! The way to one rank of this process, whichever life it is in: links attach here, and the `Worker`
//! puts the next life behind it when one has ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor::ActorRef;
use tokio::sync::mpsc;

use super::Msg;
use crate::actors::link::{Frame, LinkId};
use crate::ids::RankIndex;

/// See the module's description.
#[derive(Clone)]
pub struct RankRef {
    /// Its index in the worker.
    pub index: RankIndex,
    inside: Arc<Mutex<Inside>>,
}

/// A front end's stream.
struct Attached {
    link: LinkId,
    frames: mpsc::Sender<Frame>,
    /// Whether it has been told of all lives that have ended.
    told: bool,
}

#[derive(Default)]
struct Inside {
    actor: Option<ActorRef<Msg>>,
    streams: Vec<Attached>,
    /// There will be no further life.
    ended: bool,
}

impl RankRef {
    /// A rank that does not live yet.
    pub fn new(index: RankIndex) -> Self {
        Self { index, inside: Arc::default() }
    }

    /// Tells the rank; `false` if none lives.
    pub fn cast(&self, message: Msg) -> bool {
        self.inside().actor.as_ref().is_some_and(|actor| actor.cast(message).is_ok())
    }

    /// Frames about the link's legs go to `frames`, now and from every later life; `false` if the
    /// worker is gone.
    pub fn attach(&self, link: LinkId, frames: mpsc::Sender<Frame>) -> bool {
        let mut inside = self.inside();
        if inside.ended {
            return false;
        }
        let attached = Attached { link, frames, told: true };
        inside.greet(&attached);
        inside.streams.push(attached);
        true
    }

    /// The link is gone: its legs end.
    pub fn detach(&self, link: LinkId) {
        let mut inside = self.inside();
        inside.streams.retain(|stream| stream.link != link);
        if let Some(actor) = &inside.actor {
            let _ = actor.cast(Msg::Detach { link }); // gone: its legs are, too
        }
    }

    /// A life begins.
    pub fn open(&self, actor: ActorRef<Msg>) {
        let mut inside = self.inside();
        inside.actor = Some(actor);
        inside.streams.iter().filter(|stream| stream.told).for_each(|s| inside.greet(s));
    }

    /// A life has ended, and another one may follow: each front end is told, and is attached to the
    /// next life only after that.
    pub(in crate::actors) fn lost(&self) {
        let mut inside = self.inside();
        inside.actor = None;
        for stream in &mut inside.streams {
            stream.told = false;
            let (rank, link, frames) = (self.clone(), stream.link, stream.frames.clone());
            tokio::spawn(async move {
                let frame = Frame { rank_lost: Some(rank.index), ..Frame::default() };
                if frames.send(frame).await.is_ok() {
                    rank.told(link);
                }
            });
        }
    }

    /// The worker is gone, and all that was attached with it.
    pub(in crate::actors) fn end(&self) {
        *self.inside() = Inside { ended: true, ..Inside::default() };
    }

    fn told(&self, link: LinkId) {
        let mut inside = self.inside();
        let Some(at) = inside.streams.iter().position(|stream| stream.link == link) else { return };
        inside.streams[at].told = true;
        inside.greet(&inside.streams[at]);
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn greet(&self, stream: &Attached) {
        if let Some(actor) = &self.actor {
            let (link, frames) = (stream.link, stream.frames.clone());
            let _ = actor.cast(Msg::Attach { link, frames }); // ended: the next life is told
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_front_end_hears_of_every_life_that_ends_and_of_none_after_the_worker() {
        let rank = RankRef::new(RankIndex(2));
        let (frames, mut stream) = mpsc::channel(1);
        let link = LinkId::next();
        assert!(rank.attach(link, frames.clone()));
        assert!(!rank.cast(Msg::Snapshot { link }), "none lives");
        rank.lost();
        rank.lost();
        for _ in 0..2 {
            assert_eq!(stream.recv().await.unwrap().rank_lost, Some(RankIndex(2)));
        }
        rank.end();
        drop(frames);
        assert!(stream.recv().await.is_none(), "the worker's end closes the stream");
        assert!(!rank.attach(link, mpsc::channel(1).0));
    }
}
