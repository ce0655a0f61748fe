//! Every key that is read, and everything that is refused.

mod worker;

use std::path::Path;

use expect_test::{Expect, expect};

use super::built::Built;
use super::keys::{Set, TAKEN};
use super::*;
use crate::config::schema::Kind;

const ENGINE: &str = r#"{"version": "1.2.1",
    "pretrained_config": {"architecture": "LlamaForCausalLM", "dtype": "bfloat16", "vocab_size": 512,
        "mapping": {"world_size": 4, "tp_size": 2, "pp_size": 2, "moe_tp_size": 7}},
    "build_config": {"max_batch_size": 8, "max_num_tokens": 4096, "max_input_len": 1024, "max_seq_len": 2048,
        "max_beam_width": 1, "max_draft_len": 7, "plugin_config": {"tokens_per_block": 32}}}"#;

fn engine() -> Built {
    Built::parse(ENGINE).unwrap()
}

fn accepted(text: &str) -> TrtllmOptions {
    read(text, Path::new("o.yml"), Some(&engine()))
        .unwrap_or_else(|errors| panic!("{text}: {errors}"))
}

fn refused(text: &str) -> String {
    match read(text, Path::new("o.yml"), Some(&engine())) {
        Ok(options) => panic!("{text}: accepted as {options:?}"),
        Err(errors) => errors.to_string(),
    }
}

fn says(text: &str, expected: &Expect) {
    expected.assert_eq(&refused(text));
}

/// A YAML text that says this, in sections.
fn nested(name: &str, value: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let mut text = String::new();
    for (depth, part) in parts.iter().enumerate() {
        text += &format!("\n{}{part}:", "  ".repeat(depth));
    }
    format!("{} {value}", text.trim_start())
}

/// A value of the key's kind.
fn sample(kind: Kind) -> String {
    match kind {
        Kind::Whole { min, max, .. } => (min + 4).min(max).to_string(),
        Kind::Decimal { .. } => "0.25".into(),
        Kind::Switch => "True".into(),
        Kind::Choice(words) => words[0].into(),
        Kind::List(item) if (item.holds)("[[0]]") => "[[0], [0, 1]]".into(),
        Kind::List(_) => "[4096, 512]".into(),
        kind => panic!("{}", kind.rule()),
    }
}

#[test]
fn every_key_that_is_read_sets_something_of_its_own() {
    let mut all: Vec<(&str, TrtllmOptions)> = Vec::new();
    for taken in TAKEN.iter().filter(|taken| !matches!(taken.set, Set::Same(_) | Set::Nothing)) {
        let name = taken.key.name;
        let mut text = nested(name, &sample(taken.key.kind));
        if let Some(only) = taken.only {
            text += &format!("\n  decoding_type: {only}");
        }
        text += match name {
            "speculative_config.posterior_threshold" => "\n  greedy_sampling: false",
            "speculative_config.use_dynamic_tree" => "\n  dynamic_tree_max_topK: 4",
            "speculative_config.dynamic_tree_max_topK" => "\n  use_dynamic_tree: true",
            name if name.starts_with("cache_transceiver_config.")
                && !name.ends_with(".backend") =>
            {
                "\n  backend: UCX"
            }
            _ => "",
        };
        let options = accepted(&text);
        let unset = match taken.only {
            Some(only) => accepted(&format!("speculative_config: {{decoding_type: {only}}}")),
            None => TrtllmOptions::default(),
        };
        // True is what Eagle samples by anyway.
        assert!(options != unset || name.ends_with("greedy_sampling"), "{name} has no effect");
        if let Some((other, _)) = all.iter().find(|(_, known)| *known == options) {
            let pair = [*other, name];
            assert!(pair.iter().all(|name| name.contains("dynamic_tree")), "{pair:?} do the same");
        }
        all.push((name, options));
    }
}

#[test]
fn a_file_like_those_of_trtllm_serve_is_read() {
    let options = accepted(
        "backend: tensorrt\nmax_batch_size: 8\nmax_num_tokens: 4096\nmax_seq_len: 2048\nmax_input_len: 1024\n\
         tensor_parallel_size: 2\npipeline_parallel_size: 2\ncontext_parallel_size: 1\ndtype: auto\n\
         guided_decoding_backend: xgrammar\nenable_chunked_prefill: True\n\
         kv_cache_config:\n  dtype: auto\n  free_gpu_memory_fraction: 0.9\n  enable_block_reuse: False\n  \
         max_tokens: null\n  tokens_per_block: 32\nscheduler_config:\n  capacity_scheduler_policy: MAX_UTILIZATION\n  \
         dynamic_batch_config: {enable_batch_size_tuning: true}\npeft_cache_config:\n",
    );
    let expected = TrtllmOptions {
        max_batch_size: Some(8),
        max_num_tokens: Some(4096),
        enable_chunked_context: Some(true),
        capacity_scheduler_policy: Some("MAX_UTILIZATION".into()),
        dynamic_batch_size: Some(true),
        kv: KvCacheOptions {
            free_gpu_memory_fraction: Some(0.9),
            enable_block_reuse: Some(false),
            ..Default::default()
        },
        guided: GuidedOptions { backend: Some("XGRAMMAR".into()), ..Default::default() },
        ..Default::default()
    };
    assert_eq!(options, expected);
    assert_eq!(accepted("# nothing\n"), TrtllmOptions::default());
}

