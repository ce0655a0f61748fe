//! `Remote`: an engine in another process, as a rank sees it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::life::{Count, Process};
use super::line::{Line, State};
use super::meeting::Meeting;
use super::{Command, Limits, hear, lost};
use crate::engine::faulty::BreakProcess;
use crate::engine::{
    Description, Engine, EngineError, KvPool, Leg, Load, PrefixCache, Ready, StepOutput, Tier,
};
use crate::ids::{BlockHash, LegId};

/// See the module's description.
pub struct Remote {
    end: End,
    description: Description,
    /// What can be found in the prefix cache, as far as was handed out.
    cached: FxHashMap<BlockHash, Tier>,
}

/// Ends the other side when it is dropped.
struct End {
    line: Arc<Line>,
    stop: Duration,
}

impl Remote {
    /// Starts `program`, which must serve an engine with [`super::host`] on its standard input, and has it
    /// make one of `spec`. Waits for that as long as [`Limits::load`].
    ///
    /// # Errors
    /// There is no process, it makes no engine, or not in time.
    pub fn start(
        mut program: std::process::Command,
        spec: Vec<u8>,
        limits: Limits,
        count: Count,
    ) -> Result<Self, EngineError> {
        let start = || -> io::Result<_> {
            let (ours, theirs) = UnixStream::pair()?;
            let logs = io::stderr().as_fd().try_clone_to_owned()?;
            program.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(logs));
            let process = Process::start(program, ours.try_clone()?, count)?;
            Ok((ours, process))
        };
        let (socket, process) = start().map_err(|error| {
            lost("loading", format!("the process for the engine was not started: {error}"))
        })?;
        Self::over(socket, Some(process), spec, limits)
    }

    /// The same by a launcher, which starts one process or several: one of them comes to the meeting and speaks for
    /// all. They can be made of the same `spec`, which waits there.
    ///
    /// # Errors
    /// As for [`Remote::start`].
    pub fn start_by(
        mut launcher: std::process::Command,
        meeting: &Meeting,
        spec: Vec<u8>,
        limits: Limits,
        count: Count,
    ) -> Result<Self, EngineError> {
        let start = || -> io::Result<_> {
            let logs = io::stderr().as_fd().try_clone_to_owned()?;
            launcher.stdin(Stdio::null()).stdout(Stdio::from(logs));
            // Its end shows in the connection that comes.
            let (unused, _) = UnixStream::pair()?;
            Process::start(launcher, unused, count)
        };
        let began = Instant::now();
        let process = start().map_err(|error| {
            lost("loading", format!("worker.process_command was not started: {error}"))
        })?;
        let socket = meeting.accept(&process, limits.load)?;
        let limits = Limits { load: limits.load.saturating_sub(began.elapsed()), ..limits };
        Self::over(socket, Some(process), spec, limits)
    }

    /// The same with a process that runs already, or with what else is at the other end.
    ///
    /// # Errors
    /// As for [`Remote::start`].
    pub fn over(
        socket: UnixStream,
        process: Option<Arc<Process>>,
        spec: Vec<u8>,
        limits: Limits,
    ) -> Result<Self, EngineError> {
        let refused = |error: io::Error| lost("loading", error);
        let ears = socket.try_clone().map_err(refused)?;
        let line = Arc::new(Line::new(socket, process));
        let end = End { line: line.clone(), stop: limits.stop };
        line.send(Command::Open { spec, beat: limits.beat() });
        let writing = line.clone();
        let thread = |name: &str| thread::Builder::new().name(name.to_owned());
        thread("engine-write").spawn(move || writing.write()).map_err(refused)?;
        let hearing = line.clone();
        let hear = move || hear::hear(&hearing, ears, limits);
        thread("engine-hear").spawn(hear).map_err(refused)?;
        let description = line.opened()?;
        Ok(Self { end, description, cached: FxHashMap::default() })
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.line.close();
        if let Some(process) = self.line.process.clone() {
            let is_lost = self.line.lock().lost.is_some();
            let within = if is_lost { Duration::ZERO } else { self.stop };
            process.end_or_kill(within);
        }
    }
}

