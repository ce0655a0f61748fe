//! Owners of NIXL's objects. None of them is `Send`: one thread makes, uses and drops them.
//!
//! NIXL frees a read that is asked for while it goes on, and says that all is well; it then writes
//! to memory that nobody expects it in. So a read in progress is kept until its agent is destroyed.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::kvxfer::nixl::library::{AgentConfig, Handle, Status, Table, flags};
use crate::kvxfer::region::Memory;

/// The plug-in of NIXL that moves memory between processes.
const BACKEND: &CStr = c"UCX";

/// `nixl_capi_agent_t`: one end of connections, with the memory registered with it.
pub(in crate::kvxfer::nixl) struct Agent {
    nixl: &'static Table,
    handle: Handle,
    /// Kept until the agent is gone.
    memories: RefCell<Vec<Arc<Memory>>>,
    /// Reads that had not ended when nobody wanted them any more.
    orphans: RefCell<Vec<Handle>>,
    destroyed: Cell<bool>,
}

impl Agent {
    /// With pairs of UCX settings, `NAME=value` with commas between them. `wake` is how often a
    /// thread of NIXL's own looks after it, besides when something happens; without it nothing
    /// moves but in calls.
    pub(in crate::kvxfer::nixl) fn new(
        nixl: &'static Table,
        name: &str,
        settings: &str,
        wake: Option<Duration>,
    ) -> Result<Rc<Self>, String> {
        let config = AgentConfig {
            progress_thread: wake.is_some(),
            listen_thread: false,
            listen_port: 0,
            thread_sync: flags::SYNC_NONE,
            workers: 1,
            progress_delay_us: wake.map_or(0, |wake| wake.as_micros() as u64),
            listen_delay_us: 0,
            telemetry: false,
        };
        let name = text(name)?;
        let mut handle = ptr::null_mut();
        // SAFETY: A string and a structure that live during the call; writes the handle.
        let status =
            unsafe { (nixl.agent_create)(name.as_ptr(), &raw const config, &raw mut handle) };
        check("nixl_capi_create_configured_agent", status)?;
        let agent = Self {
            nixl,
            handle,
            memories: RefCell::default(),
            orphans: RefCell::default(),
            destroyed: Cell::new(false),
        };
        agent.add_backend(settings)?;
        Ok(Rc::new(agent))
    }

    fn add_backend(&self, settings: &str) -> Result<(), String> {
        let nixl = self.nixl;
        let settings = text(settings)?;
        let params = List::new(nixl.params_destroy, |list| {
            // SAFETY: Writes the handle.
            unsafe { (nixl.params_create)(list) }
        })?;
        // SAFETY: A live list and two strings, which it copies.
        let status = unsafe {
            (nixl.params_add)(params.handle, c"engine_config".as_ptr(), settings.as_ptr())
        };
        check("nixl_capi_params_add", status)?;
        let mut backend = ptr::null_mut();
        // SAFETY: A live agent, a string and a live list; writes a handle.
        let status = unsafe {
            let create = nixl.backend_create;
            create(self.handle, BACKEND.as_ptr(), params.handle, &raw mut backend)
        };
        check("nixl_capi_create_backend UCX", status)?;
        // SAFETY: Made just now. It only names the backend, which is the agent's.
        unsafe { (nixl.backend_destroy)(backend) };
        Ok(())
    }

    /// Makes memory known, to read into and for peers to read.
    pub(in crate::kvxfer::nixl) fn register(&self, memory: Arc<Memory>) -> Result<(), String> {
        let nixl = self.nixl;
        let list = List::new(nixl.regions_destroy, |list| {
            // SAFETY: Writes the handle.
            unsafe { (nixl.regions_create)(flags::MEMORY_HOST, list) }
        })?;
        let (address, bytes) = (memory.address().addr(), memory.bytes() as usize);
        // SAFETY: A live list; no further data.
        let status = unsafe { (nixl.regions_add)(list.handle, address, bytes, 0, ptr::null(), 0) };
        check("nixl_capi_reg_dlist_add_desc", status)?;
        // SAFETY: A live agent and list; `Memory` is one valid allocation, kept until the agent is
        // gone.
        let status = unsafe { (nixl.register)(self.handle, list.handle, ptr::null_mut()) };
        check("nixl_capi_register_mem", status)?;
        self.memories.borrow_mut().push(memory);
        Ok(())
    }

