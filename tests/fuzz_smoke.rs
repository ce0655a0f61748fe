//! The fuzz targets' bodies on stable: seeds, and seeded random mutations of them.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::fs;
use std::path::Path;

/// Mutations of the seeds each body gets here; cargo-fuzz goes on without end.
const MUTATIONS: usize = 20_000;

/// Pieces that mean something to the formats under test.
const PIECES: [&[u8]; 14] = [
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"null",
    b"\"content\":",
    b"\"tool_calls\":",
    b"<|im_end|>",
    b"1e999",
    b"\\ud800",
    b"\xff",
    b"\xe6\x97",
    b"{\"type\":\"text\",\"text\":\"x\"}",
];

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }
}

/// The bytes of every seed file of a target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let entries = fs::read_dir(&dir).expect("each target has a folder of seeds");
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seeds", dir.display());
    files.iter().map(|file| fs::read(file).expect("seeds can be read")).collect()
}

fn mutate(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[rng.below(seeds.len())].clone();
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(data.len() + 1);
        let end = (at + rng.below(16)).min(data.len());
        match rng.below(5) {
            0 if at < data.len() => data[at] ^= 1 << rng.below(8),
            1 => drop(data.drain(at..end)),
            2 => drop(data.splice(at..at, PIECES[rng.below(PIECES.len())].iter().copied())),
            3 => {
                let copy = data[at..end].to_vec();
                drop(data.splice(at..at, copy));
            }
            _ => {
                let other = &seeds[rng.below(seeds.len())];
                let from = rng.below(other.len() + 1);
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
        }
    }
    data
}

/// Runs a body on its seeds and their mutations; on a panic the seed number gives it again.
fn smoke(target: &str, body: fn(&[u8])) {
    let seed = std::env::var("CUELIGHT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(20_261_122);
    println!("{target}: run again with CUELIGHT_SEED={seed}");
    let mut rng = Rng(seed);
    let seeds = seeds(target);
    seeds.iter().for_each(|data| body(data));
    for number in 0..MUTATIONS {
        let data = mutate(&mut rng, &seeds);
        if std::panic::catch_unwind(|| body(&data)).is_err() {
            panic!("{target}, mutation {number}: {}", data.escape_ascii());
        }
    }
}

#[test]
fn chat_template_input_survives_mutations() {
    smoke("chat_template_input", bodies::chat_template_input);
}

#[test]
fn output_text_survives_mutations() {
    smoke("output_text", bodies::output_text);
}

#[test]
fn request_parsing_survives_mutations() {
    smoke("request_parsing", bodies::request_parsing);
}

#[test]
fn safetensors_header_survives_mutations() {
    smoke("safetensors_header", bodies::safetensors_header);
}
