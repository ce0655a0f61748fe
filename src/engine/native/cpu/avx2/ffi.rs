//! The AVX2 and FMA intrinsics behind [`Avx2`].
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::engine::native::cpu::simd::{Kernel, LANES, Pair16, Simd};

/// Proof that this CPU has AVX2 and FMA; only [`Avx2::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::native::cpu) struct Avx2(());

impl Avx2 {
    pub(in crate::engine::native::cpu) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma")]
fn run<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Lanes 0..8 and 8..16.
type V = (__m256, __m256);

/// Wraps intrinsics that only compute on registers.
macro_rules! compute {
    ($e:expr) => {{
        // SAFETY: `self` is proof that the CPU has AVX2 and FMA; no memory is touched.
        unsafe { $e }
    }};
}

impl Simd for Avx2 {
    type V = V;
    const WIDE: bool = false;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` is proof that the CPU has the features that `run` enables.
        unsafe { run(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> V {
        let v = compute!(_mm256_set1_ps(value));
        (v, v)
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> V {
        // SAFETY: `self` proves AVX2; the reference covers both halves; no alignment needed.
        unsafe { (_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn store(self, value: V, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves AVX2; the reference covers both halves; no alignment needed.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), value.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), value.1);
        }
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        compute!((_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        compute!((_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        compute!((_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        compute!((_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        compute!((_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        compute!((_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        compute!((_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }

    #[inline(always)]
    fn add_exponent(self, a: V, n: V) -> V {
        compute!((add_exponent(a.0, n.0), add_exponent(a.1, n.1)))
    }

    #[inline(always)]
    fn if_less(self, a: V, b: V, then: V, otherwise: V) -> V {
        compute!({
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1);
            let low = _mm256_blendv_ps(otherwise.0, then.0, low);
            (low, _mm256_blendv_ps(otherwise.1, then.1, high))
        })
    }

    #[inline(always)]
    fn sum(self, v: V) -> f32 {
        compute!({
            let v = _mm256_add_ps(v.0, v.1);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }

    #[inline(always)]
    fn largest(self, v: V) -> f32 {
        compute!({
            let v = _mm256_max_ps(v.0, v.1);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        })
    }

    #[inline(always)]
    fn even_bf16(self, from: &Pair16) -> V {
        compute!({
            let (low, high) = load_pair(from);
            let low = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low));
            (low, _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)))
        })
    }

    #[inline(always)]
    fn odd_bf16(self, from: &Pair16) -> V {
        compute!({
            let (low, high) = load_pair(from);
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let low = _mm256_castsi256_ps(_mm256_and_si256(low, upper));
            (low, _mm256_castsi256_ps(_mm256_and_si256(high, upper)))
        })
    }

    #[inline(always)]
    fn even_f16(self, from: &Pair16) -> V {
        compute!({
            let (low, high) = load_pair(from);
            let low = _mm256_slli_epi32::<16>(low);
            let high = _mm256_slli_epi32::<16>(high);
            (f16_from_upper_half(low), f16_from_upper_half(high))
        })
    }

    #[inline(always)]
    fn odd_f16(self, from: &Pair16) -> V {
        compute!({
            // The shift and the mask drop what the lower half leaves behind.
            let (low, high) = load_pair(from);
            (f16_from_upper_half(low), f16_from_upper_half(high))
        })
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &[T], index: usize) {
        let line = from.as_ptr().wrapping_add(index);
        compute!(_mm_prefetch::<_MM_HINT_T1>(line.cast()));
    }
}

/// Loads sixteen pairs.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn load_pair(from: &Pair16) -> (__m256i, __m256i) {
    // SAFETY: The reference covers the 64 bytes; no alignment is needed.
    unsafe {
        let first = from.as_ptr().cast::<__m256i>();
        (_mm256_loadu_si256(first), _mm256_loadu_si256(first.add(1)))
    }
}

/// `bits(a) + (bits(n) << 23)`.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn add_exponent(a: __m256, n: __m256) -> __m256 {
    // SAFETY: Registers only.
    unsafe {
        let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), n))
    }
}

/// Moves F16 bits, which stand in the upper half of each lane, into the fields of floats.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn f16_from_upper_half(bits: __m256i) -> __m256 {
    // SAFETY: Registers only.
    unsafe {
        let fields = _mm256_set1_epi32(0x8fff_e000_u32 as i32);
        let rebias = _mm256_castsi256_ps(_mm256_set1_epi32((127 + 112) << 23));
        let bits = _mm256_and_si256(_mm256_srai_epi32::<3>(bits), fields);
        _mm256_mul_ps(_mm256_castsi256_ps(bits), rebias)
    }
}
