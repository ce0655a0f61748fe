//! The `cuelight` command: arguments → config → node. Only here does the process end.

use std::process::ExitCode;

use cuelight::cli::{self, Command};
use cuelight::config::{self, Config, ConfigErrors, Profile};
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
            return run(config::load(args.config.as_deref(), &args.sets(), Profile::Serve));
        }
        Command::Node(args) => {
            return run(match &args.node {
                None => config::load(Some(&args.config), &args.set, Profile::Node),
                Some(name) => config::load_node(&args.config, name, &args.set),
            });
        }
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
        Command::Engine => return node::run_engine(),
        Command::HashKey => cli::hash_key(&mut std::io::stdin().lock(), &mut out, &mut err),
    };
    ExitCode::from(code)
}

fn run(config: Result<Config, ConfigErrors>) -> ExitCode {
    match config {
        Ok(config) => node::run(config),
        Err(errors) => {
            eprintln!("cuelight: {errors}");
            ExitCode::from(cli::USAGE)
        }
    }
}
