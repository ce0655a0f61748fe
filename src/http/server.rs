//! The accept loop: connections, TLS, hyper's HTTP/1.1, graceful end.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::app::App;
use super::errors::ApiError;
use super::read;
use super::stalled::Stalled;
use super::tls::{self, TlsError};
use crate::actors::failure::Failure;
use crate::actors::handle::FrontendHandle;
use crate::config::Frontend;
use crate::metrics::Refusal;

/// Largest head of a request, and most that is read or written at once: memory per connection.
const BUFFER_BYTES: usize = 16 << 10;
/// Rest after a failed accept: the usual reason, too many open files, does not pass at once.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The listening socket cannot be used.
    #[error("frontend.http: cannot use the listening socket: {0}")]
    Listener(#[from] io::Error),
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Serves clients until `shutdown` is true (or its sender is gone); then closes idle connections,
/// and returns when every running response has left. Its caller bounds that wait by dropping it:
/// the connections end with it.
///
/// # Errors
/// Before the first connection only: a listener or a certificate that cannot be used.
pub async fn serve(
    listener: std::net::TcpListener,
    handle: FrontendHandle,
    config: &Frontend,
    faults_enabled: bool,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let tls = config.tls.as_ref().map(tls::load_tls).transpose()?.map(TlsAcceptor::from);
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    // A permit is a connection; the semaphore cannot count further than this.
    let places = |most: usize| Semaphore::new(most.min(Semaphore::MAX_PERMITS >> 3));
    let connections = Arc::new(places(config.max_connections.min(u32::MAX as usize)));
    let turned_away = Arc::new(places(config.max_turned_away));
    let app = Arc::new(App::new(handle, config.clone(), faults_enabled));
    let shared = Arc::new(Shared {
        router: app.router(),
        app,
        tls,
        header_timeout: config.header_timeout,
        stall_timeout: config.request_timeout,
        shutdown: shutdown.clone(),
    });
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let next = async {
            // Without a place nothing is accepted: the next client waits in the kernel's backlog,
            // also while as many as may be are being turned away.
            let spare = tokio::select! {
                biased;
                _ = connections.acquire() => None,
                spare = turned_away.clone().acquire_owned() => spare.ok(),
            };
            let accepted = listener.accept().await;
            // A place may have become free, or been taken, while nobody came.
            match (connections.clone().try_acquire_owned(), spare) {
                (Ok(permit), _) => (Some((permit, false)), accepted),
                (Err(_), spare) => (spare.map(|permit| (permit, true)), accepted),
            }
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            () = stopped(&mut shutdown) => break,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            (Some((permit, is_over)), Ok((stream, _))) => {
                tasks.spawn(shared.clone().connection(stream, permit, is_over));
            }
            (None, Ok(_)) => {} // the last place went while it came: closed at once
            (_, Err(error)) => {
                warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// What all connections share.
struct Shared {
    app: Arc<App>,
    router: Router,
    tls: Option<TlsAcceptor>,
    header_timeout: Duration,
    stall_timeout: Duration,
    shutdown: watch::Receiver<bool>,
}

impl Shared {
    /// One connection, from its handshake to its end. Errors here are the client's: it left, or
    /// spoke something else.
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        permit: OwnedSemaphorePermit,
        is_over: bool,
    ) {
        let metrics = &self.app.handle.metrics().http;
        let gauge = if is_over { &metrics.turned_away } else { &metrics.connections };
        let _open = Open::new(gauge.clone(), permit);
        // Events are written whole: waiting to fill a segment only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "connection was lost as it came");
            return;
        }
        let stalled = self.app.handle.metrics().http.stalled.clone();
        let stream = Stalled::new(stream, self.stall_timeout, stalled);
        match &self.tls {
            // On the heap, so that connections without TLS do not hold room for its state.
            Some(tls) => Box::pin(self.https(tls, stream, is_over)).await,
            None => self.http(stream, is_over).await,
        }
    }

    async fn https(self: &Arc<Self>, tls: &TlsAcceptor, stream: Stalled<TcpStream>, is_over: bool) {
        match tokio::time::timeout(self.header_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.http(stream, is_over).await,
            Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
            Err(_) => {
                self.app.handle.metrics().http.refused.inc(Refusal::SlowRequest);
                debug!("TLS handshake took too long");
            }
        }
    }

    async fn http<S: AsyncRead + AsyncWrite + Unpin>(self: &Arc<Self>, stream: S, is_over: bool) {
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let shared = self.clone();
            async move {
                let request = request.map(Body::new);
                // On the heap until there is a response: hyper keeps room for this future as long
                // as the connection is open.
                let answer = async {
                    match is_over {
                        true => shared.turn_away(request).await,
                        false => shared.app.answer(&shared.router, request).await,
                    }
                };
                Ok::<_, Infallible>(Box::pin(answer).await)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(BUFFER_BYTES)
            .keep_alive(!is_over)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut shutdown = self.shutdown.clone();
        let result = tokio::select! {
            biased;
            result = connection.as_mut() => result,
            () = stopped(&mut shutdown) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            debug!(%error, "connection ended early");
        }
    }
}

impl Shared {
    /// The answer to a client over `frontend.max_connections`. Its body is read if it could be one that
    /// is served: closing a connection with unread bytes may take the answer back.
    async fn turn_away(&self, request: Request<Body>) -> Response {
        let body = read::discard(request.into_body(), self.app.config().max_body_bytes);
        let _ = tokio::time::timeout(self.header_timeout, body).await; // too slow: as good
        self.app.handle.metrics().http.refused.inc(Refusal::Connections);
        let limit = self.app.config().max_connections;
        let what = "open connections (frontend.max_connections)";
        let retry_after = self.app.config().retry_after;
        let failure = Failure::TooManyRequests { what, current: limit, limit, retry_after };
        ApiError::from(failure).into_response()
    }
}

/// Ready when the value is true, or nobody can set it any more.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// Counts a connection for as long as it is open.
struct Open {
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(gauge: Gauge, permit: OwnedSemaphorePermit) -> Self {
        gauge.inc();
        Self { gauge, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
