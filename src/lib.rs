//! Cuelight serves large language models over the OpenAI API, from one supervised tree of actors.
//!
//! In reading order, and in the order uses go: `http` → `actors` → `text`, `engine` → `ids`.

pub mod cli;
pub mod config;
pub mod engine;
pub mod ids;
pub mod metrics;
pub mod telemetry;
