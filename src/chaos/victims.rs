//! Clients that behave badly, as faults of their own: they leave in mid-stream or read slowly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::asks::Ask;
use super::client::{Answer, BodyEnd, Ending, Lines, Transcript, open};
use super::load::{Load, read};

/// What such clients ask.
#[derive(Debug)]
pub(super) struct Victims {
    pub(super) ask: Ask,
    pub(super) expected: Answer,
}

impl Victims {
    /// So many clients leave after so many events each. Returns how many did; the others found an
    /// end before.
    pub(super) async fn vanish(&self, load: &Arc<Load>, clients: usize, events: usize) -> usize {
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let Some(to) = load.frontends.get(number % load.frontends.len().max(1)) else { break };
            let (to, ask, limit) = (to.clone(), self.ask.clone(), load.limit);
            let text = ask.salted(load.salt());
            tasks.spawn(async move {
                let Ok((_, body)) = open(&to, ask.path, Some(&text), false).await else {
                    return false;
                };
                let mut transcript = Transcript::new(ask.choices, ask.usage);
                let end = read(body, &mut transcript, Instant::now() + limit, events, |_| {});
                matches!(end.await, BodyEnd::Cut(_))
            });
        }
        let mut left = 0;
        while let Some(done) = tasks.join_next().await {
            left += usize::from(done.unwrap_or(false));
        }
        left
    }

    /// One client takes a part `each` so often for `time`, then all that is left.
    pub(super) async fn read_slowly(
        &self,
        load: &Arc<Load>,
        each: Duration,
        time: Duration,
    ) -> Ending {
        let Some(to) = load.frontends.first() else {
            return Ending::Refused("there is no front end".to_owned());
        };
        let ask = &self.ask;
        let text = ask.salted(load.salt());
        let mut body = match open(to, ask.path, Some(&text), true).await {
            Ok((_, body)) => body,
            Err(error) => return Ending::Refused(error.to_string()),
        };
        let mut transcript = Transcript::new(ask.choices, ask.usage);
        let mut lines = Lines::default();
        let began = Instant::now();
        while began.elapsed() < load.limit {
            match tokio::time::timeout(load.limit, body.part()).await {
                Err(_) => break,
                Ok(Err(error)) => return transcript.end(BodyEnd::Cut(error.to_string())),
                Ok(Ok(None)) => {
                    return transcript.end(BodyEnd::Whole { left: lines.left() });
                }
                Ok(Ok(Some(bytes))) => {
                    if let Err(what) = lines.feed(&bytes, |event| transcript.event(event)) {
                        transcript.garbage(what);
                    }
                }
            }
            if began.elapsed() < time {
                tokio::time::sleep(each).await;
            }
        }
        transcript.end(BodyEnd::Late("the slow client's answer has no end in time".to_owned()))
    }
}
