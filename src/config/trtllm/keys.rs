//! TensorRT-LLM's keys that mean something here, in the order of the reference.

use super::TrtllmOptions as O;
use super::built::Built;
use super::speculative::{EAGLE, EXTERNAL, LOOKAHEAD, MEDUSA};
use crate::config::schema::Preset::Words;
use crate::config::schema::{Item, Key, Kind, whole};

/// A key that is read.
pub(super) struct Taken {
    /// Name, kind and what it is for.
    pub(super) key: Key,
    /// What it does.
    pub(super) set: Set,
    /// If it belongs to a kind of speculative decoding: which one.
    pub(super) only: Option<&'static str>,
}

/// What a value does.
#[derive(Clone, Copy)]
pub(super) enum Set {
    /// Sets a small number.
    Int(fn(&mut O, i32)),
    /// Sets a large number.
    Big(fn(&mut O, u64)),
    /// Turns something on or off.
    Switch(fn(&mut O, bool)),
    /// Sets a number with a fraction.
    Real(fn(&mut O, f32)),
    /// Sets a word.
    Word(fn(&mut O, String)),
    /// Sets a list of numbers.
    Ints(fn(&mut O, Vec<i32>)),
    /// Sets paths in a tree.
    Tree(fn(&mut O, Vec<Vec<i32>>)),
    /// Says what the built engine has: it must.
    Same(fn(&Built) -> Option<String>),
    /// Nothing: the only value that is allowed is what happens anyway.
    Nothing,
}

const INT: u64 = i32::MAX as u64;
const TERA: u64 = 1 << 50;
const OWN: &str = "TensorRT-LLM's own";

const fn taken(name: &'static str, kind: Kind, set: Set, doc: &'static str) -> Taken {
    Taken { key: Key::new(name, kind, Words(OWN), doc), set, only: None }
}

const fn int(name: &'static str, min: u64, set: fn(&mut O, i32), doc: &'static str) -> Taken {
    taken(name, whole(min, INT), Set::Int(set), doc)
}

const fn bytes(name: &'static str, set: fn(&mut O, u64), doc: &'static str) -> Taken {
    taken(name, whole(0, TERA), Set::Big(set), doc)
}

const fn switch(name: &'static str, set: fn(&mut O, bool), doc: &'static str) -> Taken {
    taken(name, Kind::Switch, Set::Switch(set), doc)
}

const fn share(name: &'static str, set: fn(&mut O, f32), doc: &'static str) -> Taken {
    taken(name, Kind::Decimal { min: 0.0001, max: 1.0 }, Set::Real(set), doc)
}

const fn same(name: &'static str, set: fn(&Built) -> Option<String>, doc: &'static str) -> Taken {
    taken(name, whole(0, INT), Set::Same(set), doc)
}

impl Taken {
    const fn of(self, decoding: &'static str) -> Self {
        Self { only: Some(decoding), ..self }
    }
}

const POSITIVE: Item = Item {
    rule: "whole numbers from 1 to 2147483647",
    holds: |text| text.parse::<i32>().is_ok_and(|number| number > 0),
};
pub(super) const PATHS: Item = Item { rule: "paths such as [[0], [0, 0], [1]]", holds: |_| true };

