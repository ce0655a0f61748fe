//! A client that believes nothing: HTTP/1.1, server-sent events, and what an answer must look like.

mod answer;
mod http;
mod sse;
mod transcript;

pub(super) use answer::{Answer, Ending, difference};
pub(super) use http::{Body, ClientError, Endpoint, get, open, post};
pub(super) use sse::Lines;
pub(super) use transcript::{BodyEnd, Transcript, unary};
