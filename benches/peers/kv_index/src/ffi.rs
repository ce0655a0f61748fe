//! The system's allocator, counting bytes where a run asks for it, and a thread's own clock.
//!
//! Counting costs an atomic addition per allocation, so runs that measure time leave it off.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

static COUNTING: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// [`System`], counted.
pub struct Counted;

// SAFETY: every call is passed on to `System` unchanged, and so are its promises.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps to the contract of `alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

fn count(more: usize, less: usize) {
    if COUNTING.load(Relaxed) {
        BYTES.fetch_add(more.wrapping_sub(less), Relaxed);
    }
}

/// Seconds and nanoseconds.
#[repr(C)]
struct Timespec(i64, i64);

/// Of 64-bit Linux.
const CLOCK_THREAD_CPUTIME_ID: i32 = 3;

unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
}

/// Time the calling thread was on the processor.
pub fn busy() -> Duration {
    let mut time = Timespec(0, 0);
    // SAFETY: the clock is one of the kernel's, and `time` is laid out as the C library's.
    let result = unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "a clock of the thread");
    Duration::new(time.0.cast_unsigned(), time.1 as u32)
}

/// Counts from now on.
pub fn start_counting() {
    COUNTING.store(true, Relaxed);
}

/// Bytes allocated and not yet freed since counting began; what was there before and is freed
/// since counts negative.
pub fn bytes() -> isize {
    BYTES.load(Relaxed).cast_signed()
}
