//! From the config to what the tree needs: the served model and the way to make its engine.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use ractor::concurrency::JoinHandle;
use ractor::{Actor, ActorRef};
use sha2::{Digest, Sha256};

use super::{StartError, meeting};
use crate::actors::context::NodeContext;
use crate::actors::handle::Shared;
use crate::actors::models::ServedModel;
use crate::actors::rank::Launch;
use crate::actors::root::{self, NodeRoot, WorkerSpec};
use crate::actors::router::ModelRouter;
use crate::config::{self, Config, EngineKind, Frontend, OfferedModel, Worker};
use crate::engine::blocks::HashKey;
use crate::engine::embedded::Embedded;
use crate::engine::faulty::Faulty;
use crate::engine::model::{Model, Shape};
use crate::engine::native::checkpoint::{ModelCard, read_card};
use crate::engine::native::{KvSize, NativeModel, Options, Precision};
use crate::engine::processors::Processors;
use crate::engine::schedule::Limits;
use crate::engine::sim::{SimConfig, SimModel};
use crate::engine::{Engine, EngineError, Sampling};
use crate::ids::RankIndex;
use crate::metrics::{Metrics, Pool};
use crate::text::{TextLimits, TextModel};

/// The running supervision tree of one node.
pub struct Tree {
    /// What its actors share.
    pub node: Arc<NodeContext>,
    /// The front end, if this node has one.
    pub frontend: Option<Arc<Shared>>,
    /// The root.
    pub root: ActorRef<root::Msg>,
    /// Resolves when the tree has ended.
    pub ended: JoinHandle<()>,
}

impl Tree {
    /// Starts what the config asks for. The engine is loaded in the background.
    ///
    /// # Errors
    /// What is wrong with the model, or the tree did not start.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::new());
        let served = served_models(&config, &metrics)?;
        let tokenizer = config.worker.as_ref().map(|worker| fingerprint(&worker.model));
        let tokenizer = tokenizer.transpose()?.unwrap_or_default();
        metrics.set_limits(config.limits());
        let node = Arc::new(NodeContext::new(config, metrics));
        let limits = node.config.frontend.clone();
        let frontend = limits.map(|limits| Arc::new(Shared::new(node.clone(), limits, served)));
        let worker = node.config.worker.as_ref().map(|worker| WorkerSpec {
            name: worker.served_name.clone(),
            launch: engine(&node, worker),
            step_timeout: worker.step_timeout,
            load_timeout: worker.load_timeout,
            tokenizer,
            role: worker.role,
        });
        let cluster = meeting::prepare(&node)?;
        let args = root::Args { node: node.clone(), cluster, frontend: frontend.clone(), worker };
        let spawned = Actor::spawn(None, NodeRoot, args).await;
        let (root, ended) = spawned.map_err(|error| StartError::Tree(error.to_string()))?;
        Ok(Self { node, frontend, root, ended })
    }
}

/// Reads all that the front end has to know about the models it offers. No weights are read.
fn served_models(config: &Config, metrics: &Metrics) -> Result<Vec<Arc<ServedModel>>, StartError> {
    let Some(frontend) = &config.frontend else { return Ok(Vec::new()) };
    let router = |name: &str, pool: Pool| {
        let seed = RandomState::new().hash_one(name);
        let metrics = metrics.router(name, pool);
        Arc::new(ModelRouter::new(name, &frontend.router, hash_key(config), seed, metrics))
    };
    let mut served = Vec::new();
    for OfferedModel { name, dir } in &frontend.models {
        served.push(served_model(frontend, name, dir, frontend.max_context, router)?);
    }
    if let Some(worker) = &config.worker
        && !served.iter().any(|model| model.name == worker.served_name)
    {
        let cap = frontend.max_context.or(worker.max_context);
        let name = &worker.served_name;
        served.push(served_model(frontend, name, &worker.model, cap, router)?);
    }
    served.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(served)
}

fn served_model(
    frontend: &Frontend,
    name: &str,
    dir: &Path,
    cap: Option<usize>,
    router: impl Fn(&str, Pool) -> Arc<ModelRouter>,
) -> Result<Arc<ServedModel>, StartError> {
    let card = read_card(dir)
        .map_err(|error| StartError::Model { dir: dir.to_owned(), source: Box::new(error) })?;
    let limits = TextLimits {
        template_fuel: frontend.template_fuel,
        cached_words: frontend.tokenizer_cached_words,
        cached_bytes: frontend.tokenizer_cached_bytes,
        ..TextLimits::default()
    };
    let text = TextModel::load(dir, limits);
    let text =
        text.map_err(|error| StartError::Text { dir: dir.to_owned(), source: Box::new(error) })?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(Arc::new(ServedModel {
        name: name.to_owned(),
        created,
        dir: dir.to_owned(),
        context: context(cap, &card),
        tokenizer: fingerprint(dir)?,
        router: router(name, Pool::Decode),
        prefill: router(name, Pool::Prefill),
        sampling: suggested(&card),
        text: Arc::new(text),
    }))
}

