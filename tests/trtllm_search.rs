//! A build with the feature `trtllm` finds a TensorRT-LLM where it may be, or says what is missing and where.
#![allow(clippy::unwrap_used)] // a test

#[path = "../cpp/find.rs"]
mod find;

use std::fs;
use std::path::{Path, PathBuf};

use find::{Places, Sdk};

const EXECUTOR: &str = "include/tensorrt_llm/executor/executor.h";
const LIBRARY: &str = "libs/libtensorrt_llm.so";
const PLUGINS: &str = "libs/libnvinfer_plugin_tensorrt_llm.so";

/// A machine with these files.
struct Machine(PathBuf);

impl Machine {
    fn new(test: &str, files: &[&str]) -> Self {
        let root = std::env::temp_dir().join(format!("cuelight-{test}-{}", std::process::id()));
        let machine = Self(root);
        for file in files {
            let path = machine.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        machine
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn places(&self, root: Option<&str>) -> Places {
        Places {
            root: root.map(|root| self.at(root)),
            cuda: Some(self.at("cuda")),
            environment: None,
            system: self.0.clone(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn under(folder: &str, files: &[&str]) -> Vec<String> {
    files.iter().map(|file| format!("{folder}/{file}")).collect()
}

fn machine(test: &str, folder: &str, files: &[&str]) -> Machine {
    let mut all = under(folder, files);
    all.extend(under("cuda", &["include/cuda_fp16.h", "lib64/libcudart.so"]));
    Machine::new(test, &all.iter().map(String::as_str).collect::<Vec<_>>())
}

fn sdk(machine: &Machine, package: &str) -> Sdk {
    Sdk {
        include: machine.at(package).join("include"),
        libs: machine.at(package).join("libs"),
        cuda: machine.at("cuda/include"),
        cuda_libs: machine.at("cuda/lib64"),
    }
}

#[test]
fn a_package_is_found_by_its_root_or_by_its_python() {
    let package = "usr/local/lib/python3.12/dist-packages/tensorrt_llm";
    let machine = machine("found", package, &[EXECUTOR, LIBRARY, PLUGINS]);
    let expected = Ok(sdk(&machine, package));
    assert_eq!(machine.places(Some(package)).find(), expected);
    assert_eq!(
        machine.places(Some(Path::new(package).parent().unwrap().to_str().unwrap())).find(),
        expected
    );
    assert_eq!(machine.places(None).find(), expected);
}

#[test]
fn without_any_the_error_says_what_to_set() {
    let machine = Machine::new("none", &["usr/lib/python3/nothing"]);
    let error = machine.places(None).find().unwrap_err();
    assert!(error.contains("TRTLLM_ROOT is not set, and no Python has a package"), "{error}");
    assert!(error.contains("Set TRTLLM_ROOT to the installed package"), "{error}");
    assert!(error.contains("trtllm-standin"), "{error}");
}

#[test]
fn what_a_package_lacks_is_named() {
    let all = [EXECUTOR, LIBRARY, PLUGINS];
    for (i, missing) in all.iter().enumerate() {
        let rest: Vec<&str> = all.iter().filter(|file| *file != missing).copied().collect();
        let machine = machine(&format!("lacks-{i}"), "package", &rest);
        let error = machine.places(Some("package")).find().unwrap_err();
        assert!(error.contains("TRTLLM_ROOT does not lead to a TensorRT-LLM"), "{error}");
        let line = |word: &str, file: &str| {
            format!("  {word} {}\n", machine.at("package").join(file).display())
        };
        assert!(error.contains(&line("missing", missing)), "{missing}: {error}");
        assert!(!error.contains(&line("found  ", missing)), "{missing}: {error}");
    }
}

#[test]
fn a_machine_without_cuda_is_told_so() {
    let machine = machine("cuda", "package", &[EXECUTOR, LIBRARY, PLUGINS]);
    let places = Places { cuda: Some(machine.at("elsewhere")), ..machine.places(Some("package")) };
    let error = places.find().unwrap_err();
    assert!(error.contains("needs the headers of CUDA"), "{error}");
    assert!(error.contains("elsewhere/include/cuda_fp16.h"), "{error}");
    assert!(error.contains("Set CUDA_HOME"), "{error}");
    fs::remove_file(machine.at("cuda/lib64/libcudart.so")).unwrap();
    let error = machine.places(Some("package")).find().unwrap_err();
    assert!(error.contains("cuda/lib64/libcudart.so"), "{error}");
}
