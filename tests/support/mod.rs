//! A whole supervision tree without HTTP, and a client that writes down what it is told.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test binary uses a part of it

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cuelight::actors::failure::Failure;
use cuelight::actors::faults::Fault;
use cuelight::actors::handle::{ClientGuard, FrontendHandle};
use cuelight::actors::reply::{Delta, Finish, NewRequest, Reply, Usage, Wishes};
use cuelight::actors::router::Explanation;
use cuelight::config::{self, Profile};
use cuelight::engine::Sampling;
use cuelight::node::launch::Tree;
use tokio::sync::Notify;

/// Longest that anything in a test may take; a hang becomes a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// What one client was told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    pub accepted: bool,
    pub text: Vec<String>,
    pub tokens: Vec<Vec<u32>>,
    pub finished: Vec<Option<Finish>>,
    pub usage: Option<Usage>,
    pub failed: Option<Failure>,
    /// The reply was dropped without an end.
    pub dropped: bool,
    /// Bursts.
    pub flushes: usize,
    /// Ranks that served it, if asked for.
    pub ranks: Vec<String>,
    /// And why those.
    pub routing: Vec<Explanation>,
}

impl Said {
    pub fn ended(&self) -> bool {
        self.usage.is_some() || self.failed.is_some() || self.dropped
    }
}

#[derive(Default)]
struct Shared {
    said: Mutex<Said>,
    changed: Notify,
}

/// A reply that writes down what it is told.
struct Recorder {
    shared: Arc<Shared>,
    backlog: usize,
    panics_at: usize,
}

impl Recorder {
    fn note(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.shared.said.lock().unwrap());
        self.shared.changed.notify_waiters();
    }
}

impl Reply for Recorder {
    fn accepted(&mut self) {
        self.note(|said| said.accepted = true);
    }

    fn started(&mut self, _: usize, rank: String) {
        self.note(|said| said.ranks.push(rank));
    }

    fn routed(&mut self, _: usize, explanation: Explanation) {
        self.note(|said| said.routing.push(explanation));
    }

    fn delta(&mut self, delta: Delta<'_>) {
        self.note(|said| {
            assert!(said.finished[delta.choice].is_none(), "a delta after the choice's end");
            said.text[delta.choice].push_str(delta.text);
            said.tokens[delta.choice].extend(delta.tokens.iter().map(|token| token.token));
        });
        let told = self.shared.said.lock().unwrap().tokens[delta.choice].len();
        assert!(told < self.panics_at, "this reply panics at its token {told}");
    }

    fn finished(&mut self, choice: usize, reason: Finish) {
        self.note(|said| {
            assert_eq!(said.finished[choice].replace(reason), None, "a choice ended twice");
        });
    }

    fn done(&mut self, usage: &Usage) {
        self.note(|said| {
            assert!(!said.ended(), "an answer ended twice");
            said.usage = Some(*usage);
        });
    }

    fn failed(&mut self, failure: &Failure) {
        self.note(|said| {
            assert!(!said.ended(), "an answer ended twice");
            said.failed = Some(failure.clone());
        });
    }

    fn flush(&mut self) -> usize {
        self.note(|said| said.flushes += 1);
        self.backlog
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.note(|said| said.dropped = !said.ended());
    }
}

/// A request under way.
pub struct Client {
    shared: Arc<Shared>,
    guard: Option<ClientGuard>,
}

impl Client {
    pub fn said(&self) -> Said {
        self.shared.said.lock().unwrap().clone()
    }

    /// The client closes its connection.
    pub fn leave(&mut self) {
        self.guard = None;
    }

    /// Waits until what was said satisfies `condition`.
    pub async fn until(&self, what: &str, condition: impl Fn(&Said) -> bool) -> Said {
        let wait = async {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let said = self.said();
                if condition(&said) {
                    return said;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| panic!("no {what} within {PATIENCE:?}: {:?}", self.said()))
    }

    pub async fn tokens(&self, count: usize) -> Said {
        self.until("tokens", |said| said.ended() || said.tokens[0].len() >= count).await
    }

    pub async fn end(&self) -> Said {
        self.until("end", Said::ended).await
    }
}

/// What to ask; the rest is greedy and plain.
#[derive(Clone, Debug)]
pub struct Ask {
    pub prompt: String,
    pub max_tokens: u32,
    pub n: usize,
    pub stop: Vec<String>,
    pub sampling: Sampling,
    pub backlog: usize,
    pub panics_at: usize,
    pub wishes: Wishes,
}

impl Ask {
    pub fn new(prompt: &str, max_tokens: u32) -> Self {
        let sampling = Sampling { ignore_eos: true, ..Sampling::default() };
        let (prompt, stop) = (prompt.to_string(), Vec::new());
        let (backlog, panics_at) = (0, usize::MAX);
        let wishes = Wishes::default();
        Self { prompt, max_tokens, n: 1, stop, sampling, backlog, panics_at, wishes }
    }
}

/// A running tree.
pub struct Harness {
    pub tree: Tree,
    pub handle: FrontendHandle,
}

impl Harness {
    /// Starts `cuelight serve` on the shipped model, without HTTP, with faults allowed, and waits
    /// until it can serve.
    pub async fn start(sets: &[&str]) -> Self {
        let harness = Self::launch(sets).await;
        harness.ready().await;
        harness
    }

