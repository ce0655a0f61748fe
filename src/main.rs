//! The `cuelight` command: arguments → config → node. Only here does the process end.

use std::process::ExitCode;

use clap::Parser;
use cuelight::cli::{Cli, Outcome};
use cuelight::node;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Outcome::Exit(code) => ExitCode::from(code),
        Outcome::RunNode(config) => node::run(*config),
    }
}
