//! The arguments of `cuelight bench`, checked: what a run is told, or which flag is wrong and why.

use std::fmt::Display;
use std::io::{BufReader, IsTerminal};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use super::{ApiName, ArrivalsName, BenchArgs, WorkloadName};
use crate::bench::{Api, Arrivals, Lengths, Load, OWN_KEYS, Options, Tree, Workload, read_trace};

/// Clients of a closed loop without `--concurrency`.
const CONCURRENCY: usize = 16;
/// Requests of a run without `--requests`, `--duration` and a trace.
const REQUESTS: u64 = 200;
/// Tokens of a shared beginning without `--prefix-tokens`.
const PREFIX_TOKENS: u32 = 1024;
/// Likewise for other flags.
const PREFIX_GROUPS: u32 = 8;
const PROMPT_TOKENS: Lengths = Lengths::Fixed(256);
const OUTPUT_TOKENS: Lengths = Lengths::Fixed(128);
const TURNS: Lengths = Lengths::Fixed(5);
const THINK_MS: Lengths = Lengths::Fixed(0);
const BLOCK_TOKENS: u32 = 512;
const MAX_IN_FLIGHT: usize = 1024;
/// Where flags of shared beginnings belong.
const PREFIXED: &str = "used with --workload prefix-tree or sessions";
/// Most of what there may be many of: clients, requests in flight, groups.
const MANY: u64 = 1_000_000;

/// Fails with the flag, its value and the rule, unless `holds`.
fn rule(holds: bool, flag: &str, value: impl Display, rule: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("--{flag} {value}: must be {rule}")) }
}

impl BenchArgs {
    /// Checks what clap cannot, and reads the trace.
    pub(super) fn options(&self, key: Option<&str>) -> Result<Options, String> {
        let (host, addresses) = self.server()?;
        let workload = self.workload()?;
        let is_trace = matches!(workload, Workload::Trace { .. });
        let many = format!("from 1 to {MANY}");
        rule((1..=1 << 31).contains(&self.vocab), "vocab", self.vocab, "from 1 to 2147483648")?;
        rule(
            (1..=86_400).contains(&self.timeout),
            "timeout",
            self.timeout,
            "from 1 to 86400 seconds",
        )?;
        rule(self.warmup <= MANY, "warmup", self.warmup, "at most 1000000")?;
        rule(self.warmup == 0 || !is_trace, "warmup", self.warmup, "0 with a trace")?;
        if let Some(requests) = self.requests {
            rule(requests > 0, "requests", requests, "at least 1")?;
        }
        if let Some(seconds) = self.duration {
            let holds = seconds > 0.0 && seconds <= 1e7;
            rule(holds, "duration", seconds, "above 0 and at most 10000000 seconds")?;
        }
        let unlimited = self.requests.is_none() && self.duration.is_none() && !is_trace;
        Ok(Options {
            url: self.url.clone(),
            addresses,
            host,
            model: self.model.clone(),
            api: match self.api {
                ApiName::Completions => Api::Completions,
                ApiName::Chat => Api::Chat,
            },
            load: self.load(is_trace, &many)?,
            workload,
            requests: self.requests.or(unlimited.then_some(REQUESTS)),
            duration: self.duration.map(Duration::from_secs_f64),
            warmup: self.warmup,
            vocab: self.vocab,
            ignore_eos: !self.no_ignore_eos,
            extra: self.extra()?,
            headers: self.headers(key)?,
            seed: self.seed,
            slo: self.slo,
            pids: self.pid.clone(),
            timeout: Duration::from_secs(self.timeout),
            terminal: std::io::stderr().is_terminal(),
        })
    }

