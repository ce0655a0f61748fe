//! What a node says about itself: health, models, metrics, the tree, its API; and fault injection.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::app::{App, json_response, unknown_route};
use super::errors::{ApiError, Problem};
use super::{openapi, prepare};
use crate::actors::context::NodeContext;
use crate::actors::faults::{self, Fault};
use crate::actors::models::{Readiness, ServedModel};
use crate::metrics;

/// `GET /live`: the process answers.
pub(super) async fn live() -> Response {
    json_response(&json!({ "status": "alive" }))
}

/// `GET /health`: whether this node can serve, model by model.
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let refused = app.handle.node().refused_nodes();
    let (status, body) = health_of(&app.handle.readiness(), app.handle.draining(), &refused);
    let mut response = json_response(&body);
    *response.status_mut() = status;
    response
}

/// Ready as soon as one model is: the others' requests get their own 503.
pub(super) fn health_of(
    models: &[Readiness],
    draining: bool,
    refused: &[(String, String)],
) -> (StatusCode, Value) {
    let ready = models.iter().filter(|model| model.reason.is_none()).count();
    let (code, status) = match (draining, ready) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (false, 0) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
        (false, ready) if ready < models.len() => (StatusCode::OK, "partly_ready"),
        (false, _) => (StatusCode::OK, "ready"),
    };
    let models: Vec<_> = models
        .iter()
        .map(|model| {
            json!({
                "id": model.model,
                "ready": model.reason.is_none(),
                "reason": model.reason,
                "ranks_ready": model.ranks_ready,
                "prefill_ranks_ready": model.prefill_ranks_ready,
                "refused": model.refused,
                "warnings": model.warnings,
            })
        })
        .collect();
    let refused_nodes = refused_nodes(refused);
    let body = json!({
        "status": status, "draining": draining, "models": models, "refused_nodes": refused_nodes,
    });
    (code, body)
}

/// Nodes that cannot join, and why.
pub(super) fn refused_nodes(refused: &[(String, String)]) -> Value {
    refused
        .iter()
        .map(|(address, reason)| json!({ "address": address, "reason": reason }))
        .collect()
}

/// `GET /v1/models`
pub(super) async fn models(State(app): State<Arc<App>>) -> Response {
    let models = app.handle.models();
    let data: Vec<_> = models.iter().map(|model| model_object(model)).collect();
    json_response(&json!({ "object": "list", "data": data }))
}

/// `GET /v1/models/{id}`; names may have slashes.
pub(super) async fn model(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, ApiError> {
    let name = uri.path().strip_prefix("/v1/models/").unwrap_or_default();
    let model = prepare::model(&app.handle, &percent_decoded(name))?;
    Ok(json_response(&model_object(&model)))
}

fn model_object(model: &ServedModel) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "cuelight",
        "max_model_len": model.context,
    })
}

/// Bytes that are no text read as U+FFFD: no model has such a name.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = |byte: u8| char::from(byte).to_digit(16);
        let escaped = match after {
            [high, low, ..] if first == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    text_response(app.handle.encode_metrics(), metrics::CONTENT_TYPE)
}

/// `GET /openapi.json`
pub(super) async fn openapi() -> Response {
    text_response(openapi::DOCUMENT.to_owned(), "application/json")
}

/// `GET /cluster/tree`: JSON; text with `?format=text` or `Accept: text/plain`.
pub(super) async fn tree(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    show_tree(app.handle.node(), &uri, &headers).await
}

/// The tree as it was asked for.
pub(super) async fn show_tree(
    node: &NodeContext,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let text = wants_text(uri.query().unwrap_or_default(), headers)?;
    let Some(tree) = node.cluster_tree().await else {
        let text = "the tree has no root yet; try again when GET /health says ready";
        return Err(ApiError::new(Problem::NotReady, text));
    };
    if text {
        return Ok(text_response(tree.to_text(), "text/plain; charset=utf-8"));
    }
    let body = serde_json::to_vec(&tree)
        .map_err(|error| ApiError::new(Problem::Internal, error.to_string()))?;
    Ok(text_response(body, "application/json"))
}

