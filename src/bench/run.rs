//! A run: clients of a closed loop or arrivals of an open one, from the first request to the report.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::alarm::Alarm;
use super::answer::{Answer, Complete};
use super::client::{Client, Failure};
use super::draw::{Draw, Stream};
use super::options::{Arrivals, Load, Options};
use super::process::Watched;
use super::progress::Progress;
use super::prompt::{Conversation, Template};
use super::record::Record;
use super::report::{End, Report};
use super::sse::Reader;
use super::workload::{Job, Segment, Workload};

/// How often processes are looked at and the progress is shown.
const LOOK: Duration = Duration::from_millis(250);
/// Longest wait for the list of models.
const MODELS: Duration = Duration::from_secs(10);
/// Jobs before the measurement have numbers from here on, so that they are none of its own.
const WARMUP_JOBS: u64 = 1 << 40;

/// Why there is no run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server does not answer, or not with a model.
    #[error("{url} does not answer: {why}; is a server running there?")]
    Unreachable {
        /// The server.
        url: String,
        /// What was tried.
        why: String,
    },
    /// There is no such process.
    #[error("--pid {0}: must be a running process; there is none with this number")]
    NoProcess(u32),
    /// The system refuses something that a run needs.
    #[error("cannot run: {0}")]
    System(#[from] std::io::Error),
}

/// What all tasks of a run share; they are on one thread.
struct Context {
    options: Options,
    client: Client,
    template: Template,
    reader: Reader,
    record: RefCell<Record>,
    budget: Cell<Budget>,
    next_job: Cell<u64>,
    in_flight: Cell<u64>,
    watched: RefCell<Vec<Watched>>,
}

/// What may still be sent.
#[derive(Clone, Copy, Debug)]
struct Budget {
    requests: u64,
    until: Option<Instant>,
}

impl Context {
    /// Takes the right to send one request, if there is one left.
    fn take(&self) -> bool {
        let Budget { requests, until } = self.budget.get();
        if requests == 0 || until.is_some_and(|until| Instant::now() >= until) {
            return false;
        }
        self.budget.set(Budget { requests: requests - 1, until });
        true
    }

    /// Whether it is too late for something that begins so long from now.
    fn too_late(&self, pause: Duration) -> bool {
        self.budget.get().until.is_some_and(|until| Instant::now() + pause >= until)
    }

    fn next_job(&self) -> Option<Job> {
        let index = self.next_job.replace(self.next_job.get() + 1);
        self.options.workload.job(self.options.seed, index)
    }

    /// Sends one request and records what comes of it.
    async fn ask(&self, request: &[u8], asked: u32) -> Option<Complete> {
        let Options { api, workload, timeout: limit, .. } = &self.options;
        self.record.borrow_mut().sent += 1;
        self.in_flight.set(self.in_flight.get() + 1);
        let mut answer = Answer::new(*api, &self.reader, &self.record, workload.keeps_answers());
        let ended = timeout(*limit, self.client.exchange(request, &mut answer)).await;
        let ended = ended.unwrap_or(Err(Failure::Timeout(limit.as_secs())));
        let ended = ended.and_then(|head| answer.finish(&head));
        self.in_flight.set(self.in_flight.get() - 1);
        let mut record = self.record.borrow_mut();
        match &ended {
            Ok(complete) => record.complete(complete, asked),
            Err(failure) => record.fail(failure),
        }
        ended.ok()
    }

    /// All turns of a job, of which the first may be sent. A failure ends it.
    async fn converse(&self, job: Job) {
        let mut talk = Conversation::default();
        let mut following = false;
        for turn in &job.turns {
            if following {
                if self.too_late(turn.think) {
                    return;
                }
                sleep(turn.think).await;
                if !self.take() {
                    return;
                }
            }
            following = true;
            talk.user(&self.template, &turn.text);
            let request = talk.request(&self.template, turn.output);
            let Some(complete) = self.ask(&request, turn.output).await else { return };
            let tokens = u32::try_from(complete.output_tokens()).unwrap_or(turn.output);
            talk.answer(&self.template, &complete.kept, Segment { key: turn.answer_key, tokens });
        }
    }

    /// One client of a closed loop.
    async fn client(self: Rc<Self>) {
        while self.take() {
            let Some(job) = self.next_job() else { return };
            self.converse(job).await;
        }
    }
}

/// A closed loop, until all is sent and answered.
async fn closed(context: &Rc<Context>, concurrency: usize) {
    let mut clients = JoinSet::new();
    for _ in 0..concurrency {
        clients.spawn_local(context.clone().client());
    }
    while clients.join_next().await.is_some() {}
}

/// An open loop, until all is sent and answered.
async fn open(
    context: &Rc<Context>,
    arrivals: Arrivals,
    max_in_flight: usize,
) -> std::io::Result<()> {
    let alarm = Alarm::new()?;
    let start = Instant::now();
    let mut draw = Draw::new(context.options.seed, Stream::Arrival, 0);
    let mut jobs = JoinSet::new();
    let (mut at, mut count) = (Duration::ZERO, 0.0);
    while let Some(job) = context.next_job() {
        at = match arrivals {
            Arrivals::Poisson(rate) => at + Duration::from_secs_f64(draw.exponential() / rate),
            Arrivals::Constant(rate) => Duration::from_secs_f64(count / rate),
            Arrivals::Trace(speedup) => job.at.unwrap_or_default().div_f64(speedup),
        };
        count += 1.0;
        let wait = at.saturating_sub(start.elapsed());
        if context.too_late(wait) {
            break;
        }
        alarm.wait(wait).await?;
        if !context.take() {
            break;
        }
        while jobs.try_join_next().is_some() {}
        if jobs.len() >= max_in_flight {
            context.record.borrow_mut().not_sent += 1;
            continue;
        }
        context.record.borrow_mut().late.record(start.elapsed().saturating_sub(at));
        let context = context.clone();
        jobs.spawn_local(async move { context.converse(job).await });
    }
    while jobs.join_next().await.is_some() {}
    Ok(())
}

