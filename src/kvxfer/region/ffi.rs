//! Raw access to a pool that its owner and transports share, by checked offsets.
//!
//! Who may touch which bytes when is not known here: the ledger of the pool's owner keeps a block
//! from being used by the engine while a transfer may write it, and from being written while a
//! transfer may read it. All access is by raw pointers and system calls, so that a peer that breaks
//! the rules can spoil bytes of KV, but no reference ever promises what is not so.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::{MmapOptions, MmapRaw};
use xxhash_rust::xxh3::Xxh3;

use super::{MemoryKind, Part};

/// System calls take at most this many pieces (`IOV_MAX` is 1,024 on Linux).
const MAX_PIECES: usize = 256;
/// Bytes that the checksum of host memory looks at in one go.
const WINDOW: usize = 4096;

/// A pool's memory: `bytes` from an address that stays valid while this lives.
pub struct Memory {
    address: *mut u8,
    bytes: u64,
    kind: MemoryKind,
    device: u32,
    /// Keeps the memory alive.
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: The address is valid in every thread, and the owner is `Send + Sync`. Data races are kept
// out by the ledger (see the top).
unsafe impl Send for Memory {}
// SAFETY: As for `Send`; no method makes a reference into the memory that outlives it.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeroed, page-aligned main memory; the system gives a page when it is first touched.
    ///
    /// # Errors
    /// What the system says, for 0 bytes too.
    pub fn zeroed(bytes: usize) -> io::Result<Arc<Self>> {
        let map = MmapRaw::from(MmapOptions::new().len(bytes).map_anon()?);
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage); // not every system offers it
        let (address, bytes) = (map.as_mut_ptr(), map.len() as u64);
        let owner = Arc::new(map);
        Ok(Arc::new(Self { address, bytes, kind: MemoryKind::Host, device: 0, owner }))
    }

    /// Memory of somebody else.
    ///
    /// # Safety
    /// `address..address + bytes` is one allocation of that kind, which stays valid for reads and
    /// writes from any thread until the returned value and `owner` are dropped.
    pub unsafe fn from_raw(
        address: *mut u8,
        bytes: u64,
        (kind, device): (MemoryKind, u32),
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Self { address, bytes, kind, device, owner })
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it lies.
    pub fn kind(&self) -> MemoryKind {
        self.kind
    }

    /// Which device; 0 for main memory.
    pub fn device(&self) -> u32 {
        self.device
    }

    /// Its first byte, for the owner of the pool and for libraries that register memory.
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    /// Writes bytes, for owners that have no other way in, and for tests.
    ///
    /// # Panics
    /// If they do not fit, or it is not main memory.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let to = self.at(Part { offset, bytes: bytes.len() as u64 });
        // SAFETY: `at` has checked the range; the source is a slice and cannot overlap memory that
        // nobody holds a reference to.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Reads bytes.
    ///
    /// # Panics
    /// If there are not so many, or it is not main memory.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        let from = self.at(Part { offset, bytes: bytes.len() as u64 });
        // SAFETY: As for `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Writes a number, little-endian, that peers read by themselves. What this thread writes
    /// afterwards, here or elsewhere, is not seen before it.
    ///
    /// # Panics
    /// If it does not fit, is not aligned to 8 bytes, or it is not main memory.
    pub(in crate::kvxfer) fn publish(&self, offset: u64, number: u128) {
        let to = self.at(Part { offset, bytes: 16 }).cast::<AtomicU64>();
        assert!(to.is_aligned(), "{offset} in {self:?} is not aligned");
        for (place, half) in [number as u64, (number >> 64) as u64].into_iter().enumerate() {
            // SAFETY: Within the 16 bytes that `at` has checked, aligned as just asserted; what else
            // touches them does so by system calls, devices or `read`, which makes no reference.
            let to = unsafe { &*to.add(place) };
            to.store(half.to_le(), Ordering::Relaxed);
        }
        // A release store would let later writes pass it.
        fence(Ordering::SeqCst);
    }

    /// Copies a part of another memory to `offset`; the two may be the same.
    ///
    /// # Panics
    /// If a range leaves its memory, or one is not main memory.
    pub(in crate::kvxfer) fn copy_from(&self, offset: u64, source: &Memory, part: Part) {
        let from = source.at(part);
        let to = self.at(Part { offset, ..part });
        // SAFETY: `at` has checked both ranges; `copy` allows overlap.
        unsafe { std::ptr::copy(from, to, part.bytes as usize) }
    }

    /// One read of a socket: first the parts, then `after`. Returns the bytes read; 0 is the end.
    ///
    /// # Errors
    /// Those of `recvmsg`; an interrupted call is repeated.
    ///
    /// # Panics
    /// If a part leaves the memory.
    pub(in crate::kvxfer) fn receive(
        &self,
        socket: BorrowedFd<'_>,
        parts: &[Part],
        after: &mut [u8],
    ) -> io::Result<usize> {
        let mut pieces = self.pieces(parts);
        if pieces.len() == parts.len() {
            pieces.push(piece(after.as_mut_ptr(), after.len()));
        }
        again(|| {
            // SAFETY: Each piece is a checked part of this memory or the caller's exclusive slice,
            // valid during the call, and there are at most MAX_PIECES + 1 of them.
            unsafe { libc::readv(socket.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32) }
        })
    }

    /// One write to a socket: first `before`, then the parts, then, if these are not too many for one
    /// call, `after`. Returns the bytes written.
    ///
    /// # Errors
    /// Those of `sendmsg`; an interrupted call is repeated. A closed peer is an error, not a signal.
    ///
    /// # Panics
    /// If a part leaves the memory.
    pub(in crate::kvxfer) fn send(
        &self,
        socket: BorrowedFd<'_>,
        before: &[u8],
        parts: &[Part],
        after: &[u8],
    ) -> io::Result<usize> {
        let mut pieces = self.pieces(parts);
        if pieces.len() == parts.len() {
            pieces.push(piece(after.as_ptr().cast_mut(), after.len()));
        }
        pieces.insert(0, piece(before.as_ptr().cast_mut(), before.len()));
        // SAFETY: All zeros is a value of this plain C struct.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = pieces.len() as _;
        again(|| {
            // SAFETY: The header points to pieces valid during the call; sendmsg only reads them.
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }
        })
    }

    /// XXH3 of the parts, one after the other.
    ///
    /// # Panics
    /// If a part leaves the memory.
    pub(in crate::kvxfer) fn checksum(&self, parts: &[Part]) -> u64 {
        let (mut hash, mut window) = (Xxh3::new(), [0; WINDOW]);
        for part in parts {
            let (mut offset, end) = (part.offset, part.offset + part.bytes);
            while offset < end {
                let len = (end - offset).min(WINDOW as u64) as usize;
                // By copy: a peer may write meanwhile, which a slice would forbid.
                self.read(offset, &mut window[..len]);
                hash.update(&window[..len]);
                offset += len as u64;
            }
        }
        hash.digest()
    }

    fn pieces(&self, parts: &[Part]) -> Vec<libc::iovec> {
        let mut pieces = Vec::with_capacity(parts.len().min(MAX_PIECES) + 2);
        pieces.extend(
            parts.iter().take(MAX_PIECES).map(|part| piece(self.at(*part), part.bytes as usize)),
        );
        pieces
    }

    /// The address of a part.
    ///
    /// # Panics
    /// If it leaves the memory or is not in main memory: callers have checked what came from
    /// elsewhere, so this is a bug of ours.
    fn at(&self, part: Part) -> *mut u8 {
        let end = part.offset.checked_add(part.bytes);
        assert!(end.is_some_and(|end| end <= self.bytes), "{part:?} leaves {self:?}");
        assert_eq!(self.kind, MemoryKind::Host, "host access to {self:?}");
        // SAFETY: Within the allocation, as just checked.
        unsafe { self.address.add(part.offset as usize) }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, kind, device, owner, .. } = self;
        write!(f, "Memory({bytes} B, {kind:?} {device}, {} owners)", Arc::strong_count(owner))
    }
}

