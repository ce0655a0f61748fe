//! The part of NIXL's C interface (`libnixl_capi`) that is used, loaded at run time.
//!
//! Declared as in `wrapper.h` of NIXL's own Rust bindings, which has not changed in these functions
//! from 1.2 to 1.5. All handles are opaque; enums are C `int`s; no exception leaves a function.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};

use crate::kvxfer::ucx::quiet;

/// The plug-in that needs UCX, beside the library.
const PLUGIN: &str = "plugins/libplugin_UCX.so";

/// `nixl_capi_status_t`: 0 well, 1 in progress, negative an error.
pub(in crate::kvxfer::nixl) type Status = c_int;
/// An agent, a list, a request.
pub(in crate::kvxfer::nixl) type Handle = *mut c_void;

/// Numbers of the header's enums.
pub(in crate::kvxfer::nixl) mod flags {
    use super::{Status, c_int};

    pub(in crate::kvxfer::nixl) const IN_PROGRESS: Status = 1;
    pub(in crate::kvxfer::nixl) const MEMORY_HOST: c_int = 0;
    pub(in crate::kvxfer::nixl) const READ: c_int = 0;
    pub(in crate::kvxfer::nixl) const SYNC_NONE: c_int = 0;
}

/// `nixl_capi_agent_config_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::kvxfer::nixl) struct AgentConfig {
    /// Whether NIXL runs a thread that moves things along.
    pub(in crate::kvxfer::nixl) progress_thread: bool,
    pub(in crate::kvxfer::nixl) listen_thread: bool,
    pub(in crate::kvxfer::nixl) listen_port: c_int,
    pub(in crate::kvxfer::nixl) thread_sync: c_int,
    pub(in crate::kvxfer::nixl) workers: c_uint,
    /// How long that thread sleeps at most.
    pub(in crate::kvxfer::nixl) progress_delay_us: u64,
    pub(in crate::kvxfer::nixl) listen_delay_us: u64,
    pub(in crate::kvxfer::nixl) telemetry: bool,
}

/// Declares the function table, and how each is looked up by its C name.
macro_rules! functions {
    ($($name:ident: $symbol:literal fn($($argument:ty),*);)+) => {
        /// The loaded functions.
        pub(in crate::kvxfer::nixl) struct Table {
            $(pub(in crate::kvxfer::nixl) $name: unsafe extern "C" fn($($argument),*) -> Status,)+
        }

        fn look_up(library: &Library) -> Result<Table, String> {
            Ok(Table {
                $($name: {
                    // SAFETY: The type is that of the function in NIXL's header; the library is
                    // never closed.
                    let symbol = unsafe { library.get($symbol.as_bytes()) };
                    *symbol.map_err(|error| format!("libnixl_capi has no {}: {error}", $symbol))?
                },)+
            })
        }
    };
}

functions! {
    agent_create: "nixl_capi_create_configured_agent"
        fn(*const c_char, *const AgentConfig, *mut Handle);
    agent_destroy: "nixl_capi_destroy_agent" fn(Handle);
    params_create: "nixl_capi_create_params" fn(*mut Handle);
    params_add: "nixl_capi_params_add" fn(Handle, *const c_char, *const c_char);
    params_destroy: "nixl_capi_destroy_params" fn(Handle);
    backend_create: "nixl_capi_create_backend" fn(Handle, *const c_char, Handle, *mut Handle);
    backend_destroy: "nixl_capi_destroy_backend" fn(Handle);
    regions_create: "nixl_capi_create_reg_dlist" fn(c_int, *mut Handle);
    regions_add: "nixl_capi_reg_dlist_add_desc"
        fn(Handle, usize, usize, u64, *const c_void, usize);
    regions_destroy: "nixl_capi_destroy_reg_dlist" fn(Handle);
    register: "nixl_capi_register_mem" fn(Handle, Handle, Handle);
    local_metadata: "nixl_capi_get_local_md" fn(Handle, *mut *mut c_void, *mut usize);
    load_metadata: "nixl_capi_load_remote_md"
        fn(Handle, *const c_void, usize, *mut *mut c_char);
    ranges_create: "nixl_capi_create_xfer_dlist" fn(c_int, *mut Handle);
    ranges_add: "nixl_capi_xfer_dlist_add_desc" fn(Handle, usize, usize, u64);
    ranges_destroy: "nixl_capi_destroy_xfer_dlist" fn(Handle);
    request_create: "nixl_capi_create_xfer_req"
        fn(Handle, c_int, Handle, Handle, *const c_char, *mut Handle, Handle);
    request_post: "nixl_capi_post_xfer_req" fn(Handle, Handle, Handle);
    request_status: "nixl_capi_get_xfer_status" fn(Handle, Handle);
    request_release: "nixl_capi_release_xfer_req" fn(Handle, Handle);
    request_destroy: "nixl_capi_destroy_xfer_req" fn(Handle);
    notes_create: "nixl_capi_create_notif_map" fn(*mut Handle);
    notes_get: "nixl_capi_get_notifs" fn(Handle, Handle, Handle);
    notes_destroy: "nixl_capi_destroy_notif_map" fn(Handle);
}

/// Loads the library, for good.
pub(super) fn open(path: &Path) -> Result<&'static Table, String> {
    // Locally: it brings a UCX of its own, whose names must not meet those of another one.
    // SAFETY: NIXL's libraries set up their own state when loaded; they are never unloaded, since
    // their UCX may have patched libc's memory functions.
    let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_LOCAL) };
    let library = library.map_err(|error| {
        let path = path.display();
        format!("{path}: {error} (pip install nixl-cu13, and set CUELIGHT_NIXL_DIR to its folder)")
    })?;
    let table = look_up(&library)?;
    std::mem::forget(library);
    // Loaded by NIXL later, and its UCX with it: now, so that it can be told before it is used.
    // Where only the loader knows its folder, its UCX keeps its own ways: nothing of the working directory.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let plugin = dir.map(|dir| dir.join(PLUGIN)).filter(|plugin| plugin.is_file());
    // SAFETY: As above.
    let plugin = plugin.map(|path| unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_LOCAL) });
    if let Some(Ok(plugin)) = plugin {
        quiet(&plugin);
        std::mem::forget(plugin);
    }
    Ok(Box::leak(Box::new(table)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// As a C compiler lays it out on 64-bit Linux.
    #[test]
    fn the_structure_lies_as_in_the_header() {
        let places = [
            (offset_of!(AgentConfig, listen_thread), 1),
            (offset_of!(AgentConfig, listen_port), 4),
            (offset_of!(AgentConfig, thread_sync), 8),
            (offset_of!(AgentConfig, workers), 12),
            (offset_of!(AgentConfig, progress_delay_us), 16),
            (offset_of!(AgentConfig, listen_delay_us), 24),
            (offset_of!(AgentConfig, telemetry), 32),
            (size_of::<AgentConfig>(), 40),
        ];
        for (place, (ours, theirs)) in places.into_iter().enumerate() {
            assert_eq!(ours, theirs, "entry {place}");
        }
    }
}
