//! `host`: the side of an engine's own process. Runs the engine for whoever is at the socket.

use std::any::Any;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::frames::{self, FrameError, Frames};
use super::{Command, Report, Step, lost};
use crate::engine::faulty::ProcessFault;
use crate::engine::{Engine, EngineError, Load, StepOutput};
use crate::ids::LegId;

/// What the engine's thread is told.
enum Word {
    Command(Command),
    /// The engine has something to tell.
    Ready,
    /// Nobody is at the other end any more.
    End,
}

/// Runs an engine until it is told to stop. `open` makes it of what the other side sends. When the other
/// side is gone without a word, `orphaned` is called on another thread: the engine may be in a step that
/// never ends.
///
/// # Errors
/// The engine was not made, or it was lost; the other side knows already.
pub fn host(
    socket: UnixStream,
    open: impl FnOnce(&[u8]) -> Result<Box<dyn Engine>, EngineError>,
    orphaned: impl FnOnce() + Send + 'static,
) -> Result<(), EngineError> {
    let refused = |error: io::Error| lost("loading", error);
    let (tell, inbox) = mpsc::channel(); // as short as the other side keeps it
    let mouth = Mouth(Arc::new(Mutex::new(socket.try_clone().map_err(refused)?)));
    let (told, thread) = (tell.clone(), thread::Builder::new().name("engine-commands".into()));
    thread.spawn(move || hear(socket, &told, orphaned)).map_err(refused)?;
    let Ok(Word::Command(Command::Open { spec, beat })) = inbox.recv() else {
        return Err(lost("loading", "nobody says which engine to make"));
    };
    let (_heart, dead) = mpsc::channel();
    let (beating, thread) = (mouth.clone(), thread::Builder::new().name("engine-beat".into()));
    thread.spawn(move || beating.beat(beat, &dead)).map_err(refused)?;
    let made = catch_unwind(AssertUnwindSafe(|| open(&spec)));
    let mut engine = match made.unwrap_or_else(|panic| Err(panicked("loading", &*panic))) {
        Ok(engine) => engine,
        Err(error) => {
            mouth.say(&Report::OpenFailed(error.clone()));
            return Err(error);
        }
    };
    engine.on_ready(Arc::new(move || drop(tell.send(Word::Ready)))); // its thread has ended
    mouth.say(&Report::Opened(engine.describe()));
    let (out, load) = (StepOutput::default(), Load::default());
    let mut steps = Steps {
        engine,
        inbox,
        mouth: mouth.clone(),
        out,
        refused: Vec::new(),
        load,
        admits: 0,
        said: 0,
        wedged: false,
        fails: false,
        slow: Duration::ZERO,
    };
    let end = catch_unwind(AssertUnwindSafe(|| steps.run()));
    end.unwrap_or_else(|panic| Err(panicked("a step", &*panic)))
        .inspect_err(|error| mouth.say(&Report::Lost(error.clone())))
}

fn panicked(during: &'static str, panic: &(dyn Any + Send)) -> EngineError {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    lost(during, format!("panicked: {}", text.as_deref().unwrap_or("a panic without text")))
}

/// Takes commands until the last one.
fn hear(mut socket: UnixStream, to: &Sender<Word>, orphaned: impl FnOnce()) {
    let mut frames = Frames::default();
    let mut until_stop = || -> Result<bool, FrameError> {
        loop {
            match frames.read(&mut socket) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => return Ok(false),
            }
            while let Some(command) = frames.next()? {
                let is_last = matches!(command, Command::Stop);
                let told = to.send(Word::Command(command));
                if is_last || told.is_err() {
                    return Ok(true);
                }
            }
        }
    };
    let has_stopped = until_stop().unwrap_or(false); // whoever writes garbage is as good as gone
    if !has_stopped {
        let _ = to.send(Word::End); // its thread has ended
        orphaned();
    }
}

/// Where reports go.
#[derive(Clone)]
struct Mouth(Arc<Mutex<UnixStream>>);

impl Mouth {
    /// What cannot be said concerns nobody: the other side is gone, which is heard elsewhere.
    fn say(&self, report: &Report) {
        let _ = self.try_say(report);
    }