    pub async fn launch(sets: &[&str]) -> Self {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/cuelight-tiny");
        let mut all = vec![format!("worker.model={model}"), "faults.enabled=true".to_string()];
        all.push("worker.kv_blocks=512".to_string());
        all.extend(sets.iter().map(ToString::to_string));
        let config = config::load(None, &all, Profile::Serve).unwrap_or_else(|e| panic!("{e}"));
        let tree = Tree::start(config).await.unwrap_or_else(|error| panic!("{error}"));
        let handle = FrontendHandle::new(tree.frontend.clone().unwrap());
        Self { tree, handle }
    }

    pub async fn ready(&self) {
        let up = || self.handle.readiness().iter().all(|model| model.reason.is_none());
        self.eventually("ready", up).await;
    }

    /// Polls until the condition holds.
    pub async fn eventually(&self, what: &str, condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let tree = || self.handle.tree().map(|tree| tree.to_text()).unwrap_or_default();
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| panic!("not {what} within {PATIENCE:?}:\n{}", tree()));
    }

    pub async fn try_ask(&self, ask: &Ask) -> Result<Client, Failure> {
        let model = self.handle.models().remove(0);
        let shared = Arc::new(Shared::default());
        *shared.said.lock().unwrap() = Said {
            text: vec![String::new(); ask.n],
            tokens: vec![Vec::new(); ask.n],
            finished: vec![None; ask.n],
            ..Said::default()
        };
        let mut sampling = ask.sampling.clone();
        sampling.eos_ids = model.sampling.eos_ids.clone();
        let request = NewRequest {
            prompts: vec![model.text.encode(&ask.prompt, false).unwrap().into()],
            n: ask.n,
            max_tokens: ask.max_tokens,
            sampling,
            stop: model.text.stop_strings(&ask.stop).unwrap(),
            include_stop: false,
            skip_special_tokens: true,
            salt: 0,
            wishes: ask.wishes.clone(),
            public_id: "test".to_string(),
            reply: Box::new(Recorder {
                shared: shared.clone(),
                backlog: ask.backlog,
                panics_at: ask.panics_at,
            }),
            model,
        };
        let guard = Some(self.handle.admit(request).await?);
        Ok(Client { shared, guard })
    }

    pub async fn ask(&self, ask: &Ask) -> Client {
        self.try_ask(ask).await.unwrap_or_else(|failure| panic!("refused: {failure}"))
    }

    pub fn inject(&self, fault: Fault) -> String {
        self.handle.inject(fault).unwrap_or_else(|why| panic!("{why}"))
    }

    pub fn kill(&self, kind: &str) -> String {
        self.inject(Fault::KillActor { kind: kind.to_string(), name: None })
    }

    /// How many actors of a kind live.
    pub fn kill_named(&self, kind: &str, name: &str) -> String {
        self.inject(Fault::KillActor { kind: kind.to_string(), name: Some(name.to_string()) })
    }

    pub fn census(&self, kind: &str) -> usize {
        self.tree.node.board.census().get(kind).copied().unwrap_or(0)
    }

    /// Generation of the living worker, 0 if there is none.
    pub fn generation(&self) -> u32 {
        fn find(tree: &cuelight::actors::tree::Snapshot) -> Option<u32> {
            if tree.kind == "Worker" {
                return Some(tree.generation);
            }
            tree.children.iter().find_map(find)
        }
        self.handle.tree().as_ref().and_then(find).unwrap_or(0)
    }

    /// A metric's value by its full name and labels as in the text format.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.handle.metrics().encode();
        let line = text
            .lines()
            .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        let line = line.unwrap_or_else(|| panic!("no series {series} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until nothing is left of any request: no actors, no blocks, no counts.
    pub async fn quiet(&self) {
        let rank = "{worker=\"cuelight-tiny\",rank=\"0\"}";
        let series = ["kv_blocks_used", "running", "waiting"];
        let series = series.map(|name| format!("cuelight_{name}{rank}"));
        let quiet = || {
            self.census("Request") == 0
                && self.census("Sequence") == 0
                && self.handle.active() == 0
                && series.iter().all(|series| self.metric(series) == 0.0)
                && self.metric("cuelight_stream_backlog_bytes") == 0.0
        };
        self.eventually("quiet", quiet).await;
    }
}
