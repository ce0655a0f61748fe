//! What the harness must know of a node's configuration: addresses, role, limits. The node itself
//! checks the file; here unknown keys are nobody's business.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser};

use super::super::ChaosError;
use super::super::plan::Work;

/// A node's configuration in outline.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outline {
    pub(crate) file: PathBuf,
    /// The file holds other nodes, too, so that it must be said which one is meant.
    pub(crate) is_one_of_several: bool,
    /// `node.name`, or the file's name.
    pub(crate) name: String,
    /// `frontend.http`, if there is a front end.
    pub(crate) http: Option<SocketAddr>,
    /// `node.admin`.
    pub(crate) admin: Option<SocketAddr>,
    /// `cluster.listen`.
    pub(crate) listen: Option<SocketAddr>,
    /// `cluster.seeds`, as they are written.
    pub(crate) seeds: Vec<String>,
    /// `worker.role`, if there is a worker.
    pub(crate) worker: Option<Work>,
    /// `faults.enabled`.
    pub(crate) injectable: bool,
    /// `worker.process`, or an engine that always has one.
    pub(crate) engine_process: bool,
    /// `cluster.failure_detection_ms`.
    pub(crate) detection_ms: u64,
    /// `worker.step_timeout_s`, in milliseconds.
    pub(crate) step_timeout_ms: u64,
    /// `worker.process_silence_s`, in milliseconds.
    pub(crate) silence_ms: u64,
    /// `node.drain_timeout_s`, in milliseconds.
    pub(crate) drain_timeout_ms: u64,
    /// `frontend.migration_limit`.
    pub(crate) migration_limit: u64,
    /// `worker.kv_memory_mib`; 0 without a worker.
    pub(crate) pool_mib: u64,
    /// `NAME` of `cluster.cookie: env:NAME`.
    pub(crate) cookie_env: Option<String>,
    /// `cluster.etcd.endpoints`.
    pub(crate) etcd: Vec<String>,
}

impl Outline {
    /// Reads the nodes of `FILE`, or the one of `FILE#NAME`, with the keys of `sets` over them.
    ///
    /// # Errors
    /// The file cannot be read, is not YAML, holds no such node, or one has no address to reach it at.
    pub(crate) fn read(given: &Path, sets: &[String]) -> Result<Vec<Self>, ChaosError> {
        let whole = given.to_string_lossy();
        let (file, name) = match whole.rsplit_once('#') {
            Some((file, name)) if !given.is_file() => (Path::new(file), Some(name)),
            _ => (given, None),
        };
        let wrong = |why: String| ChaosError::Node { file: file.to_owned(), why };
        let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
        Self::all(file, name, &text, sets).map_err(wrong)
    }

    fn all(
        file: &Path,
        name: Option<&str>,
        text: &str,
        sets: &[String],
    ) -> Result<Vec<Self>, String> {
        let nodes = documents(text)?;
        let several = nodes.len() > 1;
        let named = |keys: &Scalars| keys.get("node.name").and_then(|name| name.first().cloned());
        let names: Vec<_> = nodes.iter().filter_map(named).collect();
        let meant =
            nodes.into_iter().filter(|keys| name.is_none() || named(keys).as_deref() == name);
        let found: Vec<_> =
            meant.map(|keys| Self::of(file, several, keys, sets)).collect::<Result<_, _>>()?;
        match name {
            Some(name) if found.is_empty() => {
                Err(format!("holds no node {name}, but {}", names.join(", ")))
            }
            _ if several && names.len() < found.len() => {
                Err("holds several nodes: give each a node.name".to_owned())
            }
            _ => Ok(found),
        }
    }

