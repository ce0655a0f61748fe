//! Rotary position embedding: the frequencies of each scaling type, and their sines and cosines.

use std::f64::consts::PI;

use super::fields::{Fields, LARGEST};
use crate::engine::native::error::LoadError;

const SUPPORTED: &str = "supported are \"default\", \"linear\", \"llama3\" and \"yarn\"";

/// Frequencies of one model, `head_dim / 2` of them.
#[derive(Clone, Debug)]
pub(in crate::engine::native) struct Rope {
    inverse: Vec<f32>,
    /// Multiplies sines and cosines (YaRN).
    factor: f32,
}

impl Rope {
    /// Reads `rope_parameters`, `rope_scaling` and `rope_theta`; also gives the context length in
    /// tokens, which some scaling types extend.
    pub(super) fn read(
        fields: &Fields,
        head_dim: usize,
        positions: usize,
    ) -> Result<(Self, usize), LoadError> {
        let scaling = match fields.object("rope_parameters")? {
            Some(parameters) => Some(parameters),
            None => fields.object("rope_scaling")?,
        };
        let theta = match &scaling {
            Some(scaling) if scaling.get("rope_theta").is_some() => {
                scaling.positive("rope_theta", None)?
            }
            _ => fields.positive("rope_theta", Some(10_000.0))?,
        };
        if theta <= 1.0 {
            let holder = scaling.as_ref().filter(|s| s.get("rope_theta").is_some());
            return Err(holder.unwrap_or(fields).wrong("rope_theta", "must be above 1"));
        }
        let plain: Vec<f64> =
            (0..head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f64 / head_dim as f64)).collect();
        let (inverse, factor, context) = match &scaling {
            None => (plain, 1.0, positions),
            Some(scaling) => scale(scaling, plain, theta, positions)?,
        };
        let inverse = inverse.into_iter().map(|f| f as f32).collect();
        Ok((Self { inverse, factor: factor as f32 }, context))
    }

    /// Values in a row of sines, and in a row of cosines.
    pub(in crate::engine::native) fn half(&self) -> usize {
        self.inverse.len()
    }

    /// Cosines and sines for one position.
    pub(in crate::engine::native) fn fill(
        &self,
        position: usize,
        cosines: &mut [f32],
        sines: &mut [f32],
    ) {
        for ((inverse, cosine), sine) in self.inverse.iter().zip(cosines).zip(sines) {
            let (sin, cos) = sin_cos(position as f64 * f64::from(*inverse));
            *cosine = cos as f32 * self.factor;
            *sine = sin as f32 * self.factor;
        }
    }
}

/// Frequencies, factor and context length after scaling.
fn scale(
    scaling: &Fields,
    plain: Vec<f64>,
    theta: f64,
    positions: usize,
) -> Result<(Vec<f64>, f64, usize), LoadError> {
    let key = if scaling.get("rope_type").is_some() { "rope_type" } else { "type" };
    if scaling.number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
        return Err(scaling.wrong("partial_rotary_factor", "only 1.0 is supported"));
    }
    match scaling.text(key)? {
        Some("default") => Ok((plain, 1.0, positions)),
        Some("linear") => {
            let factor = scaling.positive("factor", None)?;
            let inverse = plain.into_iter().map(|f| f / factor).collect();
            Ok((inverse, 1.0, stretch(positions, factor)))
        }
        Some("llama3") => Ok((llama3(scaling, plain)?, 1.0, positions)),
        Some("yarn") => yarn(scaling, plain, theta, positions),
        // Older configs write {"rope_theta": …} alone.
        None if !scaling.mentions("factor") && scaling.mentions("rope_theta") => {
            Ok((plain, 1.0, positions))
        }
        _ => Err(scaling.wrong(key, SUPPORTED)),
    }
}

/// A context length times the factor, within what a size field may hold.
fn stretch(positions: usize, factor: f64) -> usize {
    ((positions as f64 * factor) as usize).clamp(1, LARGEST)
}

fn llama3(scaling: &Fields, plain: Vec<f64>) -> Result<Vec<f64>, LoadError> {
    let factor = scaling.positive("factor", None)?;
    let low = scaling.positive("low_freq_factor", None)?;
    let high = scaling.positive("high_freq_factor", None)?;
    let original = scaling.count("original_max_position_embeddings", None)? as f64;
    if high <= low {
        let rule = format!("must be above low_freq_factor = {low}");
        return Err(scaling.wrong("high_freq_factor", rule));
    }
    let one = |f: f64| {
        let wavelength = 2.0 * PI / f;
        if wavelength > original / low {
            f / factor
        } else if wavelength < original / high {
            f
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        }
    };
    Ok(plain.into_iter().map(one).collect())
}

