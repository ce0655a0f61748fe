//! From the config to an engine of TensorRT-LLM's.

use crate::config::Worker;
use crate::engine::blocks::HashKey;
use crate::engine::{Engine, EngineError};
use crate::ids::RankIndex;

#[cfg(not(feature = "trtllm-bridge"))]
pub(super) fn open(_: &Worker, _: RankIndex, _: &HashKey) -> Result<Box<dyn Engine>, EngineError> {
    // The check of the configuration says so before.
    Err(super::launch::lost("this program was built without TensorRT-LLM (docs/tensorrt-llm.md)"))
}

#[cfg(not(feature = "trtllm-bridge"))]
pub(super) fn follow(_: &Worker, _: RankIndex) -> Result<(), EngineError> {
    Err(super::launch::lost("this program was built without TensorRT-LLM (docs/tensorrt-llm.md)"))
}

#[cfg(feature = "trtllm-bridge")]
pub(super) use with::{follow, open};

#[cfg(feature = "trtllm-bridge")]
mod with {
    use std::time::Duration;

    use super::*;
    use crate::config::trtllm::{Built, TrtllmMode};
    use crate::engine::native::checkpoint::read_card;
    use crate::engine::trtllm::adapter::{
        Adapter, AdapterConfig, EVENTS_KEPT, HandoverConfig, Lora,
    };
    use crate::engine::trtllm::ffi::{self, Capabilities, EngineOptions};
    use crate::engine::trtllm::handoff::Identity;
    use crate::engine::trtllm::hook::LogitsHook;
    use crate::node::launch::{known_ids, lost, processors};
    use crate::router::Role;
    use crate::text::{TextLimits, TextModel};

    /// Opens the engine of a rank; the process is its own.
    pub(in crate::node) fn open(
        worker: &Worker,
        rank: RankIndex,
        key: &HashKey,
    ) -> Result<Box<dyn Engine>, EngineError> {
        let built = Built::read(&worker.trtllm.engine_dir).map_err(lost)?;
        let vocab = known_ids(worker)?.min(built.vocab);
        #[cfg(trtllm_standin)]
        stand_in(worker, &built, vocab)?;
        let can = ffi::capabilities();
        let engine = options(worker, rank, &built, &can)?;
        let mut config = AdapterConfig::new(engine, &built, key.clone());
        // TensorRT-LLM keeps room for drafts at the end of a sequence.
        let longest = built.max_seq_len.saturating_sub(built.max_draft_len.unwrap_or(0));
        config.context = worker.max_context.unwrap_or(longest).min(longest);
        config.vocab = vocab;
        let batch = config.engine.max_batch_size;
        let batch = if batch.some { batch.value.max(1) as usize } else { built.max_batch_size };
        config.max_running = worker.max_running.min(batch);
        config.max_waiting = worker.max_waiting;
        let kept = config.engine.kv.event_buffer_max_size;
        config.events = worker.kv_events
            && worker.prefix_cache
            && worker.trtllm.mode != TrtllmMode::Orchestrator
            && !(kept.some && kept.value == 0);
        config.step_timeout = worker.step_timeout;
        config.shutdown_timeout = worker.process_stop.mul_f64(0.75); // then the node kills it
        for (name, folder) in &worker.trtllm.loras {
            config.loras.push(Lora::read(name, folder).map_err(lost)?);
        }
        let max_tokens = config.engine.kv.max_tokens;
        if max_tokens.some {
            config.blocks = max_tokens.value.max(0) as u32 / built.block_tokens.max(1) as u32;
        }
        let kept = config.engine.transceiver.transfer_timeout_ms;
        if worker.role != Role::Aggregated {
            config.handover = Some(HandoverConfig {
                identity: identity(&built, &config.engine, &can),
                lease: worker.transfer.lease,
                timeout: worker.transfer.timeout,
                grace: worker.transfer.quiet.max(GRACE),
                kept: kept.some.then(|| Duration::from_millis(kept.value.max(0) as u64)),
            });
        }
        Ok(Box::new(Adapter::open(config, processors(worker)?)?))
    }

