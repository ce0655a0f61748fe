//! Rates of this machine, measured in the same run as the engine's.

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use crate::ffi;

/// Bytes a second that all threads together read from memory, best of a few rounds.
pub(crate) fn read_bandwidth(threads: usize, bytes: usize) -> f64 {
    let words = vec![1_u64; bytes / 8];
    let part = words.len().div_ceil(threads);
    let rate = || {
        let start = Instant::now();
        thread::scope(|scope| {
            for part in words.chunks(part) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        bytes as f64 / start.elapsed().as_secs_f64()
    };
    (0..6).map(|_| rate()).fold(0.0, f64::max)
}

fn sum(words: &[u64]) -> u64 {
    let mut sums = [0_u64; 32];
    for words in words.as_chunks::<32>().0 {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// Floating-point operations a second of a loop of nothing but fused multiply-adds, all threads.
pub(crate) fn fma_peak(threads: usize) -> Option<f64> {
    ffi::fma_rounds(1000)?;
    Some(peak(threads, ffi::flops_per_round(), ffi::fma_rounds))
}

/// Floating-point operations a second of a loop of nothing but products of BF16, all threads.
pub(crate) fn dot_peak(threads: usize) -> Option<f64> {
    ffi::dot_rounds(1000)?;
    Some(peak(threads, ffi::DOT_FLOPS_PER_ROUND, ffi::dot_rounds))
}

fn peak(threads: usize, flops: f64, rounds: fn(usize) -> Option<f32>) -> f64 {
    const ROUNDS: usize = 10_000_000;
    let rate = || {
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| black_box(rounds(ROUNDS)));
            }
        });
        flops * (ROUNDS * threads) as f64 / start.elapsed().as_secs_f64()
    };
    (0..4).map(|_| rate()).fold(0.0, f64::max)
}

/// Operations a second of the peer's matrix product over these `(inputs, outputs)`, best of a few.
pub(crate) fn peer_rate(threads: usize, rows: usize, shapes: &[(usize, usize)]) -> f64 {
    let mut seconds = 0.0;
    let mut flops = 0.0;
    for &(inputs, outputs) in shapes {
        let x = vec![0.5_f32; rows * inputs];
        let weights = vec![0.25_f32; outputs * inputs];
        let mut out = vec![0.0_f32; rows * outputs];
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            ffi::peer_product(threads, [rows, inputs, outputs], &x, &weights, &mut out);
            best = best.min(start.elapsed().as_secs_f64());
        }
        assert_eq!(black_box(&out)[0], 0.125 * inputs as f32, "the peer's product is wrong");
        seconds += best;
        flops += 2.0 * (rows * inputs * outputs) as f64;
    }
    flops / seconds
}
