//! Memory-mapping a weights file.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a file for reading.
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: The mapping is private and only read. Another process could still change the file
    // while it is mapped; as with every mapped checkpoint, that must not happen, and the mapping
    // lives only while the checkpoint is being loaded.
    unsafe { Mmap::map(file) }
}
