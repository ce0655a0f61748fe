//! What a node says about itself over HTTP, read with a bound.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::client::{ClientError, Endpoint, get, post};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why a node could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{path} answered {status}: {body}")]
    Status { path: String, status: u16, body: String },
    #[error("{path} answered something unexpected: {why}")]
    Shape { path: String, why: String },
}

/// Asks one node.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) to: Endpoint,
}

/// Ranks that are ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Ranks {
    /// Those that decode.
    pub(crate) decode: u64,
    /// Those that prefill for others.
    pub(crate) prefill: u64,
}

impl fmt::Display for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ranks", self.decode)?;
        match self.prefill {
            0 => Ok(()),
            prefill => write!(f, " and {prefill} that prefill"),
        }
    }
}

/// What `/health` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// Status 200: something can be served.
    pub(crate) ok: bool,
    /// Over all models.
    pub(crate) ranks: Ranks,
    /// The models' names.
    pub(crate) models: Vec<String>,
    /// In words, for people.
    pub(crate) shown: String,
}

/// The actors of a kind on one node: `(kind, name, generation)` of each in the tree.
pub(crate) type Actors = Vec<(String, String, u64)>;

impl Probe {
    async fn text(&self, path: &str) -> Result<(u16, String), ProbeError> {
        let (status, body) = get(&self.to, path, PATIENCE).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn good(&self, path: &str) -> Result<String, ProbeError> {
        match self.text(path).await? {
            (200, body) => Ok(body),
            (status, body) => {
                let body = body.chars().take(300).collect();
                Err(ProbeError::Status { path: path.to_owned(), status, body })
            }
        }
    }

    /// Whether the process answers.
    pub(crate) async fn live(&self) -> bool {
        self.good("/live").await.is_ok()
    }

    /// Whether it can serve.
    pub(crate) async fn health(&self) -> Result<Health, ProbeError> {
        let (status, body) = self.text("/health").await?;
        let value: Value = serde_json::from_str(&body).map_err(|error| shape("/health", &error))?;
        Ok(health(status, &value))
    }

    /// Its metrics.
    pub(crate) async fn metrics(&self) -> Result<Samples, ProbeError> {
        Ok(Samples::parse(&self.good("/metrics").await?))
    }

    /// The actors of its tree.
    pub(crate) async fn actors(&self) -> Result<Actors, ProbeError> {
        let cards = self.cards().await?.into_iter();
        let mut actors: Actors = cards.map(|c| (c.kind, c.name, c.generation)).collect();
        actors.sort();
        Ok(actors)
    }

    /// The cards of its tree.
    pub(crate) async fn cards(&self) -> Result<Vec<Card>, ProbeError> {
        let text = self.good("/cluster/tree").await?;
        let tree: Tree =
            serde_json::from_str(&text).map_err(|error| shape("/cluster/tree", &error))?;
        Ok(tree.cards())
    }

    /// Injects a fault; what the node says to it.
    pub(crate) async fn inject(&self, fault: &Value) -> Result<String, ProbeError> {
        let path = "/debug/faults";
        let (status, body) = post(&self.to, path, &fault.to_string(), PATIENCE).await?;
        let body = String::from_utf8_lossy(&body).into_owned();
        match status {
            200 => Ok(body),
            status => Err(ProbeError::Status { path: path.to_owned(), status, body }),
        }
    }
}

fn shape(path: &str, why: &dyn std::fmt::Display) -> ProbeError {
    ProbeError::Shape { path: path.to_owned(), why: why.to_string() }
}

fn health(status: u16, value: &Value) -> Health {
    let models = value.get("models").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let sum = |key: &str| models.iter().filter_map(|model| model.get(key)?.as_u64()).sum();
    let ranks = Ranks { decode: sum("ranks_ready"), prefill: sum("prefill_ranks_ready") };
    let names = models.iter().filter_map(|model| model.get("id")?.as_str());
    let state = value.get("status").and_then(Value::as_str).unwrap_or("?");
    let reasons = models.iter().filter_map(|model| model.get("reason")?.as_str());
    let mut shown = format!("{status} {state}, {ranks}");
    for reason in reasons {
        shown.push_str(", ");
        shown.push_str(reason);
    }
    Health { ok: status == 200, ranks, models: names.map(Into::into).collect(), shown }
}

/// What an actor shows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Card {
    pub(crate) kind: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) generation: u64,
    #[serde(default)]
    pub(crate) counters: HashMap<String, u64>,
}

