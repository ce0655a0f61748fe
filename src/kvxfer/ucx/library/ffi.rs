//! The part of libucp's C interface that is used, loaded at run time.
//!
//! Structures are those of UCX 1.22's headers; each says by a mask which of its fields are set, so
//! that older and newer libraries read the same ones. `ucs_status_t` is one signed byte there.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr;

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};

/// `ucs_status_t`: 0 well, 1 in progress, negative an error.
pub(in crate::kvxfer::ucx) type Status = i8;
pub(in crate::kvxfer::ucx) type ContextHandle = *mut c_void;
pub(in crate::kvxfer::ucx) type WorkerHandle = *mut c_void;
pub(in crate::kvxfer::ucx) type EndpointHandle = *mut c_void;
pub(in crate::kvxfer::ucx) type MemoryHandle = *mut c_void;
pub(in crate::kvxfer::ucx) type RkeyHandle = *mut c_void;

/// Bits and numbers of the headers' enums, by their names there.
pub(in crate::kvxfer::ucx) mod flags {
    pub(in crate::kvxfer::ucx) const PARAM_FIELD_FEATURES: u64 = 1;
    pub(in crate::kvxfer::ucx) const FEATURE_RMA: u64 = 1 << 1;
    pub(in crate::kvxfer::ucx) const FEATURE_WAKEUP: u64 = 1 << 4;
    pub(in crate::kvxfer::ucx) const WORKER_PARAM_FIELD_THREAD_MODE: u64 = 1;
    pub(in crate::kvxfer::ucx) const THREAD_MODE_SINGLE: u32 = 0;
    pub(in crate::kvxfer::ucx) const EP_PARAM_FIELD_REMOTE_ADDRESS: u64 = 1;
    pub(in crate::kvxfer::ucx) const EP_PARAM_FIELD_ERR_HANDLING_MODE: u64 = 1 << 1;
    pub(in crate::kvxfer::ucx) const EP_PARAM_FIELD_ERR_HANDLER: u64 = 1 << 2;
    pub(in crate::kvxfer::ucx) const ERR_HANDLING_MODE_PEER: u32 = 1;
    pub(in crate::kvxfer::ucx) const MEM_MAP_PARAM_FIELD_ADDRESS: u64 = 1;
    pub(in crate::kvxfer::ucx) const MEM_MAP_PARAM_FIELD_LENGTH: u64 = 1 << 1;
    pub(in crate::kvxfer::ucx) const MEM_MAP_PARAM_FIELD_MEMORY_TYPE: u64 = 1 << 4;
    pub(in crate::kvxfer::ucx) const MEMORY_TYPE_HOST: u32 = 0;
    pub(in crate::kvxfer::ucx) const MEMORY_TYPE_CUDA: u32 = 1;
    pub(in crate::kvxfer::ucx) const ATTR_FIELD_MEMORY_TYPES: u64 = 1 << 2;
    pub(in crate::kvxfer::ucx) const OP_ATTR_FIELD_FLAGS: u32 = 1 << 4;
    pub(in crate::kvxfer::ucx) const OP_ATTR_FIELD_MEMORY_TYPE: u32 = 1 << 6;
    pub(in crate::kvxfer::ucx) const OP_ATTR_FIELD_MEMH: u32 = 1 << 8;
    pub(in crate::kvxfer::ucx) const OP_ATTR_FLAG_MULTI_SEND: u32 = 1 << 19;
    pub(in crate::kvxfer::ucx) const EP_CLOSE_FLAG_FORCE: u32 = 1;
    pub(in crate::kvxfer::ucx) const BUSY: i8 = -15;
    pub(in crate::kvxfer::ucx) const LAST_ERROR: isize = -100;
}

/// `ucp_params_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::kvxfer::ucx) struct ContextParams {
    pub(in crate::kvxfer::ucx) field_mask: u64,
    pub(in crate::kvxfer::ucx) features: u64,
    pub(in crate::kvxfer::ucx) unused: [u64; 9],
}

/// `ucp_context_attr_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::kvxfer::ucx) struct ContextAttributes {
    pub(in crate::kvxfer::ucx) field_mask: u64,
    pub(in crate::kvxfer::ucx) request_size: usize,
    pub(in crate::kvxfer::ucx) thread_mode: u32,
    pub(in crate::kvxfer::ucx) memory_types: u64,
    pub(in crate::kvxfer::ucx) name: [c_char; 32],
    pub(in crate::kvxfer::ucx) device_counter_size: usize,
}

