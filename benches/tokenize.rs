//! What encoding a prompt costs for each of its tokens, next to crate `tokenizers`:
//! `cargo bench --bench tokenize [-- --quick]`.
//!
//! *Cold* is the first text after loading; *warm* another one of the same words: the same text, without
//! the cache of whole parts; *again* one that begins alike: the same text with it. The text is the English of
//! this repository's own documents.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use cuelight::text::{TextLimits, TextModel};
use tokenizers::Tokenizer;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn seconds(call: impl FnOnce()) -> f64 {
    let start = Instant::now();
    call();
    start.elapsed().as_secs_f64()
}

/// (cold, warm): median seconds of `encode` after `load`.
fn measure<M>(rounds: usize, load: impl Fn() -> M, encode: impl Fn(&M)) -> (f64, f64) {
    let cold = (0..rounds)
        .map(|_| {
            let model = load();
            seconds(|| encode(&model))
        })
        .collect();
    let model = load();
    let warm = (0..rounds * 8).map(|_| seconds(|| encode(&model))).collect();
    (median(cold), median(warm))
}

/// The documents, without what is no sentence: tables, code and drawings.
fn prose(root: &Path) -> String {
    let mut prose = String::new();
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "models/README.md"] {
        let text = fs::read_to_string(root.join(name)).expect("a document of the repository");
        for line in text.lines().filter(|line| line.starts_with(|c: char| c.is_alphabetic())) {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    prose
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let rounds = if quick { 3 } else { 25 };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = root.join("models/cuelight-tiny");
    let load = || TextModel::load(&dir, TextLimits::default()).expect("the shipped model");
    let only_words = || {
        let limits = TextLimits { cached_bytes: 0, ..TextLimits::default() };
        TextModel::load(&dir, limits).expect("the shipped model")
    };
    let reference = || Tokenizer::from_file(dir.join("tokenizer.json")).expect("its tokenizer");

    let once = prose(root);
    let per_token = once.len() as f64 / load().encode(&once, false).expect("ids").len() as f64;
    println!(
        "| prompt tokens | own cold | own warm | own again | tokenizers cold | tokenizers warm | \
         (ns per token)"
    );
    println!("|---|---|---|---|---|---|");
    for wanted in [256, 2000, 8000] {
        let mut text = once.clone();
        while (text.len() as f64) < wanted as f64 * per_token {
            text.push_str(&once);
        }
        let end = (wanted as f64 * per_token) as usize;
        text.truncate((0..=end).rfind(|end| text.is_char_boundary(*end)).unwrap_or(0));
        let tokens = load().encode(&text, false).expect("ids");
        let theirs = reference().encode_fast(text.as_str(), false).expect("ids");
        assert_eq!(tokens, theirs.get_ids());

        let words =
            measure(rounds, only_words, |model| drop(black_box(model.encode(&text, false))));
        let own = measure(rounds, load, |model| drop(black_box(model.encode(&text, false))));
        let peer = measure(rounds, reference, |model| {
            drop(black_box(model.encode_fast(text.as_str(), false)))
        });
        let [a, b, c, d, e] = [own.0, words.1, own.1, peer.0, peer.1]
            .map(|seconds| seconds * 1e9 / tokens.len() as f64);
        println!("| {} | {a:.0} | {b:.0} | {c:.1} | {d:.0} | {e:.0} |", tokens.len());
    }
    let whole = median((0..rounds).map(|_| seconds(|| drop(load()))).collect());
    let bare = median((0..rounds).map(|_| seconds(|| drop(reference()))).collect());
    println!("load: {:.1} ms, of which tokenizers {:.1} ms", whole * 1e3, bare * 1e3);
}
