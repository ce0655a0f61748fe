//! The native engine's speed next to what this machine can do.
//!
//! `cargo bench --bench engine` writes a random-weight Llama of 0.5 B parameters in BF16 to a
//! temporary directory, measures the machine (memory reads, fused multiply-adds, a peer's matrix
//! product), then load, decode and prefill, and prints a table.
//!
//! ```text
//! --quick            a tiny model and few rounds: a smoke test
//! --threads N        default: all
//! --model DIR        use the checkpoint that --write-model wrote
//! --write-model DIR  write the checkpoint (config.json, model.safetensors) and end
//! --table FILE       write the times of the steps of --model DIR (default: the shipped model) and end:
//!                    what worker.sim.table takes
//! ```

mod checkpoint;
mod ffi;
mod machine;
mod measure;
mod table;

use std::path::{Path, PathBuf};

use checkpoint::Llama;
use cuelight::engine::native::Precision;
use measure::{Engine, Setup};

fn main() {
    let mut args = std::env::args().skip(1);
    let mut setup = Setup {
        llama: Llama::HALF_BILLION,
        quick: false,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        model: None,
    };
    let (mut write, mut table) = (None, None);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--bench" => {} // cargo says so
            "--quick" => (setup.quick, setup.llama) = (true, Llama::QUICK),
            "--threads" => setup.threads = value().parse().expect("--threads needs a number"),
            "--model" => setup.model = Some(PathBuf::from(value())),
            "--write-model" => write = Some(PathBuf::from(value())),
            "--table" => table = Some(PathBuf::from(value())),
            _ => panic!("unknown argument {arg}; see the top of benches/engine/main.rs"),
        }
    }
    if let Some(dir) = write {
        setup.llama.write(&dir).expect("cannot write the checkpoint");
        println!("{} parameters in {}", setup.llama.parameters(), dir.display());
        return;
    }
    if let Some(file) = table {
        let shipped = || Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cuelight-tiny");
        let dir = setup.model.unwrap_or_else(shipped);
        return table::write(&mut Engine::load(&dir, setup.threads, Precision::Weights), &file);
    }
    measure::run(&setup);
}