    fn try_say(&self, report: &Report) -> Result<(), EngineError> {
        let mut bytes = Vec::new();
        frames::put(&mut bytes, report).map_err(|error| lost("a report", error))?;
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        socket.write_all(&bytes).map_err(|error| lost("a report", error))
    }

    /// Shows that this process lives, whatever its engine does, until `dead` ends.
    fn beat(&self, every: Duration, dead: &Receiver<()>) {
        while let Err(RecvTimeoutError::Timeout) = dead.recv_timeout(every) {
            if self.try_say(&Report::Alive).is_err() {
                return;
            }
        }
    }
}

/// The engine's thread.
struct Steps {
    engine: Box<dyn Engine>,
    inbox: Receiver<Word>,
    mouth: Mouth,
    out: StepOutput,
    /// Legs that the engine did not take: a step would clear them.
    refused: Vec<(LegId, EngineError)>,
    load: Load,
    /// Legs admitted so far, and those that the other side knows of.
    admits: u64,
    said: u64,
    /// Injected: the next step does not return; or fails.
    wedged: bool,
    fails: bool,
    slow: Duration,
}

impl Steps {
    fn run(&mut self) -> Result<(), EngineError> {
        loop {
            if !self.engine.has_work() {
                let Ok(word) = self.inbox.recv() else { return Ok(()) };
                if !self.obey(word) {
                    return Ok(());
                }
            }
            while let Ok(word) = self.inbox.try_recv() {
                if !self.obey(word) {
                    return Ok(());
                }
            }
            if self.engine.has_work() {
                self.step()?;
            }
            self.tell()?;
        }
    }

    /// Whether it goes on.
    fn obey(&mut self, word: Word) -> bool {
        match word {
            Word::Command(Command::Admit(leg)) => {
                let id = leg.id;
                self.admits += 1;
                if let Err(error) = self.engine.admit(leg) {
                    self.refused.push((id, error));
                }
            }
            Word::Command(Command::AdmitHanded(leg, state)) => {
                let id = leg.id;
                self.admits += 1;
                if let Err(error) = self.engine.admit_handed(leg, state) {
                    self.refused.push((id, error));
                }
            }
            Word::Command(Command::Suffer(fault)) => self.suffer(fault),
            Word::Command(Command::Abort(leg)) => self.engine.abort(leg),
            Word::Command(Command::NotGiven(leg)) => self.engine.not_given(leg),
            Word::Command(Command::Pulled { leg, have }) => self.engine.pulled(leg, have),
            Word::Command(Command::Open { .. }) | Word::Ready => {} // it is open; its step follows
            Word::Command(Command::Stop) | Word::End => return false,
        }
        true
    }

    /// Fault injection. What the engine cannot do by itself is done in its place.
    fn suffer(&mut self, fault: ProcessFault) {
        if !self.engine.misbehave(fault) {
            match fault {
                ProcessFault::Kill | ProcessFault::Stop => {} // from outside
                ProcessFault::Abort => std::process::abort(),
                ProcessFault::Wedge => self.wedged = true,
                ProcessFault::ForwardError => self.fails = true,
                ProcessFault::SlowSteps { ms } => self.slow = Duration::from_millis(ms),
            }
        }
    }

    /// A step, or what was injected instead of it.
    fn step(&mut self) -> Result<(), EngineError> {
        if self.wedged {
            loop {
                thread::park();
            }
        }
        if !self.slow.is_zero() {
            thread::sleep(self.slow);
        }
        if self.fails {
            return Err(lost("a step", "injected fault"));
        }
        self.engine.step(&mut self.out)
    }

    /// Says what happened, if anything did.
    fn tell(&mut self) -> Result<(), EngineError> {
        self.out.failed.append(&mut self.refused);
        let load = self.engine.load();
        if self.out.is_empty() && load == self.load && self.admits == self.said {
            return Ok(());
        }
        (self.load, self.said) = (load, self.admits);
        let output = std::mem::take(&mut self.out);
        self.mouth.try_say(&Report::Step(Box::new(Step { output, load, admits: self.admits })))
    }
}