/// `ucp_worker_params_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::kvxfer::ucx) struct WorkerParams {
    pub(in crate::kvxfer::ucx) field_mask: u64,
    pub(in crate::kvxfer::ucx) thread_mode: u32,
    pub(in crate::kvxfer::ucx) unused: [u64; 23],
}

/// `ucp_err_handler_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::kvxfer::ucx) struct ErrorHandler {
    pub(in crate::kvxfer::ucx) call:
        Option<extern "C" fn(argument: *mut c_void, endpoint: EndpointHandle, status: Status)>,
    pub(in crate::kvxfer::ucx) argument: *mut c_void,
}

/// `ucp_ep_params_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::kvxfer::ucx) struct EndpointParams {
    pub(in crate::kvxfer::ucx) field_mask: u64,
    pub(in crate::kvxfer::ucx) address: *const c_void,
    pub(in crate::kvxfer::ucx) error_mode: u32,
    pub(in crate::kvxfer::ucx) error_handler: ErrorHandler,
    pub(in crate::kvxfer::ucx) unused: [u64; 8],
}

/// `ucp_mem_map_params_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::kvxfer::ucx) struct MemoryParams {
    pub(in crate::kvxfer::ucx) field_mask: u64,
    pub(in crate::kvxfer::ucx) address: *mut c_void,
    pub(in crate::kvxfer::ucx) length: usize,
    pub(in crate::kvxfer::ucx) flags: u32,
    pub(in crate::kvxfer::ucx) protection: u32,
    pub(in crate::kvxfer::ucx) memory_type: u32,
    pub(in crate::kvxfer::ucx) exported: *const c_void,
}

/// `ucp_request_param_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::kvxfer::ucx) struct RequestParams {
    pub(in crate::kvxfer::ucx) op_attr_mask: u32,
    pub(in crate::kvxfer::ucx) flags: u32,
    pub(in crate::kvxfer::ucx) unused: [u64; 5],
    pub(in crate::kvxfer::ucx) memory_type: u32,
    pub(in crate::kvxfer::ucx) receive_info: *mut c_void,
    pub(in crate::kvxfer::ucx) memory: MemoryHandle,
    pub(in crate::kvxfer::ucx) unused_remote: [u64; 3],
}

/// All fields zero: nothing is set until `field_mask` says so.
macro_rules! zeroed {
    ($($name:ty),+) => { $(impl Default for $name {
        fn default() -> Self {
            // SAFETY: Plain C data: numbers, raw pointers and an optional function, for all of
            // which zero is a value.
            unsafe { std::mem::zeroed() }
        }
    })+ };
}
zeroed!(
    ContextParams,
    ContextAttributes,
    WorkerParams,
    EndpointParams,
    MemoryParams,
    RequestParams
);

/// Declares the function table, and how each is looked up by its C name.
macro_rules! functions {
    ($($name:ident: $symbol:literal fn($($argument:ty),*) $(-> $result:ty)?;)+) => {
        /// The loaded functions. All but `version` and `status` are called on the one thread that
        /// owns the context.
        pub(in crate::kvxfer::ucx) struct Ucp {
            $(pub(in crate::kvxfer::ucx) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)+
        }

        fn look_up(ucp: &Library) -> Result<Ucp, String> {
            let missing = |name: &str, e: libloading::Error| format!("libucp has no {name}: {e}");
            Ok(Ucp {
                $($name: {
                    // SAFETY: The type is that of the function in UCX 1.22's headers, stable
                    // since UCX 1.10; the library is never closed.
                    let symbol = unsafe { ucp.get($symbol.as_bytes()) };
                    *symbol.map_err(|error| missing($symbol, error))?
                },)+
            })
        }
    };
}