#[test]
fn options_cross_a_process_border() {
    let options =
        accepted("speculative_config: {decoding_type: Medusa, medusa_choices: [[0], [0, 1]]}");
    let config = bincode::config::standard();
    let bytes = bincode::encode_to_vec(&options, config).unwrap();
    let (back, _): (TrtllmOptions, _) = bincode::decode_from_slice(&bytes, config).unwrap();
    assert_eq!(back, options);
}

#[test]
fn every_refused_key_says_why_with_its_whole_name() {
    for (why, names) in super::refused::KEYS {
        for name in *names {
            assert!(!TAKEN.iter().any(|taken| taken.key.name == *name), "{name} is read as well");
            let mut text = nested(name, "1");
            if name.starts_with("speculative_config.") {
                text += "\n  decoding_type: Lookahead";
            }
            if name.starts_with("cache_transceiver_config.") {
                text += "\n  backend: UCX";
            }
            let errors = refused(&text);
            let line = format!("{name} = 1: {}", why.of_key());
            assert!(errors.contains(&line) && errors.starts_with("o.yml: 1 problem\n"), "{errors}");
        }
    }
}

#[test]
fn every_refused_value_says_why() {
    for (name, _, values) in super::refused::VALUES {
        for value in *values {
            let mut text = nested(name, value);
            if *name == "cache_transceiver_config.transceiver_runtime" {
                text += "\n  backend: UCX";
            }
            let errors = refused(&text);
            assert!(errors.contains(&format!("{name} = {value}: ")), "{errors}");
            assert!(errors.starts_with("o.yml: 1 problem\n"), "{errors}");
        }
    }
}

