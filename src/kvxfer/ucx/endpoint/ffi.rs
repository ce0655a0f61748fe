//! Owners of UCP's objects. None of them is `Send`: one thread makes, uses and drops them.
//!
//! What UCP may still write to is never freed before UCP has ended with it: a request that is
//! dropped while in progress leaves its memory to the worker, which frees it after its own end.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicI8, Ordering::Relaxed};

use crate::kvxfer::region::{Memory, MemoryKind};
use crate::kvxfer::ucx::library::{
    ContextAttributes, ContextHandle, ContextParams, EndpointHandle, EndpointParams, ErrorHandler,
    MemoryHandle, MemoryParams, RequestParams, RkeyHandle, Status, Ucp, WorkerHandle, WorkerParams,
    flags, with_config,
};

/// The oldest interface whose functions are all that is used here.
const INTERFACE: (u32, u32) = (1, 13);
/// UCP reads packed keys and addresses without knowing their length: they are followed by so many
/// zeros that a wrong length inside them stays within the buffer.
const PADDING: usize = 64 << 10;

/// `ucp_context_h`: devices and settings.
pub(in crate::kvxfer::ucx) struct Context {
    ucp: &'static Ucp,
    handle: ContextHandle,
}

impl Context {
    pub(in crate::kvxfer::ucx) fn new(
        ucp: &'static Ucp,
        settings: &[(&str, &str)],
    ) -> Result<Rc<Self>, String> {
        let params = ContextParams {
            field_mask: flags::PARAM_FIELD_FEATURES,
            features: flags::FEATURE_RMA | flags::FEATURE_WAKEUP,
            ..ContextParams::default()
        };
        let mut handle = ptr::null_mut();
        let status = with_config(ucp, settings, |config| {
            let (major, minor) = INTERFACE;
            // SAFETY: The structures live during the call; writes the handle.
            unsafe { (ucp.init_version)(major, minor, &raw const params, config, &raw mut handle) }
        })?;
        check(ucp, "ucp_init", status)?;
        Ok(Rc::new(Self { ucp, handle }))
    }

    /// Whether CUDA memory can be moved.
    pub(in crate::kvxfer::ucx) fn has_cuda(&self) -> bool {
        let mut attributes = ContextAttributes {
            field_mask: flags::ATTR_FIELD_MEMORY_TYPES,
            ..ContextAttributes::default()
        };
        // SAFETY: A live context; writes the fields of the mask.
        let status = unsafe { (self.ucp.context_query)(self.handle, &raw mut attributes) };
        status == 0 && attributes.memory_types & (1 << flags::MEMORY_TYPE_CUDA) != 0
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: Everything made from it holds an `Rc` of it and is gone.
        unsafe { (self.ucp.cleanup)(self.handle) }
    }
}

/// A registered pool (`ucp_mem_h`).
pub(in crate::kvxfer::ucx) struct Mapped {
    context: Rc<Context>,
    handle: MemoryHandle,
    memory: Arc<Memory>,
}

impl Mapped {
    pub(in crate::kvxfer::ucx) fn new(
        context: &Rc<Context>,
        memory: Arc<Memory>,
    ) -> Result<Rc<Self>, String> {
        let params = MemoryParams {
            field_mask: flags::MEM_MAP_PARAM_FIELD_ADDRESS
                | flags::MEM_MAP_PARAM_FIELD_LENGTH
                | flags::MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
            address: memory.address().cast(),
            length: memory.bytes() as usize,
            memory_type: memory_type(&memory),
            ..MemoryParams::default()
        };
        let mut handle = ptr::null_mut();
        // SAFETY: `Memory` is one valid allocation, kept alive until after the unmapping.
        let status =
            unsafe { (context.ucp.mem_map)(context.handle, &raw const params, &raw mut handle) };
        check(context.ucp, "ucp_mem_map", status)?;
        Ok(Rc::new(Self { context: context.clone(), handle, memory }))
    }

