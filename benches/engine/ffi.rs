//! What the machine can do: its FMA rate, and a peer's matrix product.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::hint::black_box;

/// Fused multiply-adds in one round of [`fma_rounds`], counted as two operations each.
pub(crate) fn flops_per_round() -> f64 {
    let lanes = if is_x86_feature_detected!("avx512f") { 16 } else { 8 };
    (2 * lanes * CHAINS) as f64
}

/// Independent chains, enough to hide the latency of one.
const CHAINS: usize = 12;

/// Runs nothing but fused multiply-adds, on this thread. `None` if the CPU has none.
pub(crate) fn fma_rounds(rounds: usize) -> Option<f32> {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: AVX-512F was detected.
        return Some(unsafe { fma_512(rounds) });
    }
    // SAFETY: AVX2 and FMA are detected first.
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"))
        .then(|| unsafe { fma_256(rounds) })
}

/// Multiply-adds of BF16 pairs in one round of [`dot_rounds`], counted as two operations each.
pub(crate) const DOT_FLOPS_PER_ROUND: f64 = (2 * 32 * CHAINS) as f64;

/// Runs nothing but products of BF16 pairs, on this thread. `None` if the CPU has none.
pub(crate) fn dot_rounds(rounds: usize) -> Option<f32> {
    // SAFETY: The features are detected first.
    (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"))
        .then(|| unsafe { dot_512(rounds) })
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_512(rounds: usize) -> f32 {
    let pairs = |bits: i32| {
        // SAFETY: Vectors of pairs and of numbers have the same bits.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(bits)) }
    };
    // 0.25 and 1, twice each.
    let (a, b) = (pairs(0x3e80_3e80), pairs(0x3f80_3f80));
    // Hidden from the compiler, or one chain would stand for all.
    let mut sums = black_box([_mm512_set1_ps(1.0); CHAINS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, a, b);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}

#[target_feature(enable = "avx512f")]
fn fma_512(rounds: usize) -> f32 {
    let (a, b) = (_mm512_set1_ps(0.999), _mm512_set1_ps(0.001));
    // Hidden from the compiler, or one chain would stand for all.
    let mut sums = black_box([_mm512_set1_ps(1.0); CHAINS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}

#[target_feature(enable = "avx2,fma")]
fn fma_256(rounds: usize) -> f32 {
    let (a, b) = (_mm256_set1_ps(0.999), _mm256_set1_ps(0.001));
    let mut sums = black_box([_mm256_set1_ps(1.0); CHAINS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
}

/// `out[rows, outputs] = x[rows, inputs] · weights[outputs, inputs]ᵀ` by the `gemm` crate.
pub(crate) fn peer_product(
    threads: usize,
    [rows, inputs, outputs]: [usize; 3],
    x: &[f32],
    weights: &[f32],
    out: &mut [f32],
) {
    assert!(x.len() == rows * inputs && weights.len() == outputs * inputs);
    assert!(out.len() == rows * outputs);
    let parallelism =
        if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: Pointers and strides stay within the slices, whose lengths were checked above; `out`
    // is borrowed mutably and does not overlap the others.
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            out.as_mut_ptr(),
            1,
            outputs as isize,
            false,
            x.as_ptr(),
            1,
            inputs as isize,
            weights.as_ptr(),
            inputs as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
