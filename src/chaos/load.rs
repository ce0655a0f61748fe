//! The checked load: clients in a closed loop, each request chosen by the seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::asks::Ask;
use super::client::{Body, BodyEnd, ClientError, Ending, Endpoint, Lines, Transcript, open, unary};
use super::ledger::{Ledger, Seen};
use super::random::Draw;

/// A client that was refused does not come back at once.
const AFTER_REFUSAL: Duration = Duration::from_millis(50);
/// Where prompts are prefilled for other ranks, one request in so many may find its own cached.
const CACHED: usize = 4;
/// Moments of one answer that are kept.
const MOST_MOMENTS: usize = 16_384;

/// What all clients share.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) seed: u64,
    pub(super) frontends: Vec<Endpoint>,
    pub(super) asks: Vec<Ask>,
    /// Counts the requests that share no cached prompt with others; `None` if all do.
    pub(super) salts: Option<AtomicU64>,
    pub(super) ledger: Ledger,
    /// Longest life of a request.
    pub(super) limit: Duration,
}

impl Load {
    /// One that no other request has, if prompts are to be computed rather than found.
    pub(super) fn salt(&self) -> Option<u64> {
        self.salts.as_ref().map(|salts| salts.fetch_add(1, Ordering::Relaxed))
    }
}

/// Running clients.
#[derive(Debug)]
pub(super) struct Clients {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Clients {
    /// Starts so many; `round` keeps their choices apart from those of other rounds.
    pub(super) fn start(load: &Arc<Load>, count: usize, round: u64) -> Self {
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for number in 0..count as u64 {
            tasks.spawn(client(load.clone(), round << 24 | number, stopping.clone()));
        }
        Self { stop, tasks }
    }

    /// Lets every client end its request; each is bounded by the load's limit.
    pub(super) async fn finish(mut self) {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn client(load: Arc<Load>, number: u64, stopping: watch::Receiver<bool>) {
    let mut draw = Draw::new(load.seed, number);
    while !*stopping.borrow() {
        let ask = draw.below(load.asks.len());
        let Some(to) = draw.pick(&load.frontends) else { return };
        // Nothing is drawn where it would change nothing: a seed means the same requests as ever.
        let salt = load.salts.as_ref().filter(|_| draw.below(CACHED) > 0).and_then(|_| load.salt());
        let seen = ask_once(to, ask, &load.asks[ask], salt, load.limit).await;
        let refused = matches!(seen.ending, Ending::Refused(_) | Ending::Broken(_));
        load.ledger.record(&seen);
        if refused {
            tokio::time::sleep(AFTER_REFUSAL).await;
        }
    }
}

/// Asks one thing and reads its answer to the end.
pub(super) async fn ask_once(
    to: &Endpoint,
    index: usize,
    ask: &Ask,
    salt: Option<u64>,
    limit: Duration,
) -> Seen {
    let body = ask.salted(salt);
    let began = Instant::now();
    let mut moments = vec![began];
    let answer = async {
        let (head, body) = match open(to, ask.path, Some(&body), false).await {
            Ok(opened) => opened,
            Err(error) => return unanswered(error),
        };
        if !(ask.stream && head.status == 200 && head.events) {
            return match body.rest().await {
                Ok(bytes) => unary(head.status, &bytes, ask.choices),
                Err(error) => Ending::Broken(error.to_string()),
            };
        }
        let mut transcript = Transcript::new(ask.choices, ask.usage);
        let end = read(body, &mut transcript, began + limit, usize::MAX, |_| {
            if moments.len() < MOST_MOMENTS {
                moments.push(Instant::now());
            }
        });
        let end = end.await;
        transcript.end(end)
    };
    // A stream has its own deadline within; this one is for the rest.
    let late = || Ending::Wrong(format!("never ended: no end within {} s", limit.as_secs()));
    let whole = tokio::time::timeout(limit + Duration::from_secs(1), answer).await;
    let ending = whole.unwrap_or_else(|_| late());
    moments.push(Instant::now());
    Seen { ask: index, moments, ending }
}

/// How a request ended that got no answer.
fn unanswered(error: ClientError) -> Ending {
    match error {
        // Nothing was begun, so nothing was cut short: the client may ask elsewhere.
        ClientError::NoConnection(_) | ClientError::NoAnswer(_) => {
            Ending::Refused(error.to_string())
        }
        _ => Ending::Broken(error.to_string()),
    }
}

/// Reads a stream of events until its end, its deadline or `most` events.
pub(super) async fn read(
    mut body: Body,
    transcript: &mut Transcript,
    deadline: Instant,
    most: usize,
    mut on_part: impl FnMut(usize),
) -> BodyEnd {
    let (mut lines, mut events) = (Lines::default(), 0);
    while events < most {
        let part = timeout_at(deadline.into(), body.part()).await;
        match part {
            Err(_) => return BodyEnd::Late(format!("{events} events, then no end in time")),
            Ok(Err(error)) => return BodyEnd::Cut(error.to_string()),
            Ok(Ok(None)) => return BodyEnd::Whole { left: lines.left() },
            Ok(Ok(Some(bytes))) => {
                let fed = lines.feed(&bytes, |event| {
                    events += 1;
                    transcript.event(event);
                });
                on_part(events);
                if let Err(what) = fed {
                    transcript.garbage(what);
                    return BodyEnd::Whole { left: 0 };
                }
            }
        }
    }
    BodyEnd::Cut("the client left".to_owned())
}
