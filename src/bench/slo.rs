//! A service level objective: what a request must meet to count as good.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Times of one complete request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Times {
    /// From sending to the first token.
    pub(super) ttft: Duration,
    /// The mean time from token to token; zero for an answer of one token.
    pub(super) tpot: Duration,
    /// The longest time between two events with tokens.
    pub(super) longest_gap: Duration,
    /// From sending to the end.
    pub(super) e2e: Duration,
}

/// Limits; what is `None` is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slo {
    /// Time to the first token.
    pub ttft: Option<Duration>,
    /// Mean time from token to token within a request.
    pub itl: Option<Duration>,
    /// Longest time between two tokens of a request.
    pub max_itl: Option<Duration>,
    /// Time to the end.
    pub e2e: Option<Duration>,
}

impl Slo {
    pub(super) fn is_met(&self, times: &Times) -> bool {
        let within = |limit: Option<Duration>, time| limit.is_none_or(|limit| time <= limit);
        within(self.ttft, times.ttft)
            && within(self.itl, times.tpot)
            && within(self.max_itl, times.longest_gap)
            && within(self.e2e, times.e2e)
    }
}

const RULE: &str = "must be limits like ttft=500ms,itl=50ms: of ttft, itl, max-itl and e2e, \
                    each at most once and in us, ms or s";

impl FromStr for Slo {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut slo = Self::default();
        for part in text.split(',') {
            let (name, limit) = part.split_once('=').ok_or(RULE)?;
            let limit = duration(limit).ok_or(RULE)?;
            let slot = match name {
                "ttft" => &mut slo.ttft,
                "itl" | "tpot" => &mut slo.itl,
                "max-itl" => &mut slo.max_itl,
                "e2e" => &mut slo.e2e,
                _ => return Err(RULE),
            };
            if slot.replace(limit).is_some() {
                return Err(RULE);
            }
        }
        Ok(slo)
    }
}

fn duration(text: &str) -> Option<Duration> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    let seconds = number.parse::<f64>().ok()? * unit;
    Duration::try_from_secs_f64(seconds).ok()
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits =
            [("ttft", self.ttft), ("itl", self.itl), ("max-itl", self.max_itl), ("e2e", self.e2e)];
        let mut comma = "";
        for (name, limit) in limits {
            if let Some(limit) = limit {
                write!(f, "{comma}{name} ≤ {} ms", limit.as_secs_f64() * 1e3)?;
                comma = ", ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_with_their_units_or_refused() {
        let slo: Slo = "ttft=0.5s,itl=50ms,max-itl=900us,e2e=3s".parse().unwrap();
        let shown = "ttft ≤ 500 ms, itl ≤ 50 ms, max-itl ≤ 0.9 ms, e2e ≤ 3000 ms";
        assert_eq!(slo.to_string(), shown);
        assert_eq!("tpot=5ms".parse::<Slo>(), "itl=5ms".parse());
        for text in ["", "ttft", "ttft=5", "x=5ms", "ttft=-1s", "ttft=1s,ttft=2s", "itl=NaNs"] {
            assert_eq!(text.parse::<Slo>(), Err(RULE), "{text}");
        }
    }

    #[test]
    fn a_request_is_good_if_it_meets_every_limit() {
        let ms = Duration::from_millis;
        let times = Times { ttft: ms(10), tpot: ms(2), longest_gap: ms(5), e2e: ms(40) };
        for (text, met) in [
            ("ttft=10ms", true),
            ("ttft=9ms", false),
            ("itl=2ms,max-itl=4ms", false),
            ("itl=2ms,max-itl=5ms,e2e=40ms", true),
            ("ttft=10ms,e2e=39ms", false),
            ("itl=1ms", false),
        ] {
            assert_eq!(text.parse::<Slo>().unwrap().is_met(&times), met, "{text}");
        }
    }
}