#[test]
fn keys_of_the_pytorch_backend_are_named() {
    says(
        "enable_attention_dp: true\nmoe_config:\n  load_balancer: x\nspeculative_config:\n  decoding_type: MTP\n  \
         num_nextn_predict_layers: 1\nguided_decoding_backend: llguidance\nmoe_expert_parallel_size: 8\n",
        &expect![[r#"
            o.yml: 6 problems
              line 1: enable_attention_dp = true: exists only in TensorRT-LLM's PyTorch backend; this engine drives the C++ Executor: remove it
              line 2: moe_config: exists only in TensorRT-LLM's PyTorch backend; this engine drives the C++ Executor: remove it
              line 5: speculative_config.decoding_type = MTP: MTP exists only in TensorRT-LLM's PyTorch backend; this engine drives the C++ Executor: choose Lookahead or Medusa or Eagle or draft_tokens_external or explicit_draft_tokens, or remove it
              line 6: speculative_config.num_nextn_predict_layers = 1: exists only in TensorRT-LLM's PyTorch backend; this engine drives the C++ Executor: remove it
              line 7: guided_decoding_backend = llguidance: llguidance exists only in TensorRT-LLM's PyTorch backend; this engine drives the C++ Executor: choose xgrammar, or remove it
              line 8: moe_expert_parallel_size = 8: is decided by trtllm-build; build the engine with it, and remove it here"#]],
    );
}

#[test]
fn typing_errors_get_a_suggestion() {
    says(
        "max_batchsize: 1\nkv_cache_config:\n  free_gpu_mem_fraction: 0.9\n  enable_block_resue: true\n\
         kv_cach_config: {}\nmax_window_size: 3\nwholly_different: 1\nmax_num_tokens: 1\nmax_num_tokens: 2\n",
        &expect![[r#"
            o.yml: 7 problems
              line 1: max_batchsize: unknown key; did you mean max_batch_size?
              line 3: kv_cache_config.free_gpu_mem_fraction: unknown key; did you mean kv_cache_config.free_gpu_memory_fraction?
              line 4: kv_cache_config.enable_block_resue: unknown key; did you mean kv_cache_config.enable_block_reuse?
              line 5: kv_cach_config: unknown key; did you mean kv_cache_config?
              line 6: max_window_size: unknown key; did you mean speculative_config.max_window_size?
              line 7: wholly_different: unknown key; docs/tensorrt-llm.md lists all that are known
              line 9: max_num_tokens: is there twice, first in line 8; keep one"#]],
    );
}

#[test]
fn wrong_values_are_refused_with_the_rule() {
    says(
        "max_batch_size: 9\nmax_num_tokens: many\nmax_beam_width: 4\nkv_cache_config:\n  \
         free_gpu_memory_fraction: 90\n  enable_block_reuse: 1\n  max_attention_window: [4, -1]\n  host_cache_size: -1\n\
         scheduler_config:\n  capacity_scheduler_policy: guaranteed_no_evict\n  context_chunking_policy: FCFS\n\
         cache_transceiver_config:\n  max_tokens_in_buffer: 0\nextended_runtime_perf_knob_config: yes\n\
         peft_cache_config:\n  device_cache_percent: 0\n",
        &expect![[r#"
            o.yml: 13 problems
              line 1: max_batch_size = 9: must be at most 8, which the engine was built for; lower it, or build another engine
              line 2: max_num_tokens = many: must be a whole number from 1 to 2147483647
              line 3: max_beam_width = 4: must be 1
              line 5: kv_cache_config.free_gpu_memory_fraction = 90: must be a number from 0.0001 to 1
              line 6: kv_cache_config.enable_block_reuse = 1: must be true or false
              line 7: kv_cache_config.max_attention_window[1] = -1: must be whole numbers from 1 to 2147483647
              line 8: kv_cache_config.host_cache_size = -1: must be a whole number from 0 to 1125899906842624
              line 10: scheduler_config.capacity_scheduler_policy = guaranteed_no_evict: must be GUARANTEED_NO_EVICT or MAX_UTILIZATION or STATIC_BATCH
              line 11: scheduler_config.context_chunking_policy = FCFS: must be FIRST_COME_FIRST_SERVED or EQUAL_PROGRESS
              line 12: cache_transceiver_config.backend: is not given: without it TensorRT-LLM makes no transceiver; say UCX or NIXL
              line 13: cache_transceiver_config.max_tokens_in_buffer = 0: must be a whole number from 1 to 1125899906842624
              line 14: extended_runtime_perf_knob_config = yes: is a section of keys such as extended_runtime_perf_knob_config.multi_block_mode; give it keys
              line 16: peft_cache_config.device_cache_percent = 0: must be a number from 0.0001 to 1"#]],
    );
}

#[test]
fn what_the_engine_was_built_with_must_agree() {
    let text = "tensor_parallel_size: 4\nmax_seq_len: 4096\ndtype: float16\nkv_cache_config:\n  tokens_per_block: 64\n";
    says(
        text,
        &expect![[r#"
        o.yml: 4 problems
          line 1: tensor_parallel_size = 4: is decided by trtllm-build, and the engine was built with 2; say that, remove it, or build another engine
          line 2: max_seq_len = 4096: is decided by trtllm-build, and the engine was built with 2048; say that, remove it, or build another engine
          line 3: dtype = float16: is decided by trtllm-build, and the engine was built with bfloat16; say that, remove it, or build another engine
          line 5: kv_cache_config.tokens_per_block = 64: is decided by trtllm-build, and the engine was built with 32; say that, remove it, or build another engine"#]],
    );
    let errors = read(text, Path::new("o.yml"), None).unwrap_err().to_string();
    assert_eq!(errors.matches("there is no engine to compare it with").count(), 4, "{errors}");
    let mut built = engine();
    built.max_draft_len = None;
    let text = "speculative_config: {decoding_type: Medusa, max_draft_len: 1}";
    let errors = read(text, Path::new("o.yml"), Some(&built)).unwrap_err().to_string();
    assert!(errors.contains("the engine's config.json does not tell it"), "{errors}");
}

#[test]
fn speculative_decoding_says_what_belongs_together() {
    says(
        "speculative_config:\n  max_window_size: 4\n",
        &expect![[r#"
        o.yml: 1 problem
          line 1: speculative_config.decoding_type: is not given: it says which kind of speculative decoding the others are about; say Lookahead, Medusa, Eagle, draft_tokens_external or explicit_draft_tokens"#]],
    );
    says(
        "speculative_config:\n  decoding_type: Medusa\n  max_window_size: 4\n  medusa_choices: [[0], [1, 0]]\n",
        &expect![[r#"
            o.yml: 2 problems
              line 3: speculative_config.max_window_size = 4: belongs to decoding_type Lookahead, not Medusa; remove it
              line 4: speculative_config.medusa_choices: has the path [1, 0] but not [1], which leads to it; add that"#]],
    );
    says(
        "speculative_config:\n  decoding_type: Eagle\n  eagle_choices: [[0]]\n  use_dynamic_tree: true\n  \
         posterior_threshold: 0.1\n  max_draft_len: 3\n",
        &expect![[r#"
            o.yml: 4 problems
              line 3: speculative_config.eagle_choices: cannot go with speculative_config.use_dynamic_tree; keep one
              line 4: speculative_config.use_dynamic_tree = true: needs speculative_config.dynamic_tree_max_topK; give it
              line 5: speculative_config.posterior_threshold = 0.1: has no effect with greedy_sampling, which is on unless it is set to false; set greedy_sampling: false, or remove it
              line 6: speculative_config.max_draft_len = 3: is decided by trtllm-build, and the engine was built with 7; say that, remove it, or build another engine"#]],
    );
    let lookahead =
        accepted("speculative_config: {decoding_type: Lookahead, max_ngram_size: 5}").speculative;
    let sizes =
        [lookahead.lookahead_window, lookahead.lookahead_ngram, lookahead.lookahead_verification];
    assert_eq!(
        (lookahead.mode.as_deref(), sizes),
        (Some("lookahead"), [Some(4), Some(5), Some(4)])
    );
    let mode = |decoding: &str| {
        accepted(&format!("speculative_config: {{decoding_type: {decoding}}}")).speculative.mode
    };
    assert_eq!(mode("draft_tokens_external").as_deref(), Some("external_draft"));
    assert_eq!(mode("explicit_draft_tokens").as_deref(), Some("explicit_draft"));
    assert_eq!(mode("Eagle").as_deref(), Some("eagle"));
}

#[test]
fn what_is_no_mapping_is_refused() {
    says(
        "- 1\n",
        &expect![[r#"
        o.yml: 1 problem
          line 1: must be TensorRT-LLM's keys, such as max_batch_size: 8"#]],
    );
    assert!(refused("a: [").contains("is not YAML"));
}

#[test]
fn a_prompt_must_fit_into_the_buffer() {
    let with = |tokens| {
        let mut options = TrtllmOptions::default();
        options.transceiver.max_tokens_in_buffer = tokens;
        check_buffer(&options, 2048)
    };
    assert_eq!(with(Some(2048)), Ok(()));
    expect!["cache_transceiver_config.max_tokens_in_buffer = 2047 is too small: prompts have up to 2048 tokens, and a longer one than the buffer may never arrive; set it to 2048 or more, or lower worker.max_context"].assert_eq(&with(Some(2047)).unwrap_err());
    expect!["cache_transceiver_config.max_tokens_in_buffer is not set: prompts have up to 2048 tokens, and a longer one than the buffer may never arrive; set it to 2048 or more, or lower worker.max_context"].assert_eq(&with(None).unwrap_err());
}

#[test]
fn the_limits_of_a_build_are_read() {
    let built = engine();
    assert_eq!((built.vocab, built.max_seq_len, built.max_input_len), (512, 2048, 1024));
    assert_eq!((built.block_tokens, built.tensor_parallel, built.max_batch_size), (32, 2, 8));
    assert_eq!((built.kv_dtype.as_str(), built.logits_dtype.as_str()), ("bfloat16", "float32"));
    let fp8 = r#""quantization": {"kv_cache_quant_algo": "FP8"}, "dtype""#;
    assert_eq!(Built::parse(&ENGINE.replace("\"dtype\"", fp8)).unwrap().kv_dtype, "FP8");
    let other = Built::parse(&ENGINE.replace("\"tp_size\": 2", "\"tp_size\": 1")).unwrap();
    assert_eq!(other.model, built.model, "how it is shared out is not the model");
}

#[test]
fn an_engine_that_is_none_is_named() {
    assert_eq!(engine().world(), 4);
    let why = |text| Built::parse(text).unwrap_err();
    assert!(why("{").starts_with("is no JSON"));
    assert_eq!(why("{}"), "has no build_config.max_seq_len");
    let without = ENGINE.replace("tokens_per_block", "other");
    assert_eq!(why(&without), "has no build_config.plugin_config.tokens_per_block");
    let long = ENGINE.replace("2048", "\"long\"");
    let rule = "has build_config.max_seq_len = \"long\", which is no number above 0";
    assert_eq!(why(&long), rule);
    let error = Built::read(Path::new("/nowhere")).unwrap_err();
    assert!(error.contains("/nowhere/config.json cannot be read"), "{error}");
}

#[test]
fn the_docs_repeat_the_table_of_keys() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tensorrt-llm.md");
    let text = std::fs::read_to_string(docs).unwrap();
    assert!(text.contains(&reference()), "docs/tensorrt-llm.md lacks this table:\n{}", reference());
}