/// All of them.
pub(super) const TAKEN: &[Taken] = &[
    int(
        "max_batch_size",
        1,
        |o, v| o.max_batch_size = Some(v),
        "sequences in one step; at most what the engine was built for",
    ),
    int(
        "max_num_tokens",
        1,
        |o, v| o.max_num_tokens = Some(v),
        "tokens in one step; at most what the engine was built for",
    ),
    taken(
        "max_beam_width",
        Kind::Choice(&["1"]),
        Set::Word(|o, _| o.max_beam_width = Some(1)),
        "beams: there is no beam search here",
    ),
    int(
        "max_queue_size",
        1,
        |o, v| o.max_queue_size = Some(v),
        "requests that wait in the executor; more are refused",
    ),
    switch(
        "enable_chunked_prefill",
        |o, v| o.enable_chunked_context = Some(v),
        "whether prompts are computed in chunks (default here: true)",
    ),
    taken(
        "batching_type",
        Kind::Choice(&["INFLIGHT"]),
        Set::Nothing,
        "how requests share steps; there is one way",
    ),
    taken("backend", Kind::Choice(&["tensorrt"]), Set::Nothing, "who computes; there is one"),
    switch(
        "normalize_log_probs",
        |o, v| o.normalize_log_probs = Some(v),
        "whether log probabilities are divided by the length",
    ),
    switch(
        "gather_generation_logits",
        |o, v| o.gather_generation_logits = Some(v),
        "whether logits of generated tokens are kept",
    ),
    int(
        "iter_stats_max_iterations",
        1,
        |o, v| o.iter_stats_max_iterations = Some(v),
        "statistics of steps that are kept until they are taken, every 20 ms: load and progress are known from them",
    ),
    int(
        "request_stats_max_iterations",
        0,
        |o, v| o.request_stats_max_iterations = Some(v),
        "statistics of requests that are kept; 0 for none",
    ),
    taken(
        "guided_decoding_backend",
        Kind::Choice(&["xgrammar"]),
        Set::Word(|o, v| o.guided.backend = Some(v.to_uppercase())),
        "who guides decoding by a grammar; without it nobody does",
    ),
    share(
        "gpu_weights_percent",
        |o, v| o.gpu_weights_percent = Some(v),
        "share of the weights that is kept on the GPU",
    ),
    switch(
        "use_gpu_direct_storage",
        |o, v| o.use_gpu_direct_storage = Some(v),
        "whether the engine is read by GPUDirect Storage",
    ),
    int(
        "recv_poll_period_ms",
        0,
        |o, v| o.recv_poll_period_ms = Some(v),
        "how often processes of one engine look for messages; 0: all the time",
    ),
    taken(
        "max_seq_idle_microseconds",
        whole(1, TERA),
        Set::Big(|o, v| o.max_seq_idle_microseconds = Some(v)),
        "how long a sequence may stand still",
    ),
    switch(
        "prompt_table_offloading",
        |o, v| o.prompt_table_offloading = Some(v),
        "whether prompt tables are kept on the host",
    ),
    switch(
        "enable_trt_overlap",
        |o, v| o.enable_trt_overlap = Some(v),
        "whether the next step is prepared while one is computed",
    ),
    switch(
        "fail_fast_on_attention_window_too_large",
        |o, v| o.fail_fast_on_attention_window_too_large = Some(v),
        "whether a window that no sequence fits into is an error at start",
    ),
    same(
        "tensor_parallel_size",
        |b| Some(b.tensor_parallel.to_string()),
        "must be what the engine was built for",
    ),
    same("pipeline_parallel_size", |b| Some(b.pipeline_parallel.to_string()), "likewise"),
    same("context_parallel_size", |b| Some(b.context_parallel.to_string()), "likewise"),
    same("max_seq_len", |b| Some(b.max_seq_len.to_string()), "likewise"),
    same("max_input_len", |b| Some(b.max_input_len.to_string()), "likewise"),
    taken("dtype", Kind::Text, Set::Same(|b| Some(b.dtype.clone())), "likewise; or `auto`"),
    switch(
        "kv_cache_config.enable_block_reuse",
        |o, v| o.kv.enable_block_reuse = Some(v),
        "whether KV blocks are found again by the tokens they hold",
    ),
    switch(
        "kv_cache_config.enable_partial_reuse",
        |o, v| o.kv.enable_partial_reuse = Some(v),
        "whether blocks are that agree in part",
    ),
    switch(
        "kv_cache_config.copy_on_partial_reuse",
        |o, v| o.kv.copy_on_partial_reuse = Some(v),
        "whether such blocks are copied if they are in use",
    ),
    int(
        "kv_cache_config.max_tokens",
        1,
        |o, v| o.kv.max_tokens = Some(v),
        "tokens that the KV cache has room for",
    ),
    taken(
        "kv_cache_config.max_attention_window",
        Kind::List(POSITIVE),
        Set::Ints(|o, v| o.kv.max_attention_window = v),
        "tokens that each layer looks back at; repeated for all layers",
    ),
    int(
        "kv_cache_config.sink_token_length",
        0,
        |o, v| o.kv.sink_token_length = Some(v),
        "first tokens that stay in the window",
    ),
    share(
        "kv_cache_config.free_gpu_memory_fraction",
        |o, v| o.kv.free_gpu_memory_fraction = Some(v),
        "share of the memory left by the weights that the KV cache takes",
    ),
    bytes(
        "kv_cache_config.host_cache_size",
        |o, v| o.kv.host_cache_size = Some(v),
        "bytes of a KV cache in host memory",
    ),
    taken(
        "kv_cache_config.secondary_offload_min_priority",
        whole(0, 100),
        Set::Int(|o, v| o.kv.secondary_offload_min_priority = Some(v)),
        "least priority of blocks that go there",
    ),
    taken(
        "kv_cache_config.event_buffer_max_size",
        whole(0, TERA),
        Set::Big(|o, v| o.kv.event_buffer_max_size = Some(v)),
        "KV events that wait to be read; 0 for none",
    ),
    switch(
        "kv_cache_config.use_uvm",
        |o, v| o.kv.use_uvm = Some(v),
        "whether the KV cache is in unified memory",
    ),
    bytes(
        "kv_cache_config.max_gpu_total_bytes",
        |o, v| o.kv.max_gpu_total_bytes = Some(v),
        "bytes that it takes at most; 0 for no such limit",
    ),
    same(
        "kv_cache_config.tokens_per_block",
        |b| Some(b.block_tokens.to_string()),
        "must be what the engine was built for",
    ),
    taken(
        "kv_cache_config.dtype",
        Kind::Choice(&["auto"]),
        Set::Nothing,
        "decided by trtllm-build",
    ),
    taken(
        "scheduler_config.capacity_scheduler_policy",
        Kind::Choice(&["GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"]),
        Set::Word(|o, v| o.capacity_scheduler_policy = Some(v)),
        "whether sequences may be paused for others",
    ),
    taken(
        "scheduler_config.context_chunking_policy",
        Kind::Choice(&["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"]),
        Set::Word(|o, v| o.context_chunking_policy = Some(v)),
        "which prompts' chunks go first",
    ),
    switch(
        "scheduler_config.dynamic_batch_config.enable_batch_size_tuning",
        |o, v| o.dynamic_batch_size = Some(v),
        "whether the batch size follows the load",
    ),
    switch(
        "scheduler_config.dynamic_batch_config.enable_max_num_tokens_tuning",
        |o, v| o.dynamic_num_tokens = Some(v),
        "whether the tokens of a step do",
    ),
    taken(
        "cache_transceiver_config.backend",
        Kind::Choice(&["UCX", "NIXL", "MOONCAKE", "DEFAULT"]),
        Set::Word(|o, v| o.transceiver.backend = Some(v)),
        "what moves KV from prefill to decode",
    ),
    taken(
        "cache_transceiver_config.transceiver_runtime",
        Kind::Choice(&["CPP"]),
        Set::Nothing,
        "in which language; there is one",
    ),
    taken(
        "cache_transceiver_config.max_tokens_in_buffer",
        whole(1, TERA),
        Set::Big(|o, v| o.transceiver.max_tokens_in_buffer = Some(v)),
        "tokens that its buffer has room for; at least the longest prompt",
    ),
    int(
        "cache_transceiver_config.kv_transfer_timeout_ms",
        1,
        |o, v| o.transceiver.transfer_timeout_ms = Some(v),
        "how long a transfer may take",
    ),
    int(
        "cache_transceiver_config.kv_transfer_sender_future_timeout_ms",
        1,
        |o, v| o.transceiver.sender_future_timeout_ms = Some(v),
        "how long an idle sender waits for one",
    ),
    int(
        "cache_transceiver_config.kv_transfer_poll_interval_ms",
        1,
        |o, v| o.transceiver.poll_interval_ms = Some(v),
        "how often transfers are looked at",
    ),
    taken(
        "speculative_config.decoding_type",
        Kind::Choice(&[LOOKAHEAD, MEDUSA, EAGLE, EXTERNAL, "explicit_draft_tokens"]),
        Set::Word(|o, v| o.speculative.mode = super::speculative::mode(&v)),
        "how tokens are guessed; the engine must have been built for it",
    ),
    same(
        "speculative_config.max_draft_len",
        |b| b.max_draft_len.map(|n| n.to_string()),
        "must be what the engine was built for",
    ),
    int(
        "speculative_config.max_window_size",
        1,
        |o, v| o.speculative.lookahead_window = Some(v),
        "N-grams in the lookahead branch (default: 4)",
    )
    .of(LOOKAHEAD),
    int(
        "speculative_config.max_ngram_size",
        1,
        |o, v| o.speculative.lookahead_ngram = Some(v),
        "tokens of an N-gram (default: 3)",
    )
    .of(LOOKAHEAD),
    int(
        "speculative_config.max_verification_set_size",
        1,
        |o, v| o.speculative.lookahead_verification = Some(v),
        "N-grams in the verification branch (default: 4)",
    )
    .of(LOOKAHEAD),
    taken(
        "speculative_config.medusa_choices",
        Kind::List(PATHS),
        Set::Tree(|o, v| o.speculative.medusa_choices = v),
        "the tree of drafts, as paths",
    )
    .of(MEDUSA),
    taken(
        "speculative_config.eagle_choices",
        Kind::List(PATHS),
        Set::Tree(|o, v| o.speculative.eagle_choices = v),
        "the tree of drafts, as paths",
    )
    .of(EAGLE),
    switch(
        "speculative_config.greedy_sampling",
        |o, v| o.speculative.eagle_greedy = Some(v),
        "whether drafts must be the likeliest tokens",
    )
    .of(EAGLE),
    taken(
        "speculative_config.posterior_threshold",
        Kind::Decimal { min: 0.0, max: 0.9999 },
        Set::Real(|o, v| o.speculative.eagle_posterior_threshold = Some(v)),
        "least probability of a draft, with `greedy_sampling: false`",
    )
    .of(EAGLE),
    switch(
        "speculative_config.use_dynamic_tree",
        |o, v| o.speculative.eagle_dynamic_tree = Some(v),
        "whether the tree follows the drafts (Eagle-2)",
    )
    .of(EAGLE),
    int(
        "speculative_config.dynamic_tree_max_topK",
        1,
        |o, v| o.speculative.eagle_dynamic_tree_max_top_k = Some(v),
        "drafts after each, in such a tree",
    )
    .of(EAGLE),
    switch(
        "speculative_config.fast_logits",
        |o, v| o.speculative.draft_fast_logits = Some(v),
        "whether logits of drafts travel between executors by MPI",
    )
    .of(EXTERNAL),
    switch(
        "extended_runtime_perf_knob_config.multi_block_mode",
        |o, v| o.multi_block_mode = Some(v),
        "whether attention is split over blocks",
    ),
    switch(
        "extended_runtime_perf_knob_config.enable_context_fmha_fp32_acc",
        |o, v| o.context_fmha_fp32_acc = Some(v),
        "whether attention to prompts sums in F32",
    ),
    switch(
        "extended_runtime_perf_knob_config.cuda_graph_mode",
        |o, v| o.cuda_graph_mode = Some(v),
        "whether steps are replayed as CUDA graphs",
    ),
    int(
        "extended_runtime_perf_knob_config.cuda_graph_cache_size",
        0,
        |o, v| o.cuda_graph_cache_size = Some(v),
        "graphs that are kept",
    ),
    int(
        "peft_cache_config.optimal_adapter_size",
        1,
        |o, v| o.lora.optimal_adapter_size = Some(v),
        "LoRA rank that pages are made for",
    ),
    int(
        "peft_cache_config.max_adapter_size",
        1,
        |o, v| o.lora.max_adapter_size = Some(v),
        "largest LoRA rank",
    ),
    share(
        "peft_cache_config.device_cache_percent",
        |o, v| o.lora.device_cache_fraction = Some(v),
        "share of the memory left by the weights for LoRA weights",
    ),
    bytes(
        "peft_cache_config.host_cache_size",
        |o, v| o.lora.host_cache_size = Some(v),
        "bytes in host memory for them",
    ),
];
