//! What a run found: all figures, as JSON and as the source of the table and the plots.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::histogram::Histogram;
use super::options::{Arrivals, Load, Options};
use super::process::{Taken, Watched};
use super::prompt::Api;
use super::record::Record;
use super::workload::{Tree, Workload};
use super::{plot, table};

/// All that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub(super) version: &'static str,
    pub(super) url: String,
    pub(super) model: String,
    pub(super) api: Api,
    /// How requests were spread over time, in words.
    pub(super) load: String,
    pub(super) workload: &'static str,
    /// What decides the requests, by the names of the flags.
    pub(super) parameters: BTreeMap<&'static str, String>,
    pub(super) seed: u64,
    /// A signal ended the run.
    pub(super) interrupted: bool,
    pub(super) duration_s: f64,
    pub(super) requests: Requests,
    pub(super) ttft_ms: Spread,
    pub(super) itl_ms: Spread,
    pub(super) tpot_ms: Spread,
    pub(super) e2e_ms: Spread,
    /// Open loops: how much later than planned requests were sent.
    pub(super) send_delay_ms: Option<Spread>,
    pub(super) tokens: Tokens,
    pub(super) throughput: Throughput,
    pub(super) goodput: Option<Goodput>,
    pub(super) errors: Vec<ErrorKind>,
    pub(super) processes: Vec<Taken>,
    /// This program: what the measurement itself took.
    pub(super) generator: Taken,
    pub(super) over_time: Series,
    #[serde(skip)]
    pub(super) curves: Curves,
}

/// Where requests went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Requests {
    pub(super) sent: u64,
    pub(super) complete: u64,
    pub(super) failed: u64,
    /// Over the limit of an open loop.
    pub(super) not_sent: u64,
    /// Under way when a signal ended the run.
    pub(super) cut: u64,
    /// Complete, with more or fewer tokens than asked for.
    pub(super) other_length: u64,
    /// Complete, without `usage`.
    pub(super) without_usage: u64,
}

/// Half of the values are at most `p50`, and so on; 0 without values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) count: u64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) mean: f64,
    pub(super) max: f64,
}

/// Of complete requests, and all events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tokens {
    pub(super) input: u64,
    pub(super) cached: u64,
    pub(super) output: u64,
    /// Events with tokens, of all requests.
    pub(super) events: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Throughput {
    pub(super) requests_per_s: f64,
    pub(super) output_tokens_per_s: f64,
    pub(super) input_tokens_per_s: f64,
    /// Of the input tokens, those found in a cache.
    pub(super) cached_share: f64,
}

/// Requests that met the objective.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Goodput {
    pub(super) slo: String,
    pub(super) met: u64,
    /// Of the complete, the failed and those not sent.
    pub(super) share: f64,
    pub(super) requests_per_s: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ErrorKind {
    pub(super) kind: String,
    pub(super) count: u64,
    /// What the first one said.
    pub(super) example: String,
}

/// Counts in stretches of equal length.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Series {
    pub(super) bucket_s: f64,
    /// Events with tokens.
    pub(super) events: Vec<u64>,
    /// Requests that were complete.
    pub(super) complete: Vec<u64>,
}

/// What only the plots show.
#[derive(Clone, Debug, Default)]
pub(super) struct Curves {
    pub(super) ttft: Vec<(f64, f64)>,
    pub(super) itl: Vec<(f64, f64)>,
    /// Seconds, milliseconds.
    pub(super) ttft_over_time: Vec<(f64, f64)>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) ran: Duration,
    /// Requests under way.
    pub(super) cut: u64,
    pub(super) interrupted: bool,
}

