//! From the configuration's options to those of the bridge.

use super::ffi;
use crate::config::trtllm::{
    GuidedOptions, KvCacheOptions, LoraCacheOptions, ParallelOptions, SpeculativeOptions,
    TransceiverOptions, TrtllmOptions,
};

/// All but the engine's folder, the vocabulary's size, the type of biases and the logits processors.
impl From<&TrtllmOptions> for ffi::EngineOptions {
    fn from(from: &TrtllmOptions) -> Self {
        Self {
            max_beam_width: from.max_beam_width.into(),
            max_batch_size: from.max_batch_size.into(),
            max_num_tokens: from.max_num_tokens.into(),
            max_queue_size: from.max_queue_size.into(),
            enable_chunked_context: from.enable_chunked_context.into(),
            normalize_log_probs: from.normalize_log_probs.into(),
            iter_stats_max_iterations: from.iter_stats_max_iterations.into(),
            request_stats_max_iterations: from.request_stats_max_iterations.into(),
            capacity_scheduler_policy: from.capacity_scheduler_policy.clone().into(),
            context_chunking_policy: from.context_chunking_policy.clone().into(),
            dynamic_batch_size: from.dynamic_batch_size.into(),
            dynamic_num_tokens: from.dynamic_num_tokens.into(),
            multi_block_mode: from.multi_block_mode.into(),
            context_fmha_fp32_acc: from.context_fmha_fp32_acc.into(),
            cuda_graph_mode: from.cuda_graph_mode.into(),
            cuda_graph_cache_size: from.cuda_graph_cache_size.into(),
            gather_generation_logits: from.gather_generation_logits.into(),
            use_gpu_direct_storage: from.use_gpu_direct_storage.into(),
            gpu_weights_percent: from.gpu_weights_percent.into(),
            recv_poll_period_ms: from.recv_poll_period_ms.into(),
            max_seq_idle_microseconds: from.max_seq_idle_microseconds.into(),
            prompt_table_offloading: from.prompt_table_offloading.into(),
            enable_trt_overlap: from.enable_trt_overlap.into(),
            fail_fast_on_attention_window_too_large: from
                .fail_fast_on_attention_window_too_large
                .into(),
            kv: (&from.kv).into(),
            transceiver: (&from.transceiver).into(),
            parallel: (&from.parallel).into(),
            speculative: (&from.speculative).into(),
            guided: (&from.guided).into(),
            lora: (&from.lora).into(),
            ..Self::default()
        }
    }
}

impl From<&KvCacheOptions> for ffi::KvCacheOptions {
    fn from(from: &KvCacheOptions) -> Self {
        Self {
            enable_block_reuse: from.enable_block_reuse.into(),
            enable_partial_reuse: from.enable_partial_reuse.into(),
            copy_on_partial_reuse: from.copy_on_partial_reuse.into(),
            max_tokens: from.max_tokens.into(),
            max_attention_window: from.max_attention_window.clone(),
            sink_token_length: from.sink_token_length.into(),
            free_gpu_memory_fraction: from.free_gpu_memory_fraction.into(),
            host_cache_size: from.host_cache_size.into(),
            secondary_offload_min_priority: from.secondary_offload_min_priority.into(),
            event_buffer_max_size: from.event_buffer_max_size.into(),
            use_uvm: from.use_uvm.into(),
            max_gpu_total_bytes: from.max_gpu_total_bytes.into(),
        }
    }
}

impl From<&TransceiverOptions> for ffi::TransceiverOptions {
    fn from(from: &TransceiverOptions) -> Self {
        Self {
            backend: from.backend.clone().into(),
            max_tokens_in_buffer: from.max_tokens_in_buffer.into(),
            transfer_timeout_ms: from.transfer_timeout_ms.into(),
            sender_future_timeout_ms: from.sender_future_timeout_ms.into(),
            poll_interval_ms: from.poll_interval_ms.into(),
        }
    }
}

impl From<&ParallelOptions> for ffi::ParallelOptions {
    fn from(from: &ParallelOptions) -> Self {
        Self {
            mode: from.mode.clone().into(),
            device_ids: from.device_ids.clone(),
            participant_ids: from.participant_ids.clone(),
            worker_executable: from.worker_executable.clone().into(),
            spawn_processes: from.spawn_processes.into(),
            is_orchestrator: from.is_orchestrator.into(),
            num_nodes: from.num_nodes.into(),
        }
    }
}

impl From<&SpeculativeOptions> for ffi::SpeculativeOptions {
    fn from(from: &SpeculativeOptions) -> Self {
        Self {
            mode: from.mode.clone().into(),
            lookahead_window: from.lookahead_window.into(),
            lookahead_ngram: from.lookahead_ngram.into(),
            lookahead_verification: from.lookahead_verification.into(),
            medusa_choices: from.medusa_choices.iter().collect(),
            eagle_choices: from.eagle_choices.iter().collect(),
            eagle_greedy: from.eagle_greedy.into(),
            eagle_posterior_threshold: from.eagle_posterior_threshold.into(),
            eagle_dynamic_tree: from.eagle_dynamic_tree.into(),
            eagle_dynamic_tree_max_top_k: from.eagle_dynamic_tree_max_top_k.into(),
            draft_fast_logits: from.draft_fast_logits.into(),
        }
    }
}

impl From<&GuidedOptions> for ffi::GuidedOptions {
    fn from(from: &GuidedOptions) -> Self {
        Self {
            backend: from.backend.clone().into(),
            vocabulary: from.vocabulary.clone(),
            tokenizer: from.tokenizer.clone().into(),
            stop_ids: from.stop_ids.clone(),
        }
    }
}

impl From<&LoraCacheOptions> for ffi::LoraCacheOptions {
    fn from(from: &LoraCacheOptions) -> Self {
        Self {
            optimal_adapter_size: from.optimal_adapter_size.into(),
            max_adapter_size: from.max_adapter_size.into(),
            device_cache_fraction: from.device_cache_fraction.into(),
            host_cache_size: from.host_cache_size.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_says_reaches_the_bridge() {
        let text = "max_batch_size: 4\nkv_cache_config: {free_gpu_memory_fraction: 0.5, max_attention_window: [8, 16]}\n\
                    speculative_config: {decoding_type: Medusa, medusa_choices: [[0], [0, 1], [2]]}\n\
                    cache_transceiver_config: {backend: NIXL, kv_transfer_timeout_ms: 7}\n";
        let read = crate::config::trtllm::read(text, "options.yml".as_ref(), None).unwrap();
        let options = ffi::EngineOptions::from(&read);
        assert_eq!(options.max_batch_size, 4.into());
        assert!(!options.max_num_tokens.some, "what is not said is left to TensorRT-LLM");
        assert_eq!(options.kv.free_gpu_memory_fraction, 0.5.into());
        assert_eq!(options.kv.max_attention_window, [8, 16]);
        assert_eq!(options.speculative.mode, "medusa".into());
        assert_eq!(options.speculative.medusa_choices.tokens, [0, 0, 1, 2]);
        assert_eq!(options.speculative.medusa_choices.lengths, [1, 2, 1]);
        assert_eq!(options.transceiver.backend, "NIXL".into());
        assert_eq!(options.transceiver.transfer_timeout_ms, 7.into());
        assert_eq!(options.parallel, ffi::ParallelOptions::default());
    }
}
