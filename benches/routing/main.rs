//! How well requests are routed: real schedulers and prefix caches in simulated time, the product's
//! router in its modes next to Dynamo's cost function and an oracle, on the same traces.
//!
//! `cargo bench --bench routing [-- --ranks 8,64] [-- --plots DIR] [-- --trace FILE] [-- --decode-weights 0.5]`

mod plot;
mod policy;
mod simulate;
mod trace;

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;

use crate::trace::Trace;

/// Compares ways to choose a rank, in simulated time.
#[derive(Debug, Parser)]
struct Cli {
    /// Numbers of ranks
    #[arg(long, value_delimiter = ',', default_values_t = [8, 64])]
    ranks: Vec<usize>,
    /// Seed of the traces
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A trace in Mooncake's format, instead of those that are made up
    #[arg(long)]
    trace: Option<PathBuf>,
    /// How many of its requests
    #[arg(long, default_value_t = 2000)]
    requests: usize,
    /// Other weights of blocks in use for mode `kv`, each in rows of its own
    #[arg(long, value_delimiter = ',')]
    decode_weights: Vec<f64>,
    /// Where plots go
    #[arg(long)]
    plots: Option<PathBuf>,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    println!("seed {}\n", cli.seed);
    println!(
        "| trace | ranks | requests | chosen by | TTFT mean ms | p50 | p99 | ITL mean ms | p99 | hit rate | simulated s | µs/choice |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for &ranks in &cli.ranks {
        let traces = match &cli.trace {
            Some(path) => vec![trace::recorded(path, ranks, cli.requests)?],
            None => vec![trace::sessions(ranks, cli.seed), trace::prefixes(ranks, cli.seed)],
        };
        for trace in traces {
            let curves = compare(&trace, ranks, &cli.decode_weights);
            if let Some(dir) = &cli.plots {
                let file = format!("{}-{ranks}.svg", trace.name.replace(' ', "-"));
                let title = format!("{}, {ranks} ranks", trace.name);
                std::fs::write(dir.join(file), plot::distribution(&title, &curves))?;
            }
        }
    }
    Ok(())
}

fn compare(trace: &Trace, ranks: usize, decode_weights: &[f64]) -> Vec<plot::Curve> {
    let mut curves = Vec::new();
    let others = decode_weights.iter().map(|weight| format!("kv, decode {weight}"));
    for name in policy::NAMES.into_iter().map(str::to_owned).chain(others) {
        let outcome = simulate::run(trace, ranks, &name);
        let at =
            |times: &[f64], share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e3;
        let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len() as f64 * 1e3;
        let (ttft, itl) = (&outcome.ttft, &outcome.itl);
        println!(
            "| {} | {ranks} | {} | {name} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} | {:.1} % | {:.0} | {:.1} |",
            trace.name,
            outcome.ttft.len(),
            mean(ttft),
            at(ttft, 0.5),
            at(ttft, 0.99),
            mean(itl),
            at(itl, 0.99),
            outcome.hit_rate * 1e2,
            outcome.end,
            outcome.choice_us,
        );
        curves.push((name, outcome.ttft));
    }
    curves
}