    fn server(&self) -> Result<(String, Vec<SocketAddr>), String> {
        let rule = "must be http://HOST:PORT (https is not supported)";
        let bad = || format!("--url {}: {rule}", self.url);
        let bare = self.url.strip_prefix("http://").ok_or_else(bad)?.trim_end_matches('/');
        let host = bare.strip_suffix("/v1").unwrap_or(bare);
        if host.is_empty()
            || !host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c))
        {
            return Err(bad());
        }
        let with_port = if host.ends_with(']') || !host.contains(':') {
            format!("{host}:80")
        } else {
            host.to_owned()
        };
        let found = with_port.to_socket_addrs().map_err(|error| format!("{}: {error}", bad()))?;
        let addresses: Vec<_> = found.collect();
        if addresses.is_empty() { Err(bad()) } else { Ok((host.to_owned(), addresses)) }
    }

    fn load(&self, is_trace: bool, many: &str) -> Result<Load, String> {
        let in_flight = self.max_in_flight.unwrap_or(MAX_IN_FLIGHT);
        rule((1..=MANY).contains(&(in_flight as u64)), "max-in-flight", in_flight, many)?;
        let arrivals = match (self.rate, self.speedup) {
            (Some(rate), _) => {
                let holds = (1e-6..=1e6).contains(&rate);
                rule(holds, "rate", rate, "from 0.000001 to 1000000 a second")?;
                match self.arrivals {
                    None | Some(ArrivalsName::Poisson) => Arrivals::Poisson(rate),
                    Some(ArrivalsName::Constant) => Arrivals::Constant(rate),
                }
            }
            (None, Some(speedup)) => {
                rule(is_trace, "speedup", speedup, "used with --trace")?;
                let holds = (1e-6..=1e6).contains(&speedup);
                rule(holds, "speedup", speedup, "from 0.000001 to 1000000")?;
                Arrivals::Trace(speedup)
            }
            (None, None) if is_trace && self.concurrency.is_none() => Arrivals::Trace(1.0),
            (None, None) => {
                if let Some(in_flight) = self.max_in_flight {
                    rule(false, "max-in-flight", in_flight, "used with --rate or a trace's times")?;
                }
                let concurrency = self.concurrency.unwrap_or(CONCURRENCY);
                rule((1..=MANY).contains(&(concurrency as u64)), "concurrency", concurrency, many)?;
                return Ok(Load::Closed { concurrency });
            }
        };
        Ok(Load::Open { arrivals, max_in_flight: in_flight })
    }

    fn workload(&self) -> Result<Workload, String> {
        let prompt = self.prompt_tokens.unwrap_or(PROMPT_TOKENS);
        let output = self.output_tokens.unwrap_or(OUTPUT_TOKENS);
        rule(prompt.least() > 0, "prompt-tokens", prompt, "at least 1")?;
        rule(output.least() > 0, "output-tokens", output, "at least 1")?;
        let kind = match (self.workload, &self.trace) {
            (Some(WorkloadName::Trace), None) => {
                return Err("--workload trace: must come with --trace FILE".into());
            }
            (Some(kind), Some(file)) if kind != WorkloadName::Trace => {
                let file = file.display();
                return Err(format!(
                    "--trace {file}: must be used with --workload trace or without"
                ));
            }
            (None, Some(_)) => WorkloadName::Trace,
            (kind, _) => kind.unwrap_or(WorkloadName::Random),
        };
        self.no_stray_flags(kind)?;
        match kind {
            WorkloadName::Random => Ok(Workload::Random { prompt, output }),
            WorkloadName::PrefixTree => {
                let tree = self.tree(self.prefix_tokens.unwrap_or(PREFIX_TOKENS))?;
                Ok(Workload::PrefixTree { tree, prompt, output })
            }
            WorkloadName::Sessions => {
                let turns = self.turns.unwrap_or(TURNS);
                let think_ms = self.think_ms.unwrap_or(THINK_MS);
                rule(turns.least() > 0, "turns", turns, "at least 1")?;
                let tree = self.prefix_tokens.filter(|tokens| *tokens > 0);
                for (flag, value) in
                    [("prefix-groups", self.prefix_groups), ("prefix-depth", self.prefix_depth)]
                {
                    if let Some(value) = value.filter(|_| tree.is_none()) {
                        rule(false, flag, value, "used with --prefix-tokens")?;
                    }
                }
                let tree = tree.map(|tokens| self.tree(tokens)).transpose()?;
                Ok(Workload::Sessions { tree, prompt, output, turns, think_ms })
            }
            WorkloadName::Trace => self.recorded(self.trace.as_deref().unwrap_or(Path::new(""))),
        }
    }

    /// A flag that would change nothing is a mistake.
    fn no_stray_flags(&self, kind: WorkloadName) -> Result<(), String> {
        use WorkloadName::{PrefixTree, Random, Sessions, Trace};
        let shown = |value: Option<&dyn Display>| value.map(ToString::to_string);
        let number = |value: &Option<u32>| shown(value.as_ref().map(|value| value as _));
        let lengths = |value: &Option<Lengths>| shown(value.as_ref().map(|value| value as _));
        let made: &[_] = &[Random, PrefixTree, Sessions];
        for (flag, value, kinds, rule) in [
            ("prompt-tokens", lengths(&self.prompt_tokens), made, "left out with a trace"),
            ("output-tokens", lengths(&self.output_tokens), made, "left out with a trace"),
            ("turns", lengths(&self.turns), &[Sessions], "used with --workload sessions"),
            ("think-ms", lengths(&self.think_ms), &[Sessions], "used with --workload sessions"),
            ("block-tokens", number(&self.block_tokens), &[Trace], "used with --trace"),
            ("prefix-tokens", number(&self.prefix_tokens), &[PrefixTree, Sessions], PREFIXED),
            ("prefix-groups", number(&self.prefix_groups), &[PrefixTree, Sessions], PREFIXED),
            ("prefix-depth", number(&self.prefix_depth), &[PrefixTree, Sessions], PREFIXED),
        ] {
            if let Some(value) = value.filter(|_| !kinds.contains(&kind)) {
                return Err(format!("--{flag} {value}: must be {rule}"));
            }
        }
        Ok(())
    }

    fn tree(&self, tokens: u32) -> Result<Tree, String> {
        let groups = self.prefix_groups.unwrap_or(PREFIX_GROUPS);
        let depth = self.prefix_depth.unwrap_or(1);
        rule(
            (1..=MANY).contains(&u64::from(groups)),
            "prefix-groups",
            groups,
            "from 1 to 1000000",
        )?;
        rule((1..=1 << 20).contains(&tokens), "prefix-tokens", tokens, "from 1 to 1048576")?;
        rule((1..=32).contains(&depth), "prefix-depth", depth, "from 1 to 32")?;
        Ok(Tree { groups, tokens, depth })
    }

    fn recorded(&self, file: &Path) -> Result<Workload, String> {
        let block = self.block_tokens.unwrap_or(BLOCK_TOKENS);
        rule((1..=1 << 20).contains(&block), "block-tokens", block, "from 1 to 1048576")?;
        let bad = |why: String| format!("--trace {}: {why}", file.display());
        let opened = std::fs::File::open(file).map_err(|error| bad(error.to_string()))?;
        let entries = read_trace(BufReader::new(opened), block).map_err(|e| bad(e.to_string()))?;
        Ok(Workload::Trace { entries, block })
    }

    fn extra(&self) -> Result<Map<String, Value>, String> {
        let Some(text) = &self.extra_body else { return Ok(Map::new()) };
        let Ok(Value::Object(extra)) = serde_json::from_str(text) else {
            return Err(format!("--extra-body {text}: must be a JSON object"));
        };
        match OWN_KEYS.into_iter().find(|key| extra.contains_key(*key)) {
            Some(key) => {
                Err(format!("--extra-body {text}: must be without {key}, which the load decides"))
            }
            None => Ok(extra),
        }
    }

    fn headers(&self, key: Option<&str>) -> Result<Vec<(String, String)>, String> {
        let mut headers = Vec::new();
        headers.extend(key.map(|key| ("authorization".to_owned(), format!("Bearer {key}"))));
        for header in &self.header {
            let parts = header.split_once(':').filter(|(name, _)| !name.trim().is_empty());
            let plain = !header.chars().any(char::is_control);
            let (name, value) = parts.filter(|_| plain).ok_or_else(|| {
                format!("--header {header:?}: must be NAME:VALUE, without control characters")
            })?;
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parsed(words: &[&str]) -> Result<BenchArgs, clap::Error> {
        Line::try_parse_from(["bench"].iter().chain(words)).map(|line| line.args)
    }

    fn options(words: &[&str]) -> Result<Options, String> {
        parsed(words).unwrap().options(Some("k"))
    }

    #[test]
    fn without_flags_it_is_a_closed_loop_that_ends() {
        let options = options(&[]).unwrap();
        assert_eq!(options.load, Load::Closed { concurrency: CONCURRENCY });
        assert_eq!((options.requests, options.duration), (Some(REQUESTS), None));
        assert_eq!(options.workload.name(), "random");
        assert_eq!(options.headers, [("authorization".to_owned(), "Bearer k".to_owned())]);
        assert!(options.ignore_eos && options.addresses[0].port() == 8000);
    }

    #[test]
    fn loads_and_workloads_are_what_the_flags_say() {
        let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mooncake.jsonl");
        let open = |arrivals| Load::Open { arrivals, max_in_flight: 1024 };
        for (words, load, workload, requests) in [
            (&["--rate", "5"][..], open(Arrivals::Poisson(5.0)), "random", Some(REQUESTS)),
            (
                &["--rate", "5", "--arrivals", "constant", "--duration", "2"],
                open(Arrivals::Constant(5.0)),
                "random",
                None,
            ),
            (&["--trace", trace], open(Arrivals::Trace(1.0)), "trace", None),
            (&["--trace", trace, "--speedup", "9"], open(Arrivals::Trace(9.0)), "trace", None),
            (
                &["--trace", trace, "--concurrency", "3"],
                Load::Closed { concurrency: 3 },
                "trace",
                None,
            ),
            (
                &["--workload", "sessions", "--requests", "7"],
                Load::Closed { concurrency: CONCURRENCY },
                "sessions",
                Some(7),
            ),
        ] {
            let options = options(words).unwrap();
            let found = (options.load, options.workload.name(), options.requests);
            assert_eq!(found, (load, workload, requests), "{words:?}");
        }
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_flag_and_the_rule() {
        for (words, message) in [
            (&["--url", "https://x"][..], "--url https://x: must be http://HOST:PORT"),
            (&["--url", "http://a b:1"], "--url http://a b:1: must be http://HOST:PORT"),
            (&["--concurrency", "0"], "--concurrency 0: must be from 1 to 1000000"),
            (&["--rate", "0"], "--rate 0: must be from 0.000001"),
            (&["--rate", "NaN"], "--rate NaN: must be from 0.000001"),
            (&["--speedup", "2"], "--speedup 2: must be used with --trace"),
            (&["--requests", "0"], "--requests 0: must be at least 1"),
            (&["--duration=-1"], "--duration -1: must be above 0"),
            (&["--prompt-tokens", "0:5"], "--prompt-tokens 0:5: must be at least 1"),
            (&["--workload", "trace"], "--workload trace: must come with --trace FILE"),
            (
                &["--workload", "random", "--trace", "f"],
                "--trace f: must be used with --workload trace",
            ),
            (&["--trace", "no/such"], "--trace no/such: No such file"),
            (
                &["--workload", "prefix-tree", "--prefix-depth", "0"],
                "--prefix-depth 0: must be from 1",
            ),
            (&["--extra-body", "[]"], "--extra-body []: must be a JSON object"),
            (
                &["--extra-body", "{\"stream\":1}"],
                "--extra-body {\"stream\":1}: must be without stream",
            ),
            (&["--header", "x"], "--header \"x\": must be NAME:VALUE"),
            (&["--turns", "3"], "--turns 3: must be used with --workload sessions"),
            (
                &["--prefix-groups", "3"],
                "--prefix-groups 3: must be used with --workload prefix-tree",
            ),
            (
                &["--workload", "sessions", "--prefix-depth", "2"],
                "--prefix-depth 2: must be used with --prefix-tokens",
            ),
            (&["--max-in-flight", "3"], "--max-in-flight 3: must be used with --rate"),
            (
                &["--trace", "f", "--output-tokens", "3:4"],
                "--output-tokens 3:4: must be left out with a trace",
            ),
            (&["--vocab", "0"], "--vocab 0: must be from 1"),
        ] {
            let error = options(words).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
        for words in [
            &["--slo", "ttft"][..],
            &["--output-tokens", "9:1"],
            &["--concurrency", "1", "--rate", "1"],
            &["--rate", "1", "--speedup", "1"],
            &["--api", "x"],
            &["--arrivals", "constant"],
            &["--concurrency", "1", "--max-in-flight", "1"],
        ] {
            assert!(parsed(words).is_err(), "{words:?}");
        }
    }
}
