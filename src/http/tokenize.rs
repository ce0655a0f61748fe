//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::json;

use super::app::{App, json_response};
use super::errors::ApiError;
use super::openai::tokens::{self, Source};
use super::prepare;
use crate::actors::handle::FrontendHandle;

pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    run(&app, request, |handle, body| {
        let request = tokens::parse_tokenize(body)?;
        let model = prepare::model(handle, &request.model)?;
        let ids = match &request.source {
            Source::Text(text) => prepare::text_ids(&model, text, request.add_special_tokens)?,
            Source::Chat(chat) => prepare::conversation(&model, chat, request.add_special_tokens)?,
        };
        let names: Option<Vec<_>> = request
            .return_token_strs
            .then(|| ids.iter().map(|&id| model.text.token_name(id)).collect());
        Ok(json!({
            "count": ids.len(),
            "max_model_len": model.context,
            "tokens": ids,
            "token_strs": names,
        }))
    })
    .await
}

pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    run(&app, request, |handle, body| {
        let request = tokens::parse_detokenize(body)?;
        let model = prepare::model(handle, &request.model)?;
        let text = model.text.decode(&request.tokens, request.skip_special_tokens);
        let text = text.map_err(|error| prepare::text_error("tokens", &error))?;
        Ok(json!({ "prompt": text }))
    })
    .await
}

type Work = fn(&FrontendHandle, &[u8]) -> Result<serde_json::Value, ApiError>;

/// Always on the pool: nobody waits for tokens here, and a text can be long.
async fn run(app: &App, request: Request, work: Work) -> Result<Response, ApiError> {
    let body = app.body(request).await?;
    let handle = app.handle.clone();
    let value = app.on_pool(move || work(&handle, &body)).await??;
    Ok(json_response(&value))
}
