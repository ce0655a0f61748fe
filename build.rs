//! Builds `cpp/` for the features `trtllm` and `trtllm-standin`; without them there is nothing to do.

use std::process::ExitCode;

#[cfg(feature = "trtllm-bridge")]
#[path = "cpp/build.rs"]
mod cpp;

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(trtllm_standin)");
    #[cfg(feature = "trtllm-bridge")]
    if let Err(problem) = cpp::build() {
        eprintln!("{problem}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
