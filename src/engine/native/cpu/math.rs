//! Functions on vectors with a fixed sequence of operations.

use super::simd::{LANES, Simd};

/// `e^x` to about one unit in the last place; below -87 it gives 0, above 88 it gives `e^88`.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // Adding it rounds to a whole number, which then stands in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const LOWEST: f32 = -87.0;
    // Argument order of max and min: a NaN stays one.
    let clamped = s.min(s.splat(88.0), s.max(s.splat(LOWEST), x));
    let n = s.fma(clamped, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let whole = s.sub(n, s.splat(ROUND));
    let r = s.fma(whole, s.splat(-LN2_HIGH), clamped);
    let r = s.fma(whole, s.splat(-LN2_LOW), r);
    let mut p = s.splat(1.0 / 5040.0);
    p = s.fma(p, r, s.splat(1.0 / 720.0));
    p = s.fma(p, r, s.splat(1.0 / 120.0));
    p = s.fma(p, r, s.splat(1.0 / 24.0));
    p = s.fma(p, r, s.splat(1.0 / 6.0));
    p = s.fma(p, r, s.splat(0.5));
    p = s.fma(p, r, s.splat(1.0));
    p = s.fma(p, r, s.splat(1.0));
    s.if_less(x, s.splat(LOWEST), s.splat(0.0), s.add_exponent(p, n))
}

/// Numbers smaller than this, 2⁻⁵⁰, become 0 where a product is computed in BF16. Products of two
/// others and all their sums are multiples of 2⁻¹¹⁴, so that nothing is ever subnormal: CPUs that
/// multiply pairs of BF16 flush what is.
const SMALLEST_BF16: u16 = (127 - 50) << 7;

/// The nearest BF16, the even one of two; 0 for what is too small for products in BF16.
#[inline(always)]
pub(super) fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let even = 0x7fff + (bits >> 16 & 1);
    let rounded = (bits.wrapping_add(even) >> 16) as u16;
    let quiet = (bits >> 16) as u16 | 0x40;
    drop_small_bf16(if x.is_nan() { quiet } else { rounded })
}

/// The BF16, or 0 if it is too small for products in BF16.
#[inline(always)]
pub(super) fn drop_small_bf16(bits: u16) -> u16 {
    if bits & 0x7fff < SMALLEST_BF16 { 0 } else { bits }
}

/// Sixteen values of a row, 0 beyond its end.
#[inline(always)]
pub(super) fn load<S: Simd>(s: S, row: &[f32], at: usize) -> S::V {
    let row = row.get(at..).unwrap_or_default();
    match row.first_chunk() {
        Some(whole) => s.load(whole),
        None => load_part(s, row),
    }
}

/// Stores sixteen values in a row, or what fits.
#[inline(always)]
pub(super) fn store<S: Simd>(s: S, value: S::V, row: &mut [f32], at: usize) {
    let Some(row) = row.get_mut(at..) else { return };
    match row.first_chunk_mut() {
        Some(whole) => s.store(value, whole),
        None => store_part(s, value, row),
    }
}

/// Up to sixteen values, the missing ones 0.
#[inline(always)]
fn load_part<S: Simd>(s: S, from: &[f32]) -> S::V {
    let mut lanes = [0.0; LANES];
    lanes[..from.len()].copy_from_slice(from);
    s.load(&lanes)
}

/// Stores the first lanes, as many as there is room for.
#[inline(always)]
fn store_part<S: Simd>(s: S, value: S::V, to: &mut [f32]) {
    let mut lanes = [0.0; LANES];
    s.store(value, &mut lanes);
    to.copy_from_slice(&lanes[..to.len()]);
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Isa, Kernel};
    use super::*;
    use crate::engine::native::Instructions;

    struct Exp([f32; LANES]);

    impl Kernel for Exp {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            s.store(exp(s, s.load(&self.0)), &mut out);
            out
        }
    }

    fn all() -> Vec<Isa> {
        let kinds = [Instructions::Scalar, Instructions::Avx2, Instructions::Avx512];
        kinds.into_iter().filter_map(Isa::detect).collect()
    }

    #[test]
    fn exp_is_accurate_and_the_same_on_all_instruction_sets() {
        let mut x = -90.0_f32;
        while x < 88.0 {
            let arguments = std::array::from_fn(|i| x + i as f32 * 0.003);
            let first = Isa::detect(Instructions::Scalar).unwrap().run(Exp(arguments));
            for isa in all() {
                assert_eq!(isa.run(Exp(arguments)).map(f32::to_bits), first.map(f32::to_bits));
            }
            for (x, got) in arguments.into_iter().zip(first) {
                let want = if x < -87.0 { 0.0 } else { f64::from(x).exp() };
                assert!((f64::from(got) - want).abs() <= want * 2.5e-7, "exp({x}) = {got}");
            }
            x += 0.05;
        }
    }

    #[test]
    fn rounding_to_bf16_is_to_the_nearest_and_drops_what_is_too_small() {
        let mut bits = 0_u32;
        while let Some(next) = bits.checked_add(0x1235) {
            let x = f32::from_bits(bits);
            let want = half::bf16::from_f32(x);
            let small = want.to_f32().abs() < 2_f32.powi(-50);
            let got = half::bf16::from_bits(round_bf16(x));
            let same = if want.is_nan() { got.is_nan() } else { got == want };
            assert!(if small { got.to_f32() == 0.0 } else { same }, "{bits:#x}: {got}");
            bits = next;
        }
        let ties = [0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0xff80_0000];
        assert_eq!(ties.map(|b| round_bf16(f32::from_bits(b))), [0x3f80, 0x3f82, 0x7f80, 0xff80]);
    }

    #[test]
    fn exp_of_the_odd_values() {
        for isa in all() {
            let mut x = [0.0; LANES];
            x[..4].copy_from_slice(&[f32::NEG_INFINITY, f32::NAN, 0.0, 1000.0]);
            let got = isa.run(Exp(x));
            assert_eq!((got[0], got[2]), (0.0, 1.0), "{isa:?}");
            assert!(got[1].is_nan() && got[3] > 1e38 && got[3].is_finite(), "{isa:?} {got:?}");
        }
    }
}
