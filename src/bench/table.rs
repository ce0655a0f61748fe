//! A report as text for people.

use std::fmt::Write as _;

use super::process::Taken;
use super::report::{Report, Spread};

/// The share of its one thread's time above which the generator itself may be what is slow.
const BUSY: f64 = 0.7;

/// The whole text.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = write(report, &mut text);
    text
}

fn write(report: &Report, to: &mut String) -> std::fmt::Result {
    head(report, to)?;
    writeln!(
        to,
        "\n{:<14}{:>11}{:>11}{:>11}{:>11}{:>11}",
        "ms", "p50", "p90", "p99", "mean", "max"
    )?;
    let delay = report.send_delay_ms.as_ref().map(|spread| ("send delay", spread));
    let rows = [
        ("TTFT", &report.ttft_ms),
        ("ITL", &report.itl_ms),
        ("TPOT", &report.tpot_ms),
        ("end to end", &report.e2e_ms),
    ];
    for (name, spread) in rows.into_iter().chain(delay) {
        row(name, spread, to)?;
    }
    writeln!(to)?;
    rates(report, to)?;
    processes(report, to)
}

fn head(report: &Report, to: &mut String) -> std::fmt::Result {
    let Report { url, model, requests, .. } = report;
    let parameters = report.parameters.iter().map(|(name, value)| format!("{name} {value}"));
    let parameters = parameters.collect::<Vec<_>>().join(", ");
    let api = format!("{:?}", report.api).to_lowercase();
    writeln!(to, "{:<14}{url}, model {model}, {api}", "server")?;
    writeln!(to, "{:<14}{}", "load", report.load)?;
    writeln!(to, "{:<14}{}: {parameters}, seed {}", "workload", report.workload, report.seed)?;
    write!(to, "{:<14}{} complete", "requests", count(requests.complete))?;
    for (number, what) in [
        (requests.failed, "failed"),
        (requests.not_sent, "not sent"),
        (requests.cut, "cut by the signal"),
    ] {
        if number > 0 || what == "failed" {
            write!(to, ", {} {what}", count(number))?;
        }
    }
    writeln!(to, " in {:.1} s", report.duration_s)?;
    for (number, what) in [
        (requests.other_length, "answers had more or fewer tokens than asked for"),
        (
            requests.without_usage,
            "answers had no usage: their tokens are events, their prompts not counted",
        ),
    ] {
        if number > 0 {
            writeln!(to, "{:<14}{} {what}", "note", count(number))?;
        }
    }
    let busy = report.generator.cpu_s / report.duration_s;
    if busy > BUSY {
        let share = busy * 100.0;
        writeln!(
            to,
            "{:<14}this generator was busy for {share:.0} % of the time: times include its own",
            "note"
        )?;
    }
    Ok(())
}

fn row(name: &str, spread: &Spread, to: &mut String) -> std::fmt::Result {
    let Spread { p50, p90, p99, mean, max, .. } = *spread;
    write!(to, "{name:<14}")?;
    for value in [p50, p90, p99, mean, max] {
        let shown = if spread.count == 0 { "–".to_owned() } else { ms(value) };
        write!(to, "{shown:>11}")?;
    }
    writeln!(to)
}

/// With three digits or more that matter.
fn ms(value: f64) -> String {
    let digits = match value {
        0.0..10.0 => 3,
        10.0..100.0 => 2,
        _ => 1,
    };
    format!("{value:.digits$}")
}

