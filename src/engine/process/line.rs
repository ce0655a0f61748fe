//! What a [`super::Remote`] shares with the threads that talk to the engine's process.

use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashSet;

use super::life::Process;
use super::{Command, Report, Step, frames, lost};
use crate::engine::faulty::ProcessFault;
use crate::engine::{Description, EngineError, Load, Ready, StepOutput};
use crate::ids::LegId;

/// Commands that may wait to be sent while it is not known how many legs the engine takes.
const FEW: usize = 64;
/// How long the end of a process may take after that of its connection.
const LAST_WORD: Duration = Duration::from_secs(1);

/// See the module's description.
pub(super) struct Line {
    state: Mutex<State>,
    /// The engine is open, or lost; something is to be sent, or nothing any more.
    changed: Condvar,
    socket: UnixStream,
    pub(super) process: Option<Arc<Process>>,
}

/// What is known.
#[derive(Default)]
pub(super) struct State {
    /// What came and was not handed out: bounded by what live legs produce.
    pub(super) news: StepOutput,
    /// Whether something came, if only a load.
    pub(super) has_news: bool,
    pub(super) load: Load,
    /// Legs that were admitted and have not ended, as far as was handed out.
    pub(super) live: FxHashSet<LegId>,
    /// Those of them whose work is done, and that only keep what they have computed.
    pub(super) parked: FxHashSet<LegId>,
    /// Admitted legs that no report counts yet, with their tokens; and how many were counted.
    pub(super) unseen: VecDeque<(LegId, u64)>,
    seen: u64,
    opened: Option<Result<Description, EngineError>>,
    pub(super) lost: Option<EngineError>,
    pub(super) ready: Option<Ready>,
    to_send: Vec<Command>,
    most_to_send: usize,
    /// Nothing more is sent.
    is_closed: bool,
}

impl State {
    /// Adds what a step did. Legs that it took on and did not refuse are accepted.
    fn take(&mut self, step: Step) {
        let Step { mut output, load, admits } = step;
        let seen = admits.saturating_sub(std::mem::replace(&mut self.seen, admits));
        let seen = (seen as usize).min(self.unseen.len());
        let taken = self.unseen.drain(..seen).map(|(leg, _)| leg);
        let is_refused = |leg: &LegId| output.failed.iter().any(|(failed, _)| failed == leg);
        output.accepted = taken.filter(|leg| !is_refused(leg)).collect();
        let handed = output.handed.iter().map(|handed| handed.leg);
        self.parked.extend(handed.filter(|leg| self.live.contains(leg)));
        self.news.append(output);
        self.load = load;
    }
}

impl Line {
    pub(super) fn new(socket: UnixStream, process: Option<Arc<Process>>) -> Self {
        let state = State { most_to_send: FEW, ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new(), socket, process }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a command sent. An engine that takes none is lost.
    pub(super) fn send(&self, command: Command) {
        let waiting = {
            let mut state = self.lock();
            if state.is_closed {
                return;
            }
            state.to_send.push(command);
            (state.to_send.len() > state.most_to_send).then_some(state.to_send.len())
        };
        self.changed.notify_all();
        if let Some(waiting) = waiting {
            self.lose(lost("a command", format!("it takes none: {waiting} wait to be sent")));
        }
    }

    /// Sends the last command. What waits before it is sent, too.
    pub(super) fn close(&self) {
        self.send(Command::Stop);
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// The life of the writing thread.
    pub(super) fn write(&self) {
        let (mut to_send, mut bytes) = (Vec::new(), Vec::new());
        loop {
            {
                let idle = |state: &mut State| state.to_send.is_empty() && !state.is_closed;
                let state = self.changed.wait_while(self.lock(), idle);
                let mut state = state.unwrap_or_else(PoisonError::into_inner);
                std::mem::swap(&mut to_send, &mut state.to_send);
            }
            if to_send.is_empty() {
                return;
            }
            for command in to_send.drain(..) {
                if let Err(error) = frames::put(&mut bytes, &command) {
                    return self.lose(lost("a command", error));
                }
            }
            if (&self.socket).write_all(&bytes).is_err() {
                return; // whoever hears is told more
            }
            bytes.clear();
            bytes.shrink_to(1 << 20);
        }
    }

    /// Waits until the engine is open or lost, which whoever hears sees to.
    pub(super) fn opened(&self) -> Result<Description, EngineError> {
        let undecided = |state: &mut State| state.opened.is_none() && state.lost.is_none();
        let state = self.changed.wait_while(self.lock(), undecided);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        match (&state.opened, &state.lost) {
            (Some(Err(error)), _) | (_, Some(error)) => Err(error.clone()),
            (Some(Ok(description)), None) => Ok(description.clone()),
            (None, None) => Err(lost("loading", "it is neither open nor lost")),
        }
    }

    /// Whether legs, or whoever opens the engine (`false`), wait for it; `None`: nobody does.
    pub(super) fn waits(&self) -> Option<bool> {
        let state = self.lock();
        if state.opened.is_none() {
            return Some(false);
        }
        (state.live.len() > state.parked.len()).then_some(true)
    }

    /// Takes in a report; says whether it is one of progress.
    pub(super) fn take(&self, report: Report) -> bool {
        let mut state = self.lock();
        match report {
            Report::Alive => return false,
            Report::Opened(description) => {
                let legs = description.max_running.saturating_add(description.max_waiting);
                // Each leg has at most two unsent commands, and as many may have been aborted.
                state.most_to_send = legs.saturating_mul(4).saturating_add(FEW);
                state.opened = Some(Ok(description));
            }
            Report::OpenFailed(error) => state.opened = Some(Err(error)),
            Report::Lost(error) => {
                drop(state);
                self.lose(error);
                return false;
            }
            Report::Step(step) => {
                let is_progress = !step.output.is_empty();
                state.take(*step);
                let had = std::mem::replace(&mut state.has_news, true);
                let ready = state.ready.clone().filter(|_| !had);
                drop(state);
                ready.inspect(|ready| ready());
                return is_progress;
            }
        }
        drop(state);
        self.changed.notify_all();
        true
    }

    /// Fault injection: what cannot be done to the process from here it does to itself. `false` if it is lost.
    pub(super) fn suffer(&self, fault: ProcessFault) -> bool {
        if self.lock().lost.is_some() {
            return false;
        }
        match (fault, &self.process) {
            (ProcessFault::Kill, Some(process)) => process.kill(),
            (ProcessFault::Stop, Some(process)) => process.freeze(),
            _ => self.send(Command::Suffer(fault)),
        }
        true
    }

    /// Ends everything; what came before is still handed out. Only the first reason counts.
    pub(super) fn lose(&self, why: EngineError) {
        let ready = {
            let mut state = self.lock();
            state.is_closed = true;
            state.to_send = Vec::new();
            state.lost.get_or_insert(why);
            state.ready.clone()
        };
        if let Some(process) = &self.process {
            process.kill();
        }
        let _ = self.socket.shutdown(Shutdown::Both); // closed already
        self.changed.notify_all();
        ready.inspect(|ready| ready());
    }

    /// The connection has ended: says how the process did.
    pub(super) fn ended(&self) -> String {
        let Some(process) = &self.process else { return "the connection was closed".to_owned() };
        let pid = process.pid();
        match process.end(LAST_WORD) {
            Some(how) => format!("its process {pid} ended with {how}"),
            None => format!("its process {pid} closed the connection"),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().opened.is_some()
    }
}
