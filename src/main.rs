//! The `cuelight` command: arguments → config → node. Only here does the process end.

use std::path::Path;
use std::process::ExitCode;

use cuelight::cli::{self, Command};
use cuelight::config::{self, Profile};
use cuelight::node;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr());
    let code = match cli.command {
        Command::Serve(args) => {
            return run(args.config.as_deref(), &args.sets(), Profile::Serve);
        }
        Command::Node(args) => return run(Some(&args.config), &args.set, Profile::Node),
        Command::Check(args) => cli::check(&args, &mut out, &mut err),
        Command::Tree(args) => {
            let key = std::env::var("CUELIGHT_API_KEY").ok();
            cli::tree(&args, key.as_deref(), &mut out, &mut err)
        }
        Command::Chaos(args) => {
            let key = std::env::var("CUELIGHT_API_KEY").ok();
            cli::chaos(&args, key, &mut out, &mut err)
        }
        Command::Bench(args) => {
            let key = std::env::var("CUELIGHT_API_KEY").ok();
            cli::bench(&args, key.as_deref(), &mut out, &mut err)
        }
        Command::HashKey => cli::hash_key(&mut std::io::stdin().lock(), &mut out, &mut err),
    };
    ExitCode::from(code)
}

fn run(file: Option<&Path>, sets: &[String], profile: Profile) -> ExitCode {
    match config::load(file, sets, profile) {
        Ok(config) => node::run(config),
        Err(errors) => {
            eprintln!("cuelight: {errors}");
            ExitCode::from(cli::USAGE)
        }
    }
}
