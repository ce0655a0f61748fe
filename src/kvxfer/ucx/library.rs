//! Finding and loading UCX.

mod ffi;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub(super) use ffi::{
    ContextAttributes, ContextHandle, ContextParams, EndpointHandle, EndpointParams, ErrorHandler,
    MemoryHandle, MemoryParams, RequestParams, RkeyHandle, Status, Ucp, WorkerHandle, WorkerParams,
    flags, with_config,
};

pub(in crate::kvxfer) use ffi::quiet;

use crate::kvxfer::error::XferError;

/// Names a folder with the four libraries.
const DIR_KEY: &str = "CUELIGHT_UCX_DIR";
/// In the order in which they must be loaded.
const LIBRARIES: [&str; 4] = ["libucm", "libucs", "libuct", "libucp"];
/// Older ones ignore newer flags silently, or lack peer error handling that we rely on.
const OLDEST: (u32, u32) = (1, 19);

/// Loaded once, for good: UCX cannot be unloaded safely.
static LOADED: Mutex<Option<&'static Ucp>> = Mutex::new(None);

/// UCX, loaded now or before.
///
/// # Errors
/// [`XferError::Unavailable`], naming where it was looked for or which version was found.
pub(super) fn load(dir: Option<&Path>) -> Result<&'static Ucp, XferError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ucp) = *loaded {
        return Ok(ucp);
    }
    let unavailable = |why| XferError::Unavailable { transport: super::NAME, why };
    let paths = find(std::env::var_os(DIR_KEY).map(PathBuf::from).as_deref().or(dir));
    let paths = paths.map_err(unavailable)?;
    let ucp = ffi::open(&paths).map_err(unavailable)?;
    let (major, minor, _) = ucp.version();
    check_version((major, minor), &ucp.version_text(), &paths[3]).map_err(unavailable)?;
    *loaded = Some(ucp);
    Ok(ucp)
}

fn check_version(version: (u32, u32), found: &str, path: &Path) -> Result<(), String> {
    if version >= OLDEST {
        return Ok(());
    }
    let (path, (major, minor)) = (path.display(), OLDEST);
    Err(format!(
        "{path} is UCX {found}; {major}.{minor} or newer is needed (pip install libucx-cu13, and \
         set {DIR_KEY} to its lib folder)"
    ))
}

/// The four files, or their bare names for the system's loader.
fn find(dir: Option<&Path>) -> Result<[PathBuf; 4], String> {
    if let Some(dir) = dir {
        return in_folder(dir).ok_or_else(|| {
            let dir = dir.display();
            format!("{dir} has not all of libucm, libucs, libuct and libucp")
        });
    }
    let beside = std::env::current_exe().ok().and_then(|exe| {
        let lib = exe.parent()?.parent()?.join("lib/ucx");
        in_folder(&lib)
    });
    Ok(beside.unwrap_or_else(|| LIBRARIES.map(|name| PathBuf::from(format!("{name}.so.0")))))
}

fn in_folder(dir: &Path) -> Option<[PathBuf; 4]> {
    // Absolute, so that each finds its plug-ins beside it.
    let dir = dir.canonicalize().ok()?;
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    let one = |library: &str| {
        let plain = format!("{library}.so.0");
        // Python wheels put a hash into the names of what they bundle.
        let hashed = format!("{library}-");
        let found = names.iter().find(|name| **name == plain).or_else(|| {
            names.iter().find(|name| name.starts_with(&hashed) && name.contains(".so"))
        });
        found.map(|name| dir.join(name))
    };
    let [a, b, c, d] = LIBRARIES.map(one);
    Some([a?, b?, c?, d?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_counts_only_with_all_four_and_hashed_names_count() {
        let dir = std::env::temp_dir().join(format!("cuelight-ucx-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let touch = |name: &str| std::fs::write(dir.join(name), b"").unwrap();
        for name in ["libucm.so.0", "libucs.so.0", "libucs_signal.so.0", "libuct.so.0"] {
            touch(name);
        }
        let missing = find(Some(&dir)).unwrap_err();
        assert!(missing.ends_with("has not all of libucm, libucs, libuct and libucp"), "{missing}");
        touch("libucp-b39b3ed9.so.0.0.0");
        let found = find(Some(&dir)).unwrap();
        let broken = ffi::open(&found).err().expect("empty files are no libraries");
        assert!(broken.contains("libucm.so.0: "), "{broken}");
        std::fs::remove_dir_all(&dir).unwrap();
        let names = found.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
        assert_eq!(
            names,
            ["libucm.so.0", "libucs.so.0", "libuct.so.0", "libucp-b39b3ed9.so.0.0.0"]
        );
    }

    #[test]
    fn an_old_one_is_refused_by_name() {
        let check = |version, text| check_version(version, text, Path::new("lib/libucp.so.0"));
        let old = check((1, 13), "1.13.1").unwrap_err();
        assert!(old.starts_with("lib/libucp.so.0 is UCX 1.13.1; 1.19 or newer is needed"), "{old}");
        for (version, text) in [((1, 19), "1.19.0"), ((1, 22), "1.22.0"), ((2, 0), "2.0.0")] {
            assert_eq!(check(version, text), Ok(()));
        }
    }
}
