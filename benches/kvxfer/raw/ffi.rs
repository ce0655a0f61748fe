//! Just enough of libucp's C interface for the comparison (UCX 1.19 or newer, its 1.22 headers).
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_uint, c_void};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use cuelight::kvxfer::{Memory, Run};
use libloading::os::unix::{Library as File, RTLD_LAZY, RTLD_LOCAL, Symbol};

type Handle = *mut c_void;
/// `ucs_status_t` is one signed byte.
type Status = i8;

/// Whether endpoints watch their peer.
#[derive(Clone, Copy)]
pub(crate) enum Errors {
    None,
    Peer,
}

/// libucp, loaded for good.
#[derive(Clone, Copy)]
pub(crate) struct Library {
    ucp: &'static File,
}

impl Library {
    pub(crate) fn open(dir: &Path) -> Option<Self> {
        let mut ucp = None;
        for name in ["libucm.so.0", "libucs.so.0", "libuct.so.0", "libucp.so.0"] {
            // SAFETY: UCX's libraries set up only their own state when loaded; never unloaded.
            let file = unsafe { File::open(Some(dir.join(name)), RTLD_LAZY | RTLD_LOCAL) }.ok()?;
            ucp = Some(&*Box::leak(Box::new(file)));
        }
        Some(Self { ucp: ucp? })
    }

    /// A function of libucp.
    fn get<T>(self, name: &str) -> Symbol<T> {
        // SAFETY: Every caller names the function's type as the headers do.
        unsafe { self.ucp.get(name.as_bytes()) }.expect("libucp has it since 1.10")
    }
}

/// A context and a worker with one registered pool.
pub(crate) struct Worker {
    ucp: Library,
    context: Handle,
    worker: Handle,
    mapped: Handle,
    memory: Arc<Memory>,
    progress: unsafe extern "C" fn(Handle) -> c_uint,
}

/// A way to a peer's pool.
pub(crate) struct Endpoint {
    endpoint: Handle,
    key: Handle,
    base: u64,
}

impl Worker {
    pub(crate) fn new(ucp: Library, memory: Arc<Memory>) -> Self {
        let context = context(ucp);
        // ucp_worker_params_t: field_mask, thread_mode (single), the rest unused.
        let mut params = [0u64; 25];
        params[0] = 1;
        let mut worker = ptr::null_mut();
        let create: Symbol<unsafe extern "C" fn(Handle, *const u64, *mut Handle) -> Status> =
            ucp.get("ucp_worker_create");
        // SAFETY: A live context; the structure has the header's size; writes the handle.
        check(unsafe { create(context, params.as_ptr(), &raw mut worker) });
        // ucp_mem_map_params_t: field_mask (address, length), address, length, the rest unused.
        let map_params = [3, memory.address().addr() as u64, memory.bytes(), 0, 0, 0];
        let mut mapped = ptr::null_mut();
        let map: Symbol<unsafe extern "C" fn(Handle, *const u64, *mut Handle) -> Status> =
            ucp.get("ucp_mem_map");
        // SAFETY: As above; the memory lives as long as the process of the benchmark needs it.
        check(unsafe { map(context, map_params.as_ptr(), &raw mut mapped) });
        let progress = *ucp.get("ucp_worker_progress");
        Self { ucp, context, worker, mapped, memory, progress }
    }

    pub(crate) fn progress(&self) {
        // SAFETY: A live worker, on its thread.
        unsafe { (self.progress)(self.worker) };
    }

    pub(crate) fn address(&self) -> Vec<u8> {
        let address: Symbol<unsafe extern "C" fn(Handle, *mut Handle, *mut usize) -> Status> =
            self.ucp.get("ucp_worker_get_address");
        let (mut bytes, mut len) = (ptr::null_mut(), 0);
        // SAFETY: A live worker; writes the place and length of what is copied.
        unsafe {
            check(address(self.worker, &raw mut bytes, &raw mut len));
            std::slice::from_raw_parts(bytes.cast::<u8>(), len).to_vec()
        }
    }

    pub(crate) fn key(&self) -> Vec<u8> {
        type Pack = unsafe extern "C" fn(Handle, Handle, *mut Handle, *mut usize) -> Status;
        let pack: Symbol<Pack> = self.ucp.get("ucp_rkey_pack");
        let (mut bytes, mut len) = (ptr::null_mut(), 0);
        // SAFETY: A live mapping; writes the place and length of what is copied.
        unsafe {
            check(pack(self.context, self.mapped, &raw mut bytes, &raw mut len));
            std::slice::from_raw_parts(bytes.cast::<u8>(), len).to_vec()
        }
    }