/// Lets a socket count as readable only once so many bytes are there, or its end. Advice: a socket
/// that refuses it works as before.
pub(in crate::kvxfer) fn wake_after(socket: BorrowedFd<'_>, bytes: u32) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_RCVLOWAT);
    // SAFETY: The option takes a number of that length, which lives during the call.
    unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const bytes).cast(), length);
    }
}

fn piece(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len }
}

fn again(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn part(offset: u64, bytes: u64) -> Part {
        Part { offset, bytes }
    }

    #[test]
    fn parts_of_a_memory_travel_through_a_socket_to_their_places() {
        let (a, b) = UnixStream::pair().unwrap();
        let (from, to) = (Memory::zeroed(9000).unwrap(), Memory::zeroed(9000).unwrap());
        from.write(10, b"hello");
        from.write(8990, b"world");
        let sent = from.send(a.as_fd(), b"HEAD", &[part(8990, 5), part(10, 5)], b"TAIL").unwrap();
        assert_eq!(sent, 18);
        let mut head = [0; 4];
        let nothing: [Part; 0] = [];
        assert_eq!(to.receive(b.as_fd(), &nothing, &mut head).unwrap(), 4);
        let mut rest = [0; 8];
        let got = to.receive(b.as_fd(), &[part(100, 5), part(0, 2)], &mut rest).unwrap();
        assert_eq!((got, &head, &rest[..7]), (14, b"HEAD", b"lloTAIL".as_slice()));
        let mut back = [0; 5];
        to.read(100, &mut back);
        assert_eq!(&back, b"world");
        assert_eq!(
            from.checksum(&[part(8990, 5), part(10, 5)]),
            xxhash_rust::xxh3::xxh3_64(b"worldhello")
        );
        to.copy_from(8000, &from, part(8990, 5));
        assert_eq!(to.checksum(&[part(8000, 5)]), from.checksum(&[part(8990, 5)]));
        drop(b);
        assert!(from.send(a.as_fd(), b"x", &[], &[]).is_err()); // and no signal
    }

    #[test]
    fn a_published_number_is_there_in_its_bytes() {
        let memory = Memory::zeroed(64).unwrap();
        let number = 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10;
        memory.publish(24, number);
        let mut bytes = [0; 16];
        memory.read(24, &mut bytes);
        assert_eq!(bytes, number.to_le_bytes());
    }

    #[test]
    #[should_panic(expected = "leaves")]
    fn a_part_outside_is_a_bug() {
        Memory::zeroed(4096).unwrap().write(4090, &[0; 7]);
    }

    #[test]
    fn no_memory_is_an_error() {
        assert!(Memory::zeroed(isize::MAX as usize).is_err());
    }
}
