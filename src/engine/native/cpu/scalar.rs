//! The instruction set that every machine has.

use super::simd::{Kernel, LANES, Pair16, Simd};

/// Plain Rust on arrays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scalar;

type V = [f32; LANES];

#[inline(always)]
fn each(mut value: impl FnMut(usize) -> f32) -> V {
    let mut out = [0.0; LANES];
    for (i, out) in out.iter_mut().enumerate() {
        *out = value(i);
    }
    out
}

/// Moves an F16's bits, which stand in the upper half, into the fields of a float.
#[inline(always)]
fn f16_from_upper_half(bits: u32) -> f32 {
    // The exponent's bias is 127 instead of 15: exact for all finite values, subnormals included.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    f32::from_bits(((bits as i32) >> 3) as u32 & 0x8fff_e000) * REBIAS
}

impl Simd for Scalar {
    type V = V;
    const WIDE: bool = false;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> V {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> V {
        *from
    }

    #[inline(always)]
    fn store(self, value: V, to: &mut [f32; LANES]) {
        *to = value;
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        each(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn add_exponent(self, a: V, n: V) -> V {
        each(|i| f32::from_bits(a[i].to_bits().wrapping_add(n[i].to_bits() << 23)))
    }

    #[inline(always)]
    fn if_less(self, a: V, b: V, then: V, otherwise: V) -> V {
        each(|i| if a[i] < b[i] { then[i] } else { otherwise[i] })
    }

    #[inline(always)]
    fn sum(self, mut v: V) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }

    #[inline(always)]
    fn largest(self, mut v: V) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] = if v[i] > v[i + half] { v[i] } else { v[i + half] };
            }
        }
        v[0]
    }

    #[inline(always)]
    fn even_bf16(self, from: &Pair16) -> V {
        each(|i| f32::from_bits(u32::from(from[2 * i]) << 16))
    }

    #[inline(always)]
    fn odd_bf16(self, from: &Pair16) -> V {
        each(|i| f32::from_bits(u32::from(from[2 * i + 1]) << 16))
    }

    #[inline(always)]
    fn even_f16(self, from: &Pair16) -> V {
        each(|i| f16_from_upper_half(u32::from(from[2 * i]) << 16))
    }

    #[inline(always)]
    fn odd_f16(self, from: &Pair16) -> V {
        each(|i| f16_from_upper_half(u32::from(from[2 * i + 1]) << 16))
    }

    #[inline(always)]
    fn prefetch<T>(self, _from: &[T], _index: usize) {}
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn every_finite_f16_becomes_the_same_number() {
        for bits in 0..=u16::MAX {
            let want = f16::from_bits(bits);
            if want.is_finite() {
                let got = Scalar.odd_f16(&[bits; 2 * LANES])[7];
                assert_eq!(got.to_bits(), want.to_f32().to_bits(), "{bits:#06x}");
            }
        }
    }
}
