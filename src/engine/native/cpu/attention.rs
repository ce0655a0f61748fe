//! Attention over the KV pool with a running softmax.
//!
//! Keys are taken in tiles of sixteen positions, counted from position 0, whatever the block size.
//! The order of operations for a query then depends on its position and its window alone.

use super::math::{exp, load, store};
use super::pool::Pool;
use super::share::Block;
use super::simd::{Kernel, LANES, Simd};
use crate::engine::model::Batch;

/// Keys of a tile: one lane each.
const TILE: usize = super::TILE_TOKENS;
/// Most rows of one task.
const ROWS_AT_ONCE: usize = 8;
/// Most query heads of one KV head that go through its keys together.
const HEADS_AT_ONCE: usize = 16;

/// The batch's rows, cut into tasks.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// First row of each part, and the end.
    cuts: Vec<usize>,
    parts: Vec<Part>,
    work: usize,
}

/// Some rows of one span.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    first_row: usize,
    rows: usize,
    /// Position of the first row.
    start: usize,
    /// The span's first entry in the table of blocks.
    first_block: usize,
}

impl Plan {
    pub(super) fn prepare(&mut self, batch: &Batch) {
        self.cuts.clear();
        self.parts.clear();
        self.work = 0;
        for span in &batch.spans {
            for offset in (0..span.rows).step_by(ROWS_AT_ONCE) {
                let part = Part {
                    first_row: span.first_row + offset,
                    rows: ROWS_AT_ONCE.min(span.rows - offset),
                    start: span.start + offset,
                    first_block: span.first_block,
                };
                self.cuts.push(part.first_row);
                self.work += part.rows * (part.start + part.rows);
                self.parts.push(part);
            }
        }
        self.cuts.push(batch.tokens.len());
    }

    pub(super) fn cuts(&self) -> &[usize] {
        &self.cuts
    }

    pub(super) fn part(&self, index: usize) -> Part {
        self.parts[index]
    }

    /// Pairs of a row and a key.
    pub(super) fn work(&self) -> usize {
        self.work
    }
}

/// Attention of some rows' query heads that share one KV head.
pub(super) struct Attend<'a> {
    /// All rows of q, k, v.
    pub(super) qkv: &'a [f32],
    pub(super) qkv_width: usize,
    pub(super) pool: &'a Pool,
    pub(super) table: &'a [usize],
    pub(super) part: Part,
    pub(super) kv_head: usize,
    pub(super) layer: usize,
    pub(super) window: Option<usize>,
    /// The query heads' columns of these rows.
    pub(super) out: Block<'a>,
}

/// A query's softmax so far.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let group = self.out.row(0).len();
        let step = HEADS_AT_ONCE * self.pool.geometry.head_dim;
        for first in (0..group).step_by(step) {
            self.heads(s, first, group.min(first + step));
        }
    }
}

impl<'a> Attend<'a> {
    /// Keys and values of one tile.
    #[inline(always)]
    fn tile(&self, tile: usize, kv_head: usize) -> (&'a [f32], &'a [f32]) {
        let (base, block_tokens) = (tile * TILE, self.pool.geometry.block_tokens);
        let block = self.table[self.part.first_block + base / block_tokens];
        let tokens = base % block_tokens..base % block_tokens + TILE;
        self.pool.tile(self.layer, kv_head, block, tokens)
    }

    /// Columns `from..to` of the block: some of the heads, all rows.
    #[inline(always)]
    fn heads<S: Simd>(&mut self, s: S, from: usize, to: usize) {
        let g = self.pool.geometry;
        let scale = 1.0 / (g.head_dim as f32).sqrt();
        let part = self.part;
        let mut running =
            [[Running { max: f32::NEG_INFINITY, sum: 0.0 }; HEADS_AT_ONCE]; ROWS_AT_ONCE];
        for row in 0..part.rows {
            self.out.row(row)[from..to].fill(0.0);
        }
        let first_q = self.kv_head * self.out.row(0).len() + from;
        let first_seen = |position: usize| match self.window {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        };
        let first_tile = first_seen(part.start) / TILE;
        let end_tile = (part.start + part.rows).div_ceil(TILE);
        for tile in first_tile..end_tile {
            let base = tile * TILE;
            let (keys, values) = self.tile(tile, self.kv_head);
            if part.rows == 1 {
                // Little is computed with a tile: memory is waited for unless it is asked in time.
                if tile + 1 < end_tile {
                    fetch(s, self.tile(tile + 1, self.kv_head));
                } else if self.kv_head + 1 < g.kv_heads {
                    fetch(s, self.tile(first_tile, self.kv_head + 1));
                }
            }
            for (row, running) in running.iter_mut().enumerate().take(part.rows) {
                let position = part.start + row;
                let seen = first_seen(position).max(base)..(position + 1).min(base + TILE);
                if seen.is_empty() {
                    continue;
                }
                let seen = seen.start - base..seen.end - base;
                let q = (part.first_row + row) * self.qkv_width + first_q;
                let queries = self.qkv[q..q + to - from].chunks_exact(g.head_dim);
                let out = self.out.row(row)[from..to].chunks_exact_mut(g.head_dim);
                for ((query, out), running) in queries.zip(out).zip(running) {
                    let tile = Tile { keys, values, first: seen.start, end: seen.end };
                    tile.attend(s, query, scale, running, out);
                }
            }
        }
        for (row, running) in running.iter().enumerate().take(part.rows) {
            let out = self.out.row(row)[from..to].chunks_exact_mut(g.head_dim);
            for (out, running) in out.zip(running) {
                for at in (0..out.len()).step_by(LANES) {
                    store(s, s.div(load(s, out, at), s.splat(running.sum)), out, at);
                }
            }
        }
    }
}

