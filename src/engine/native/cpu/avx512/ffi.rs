//! The AVX-512F intrinsics behind [`Avx512`].
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::mem::transmute;

use crate::engine::native::cpu::simd::{Bf16Pair, Kernel, LANES, Pair16, Simd, dot_by_fma};

/// Proof that this CPU has AVX-512F, and with `DOTS` also its BF16 extension; only
/// [`Avx512::detect`] and [`Avx512::dots`] make one.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::native::cpu) struct WithAvx512<const DOTS: bool> {
    /// Whether the CPU has the BF16 extension.
    bf16: bool,
}

/// AVX-512F.
pub(in crate::engine::native::cpu) type Avx512 = WithAvx512<false>;
/// AVX-512F and its BF16 extension.
pub(in crate::engine::native::cpu) type Avx512Dots = WithAvx512<true>;

impl Avx512 {
    pub(in crate::engine::native::cpu) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma"))
        .then(|| Self { bf16: is_x86_feature_detected!("avx512bf16") })
    }

    /// The same with the BF16 extension, if the CPU has it.
    pub(in crate::engine::native::cpu) fn dots(self) -> Option<Avx512Dots> {
        self.bf16.then_some(WithAvx512 { bf16: true })
    }
}

#[target_feature(enable = "avx512f,avx2,fma")]
fn run<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
fn run_dots<K: Kernel>(simd: Avx512Dots, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Wraps intrinsics that only compute on registers.
macro_rules! compute {
    ($e:expr) => {{
        // SAFETY: `self` is proof that the CPU has AVX-512F; no memory is touched.
        unsafe { $e }
    }};
}

impl<const DOTS: bool> Simd for WithAvx512<DOTS> {
    type V = __m512;
    const WIDE: bool = true;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        if DOTS {
            // SAFETY: `DOTS` is proof that the CPU has the features that `run_dots` enables.
            unsafe { run_dots(WithAvx512 { bf16: true }, kernel) }
        } else {
            // SAFETY: `self` is proof that the CPU has the features that `run` enables.
            unsafe { run(WithAvx512 { bf16: self.bf16 }, kernel) }
        }
    }

    #[inline(always)]
    fn dot_bf16(self, columns: &Pair16, row: Bf16Pair, sum: __m512) -> __m512 {
        if DOTS {
            let row = i32::from(row[1]) << 16 | i32::from(row[0]);
            // SAFETY: `DOTS` is proof that the CPU has the extension; the reference covers the 64
            // bytes; vectors of pairs and of numbers have the same bits.
            unsafe {
                let columns = transmute::<__m512i, __m512bh>(load_pair(columns));
                let row = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(row));
                _mm512_dpbf16_ps(sum, columns, row)
            }
        } else {
            dot_by_fma(self, columns, row, sum)
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        compute!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` proves AVX-512F; the reference covers the 64 bytes; no alignment needed.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves AVX-512F; the reference covers the 64 bytes; no alignment needed.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        compute!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        compute!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        compute!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        compute!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        compute!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        compute!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        compute!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn add_exponent(self, a: __m512, n: __m512) -> __m512 {
        compute!({
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), n))
        })
    }

    #[inline(always)]
    fn if_less(self, a: __m512, b: __m512, then: __m512, otherwise: __m512) -> __m512 {
        compute!({
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b);
            _mm512_mask_blend_ps(less, otherwise, then)
        })
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        compute!({
            let high = _mm512_shuffle_f32x4::<0b1110>(v, v);
            let v = _mm512_castps512_ps256(_mm512_add_ps(v, high));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }

    #[inline(always)]
    fn sums(self, v: &[__m512; LANES]) -> __m512 {
        // Each step halves the lanes of all sums, two vectors into one; the order in which vectors
        // are taken together puts the sums into theirs.
        let a = compute!(quarters(v[0], v[4], v[8], v[12]));
        let b = compute!(quarters(v[1], v[5], v[9], v[13]));
        let c = compute!(quarters(v[2], v[6], v[10], v[14]));
        let d = compute!(quarters(v[3], v[7], v[11], v[15]));
        compute!({
            let ab = halve_pairs(a, b);
            let cd = halve_pairs(c, d);
            let even = _mm512_shuffle_ps::<0b10_00_10_00>(ab, cd);
            _mm512_add_ps(even, _mm512_shuffle_ps::<0b11_01_11_01>(ab, cd))
        })
    }

    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        compute!({
            let high = _mm512_shuffle_f32x4::<0b1110>(v, v);
            let v = _mm512_castps512_ps256(_mm512_max_ps(v, high));
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        })
    }

    #[inline(always)]
    fn even_bf16(self, from: &Pair16) -> __m512 {
        compute!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(load_pair(from))))
    }

    #[inline(always)]
    fn odd_bf16(self, from: &Pair16) -> __m512 {
        compute!({
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(load_pair(from), upper))
        })
    }

    #[inline(always)]
    fn even_f16(self, from: &Pair16) -> __m512 {
        compute!(f16_from_upper_half(_mm512_slli_epi32::<16>(load_pair(from))))
    }

    #[inline(always)]
    fn odd_f16(self, from: &Pair16) -> __m512 {
        compute!({
            // The shift and the mask drop what the lower half leaves behind.
            f16_from_upper_half(load_pair(from))
        })
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &[T], index: usize) {
        let line = from.as_ptr().wrapping_add(index);
        compute!(_mm_prefetch::<_MM_HINT_T1>(line.cast()));
    }
}

/// From four vectors, each one's lanes `i + (i+8)`, then `i + (i+4)`: four lanes of each.
///
/// # Safety
/// The CPU has AVX-512F.
#[inline(always)]
unsafe fn quarters(a: __m512, b: __m512, c: __m512, d: __m512) -> __m512 {
    // SAFETY: Registers only.
    unsafe {
        let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
        let ab = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b));
        let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d);
        let cd = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d));
        let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
        _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd))
    }
}

/// In each four lanes `i + (i+2)`: two lanes of `a`, then two of `b`.
///
/// # Safety
/// The CPU has AVX-512F.
#[inline(always)]
unsafe fn halve_pairs(a: __m512, b: __m512) -> __m512 {
    // SAFETY: Registers only.
    unsafe {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
    }
}

/// Loads sixteen pairs.
///
/// # Safety
/// The CPU has AVX-512F.
#[inline(always)]
unsafe fn load_pair(from: &Pair16) -> __m512i {
    // SAFETY: The reference covers the 64 bytes; no alignment is needed.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// Moves F16 bits, which stand in the upper half of each lane, into the fields of floats.
///
/// # Safety
/// The CPU has AVX-512F.
#[inline(always)]
unsafe fn f16_from_upper_half(bits: __m512i) -> __m512 {
    // SAFETY: Registers only.
    unsafe {
        let fields = _mm512_set1_epi32(0x8fff_e000_u32 as i32);
        let rebias = _mm512_castsi512_ps(_mm512_set1_epi32((127 + 112) << 23));
        let bits = _mm512_and_si512(_mm512_srai_epi32::<3>(bits), fields);
        _mm512_mul_ps(_mm512_castsi512_ps(bits), rebias)
    }
}