impl Spread {
    fn of(histogram: &Histogram) -> Self {
        let round = |ms: f64| (ms * 1e4).round() / 1e4;
        let at = |share| round(histogram.quantile_ms(share));
        Self {
            count: histogram.count(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            mean: round(histogram.mean_ms()),
            max: round(histogram.max_ms()),
        }
    }
}

fn per(count: u64, of: f64) -> f64 {
    if of > 0.0 { count as f64 / of } else { 0.0 }
}

impl Report {
    /// The last one `watched` is this program.
    pub(super) fn new(
        options: &Options,
        model: &str,
        record: &Record,
        watched: &[Watched],
        end: End,
    ) -> Self {
        let seconds = end.ran.as_secs_f64();
        let failed = record.failures();
        let mut taken: Vec<_> = watched
            .iter()
            .map(|watched| watched.taken(record.complete, record.received_tokens()))
            .collect();
        let generator = taken.split_off(taken.len() - 1).remove(0);
        let open = matches!(options.load, Load::Open { .. });
        let goodput = options.slo.map(|slo| Goodput {
            slo: slo.to_string(),
            met: record.met,
            share: per(record.met, (record.complete + failed + record.not_sent) as f64),
            requests_per_s: per(record.met, seconds),
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            url: options.url.clone(),
            model: model.to_owned(),
            api: options.api,
            load: options.load.shown(),
            workload: options.workload.name(),
            parameters: options.workload.parameters(),
            seed: options.seed,
            interrupted: end.interrupted,
            duration_s: seconds,
            requests: Requests {
                sent: record.sent,
                complete: record.complete,
                failed,
                not_sent: record.not_sent,
                cut: end.cut,
                other_length: record.other_length,
                without_usage: record.without_usage,
            },
            ttft_ms: Spread::of(&record.ttft),
            itl_ms: Spread::of(&record.itl),
            tpot_ms: Spread::of(&record.tpot),
            e2e_ms: Spread::of(&record.e2e),
            send_delay_ms: open.then(|| Spread::of(&record.late)),
            tokens: Tokens {
                input: record.input_tokens,
                cached: record.cached_tokens,
                output: record.output_tokens,
                events: record.events,
            },
            throughput: Throughput {
                requests_per_s: per(record.complete, seconds),
                output_tokens_per_s: per(record.output_tokens, seconds),
                input_tokens_per_s: per(record.input_tokens, seconds),
                cached_share: per(record.cached_tokens, record.input_tokens as f64),
            },
            goodput,
            errors: errors(record),
            processes: taken,
            generator,
            over_time: Series::of(record),
            curves: Curves {
                ttft: record.ttft.curve(),
                itl: record.itl.curve(),
                ttft_over_time: record.points.kept.clone(),
            },
        }
    }

    /// Whether any request failed.
    pub fn failed(&self) -> bool {
        self.requests.failed > 0
    }

    /// For people.
    pub fn to_text(&self) -> String {
        table::text(self)
    }

    /// For machines.
    pub fn to_json(&self) -> String {
        // Nothing in a report can fail to be JSON.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Distributions and courses as an image.
    pub fn to_svg(&self) -> String {
        plot::svg(self)
    }
}

fn errors(record: &Record) -> Vec<ErrorKind> {
    let kinds = record.failed.iter().map(|(kind, failed)| ErrorKind {
        kind: kind.clone(),
        count: failed.count,
        example: failed.example.clone(),
    });
    kinds.collect()
}

impl Series {
    fn of(record: &Record) -> Self {
        let buckets = &record.over_time.buckets;
        Self {
            bucket_s: record.over_time.width.as_secs_f64(),
            events: buckets.iter().map(|bucket| bucket.events).collect(),
            complete: buckets.iter().map(|bucket| bucket.complete).collect(),
        }
    }
}

impl Load {
    fn shown(&self) -> String {
        match self {
            Self::Closed { concurrency } => format!("closed loop, {concurrency} at a time"),
            Self::Open { arrivals, max_in_flight } => {
                let arrivals = match arrivals {
                    Arrivals::Poisson(rate) => format!("{rate} a second, poisson"),
                    Arrivals::Constant(rate) => format!("{rate} a second, constant"),
                    Arrivals::Trace(speedup) => format!("the trace's times, {speedup} × as fast"),
                };
                format!("open loop, {arrivals}, at most {max_in_flight} in flight")
            }
        }
    }
}

impl Workload {
    /// By the names of the flags.
    fn parameters(&self) -> BTreeMap<&'static str, String> {
        let shape = |tree: &Tree| {
            [
                ("prefix-groups", tree.groups.to_string()),
                ("prefix-tokens", tree.tokens.to_string()),
                ("prefix-depth", tree.depth.to_string()),
            ]
        };
        match self {
            Self::Random { prompt, output } => BTreeMap::from([
                ("prompt-tokens", prompt.to_string()),
                ("output-tokens", output.to_string()),
            ]),
            Self::PrefixTree { tree, prompt, output } => shape(tree)
                .into_iter()
                .chain([
                    ("prompt-tokens", prompt.to_string()),
                    ("output-tokens", output.to_string()),
                ])
                .collect(),
            Self::Sessions { tree, prompt, output, turns, think_ms } => tree
                .iter()
                .flat_map(shape)
                .chain([
                    ("prompt-tokens", prompt.to_string()),
                    ("output-tokens", output.to_string()),
                    ("turns", turns.to_string()),
                    ("think-ms", think_ms.to_string()),
                ])
                .collect(),
            Self::Trace { entries, block } => BTreeMap::from([
                ("requests in the trace", entries.len().to_string()),
                ("block-tokens", block.to_string()),
            ]),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report with round figures.
    pub(crate) fn example() -> Report {
        let spread = |p50: f64| Spread {
            count: 100,
            p50,
            p90: p50 * 2.0,
            p99: p50 * 10.0,
            mean: p50 * 1.5,
            max: p50 * 11.25,
        };
        let taken = |pid, name: &str, cpu_s| Taken {
            pid,
            name: name.into(),
            cpu_s,
            cpu_ms_per_request: cpu_s * 10.0,
            cpu_us_per_token: cpu_s * 100.0,
            rss_mib_before: 50.0,
            rss_mib_peak: 60.25,
            rss_mib_after: 58.0,
            ended: false,
        };
        let example = "too many requests".to_owned();
        Report {
            version: "0",
            url: "http://127.0.0.1:8000".into(),
            model: "tiny".into(),
            api: Api::Completions,
            load: Load::Closed { concurrency: 4 }.shown(),
            workload: "random",
            parameters: BTreeMap::from([
                ("prompt-tokens", "256".into()),
                ("output-tokens", "64".into()),
            ]),
            seed: 7,
            interrupted: false,
            duration_s: 2.0,
            requests: Requests { sent: 103, complete: 100, failed: 3, ..Requests::default() },
            ttft_ms: spread(12.3456),
            itl_ms: spread(0.5),
            tpot_ms: spread(0.75),
            e2e_ms: spread(100.0),
            send_delay_ms: None,
            tokens: Tokens { input: 25_600, cached: 12_800, output: 6_400, events: 6_400 },
            throughput: Throughput {
                requests_per_s: 50.0,
                output_tokens_per_s: 3200.0,
                input_tokens_per_s: 12_800.0,
                cached_share: 0.5,
            },
            goodput: Some(Goodput {
                slo: "ttft ≤ 500 ms, itl ≤ 50 ms".into(),
                met: 90,
                share: 0.9,
                requests_per_s: 45.0,
            }),
            errors: vec![ErrorKind { kind: "http_429".into(), count: 3, example }],
            processes: vec![taken(12, "cuelight", 0.5)],
            generator: taken(13, "bench", 0.25),
            over_time: Series { bucket_s: 0.5, events: vec![10, 0, 40], complete: vec![0, 1, 2] },
            curves: Curves {
                ttft: vec![(1.0, 0.25), (12.0, 0.5), (150.0, 1.0)],
                itl: vec![(0.0, 0.5), (0.8, 1.0)],
                ttft_over_time: vec![(0.0, 12.0), (1.5, 150.0)],
            },
        }
    }

    #[test]
    fn json_has_every_figure_by_its_name() {
        let json: serde_json::Value = serde_json::from_str(&example().to_json()).unwrap();
        for (path, value) in [
            ("/requests/complete", 100.0),
            ("/ttft_ms/p90", 24.6912),
            ("/throughput/cached_share", 0.5),
            ("/goodput/share", 0.9),
            ("/errors/0/count", 3.0),
            ("/processes/0/cpu_us_per_token", 50.0),
            ("/generator/cpu_s", 0.25),
            ("/over_time/events/2", 40.0),
        ] {
            assert_eq!(json.pointer(path).and_then(|v| v.as_f64()), Some(value), "{path}");
        }
    }

    #[test]
    fn nothing_measured_is_no_division_by_zero() {
        assert_eq!(per(3, 0.0), 0.0);
        assert_eq!(Spread::of(&Histogram::default()), Spread::default());
    }
}