fn yarn(
    scaling: &Fields,
    plain: Vec<f64>,
    theta: f64,
    positions: usize,
) -> Result<(Vec<f64>, f64, usize), LoadError> {
    let original = scaling.count("original_max_position_embeddings", Some(positions))?;
    let factor = match scaling.get("factor") {
        Some(_) => scaling.positive("factor", None)?,
        None => positions as f64 / original as f64,
    };
    let magnitude = |scale: f64, weight: f64| {
        if scale <= 1.0 { 1.0 } else { 0.1 * weight * scale.ln() + 1.0 }
    };
    let attention = match scaling.number("attention_factor")? {
        Some(given) => given,
        None => match (scaling.number("mscale")?, scaling.number("mscale_all_dim")?) {
            (Some(one), Some(all)) if one != 0.0 && all != 0.0 => {
                magnitude(factor, one) / magnitude(factor, all)
            }
            _ => magnitude(factor, 1.0),
        },
    };
    let fast = scaling.positive("beta_fast", Some(32.0))?;
    let slow = scaling.positive("beta_slow", Some(1.0))?;
    let dim = (2 * plain.len()) as f64;
    // The dimension whose wave turns this often within the original context.
    let turning =
        |rotations: f64| dim * (original as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (turning(fast), turning(slow));
    if scaling.flag("truncate", true)? {
        (low, high) = (low.floor(), high.ceil());
    }
    let low = low.max(0.0);
    let mut high = high.min(dim - 1.0);
    if low == high {
        high += 0.001;
    }
    let blend = |(i, f): (usize, f64)| {
        let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        f / factor * stretched + f * (1.0 - stretched)
    };
    let inverse = plain.into_iter().enumerate().map(blend).collect();
    let context = positions.max(stretch(original, factor));
    Ok((inverse, attention, context))
}

/// Sine and cosine with a fixed sequence of operations, so that no library's version decides.
///
/// Good to 1e-12 for the angles that positions below 2^28 give.
fn sin_cos(angle: f64) -> (f64, f64) {
    // π/2 in three parts; the first two have trailing zeros, so that `turns` times them is exact.
    const PART_1: f64 = f64::from_bits(0x3FF9_21FB_5440_0000);
    const PART_2: f64 = f64::from_bits(0x3DD0_B461_1A60_0000);
    const PART_3: f64 = f64::from_bits(0x3BA3_198A_2E03_7073);
    let turns = (angle * (2.0 / PI)).round_ties_even();
    let x = (-turns).mul_add(PART_3, (-turns).mul_add(PART_2, (-turns).mul_add(PART_1, angle)));
    let square = x * x;
    let series =
        |coefficients: &[f64]| coefficients.iter().fold(0.0_f64, |sum, &c| sum.mul_add(square, c));
    // Taylor series; |x| <= π/4 leaves an error below 1e-16.
    let sin = x * series(&[
        1.0 / 355_687_428_096_000.0,
        -1.0 / 1_307_674_368_000.0,
        1.0 / 6_227_020_800.0,
        -1.0 / 39_916_800.0,
        1.0 / 362_880.0,
        -1.0 / 5_040.0,
        1.0 / 120.0,
        -1.0 / 6.0,
        1.0,
    ]);
    let cos = series(&[
        1.0 / 20_922_789_888_000.0,
        -1.0 / 87_178_291_200.0,
        1.0 / 479_001_600.0,
        -1.0 / 3_628_800.0,
        1.0 / 40_320.0,
        -1.0 / 720.0,
        1.0 / 24.0,
        -1.0 / 2.0,
        1.0,
    ]);
    match (turns as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sines_and_cosines_agree_with_the_library_over_all_positions() {
        for position in (0..1 << 22).step_by(997) {
            for scale in [1.0, 0.731, 0.01, 1e-4] {
                let angle = f64::from(position) * scale;
                let (sin, cos) = sin_cos(angle);
                assert!((sin - angle.sin()).abs() < 1e-11, "sin {angle}");
                assert!((cos - angle.cos()).abs() < 1e-11, "cos {angle}");
            }
        }
    }
}
