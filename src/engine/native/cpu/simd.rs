//! Sixteen float lanes at a time: one set of operations, three instruction sets, the same bits.
//!
//! A kernel is written once, generic over [`Simd`], and run by [`Isa::run`], which compiles it for
//! each instruction set. Every operation rounds once, as IEEE 754 says, so the result does not
//! depend on which one runs. A value of an instruction set's type is proof that this CPU has it.

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512::{Avx512, Avx512Dots};
use super::scalar::Scalar;
use crate::engine::native::Instructions;

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// Values for two consecutive `k` of sixteen columns, interleaved: `[column][2]`. 16-bit values.
pub(super) type Pair16 = [u16; 2 * LANES];
/// Values for two consecutive `k` of one row, in BF16.
pub(super) type Bf16Pair = [u16; 2];
/// Values for two consecutive `k` of sixteen columns, one `k` after the other. Full floats.
pub(super) type Pair32 = [[f32; LANES]; 2];

/// A computation over [`Simd`] vectors.
pub(super) trait Kernel {
    /// What it gives.
    type Output;
    /// Computes. Must be `#[inline(always)]`, and so must what it calls on vectors.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set that works on sixteen lanes.
pub(super) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen floats.
    type V: Copy;
    /// Whether there are registers for 24 sums and their factors; if not, for 10.
    const WIDE: bool;
    /// Most rows of a tile in a matrix product.
    const TILE_ROWS: usize = if Self::WIDE { 12 } else { 5 };

    /// Runs the kernel compiled for this instruction set.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, value: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, value: Self::V, to: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a` where `a > b`, else `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a` where `a < b`, else `b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Adds the low bits of `n`'s bit pattern to the exponent of `a`: `bits(a) + (bits(n) << 23)`.
    fn add_exponent(self, a: Self::V, n: Self::V) -> Self::V;
    /// `then` where `a < b`, else `otherwise`.
    fn if_less(self, a: Self::V, b: Self::V, then: Self::V, otherwise: Self::V) -> Self::V;
    /// Lane 0 to 15 by halves: `i + (i+8)`, then `i + (i+4)`, `i + (i+2)`, `i + (i+1)`.
    fn sum(self, v: Self::V) -> f32;
    /// The largest lane, found in the order of [`Simd::sum`].
    fn largest(self, v: Self::V) -> f32;

    /// The even `k` of a pair of BF16.
    fn even_bf16(self, from: &Pair16) -> Self::V;
    /// The odd `k` of a pair of BF16.
    fn odd_bf16(self, from: &Pair16) -> Self::V;
    /// The even `k` of a pair of F16, infinities and NaN excluded.
    fn even_f16(self, from: &Pair16) -> Self::V;
    /// The odd `k` of a pair of F16, infinities and NaN excluded.
    fn odd_f16(self, from: &Pair16) -> Self::V;

    /// `sum`, plus the odd `k` of the pairs multiplied, plus the even `k` of the pairs multiplied;
    /// rounded after each of the two. Exact results must not be subnormal.
    #[inline(always)]
    fn dot_bf16(self, columns: &Pair16, row: Bf16Pair, sum: Self::V) -> Self::V {
        dot_by_fma(self, columns, row, sum)
    }

    /// Asks for the cache line that holds `from[index]`, which may lie outside.
    fn prefetch<T>(self, from: &[T], index: usize);

    /// Sixteen sums: lane `i` is [`Simd::sum`] of `v[i]`.
    #[inline(always)]
    fn sums(self, v: &[Self::V; LANES]) -> Self::V {
        let mut sums = [0.0; LANES];
        for (sum, v) in sums.iter_mut().zip(v) {
            *sum = self.sum(*v);
        }
        self.load(&sums)
    }
}

/// [`Simd::dot_bf16`] without an instruction for it.
#[inline(always)]
pub(super) fn dot_by_fma<S: Simd>(s: S, columns: &Pair16, row: Bf16Pair, sum: S::V) -> S::V {
    let row = row.map(|bits| f32::from_bits(u32::from(bits) << 16));
    let sum = s.fma(s.odd_bf16(columns), s.splat(row[1]), sum);
    s.fma(s.even_bf16(columns), s.splat(row[0]), sum)
}

/// The instruction set in use.
#[derive(Clone, Copy, Debug)]
pub(super) enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Scalar(Scalar),
}

impl Isa {
    /// The instruction set asked for, or the best; `None` if this CPU does not have it.
    pub(super) fn detect(wanted: Instructions) -> Option<Self> {
        let scalar = Some(Self::Scalar(Scalar));
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = || Avx512::detect().map(Self::Avx512);
            let avx2 = || Avx2::detect().map(Self::Avx2);
            match wanted {
                Instructions::Best => avx512().or_else(avx2).or(scalar),
                Instructions::Avx512 => avx512(),
                Instructions::Avx2 => avx2(),
                Instructions::Scalar => scalar,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        match wanted {
            Instructions::Best | Instructions::Scalar => scalar,
            Instructions::Avx512 | Instructions::Avx2 => None,
        }
    }

    /// Most rows of a tile in a matrix product.
    pub(super) fn tile_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Avx512::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Avx2::TILE_ROWS,
            Self::Scalar(_) => Scalar::TILE_ROWS,
        }
    }

    /// This instruction set with the instructions for [`Simd::dot_bf16`], if the CPU has them.
    pub(super) fn dots(self) -> Option<Dots> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.dots().map(Dots::Avx512),
            _ => None,
        }
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.vectorize(kernel),
            Self::Scalar(simd) => simd.vectorize(kernel),
        }
    }
}

/// An instruction set whose [`Simd::dot_bf16`] is an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dots {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512Dots),
}

impl Dots {
    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(kernel),
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("no such instruction set"),
        }
    }
}
