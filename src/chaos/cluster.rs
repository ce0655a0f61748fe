//! The cluster under test: its nodes, started here or found running, and how well they are.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::client::{Endpoint, get};
use super::plan::{Role, Work};
use super::site::{
    Card, Clock, Ended, Etcd, Health, Launch, Net, Outline, Probe, Process, Ranks, Signal,
};
use super::{ChaosError, Options};

/// How often a condition is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(25);
/// How long the number of ranks must stay the same to be the full one.
const STEADY: Duration = Duration::from_secs(1);
/// A process that ends by itself more often than this is not started again.
const MOST_STARTS: u32 = 10_000;

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) probe: Probe,
    /// Where its clients go.
    pub(super) http: Option<SocketAddr>,
    pub(super) injectable: bool,
    /// Its engines have processes of their own.
    pub(super) engine_process: bool,
    pub(super) step_timeout: Duration,
    pub(super) silence: Duration,
    pub(super) drain_timeout: Duration,
    /// `worker.kv_memory_mib`; 0 without a worker.
    pub(super) pool_mib: u64,
    /// `None` for a node that was found running.
    launch: Option<Launch>,
    pub(super) process: Option<Process>,
    /// Its wall clock, if that is in the harness' hands.
    pub(super) clock: Option<Clock>,
    /// How often its process was started.
    pub(super) starts: u32,
    /// It is down because the harness wants it so.
    pub(super) held_down: bool,
}

/// A process that ended without being told to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fallen {
    pub(super) node: usize,
    pub(super) ended: Ended,
}

/// All nodes. Processes end before the networks that they use: fields drop in this order.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    pub(super) etcd: Option<Etcd>,
    pub(super) net: Option<Net>,
    /// Ranks that each front end sees when all is well.
    pub(super) full: Vec<(usize, Ranks)>,
    /// The longest `cluster.failure_detection_ms`.
    pub(super) detection_ms: u64,
    /// The least `frontend.migration_limit`.
    pub(super) migration_limit: u64,
}

impl Cluster {
    /// Starts the nodes of `--node`.
    ///
    /// # Errors
    /// A file cannot be read, or something cannot be started.
    pub(super) async fn launch(options: &Options, dir: &Path) -> Result<Self, ChaosError> {
        let mut outlines = Vec::new();
        for file in &options.nodes {
            outlines.extend(Outline::read(file, &options.sets)?);
        }
        let net = match options.netns {
            true => Some(Net::up(outlines.len(), options.wires, options.seed)?),
            false => None,
        };
        let etcd_at = outlines.iter().flat_map(|outline| outline.etcd.iter()).next().cloned();
        let mut moved = vec![Vec::new(); outlines.len()];
        if let Some(net) = &net {
            move_all(&mut outlines, &mut moved, net);
        }
        let etcd = match (&options.etcd, etcd_at) {
            (Some(program), Some(url)) => {
                let address = etcd_address(&url, net.as_ref())?;
                if net.is_some() {
                    let set = format!("cluster.etcd.endpoints=[\"http://{address}\"]");
                    moved.iter_mut().for_each(|sets| sets.push(set.clone()));
                }
                Some(Etcd::start(program, address, dir).await?)
            }
            (Some(_), None) => {
                return Err(ChaosError::Etcd("no node has cluster.etcd.endpoints".to_owned()));
            }
            (None, _) => None,
        };
        let detection_ms = outlines.iter().map(|outline| outline.detection_ms).max();
        let fronts = outlines.iter().filter(|outline| outline.http.is_some());
        let migration_limit = fronts.map(|outline| outline.migration_limit).min().unwrap_or(0);
        let mut nodes = Vec::with_capacity(outlines.len());
        for (index, outline) in outlines.into_iter().enumerate() {
            let namespace = net.as_ref().map(|net| net.namespace(index));
            nodes.push(node(options, outline, &moved[index], namespace, dir)?);
        }
        let detection_ms = detection_ms.unwrap_or(0);
        let full = Vec::new();
        let mut cluster = Self { nodes, etcd, net, full, detection_ms, migration_limit };
        for index in 0..cluster.nodes.len() {
            cluster.start(index)?;
        }
        Ok(cluster)
    }

