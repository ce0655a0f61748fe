//! Finds TensorRT-LLM and builds the shim against it, or against the stand-in.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Where a release of TensorRT-LLM was found.
struct Sdk {
    include: PathBuf,
    libs: PathBuf,
    cuda: PathBuf,
}

const EXECUTOR: &str = "tensorrt_llm/executor/executor.h";
const LIBRARY: &str = "libtensorrt_llm.so";

pub(crate) fn build() -> Result<(), String> {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=TRTLLM_ROOT");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let root = env::var_os("TRTLLM_ROOT").filter(|root| !root.is_empty()).map(PathBuf::from);
    let mut build = cxx_build::bridge("src/engine/trtllm/ffi.rs");
    build.std("c++17").warnings(true).extra_warnings(true).warnings_into_errors(true).include(".");
    // GCC 12 takes the empty payload of a std::optional for a use of it; cpp/check compiles without optimizing that far.
    build.flag_if_supported("-Wno-maybe-uninitialized");
    for part in ["shim", "bridge"] {
        add(&mut build, part, |name| !name.starts_with("stream_"))?;
    }
    if root.is_none() && cfg!(feature = "trtllm-standin") {
        println!("cargo:rustc-cfg=trtllm_standin");
        build.include("cpp/standin/include").file("cpp/shim/stream_host.cc");
        add(&mut build, "standin/src", |_| true)?;
        build.compile("cuelight_trtllm");
        return Ok(());
    }
    let sdk = find(root)?;
    build.file("cpp/shim/stream_cuda.cc");
    // Warnings in other people's headers are not ours.
    for headers in [&sdk.include, &sdk.cuda] {
        build.flag(format!("-isystem{}", headers.display()));
    }
    build.define("_GLIBCXX_USE_CXX11_ABI", "1");
    build.compile("cuelight_trtllm");
    println!("cargo:rustc-link-search=native={}", sdk.libs.display());
    for library in ["tensorrt_llm", "nvinfer_plugin_tensorrt_llm"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
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

/// A wheel's folder, a container, or a source tree with its build.
fn find(root: Option<PathBuf>) -> Result<Sdk, String> {
    let told = root.is_some();
    let roots = root.map_or_else(usual_places, |root| vec![root]);
    let mut looked = String::new();
    for root in &roots {
        let include =
            first(root, &["include", "tensorrt_llm/include", "cpp/include"], EXECUTOR, &mut looked);
        let include = include
            .or_else(|| first(Path::new("/app/tensorrt_llm"), &["include"], EXECUTOR, &mut looked));
        let libs = first(
            root,
            &["libs", "tensorrt_llm/libs", "lib", "cpp/build/tensorrt_llm"],
            LIBRARY,
            &mut looked,
        );
        if let (Some(include), Some(libs)) = (include, libs) {
            return Ok(Sdk { include, libs, cuda: cuda(&mut looked)? });
        }
    }
    let about = match (told, roots.is_empty()) {
        (true, _) => "TRTLLM_ROOT does not lead to a TensorRT-LLM",
        (false, true) => "TRTLLM_ROOT is not set, and no Python has a package tensorrt_llm",
        (false, false) => "TRTLLM_ROOT is not set, and none was found in the usual places",
    };
    Err(format!(
        "error: feature `trtllm` needs the headers and libraries of TensorRT-LLM (at most 1.2.1 or \
         1.3.0rc20).\n{about}. Looked for:\n{looked}Set TRTLLM_ROOT to the installed package, e.g. \
         /usr/local/lib/python3.12/dist-packages/tensorrt_llm (folders `include` and `libs`), or \
         build with the feature `trtllm-standin` and without TRTLLM_ROOT to use the stand-in."
    ))
}

fn first(root: &Path, folders: &[&str], file: &str, looked: &mut String) -> Option<PathBuf> {
    for folder in folders {
        let folder = root.join(folder);
        let found = folder.join(file).exists();
        let _ = writeln!(
            looked,
            "  {} {}",
            if found { "found  " } else { "missing" },
            folder.join(file).display()
        );
        if found {
            return Some(folder);
        }
    }
    None
}

fn cuda(looked: &mut String) -> Result<PathBuf, String> {
    let told = env::var_os("CUDA_HOME").map(PathBuf::from);
    let roots = told.map_or_else(|| vec![PathBuf::from("/usr/local/cuda")], |root| vec![root]);
    for root in &roots {
        if let Some(found) = first(root, &["include"], "cuda_fp16.h", looked) {
            return Ok(found);
        }
    }
    Err(format!(
        "error: feature `trtllm` needs the headers of CUDA. Looked for:\n{looked}Set CUDA_HOME to the \
         toolkit."
    ))
}

/// Packages `tensorrt_llm` of the Pythons around here.
fn usual_places() -> Vec<PathBuf> {
    let mut pythons = vec![PathBuf::from("/usr/local/lib"), PathBuf::from("/usr/lib")];
    if let Some(environment) = env::var_os("VIRTUAL_ENV") {
        pythons.insert(0, Path::new(&environment).join("lib"));
    }
    let mut places = Vec::new();
    for lib in pythons {
        let versions = fs::read_dir(&lib).into_iter().flatten().flatten();
        for version in versions.filter(|v| v.file_name().to_string_lossy().starts_with("python3")) {
            for packages in ["dist-packages", "site-packages"] {
                let place = version.path().join(packages).join("tensorrt_llm");
                if place.is_dir() {
                    places.push(place);
                }
            }
        }
    }
    places
}
