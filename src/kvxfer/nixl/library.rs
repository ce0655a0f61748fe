//! Finding and loading NIXL.

mod ffi;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub(super) use ffi::{AgentConfig, Handle, Status, Table, flags};

use crate::kvxfer::error::XferError;

/// Names the folder of the library.
const DIR_KEY: &str = "CUELIGHT_NIXL_DIR";
const LIBRARY: &str = "libnixl_capi.so";

/// Loaded once, for good.
static LOADED: Mutex<Option<&'static Table>> = Mutex::new(None);

/// NIXL, loaded now or before.
///
/// # Errors
/// [`XferError::Unavailable`], naming where it was looked for.
pub(super) fn load(dir: Option<&Path>) -> Result<&'static Table, XferError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(table) = *loaded {
        return Ok(table);
    }
    let unavailable = |why| XferError::Unavailable { transport: super::NAME, why };
    let path = find(std::env::var_os(DIR_KEY).map(PathBuf::from).as_deref().or(dir));
    let table = path.and_then(|path| ffi::open(&path)).map_err(unavailable)?;
    *loaded = Some(table);
    Ok(table)
}

/// The file, or its bare name for the system's loader.
fn find(dir: Option<&Path>) -> Result<PathBuf, String> {
    // Absolute, so that it finds its plug-ins beside it.
    let in_folder = |dir: &Path| dir.join(LIBRARY).canonicalize().ok();
    if let Some(dir) = dir {
        return in_folder(dir).ok_or_else(|| format!("{} has no {LIBRARY}", dir.display()));
    }
    let beside = std::env::current_exe().ok().and_then(|exe| {
        let lib = exe.parent()?.parent()?.join("lib/nixl");
        in_folder(&lib)
    });
    Ok(beside.unwrap_or_else(|| PathBuf::from(LIBRARY)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_the_library_and_a_library_that_is_none_are_named() {
        let dir = std::env::temp_dir().join(format!("cuelight-nixl-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let missing = find(Some(&dir)).unwrap_err();
        assert_eq!(missing, format!("{} has no libnixl_capi.so", dir.display()));
        std::fs::write(dir.join(LIBRARY), b"").unwrap();
        let broken = find(Some(&dir)).and_then(|path| ffi::open(&path)).err();
        let broken = broken.expect("an empty file is no library");
        assert!(broken.contains("libnixl_capi.so: ") && broken.contains(DIR_KEY), "{broken}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