    /// Takes the running nodes of `--attach`.
    ///
    /// # Errors
    /// One does not answer.
    pub(super) async fn attach(options: &Options) -> Result<Self, ChaosError> {
        let mut nodes = Vec::with_capacity(options.attach.len());
        for &address in &options.attach {
            let to = Endpoint { address, key: options.key.clone() };
            let probe = Probe { to: to.clone() };
            let absent = |why: String| ChaosError::NotStarted { node: address.to_string(), why };
            let samples = probe.metrics().await.map_err(|error| absent(error.to_string()))?;
            let models = get(&to, "/v1/models", Duration::from_secs(3)).await;
            let frontend = matches!(models, Ok((200 | 401, _)));
            let cards = probe.cards().await.map_err(|error| absent(error.to_string()))?;
            let worker = samples.of("cuelight_kv_blocks_total").next().map(|_| work(&cards));
            let refused = probe.inject(&serde_json::json!({ "fault": "none" })).await;
            // What does not exist is answered with 404, what is not understood with 400.
            let injectable = !format!("{refused:?}").contains("status: 404");
            nodes.push(Node {
                name: address.to_string(),
                role: Role { frontend, worker },
                probe,
                http: frontend.then_some(address),
                injectable,
                engine_process: samples.sum("cuelight_engine_processes") > 0.0,
                step_timeout: Duration::from_secs(60),
                silence: Duration::from_secs(10),
                drain_timeout: Duration::from_secs(30),
                pool_mib: 0, // its memory is not looked at
                launch: None,
                process: None,
                clock: None,
                starts: 0,
                held_down: false,
            });
        }
        // The defaults: what is configured there is not known here.
        let (detection_ms, migration_limit) = (2000, 3);
        let full = Vec::new();
        Ok(Self { nodes, etcd: None, net: None, full, detection_ms, migration_limit })
    }

    /// Starts a node's process.
    ///
    /// # Errors
    /// The system does not start it.
    pub(super) fn start(&mut self, index: usize) -> Result<(), ChaosError> {
        let node = &mut self.nodes[index];
        let Some(launch) = &node.launch else { return Ok(()) };
        let failed = |why: String| ChaosError::NotStarted { node: node.name.clone(), why };
        if node.starts >= MOST_STARTS {
            return Err(failed(format!("it was started {MOST_STARTS} times")));
        }
        let process = Process::start(launch).map_err(|error| failed(error.to_string()))?;
        node.process = Some(process);
        node.starts += 1;
        node.held_down = false;
        Ok(())
    }

