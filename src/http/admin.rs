//! What operators and probes ask of a node of any kind, on an address of its own (`node.admin`).

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::json;

use super::app::{json_response, unknown_route, wrong_method};
use super::errors::ApiError;
use super::info;
use crate::actors::context::NodeContext;
use crate::actors::handle::FrontendHandle;
use crate::metrics;

struct Admin {
    node: Arc<NodeContext>,
    frontend: Option<FrontendHandle>,
}

/// Serves until it is dropped.
///
/// # Errors
/// The listening socket cannot be used.
pub async fn serve(
    listener: std::net::TcpListener,
    node: Arc<NodeContext>,
    frontend: Option<FrontendHandle>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = Router::new()
        .route("/live", get(info::live))
        .route("/health", get(health))
        .route("/metrics", get(show_metrics))
        .route("/cluster/tree", get(tree))
        .route("/debug/faults", post(inject_fault))
        .fallback(async |uri: Uri| unknown_route(uri.path()))
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::new(Admin { node, frontend }));
    axum::serve(listener, router).await
}

/// On a node with a front end what clients are told; else whether the worker can be used.
async fn health(State(admin): State<Arc<Admin>>) -> Response {
    let refused = admin.node.refused_nodes();
    let (status, body) = match &admin.frontend {
        Some(handle) => info::health_of(&handle.readiness(), handle.draining(), &refused),
        None => worker_health(admin.node.worker_up(), admin.node.draining(), &refused),
    };
    let mut response = json_response(&body);
    *response.status_mut() = status;
    response
}

fn worker_health(
    up: bool,
    draining: bool,
    refused: &[(String, String)],
) -> (StatusCode, serde_json::Value) {
    let (code, status) = match (draining, up) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
        (false, true) => (StatusCode::OK, "ready"),
    };
    let refused_nodes = info::refused_nodes(refused);
    let body = json!({
        "status": status, "draining": draining, "worker_up": up, "refused_nodes": refused_nodes,
    });
    (code, body)
}

async fn show_metrics(State(admin): State<Arc<Admin>>) -> Response {
    let text = match &admin.frontend {
        Some(handle) => handle.encode_metrics(),
        None => admin.node.metrics.encode(),
    };
    info::text_response(text, metrics::CONTENT_TYPE)
}

async fn tree(
    State(admin): State<Arc<Admin>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    info::show_tree(&admin.node, &uri, &headers).await
}

/// Does not exist unless `faults.enabled`.
async fn inject_fault(
    State(admin): State<Arc<Admin>>,
    uri: Uri,
    body: Bytes,
) -> Result<Response, ApiError> {
    if !admin.node.config.faults.enabled {
        return Err(unknown_route(uri.path()));
    }
    info::inject(&admin.node, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_healthy_once_it_is_up_and_until_it_drains() {
        let cases =
            [(false, false, 503), (true, false, 200), (true, true, 503), (false, true, 503)];
        for (up, draining, want) in cases {
            assert_eq!(worker_health(up, draining, &[]).0.as_u16(), want, "{up} {draining}");
        }
    }
}
