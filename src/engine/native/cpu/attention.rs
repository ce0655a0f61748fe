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
/// Vectors of a head that are summed up side by side.
const WIDTH: usize = 4;

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
        &self,
        s: S,
        query: &[f32],
        scale: f32,
        running: &mut Running,
        out: &mut [f32],
    ) {
        let scores = s.mul(self.scores(s, query), s.splat(scale));
        let top = s.largest(scores);
        let max = if top > running.max { top } else { running.max };
        let weights = exp(s, s.sub(scores, s.splat(max)));
        let mut weight = [0.0; LANES];
        s.store(weights, &mut weight);
        // Where the maximum stays, this factor is exactly 1.
        let mut faded = [1.0; LANES];
        if max != running.max {
            s.store(exp(s, s.splat(running.max - max)), &mut faded);
        }
        let fade = faded[0];
        running.sum = running.sum * fade + s.sum(weights);
        running.max = max;
        let mut at = 0;
        while at + WIDTH * LANES <= out.len() {
            self.gather::<S, WIDTH>(s, &weight, fade, out, at);
            at += WIDTH * LANES;
        }
        while at < out.len() {
            self.gather::<S, 1>(s, &weight, fade, out, at);
            at += LANES;
        }
    }

    /// The products of the query with the seen keys; minus infinity for the others.
    #[inline(always)]
    fn scores<S: Simd>(&self, s: S, query: &[f32]) -> S::V {
        let width = query.len();
        if self.first == 0 && self.end == TILE {
            let mut sums = [s.splat(0.0); TILE];
            for at in (0..width).step_by(LANES) {
                let q = load(s, query, at);
                for (key, sum) in self.keys.chunks_exact(width).zip(&mut sums) {
                    *sum = s.fma(q, load(s, key, at), *sum);
                }
            }
            return s.sums(&sums);
        }
        let mut scores = [f32::NEG_INFINITY; LANES];
        let seen = self.keys.chunks_exact(width).zip(&mut scores).take(self.end).skip(self.first);
        for (key, score) in seen {
            let mut sum = s.splat(0.0);
            for at in (0..width).step_by(LANES) {
                sum = s.fma(load(s, query, at), load(s, key, at), sum);
            }
            *score = s.sum(sum);
        }
        s.load(&scores)
    }

    /// `out[at..] = out[at..] * fade + Σ weight · value` for `N` vectors of the head.
    #[inline(always)]
    fn gather<S: Simd, const N: usize>(
        &self,
        s: S,
        weight: &[f32; LANES],
        fade: f32,
        out: &mut [f32],
        at: usize,
    ) {
        let width = out.len();
        let mut sums = [s.splat(0.0); N];
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = s.mul(load(s, out, at + n * LANES), s.splat(fade));
        }
        let seen = self.values.chunks_exact(width).zip(weight).take(self.end).skip(self.first);
        for (value, weight) in seen {
            let w = s.splat(*weight);
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = s.fma(w, load(s, value, at + n * LANES), *sum);
            }
        }
        for (n, sum) in sums.iter().enumerate() {
            store(s, *sum, out, at + n * LANES);
        }
    }
}
