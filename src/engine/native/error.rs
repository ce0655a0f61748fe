//! Why a checkpoint cannot be run: each error names the file, the field or tensor, and what would do.

use std::io;
use std::path::PathBuf;

/// Why a checkpoint directory could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file is missing or cannot be read.
    #[error("{}: cannot be read: {source}; {hint}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
        /// What the file is needed for.
        hint: &'static str,
    },
    /// A file should be JSON and is not.
    #[error("{}: not the JSON object it should be: {detail}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where and why.
        detail: String,
    },
    /// A field of a JSON file is missing, has a wrong value or asks for something unsupported.
    #[error("{}: {field} = {value}: {rule}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field, with dots for nesting.
        field: String,
        /// Its value as JSON, or `(missing)`.
        value: String,
        /// What is supported.
        rule: String,
    },
    /// A safetensors file whose header does not describe it.
    #[error("{}: not a whole safetensors file: {detail}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        detail: HeaderError,
    },
    /// A tensor is missing or is not what the config promises.
    #[error("{}: tensor {tensor}: {found}; {expected}", file.display())]
    Tensor {
        /// The file that should hold it.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// An option that this model or machine cannot satisfy.
    #[error("{option} = {value}: {rule}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is supported.
        rule: String,
    },
    /// The system refused to start threads.
    #[error("{count} threads: the system refused: {source}; lower the number of threads")]
    Threads {
        /// How many were asked for.
        count: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system refused memory.
    #[error("{what} ({bytes} bytes): the system refused: {source}")]
    Memory {
        /// What it was for.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why bytes are not a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Shorter than its own header.
    #[error("it has {len} bytes, its header alone needs {need}; the file is truncated")]
    Truncated {
        /// Bytes in the file.
        len: usize,
        /// Bytes that the header claims.
        need: u64,
    },
    /// The header is larger than any real one.
    #[error("its header claims {claimed} bytes; at most {limit} are accepted")]
    TooLarge {
        /// Bytes that the header claims.
        claimed: u64,
        /// The limit.
        limit: u64,
    },
    /// The header is not JSON, or its offsets and shapes contradict each other.
    #[error("its header is wrong: {0}")]
    Invalid(String),
    /// The header describes more or fewer bytes than there are.
    #[error("its header describes {described} bytes of tensors, the file holds {held}")]
    Length {
        /// Bytes described.
        described: usize,
        /// Bytes after the header.
        held: usize,
    },
}
