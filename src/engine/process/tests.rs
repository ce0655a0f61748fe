//! A `Remote` with an engine at the other end of a socket, and with processes that are none.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command as Program;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::frames::{self, Frames};
use super::{Command, Limits, Remote, Report, host};
use crate::engine::blocks::HashKey;
use crate::engine::embedded::Embedded;
use crate::engine::faulty::{Fault, FaultHandle, Faulty};
use crate::engine::schedule;
use crate::engine::sim::{Formula, Law, SimConfig, SimModel, Timing};
use crate::engine::{Engine, EngineError, Leg, Part, Sampling, StepOutput};
use crate::ids::{LegId, RequestId};

const LONG: Duration = Duration::from_secs(60);
const LIMITS: Limits = Limits { silence: LONG, step: LONG, load: LONG, stop: LONG };

fn leg(request: u64, tokens: usize) -> Leg {
    Leg {
        id: LegId { request: RequestId(request), choice: 0, attempt: 0 },
        prompt_len: tokens,
        tokens: (0..tokens as u32).map(|token| 40 + token % 50).collect(),
        max_tokens: 24,
        choice: 0,
        sampling: Arc::new(Sampling { ignore_eos: true, ..Sampling::default() }),
        salt: 0,
        part: Part::Whole,
    }
}

fn sim(step_us: f64) -> Embedded<SimModel> {
    let law = Law::Formula(Formula { step_us, ..Formula::default() });
    let timing = Timing { law, ..Timing::default() };
    let limits = schedule::Limits { max_waiting: 2, max_running: 2, ..schedule::Limits::default() };
    let config = SimConfig { timing, ..SimConfig::default() };
    Embedded::new(SimModel::new(config), limits, &HashKey::default())
}

/// Runs `engine` at the other end, which is gone when this ends.
fn hosted(
    engine: impl Engine + 'static,
    limits: Limits,
) -> (Remote, thread::JoinHandle<Result<(), EngineError>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let other = thread::spawn(move || host(theirs, move |_| Ok(Box::new(engine) as _), || {}));
    (Remote::over(ours, None, Vec::new(), limits).unwrap(), other)
}

/// Steps until `enough`, waiting to be called as a rank does.
fn steps_until(
    engine: &mut dyn Engine,
    mut enough: impl FnMut(&StepOutput) -> bool,
) -> Result<StepOutput, EngineError> {
    let (call, called) = mpsc::channel();
    engine.on_ready(Arc::new(move || {
        let _ = call.send(()); // nobody waits any more
    }));
    let mut out = StepOutput::default();
    while !enough(&out) {
        if !engine.has_work() {
            called.recv_timeout(LONG).expect("it tells that there is something");
        }
        let mut step = StepOutput::default();
        engine.step(&mut step)?;
        out.append(step);
    }
    Ok(out)
}

fn tokens(out: &StepOutput, request: u64) -> Vec<u32> {
    let own = out.tokens.iter().filter(|row| row.leg.request.0 == request);
    own.map(|row| row.token).collect()
}

/// Why it was lost.
fn loss(engine: &mut dyn Engine) -> String {
    steps_until(engine, |_| false).unwrap_err().to_string()
}

fn ends(count: usize) -> impl FnMut(&StepOutput) -> bool {
    move |out| out.tokens.iter().filter(|row| row.finish.is_some()).count() == count
}

#[test]
fn an_engine_elsewhere_says_what_it_says_here() {
    let (mut here, (mut there, other)) = (sim(0.0), hosted(sim(0.0), LIMITS));
    assert_eq!(there.describe(), here.describe());
    let (mut said, mut blocks) = (Vec::new(), Vec::new());
    for engine in [&mut here as &mut dyn Engine, &mut there] {
        engine.admit(leg(1, 100)).unwrap();
        engine.admit(leg(1, 100)).unwrap(); // the same, and one
        engine.admit(leg(2, 7000)).unwrap();
        let out = steps_until(engine, ends(2)).unwrap();
        said.push((tokens(&out, 1), tokens(&out, 2), out.started.len()));
        let mut cached = Vec::new();
        engine.cached_blocks(&mut cached);
        cached.sort();
        blocks.push(cached);
    }
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0].0.len(), 24);
    assert_eq!(blocks[0], blocks[1]);
    assert!(blocks[0].len() > 400, "{}", blocks[0].len());
    drop(there);
    assert_eq!(other.join().unwrap(), Ok(()));
}