    /// What a peer needs to read it.
    pub(in crate::kvxfer::ucx) fn pack(&self) -> Result<Vec<u8>, String> {
        let Context { ucp, handle } = &*self.context;
        let (mut buffer, mut bytes) = (ptr::null_mut(), 0);
        // SAFETY: A live context and mapping; writes the buffer's address and length.
        let status =
            unsafe { (ucp.rkey_pack)(*handle, self.handle, &raw mut buffer, &raw mut bytes) };
        check(ucp, "ucp_rkey_pack", status)?;
        // SAFETY: The buffer was just made and has that length.
        let packed = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), bytes) }.to_vec();
        // SAFETY: Released once, not used after.
        unsafe { (ucp.rkey_release)(buffer) };
        Ok(packed)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: Requests that could touch it hold an `Rc` of it, or have left it to the worker,
        // which has ended. A failure leaves it mapped until the context ends.
        unsafe { (self.context.ucp.mem_unmap)(self.context.handle, self.handle) };
    }
}

/// `ucp_worker_h`: the progress engine.
pub(in crate::kvxfer::ucx) struct Worker {
    context: Rc<Context>,
    handle: WorkerHandle,
    event: BorrowedFd<'static>,
    /// What requests that never ended may still touch; dropped after the worker's end.
    orphans: RefCell<Vec<Orphan>>,
}

/// Kept for its drop.
#[expect(dead_code, reason = "holds memory that UCP may still use")]
enum Orphan {
    Transfer(Option<Rc<Mapped>>, Option<Rc<RemoteKey>>),
    Flag(Box<AtomicI8>),
}

impl Worker {
    pub(in crate::kvxfer::ucx) fn new(context: &Rc<Context>) -> Result<Rc<Self>, String> {
        let ucp = context.ucp;
        let params = WorkerParams {
            field_mask: flags::WORKER_PARAM_FIELD_THREAD_MODE,
            thread_mode: flags::THREAD_MODE_SINGLE,
            ..WorkerParams::default()
        };
        let mut handle = ptr::null_mut();
        // SAFETY: A live context; writes the handle.
        let status =
            unsafe { (ucp.worker_create)(context.handle, &raw const params, &raw mut handle) };
        check(ucp, "ucp_worker_create", status)?;
        let mut fd = -1;
        // SAFETY: A live worker; writes a descriptor that it owns.
        let status = unsafe { (ucp.worker_get_efd)(handle, &raw mut fd) };
        if let Err(why) = check(ucp, "ucp_worker_get_efd", status) {
            // SAFETY: Made above, used by nobody.
            unsafe { (ucp.worker_destroy)(handle) };
            return Err(why);
        }
        // SAFETY: Open until the worker ends; `event` is only lent out for as long as `self` lives.
        let event = unsafe { BorrowedFd::borrow_raw(fd) };
        Ok(Rc::new(Self { context: context.clone(), handle, event, orphans: RefCell::default() }))
    }

    /// What a peer needs to connect.
    pub(in crate::kvxfer::ucx) fn address(&self) -> Result<Vec<u8>, String> {
        let ucp = self.context.ucp;
        let (mut address, mut bytes) = (ptr::null_mut(), 0);
        // SAFETY: A live worker; writes the address's place and length.
        let status =
            unsafe { (ucp.worker_get_address)(self.handle, &raw mut address, &raw mut bytes) };
        check(ucp, "ucp_worker_get_address", status)?;
        // SAFETY: Just made, of that length.
        let packed = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), bytes) }.to_vec();
        // SAFETY: Released once, not used after.
        unsafe { (ucp.worker_release_address)(self.handle, address) };
        Ok(packed)
    }

    /// Moves things along; whether anything moved.
    pub(in crate::kvxfer::ucx) fn progress(&self) -> bool {
        // SAFETY: A live worker, on its thread; not from a callback (ours only set a flag).
        unsafe { (self.context.ucp.worker_progress)(self.handle) != 0 }
    }

    /// Whether the descriptor will now tell of the next event; if not, progress first.
    pub(in crate::kvxfer::ucx) fn arm(&self) -> Result<bool, String> {
        let ucp = self.context.ucp;
        // SAFETY: A live worker, on its thread.
        match unsafe { (ucp.worker_arm)(self.handle) } {
            flags::BUSY => Ok(false),
            status => check(ucp, "ucp_worker_arm", status).map(|()| true),
        }
    }
}

impl AsFd for Worker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: Endpoints and requests hold an `Rc` of it and are gone or have left what they
        // need in `orphans`, which is dropped after this.
        unsafe { (self.context.ucp.worker_destroy)(self.handle) }
    }
}

/// `ucp_ep_h`: the way to one peer.
pub(in crate::kvxfer::ucx) struct Endpoint {
    worker: Rc<Worker>,
    /// `None` once it is being closed.
    handle: Option<EndpointHandle>,
    /// Status of the peer's failure; 0 while there is none. UCP holds its address.
    failure: Option<Box<AtomicI8>>,
}

