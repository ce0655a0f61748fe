//! The HTTP side: sockets, OpenAI's wire formats, errors. It owns no state of a request's life.
//!
//! ```text
//! server (accept, TLS, hyper) → app (request id, API key, routes) → generate | tokenize | info
//!                                openai: bytes ⇄ requests and answers, without a socket
//!                                outbox: Reply → connection
//! ```

pub mod admin;
mod app;
mod auth;
pub mod errors;
mod generate;
mod info;
mod json;
pub mod openai;
mod openapi;
mod outbox;
mod pool;
mod prepare;
mod random;
mod read;
pub mod server;
mod stalled;
mod tls;
mod tokenize;

pub use server::{ServeError, serve};
pub use tls::{TlsError, load_tls};