    /// The other processes of such an engine, in mode `leader`: the executor computes there until its leader shuts down.
    pub(in crate::node) fn follow(worker: &Worker, rank: RankIndex) -> Result<(), EngineError> {
        let built = Built::read(&worker.trtllm.engine_dir).map_err(lost)?;
        let mut engine = options(worker, rank, &built, &ffi::capabilities())?;
        if !engine.kv.event_buffer_max_size.some && worker.kv_events && worker.prefix_cache {
            engine.kv.event_buffer_max_size = EVENTS_KEPT.into(); // as the leader has it
        }
        let no_hook = Box::new(LogitsHook(None));
        let engine = ffi::open(&engine, no_hook, true).map_err(|error| lost(error.what()))?;
        engine.shutdown().map_err(|error| lost(error.what()))
    }

    fn options(
        worker: &Worker,
        rank: RankIndex,
        built: &Built,
        can: &Capabilities,
    ) -> Result<EngineOptions, EngineError> {
        let mut engine = EngineOptions::from(&worker.trtllm.options_of(rank.0.into()));
        engine.engine_dir = worker.trtllm.engine_dir.display().to_string();
        engine.bias_type.clone_from(&built.logits_dtype);
        engine.vocab_size = u32::try_from(built.vocab).map_err(lost)?;
        fill(&mut engine, worker, built, can);
        if engine.guided.backend.some {
            guide(&mut engine, worker)?;
        }
        // Each request has its own processor: where layers are shared, only the first process is to call it.
        if built.tensor_parallel > 1 && worker.trtllm.mode == TrtllmMode::Leader {
            engine.processor_replicate = false.into();
        }
        Ok(engine)
    }

    /// Shortest time that an executor gets to notice that KV was pulled: it looks once a step.
    const GRACE: Duration = Duration::from_secs(2);

    /// What follows from the worker's keys where TensorRT-LLM's own do not say.
    fn fill(engine: &mut EngineOptions, worker: &Worker, built: &Built, can: &Capabilities) {
        let batch = &mut engine.max_batch_size;
        let most = if batch.some { batch.value.max(1) as usize } else { built.max_batch_size };
        if worker.max_running < most {
            *batch = (worker.max_running as i32).into();
        }
        if !worker.prefix_cache && !engine.kv.enable_block_reuse.some {
            engine.kv.enable_block_reuse = false.into();
        }
        // A prompt that nobody pulls would stay pinned for ever.
        let timeout = &mut engine.transceiver.transfer_timeout_ms;
        if engine.transceiver.backend.some && can.transfer_timeout && !timeout.some {
            let ms = worker.transfer.lease.as_millis().min(i32::MAX as u128);
            *timeout = (ms as i32).into();
        }
    }

    /// What whoever guides decoding has to know of the tokenizer.
    fn guide(engine: &mut EngineOptions, worker: &Worker) -> Result<(), EngineError> {
        let text = TextModel::load(&worker.model, TextLimits::default()).map_err(lost)?;
        let name = |id| text.token_name(id).unwrap_or_default();
        engine.guided.vocabulary = (0..text.vocab_len() as u32).map(name).collect();
        let path = worker.model.join("tokenizer.json");
        let json = std::fs::read_to_string(&path);
        let json = json.map_err(|error| lost(format!("{}: {error}", path.display())))?;
        engine.guided.tokenizer = json.into();
        let ends = read_card(&worker.model).map_err(lost)?.eos_ids;
        engine.guided.stop_ids = ends.iter().map(|&id| id as i32).collect();
        Ok(())
    }

    fn identity(built: &Built, engine: &EngineOptions, can: &Capabilities) -> Identity {
        Identity {
            version: can.library.clone(),
            model: built.model,
            kv_dtype: built.kv_dtype.clone(),
            tokens_per_block: built.block_tokens as u32,
            tp: built.tensor_parallel as u32,
            pp: built.pipeline_parallel as u32,
            backend: engine.transceiver.backend.value.clone(),
        }
    }

    /// The stand-in plays the worker's model; with `CUELIGHT_STANDIN_TOKENS=rule` it invents tokens.
    #[cfg(trtllm_standin)]
    fn stand_in(worker: &Worker, built: &Built, vocab: usize) -> Result<(), EngineError> {
        use crate::engine::trtllm::standin::{self, ServeOptions};
        if std::env::var("CUELIGHT_STANDIN_TOKENS").is_ok_and(|tokens| tokens == "rule") {
            standin::tokens_by_rule();
            return Ok(());
        }
        let options = ServeOptions {
            threads: (worker.threads / usize::from(worker.dp_size)).max(1),
            known_ids: Some(vocab),
            max_context: Some(built.max_seq_len),
            ..ServeOptions::default()
        };
        standin::serve_model(&worker.model, options)
    }
}
