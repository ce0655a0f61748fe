//! What is asked: conversations of many turns, prompts that share long beginnings, and recorded traces.

use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use cuelight::bench::trace;

/// A small generator of random numbers (splitmix64): the same seed, the same trace.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, count: u64) -> u64 {
        self.next() % count.max(1)
    }

    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Exponentially distributed.
    fn wait(&mut self, mean: f64) -> f64 {
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        -mean * (1.0 - uniform).ln()
    }
}

/// One request.
pub(crate) struct Request {
    /// Seconds; of a later turn, after the answer before it.
    pub(crate) at: f64,
    /// The prompt; of a later turn what comes after the answer before it.
    pub(crate) tokens: Vec<u32>,
    pub(crate) output: u32,
    /// The turn that this one follows.
    pub(crate) after: Option<usize>,
}

/// Requests in the order in which their conversations begin.
pub(crate) struct Trace {
    pub(crate) name: String,
    pub(crate) requests: Vec<Request>,
    /// KV blocks of a rank.
    pub(crate) pool: u32,
    /// Longest sequence in tokens.
    pub(crate) context: usize,
}

impl Trace {
    fn of(name: &str, requests: Vec<Request>) -> Self {
        Self { name: name.to_owned(), requests, pool: 4096, context: 16_384 }
    }
}

/// Ids of the simulated model.
pub(crate) const VOCAB: u32 = 30_000;

fn text(draw: &mut Draw, length: u64) -> Vec<u32> {
    (0..length).map(|_| draw.below(VOCAB.into()) as u32).collect()
}

/// Conversations of six turns, begun at a steady rate, with one of 16 long instructions each.
pub(crate) fn sessions(ranks: usize, seed: u64) -> Trace {
    let mut draw = Draw::new(seed);
    let instructions: Vec<_> = (0..16).map(|_| text(&mut draw, 512)).collect();
    let (mut requests, mut at) = (Vec::new(), 0.0);
    for _ in 0..ranks * 12 {
        at += draw.wait(1.0 / (0.55 * ranks as f64));
        for turn in 0..6 {
            let mut tokens = match turn {
                0 => instructions[draw.below(16) as usize].clone(),
                _ => Vec::new(),
            };
            let length = draw.between(64, 400);
            tokens.extend(text(&mut draw, length));
            let after = (turn > 0).then(|| requests.len() - 1);
            let wait = if turn == 0 { at } else { draw.wait(3.0) };
            let output = draw.between(32, 128) as u32;
            requests.push(Request { at: wait, tokens, output, after });
        }
    }
    Trace::of("sessions", requests)
}

/// Prompts of which most is one of many shared beginnings, some of them far more popular.
pub(crate) fn prefixes(ranks: usize, seed: u64) -> Trace {
    let mut draw = Draw::new(seed);
    let groups = 6 * ranks as u64;
    let shared: Vec<_> = (0..groups)
        .map(|_| {
            let length = draw.between(1000, 3000);
            text(&mut draw, length)
        })
        .collect();
    let (mut requests, mut at) = (Vec::new(), 0.0);
    for _ in 0..ranks * 80 {
        at += draw.wait(1.0 / (4.5 * ranks as f64));
        // The square of a uniform number: the first groups are asked for most.
        let uniform = draw.below(1 << 20) as f64 / f64::from(1 << 20);
        let mut tokens = shared[(uniform * uniform * groups as f64) as usize].clone();
        let length = draw.between(32, 300);
        tokens.extend(text(&mut draw, length));
        let output = draw.between(16, 128) as u32;
        requests.push(Request { at, tokens, output, after: None });
    }
    Trace::of("shared prefixes", requests)
}

/// Tokens that an id of a recorded trace stands for.
const MOONCAKE_BLOCK: u32 = 512;

/// The first requests of a trace in Mooncake's format, come as fast as keeps so many ranks busy: one
/// every two seconds for each. Ranks have room for 524,288 tokens of KV.
pub(crate) fn recorded(path: &Path, ranks: usize, count: usize) -> Result<Trace, Box<dyn Error>> {
    let mut entries = trace::read(BufReader::new(File::open(path)?), MOONCAKE_BLOCK)?;
    entries.truncate(count);
    let last = entries.last().map_or(1.0, |entry| entry.at.as_secs_f64().max(1.0));
    let pace = 2.0 * entries.len() as f64 / ranks as f64 / last;
    let mut own = 1 << 62;
    let request = |entry: &trace::Entry| {
        let mut tokens = Vec::with_capacity(entry.input as usize);
        let blocks = entry.blocks.iter().copied();
        own += 1_000;
        for (nth, id) in blocks.chain(own..).enumerate() {
            let left = (entry.input as usize).saturating_sub(nth * MOONCAKE_BLOCK as usize);
            if left == 0 {
                break;
            }
            let mut draw = Draw::new(id);
            tokens.extend(text(&mut draw, u64::from(MOONCAKE_BLOCK).min(left as u64)));
        }
        Request { at: entry.at.as_secs_f64() * pace, tokens, output: entry.output, after: None }
    };
    let requests: Vec<_> = entries.iter().map(request).collect();
    let longest = requests.iter().map(|one| one.tokens.len() + one.output as usize).max();
    let name =
        path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(Trace { pool: 32_768, context: longest.unwrap_or(0) + 1, ..Trace::of(&name, requests) })
}