    /// Processes that ended without being told to; they are started again, as an init system would.
    ///
    /// # Errors
    /// One cannot be started.
    pub(super) fn reap(&mut self) -> Result<Vec<Fallen>, ChaosError> {
        let mut fallen = Vec::new();
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            let ended = node.process.as_mut().and_then(Process::ended);
            if let Some(ended) = ended.filter(|_| !node.held_down) {
                fallen.push(Fallen { node: index, ended });
                self.start(index)?;
            }
        }
        Ok(fallen)
    }

    /// Where clients go.
    pub(super) fn frontends(&self, key: Option<&String>) -> Vec<Endpoint> {
        let endpoint = |address| Endpoint { address, key: key.cloned() };
        self.nodes.iter().filter_map(|node| node.http).map(endpoint).collect()
    }

    /// Waits until every front end serves on a steady number of ranks, and notes that number.
    /// Returns the models that are served.
    ///
    /// # Errors
    /// Not within the limit, or a process ended.
    pub(super) async fn ready(&mut self, limit: Duration) -> Result<Vec<String>, ChaosError> {
        let began = Instant::now();
        let count = |is: fn(Role) -> bool| self.nodes.iter().filter(|n| is(n.role)).count() as u64;
        let (all, prefill) = (count(|role| role.worker.is_some()), count(Role::prefills));
        let enough = |ranks: Ranks| ranks.prefill >= prefill && ranks.decode + ranks.prefill >= all;
        let mut steady = (Instant::now(), Vec::new(), Vec::new());
        let mut why = "no front end answers".to_owned();
        while began.elapsed() < limit {
            for node in &mut self.nodes {
                if let Some(ended) = node.process.as_mut().and_then(Process::ended) {
                    let why = format!("it ended with {ended}; see {}", node.log());
                    return Err(ChaosError::NotStarted { node: node.name.clone(), why });
                }
            }
            match self.look(|health| health.ok && enough(health.ranks)).await {
                Ok(seen) => {
                    let models = seen.iter().flat_map(|(_, health)| health.models.clone());
                    let models: Vec<_> = models.collect();
                    let ranks: Vec<_> = seen.iter().map(|(i, h)| (*i, h.ranks)).collect();
                    if steady.1 != ranks {
                        steady = (Instant::now(), ranks, models);
                    } else if steady.0.elapsed() >= STEADY {
                        self.full = steady.1;
                        return Ok(steady.2);
                    }
                }
                Err(reason) => (why, steady.1) = (reason, Vec::new()),
            }
            tokio::time::sleep(LOOK).await;
        }
        let why = format!("not ready within {} s: {why}", limit.as_secs());
        Err(ChaosError::NotStarted { node: "the cluster".to_owned(), why })
    }

    /// Whether every node answers and every front end sees all its ranks; if not, why.
    pub(super) async fn well(&self) -> Result<(), String> {
        for node in self.nodes.iter().filter(|node| !node.role.frontend) {
            if !node.probe.live().await {
                return Err(format!("{} does not answer /live", node.name));
            }
        }
        let full: HashMap<_, _> = self.full.iter().copied().collect();
        let seen = self.look(|health| health.ok).await?;
        for (index, health) in seen {
            let full = full.get(&index).copied().unwrap_or_default();
            if health.ranks != full {
                let name = &self.nodes[index].name;
                return Err(format!("{name}: {} of {full}", health.shown));
            }
        }
        Ok(())
    }

    /// The health of every front end if it is good in all, or the first that is not.
    async fn look(&self, good: impl Fn(&Health) -> bool) -> Result<Vec<(usize, Health)>, String> {
        let mut seen = Vec::new();
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.role.frontend) {
            match node.probe.health().await {
                Ok(health) if good(&health) => seen.push((index, health)),
                Ok(health) => return Err(format!("{}: {}", node.name, health.shown)),
                Err(error) => return Err(format!("{}: {error}", node.name)),
            }
        }
        if seen.is_empty() { Err("there is no front end".to_owned()) } else { Ok(seen) }
    }

    /// Ends all processes: SIGTERM, then SIGKILL for those that take too long.
    pub(super) async fn end(&mut self, limit: Duration) {
        for node in &self.nodes {
            if let Some(process) = &node.process {
                process.signal(Signal::Continue);
                process.signal(Signal::Terminate);
            }
        }
        let last = Instant::now() + limit;
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                let left = last.saturating_duration_since(Instant::now());
                if process.end_within(left).await.is_none() {
                    process.signal(Signal::Kill);
                    process.end_within(Duration::from_secs(5)).await;
                }
            }
        }
    }
}

impl Node {
    /// Where its output goes.
    pub(super) fn log(&self) -> String {
        self.launch.as_ref().map_or("its log".to_owned(), |l| l.log.display().to_string())
    }
}