    pub(crate) fn connect(
        &self,
        address: &[u8],
        key: &[u8],
        base: u64,
        errors: Errors,
    ) -> Endpoint {
        // ucp_ep_params_t: field_mask (address, error mode), address, error mode, the rest unused.
        let mut params = [0u64; 13];
        (params[0], params[1]) = (3, address.as_ptr().addr() as u64);
        params[2] = matches!(errors, Errors::Peer).into();
        let (mut endpoint, mut remote) = (ptr::null_mut(), ptr::null_mut());
        let create: Symbol<unsafe extern "C" fn(Handle, *const u64, *mut Handle) -> Status> =
            self.ucp.get("ucp_ep_create");
        let unpack: Symbol<unsafe extern "C" fn(Handle, *const u8, *mut Handle) -> Status> =
            self.ucp.get("ucp_ep_rkey_unpack");
        // SAFETY: A live worker; address and key are whole and come from our own peer process.
        unsafe {
            check(create(self.worker, params.as_ptr(), &raw mut endpoint));
            check(unpack(endpoint, key.as_ptr(), &raw mut remote));
        }
        Endpoint { endpoint, key: remote, base }
    }

    /// Posts a get for each run and spins until all have ended.
    ///
    /// # Panics
    /// If one fails, or a run leaves the pool.
    pub(crate) fn get_all(&self, to: &Endpoint, runs: &[Run]) {
        type Get = unsafe extern "C" fn(Handle, Handle, usize, u64, Handle, *const u64) -> Handle;
        let get: Symbol<Get> = self.ucp.get("ucp_get_nbx");
        let status: Symbol<unsafe extern "C" fn(Handle) -> Status> =
            self.ucp.get("ucp_request_check_status");
        let free: Symbol<unsafe extern "C" fn(Handle)> = self.ucp.get("ucp_request_free");
        // ucp_request_param_t: op_attr_mask (memh; several in flight), and memh at byte 64.
        let mut params = [0u64; 12];
        (params[0], params[8]) = (1 << 8 | 1 << 19, self.mapped.addr() as u64);
        let mut posted = Vec::with_capacity(runs.len());
        for run in runs {
            assert!(run.local + run.bytes <= self.memory.bytes());
            // SAFETY: The local range is within the registered pool, which outlives the requests:
            // this function waits for all of them.
            let request = unsafe {
                let local = self.memory.address().add(run.local as usize).cast();
                let remote = to.base + run.remote;
                get(to.endpoint, local, run.bytes as usize, remote, to.key, params.as_ptr())
            };
            assert!(!(-100..0).contains(&(request.addr() as isize)), "a get failed at once");
            if !request.is_null() {
                posted.push(request);
            }
        }
        for request in posted {
            // SAFETY: A request of this worker that is freed once, after its end.
            unsafe {
                let mut now = status(request);
                while now == 1 {
                    self.progress();
                    now = status(request);
                }
                check(now);
                free(request);
            }
        }
    }
}

/// A context for shared memory and loopback TCP, with remote memory access.
fn context(ucp: Library) -> Handle {
    let read: Symbol<unsafe extern "C" fn(*const c_char, *const c_char, *mut Handle) -> Status> =
        ucp.get("ucp_config_read");
    let modify: Symbol<unsafe extern "C" fn(Handle, *const c_char, *const c_char) -> Status> =
        ucp.get("ucp_config_modify");
    type Init = unsafe extern "C" fn(c_uint, c_uint, *const u64, Handle, *mut Handle) -> Status;
    let init: Symbol<Init> = ucp.get("ucp_init_version");
    let settings = [
        ("TLS", "posix,sysv,cma,tcp"),
        ("NET_DEVICES", "lo"),
        ("RNDV_THRESH", "inf"),
        ("POSIX_ERROR_HANDLING", "y"),
        ("SYSV_ERROR_HANDLING", "y"),
    ];
    // ucp_params_t: field_mask (features), features (RMA), the rest unused.
    let mut params = [0u64; 11];
    (params[0], params[1]) = (1, 1 << 1);
    let (mut config, mut context) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: Strings and structures live during the calls; the handles are written.
    unsafe {
        check(read(ptr::null(), ptr::null(), &raw mut config));
        for (name, value) in settings {
            let (name, value) = (CString::new(name), CString::new(value));
            check(modify(config, name.expect("text").as_ptr(), value.expect("text").as_ptr()));
        }
        check(init(1, 13, params.as_ptr(), config, &raw mut context));
    }
    context
}

fn check(status: Status) {
    assert_eq!(status, 0, "libucp failed");
}