/// Called by UCP within `progress` when a peer fails.
extern "C" fn on_failure(argument: *mut c_void, _endpoint: EndpointHandle, status: Status) {
    // SAFETY: The flag of an endpoint, which outlives the endpoint's handle.
    unsafe { &*argument.cast::<AtomicI8>() }.store(status, Relaxed);
}

impl Endpoint {
    pub(in crate::kvxfer::ucx) fn new(worker: &Rc<Worker>, address: &[u8]) -> Result<Self, String> {
        let ucp = worker.context.ucp;
        let failure = Box::new(AtomicI8::new(0));
        let address = padded(address);
        let params = EndpointParams {
            field_mask: flags::EP_PARAM_FIELD_REMOTE_ADDRESS
                | flags::EP_PARAM_FIELD_ERR_HANDLING_MODE
                | flags::EP_PARAM_FIELD_ERR_HANDLER,
            address: address.as_ptr().cast(),
            error_mode: flags::ERR_HANDLING_MODE_PEER,
            error_handler: ErrorHandler {
                call: Some(on_failure),
                argument: (&raw const *failure).cast_mut().cast(),
            },
            ..EndpointParams::default()
        };
        let mut handle = ptr::null_mut();
        // SAFETY: A live worker, on its thread; the address is a peer's and padded, and copied by
        // UCP; the flag outlives the handle (`Drop` leaves it to the worker).
        let status = unsafe { (ucp.ep_create)(worker.handle, &raw const params, &raw mut handle) };
        let endpoint =
            Self { worker: worker.clone(), handle: Some(handle), failure: Some(failure) };
        check(ucp, "ucp_ep_create", status)?; // the drop keeps the flag until the worker ends
        Ok(endpoint)
    }

    /// Why the peer is lost, if it is.
    pub(in crate::kvxfer::ucx) fn failure(&self) -> Option<String> {
        let status = self.failure.as_ref()?.load(Relaxed);
        (status != 0).then(|| self.worker.context.ucp.status(status))
    }

    /// A peer's pool that this endpoint may read.
    pub(in crate::kvxfer::ucx) fn unpack(&self, packed: &[u8]) -> Result<Rc<RemoteKey>, String> {
        let ucp = self.worker.context.ucp;
        let endpoint = self.handle.ok_or("the endpoint is closed")?;
        let packed = padded(packed);
        let mut handle = ptr::null_mut();
        // SAFETY: A live endpoint; the buffer is a peer's and padded; writes the handle.
        let status =
            unsafe { (ucp.rkey_unpack)(endpoint, packed.as_ptr().cast(), &raw mut handle) };
        check(ucp, "ucp_ep_rkey_unpack", status)?;
        Ok(Rc::new(RemoteKey { worker: Rc::downgrade(&self.worker), handle }))
    }

