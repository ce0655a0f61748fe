//! Frames on the socket: a length, then that many bytes.

use std::io::{self, Read};

use bincode::{Decode, Encode};

/// Bytes before each frame: its length, little-endian.
const HEADER: usize = 4;
/// Bytes of the largest frame: far more than a step or a prompt has.
const MOST: usize = 256 << 20;
/// Most memory that decoding one frame may ask for.
const DECODED: usize = 1 << 30;
/// Room made before each read.
const READ: usize = 64 << 10;

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of {bytes} bytes is over the limit of {MOST}")]
    TooLarge { bytes: usize },
    #[error("a frame of {bytes} bytes cannot be understood: {detail}")]
    Garbage { bytes: usize, detail: String },
}

/// Appends a frame to what is to be written; nothing if it is too large.
pub(super) fn put(buffer: &mut Vec<u8>, message: &impl Encode) -> Result<(), FrameError> {
    let at = buffer.len();
    buffer.extend_from_slice(&[0; HEADER]);
    let written = bincode::encode_into_std_write(message, buffer, bincode::config::standard());
    let bytes = buffer.len() - at - HEADER;
    let error = match written {
        Err(error) => FrameError::Garbage { bytes, detail: error.to_string() },
        Ok(_) if bytes > MOST => FrameError::TooLarge { bytes },
        Ok(_) => {
            buffer[at..at + HEADER].copy_from_slice(&(bytes as u32).to_le_bytes());
            return Ok(());
        }
    };
    buffer.truncate(at);
    Err(error)
}

/// What was read and not yet taken.
#[derive(Default)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    /// Bytes of it that were taken.
    taken: usize,
}

impl Frames {
    /// Reads once; 0 at the end.
    pub(super) fn read(&mut self, from: &mut impl Read) -> io::Result<usize> {
        self.buffer.drain(..std::mem::take(&mut self.taken));
        let had = self.buffer.len();
        self.buffer.resize(had + READ, 0);
        let read = from.read(&mut self.buffer[had..]);
        self.buffer.truncate(had + *read.as_ref().unwrap_or(&0));
        read
    }

    /// The next message, if all of it was read.
    pub(super) fn next<T: Decode<()>>(&mut self) -> Result<Option<T>, FrameError> {
        let rest = &self.buffer[self.taken..];
        let Some(header) = rest.first_chunk::<HEADER>() else { return Ok(None) };
        let bytes = u32::from_le_bytes(*header) as usize;
        if bytes > MOST {
            return Err(FrameError::TooLarge { bytes });
        }
        let Some(frame) = rest.get(HEADER..HEADER + bytes) else { return Ok(None) };
        let garbage = |detail: String| FrameError::Garbage { bytes, detail };
        let config = bincode::config::standard().with_limit::<DECODED>();
        let (message, read) =
            bincode::decode_from_slice(frame, config).map_err(|e| garbage(e.to_string()))?;
        if read < bytes {
            return Err(garbage(format!("{} bytes are left over", bytes - read)));
        }
        self.taken += HEADER + bytes;
        Ok(Some(message))
    }
}
