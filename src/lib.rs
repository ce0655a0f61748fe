//! Cuelight serves large language models over the OpenAI API, from one supervised tree of actors.
//!
//! In reading order, and in the order uses go: `node` → `http` → `actors` → `text`, `engine`, `kvxfer` → `ids`.

pub mod actors;
pub mod bench;
pub mod chaos;
pub mod cli;
pub mod config;
pub mod engine;
pub mod http;
pub mod ids;
pub mod kvxfer;
pub mod metrics;
pub mod node;
pub mod router;
pub mod task;
pub mod telemetry;
pub mod text;
pub mod word;