/// One actor of `/cluster/tree` and what is below it.
#[derive(Debug, Deserialize)]
struct Tree {
    #[serde(flatten)]
    card: Card,
    #[serde(default)]
    children: Vec<Tree>,
}

impl Tree {
    /// Those of the node that was asked; it is the first one in the tree of a cluster.
    fn cards(self) -> Vec<Card> {
        let is_cluster = self.card.kind == "Nodes";
        let own = if is_cluster { self.children.into_iter().next() } else { Some(self) };
        let (mut cards, mut open) = (Vec::new(), Vec::from_iter(own));
        while let Some(tree) = open.pop() {
            open.extend(tree.children);
            cards.push(tree.card);
        }
        cards
    }
}

/// The numbers of a Prometheus text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Samples(Vec<(String, f64)>);

impl Samples {
    /// Reads what can be read: a line that is no sample says nothing.
    pub(crate) fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// All series of this metric, with their labels.
    pub(crate) fn of<'a>(&'a self, metric: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let is = move |series: &str| {
            let rest = series.strip_prefix(metric);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        };
        self.0.iter().filter(move |(series, _)| is(series)).map(|(s, v)| (s.as_str(), *v))
    }

    /// Their sum; 0 if there are none.
    pub(crate) fn sum(&self, metric: &str) -> f64 {
        self.of(metric).map(|(_, value)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_metric_is_the_sum_of_its_series_and_of_no_other() {
        let text =
            "# HELP x y\nx{a=\"1\"} 2\nx{a=\"b c\"} 3.5\nx_total 9\nx_bucket{le=\"1\"} 1\n# EOF\n";
        let samples = Samples::parse(text);
        assert_eq!((samples.sum("x"), samples.sum("x_total"), samples.sum("y")), (5.5, 9.0, 0.0));
        assert_eq!(samples.of("x").count(), 2);
    }

    #[test]
    fn the_tree_is_a_list_of_the_actors_of_the_node_that_was_asked() {
        let leaf = json!({ "kind": "Rank", "name": "w/0", "state": "serving", "generation": 2,
                           "counters": { "legs": 3 }, "children": [] });
        let tree = json!({ "kind": "Node", "name": "n", "children": [leaf, leaf] });
        let all = json!({ "kind": "Nodes", "name": "cluster", "children": [tree, leaf] });
        let cards = |tree| serde_json::from_value::<Tree>(tree).unwrap().cards();
        assert_eq!(cards(all), cards(tree.clone()));
        let cards = cards(tree);
        let shown = cards.iter().map(|c| (c.kind.as_str(), c.state.as_str(), c.generation));
        let rank = ("Rank", "serving", 2);
        assert_eq!(shown.collect::<Vec<_>>(), [("Node", "", 0), rank, rank]);
        assert_eq!(cards[1].counters["legs"], 3);
    }

    #[test]
    fn ranks_are_counted_over_all_models() {
        let model = |ranks: u64, prefill: u64, reason| {
            json!({ "id": "m", "ranks_ready": ranks, "prefill_ranks_ready": prefill,
                    "reason": reason })
        };
        let models = [model(2, 1, None), model(1, 0, Some("slow"))];
        let found = health(200, &json!({ "status": "ready", "models": models }));
        assert_eq!((found.ok, found.models.len()), (true, 2));
        assert_eq!(found.ranks, Ranks { decode: 3, prefill: 1 });
        assert_eq!(found.shown, "200 ready, 3 ranks and 1 that prefill, slow");
        assert_eq!(health(503, &json!({})).shown, "503 ?, 0 ranks");
    }
}