fn node(
    options: &Options,
    outline: Outline,
    moved: &[String],
    namespace: Option<String>,
    dir: &Path,
) -> Result<Node, ChaosError> {
    let mut args = vec!["node".into(), "--config".into(), outline.file.clone().into()];
    if outline.is_one_of_several {
        args.extend(["--node".into(), outline.name.clone().into()]);
    }
    for set in options.sets.iter().chain(moved) {
        args.extend(["--set".into(), set.into()]);
    }
    // A cluster of our own needs no secret of anybody's: one is made up if none is given.
    let cookie = outline.cookie_env.clone().filter(|name| std::env::var_os(name).is_none());
    let control = outline.control().ok_or_else(|| ChaosError::Node {
        file: outline.file.clone(),
        why: "has no address".to_owned(),
    })?;
    let mut env: Vec<_> = cookie.map(|name| (name, options.cookie.clone())).into_iter().collect();
    let file = |kind: &str| dir.join(format!("{}.{kind}", outline.name.replace('/', "_")));
    let clock = options.faketime.as_ref().map(|library| clock(library, file("clock")));
    let clock = clock.transpose()?;
    if let (Some(clock), Some(library)) = (&clock, &options.faketime) {
        env.extend(clock.environment(library));
    }
    let launch =
        Launch { program: options.program.clone(), args, namespace, env, log: file("log") };
    Ok(Node {
        role: Role { frontend: outline.http.is_some(), worker: outline.worker },
        probe: Probe { to: Endpoint { address: control, key: options.key.clone() } },
        http: outline.http,
        injectable: outline.injectable,
        engine_process: outline.engine_process,
        step_timeout: Duration::from_millis(outline.step_timeout_ms),
        silence: Duration::from_millis(outline.silence_ms),
        drain_timeout: Duration::from_millis(outline.drain_timeout_ms),
        pool_mib: outline.pool_mib,
        name: outline.name,
        launch: Some(launch),
        process: None,
        clock,
        starts: 0,
        held_down: false,
    })
}

/// The role of a node's worker, as its card shows it: `serving: prefill`.
fn work(cards: &[Card]) -> Work {
    let workers = cards.iter().filter(|card| card.kind == "Worker");
    let mut named = workers.filter_map(|card| Work::named(card.state.strip_prefix("serving: ")?));
    named.next().unwrap_or(Work::Aggregated)
}

fn clock(library: &Path, file: PathBuf) -> Result<Clock, ChaosError> {
    let wrong = |why: String| ChaosError::Clock { library: library.to_owned(), why };
    if !library.is_file() {
        return Err(wrong("no such file; it is in Debian's package libfaketime".to_owned()));
    }
    Clock::new(file).map_err(|error| wrong(format!("the clock's file: {error}")))
}

/// Gives every node the address of its namespace, and every seed the address that it has now.
fn move_all(outlines: &mut [Outline], moved: &mut [Vec<String>], net: &Net) {
    let mut seeds = HashMap::new();
    for (index, outline) in outlines.iter().enumerate() {
        if let Some(listen) = outline.listen {
            seeds.insert(listen, SocketAddr::new(net.address(index), listen.port()));
        }
    }
    for (index, outline) in outlines.iter_mut().enumerate() {
        moved[index] = outline.moved(net.address(index), &seeds);
    }
}

/// Where the harness' etcd listens: as configured, or at the host's address of the namespaces.
fn etcd_address(url: &str, net: Option<&Net>) -> Result<SocketAddr, ChaosError> {
    let bare = url.trim_start_matches("http://").trim_end_matches('/');
    let address: SocketAddr = bare.parse().map_err(|_| {
        ChaosError::Etcd(format!("cluster.etcd.endpoints = {url}: must be http://IP:PORT"))
    })?;
    Ok(net.map_or(address, |net| SocketAddr::new(net.host(), address.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_found_running_does_what_its_worker_shows() {
        let card = |kind: &str, state: &str| {
            let (kind, state) = (kind.to_owned(), state.to_owned());
            Card { kind, state, ..Card::default() }
        };
        let shown = |state| work(&[card("Node", "serving"), card("Worker", state)]);
        assert_eq!(shown("serving: prefill"), Work::Prefill);
        assert_eq!(shown("serving: decode"), Work::Decode);
        assert_eq!((shown("serving"), shown("loading")), (Work::Aggregated, Work::Aggregated));
        assert_eq!(work(&[]), Work::Aggregated);
    }
}
