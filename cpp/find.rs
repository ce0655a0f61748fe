//! Where TensorRT-LLM and CUDA's headers are: the search of `build.rs`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Linked in this order.
pub(crate) const LIBRARIES: [&str; 2] = ["tensorrt_llm", "nvinfer_plugin_tensorrt_llm"];

const EXECUTOR: &str = "tensorrt_llm/executor/executor.h";

/// Where to look.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// `TRTLLM_ROOT`: a wheel's folder, a container's, or a source tree with its build.
    pub(crate) root: Option<PathBuf>,
    /// `CUDA_HOME`.
    pub(crate) cuda: Option<PathBuf>,
    /// `VIRTUAL_ENV`.
    pub(crate) environment: Option<PathBuf>,
    /// `/`, for the usual places.
    pub(crate) system: PathBuf,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sdk {
    /// Headers of TensorRT-LLM.
    pub(crate) include: PathBuf,
    /// Its libraries.
    pub(crate) libs: PathBuf,
    /// Headers of CUDA.
    pub(crate) cuda: PathBuf,
    /// Its run-time library.
    pub(crate) cuda_libs: PathBuf,
}

impl Places {
    /// All that is needed, or what to tell the one who builds.
    pub(crate) fn find(&self) -> Result<Sdk, String> {
        let usual = self.usual();
        let roots = self.root.as_ref().map_or(usual, |root| vec![root.clone()]);
        let container = self.system.join("app/tensorrt_llm");
        let mut looked = String::new();
        for root in &roots {
            let headers = ["include", "tensorrt_llm/include", "cpp/include"];
            let include = first(root, &headers, &[EXECUTOR], &mut looked)
                .or_else(|| first(&container, &["include"], &[EXECUTOR], &mut looked));
            let folders = ["libs", "tensorrt_llm/libs", "lib", "cpp/build/tensorrt_llm"];
            let names = LIBRARIES.map(|library| format!("lib{library}.so"));
            let libs = first(root, &folders, &names.each_ref().map(String::as_str), &mut looked);
            if let (Some(include), Some(libs)) = (include, libs) {
                let (cuda, cuda_libs) = self.cuda(&mut looked)?;
                return Ok(Sdk { include, libs, cuda, cuda_libs });
            }
        }
        let about = match (&self.root, roots.is_empty()) {
            (Some(_), _) => "TRTLLM_ROOT does not lead to a TensorRT-LLM",
            (None, true) => "TRTLLM_ROOT is not set, and no Python has a package tensorrt_llm",
            (None, false) => "TRTLLM_ROOT is not set, and none was found in the usual places",
        };
        Err(format!(
            "error: feature `trtllm` needs the headers and libraries of TensorRT-LLM (1.1 to 1.2.1, \
             or 1.3.0rc up to 20).\n{about}. Looked for:\n{looked}Set TRTLLM_ROOT to the installed package, e.g. \
             /usr/local/lib/python3.12/dist-packages/tensorrt_llm (folders `include` and `libs`), or \
             build with the feature `trtllm-standin` and without TRTLLM_ROOT to use the stand-in."
        ))
    }

    /// Headers and libraries of CUDA.
    fn cuda(&self, looked: &mut String) -> Result<(PathBuf, PathBuf), String> {
        let root = self.cuda.clone().unwrap_or_else(|| self.system.join("usr/local/cuda"));
        let headers = first(&root, &["include"], &["cuda_fp16.h"], looked);
        let folders = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
        let libs = first(&root, &folders, &["libcudart.so"], looked);
        headers.zip(libs).ok_or_else(|| {
            format!(
                "error: feature `trtllm` needs the headers of CUDA and libcudart.so. Looked for:\n{looked}Set \
                 CUDA_HOME to the toolkit."
            )
        })
    }

    /// Packages `tensorrt_llm` of the Pythons around here.
    fn usual(&self) -> Vec<PathBuf> {
        let mut pythons = vec![self.system.join("usr/local/lib"), self.system.join("usr/lib")];
        if let Some(environment) = &self.environment {
            pythons.insert(0, environment.join("lib"));
        }
        let mut places = Vec::new();
        for lib in pythons {
            let entries = fs::read_dir(&lib).into_iter().flatten().flatten();
            let mut versions: Vec<PathBuf> = entries
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
                .map(|entry| entry.path())
                .collect();
            versions.sort();
            for version in versions {
                for packages in ["dist-packages", "site-packages"] {
                    let place = version.join(packages).join("tensorrt_llm");
                    if place.is_dir() {
                        places.push(place);
                    }
                }
            }
        }
        places
    }
}

/// The first of `folders` that has all `files`; `looked` says what was found and what was not.
fn first(root: &Path, folders: &[&str], files: &[&str], looked: &mut String) -> Option<PathBuf> {
    folders.iter().map(|folder| root.join(folder)).find(|folder| {
        files.iter().all(|file| {
            let path = folder.join(file);
            let found = path.exists();
            let word = if found { "found  " } else { "missing" };
            let _ = writeln!(looked, "  {word} {}", path.display());
            found
        })
    })
}