#[test]
fn an_aborted_leg_says_no_more_and_others_go_on() {
    let (mut engine, _other) = hosted(sim(1000.0), LIMITS);
    engine.admit(leg(1, 16)).unwrap();
    engine.admit(leg(2, 16)).unwrap();
    steps_until(&mut engine, |out| !tokens(out, 1).is_empty()).unwrap();
    engine.abort(leg(1, 16).id);
    let out = steps_until(&mut engine, ends(1)).unwrap();
    assert!(tokens(&out, 1).is_empty());
    let idle = |engine: &Remote| (engine.load().running, engine.load().blocks_used) == (0, 0);
    let by = Instant::now() + LONG;
    while !idle(&engine) {
        assert!(Instant::now() < by, "{:?}", engine.load());
        engine.step(&mut StepOutput::default()).unwrap();
        thread::yield_now();
    }
}

#[test]
fn legs_that_are_sent_count_as_waiting_and_those_too_many_are_refused() {
    let (mut engine, _other) = hosted(sim(50_000.0), LIMITS);
    for request in 0..9 {
        engine.admit(leg(request, 32)).unwrap();
        let load = engine.load();
        // The first three have room, and none of them has ended yet.
        let known = u64::from(load.running + load.waiting);
        assert!(request > 2 || known == request + 1, "{request}: {load:?}");
    }
    let out = steps_until(&mut engine, |out| !out.failed.is_empty()).unwrap();
    assert!(matches!(out.failed[0].1, EngineError::QueueFull { .. }), "{:?}", out.failed[0]);
    engine.admit(leg(100, 1 << 14)).unwrap();
    let long = |out: &StepOutput| out.failed.iter().any(|(leg, _)| leg.request.0 == 100);
    let out = steps_until(&mut engine, long).unwrap();
    assert!(out.failed.iter().any(|(_, error)| matches!(error, EngineError::PromptTooLong { .. })));
}

#[test]
fn a_failed_step_a_panic_and_a_step_without_end_lose_it_and_its_process_is_told_apart() {
    let short = Limits { step: Duration::from_millis(200), ..LIMITS };
    let cases = [
        (Fault::Fail, LIMITS, "injected fault"),
        (Fault::Panic, LIMITS, "panicked: injected fault: a panic in the engine's step"),
        (Fault::Hang(LONG), short, "no progress for 0."),
    ];
    for (fault, limits, expected) in cases {
        let handle = FaultHandle::default();
        let (mut engine, other) = hosted(Faulty::new(sim(0.0), handle.clone()), limits);
        handle.inject(fault);
        engine.admit(leg(1, 16)).unwrap();
        let why = loss(&mut engine);
        assert!(why.contains("during a step") && why.contains(expected), "{fault:?}: {why}");
        assert!(engine.admit(leg(2, 16)).is_err());
        handle.release();
        drop(engine);
        let _ = other.join().unwrap();
    }
}

#[test]
fn silence_is_noticed_while_loading_and_later() {
    let limits = Limits { silence: Duration::from_millis(200), ..LIMITS };
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = Remote::over(ours, None, Vec::new(), limits).err().unwrap().to_string();
    assert!(error.contains("during loading") && error.contains("said nothing for 0."), "{error}");

    let (ours, mut theirs) = UnixStream::pair().unwrap();
    say(&mut theirs, &Report::Opened(sim(0.0).describe()));
    let mut engine = Remote::over(ours, None, Vec::new(), limits).unwrap();
    let why = loss(&mut engine);
    assert!(why.contains("said nothing for 0."), "{why}");
}

fn say(to: &mut UnixStream, report: &Report) {
    let mut bytes = Vec::new();
    frames::put(&mut bytes, report).unwrap();
    to.write_all(&bytes).unwrap();
}