    /// Starts to read `bytes` at a peer's `address` into a pool at `offset`.
    ///
    /// # Panics
    /// If the range leaves the pool: it was checked before.
    pub(in crate::kvxfer::ucx) fn get(
        &self,
        local: (&Rc<Mapped>, u64),
        remote: (&Rc<RemoteKey>, u64),
        bytes: u64,
    ) -> Result<Request, String> {
        let endpoint = self.handle.ok_or("the endpoint is closed")?;
        let (mapped, offset) = local;
        let memory = &mapped.memory;
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= memory.bytes()), "{offset}+{bytes} leaves {memory:?}");
        let params = RequestParams {
            op_attr_mask: flags::OP_ATTR_FIELD_MEMH
                | flags::OP_ATTR_FIELD_MEMORY_TYPE
                | flags::OP_ATTR_FLAG_MULTI_SEND,
            memory_type: memory_type(memory),
            memory: mapped.handle,
            ..RequestParams::default()
        };
        // SAFETY: The local range is within registered memory that the request keeps alive until
        // it has ended; the key is this worker's. A wrong remote address is the peer's to refuse:
        // it cannot make UCP write elsewhere here.
        let request = unsafe {
            let to = memory.address().add(offset as usize).cast();
            let get = self.worker.context.ucp.get;
            get(endpoint, to, bytes as usize, remote.1, remote.0.handle, &raw const params)
        };
        let kept = Some((mapped.clone(), remote.0.clone()));
        Ok(Request::new(&self.worker, request, kept))
    }

    /// Ends when everything posted before has ended here and there.
    pub(in crate::kvxfer::ucx) fn flush(&self) -> Result<Request, String> {
        let endpoint = self.handle.ok_or("the endpoint is closed")?;
        let params = RequestParams::default();
        // SAFETY: A live endpoint, on its thread.
        let request = unsafe { (self.worker.context.ucp.ep_flush)(endpoint, &raw const params) };
        Ok(Request::new(&self.worker, request, None))
    }

    /// Starts to close it without the peer's help; `None` if that was done before. Requests in
    /// progress end with an error, or run to their end.
    pub(in crate::kvxfer::ucx) fn close(&mut self) -> Option<Request> {
        let endpoint = self.handle.take()?;
        let params = RequestParams {
            op_attr_mask: flags::OP_ATTR_FIELD_FLAGS,
            flags: flags::EP_CLOSE_FLAG_FORCE,
            ..RequestParams::default()
        };
        // SAFETY: A live endpoint, closed once: the handle is taken.
        let request = unsafe { (self.worker.context.ucp.ep_close)(endpoint, &raw const params) };
        Some(Request::new(&self.worker, request, None))
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // The handle, if open, ends with the worker; UCP may call back until then.
        if let Some(flag) = self.failure.take() {
            self.worker.orphans.borrow_mut().push(Orphan::Flag(flag));
        }
    }
}

/// `ucp_rkey_h`: the right to read a peer's pool.
pub(in crate::kvxfer::ucx) struct RemoteKey {
    worker: Weak<Worker>,
    handle: RkeyHandle,
}

impl Drop for RemoteKey {
    fn drop(&mut self) {
        // With the worker gone, so is the key.
        if let Some(worker) = self.worker.upgrade() {
            // SAFETY: Requests that use it hold an `Rc` of it or have left it to the worker.
            unsafe { (worker.context.ucp.rkey_destroy)(self.handle) }
        }
    }
}

/// Something that was posted. Its memory is kept until it has ended.
pub(in crate::kvxfer::ucx) struct Request {
    worker: Rc<Worker>,
    state: State,
    kept: Option<(Rc<Mapped>, Rc<RemoteKey>)>,
}

enum State {
    Ended(Status),
    Posted(*mut c_void),
}

impl Request {
    fn new(
        worker: &Rc<Worker>,
        request: *mut c_void,
        kept: Option<(Rc<Mapped>, Rc<RemoteKey>)>,
    ) -> Self {
        // As `UCS_PTR_IS_ERR`: the last addresses are error codes, null is immediate success.
        let address = request.addr() as isize;
        let state = match address {
            flags::LAST_ERROR..=0 => State::Ended(address as Status), // at least -100
            _ => State::Posted(request),
        };
        Self { worker: worker.clone(), state, kept }
    }

    /// `None` while in progress.
    pub(in crate::kvxfer::ucx) fn ended(&mut self) -> Option<Result<(), String>> {
        let ucp = self.worker.context.ucp;
        if let State::Posted(request) = self.state {
            // SAFETY: A request of this worker, not yet freed.
            let status = unsafe { (ucp.request_status)(request) };
            if status == 1 {
                return None;
            }
            // SAFETY: It has ended and is freed once: the state changes with it.
            unsafe { (ucp.request_free)(request) };
            self.state = State::Ended(status);
            self.kept = None;
        }
        match self.state {
            State::Ended(0) => Some(Ok(())),
            State::Ended(status) => Some(Err(ucp.status(status))),
            State::Posted(_) => None,
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.ended().is_none()
            && let Some((mapped, key)) = self.kept.take()
        {
            let orphan = Orphan::Transfer(Some(mapped), Some(key));
            self.worker.orphans.borrow_mut().push(orphan);
        }
    }
}

fn check(ucp: &Ucp, call: &str, status: Status) -> Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("{call}: {}", ucp.status(status))) }
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = Vec::with_capacity(bytes.len() + PADDING);
    padded.extend_from_slice(bytes);
    padded.resize(bytes.len() + PADDING, 0);
    padded
}

fn memory_type(memory: &Memory) -> u32 {
    match memory.kind() {
        MemoryKind::Host => flags::MEMORY_TYPE_HOST,
        MemoryKind::Cuda => flags::MEMORY_TYPE_CUDA,
    }
}
