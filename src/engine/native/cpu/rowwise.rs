//! Operations on each row by itself: norms, rotation, activation, addition.

use super::math::{exp, load, store};
use super::share::Block;
use super::simd::{Kernel, LANES, Simd};
use crate::engine::native::backend::{Attention, Geometry};

/// `out = x / sqrt(mean(x²) + eps) * weight` for rows.
pub(super) struct RmsNorm<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    pub(super) out: Block<'a>,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for (row, x) in self.x.chunks_exact(self.weight.len()).enumerate() {
            let scale = s.splat(norm_scale(s, x, self.eps));
            let out = self.out.row(row);
            for at in (0..x.len()).step_by(LANES) {
                let normed = s.mul(s.mul(load(s, x, at), scale), load(s, self.weight, at));
                store(s, normed, out, at);
            }
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn norm_scale<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let mut squares = s.splat(0.0);
    for at in (0..x.len()).step_by(LANES) {
        let x = load(s, x, at);
        squares = s.fma(x, x, squares);
    }
    1.0 / (s.sum(squares) / x.len() as f32 + eps).sqrt()
}

/// Norms (where the layer does) and rotates the heads of q and k in rows of q, k, v.
pub(super) struct Rotate<'a> {
    pub(super) qkv: Block<'a>,
    pub(super) geometry: &'a Geometry,
    pub(super) layer: &'a Attention<Vec<f32>>,
    /// `head_dim / 2` a row.
    pub(super) cosines: &'a [f32],
    pub(super) sines: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let half = self.geometry.head_dim / 2;
        let rows = self.cosines.chunks_exact(half).zip(self.sines.chunks_exact(half));
        for (row, (cosines, sines)) in rows.enumerate() {
            let row = self.qkv.row(row);
            let (q, kv) = row.split_at_mut(self.geometry.q_dim());
            let k = &mut kv[..self.geometry.kv_dim()];
            let norms = self.layer.qk_norm.as_ref();
            for (heads, norm) in [(q, norms.map(|n| &n.0)), (k, norms.map(|n| &n.1))] {
                for head in heads.chunks_exact_mut(2 * half) {
                    if let Some(weight) = norm {
                        norm_head(s, head, weight, self.layer.norm_eps);
                    }
                    rotate_head(s, head, cosines, sines);
                }
            }
        }
    }
}

#[inline(always)]
fn norm_head<S: Simd>(s: S, head: &mut [f32], weight: &[f32], eps: f32) {
    let scale = s.splat(norm_scale(s, head, eps));
    for at in (0..head.len()).step_by(LANES) {
        let normed = s.mul(s.mul(load(s, head, at), scale), load(s, weight, at));
        store(s, normed, head, at);
    }
}

/// Value `i` of the first half and of the second half turn together.
#[inline(always)]
fn rotate_head<S: Simd>(s: S, head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let (first, second) = head.split_at_mut(cosines.len());
    for at in (0..first.len()).step_by(LANES) {
        let (a, b) = (load(s, first, at), load(s, second, at));
        let (cos, sin) = (load(s, cosines, at), load(s, sines, at));
        store(s, s.sub(s.mul(a, cos), s.mul(b, sin)), first, at);
        store(s, s.fma(a, sin, s.mul(b, cos)), second, at);
    }
}

/// `out = silu(gate) * up` for rows of gate, then up.
pub(super) struct SiluMul<'a> {
    pub(super) gate_up: &'a [f32],
    pub(super) out: Block<'a>,
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let width = self.out.row(0).len();
        for (row, gate_up) in self.gate_up.chunks_exact(2 * width).enumerate() {
            let (gate, up) = gate_up.split_at(width);
            let out = self.out.row(row);
            for at in (0..width).step_by(LANES) {
                let gate = load(s, gate, at);
                let below = s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), gate)));
                store(s, s.mul(s.div(gate, below), load(s, up, at)), out, at);
            }
        }
    }
}

/// `x += delta` for rows.
pub(super) struct Add<'a> {
    pub(super) x: Block<'a>,
    pub(super) delta: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let width = self.x.row(0).len();
        for (row, delta) in self.delta.chunks_exact(width).enumerate() {
            let x = self.x.row(row);
            for at in (0..width).step_by(LANES) {
                store(s, s.add(load(s, x, at), load(s, delta, at)), x, at);
            }
        }
    }
}