    fn of(file: &Path, several: bool, mut keys: Scalars, sets: &[String]) -> Result<Self, String> {
        for set in sets {
            let (key, value) = set.split_once('=').ok_or("--set needs KEY=VALUE")?;
            keys.retain(|known, _| known != key && !known.starts_with(&format!("{key}.")));
            for (below, values) in documents(value)?.into_iter().flatten() {
                let full = if below.is_empty() { key.to_owned() } else { format!("{key}.{below}") };
                keys.insert(full, values);
            }
        }
        let one = |key: &str| keys.get(key).and_then(|values| values.first());
        let section = |name: &str| {
            let inside = format!("{name}.");
            keys.keys().any(|key| key == name || key.starts_with(&inside))
        };
        let address = |key: &str| match one(key) {
            None => Ok(None),
            Some(text) => match text.parse::<SocketAddr>() {
                Ok(address) if address.port() != 0 => Ok(Some(address)),
                _ => Err(format!("{key} = {text}: the harness needs an address with its port")),
            },
        };
        let number = |key: &str, factor: f64, default: u64| {
            let found = one(key).and_then(|text| text.parse::<f64>().ok());
            found.map_or(default, |found| (found * factor) as u64)
        };
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let default_http = || "127.0.0.1:8000".parse().ok();
        let http = match address("frontend.http")? {
            None if section("frontend") => default_http(),
            address => address,
        };
        let outline = Self {
            file: file.to_owned(),
            is_one_of_several: several,
            name: one("node.name").cloned().or(stem).unwrap_or_default(),
            http,
            admin: address("node.admin")?,
            listen: address("cluster.listen")?,
            seeds: keys.get("cluster.seeds").cloned().unwrap_or_default(),
            worker: section("worker").then(|| {
                let named = one("worker.role").and_then(|name| Work::named(name));
                named.unwrap_or(Work::Aggregated)
            }),
            migration_limit: number("frontend.migration_limit", 1.0, 3),
            pool_mib: if section("worker") { number("worker.kv_memory_mib", 1.0, 1024) } else { 0 },
            injectable: one("faults.enabled").is_some_and(|text| text == "true"),
            engine_process: one("worker.process").is_some_and(|text| text == "true")
                || one("worker.engine").is_some_and(|text| text == "trtllm"),
            detection_ms: number("cluster.failure_detection_ms", 1.0, 2000),
            step_timeout_ms: number("worker.step_timeout_s", 1000.0, 60_000),
            silence_ms: number("worker.process_silence_s", 1000.0, 10_000),
            drain_timeout_ms: number("node.drain_timeout_s", 1000.0, 30_000),
            cookie_env: one("cluster.cookie").and_then(|c| c.strip_prefix("env:")).map(Into::into),
            etcd: keys.get("cluster.etcd.endpoints").cloned().unwrap_or_default(),
        };
        if outline.http.is_none() && outline.admin.is_none() {
            return Err("has neither frontend.http nor node.admin: set node.admin=ADDR:PORT, so \
                        that the node can be asked for its health"
                .to_owned());
        }
        Ok(outline)
    }

    /// Where the node is asked about itself.
    pub(crate) fn control(&self) -> Option<SocketAddr> {
        self.admin.or(self.http)
    }

    /// The `--set` arguments that move the node's listeners to the address `to` and its seeds to
    /// where `moved` says that they are now.
    pub(crate) fn moved(
        &mut self,
        to: std::net::IpAddr,
        moved: &HashMap<SocketAddr, SocketAddr>,
    ) -> Vec<String> {
        let mut sets = Vec::new();
        let mut shift = |key: &str, address: &mut Option<SocketAddr>| {
            if let Some(address) = address {
                address.set_ip(to);
                sets.push(format!("{key}={address}"));
            }
        };
        shift("frontend.http", &mut self.http);
        shift("node.admin", &mut self.admin);
        shift("cluster.listen", &mut self.listen);
        for seed in &mut self.seeds {
            let known = seed.parse().ok().and_then(|address: SocketAddr| moved.get(&address));
            if let Some(known) = known {
                *seed = known.to_string();
            }
        }
        if !self.seeds.is_empty() {
            sets.push(format!("cluster.seeds=[{}]", self.seeds.join(", ")));
        }
        sets
    }
}

/// What a YAML text holds, by dotted path; the scalars of a list are together. Sections are there
/// with no scalar.
type Scalars = HashMap<String, Vec<String>>;

/// A mapping that waits for a key, or for its value; or a list.
enum Open {
    Map(Option<String>),
    List,
}

/// One for each document of the text; an empty text is one that says nothing.
fn documents(text: &str) -> Result<Vec<Scalars>, String> {
    let mut all = Vec::new();
    let mut found = Scalars::new();
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| format!("is not YAML: {error}"))?;
        match event {
            Event::Scalar(text, ..) => {
                if let Some(Open::Map(key @ None)) = open.last_mut() {
                    *key = Some(text.into_owned());
                    continue;
                }
                let values = found.entry(path(&open)).or_default();
                if !text.is_empty() {
                    values.push(text.into_owned());
                }
            }
            Event::MappingStart(..) | Event::SequenceStart(..) => {
                found.entry(path(&open)).or_default();
                let map = matches!(event, Event::MappingStart(..));
                open.push(if map { Open::Map(None) } else { Open::List });
                continue;
            }
            Event::MappingEnd | Event::SequenceEnd => drop(open.pop()),
            Event::DocumentEnd => {
                all.push(std::mem::take(&mut found));
                continue;
            }
            Event::Alias(_) => return Err(format!("line {}: has an alias", span.start.line())),
            _ => continue,
        }
        // The value is complete: its mapping waits for the next key.
        if let Some(Open::Map(key)) = open.last_mut() {
            *key = None;
        }
    }
    if all.is_empty() {
        all.push(found);
    }
    Ok(all)
}