impl Remote {
    /// Breaks its process, from any thread, as long as this engine lives.
    pub fn breaker(&self) -> BreakProcess {
        let line = Arc::downgrade(&self.end.line);
        Arc::new(move |fault| line.upgrade().is_some_and(|line| line.suffer(fault)))
    }

    /// Its process, if it was started here.
    pub fn process(&self) -> Option<Arc<Process>> {
        self.end.line.process.clone()
    }

    fn queue(&mut self, leg: Leg, command: impl FnOnce(Leg) -> Command) -> Result<(), EngineError> {
        let mut state = self.end.line.lock();
        if let Some(lost) = &state.lost {
            return Err(lost.clone());
        }
        if state.live.insert(leg.id) {
            state.unseen.push_back((leg.id, leg.tokens.len() as u64));
            drop(state);
            self.end.line.send(command(leg));
        }
        Ok(())
    }
}

impl Engine for Remote {
    fn describe(&self) -> Description {
        self.description.clone()
    }

    fn admit(&mut self, leg: Leg) -> Result<(), EngineError> {
        self.queue(leg, Command::Admit)
    }

    fn admit_handed(&mut self, leg: Leg, state: Arc<[u8]>) -> Result<(), EngineError> {
        self.queue(leg, |leg| Command::AdmitHanded(leg, state))
    }

    fn not_given(&mut self, leg: LegId) {
        if self.end.line.lock().live.contains(&leg) {
            self.end.line.send(Command::NotGiven(leg));
        }
    }

    fn accepts_later(&self) -> bool {
        true
    }

    fn abort(&mut self, leg: LegId) {
        let was_live = {
            let mut state = self.end.line.lock();
            state.parked.remove(&leg);
            state.live.remove(&leg)
        };
        if was_live {
            self.end.line.send(Command::Abort(leg));
        }
    }

    fn has_work(&self) -> bool {
        let state = self.end.line.lock();
        state.has_news || state.lost.is_some()
    }

    fn on_ready(&mut self, ready: Ready) {
        let mut state = self.end.line.lock();
        let is_late = state.has_news || state.lost.is_some();
        state.ready = Some(ready.clone());
        drop(state);
        if is_late {
            ready();
        }
    }

    fn pulled(&mut self, leg: LegId, have: u32) {
        self.end.line.send(Command::Pulled { leg, have });
    }

    /// Hands out what has come; does not wait for more.
    fn step(&mut self, out: &mut StepOutput) -> Result<(), EngineError> {
        out.clear();
        let mut state = self.end.line.lock();
        if !std::mem::take(&mut state.has_news) {
            return state.lost.clone().map_or(Ok(()), Err);
        }
        let mut news = std::mem::take(&mut state.news);
        // What was under way when its leg was aborted is nobody's.
        let State { live, parked, .. } = &mut *state;
        news.accepted.retain(|leg| live.contains(leg));
        news.started.retain(|row| live.contains(&row.leg));
        news.prefilled.retain(|row| live.contains(&row.leg));
        news.handed.retain(|row| live.contains(&row.leg));
        news.fetched.retain(|(leg, _)| live.contains(leg));
        news.tokens.retain(|row| match row.finish {
            Some(_) => live.remove(&row.leg),
            None => live.contains(&row.leg),
        });
        news.failed.retain(|(leg, _)| {
            parked.remove(leg);
            live.remove(leg)
        });
        drop(state);
        if self.description.prefix_cache == PrefixCache::Told {
            for event in &news.kv_events {
                match event.change() {
                    (hash, Some(tier)) => drop(self.cached.insert(hash, tier)),
                    (hash, None) => drop(self.cached.remove(&hash)),
                }
            }
        }
        out.append(news);
        Ok(())
    }

    fn kv_pool(&self) -> Option<KvPool> {
        None
    }

    /// As last reported, and what was sent since.
    fn load(&self) -> Load {
        let state = self.end.line.lock();
        let mut load = state.load;
        load.waiting += state.unseen.len() as u32;
        load.waiting_tokens += state.unseen.iter().map(|(_, tokens)| tokens).sum::<u64>();
        load
    }

    fn cached_blocks(&self, out: &mut Vec<(BlockHash, Tier)>) {
        out.extend(self.cached.iter().map(|(hash, tier)| (*hash, *tier)));
    }
}
