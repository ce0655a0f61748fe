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
    /// Lives that have ended and that it has not been told of yet: until it has, it is not attached
    /// to the one that there is.
    untold: u32,
}

#[derive(Default)]
struct Inside {
    actor: Option<ActorRef<Msg>>,
    /// Of the last life, from 1.
    life: u32,
    /// Whether the life that there is can serve.
    is_loaded: bool,
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

    /// Tells the rank of a leg of this link; `false` if no life of it listens to that link.
    pub fn admit(&self, link: LinkId, message: Msg) -> bool {
        let inside = self.inside();
        let listens = |stream: &Attached| stream.link == link && stream.untold == 0;
        inside.streams.iter().any(listens)
            && inside.actor.as_ref().is_some_and(|actor| actor.cast(message).is_ok())
    }

    /// Frames about the link's legs go to `frames`, now and from every later life; `false` if the
    /// worker is gone. While no life can serve, the front end is told so first.
    pub fn attach(&self, link: LinkId, frames: mpsc::Sender<Frame>) -> bool {
        let mut inside = self.inside();
        if inside.ended {
            return false;
        }
        inside.streams.push(Attached { link, frames, untold: 0 });
        let at = inside.streams.len() - 1;
        match inside.is_loaded {
            true => inside.greet(&inside.streams[at]),
            false => self.tell(&mut inside, at),
        }
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
    pub fn open(&self, actor: ActorRef<Msg>, life: u32) {
        let mut inside = self.inside();
        (inside.actor, inside.life, inside.is_loaded) = (Some(actor), life, false);
        inside.streams.iter().filter(|stream| stream.untold == 0).for_each(|s| inside.greet(s));
    }

    /// The life that there is can serve.
    pub fn loaded(&self) {
        self.inside().is_loaded = true;
    }

    /// A life has ended, and another one may follow: each front end is told, and is attached to the
    /// next life only after that.
    pub(in crate::actors) fn lost(&self) {
        let mut inside = self.inside();
        (inside.actor, inside.is_loaded) = (None, false);
        (0..inside.streams.len()).for_each(|at| self.tell(&mut inside, at));
    }

    /// Tells a front end of the last life that has ended.
    fn tell(&self, inside: &mut Inside, at: usize) {
        let life = inside.life - u32::from(inside.actor.is_some());
        let stream = &mut inside.streams[at];
        stream.untold += 1;
        let (rank, link, frames) = (self.clone(), stream.link, stream.frames.clone());
        tokio::spawn(async move {
            let frame = Frame { rank_lost: Some((rank.index, life)), ..Frame::default() };
            if frames.send(frame).await.is_ok() {
                rank.told(link);
            }
        });
    }

    /// The worker is gone, and all that was attached with it.
    pub(in crate::actors) fn end(&self) {
        *self.inside() = Inside { ended: true, ..Inside::default() };
    }

    fn told(&self, link: LinkId) {
        let mut inside = self.inside();
        let Some(at) = inside.streams.iter().position(|stream| stream.link == link) else { return };
        inside.streams[at].untold -= 1;
        if inside.streams[at].untold == 0 {
            inside.greet(&inside.streams[at]);
        }
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
    use ractor::{Actor, ActorProcessingErr};

    use super::*;

    fn lost(life: u32) -> Frame {
        Frame { rank_lost: Some((RankIndex(2), life)), ..Frame::default() }
    }

    /// What a life of the rank hears.
    struct Life(mpsc::Sender<LinkId>);

    impl Actor for Life {
        type Msg = Msg;
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<Msg>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle(
            &self,
            _: ActorRef<Msg>,
            message: Msg,
            (): &mut (),
        ) -> Result<(), ActorProcessingErr> {
            if let Msg::Attach { link, .. } | Msg::Snapshot { link } = message {
                self.0.send(link).await?;
            }
            Ok(())
        }
    }

    async fn live() -> (ActorRef<Msg>, mpsc::Receiver<LinkId>) {
        let (heard, hears) = mpsc::channel(9);
        (Actor::spawn(None, Life(heard), ()).await.unwrap().0, hears)
    }

    #[tokio::test]
    async fn a_front_end_hears_of_every_life_that_ends_and_of_none_after_the_worker() {
        let rank = RankRef::new(RankIndex(2));
        let (frames, mut stream) = mpsc::channel(1);
        let link = LinkId::next();
        rank.open(live().await.0, 1);
        rank.loaded();
        assert!(rank.attach(link, frames.clone()));
        rank.lost();
        assert!(!rank.cast(Msg::Snapshot { link }), "none lives");
        rank.open(live().await.0, 2);
        rank.lost();
        for life in 1..=2 {
            assert_eq!(stream.recv().await.unwrap(), lost(life));
        }
        rank.end();
        drop(frames);
        assert!(stream.recv().await.is_none(), "the worker's end closes the stream");
        assert!(!rank.attach(link, mpsc::channel(1).0));
    }

    #[tokio::test]
    async fn who_links_while_a_rank_loads_is_told_so_and_no_leg_gets_there_before_its_stream() {
        let rank = RankRef::new(RankIndex(2));
        let (frames, mut stream) = mpsc::channel(1);
        frames.send(Frame::default()).await.unwrap(); // nothing fits in
        let link = LinkId::next();
        let (first, mut hears) = live().await;
        rank.open(first, 1);
        assert!(rank.attach(link, frames));
        assert!(!rank.admit(link, Msg::Snapshot { link }), "it does not know the stream yet");
        rank.lost();
        let (second, mut hears_next) = live().await;
        rank.open(second, 2);
        rank.loaded();
        assert_eq!(stream.recv().await.unwrap(), Frame::default());
        // In any order: each says what the last life was that had ended.
        let told = [stream.recv().await.unwrap(), stream.recv().await.unwrap()];
        assert!(told.contains(&lost(0)) && told.contains(&lost(1)), "{told:?}");
        assert_eq!(hears_next.recv().await, Some(link), "attached once all is told");
        assert!(rank.admit(link, Msg::Snapshot { link }));
        assert_eq!(hears_next.recv().await, Some(link));
        assert!(hears_next.try_recv().is_err() && hears.try_recv().is_err(), "attached once");
    }
}