/// What names of KV blocks are keyed with: the same on all nodes of a cluster, known to none of its
/// clients.
fn hash_key(config: &Config) -> HashKey {
    let Some(cluster) = &config.cluster else { return HashKey::default() };
    let digest = Sha256::new().chain_update(b"KV blocks").chain_update(&cluster.cookie).finalize();
    HashKey(digest.into())
}

/// Hash of what turns text into token ids: two nodes with the same one mean the same by an id.
fn fingerprint(dir: &Path) -> Result<u64, StartError> {
    let path = dir.join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(|error| {
        StartError::System(std::io::Error::other(format!("{}: {error}", path.display())))
    })?;
    Ok(xxhash_rust::xxh3::xxh3_64(&bytes))
}

fn context(cap: Option<usize>, card: &ModelCard) -> usize {
    cap.unwrap_or(card.context).min(card.context)
}

/// The model's own defaults; temperature 1 where it has none and does not ask for greedy decoding.
fn suggested(card: &ModelCard) -> Sampling {
    let own = &card.sampling;
    let temperature = match own.do_sample {
        Some(false) => 0.0,
        Some(true) | None => own.temperature.unwrap_or(1.0),
    };
    Sampling {
        temperature,
        top_p: own.top_p.unwrap_or(1.0),
        top_k: own.top_k.unwrap_or(0),
        min_p: own.min_p.unwrap_or(0.0),
        repetition_penalty: own.repetition_penalty.unwrap_or(1.0),
        eos_ids: card.eos_ids.clone(),
        ..Sampling::default()
    }
}

/// The way to make a rank's engine, as often as it is lost.
fn engine(node: &Arc<NodeContext>, worker: &Worker) -> Launch {
    let (node, worker, last) = (node.clone(), worker.clone(), super::engine::Last::default());
    Arc::new(move |rank| {
        let key = hash_key(&node.config);
        let name = format!("{}/{}", worker.served_name, rank.0);
        let faults = node.config.faults.enabled.then(|| node.fault_switch(&name));
        let engine: Box<dyn Engine> = match worker.process {
            true => {
                let remote = super::engine::start(&node, &worker, rank, &key, &last)?;
                faults.iter().for_each(|faults| faults.has_process(remote.breaker()));
                Box::new(remote)
            }
            false => make(&worker, rank, &key)?,
        };
        Ok(match faults {
            Some(faults) => Box::new(Faulty::new(engine, faults)),
            None => engine,
        })
    })
}

/// Makes a rank's engine in this process.
pub(super) fn make(
    worker: &Worker,
    rank: RankIndex,
    key: &HashKey,
) -> Result<Box<dyn Engine>, EngineError> {
    match worker.engine {
        EngineKind::Trtllm => super::trtllm::open(worker, rank, key),
        EngineKind::Native => finish(worker, key, native(worker)?),
        EngineKind::Sim => finish(worker, key, sim(worker)?),
    }
}

fn finish<M: Model + 'static>(
    worker: &Worker,
    key: &HashKey,
    model: M,
) -> Result<Box<dyn Engine>, EngineError> {
    let limits = Limits {
        max_running: worker.max_running,
        max_waiting: worker.max_waiting,
        max_batch_tokens: worker.max_batch_tokens,
        prefix_cache: worker.prefix_cache,
    };
    Ok(Box::new(Embedded::new(model, limits, key).with_processors(processors(worker)?)))
}

pub(super) fn lost(error: impl ToString) -> EngineError {
    EngineError::Lost { during: "loading".into(), detail: error.to_string() }
}

/// The logits processors that its ranks know.
pub(super) fn processors(worker: &Worker) -> Result<Processors, EngineError> {
    if worker.engine == EngineKind::Sim {
        return Ok(Processors::default()); // it computes no logits
    }
    // Most ranks never need it.
    let (model, text) = (worker.model.clone(), OnceLock::new());
    let encode = move |piece: &str| {
        let load = || TextModel::load(&model, TextLimits::default()).map_err(|e| e.to_string());
        let text: &Result<TextModel, String> = text.get_or_init(load);
        text.as_ref()?.encode(piece, false).map_err(|error| error.to_string())
    };
    Processors::new(encode).always(&worker.processors)
}

