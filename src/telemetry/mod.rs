//! Log lines on standard error, and traces to a collector if one is configured.
//!
//! Log lines and traces are filtered apart: `log.level: off` still exports spans, and a collector
//! never sees more than the spans of [`EXPORTED`].

mod otlp;

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, filter, fmt};

use crate::config::{Log, LogFormat};

/// The spans that are exported, if their target is this crate.
pub const EXPORTED: &[&str] = &["request", "step", "load", "migration", "kv_transfer"];

/// Why there is no logging.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// `log.level` is no filter.
    #[error("log.level = {level}: {source}")]
    Filter {
        /// What was configured.
        level: String,
        /// What is wrong with it.
        source: filter::ParseError,
    },
    /// The exporter cannot be set up.
    #[error("log.otlp_endpoint = {endpoint}: {source}")]
    Exporter {
        /// What was configured.
        endpoint: String,
        /// What is wrong with it.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// The exporter's thread cannot be started.
    #[error("the thread that exports spans cannot be started: {0}")]
    Thread(std::io::Error),
    /// [`init`] was called before.
    #[error("logging is already set up in this process: {0}")]
    Twice(tracing_subscriber::util::TryInitError),
}

/// Keeps telemetry going. Dropping it sends what is left, for at most 2 s.
#[must_use = "spans are exported until this is dropped"]
pub struct Guard {
    _spans: Option<otlp::Spans>,
}

type BoxLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Sets up logging and tracing for the whole process. `node` names it in traces.
///
/// # Errors
/// See [`TelemetryError`]; nothing is set up then.
pub fn init(log: &Log, node: &str) -> Result<Guard, TelemetryError> {
    let color = std::io::stderr().is_terminal();
    let lines = lines(log, BoxMakeWriter::new(std::io::stderr), color)?;
    let (layers, guard) = layers(log, node, lines)?;
    tracing_subscriber::registry().with(layers).try_init().map_err(TelemetryError::Twice)?;
    Ok(guard)
}

fn layers(
    log: &Log,
    node: &str,
    lines: BoxLayer,
) -> Result<(Vec<BoxLayer>, Guard), TelemetryError> {
    let Some(endpoint) = &log.otlp_endpoint else {
        return Ok((vec![lines], Guard { _spans: None }));
    };
    let (spans, tracer) = otlp::start(log, endpoint, node)?;
    let ours = filter::filter_fn(|meta| {
        meta.is_span() && is_ours(meta.target()) && EXPORTED.contains(&meta.name())
    });
    // Without the hint every trace! of every dependency would be considered.
    let ours = ours.with_max_level_hint(LevelFilter::DEBUG);
    let export = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(ours);
    Ok((vec![lines, export.boxed()], Guard { _spans: Some(spans) }))
}

fn is_ours(target: &str) -> bool {
    target.strip_prefix("cuelight").is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn lines(log: &Log, writer: BoxMakeWriter, color: bool) -> Result<BoxLayer, TelemetryError> {
    let filter = EnvFilter::try_new(directives(&log.level));
    let filter =
        filter.map_err(|source| TelemetryError::Filter { level: log.level.clone(), source })?;
    let layer = fmt::layer().with_writer(writer);
    Ok(match log.format {
        LogFormat::Text => layer.with_ansi(color).with_filter(filter).boxed(),
        LogFormat::Json => {
            let layer = layer.with_ansi(false).json().flatten_event(true);
            layer.with_current_span(false).with_span_list(true).with_filter(filter).boxed()
        }
    })
}

/// `log.level` as a filter: a bare level is that of this crate; its dependencies say no less than
/// a warning, unless they are named. ractor's sessions warn of every peer that leaves, which the
/// cluster says itself.
fn directives(level: &str) -> String {
    let mut least = "warn,ractor_cluster=error";
    let mut all = Vec::new();
    for part in level.split(',').map(str::trim) {
        match part.parse::<LevelFilter>() {
            Ok(LevelFilter::OFF | LevelFilter::ERROR) => least = part,
            Ok(_) => all.push(format!("cuelight={part}")),
            Err(_) => all.push(part.to_owned()),
        }
    }
    all.insert(0, least.to_owned());
    all.join(",")
}

#[cfg(test)]
mod tests;
