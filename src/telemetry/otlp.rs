//! Spans on their way to a collector: a bounded queue, a thread of its own, and no patience.
//!
//! Serving never waits for a collector. A span that ends is put into the queue or, if that is full,
//! dropped; the thread sends batches with a deadline each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter as Otlp, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span, SpanData,
    SpanExporter, SpanProcessor,
};
use tokio::runtime::{Builder, Handle, Runtime};
use tracing::{info, warn};

use super::TelemetryError;
use crate::config::Log;
use crate::metrics::SPANS;

/// Longest wait for a collector when the process ends.
pub(super) const FLUSH: Duration = Duration::from_secs(2);
/// Longest wait for one batch, retries included.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a span may wait for others to go with it.
const GATHER: Duration = Duration::from_secs(1);
/// Spans in one batch.
const BATCH: usize = 512;

/// The export of spans; dropping it sends what is left, for at most [`FLUSH`].
pub(super) struct Spans {
    provider: SdkTracerProvider,
    /// `None` only while dropping.
    runtime: Option<Runtime>,
}

/// Starts the export to `endpoint`.
pub(super) fn start(
    log: &Log,
    endpoint: &str,
    node: &str,
) -> Result<(Spans, SdkTracer), TelemetryError> {
    // The server's own runtime may be busy, and is gone when the last spans are sent.
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("cuelight-otlp")
        .enable_all()
        .build()
        .map_err(TelemetryError::Thread)?;
    let otlp = Otlp::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(traces_url(endpoint))
        .with_timeout(PATIENCE)
        .build()
        .map_err(|source| TelemetryError::Exporter { endpoint: endpoint.into(), source })?;
    let exporter = Exporter {
        otlp: Arc::new(otlp),
        runtime: runtime.handle().clone(),
        endpoint: endpoint.to_owned(),
        health: Health::default(),
    };
    let queue = BatchConfigBuilder::default()
        .with_max_queue_size(log.otlp_queue)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(GATHER)
        .build();
    let resource = Resource::builder()
        .with_service_name("cuelight")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
        .build();
    // A request that comes with a traced parent is traced, whatever the share.
    let share = Sampler::TraceIdRatioBased(log.otlp_sample);
    let provider = SdkTracerProvider::builder()
        .with_span_processor(Counted {
            batches: BatchSpanProcessor::builder(exporter).with_batch_config(queue).build(),
            limit: log.otlp_queue as u64,
        })
        .with_sampler(Sampler::ParentBased(Box::new(share)))
        .with_resource(resource)
        .build();
    let tracer = provider.tracer("cuelight");
    Ok((Spans { provider, runtime: Some(runtime) }, tracer))
}

/// Where spans go: the endpoint itself if it has a path, else the path that collectors expect.
fn traces_url(endpoint: &str) -> String {
    let has_path = endpoint
        .parse::<hyper::Uri>()
        .is_ok_and(|url| url.path().len() > 1 || url.query().is_some());
    if has_path {
        endpoint.into()
    } else {
        endpoint.trim_end_matches('/').to_owned() + "/v1/traces"
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH) {
            warn!(%error, "the last spans were not sent");
        }
        // What still hangs is given up: nobody waits for it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Counts what waits and what is dropped, which the library's queue does not tell.
#[derive(Debug)]
struct Counted {
    batches: BatchSpanProcessor,
    limit: u64,
}

impl SpanProcessor for Counted {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && SPANS.wait(self.limit) {
            self.batches.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Sends batches on a runtime of its own: the thread that calls it has none.
#[derive(Debug)]
struct Exporter {
    otlp: Arc<Otlp>,
    runtime: Handle,
    endpoint: String,
    health: Health,
}

/// Whether the collector takes what it gets.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Batches lost since the last one that was sent.
    lost: AtomicU64,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let (otlp, spans) = (self.otlp.clone(), batch.len() as u64);
        SPANS.taken(spans);
        let sent = self.runtime.spawn(async move { otlp.export(batch).await }).await;
        let sent = sent.unwrap_or_else(|gone| Err(OTelSdkError::InternalFailure(gone.to_string())));
        if sent.is_err() {
            SPANS.drop(spans);
        }
        self.health.report(&self.endpoint, &sent);
        sent
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Called before the first batch, while nobody else holds the exporter.
        if let Some(otlp) = Arc::get_mut(&mut self.otlp) {
            otlp.set_resource(resource);
        }
    }
}

impl Health {
    /// Says once that a collector is gone, and once that it is back.
    pub(super) fn report(&self, endpoint: &str, sent: &OTelSdkResult) {
        match sent {
            Err(error) => {
                if self.lost.fetch_add(1, Relaxed) == 0 {
                    warn!(endpoint, %error, "spans cannot be sent and are dropped");
                }
            }
            Ok(()) => {
                let lost_batches = self.lost.swap(0, Relaxed);
                if lost_batches > 0 {
                    info!(endpoint, lost_batches, "spans are sent again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_that_collectors_expect_is_added_unless_there_is_one() {
        for (endpoint, url) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("http://c/v1/traces", "http://c/v1/traces"),
            ("http://c/own?x=1", "http://c/own?x=1"),
        ] {
            assert_eq!(traces_url(endpoint), url);
        }
    }
}