/// Ids that the tokenizer knows: the checkpoint's padding rows above them are never sampled.
pub(super) fn known_ids(worker: &Worker) -> Result<usize, EngineError> {
    TextModel::load(&worker.model, TextLimits::default()).map(|text| text.vocab_len()).map_err(lost)
}

fn native(worker: &Worker) -> Result<NativeModel, EngineError> {
    let options = Options {
        // The ranks of a worker compute side by side.
        threads: (worker.threads / usize::from(worker.dp_size)).max(1),
        precision: match worker.precision {
            config::Precision::Weights => Precision::Weights,
            config::Precision::F32 => Precision::F32,
        },
        kv: worker.kv_blocks.map_or(KvSize::Bytes(worker.kv_memory_bytes), KvSize::Blocks),
        block_tokens: worker.block_tokens,
        vocab_limit: Some(known_ids(worker)?),
        max_context: worker.max_context,
        ..Options::default()
    };
    NativeModel::load(&worker.model, options).map_err(lost)
}

fn sim(worker: &Worker) -> Result<SimModel, EngineError> {
    let card = read_card(&worker.model).map_err(lost)?;
    let block_bytes = card.block_bytes(worker.block_tokens);
    let by_memory = worker.kv_memory_bytes / block_bytes.max(1) as u64;
    let vocab = known_ids(worker)?.min(card.vocab);
    let shape = Shape {
        context: context(worker.max_context, &card),
        vocab,
        block_tokens: worker.block_tokens,
        blocks: worker.kv_blocks.unwrap_or(u32::try_from(by_memory).unwrap_or(u32::MAX)),
        block_bytes,
        host_blocks: worker.sim.host_blocks,
    };
    let answers = sim_answers(vocab);
    SimModel::load(SimConfig {
        shape,
        seed: worker.sim.seed,
        answers,
        attend: worker.sim.attend,
        timing: worker.sim.timing.clone(),
        ..SimConfig::default()
    })
}

/// Ids in the middle half of the vocabulary: ordinary words in every tokenizer met so far, since
/// special tokens stand at its ends.
fn sim_answers(vocab: usize) -> std::ops::Range<u32> {
    let quarter = (vocab / 4) as u32;
    quarter..(vocab as u32 - quarter).max(quarter + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Profile;
    use crate::engine::{Leg, Part, StepOutput};
    use crate::ids::{BlockId, LegId, RequestId};

    /// What a leg with this prompt says.
    fn answer(engine: &mut dyn Engine, request: u64, tokens: &[u32]) -> Vec<u32> {
        let leg = Leg {
            id: LegId { request: RequestId(request), choice: 0, attempt: 0 },
            prompt_len: tokens.len(),
            tokens: tokens.to_vec(),
            max_tokens: 4,
            choice: 0,
            sampling: Arc::new(Sampling { ignore_eos: true, ..Sampling::default() }),
            salt: 0,
            part: Part::Whole,
        };
        engine.admit(leg).unwrap();
        let (mut step, mut said) = (StepOutput::default(), Vec::new());
        while engine.has_work() {
            step.clear();
            engine.step(&mut step).unwrap();
            said.extend(step.tokens.iter().map(|row| row.token));
        }
        said
    }

    /// Of a pool's blocks, how many change what is said to a prompt of five cached ones when they are
    /// overwritten.
    fn blocks_that_matter(attend: bool) -> usize {
        let model = concat!("worker.model=", env!("CARGO_MANIFEST_DIR"), "/models/cuelight-tiny");
        let attend = format!("worker.sim.attend={attend}");
        let sets = [model, "worker.engine=sim", "worker.kv_blocks=12", &attend];
        let config = config::load(None, &sets.map(str::to_owned), Profile::Serve).unwrap();
        let worker = config.worker.unwrap();
        let tokens: Vec<u32> = (0..5 * worker.block_tokens as u32 + 1).collect();
        let matters = |block: &u32| {
            let model = sim(&worker).unwrap();
            let mut engine = Embedded::new(model, Limits::default(), &HashKey::default());
            let said = answer(&mut engine, 1, &tokens);
            let pool = engine.kv_pool().unwrap();
            for part in pool.layout.ranges(&[BlockId(*block)]).unwrap() {
                pool.memory.write(part.start, &vec![7; (part.end - part.start) as usize]);
            }
            said != answer(&mut engine, 2, &tokens)
        };
        (0..12).filter(matters).count()
    }

    #[test]
    fn every_cached_block_shows_in_the_tokens_where_the_config_says_so() {
        assert_eq!(blocks_that_matter(true), 5);
        assert_eq!(blocks_that_matter(false), 1, "only the one that the leg goes on from");
    }
}