/// Asks for a tile's keys and values.
#[inline(always)]
fn fetch<S: Simd>(s: S, (keys, values): (&[f32], &[f32])) {
    for at in (0..keys.len()).step_by(LANES) {
        s.prefetch(keys, at);
        s.prefetch(values, at);
    }
}

/// Sixteen keys and values of one head, of which `first..end` are seen.
#[derive(Clone, Copy)]
struct Tile<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    first: usize,
    end: usize,
}

impl Tile<'_> {
    /// Takes this tile into a query's softmax and its weighted sum of values.
    #[inline(always)]
    fn attend<S: Simd>(
        self,
        s: S,
        query: &[f32],
        scale: f32,
        running: &mut Running,
        out: &mut [f32],
    ) {
        // The same operations, for the usual sizes of a head without checks and in registers.
        match query.len() {
            64 => self.attend_whole::<S, 4>(s, query, scale, running, out),
            128 => self.attend_whole::<S, 8>(s, query, scale, running, out),
            _ => self.attend_any(s, query, scale, running, out),
        }
    }

    /// A head of `W` whole vectors.
    #[inline(always)]
    fn attend_whole<S: Simd, const W: usize>(
        self,
        s: S,
        query: &[f32],
        scale: f32,
        running: &mut Running,
        out: &mut [f32],
    ) {
        let keys = self.keys.as_chunks::<LANES>().0.as_chunks::<W>().0;
        let values = self.values.as_chunks::<LANES>().0.as_chunks::<W>().0;
        let (Some(query), Some(out)) = (
            query.as_chunks::<LANES>().0.first_chunk::<W>(),
            out.as_chunks_mut::<LANES>().0.first_chunk_mut::<W>(),
        ) else {
            return;
        };
        let mut q = [s.splat(0.0); W];
        for (q, query) in q.iter_mut().zip(query) {
            *q = s.load(query);
        }
        let mut products = [s.splat(0.0); TILE];
        for (product, key) in products.iter_mut().zip(keys) {
            let mut sum = s.splat(0.0);
            for (q, key) in q.iter().zip(key) {
                sum = s.fma(*q, s.load(key), sum);
            }
            *product = sum;
        }
        let (weights, fade) = self.weigh(s, s.sums(&products), scale, running);
        let mut sums = [s.splat(0.0); W];
        for (sum, out) in sums.iter_mut().zip(&*out) {
            *sum = s.mul(s.load(out), s.splat(fade));
        }
        let seen = values.iter().zip(&weights).take(self.end).skip(self.first);
        for (value, weight) in seen {
            let weight = s.splat(*weight);
            for (sum, value) in sums.iter_mut().zip(value) {
                *sum = s.fma(weight, s.load(value), *sum);
            }
        }
        for (sum, out) in sums.into_iter().zip(out) {
            s.store(sum, out);
        }
    }

    /// A head of any size.
    #[inline(always)]
    fn attend_any<S: Simd>(
        self,
        s: S,
        query: &[f32],
        scale: f32,
        running: &mut Running,
        out: &mut [f32],
    ) {
        let width = query.len();
        let mut products = [s.splat(0.0); TILE];
        for (product, key) in products.iter_mut().zip(self.keys.chunks_exact(width)) {
            for at in (0..width).step_by(LANES) {
                *product = s.fma(load(s, query, at), load(s, key, at), *product);
            }
        }
        let (weights, fade) = self.weigh(s, s.sums(&products), scale, running);
        for at in (0..width).step_by(LANES) {
            let mut sum = s.mul(load(s, out, at), s.splat(fade));
            let values = self.values.chunks_exact(width).zip(&weights);
            for (value, weight) in values.take(self.end).skip(self.first) {
                sum = s.fma(s.splat(*weight), load(s, value, at), sum);
            }
            store(s, sum, out, at);
        }
    }

    /// Takes the products of query and keys into the softmax; gives the keys' weights, 0 for those
    /// not seen, and the factor for what was summed up so far.
    #[inline(always)]
    fn weigh<S: Simd>(
        self,
        s: S,
        products: S::V,
        scale: f32,
        running: &mut Running,
    ) -> ([f32; LANES], f32) {
        let mut scores = s.mul(products, s.splat(scale));
        if self.first > 0 || self.end < TILE {
            // Keys not seen may not even have been written.
            let mut lanes = [0.0; LANES];
            s.store(scores, &mut lanes);
            lanes[..self.first].fill(f32::NEG_INFINITY);
            lanes[self.end..].fill(f32::NEG_INFINITY);
            scores = s.load(&lanes);
        }
        let top = s.largest(scores);
        let max = if top > running.max { top } else { running.max };
        let weights = exp(s, s.sub(scores, s.splat(max)));
        // Where the maximum stays, this factor is exactly 1.
        let mut fade = [1.0; LANES];
        if max != running.max {
            s.store(exp(s, s.splat(running.max - max)), &mut fade);
        }
        running.sum = running.sum * fade[0] + s.sum(weights);
        running.max = max;
        let mut lanes = [0.0; LANES];
        s.store(weights, &mut lanes);
        (lanes, fade[0])
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Isa;
    use super::*;
    use crate::engine::native::Instructions;

    /// Attends one tile by the kernel for whole vectors, or by the one for any size.
    struct Attend<'a> {
        tile: Tile<'a>,
        query: &'a [f32],
        whole: bool,
    }

    impl Kernel for Attend<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut running = Running { max: -0.25, sum: 0.75 };
            let mut out: Vec<f32> = self.query.iter().map(|q| q * 0.5).collect();
            let (query, tile) = (self.query, self.tile);
            match (self.whole, query.len()) {
                (true, 64) => tile.attend_whole::<S, 4>(s, query, 0.125, &mut running, &mut out),
                (true, _) => tile.attend_whole::<S, 8>(s, query, 0.125, &mut running, &mut out),
                _ => tile.attend_any(s, query, 0.125, &mut running, &mut out),
            }
            out.extend([running.max, running.sum]);
            out
        }
    }

    /// What one tile does to the output, in double precision.
    fn plain(tile: Tile<'_>, query: &[f32]) -> Vec<f64> {
        let width = query.len();
        let score = |key: usize| -> f64 {
            let key = &tile.keys[key * width..(key + 1) * width];
            0.125 * query.iter().zip(key).map(|(q, k)| f64::from(q * k)).sum::<f64>()
        };
        let seen = tile.first..tile.end;
        let max = seen.clone().map(score).fold(-0.25, f64::max);
        let fade = (-0.25 - max).exp();
        (0..width)
            .map(|i| {
                let value = |key: usize| f64::from(tile.values[key * width + i]);
                let sum: f64 = seen.clone().map(|key| (score(key) - max).exp() * value(key)).sum();
                f64::from(query[i]) * 0.5 * fade + sum
            })
            .collect()
    }

    #[test]
    fn all_kernels_give_the_same_bits_and_the_right_numbers() {
        let wave =
            |n: usize, step: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * step).sin()).collect() };
        for width in [64, 128] {
            let (keys, values) = (wave(TILE * width, 0.37), wave(TILE * width, 0.11));
            let query = wave(width, 0.73);
            for (first, end) in [(0, 16), (0, 1), (5, 16), (3, 9)] {
                let tile = Tile { keys: &keys, values: &values, first, end };
                let want = plain(tile, &query);
                let mut bits: Option<Vec<u32>> = None;
                for kind in [Instructions::Scalar, Instructions::Avx2, Instructions::Avx512] {
                    let Some(isa) = Isa::detect(kind) else { continue };
                    for whole in [true, false] {
                        let got = isa.run(Attend { tile, query: &query, whole });
                        for (got, want) in got.iter().zip(&want) {
                            let off = (f64::from(*got) - want).abs();
                            assert!(off < 1e-5, "{width} {first}..{end}: {got} for {want}");
                        }
                        let got: Vec<u32> = got.iter().map(|v| v.to_bits()).collect();
                        let bits = bits.get_or_insert_with(|| got.clone());
                        assert!(*bits == got, "{width} {first}..{end} {kind:?} {whole}");
                    }
                }
            }
        }
    }
}
