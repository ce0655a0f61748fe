//! The command line: what may be typed, and the commands that need no node.
//!
//! Results go to standard output, everything else to standard error. The exit codes are here, in one
//! place; `main` ends the process with them.

mod bench;
mod chaos;
mod check;
mod hash_key;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use bench::{BenchArgs, FAILED, bench};
pub use chaos::{ChaosArgs, VIOLATED, chaos};
pub use check::check;
pub use hash_key::hash_key;
pub use tree::tree;

/// Wrong arguments or a wrong configuration (`EX_USAGE`).
pub const USAGE: u8 = 64;
/// Nobody answers (`EX_UNAVAILABLE`).
pub const UNAVAILABLE: u8 = 69;

/// Serves large language models over the OpenAI API.
#[derive(Debug, Parser)]
#[command(name = "cuelight", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve one model on this machine: front end and worker in one process
    Serve(ServeArgs),
    /// Run what a configuration file says
    Node(NodeArgs),
    /// List everything that is wrong with a configuration
    Check(CheckArgs),
    /// Show the live supervision tree of a node
    Tree(TreeArgs),
    /// Break a cluster on purpose under a checked load, and report whether any client could tell
    Chaos(Box<ChaosArgs>),
    /// Load a server that speaks the OpenAI API, and measure what its clients see
    Bench(Box<BenchArgs>),
    /// Read an API key on standard input and print its digest for `frontend.api_keys`
    HashKey,
    /// Run one rank's engine for the node that started this process
    #[command(hide = true)]
    Engine,
}

/// `cuelight serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Hugging Face checkpoint directory; short for --set worker.model=DIR
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key, over the file; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `cuelight node`
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The node's name, in a file that holds several
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Set one key, over the file; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `cuelight check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file; without one, what `serve` would run is checked
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check this node only, in a file that holds several
    #[arg(long, value_name = "NAME", requires = "config")]
    pub node: Option<String>,
    /// Set one key, over the file; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print all keys with their defaults as Markdown, and check nothing
    #[arg(long, conflicts_with_all = ["config", "node", "set"])]
    pub reference: bool,
}

/// `cuelight tree`
#[derive(Debug, Args)]
pub struct TreeArgs {
    /// The node's front end
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Print the JSON as it came
    #[arg(long)]
    pub json: bool,
}

impl ServeArgs {
    /// The keys to set: `--set` in their order, then what `--model` is short for.
    pub fn sets(&self) -> Vec<String> {
        // A value of `--set` is YAML, a directory's name is not: quotes keep it as it is.
        let quoted = |dir: &String| format!("worker.model='{}'", dir.replace('\'', "''"));
        self.set.iter().cloned().chain(self.model.iter().map(quoted)).collect()
    }
}

/// Reads the command line. Help and version print themselves.
///
/// # Errors
/// The exit code to end with: 0 after help or version, [`USAGE`] after wrong arguments.
pub fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| {
        // Nowhere to complain to if the terminal is gone.
        let _ = error.print();
        ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::{Profile, load};

    fn serve(args: &[&str]) -> ServeArgs {
        let all = ["cuelight", "serve"].iter().chain(args);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Serve(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_model_directory_is_taken_as_it_is() {
        for dir in ["models/cuelight-tiny", "a b", "it's: {x}", "@y", "null"] {
            let sets = serve(&["--model", dir]).sets();
            let shown = match load(None, &sets, Profile::Serve) {
                Ok(config) => config.worker.unwrap().model.display().to_string(),
                Err(errors) => errors.problems[0].value.clone().unwrap(),
            };
            assert_eq!(shown, dir);
        }
    }

    #[test]
    fn set_may_be_repeated_and_model_comes_last() {
        let args = serve(&["--set", "a=1", "--model", "m", "--set", "b=2", "--config", "f"]);
        assert_eq!(args.sets(), ["a=1", "b=2", "worker.model='m'"]);
        assert_eq!(args.config, Some("f".into()));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let lines: [&[&str]; 6] = [
            &[],
            &["node"],
            &["check", "--reference", "--set", "a=1"],
            &["check", "--node", "a"],
            &["serve", "x"],
            &["run"],
        ];
        for args in lines {
            let all = ["cuelight"].iter().chain(args);
            assert!(Cli::try_parse_from(all).unwrap_err().use_stderr(), "{args:?}");
        }
    }
}