/// Runs the load and reports it. Progress goes to `err`. When `interrupt` is ready, the run ends with a
/// report of what there was. Needs a runtime of one thread.
///
/// # Errors
/// [`BenchError`] if the server cannot be reached or a process to watch is missing.
pub async fn run(
    options: Options,
    interrupt: impl Future<Output = ()>,
    err: &mut dyn Write,
) -> Result<Report, BenchError> {
    let pids = options.pids.iter().copied().chain([std::process::id()]);
    let watched = pids.map(|pid| Watched::start(pid).ok_or(BenchError::NoProcess(pid)));
    let watched = watched.collect::<Result<_, _>>()?;
    let client = Client::reach(&options.addresses).await;
    let client = client.map_err(|failure| options.unreachable(failure.to_string()))?;
    let model = model(&options, &client).await?;
    let context = Rc::new(context(options, client, &model, watched));
    let tasks = LocalSet::new();
    let mut progress = Progress::new(&context.options, err);
    let driven = tasks.run_until(async {
        tokio::select! {
            driven = drive(&context) => driven.map(|()| false),
            () = interrupt => Ok(true),
            () = observe(&context, &mut progress) => Ok(false),
        }
    });
    let interrupted = driven.await?;
    let ran = context.record.borrow().started.elapsed();
    context.watched.borrow_mut().iter_mut().for_each(Watched::look);
    progress.clear();
    let end = End { ran, cut: context.in_flight.get(), interrupted };
    let (record, watched) = (context.record.borrow(), context.watched.borrow());
    Ok(Report::new(&context.options, &model, &record, &watched, end))
}

fn context(options: Options, client: Client, model: &str, watched: Vec<Watched>) -> Context {
    let Options { api, vocab, host, ignore_eos, headers, extra, .. } = &options;
    let template = Template::new(*api, *vocab, host, model, *ignore_eos, headers, extra);
    Context {
        client,
        template,
        reader: Reader::new(options.api),
        record: RefCell::new(Record::new(options.slo, options.seed)),
        budget: Cell::new(Budget { requests: options.warmup, until: None }),
        next_job: Cell::new(WARMUP_JOBS),
        in_flight: Cell::new(0),
        watched: RefCell::new(watched),
        options,
    }
}

/// The warm-up, then the load.
async fn drive(context: &Rc<Context>) -> std::io::Result<()> {
    let Options { load, requests, duration, warmup, .. } = &context.options;
    if *warmup > 0 {
        let concurrency = match *load {
            Load::Closed { concurrency } => concurrency,
            Load::Open { max_in_flight, .. } => max_in_flight.min(16),
        };
        closed(context, concurrency).await;
    }
    let measured = Record::new(context.options.slo, context.options.seed);
    let until = duration.map(|duration| measured.started + duration);
    context.record.replace(measured);
    context.watched.borrow_mut().iter_mut().for_each(Watched::restart);
    context.budget.set(Budget { requests: requests.unwrap_or(u64::MAX), until });
    context.next_job.set(0);
    match *load {
        Load::Closed { concurrency } => {
            closed(context, concurrency).await;
            Ok(())
        }
        Load::Open { arrivals, max_in_flight } => open(context, arrivals, max_in_flight).await,
    }
}

/// Watches processes and shows the progress. Never ends.
async fn observe(context: &Context, progress: &mut Progress<'_>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        context.watched.borrow_mut().iter_mut().for_each(Watched::look);
        progress.show(&context.record.borrow(), context.in_flight.get());
    }
}

/// The model that was named, or the first that the server lists. Either way the server was reached.
async fn model(options: &Options, client: &Client) -> Result<String, BenchError> {
    let unreachable = |why| options.unreachable(why);
    let mut request = format!("GET /v1/models HTTP/1.1\r\nhost: {}\r\n", options.host);
    for (name, value) in &options.headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut body = Vec::new();
    let asked = timeout(MODELS, client.exchange(request.as_bytes(), &mut body)).await;
    let head = asked
        .map_err(|_| unreachable(format!("no list of models within {} s", MODELS.as_secs())))?
        .map_err(|failure| unreachable(failure.to_string()))?;
    if let Some(model) = &options.model {
        return Ok(model.clone());
    }
    let list: Option<Value> = serde_json::from_slice(&body).ok();
    let first = list.as_ref().and_then(|list| list.pointer("/data/0/id")?.as_str());
    first.map(str::to_owned).ok_or_else(|| {
        let status = head.status;
        unreachable(format!("/v1/models gave status {status} and no model; name one with --model"))
    })
}

impl Options {
    fn unreachable(&self, why: String) -> BenchError {
        BenchError::Unreachable { url: self.url.clone(), why }
    }
}

impl Workload {
    /// Requests of a trace; `None` for workloads without an end.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            Self::Trace { entries, .. } => Some(entries.len() as u64),
            _ => None,
        }
    }
}
