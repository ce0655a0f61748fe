//! Zeroed pages seen as a slice of plain values.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::MmapMut;

use crate::engine::native::cpu::simd::{Pair16, Pair32};
use crate::kvxfer::Memory;

/// A type for which all bit patterns are values.
///
/// # Safety
/// No padding, no invalid patterns, no destructor, alignment at most that of a page.
pub(in crate::engine::native::cpu) unsafe trait Plain:
    Copy + Send + Sync
{
}

// SAFETY: All bit patterns are values; no padding.
unsafe impl Plain for f32 {}
// SAFETY: All bit patterns are values; no padding.
unsafe impl Plain for u16 {}
/// BF16 weights of sixteen outputs for two consecutive inputs: `[output][2]`. One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(in crate::engine::native::cpu) struct Bf16Cell(pub(in crate::engine::native::cpu) Pair16);

/// F16 weights of sixteen outputs for two consecutive inputs: `[output][2]`. One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(in crate::engine::native::cpu) struct F16Cell(pub(in crate::engine::native::cpu) Pair16);

/// F32 weights of sixteen outputs for two consecutive inputs: `[2][output]`. Two cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(in crate::engine::native::cpu) struct F32Cell(pub(in crate::engine::native::cpu) Pair32);

// SAFETY: Transparent over plain values.
unsafe impl Plain for Bf16Cell {}
// SAFETY: Transparent over plain values.
unsafe impl Plain for F16Cell {}
// SAFETY: Transparent over plain values.
unsafe impl Plain for F32Cell {}
// SAFETY: An array of plain values has no padding of its own.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Zeroed, page-aligned values. The system gives a page when it is first written.
#[derive(Debug)]
pub(in crate::engine::native::cpu) struct Pages<T> {
    map: MmapMut,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Plain> Pages<T> {
    /// Memory for `len` values.
    pub(in crate::engine::native::cpu) fn zeroed(len: usize) -> io::Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| isize::try_from(*bytes).is_ok());
        let bytes = bytes.ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapMut::map_anon(bytes.max(1))?;
        // Fewer page-table walks while weights stream through; not every system offers it.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map, len, values: PhantomData })
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: The mapping holds `len` values (checked in `zeroed`), is aligned to a page, is
        // initialised by the system, and `T: Plain` accepts any content.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: As for `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}

/// Values in memory that transfers of KV blocks may touch as well, so that no reference ever covers
/// more than a caller asked for.
pub(in crate::engine::native::cpu) struct Shared<T> {
    memory: Arc<Memory>,
    values: PhantomData<T>,
}

impl<T: Plain> Shared<T> {
    /// Zeroed memory for `len` values, at least one.
    pub(in crate::engine::native::cpu) fn zeroed(len: usize) -> io::Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| isize::try_from(*bytes).is_ok());
        let bytes = bytes.ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory: Memory::zeroed(bytes)?, values: PhantomData })
    }

    /// The memory, for transfers.
    pub(in crate::engine::native::cpu) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The address of these values.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline(always)]
    fn at(&self, start: usize, len: usize) -> *mut T {
        let count = self.memory.bytes() as usize / size_of::<T>();
        assert!(start <= count && len <= count - start, "{len} values at {start} of {count}");
        // SAFETY: Within the allocation, as just checked.
        unsafe { self.memory.address().cast::<T>().add(start) }
    }

    /// Some values.
    #[inline(always)]
    pub(in crate::engine::native::cpu) fn part(&self, start: usize, len: usize) -> &[T] {
        // SAFETY: In bounds, aligned to a page and so to `T`, initialised by the system, and `T: Plain`
        // accepts any content. Who owns the pool reads a block only while no transfer writes to it: the
        // scheduler keeps blocks that are being fetched from being used (`engine::schedule`).
        unsafe { std::slice::from_raw_parts(self.at(start, len), len) }
    }

    /// The same, to be written.
    #[inline(always)]
    pub(in crate::engine::native::cpu) fn part_mut(
        &mut self,
        start: usize,
        len: usize,
    ) -> &mut [T] {
        // SAFETY: As for `part`. `&mut self` keeps other parts of this side away, and blocks that are
        // written here are not yet, or not any more, granted to a transfer that reads.
        unsafe { std::slice::from_raw_parts_mut(self.at(start, len), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_and_keep_what_is_written() {
        let mut pages = Pages::<[u16; 32]>::zeroed(1000).unwrap();
        assert!(pages.iter().flatten().all(|v| *v == 0));
        pages[999][31] = 7;
        assert_eq!(pages.len(), 1000);
        assert_eq!(pages[999][31], 7);
    }

    #[test]
    fn shared_values_are_read_and_written_in_parts() {
        let mut shared = Shared::<f32>::zeroed(100).unwrap();
        shared.part_mut(97, 3).copy_from_slice(&[1.0, 2.0, 3.0]);
        assert_eq!(shared.part(96, 4), [0.0, 1.0, 2.0, 3.0]);
        let mut bytes = [0; 4];
        shared.memory().read(98 * 4, &mut bytes);
        assert_eq!(f32::from_ne_bytes(bytes), 2.0);
        let outside = std::panic::AssertUnwindSafe(|| shared.part(1 << 20, 1).len());
        assert!(std::panic::catch_unwind(outside).is_err());
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        assert!(Pages::<f32>::zeroed(usize::MAX / 2).is_err());
        assert_eq!(Pages::<f32>::zeroed(0).unwrap().len(), 0);
    }
}
