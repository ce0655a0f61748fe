//! The token path alone: the actors, channels, bytes and inboxes between a rank's step and a
//! request, with neither engine nor detokenizer. [`replay`] is the worker's process: a `FrontendLink`
//! with a rank that sends prepared frames. [`front`] is the other: a `WorkerLink` and inboxes that
//! only count.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use cuelight::actors::cluster::frontend_link::{self, FrontendLink};
use cuelight::actors::cluster::hello::Identity;
use cuelight::actors::cluster::stream::RemoteWorker;
use cuelight::actors::cluster::transport::Transport;
use cuelight::actors::cluster::wire::Pulse;
use cuelight::actors::context::NodeContext;
use cuelight::actors::inbox::{Inbox, LegEvent};
use cuelight::actors::link::{self, Frame, Link, Report, WorkerLink};
use cuelight::actors::rank::RankRef;
use cuelight::actors::router::ModelRouter;
use cuelight::actors::tree::CardId;
use cuelight::actors::worker::{Way, WorkerUp};
use cuelight::actors::{frontend, rank};
use cuelight::config::{self, Profile};
use cuelight::engine::blocks::HashKey;
use cuelight::engine::{Description, Leg, Load, Part, PrefixCache, Sampling, Tier, TokenOut};
use cuelight::ids::{Generation, LegId, NodeId, RankIndex, RequestId, WorkerId};
use cuelight::metrics::{Metrics, Pool};
use cuelight::router::Role;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::Outcome;
use crate::measure::{Meter, STEP, STREAMS, Sides};
use crate::nodes::{MODEL, Scratch, eventually, free};
use crate::process::Server;

const WORKER: &str = "replayed";

fn worker_node() -> NodeId {
    NodeId { name: "worker".into(), boot: 1 }
}

fn transport(node: NodeId, address: SocketAddr) -> Arc<Transport> {
    let me = Identity { node, address: address.to_string(), build: "bench".to_string() };
    Arc::new(Transport {
        me,
        cookie: b"a secret of this benchmark".to_vec(),
        tls: None,
        pulse: Pulse::new(Duration::from_secs(2), 16 << 20, Default::default()),
        handshake_timeout: Duration::from_secs(5),
    })
}

fn context(config: &Value) -> Outcome<Arc<NodeContext>> {
    let scratch = Scratch::new()?;
    let path = scratch.write("part", config)?;
    let config = config::load(Some(&path), &[], Profile::Node).map_err(|e| e.to_string())?;
    Ok(Arc::new(NodeContext::new(config, Arc::new(Metrics::new()))))
}

/// A rank that sends frames as soon as all legs have come.
struct Replayed;

#[derive(Default)]
struct ReplayedState {
    frames: Option<mpsc::Sender<Frame>>,
    legs: Vec<LegId>,
}

impl Actor for Replayed {
    type Msg = rank::Msg;
    type State = ReplayedState;
    type Arguments = ();

    async fn pre_start(
        &self,
        _: ActorRef<rank::Msg>,
        (): (),
    ) -> Result<ReplayedState, ActorProcessingErr> {
        Ok(ReplayedState::default())
    }

