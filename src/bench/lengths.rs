//! Distributions of whole numbers, as they are written on the command line.

use std::fmt;
use std::str::FromStr;

use super::draw::Draw;

/// The largest number that a distribution may give.
pub(super) const LARGEST: u32 = 4_000_000;

/// A distribution of whole numbers from 0 to 4,000,000.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    /// Always this one.
    Fixed(u32),
    /// Each of `low..=high` as often as the others.
    Uniform {
        /// The smallest.
        low: u32,
        /// The largest.
        high: u32,
    },
    /// Rounded to at least 1.
    LogNormal {
        /// The arithmetic mean.
        mean: f64,
        /// The standard deviation of the logarithm.
        sigma: f64,
    },
}

impl Lengths {
    /// The smallest number that it can give.
    pub fn least(&self) -> u32 {
        match *self {
            Self::Fixed(value) => value,
            Self::Uniform { low, .. } => low,
            Self::LogNormal { .. } => 1,
        }
    }

    pub(super) fn sample(&self, draw: &mut Draw) -> u32 {
        match *self {
            Self::Fixed(value) => value,
            Self::Uniform { low, high } => low + draw.below(u64::from(high - low) + 1) as u32,
            Self::LogNormal { mean, sigma } => {
                let middle = mean.ln() - sigma * sigma / 2.0;
                // Saturates.
                let value = (middle + sigma * draw.normal()).exp().round() as u32;
                value.clamp(1, LARGEST)
            }
        }
    }
}

const RULE: &str = "must be a number, LOW:HIGH or lognormal:MEAN:SIGMA, with numbers up to 4000000, \
                    LOW at most HIGH, MEAN at least 1 and SIGMA from 0 to 5";

impl FromStr for Lengths {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.parse().ok().filter(|&number: &u32| number <= LARGEST);
        let decimal = |text: &str| text.parse().ok().filter(|number: &f64| number.is_finite());
        let parts: Vec<_> = text.split(':').collect();
        let parsed = match parts[..] {
            [value] => number(value).map(Self::Fixed),
            ["lognormal", mean, sigma] => decimal(mean)
                .zip(decimal(sigma))
                .filter(|(mean, sigma)| {
                    (1.0..=f64::from(LARGEST)).contains(mean) && (0.0..=5.0).contains(sigma)
                })
                .map(|(mean, sigma)| Self::LogNormal { mean, sigma }),
            [low, high] => number(low)
                .zip(number(high))
                .filter(|(low, high)| low <= high)
                .map(|(low, high)| Self::Uniform { low, high }),
            _ => None,
        };
        parsed.ok_or(RULE)
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(value) => write!(f, "{value}"),
            Self::Uniform { low, high } => write!(f, "{low}:{high}"),
            Self::LogNormal { mean, sigma } => write!(f, "lognormal:{mean}:{sigma}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::draw::Stream;
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for text in ["0", "256", "256:2000", "7:7", "lognormal:800:0.5"] {
            assert_eq!(text.parse::<Lengths>().unwrap().to_string(), text);
        }
        for text in ["", "-1", "x", "3:2", "1:2:3", "4000001", "lognormal:0:1", "lognormal:9:6"] {
            assert_eq!(text.parse::<Lengths>(), Err(RULE), "{text}");
        }
        for text in ["lognormal:inf:1", "lognormal:NaN:1", "lognormal:5", "uniform:1:2"] {
            assert_eq!(text.parse::<Lengths>(), Err(RULE), "{text}");
        }
    }

    #[test]
    fn a_distribution_keeps_its_range_and_its_mean() {
        for (text, range, mean) in [
            ("9", 9..=9, 9.0),
            ("10:20", 10..=20, 15.0),
            ("lognormal:500:0.8", 1..=LARGEST, 500.0),
            ("lognormal:100:0", 100..=100, 100.0),
        ] {
            let lengths: Lengths = text.parse().unwrap();
            let mut draw = Draw::new(1, Stream::Job, 0);
            let count = 50_000;
            let mut sum = 0.0;
            for _ in 0..count {
                let value = lengths.sample(&mut draw);
                assert!(range.contains(&value) && value >= lengths.least(), "{text}: {value}");
                sum += f64::from(value);
            }
            let found = sum / f64::from(count);
            assert!((found / mean - 1.0).abs() < 0.02, "{text}: {found}");
        }
    }
}