fn rates(report: &Report, to: &mut String) -> std::fmt::Result {
    let Report { throughput: rate, tokens, .. } = report;
    writeln!(
        to,
        "{:<14}{:.1} requests/s, {} output tokens/s, {} input tokens/s",
        "throughput",
        rate.requests_per_s,
        count(rate.output_tokens_per_s.round() as u64),
        count(rate.input_tokens_per_s.round() as u64),
    )?;
    if let Some(good) = &report.goodput {
        let share = good.share * 100.0;
        let line = format!("{share:.1} % of requests, {:.1} requests/s", good.requests_per_s);
        writeln!(to, "{:<14}{line}, meet {}", "goodput", good.slo)?;
    }
    let share = rate.cached_share * 100.0;
    writeln!(to, "{:<14}{share:.1} % of {} input tokens", "cached", count(tokens.input))?;
    for error in &report.errors {
        writeln!(
            to,
            "{:<14}{} {}, the first: {}",
            "errors",
            count(error.count),
            error.kind,
            error.example
        )?;
    }
    Ok(())
}

fn processes(report: &Report, to: &mut String) -> std::fmt::Result {
    writeln!(
        to,
        "\n{:<24}{:>10}{:>12}{:>12}   RSS MiB before / peak / after",
        "process", "CPU s", "ms/request", "µs/token"
    )?;
    let own = [("this generator".to_owned(), &report.generator)];
    let name = |taken: &Taken| {
        let ended = if taken.ended { " (ended)" } else { "" };
        format!("{} {}{ended}", taken.pid, taken.name)
    };
    let others = report.processes.iter().map(|taken| (name(taken), taken));
    for (name, taken) in others.chain(own) {
        let Taken { cpu_s, cpu_ms_per_request: per_request, cpu_us_per_token: per_token, .. } =
            taken;
        let Taken { rss_mib_before, rss_mib_peak, rss_mib_after, .. } = taken;
        writeln!(
            to,
            "{name:<24}{cpu_s:>10.2}{per_request:>12.3}{per_token:>12.2}   \
             {rss_mib_before:.0} / {rss_mib_peak:.0} / {rss_mib_after:.0}"
        )?;
    }
    Ok(())
}

/// With a comma between thousands.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_table_shows_every_figure() {
        let report = super::super::report::tests::example();
        expect![[r#"
            server        http://127.0.0.1:8000, model tiny, completions
            load          closed loop, 4 at a time
            workload      random: output-tokens 64, prompt-tokens 256, seed 7
            requests      100 complete, 3 failed in 2.0 s

            ms                    p50        p90        p99       mean        max
            TTFT                12.35      24.69      123.5      18.52      138.9
            ITL                 0.500      1.000      5.000      0.750      5.625
            TPOT                0.750      1.500      7.500      1.125      8.438
            end to end          100.0      200.0     1000.0      150.0     1125.0

            throughput    50.0 requests/s, 3,200 output tokens/s, 12,800 input tokens/s
            goodput       90.0 % of requests, 45.0 requests/s, meet ttft ≤ 500 ms, itl ≤ 50 ms
            cached        50.0 % of 25,600 input tokens
            errors        3 http_429, the first: too many requests

            process                      CPU s  ms/request    µs/token   RSS MiB before / peak / after
            12 cuelight                   0.50       5.000       50.00   50 / 60 / 58
            this generator                0.25       2.500       25.00   50 / 60 / 58
        "#]].assert_eq(&text(&report));
    }

    #[test]
    fn what_makes_figures_doubtful_is_said() {
        let mut report = super::super::report::tests::example();
        report.requests.not_sent = 2;
        report.requests.cut = 1000;
        report.requests.other_length = 4;
        report.requests.without_usage = 5;
        report.generator.cpu_s = 1.9;
        report.send_delay_ms = Some(Spread::default());
        let text = text(&report);
        for words in [
            "100 complete, 3 failed, 2 not sent, 1,000 cut by the signal in 2.0 s",
            "note          4 answers had more or fewer tokens",
            "note          5 answers had no usage",
            "note          this generator was busy for 95 % of the time",
            "send delay              –          –",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn thousands_have_commas() {
        for (number, shown) in [(0, "0"), (999, "999"), (1000, "1,000"), (1234567, "1,234,567")] {
            assert_eq!(count(number), shown);
        }
    }
}