fn wants_text(query: &str, headers: &HeaderMap) -> Result<bool, ApiError> {
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match (name, value) {
            ("format", "text") => return Ok(true),
            ("format", "json") => return Ok(false),
            ("format", _) => {
                let shown = super::json::shortened(&percent_decoded(value), 60);
                let text = format!("format = {shown}: must be \"json\" or \"text\"");
                return Err(ApiError::of(Problem::InvalidValue, "format", text));
            }
            _ => {}
        }
    }
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    Ok(accept.is_some_and(|accept| accept.trim_start().starts_with("text/plain")))
}

/// `POST /debug/faults`; does not exist unless `faults.enabled`.
pub(super) async fn inject_fault(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    if !app.faults_enabled() {
        return Err(unknown_route(request.uri().path()));
    }
    let body = app.body(request).await?;
    inject(app.handle.node(), &body)
}

/// Injects the fault that a body describes.
pub(super) fn inject(node: &NodeContext, body: &[u8]) -> Result<Response, ApiError> {
    let invalid = |text: String| ApiError::new(Problem::InvalidValue, text);
    // By way of a value: the tag must not depend on the order of the fields.
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| ApiError::new(Problem::MalformedBody, error.to_string()))?;
    let fault = Fault::deserialize(value).map_err(|error| invalid(error.to_string()))?;
    let result = faults::inject(node, fault).map_err(invalid)?;
    Ok(json_response(&json!({ "result": result })))
}

pub(super) fn text_response(body: impl IntoResponse, content_type: &'static str) -> Response {
    let mut response = body.into_response();
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_503_only_when_nothing_can_be_served() {
        let model = |reason: Option<&str>| Readiness {
            model: "m".into(),
            reason: reason.map(str::to_owned),
            ranks_ready: usize::from(reason.is_none()),
            prefill_ranks_ready: 0,
            refused: Vec::new(),
            warnings: Vec::new(),
        };
        let cases = [
            (vec![], false, 503, "not_ready"),
            (vec![model(Some("loading"))], false, 503, "not_ready"),
            (vec![model(None)], false, 200, "ready"),
            (vec![model(None), model(Some("lost"))], false, 200, "partly_ready"),
            (vec![model(None)], true, 503, "draining"),
        ];
        for (models, draining, code, status) in cases {
            let (found, body) = health_of(&models, draining, &[]);
            assert_eq!((found.as_u16(), &body["status"]), (code, &status.into()), "{models:?}");
        }
        let (_, body) = health_of(&[model(Some("loading"))], false, &[]);
        let expected = r#"{"id":"m","ready":false,"reason":"loading","ranks_ready":0,"prefill_ranks_ready":0,"refused":[],"warnings":[]}"#;
        assert_eq!(body["models"][0].to_string(), expected);
    }

    #[test]
    fn a_name_in_a_path_is_percent_decoded() {
        let cases =
            [("a%2Fb/c", "a/b/c"), ("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("%ff", "\u{fffd}")];
        for (text, decoded) in cases {
            assert_eq!(percent_decoded(text), decoded);
        }
    }

    #[test]
    fn the_tree_is_json_unless_text_is_asked_for() {
        let accept = |value: &'static str| {
            HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))])
        };
        let cases = [
            ("", "*/*", Ok(false)),
            ("", "text/plain, */*", Ok(true)),
            ("format=json", "text/plain", Ok(false)),
            ("a=b&format=text", "*/*", Ok(true)),
            ("format=xml", "*/*", Err("format = \"xml\": must be \"json\" or \"text\"".into())),
        ];
        for (query, header, expected) in cases {
            let found = wants_text(query, &accept(header)).map_err(|error| error.message);
            assert_eq!(found, expected, "{query} {header}");
        }
    }
}
