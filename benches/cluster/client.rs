//! The front end in this process, and clients that only count.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cuelight::actors::failure::Failure;
use cuelight::actors::handle::{ClientGuard, FrontendHandle};
use cuelight::actors::reply::{Delta, Finish, NewRequest, Reply, Usage, Wishes};
use cuelight::actors::router::Explanation;
use cuelight::config::{self, Profile};
use cuelight::engine::Sampling;
use cuelight::node::launch::Tree;

use crate::Outcome;
use crate::nodes::{PATIENCE, eventually, sum};

/// What some clients were told.
pub(crate) struct Counts {
    epoch: Instant,
    tokens: AtomicU64,
    accepted: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    /// Nanoseconds after `epoch`.
    last_failed: AtomicU64,
    /// What the first client whose request failed was told.
    failure: OnceLock<String>,
}

impl Counts {
    /// Nothing was said.
    pub(crate) fn new() -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        let (tokens, accepted, ended, failed) = (zero(), zero(), zero(), zero());
        let epoch = Instant::now();
        Arc::new(Self {
            epoch,
            tokens,
            accepted,
            ended,
            failed,
            last_failed: zero(),
            failure: OnceLock::new(),
        })
    }

    /// Tokens of all clients.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Clients whose request a rank took.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Clients whose request failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Acquire)
    }

    /// Clients with a whole answer.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Waits for so many tokens of all clients.
    ///
    /// # Errors
    /// A request failed, or they do not come in time.
    pub(crate) async fn until_tokens(&self, tokens: u64) -> Outcome<()> {
        eventually("tokens", || self.tokens() >= tokens || self.failed() > 0).await?;
        self.failure.get().map_or(Ok(()), |failure| Err(failure.clone().into()))
    }

    /// When the last client heard that its request had failed.
    pub(crate) fn last_failed(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.last_failed.load(Ordering::Relaxed))
    }
}

struct Counting(Arc<Counts>);

impl Reply for Counting {
    fn accepted(&mut self) {
        self.0.accepted.fetch_add(1, Ordering::Relaxed);
    }

    fn started(&mut self, _: usize, _: String) {}

    fn routed(&mut self, _: usize, _: Explanation) {}

    fn delta(&mut self, delta: Delta<'_>) {
        self.0.tokens.fetch_add(delta.tokens.len() as u64, Ordering::Relaxed);
    }

    fn finished(&mut self, _: usize, _: Finish) {}

    fn done(&mut self, _: &Usage) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&mut self, failure: &Failure) {
        self.0.failure.get_or_init(|| failure.to_string());
        let at = self.0.epoch.elapsed().as_nanos() as u64;
        self.0.last_failed.fetch_max(at, Ordering::Relaxed);
        self.0.failed.fetch_add(1, Ordering::Release);
    }

    fn flush(&mut self) -> usize {
        0
    }
}

/// A node in this process.
pub(crate) struct Front {
    handle: FrontendHandle,
    _tree: Tree,
}

impl Front {
    /// Starts the node of this configuration and waits until its model is served.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) async fn start(config: &Path) -> Outcome<Self> {
        let config = config::load(Some(config), &[], Profile::Node).map_err(|e| e.to_string())?;
        let tree = Tree::start(config).await?;
        let shared = tree.frontend.clone().ok_or("the node has no front end")?;
        let front = Self { handle: FrontendHandle::new(shared), _tree: tree };
        front.ready().await?;
        Ok(front)
    }

    /// Waits until the model is served.
    ///
    /// # Errors
    /// Not in time.
    pub(crate) async fn ready(&self) -> Outcome<()> {
        let up = || self.handle.readiness().iter().all(|model| model.reason.is_none());
        eventually("worker", up).await
    }

    /// Ranks that can be given work.
    pub(crate) fn ranks_ready(&self) -> usize {
        self.handle.readiness().iter().map(|model| model.ranks_ready).sum()
    }

    /// Requests that have not ended, and those of them that stand in line for a rank.
    pub(crate) fn active_and_in_line(&self) -> [f64; 2] {
        let text = self.handle.metrics().encode();
        ["cuelight_requests_active", "cuelight_router_queue"].map(|name| sum(&text, name))
    }

    /// Polls until so many have not ended and stand in line; says how often it was polled.
    ///
    /// # Errors
    /// It does not come to that in time.
    pub(crate) fn until(&self, wanted: [f64; 2]) -> Outcome<u32> {
        let began = Instant::now();
        for polls in 1.. {
            let found = self.active_and_in_line();
            if found == wanted {
                return Ok(polls);
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{found:?} requests and in line, not {wanted:?}").into());
            }
        }
        Ok(u32::MAX)
    }

    /// How long choices of a rank took so far: mean, and an upper bound of p99, in microseconds.
    ///
    /// # Errors
    /// None was made.
    pub(crate) fn decision_us(&self) -> Outcome<[f64; 2]> {
        const NAME: &str = "cuelight_router_decision_seconds";
        let text = self.handle.metrics().encode();
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        let series = |end: &str| {
            let wanted = format!("{NAME}_{end}");
            text.lines().filter(move |line| line.starts_with(&wanted)).filter_map(value)
        };
        let (sum, count) = (series("sum").sum::<f64>(), series("count").sum::<f64>());
        let reaches = |line: &&str| {
            line.starts_with(&format!("{NAME}_bucket"))
                && value(line).is_some_and(|below| below >= 0.99 * count)
        };
        let bucket = text.lines().find(reaches).and_then(|line| {
            let bound = line.split("le=\"").nth(1)?.split('"').next()?;
            bound.parse::<f64>().ok()
        });
        let p99 = bucket.filter(|_| count > 0.0).ok_or("no rank was chosen")?;
        Ok([sum / count * 1e6, p99 * 1e6])
    }

    /// Asks for `max_tokens` tokens after a prompt of `prompt` tokens that begins with `first`.
    ///
    /// # Errors
    /// The request was refused.
    pub(crate) async fn ask(
        &self,
        first: usize,
        prompt: usize,
        max_tokens: u32,
        counts: &Arc<Counts>,
    ) -> Outcome<ClientGuard> {
        self.ask_of(None, first, prompt, max_tokens, counts).await
    }

    /// The same of one rank.
    ///
    /// # Errors
    /// The request was refused.
    pub(crate) async fn ask_of(
        &self,
        rank: Option<&str>,
        first: usize,
        prompt: usize,
        max_tokens: u32,
        counts: &Arc<Counts>,
    ) -> Outcome<ClientGuard> {
        let model = self.handle.models().remove(0);
        let vocab = model.text.vocab_len();
        let tokens: Vec<u32> = (0..prompt).map(|at| ((first + at * at) % vocab) as u32).collect();
        let request = NewRequest {
            prompts: vec![tokens.into()],
            n: 1,
            max_tokens,
            sampling: Sampling {
                ignore_eos: true,
                eos_ids: model.sampling.eos_ids.clone(),
                ..Sampling::default()
            },
            stop: model.text.stop_strings(&[])?,
            include_stop: false,
            skip_special_tokens: true,
            salt: 0,
            wishes: Wishes { rank: rank.map(str::to_string), ..Wishes::default() },
            public_id: "cmpl-00000000000000000000000000000000".to_string(),
            reply: Box::new(Counting(counts.clone())),
            model,
        };
        Ok(self.handle.admit(request).await?)
    }
}