    /// What a peer needs to connect to it and to read what is registered by now.
    pub(in crate::kvxfer::nixl) fn metadata(&self) -> Result<Vec<u8>, String> {
        let (mut data, mut bytes) = (ptr::null_mut(), 0);
        // SAFETY: A live agent; writes the address and length of a new allocation.
        let status =
            unsafe { (self.nixl.local_metadata)(self.handle, &raw mut data, &raw mut bytes) };
        check("nixl_capi_get_local_md", status)?;
        // SAFETY: Just made, of that length.
        let metadata = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), bytes) }.to_vec();
        // SAFETY: Made by `malloc`, freed once, not used after.
        unsafe { libc::free(data) };
        Ok(metadata)
    }

    /// Prepares reads from the agent that gave this metadata; gives its name.
    pub(in crate::kvxfer::nixl) fn load(&self, metadata: &[u8]) -> Result<CString, String> {
        let mut name = ptr::null_mut();
        // SAFETY: A live agent and a slice; writes the address of a new string.
        let status = unsafe {
            let load = self.nixl.load_metadata;
            load(self.handle, metadata.as_ptr().cast(), metadata.len(), &raw mut name)
        };
        check("nixl_capi_load_remote_md", status)?;
        // SAFETY: Just made, ends with a zero.
        let copy = unsafe { CStr::from_ptr(name) }.to_owned();
        // SAFETY: Made by `strdup`, freed once, not used after.
        unsafe { libc::free(name.cast::<c_void>()) };
        Ok(copy)
    }

    /// Starts to read `bytes` at a peer's `address` into registered memory at `offset`.
    ///
    /// One range each: of a list of ranges NIXL looks at the outcome of the last one only.
    ///
    /// # Panics
    /// If the range leaves the memory: it was checked before.
    pub(in crate::kvxfer::nixl) fn read(
        self: &Rc<Self>,
        peer: &CStr,
        (memory, offset): (&Memory, u64),
        address: u64,
        bytes: u64,
    ) -> Result<Read, String> {
        let nixl = self.nixl;
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= memory.bytes()), "{offset}+{bytes} leaves {memory:?}");
        let local = self.range(memory.address().addr() + offset as usize, bytes)?;
        let remote = self.range(address as usize, bytes)?;
        let mut request = ptr::null_mut();
        // SAFETY: A live agent, two live lists that it copies, a string; writes the handle. NIXL
        // refuses ranges that are not within registered memory, here and there.
        let status = unsafe {
            let (create, to, from) = (nixl.request_create, local.handle, remote.handle);
            let none = ptr::null_mut();
            create(self.handle, flags::READ, to, from, peer.as_ptr(), &raw mut request, none)
        };
        check("nixl_capi_create_xfer_req", status)?;
        let mut read = Read { agent: self.clone(), request, status: flags::IN_PROGRESS };
        // SAFETY: A live agent, and its request, posted once. The memory that it writes to is kept
        // by the agent.
        read.status = unsafe { (nixl.request_post)(self.handle, request, ptr::null_mut()) };
        Ok(read)
    }

    fn range(&self, address: usize, bytes: u64) -> Result<List, String> {
        let nixl = self.nixl;
        let list = List::new(nixl.ranges_destroy, |list| {
            // SAFETY: Writes the handle.
            unsafe { (nixl.ranges_create)(flags::MEMORY_HOST, list) }
        })?;
        // SAFETY: A live list.
        let status = unsafe { (nixl.ranges_add)(list.handle, address, bytes as usize, 0) };
        check("nixl_capi_xfer_dlist_add_desc", status)?;
        Ok(list)
    }

    /// Moves things along until nothing moves.
    pub(in crate::kvxfer::nixl) fn progress(&self) -> Result<(), String> {
        let nixl = self.nixl;
        let notes = List::new(nixl.notes_destroy, |list| {
            // SAFETY: Writes the handle.
            unsafe { (nixl.notes_create)(list) }
        })?;
        // SAFETY: A live agent and list. Nobody sends notifications; asking for them is how NIXL
        // lets a caller drive it.
        let status = unsafe { (nixl.notes_get)(self.handle, notes.handle, ptr::null_mut()) };
        check("nixl_capi_get_notifs", status)
    }

    /// Destroys it. When this returns well, nothing of it touches memory any more, whatever it was
    /// asked for: its connections and queues are gone.
    pub(in crate::kvxfer::nixl) fn end(self: Rc<Self>) -> Result<(), String> {
        let Ok(agent) = Rc::try_unwrap(self) else {
            return Err("somebody still uses the agent".into());
        };
        agent.destroy()
    }

    fn destroy(&self) -> Result<(), String> {
        if self.destroyed.replace(true) {
            return Ok(());
        }
        for request in self.orphans.take() {
            free(self, request); // only now: see the top
        }
        // SAFETY: A live agent, destroyed once; reads of it hold an `Rc` of it and are gone.
        let status = unsafe { (self.nixl.agent_destroy)(self.handle) };
        check("nixl_capi_destroy_agent", status).inspect_err(|_| {
            // What it may still write to stays where it is.
            std::mem::forget(self.memories.take());
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.destroy(); // an agent that cannot be destroyed keeps its memory
    }
}

/// Something that was asked for.
pub(in crate::kvxfer::nixl) struct Read {
    agent: Rc<Agent>,
    request: Handle,
    status: Status,
}

impl Read {
    /// `None` while in progress. Well only when all bytes are in place and nothing writes to them
    /// any more; an error does not say that.
    pub(in crate::kvxfer::nixl) fn ended(&mut self) -> Option<Result<(), String>> {
        if self.status == flags::IN_PROGRESS {
            let Agent { nixl, handle, .. } = &*self.agent;
            // SAFETY: A live agent, and its request, which was posted.
            self.status = unsafe { (nixl.request_status)(*handle, self.request) };
        }
        (self.status != flags::IN_PROGRESS).then(|| check("nixl_capi_get_xfer_status", self.status))
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        if self.status == 0 {
            free(&self.agent, self.request);
        } else {
            self.agent.orphans.borrow_mut().push(self.request);
        }
    }
}

/// Frees a request that has ended, or whose agent is about to be destroyed.
fn free(agent: &Agent, request: Handle) {
    // SAFETY: A live agent, and its request, released and then destroyed once. If NIXL refuses the
    // first, it refuses the second too.
    unsafe {
        (agent.nixl.request_release)(agent.handle, request);
        (agent.nixl.request_destroy)(request);
    }
}

/// A short-lived object of NIXL's.
struct List {
    handle: Handle,
    destroy: unsafe extern "C" fn(Handle) -> Status,
}

impl List {
    fn new(
        destroy: unsafe extern "C" fn(Handle) -> Status,
        create: impl FnOnce(*mut Handle) -> Status,
    ) -> Result<Self, String> {
        let mut handle = ptr::null_mut();
        check("a list of NIXL's", create(&raw mut handle))?;
        Ok(Self { handle, destroy })
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: Made by the function that goes with this one, destroyed once.
        unsafe { (self.destroy)(self.handle) };
    }
}

fn text(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{text:?} has a zero byte"))
}

/// NIXL tells few errors apart; its own log, on standard error, says more.
fn check(call: &str, status: Status) -> Result<(), String> {
    let why = match status {
        0 => return Ok(()),
        -1 => "invalid parameter",
        -2 => "the backend failed",
        -3 => "invalid state",
        -4 => "an exception",
        -6 => "not found",
        _ => return Err(format!("{call}: status {status}")),
    };
    Err(format!("{call}: {why}"))
}
