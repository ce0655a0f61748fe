//! Reads the configuration's file and looks at the files that it names.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Larger than any configuration.
const LARGEST: u64 = 1 << 20;

/// Reads the text of a configuration file; an error is what is wrong, with the way out.
pub(super) fn text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot be read: {error}; see to its path and permissions"))?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("is larger than {LARGEST} bytes; is it a configuration?"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("is not UTF-8 (byte {} in line {line}); save it as UTF-8", good.len() + 1)
    })
}

/// Looks for the shipped model; an error says where.
pub(super) fn shipped_model(places: &[PathBuf]) -> Result<PathBuf, String> {
    let found = places.iter().find(|place| place.join("config.json").is_file());
    found.cloned().ok_or_else(|| {
        let looked: Vec<String> = places.iter().map(|p| absolute(p)).collect();
        let looked = looked.join(", ");
        format!("the shipped model was not found in {looked}; name a directory with --model DIR")
    })
}

/// Whether a checkpoint directory can be read, as far as can be seen without loading it.
pub(super) fn model(dir: &Path) -> Result<(), String> {
    const OUT: &str = "name the directory of a Hugging Face checkpoint";
    let meta = dir.metadata();
    let meta = meta.map_err(|error| format!("{} cannot be read: {error}; {OUT}", absolute(dir)))?;
    if !meta.is_dir() {
        return Err(format!("{} is not a directory; {OUT}", absolute(dir)));
    }
    File::open(dir.join("config.json"))
        .map(drop)
        .map_err(|error| format!("its config.json cannot be read: {error}; {OUT}"))
}

/// Whether a PEM file can be read and holds something called `what`.
pub(super) fn pem(path: &Path, what: &str) -> Result<(), String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
        Err(error) => {
            const OUT: &str = "see to its path and permissions";
            return Err(format!("{} cannot be read: {error}; {OUT}", absolute(path)));
        }
        Ok(_) => {}
    }
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.contains(what);
    if text.lines().any(begins) {
        return Ok(());
    }
    Err(format!("holds no {what}; it must be a PEM file with a line -----BEGIN … {what}-----"))
}

/// The path with the working directory before it: errors must say where one looked.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}
