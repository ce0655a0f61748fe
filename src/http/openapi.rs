//! The OpenAPI document, written by hand and compared with the routes.

/// What `GET /openapi.json` answers.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");