#[test]
fn garbage_and_the_end_of_the_connection_lose_it() {
    let cases: [(&[u8], &str); 4] = [
        (&[1, 0, 0, 0, 99], "cannot be understood"),
        (&[2, 0, 0, 0, 0, 0], "left over"),
        (&[255; 64], "over the limit"),
        (&[9, 0, 0, 0, 1], "the connection was closed"), // half a frame
    ];
    for (bytes, expected) in cases {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        say(&mut theirs, &Report::Opened(sim(0.0).describe()));
        let mut engine = Remote::over(ours, None, Vec::new(), LIMITS).unwrap();
        theirs.write_all(bytes).unwrap();
        drop(theirs);
        let why = loss(&mut engine);
        assert!(why.contains(expected), "{bytes:?}: {why}");
    }
}

#[test]
fn one_that_takes_no_commands_is_lost_and_holds_nobody_up() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    say(&mut theirs, &Report::Opened(sim(0.0).describe()));
    let mut engine = Remote::over(ours, None, Vec::new(), LIMITS).unwrap();
    let mut refused = None;
    for request in 0..1000 {
        // Large, so that the socket is full soon.
        refused = refused.or(engine.admit(leg(request, 1 << 16)).err());
    }
    let error = refused.expect("a limit").to_string();
    assert!(error.contains("wait to be sent"), "{error}");
}

#[test]
fn frames_of_any_size_arrive_whole() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let sent = [0, 1, 65_530, 65_536, 3_000_000];
    let writer = thread::spawn(move || {
        for size in sent {
            let mut bytes = Vec::new();
            frames::put(&mut bytes, &Command::Admit(leg(size as u64, size))).unwrap();
            (&theirs).write_all(&bytes).unwrap();
        }
    });
    let (mut frames, mut came) = (Frames::default(), Vec::new());
    while frames.read(&mut ours).unwrap() > 0 {
        while let Some(command) = frames.next::<Command>().unwrap() {
            let Command::Admit(leg) = command else { panic!("{command:?}") };
            came.push(leg);
        }
    }
    writer.join().unwrap();
    assert_eq!(came, sent.map(|size| leg(size as u64, size)));
}

/// Why a process with this script makes no engine, and how many of its processes are left after that.
fn script(script: &str, limits: Limits) -> (String, i64) {
    let living = Arc::new(AtomicI64::new(0));
    let count = {
        let living = living.clone();
        Box::new(move |is_start: bool| {
            living.fetch_add(if is_start { 1 } else { -1 }, Ordering::Relaxed);
        })
    };
    let mut program = Program::new("sh");
    program.args(["-c", script]);
    let why = Remote::start(program, Vec::new(), limits, count).err().unwrap().to_string();
    let by = Instant::now() + LONG;
    while living.load(Ordering::Relaxed) > 0 && Instant::now() < by {
        thread::yield_now(); // until it was waited for
    }
    (why, living.load(Ordering::Relaxed))
}

#[test]
fn a_process_that_ends_is_waited_for_and_its_end_is_told() {
    let quick = Limits { silence: Duration::from_millis(300), ..LIMITS };
    let cases = [
        ("exit 3", LIMITS, "exit status: 3"),
        ("kill -9 $$", LIMITS, "signal: 9 (SIGKILL)"),
        ("kill -6 $$", LIMITS, "signal: 6 (SIGABRT)"),
        ("sleep 1000 & wait", quick, "said nothing"),
        ("kill -STOP $$", quick, "said nothing"),
    ];
    for (text, limits, expected) in cases {
        let (why, left) = script(text, limits);
        assert!(why.contains(expected), "{text}: {why}");
        assert_eq!(left, 0, "{text}");
    }
    let told = std::env::temp_dir().join(format!("cuelight-child-{}", std::process::id()));
    let text = format!("sleep 1000 0<&- & echo $! > {}; exit 4", told.display());
    let (why, left) = script(&text, LIMITS);
    assert!(why.contains("exit status: 4") && left == 0, "{why}");
    let child = std::fs::read_to_string(&told).unwrap();
    let stat = format!("/proc/{}/stat", child.trim());
    let lives = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    let by = Instant::now() + LONG;
    while lives() && Instant::now() < by {
        thread::yield_now();
    }
    assert!(!lives(), "its own child has outlived it");
    std::fs::remove_file(told).unwrap();
    let missing = Program::new("/nowhere/cuelight");
    let none = Remote::start(missing, Vec::new(), LIMITS, Box::new(|_| {})).err().unwrap();
    assert!(none.to_string().contains("was not started: No such file"), "{none}");
}
