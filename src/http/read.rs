//! Reading a request's body: declared as JSON, within its size and its time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;

use super::errors::{ApiError, Problem};

/// A body that is too large is read and thrown away up to this many times the limit: a client that
/// is still sending would else see a reset connection instead of its 413.
const DISCARD_FACTOR: usize = 8;

/// The bytes of a JSON body.
///
/// # Errors
/// [`Problem::ContentType`], [`Problem::BodyTooLarge`], [`Problem::BodyTimeout`], and
/// [`Problem::MalformedBody`] for one that broke off.
pub(super) async fn json(
    request: Request,
    limit: usize,
    timeout: Duration,
) -> Result<Bytes, ApiError> {
    let (parts, body) = request.into_parts();
    // Headers hold on to the connection's read buffer: nobody needs them from here on.
    let wrong_type = content_type(&parts.headers).err();
    let declared = declared_length(&parts.headers);
    let asks_first = parts.headers.contains_key(header::EXPECT);
    drop(parts);
    let whole = async {
        if declared.is_some_and(|length| length > limit) {
            if !asks_first {
                discard(body, limit.saturating_mul(DISCARD_FACTOR)).await;
            }
            return Err(too_large(limit));
        }
        let bytes = collect(body, limit).await?;
        wrong_type.map_or(Ok(bytes), Err)
    };
    let late = |_| {
        let text = format!(
            "the body did not arrive within {} s (frontend.header_timeout_s)",
            timeout.as_secs()
        );
        ApiError::new(Problem::BodyTimeout, text)
    };
    tokio::time::timeout(timeout, whole).await.map_err(late)?
}

fn content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    // Simple clients leave it out, and mean JSON.
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    let is_json = essence.eq_ignore_ascii_case("application/json")
        || (essence.len() > 5 && essence.to_ascii_lowercase().ends_with("+json"));
    if is_json {
        return Ok(());
    }
    let shown = super::json::shortened(text, 60);
    let text = format!("content-type {shown} is not supported; send application/json");
    Err(ApiError::new(Problem::ContentType, text))
}

fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(limit: usize) -> ApiError {
    let text = format!("the body is larger than {limit} bytes (frontend.max_body_bytes)");
    ApiError::new(Problem::BodyTooLarge, text)
}

async fn collect(mut body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut first = Bytes::new();
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let broken = |_| ApiError::new(Problem::MalformedBody, "the body broke off");
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if first.len().max(all.len()) + data.len() > limit {
            discard(body, limit.saturating_mul(DISCARD_FACTOR)).await;
            return Err(too_large(limit));
        }
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
    }
    // One frame, the usual case, is not copied.
    Ok(if all.is_empty() { first } else { all.into() })
}

/// Reads up to `most` bytes and keeps none.
pub(super) async fn discard(mut body: Body, most: usize) {
    let mut read = 0;
    while read < most {
        match body.frame().await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(content_type: Option<&str>, length: Option<&str>, body: &str) -> Request {
        let mut request = Request::new(Body::from(body.to_owned()));
        for (name, value) in
            [(header::CONTENT_TYPE, content_type), (header::CONTENT_LENGTH, length)]
        {
            if let Some(value) = value {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
        }
        request
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_body_is_json_and_within_its_size() {
        let cases = [
            (Some("application/json"), None, "12345678", Ok("12345678")),
            (Some("Application/JSON; charset=utf-8"), None, "{}", Ok("{}")),
            (Some("application/vnd.x+json"), None, "{}", Ok("{}")),
            (None, None, "", Ok("")),
            (Some("text/plain"), None, "{}", Err(Problem::ContentType)),
            (Some("application/x-www-form-urlencoded"), None, "{}", Err(Problem::ContentType)),
            (None, None, "123456789", Err(Problem::BodyTooLarge)),
            (None, Some("9"), "", Err(Problem::BodyTooLarge)),
        ];
        for (content_type, length, body, expected) in cases {
            let result = json(request(content_type, length, body), 8, LONG).await;
            let result = result.map_err(|error| error.problem);
            assert_eq!(result, expected.map(Bytes::from), "{content_type:?} {body:?}");
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_ends_in_a_timeout() {
        struct Never;
        impl http_body::Body for Never {
            type Data = Bytes;
            type Error = std::convert::Infallible;
            fn poll_frame(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
                std::task::Poll::Pending
            }
        }
        let request = Request::new(Body::new(Never));
        let result = json(request, 8, Duration::from_millis(5)).await;
        assert_eq!(result.unwrap_err().problem, Problem::BodyTimeout);
    }
}