functions! {
    get_version: "ucp_get_version" fn(*mut c_uint, *mut c_uint, *mut c_uint);
    get_version_string: "ucp_get_version_string" fn() -> *const c_char;
    status_string: "ucs_status_string" fn(Status) -> *const c_char;
    config_read: "ucp_config_read" fn(*const c_char, *const c_char, *mut *mut c_void) -> Status;
    config_modify: "ucp_config_modify" fn(*mut c_void, *const c_char, *const c_char) -> Status;
    config_release: "ucp_config_release" fn(*mut c_void);
    init_version: "ucp_init_version"
        fn(c_uint, c_uint, *const ContextParams, *const c_void, *mut ContextHandle) -> Status;
    cleanup: "ucp_cleanup" fn(ContextHandle);
    context_query: "ucp_context_query" fn(ContextHandle, *mut ContextAttributes) -> Status;
    worker_create: "ucp_worker_create"
        fn(ContextHandle, *const WorkerParams, *mut WorkerHandle) -> Status;
    worker_destroy: "ucp_worker_destroy" fn(WorkerHandle);
    worker_get_address: "ucp_worker_get_address"
        fn(WorkerHandle, *mut *mut c_void, *mut usize) -> Status;
    worker_release_address: "ucp_worker_release_address" fn(WorkerHandle, *mut c_void);
    worker_progress: "ucp_worker_progress" fn(WorkerHandle) -> c_uint;
    worker_get_efd: "ucp_worker_get_efd" fn(WorkerHandle, *mut c_int) -> Status;
    worker_arm: "ucp_worker_arm" fn(WorkerHandle) -> Status;
    ep_create: "ucp_ep_create"
        fn(WorkerHandle, *const EndpointParams, *mut EndpointHandle) -> Status;
    ep_close: "ucp_ep_close_nbx" fn(EndpointHandle, *const RequestParams) -> *mut c_void;
    ep_flush: "ucp_ep_flush_nbx" fn(EndpointHandle, *const RequestParams) -> *mut c_void;
    mem_map: "ucp_mem_map" fn(ContextHandle, *const MemoryParams, *mut MemoryHandle) -> Status;
    mem_unmap: "ucp_mem_unmap" fn(ContextHandle, MemoryHandle) -> Status;
    rkey_pack: "ucp_rkey_pack"
        fn(ContextHandle, MemoryHandle, *mut *mut c_void, *mut usize) -> Status;
    rkey_release: "ucp_rkey_buffer_release" fn(*mut c_void);
    rkey_unpack: "ucp_ep_rkey_unpack"
        fn(EndpointHandle, *const c_void, *mut RkeyHandle) -> Status;
    rkey_destroy: "ucp_rkey_destroy" fn(RkeyHandle);
    get: "ucp_get_nbx"
        fn(EndpointHandle, *mut c_void, usize, u64, RkeyHandle, *const RequestParams) -> *mut c_void;
    request_status: "ucp_request_check_status" fn(*mut c_void) -> Status;
    request_free: "ucp_request_free" fn(*mut c_void);
}

impl Ucp {
    /// `(major, minor, release)` of the library.
    pub(in crate::kvxfer::ucx) fn version(&self) -> (u32, u32, u32) {
        let (mut major, mut minor, mut release) = (0, 0, 0);
        // SAFETY: Writes three numbers.
        unsafe { (self.get_version)(&raw mut major, &raw mut minor, &raw mut release) };
        (major, minor, release)
    }

    pub(in crate::kvxfer::ucx) fn version_text(&self) -> String {
        // SAFETY: A constant string of the library.
        unsafe { CStr::from_ptr((self.get_version_string)()) }.to_string_lossy().into_owned()
    }

    /// What an error is called.
    pub(in crate::kvxfer::ucx) fn status(&self, status: Status) -> String {
        // SAFETY: Any number is accepted; the string is the library's and copied before another
        // call could change it (unknown codes share a buffer of the calling thread).
        unsafe { CStr::from_ptr((self.status_string)(status)) }.to_string_lossy().into_owned()
    }
}

/// Loads the four libraries, for good.
pub(super) fn open(paths: &[PathBuf; 4]) -> Result<&'static Ucp, String> {
    let mut libraries = Vec::new();
    for path in paths {
        // Lazily: libucm and libucs need each other's symbols.
        // SAFETY: UCX's libraries set up their own state when loaded and touch no other; they are
        // never unloaded, since libucm may have patched libc's memory functions.
        let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_LOCAL) };
        let library = library.map_err(|error| {
            format!("{}: {error} (set CUELIGHT_UCX_DIR to a folder with UCX)", path.display())
        })?;
        libraries.push(library);
    }
    let [_, ucs, _, ucp] = libraries.as_slice() else { return Err("no libraries".into()) };
    let table = look_up(ucp)?;
    quiet(ucs);
    std::mem::forget(libraries);
    Ok(Box::leak(Box::new(table)))
}

