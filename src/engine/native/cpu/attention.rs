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

impl Attend<'_> {
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
        for tile in first_tile..(part.start + part.rows).div_ceil(TILE) {
            let base = tile * TILE;
            let block = self.table[part.first_block + base / g.block_tokens];
            let tokens = base % g.block_tokens..base % g.block_tokens + TILE;
            let (keys, values) = self.pool.tile(self.layer, self.kv_head, block, tokens);
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