    async fn handle(
        &self,
        _: ActorRef<rank::Msg>,
        message: rank::Msg,
        state: &mut ReplayedState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            rank::Msg::Attach { frames, .. } => state.frames = Some(frames),
            rank::Msg::Admit { leg, .. } => state.legs.push(leg.id),
            _ => {}
        }
        if state.legs.len() == STREAMS
            && let Some(frames) = state.frames.take()
        {
            let legs = std::mem::take(&mut state.legs);
            std::thread::Builder::new().name("rank".into()).spawn(move || send(&legs, &frames))?;
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<rank::Msg>,
        _: SupervisionEvent,
        _: &mut ReplayedState,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

fn send(legs: &[LegId], frames: &mpsc::Sender<Frame>) {
    let report = Report {
        rank: RankIndex(0),
        life: 1,
        load: Load::default(),
        credit: STREAMS as u32,
        kv_number: 0,
    };
    let mut next = Instant::now();
    for step in 0u32.. {
        next += STEP;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let token = |(at, leg): (usize, &LegId)| TokenOut {
            leg: *leg,
            token: (step * 31 + at as u32 * 7) % 2000,
            logprobs: None,
            finish: None,
        };
        let tokens = legs.iter().enumerate().map(token).collect();
        let frame = Frame { tokens, report: Some(report), ..Frame::default() };
        if frames.blocking_send(frame).is_err() {
            return; // the front end has seen enough
        }
    }
}

/// The worker's process: serves one front end.
///
/// # Errors
/// The connection does not come about.
pub(crate) async fn replay(address: SocketAddr) -> Outcome<()> {
    let node = context(&json!({ "worker": { "model": MODEL, "engine": "sim" } }))?;
    let transport = transport(worker_node(), address);
    let (tcp, _) = TcpListener::bind(address).await?.accept().await?;
    let connection = transport.accept(tcp, |_, _| Ok(())).await?;
    let (rank, _) = Actor::spawn(None, Replayed, ()).await?;
    let of_rank = RankRef::new(RankIndex(0));
    of_rank.open(rank, 1);
    of_rank.loaded();
    let args = frontend_link::Args {
        node,
        parent: CardId::TOP,
        connection,
        pulse: transport.pulse.clone(),
        ranks: vec![of_rank],
        generation: Generation(1),
    };
    let (_, ended) = Actor::spawn(None, FrontendLink, args).await?;
    Ok(ended.await?)
}

/// Hears when the link is up.
struct Listener(std_mpsc::Sender<Arc<Link>>);

impl Actor for Listener {
    type Msg = frontend::Msg;
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        _: ActorRef<frontend::Msg>,
        (): (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<frontend::Msg>,
        message: frontend::Msg,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let frontend::Msg::Linked(link) = message {
            self.0.send(link)?;
        }
        Ok(())
    }
}

/// Stands for a request: takes in tokens under a lock of its own, as the real one does.
struct Sink {
    taken: Mutex<Taken>,
    tokens: Arc<AtomicU64>,
}

#[derive(Default)]
struct Taken {
    tokens: u64,
    burst: bool,
}

impl Inbox for Sink {
    fn put(&self, _: LegId, event: LegEvent) -> bool {
        let Ok(mut taken) = self.taken.lock() else { return false };
        taken.tokens += u64::from(matches!(event, LegEvent::Token { .. }));
        !std::mem::replace(&mut taken.burst, true)
    }

    fn flush(&self, _: Instant) {
        let Ok(mut taken) = self.taken.lock() else { return };
        taken.burst = false;
        self.tokens.fetch_add(std::mem::take(&mut taken.tokens), Ordering::Relaxed);
    }
}

/// The front end's process: starts the other one, links to it and measures both.
///
/// # Errors
/// The link does not come about.
pub(crate) async fn front(window: Duration) -> Outcome<Sides> {
    let [address] = free()?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(["replay", &address.to_string()]);
    let log = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cluster-bench-replay.log");
    let mut worker = Server::start(&mut command, &log)?;
    let link = connect(address).await?;
    let tokens = Arc::new(AtomicU64::new(0));
    for request in 0..STREAMS as u64 {
        let sink = Sink { taken: Mutex::default(), tokens: tokens.clone() };
        let leg = Leg {
            id: LegId { request: RequestId(request << 32), choice: 0, attempt: 0 },
            tokens: vec![1; 16],
            prompt_len: 16,
            max_tokens: 2000,
            choice: 0,
            sampling: Arc::new(Sampling::default()),
            salt: 0,
            part: Part::Whole,
        };
        link.place(0, (leg, None), 0, Arc::new(sink))?;
    }
    let seen = || tokens.load(Ordering::Relaxed);
    eventually("tokens", || seen() > 50 * STREAMS as u64).await?;
    let pids = [Some(worker.child().id()), Some(std::process::id())];
    let meter = Meter::start(pids, seen())?;
    tokio::time::sleep(window).await;
    let mut sides = meter.stop(seen())?;
    sides.worker -= tokio::task::block_in_place(pacing)?;
    Ok(sides)
}

/// What the stand-in for a rank pays for pacing its steps, which an engine does not: CPU
/// microseconds for each of a step's tokens.
fn pacing() -> Outcome<f64> {
    const STEPS: u32 = 400;
    let on_cpu = || -> Outcome<u64> {
        let times = std::fs::read_to_string("/proc/thread-self/schedstat")?;
        Ok(times.split(' ').next().unwrap_or_default().parse()?)
    };
    let thread = std::thread::spawn(move || -> Outcome<f64> {
        let before = on_cpu()?;
        let mut next = Instant::now();
        for _ in 0..STEPS {
            next += STEP;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok((on_cpu()? - before) as f64 / 1e3 / f64::from(STEPS) / STREAMS as f64)
    });
    thread.join().map_err(|_| "the thread that paces panicked")?
}

async fn connect(address: SocketAddr) -> Outcome<Arc<Link>> {
    let node = context(&json!({ "frontend": { "models": [MODEL] } }))?;
    let transport = transport(node.id.clone(), address);
    let depth = node.metrics.mailboxes.streams.clone();
    let description = Description {
        kind: "replay".into(),
        fingerprint: 0,
        context: 2048,
        vocab: 4096,
        block_tokens: 16,
        blocks: 1,
        block_bytes: 1,
        max_running: STREAMS,
        max_waiting: 0,
        prefix_cache: PrefixCache::Told,
        slowest_tier: Tier::Device,
        hands_over: false,
    };
    let way = RemoteWorker::new(transport, worker_node(), address.to_string(), depth);
    let up = WorkerUp {
        id: WorkerId { node: worker_node(), worker: WORKER.into() },
        model: WORKER.into(),
        generation: Generation(1),
        ranks: vec![RankIndex(0)],
        description,
        tokenizer: 0,
        role: Role::Aggregated,
        way: Way::Remote(Arc::new(way)),
    };
    let config = node.config.frontend.as_ref().ok_or("no front end")?.router.clone();
    let metrics = node.metrics.router(WORKER, Pool::Decode);
    let router = Arc::new(ModelRouter::new(WORKER, &config, HashKey::default(), 0, metrics));
    let (heard, linked) = std_mpsc::channel();
    let (frontend, _) = Actor::spawn(None, Listener(heard), ()).await?;
    for _ in 0..200 {
        let args = link::Args {
            node: node.clone(),
            parent: CardId::TOP,
            frontend: frontend.clone(),
            up: up.clone(),
            router: router.clone(),
        };
        Actor::spawn(None, WorkerLink, args).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        if let Ok(link) = linked.try_recv() {
            return Ok(link);
        }
    }
    Err("the link did not come about".into())
}