/// Tells a UCX, of which `ucs` is libucs or a library that needs it, that its host has guards of its
/// own: no signal handlers, no patched memory functions for a cache that registered pools do not
/// need, no words on standard output that nobody reads. Before any context of it.
pub(in crate::kvxfer) fn quiet(ucs: &Library) {
    type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> Status;
    // SAFETY: The type is that of the function in UCX's headers; it is optional.
    let Ok(set) = (unsafe { ucs.get::<Set>(b"ucs_global_opts_set_value") }) else { return };
    for (name, value) in [("HANDLE_ERRORS", "none"), ("MEMTYPE_CACHE", "n"), ("LOG_LEVEL", "fatal")]
    {
        if std::env::var_os(format!("UCX_{name}")).is_some() {
            continue;
        }
        if let (Ok(name), Ok(value)) = (CString::new(name), CString::new(value)) {
            // SAFETY: Two strings that outlive the call. An unknown name is refused and changes
            // nothing.
            unsafe { set(name.as_ptr(), value.as_ptr()) };
        }
    }
}

/// A configuration with these settings, given to `use_it`. Those in the environment win.
pub(in crate::kvxfer::ucx) fn with_config<T>(
    ucp: &Ucp,
    settings: &[(&str, &str)],
    use_it: impl FnOnce(*const c_void) -> T,
) -> Result<T, String> {
    let mut config = ptr::null_mut();
    // SAFETY: No prefix and no file; writes the handle.
    let status = unsafe { (ucp.config_read)(ptr::null(), ptr::null(), &raw mut config) };
    if status != 0 {
        return Err(format!("ucp_config_read: {}", ucp.status(status)));
    }
    let mut refused = None;
    for (name, value) in settings {
        if std::env::var_os(format!("UCX_{name}")).is_some() {
            continue;
        }
        if let (Ok(c_name), Ok(c_value)) = (CString::new(*name), CString::new(*value)) {
            // SAFETY: A live configuration and two strings that outlive the call.
            let status = unsafe { (ucp.config_modify)(config, c_name.as_ptr(), c_value.as_ptr()) };
            if status != 0 {
                refused = Some(format!("UCX_{name}={value}: {}", ucp.status(status)));
            }
        }
    }
    let result = match refused {
        Some(why) => Err(why),
        None => Ok(use_it(config)),
    };
    // SAFETY: Read above, released once; contexts copy what they need.
    unsafe { (ucp.config_release)(config) };
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// Sizes and offsets as a C compiler gives them for UCX 1.22's headers on 64-bit Linux.
    #[test]
    fn structures_lie_as_in_the_headers() {
        let sizes = [
            (size_of::<ContextParams>(), 88),
            (size_of::<ContextAttributes>(), 72),
            (offset_of!(ContextAttributes, memory_types), 24),
            (size_of::<WorkerParams>(), 200),
            (offset_of!(WorkerParams, thread_mode), 8),
            (size_of::<ErrorHandler>(), 16),
            (size_of::<EndpointParams>(), 104),
            (offset_of!(EndpointParams, address), 8),
            (offset_of!(EndpointParams, error_mode), 16),
            (offset_of!(EndpointParams, error_handler), 24),
            (size_of::<MemoryParams>(), 48),
            (offset_of!(MemoryParams, address), 8),
            (offset_of!(MemoryParams, length), 16),
            (offset_of!(MemoryParams, memory_type), 32),
            (size_of::<RequestParams>(), 96),
            (offset_of!(RequestParams, flags), 4),
            (offset_of!(RequestParams, memory_type), 48),
            (offset_of!(RequestParams, memory), 64),
            (size_of::<Status>(), 1),
        ];
        for (place, (ours, theirs)) in sizes.into_iter().enumerate() {
            assert_eq!(ours, theirs, "entry {place}");
        }
    }
}
