//! Finds TensorRT-LLM and builds the shim against it, or against the stand-in.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "find.rs"]
mod find;

pub(crate) fn build() -> Result<(), String> {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=TRTLLM_ROOT");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let root = env::var_os("TRTLLM_ROOT").filter(|root| !root.is_empty()).map(PathBuf::from);
    let mut build = cxx_build::bridge("src/engine/trtllm/ffi.rs");
    build.std("c++17").warnings(true).extra_warnings(true).include(".");
    // GCC 12 takes the empty payload of a std::optional for a use of it; cpp/check compiles without optimizing that far.
    build.flag_if_supported("-Wno-maybe-uninitialized");
    for part in ["shim", "bridge"] {
        add(&mut build, part, |name| !name.starts_with("stream_"))?;
    }
    if root.is_none() && cfg!(feature = "trtllm-standin") {
        println!("cargo:rustc-cfg=trtllm_standin");
        build.warnings_into_errors(true); // other people's headers must not stop a build
        build.include("cpp/standin/include").file("cpp/shim/stream_host.cc");
        add(&mut build, "standin/src", |_| true)?;
        build.compile("cuelight_trtllm");
        return Ok(());
    }
    let sdk = find::Places {
        root,
        cuda: env::var_os("CUDA_HOME").map(PathBuf::from),
        environment: env::var_os("VIRTUAL_ENV").map(PathBuf::from),
        system: PathBuf::from("/"),
    }
    .find()?;
    build.file("cpp/shim/stream_cuda.cc");
    // Warnings in other people's headers are not ours.
    for headers in [&sdk.include, &sdk.cuda] {
        build.flag(format!("-isystem{}", headers.display()));
    }
    build.define("_GLIBCXX_USE_CXX11_ABI", "1");
    build.compile("cuelight_trtllm");
    println!("cargo:rustc-link-search=native={}", sdk.libs.display());
    for library in find::LIBRARIES {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    // Inline functions of TensorRT-LLM's headers call it.
    println!("cargo:rustc-link-search=native={}", sdk.cuda_libs.display());
    println!("cargo:rustc-link-lib=dylib=cudart");
    // The transfer back ends are opened by their bare names.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", sdk.libs.display());
    Ok(())
}

fn add(build: &mut cc::Build, part: &str, wanted: fn(&str) -> bool) -> Result<(), String> {
    let folder = Path::new("cpp").join(part);
    let entries = fs::read_dir(&folder).map_err(|e| format!("cannot read {folder:?}: {e}"))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".cc") && wanted(&name) {
            build.file(&file);
        }
    }
    Ok(())
}