fn path(open: &[Open]) -> String {
    let keys = open.iter().filter_map(|open| match open {
        Open::Map(key) => key.as_deref(),
        Open::List => None,
    });
    keys.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: &str = "
node: { name: w1, admin: 127.0.0.1:9101, drain_timeout_s: 2.5 }
worker:
  step_timeout_s: 3
cluster:
  listen: 127.0.0.1:9001
  cookie: env:COOKIE
  seeds: [127.0.0.1:9000, host:1]
  failure_detection_ms: 700
  etcd:
    endpoints:
      - http://127.0.0.1:2379
faults:
  enabled: true
";

    fn outline(text: &str, sets: &[&str]) -> Result<Outline, String> {
        let sets: Vec<_> = sets.iter().map(ToString::to_string).collect();
        Outline::all(Path::new("dir/n1.yaml"), None, text, &sets).map(|mut all| all.remove(0))
    }

    #[test]
    fn a_file_of_several_nodes_gives_all_of_them_or_the_one_that_is_named() {
        let text = format!("frontend: {{ http: 1.2.3.4:5 }}\nnode: {{ name: f }}\n---{WORKER}");
        let names = |name: Option<&str>, text: &str| {
            let found = Outline::all(Path::new("n.yaml"), name, text, &[])?;
            let shown = found.iter().map(|node| (node.name.clone(), node.is_one_of_several));
            Ok::<_, String>(shown.collect::<Vec<_>>())
        };
        let (front, worker) = (("f".to_owned(), true), ("w1".to_owned(), true));
        assert_eq!(names(None, &text).unwrap(), [front, worker.clone()]);
        assert_eq!(names(Some("w1"), &text).unwrap(), [worker]);
        assert_eq!(names(Some("w2"), &text).unwrap_err(), "holds no node w2, but f, w1");
        assert_eq!(names(Some("w1"), WORKER).unwrap(), [("w1".to_owned(), false)]);
        let nameless = text.replace("name: f", "drain_timeout_s: 1");
        assert!(names(None, &nameless).unwrap_err().contains("give each a node.name"));
    }

    #[test]
    fn a_worker_is_read() {
        let found = outline(WORKER, &[]).unwrap();
        let expected = Outline {
            file: "dir/n1.yaml".into(),
            is_one_of_several: false,
            name: "w1".into(),
            http: None,
            admin: "127.0.0.1:9101".parse().ok(),
            listen: "127.0.0.1:9001".parse().ok(),
            seeds: vec!["127.0.0.1:9000".into(), "host:1".into()],
            worker: Some(Work::Aggregated),
            injectable: true,
            engine_process: false,
            detection_ms: 700,
            step_timeout_ms: 3000,
            silence_ms: 10_000,
            drain_timeout_ms: 2500,
            migration_limit: 3,
            pool_mib: 1024,
            cookie_env: Some("COOKIE".into()),
            etcd: vec!["http://127.0.0.1:2379".into()],
        };
        assert_eq!(found, expected);
        assert_eq!(found.control(), expected.admin);
    }

    #[test]
    fn what_is_set_goes_over_the_file() {
        let sets = ["node.name=x", "faults.enabled=false", "cluster.seeds=[1.2.3.4:5]"];
        let found = outline(WORKER, &sets).unwrap();
        assert_eq!((found.name.as_str(), found.injectable), ("x", false));
        assert_eq!(found.seeds, ["1.2.3.4:5"]);
    }

    #[test]
    fn sections_make_the_role_and_defaults_fill_in() {
        let front = outline("frontend:\nworker:\n", &[]).unwrap();
        assert_eq!(front.http, "127.0.0.1:8000".parse().ok());
        assert_eq!((front.worker, front.injectable), (Some(Work::Aggregated), false));
        let decode = outline(WORKER, &["worker.role=decode"]).unwrap();
        assert_eq!(decode.worker, Some(Work::Decode));
        assert_eq!((front.name.as_str(), front.detection_ms), ("n1", 2000));
        let front = outline("frontend: { http: 127.0.0.1:80 }", &[]).unwrap();
        assert_eq!(front.worker, None);
        assert!(outline("worker:", &[]).unwrap_err().contains("set node.admin"));
        assert!(outline("frontend: { http: nowhere }", &[]).unwrap_err().contains("nowhere"));
        assert!(outline("a: [", &[]).unwrap_err().contains("is not YAML"));
    }

    #[test]
    fn a_moved_node_listens_elsewhere_and_finds_its_moved_seeds() {
        let mut found = outline(WORKER, &[]).unwrap();
        let (from, to) = ("127.0.0.1:9000".parse().unwrap(), "10.0.0.1:9000".parse().unwrap());
        let sets = found.moved("10.0.0.2".parse().unwrap(), &HashMap::from([(from, to)]));
        assert_eq!(
            sets,
            [
                "node.admin=10.0.0.2:9101",
                "cluster.listen=10.0.0.2:9001",
                "cluster.seeds=[10.0.0.1:9000, host:1]"
            ]
        );
        assert_eq!(found.control(), "10.0.0.2:9101".parse().ok());
    }
}
