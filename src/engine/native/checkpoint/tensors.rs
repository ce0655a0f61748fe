//! Safetensors files: one, or shards listed in `model.safetensors.index.json`.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use xxhash_rust::xxh3::Xxh3;

use super::ffi;
use super::fields::Fields;
use crate::engine::native::error::{HeaderError, LoadError};

/// Length of the number that opens a file and says how long the header is.
const PREFIX: usize = 8;
/// Largest accepted header; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes of one sample of a tensor for the fingerprint.
const SAMPLE: usize = 4096;

const ONE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What a safetensors header says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Element type by its name in the format, e.g. `BF16`.
    pub dtype: String,
    /// Sizes, outermost first; row-major.
    pub shape: Vec<usize>,
    /// Bytes within the file.
    pub bytes: Range<usize>,
}

/// Reads the header of a whole safetensors file: which bytes hold which tensor.
///
/// Every range lies within `file` and has the length that shape and dtype need. Never panics,
/// whatever the bytes are.
///
/// # Errors
/// [`HeaderError`]: truncated, not JSON, or shapes, offsets and length that contradict each other.
pub fn parse_header(file: &[u8]) -> Result<HashMap<String, TensorEntry>, HeaderError> {
    let truncated = |need| HeaderError::Truncated { len: file.len(), need };
    let (prefix, rest) =
        file.split_first_chunk::<PREFIX>().ok_or_else(|| truncated(PREFIX as u64))?;
    let claimed = u64::from_le_bytes(*prefix);
    if claimed > MAX_HEADER {
        return Err(HeaderError::TooLarge { claimed, limit: MAX_HEADER });
    }
    let (header, data) = rest
        .split_at_checked(claimed as usize)
        .ok_or_else(|| truncated(claimed + PREFIX as u64))?;
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|e| HeaderError::Invalid(e.to_string()))?;
    if metadata.data_len() != data.len() {
        let (described, held) = (metadata.data_len(), data.len());
        return Err(HeaderError::Length { described, held });
    }
    let start = PREFIX + header.len();
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (from, to) = info.data_offsets;
        let bytes = start + from..start + to;
        (name, TensorEntry { dtype: info.dtype.to_string(), shape: info.shape.clone(), bytes })
    };
    Ok(metadata.tensors().into_iter().map(entry).collect())
}

/// The element types that weights may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine::native) enum Element {
    F32,
    F16,
    Bf16,
}

/// A tensor in a mapped file.
#[derive(Clone, Debug)]
pub(in crate::engine::native) struct Tensor<'a> {
    file: &'a Path,
    name: String,
    pub(in crate::engine::native) element: Element,
    /// Little-endian, row-major.
    pub(in crate::engine::native) data: &'a [u8],
}

impl Tensor<'_> {
    /// The tensor's first `rows` rows of `width` values.
    pub(in crate::engine::native) fn cut(mut self, rows: usize, width: usize) -> Self {
        self.data = &self.data[..rows * width * self.element.bytes()];
        self
    }

    /// All values as floats.
    pub(in crate::engine::native) fn values(&self) -> Vec<f32> {
        let data = self.data;
        match self.element {
            Element::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Element::F16 => {
                data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
            }
            Element::Bf16 => {
                data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
        }
    }

    /// The error for this tensor.
    pub(in crate::engine::native) fn wrong(
        &self,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> LoadError {
        LoadError::Tensor {
            file: self.file.to_owned(),
            tensor: self.name.clone(),
            found: found.into(),
            expected: expected.into(),
        }
    }
}

/// The weights files of a checkpoint, mapped.
pub(in crate::engine::native) struct Weights {
    shards: Vec<Shard>,
    /// The index and what it says; `None` where there is only one file.
    index: Option<(PathBuf, HashMap<String, usize>)>,
}

struct Shard {
    file: PathBuf,
    bytes: Mmap,
    tensors: HashMap<String, TensorEntry>,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that the index lists.
    pub(in crate::engine::native) fn open(dir: &Path) -> Result<Self, LoadError> {
        let index = dir.join(INDEX);
        if dir.join(ONE_FILE).exists() || !index.exists() {
            let shard = Shard::open(dir.join(ONE_FILE))?;
            return Ok(Self { shards: vec![shard], index: None });
        }
        let fields = Fields::read(&index, "the index of a sharded checkpoint")?;
        let map = fields.strings("weight_map")?;
        let mut shards: Vec<Shard> = Vec::new();
        let mut place_of_file = HashMap::new();
        let mut shard_of = HashMap::new();
        for (tensor, file) in map {
            let place = match place_of_file.get(&file) {
                Some(place) => *place,
                None => {
                    let plain = Path::new(&file).file_name().is_some_and(|name| name == &*file);
                    if !plain {
                        let rule = format!("shards must be plain file names; found {file:?}");
                        return Err(fields.wrong("weight_map", rule));
                    }
                    shards.push(Shard::open(dir.join(&file))?);
                    place_of_file.insert(file, shards.len() - 1);
                    shards.len() - 1
                }
            };
            shard_of.insert(tensor, place);
        }
        if shards.is_empty() {
            return Err(fields.wrong("weight_map", "must name the file of each tensor"));
        }
        Ok(Self { shards, index: Some((index, shard_of)) })
    }

    /// Hash of the tensors' names and shapes and of samples of each one's values: weights that were
    /// trained differently have another one, and nothing has to be read in full.
    pub(in crate::engine::native) fn fingerprint(&self, seed: u64) -> u64 {
        let tensors = self.shards.iter().flat_map(|shard| {
            shard
                .tensors
                .iter()
                .map(|(name, entry)| (name, entry, &shard.bytes[entry.bytes.clone()]))
        });
        let mut tensors: Vec<_> = tensors.collect();
        tensors.sort_by_key(|(name, ..)| *name);
        let mut hash = Xxh3::with_seed(seed);
        for (name, entry, bytes) in tensors {
            hash.update(format!("{name} {} {:?}", entry.dtype, entry.shape).as_bytes());
            let middle = bytes.len() / 2;
            for from in [0, middle, bytes.len().saturating_sub(SAMPLE)] {
                hash.update(&bytes[from..bytes.len().min(from + SAMPLE)]);
            }
        }
        hash.digest()
    }

    /// The tensor of this name, which must have this shape.
    pub(in crate::engine::native) fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<Tensor<'_>, LoadError> {
        let shard = match &self.index {
            None => self.shards.first(),
            Some((_, shard_of)) => shard_of.get(name).and_then(|place| self.shards.get(*place)),
        };
        let listing = self.index.as_ref().map(|(index, _)| index.clone());
        let file = shard.map(|shard| shard.file.clone()).or(listing).unwrap_or_default();
        let wrong = |found: String, expected: String| LoadError::Tensor {
            file: file.clone(),
            tensor: name.to_owned(),
            found,
            expected,
        };
        let found = shard.and_then(|shard| Some((shard, shard.tensors.get(name)?)));
        let Some((shard, entry)) = found else {
            let expected = format!("config.json asks for it with shape {shape:?}");
            return Err(wrong("is missing".to_owned(), expected));
        };
        let element = match entry.dtype.as_str() {
            "F32" => Element::F32,
            "F16" => Element::F16,
            "BF16" => Element::Bf16,
            other => {
                let supported = "supported are F32, F16 and BF16".to_owned();
                return Err(wrong(format!("has dtype {other}"), supported));
            }
        };
        if entry.shape != shape {
            let expected = format!("config.json asks for {shape:?}");
            return Err(wrong(format!("has shape {:?}", entry.shape), expected));
        }
        let data = &shard.bytes[entry.bytes.clone()];
        Ok(Tensor { file: &shard.file, name: name.to_owned(), element, data })
    }
}

impl Shard {
    fn open(file: PathBuf) -> Result<Self, LoadError> {
        let hint = "weights must be in model.safetensors, or in the shards that \
                    model.safetensors.index.json lists; convert other formats to safetensors";
        let io = |source| LoadError::Io { file: file.clone(), source, hint };
        let bytes = ffi::map(&File::open(&file).map_err(io)?).map_err(io)?;
        let tensors = parse_header(&bytes)
            .map_err(|detail| LoadError::Header { file: file.clone(), detail })?;
        Ok(Self { file, bytes, tensors })
    }
}

impl Element {
    /// Bytes of one value.
    pub(in crate::engine::native) fn bytes(self) -> usize {
        match self {
            Self::F32 => Dtype::F32.bitsize() / 8,
            Self::F16 => Dtype::F16.bitsize() / 8,
            Self::Bf16 => Dtype::BF16.bitsize() / 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn a_whole_file_gives_ranges_inside_it() {
        let header = r#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}"#;
        let bytes = file(header, 12);
        let tensors = parse_header(&bytes).unwrap();
        let start = 8 + header.len();
        assert_eq!(tensors["a"].bytes, start..start + 12);
        assert_eq!(tensors["a"].shape, [2, 3]);
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        let huge = u64::MAX.to_string();
        let cases = [
            (r#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}"#.to_owned(), 11),
            (r#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}"#.to_owned(), 13),
            (r#"{"a":{"dtype":"BF16","shape":[2,4],"data_offsets":[0,12]}}"#.to_owned(), 12),
            (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}}"#.to_owned(), 16),
            (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[12,0]}}"#.to_owned(), 12),
            (format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},2],"data_offsets":[0,8]}}}}"#), 8),
            (format!(r#"{{"a":{{"dtype":"U8","shape":[{huge}],"data_offsets":[0,{huge}]}}}}"#), 8),
            (r#"{"a":{"dtype":"F32"}}"#.to_owned(), 0),
            ("[1, 2".to_owned(), 0),
        ];
        for (header, data) in cases {
            assert!(parse_header(&file(&header, data)).is_err(), "{header}");
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let bytes = file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
        for len in 0..bytes.len() {
            assert!(parse_header(&bytes[..len]).is_err(), "cut at {len}");
        }
        let mut long = bytes;
        long[7] = 0xff;
        assert!(matches!(parse_header(&long), Err(HeaderError::TooLarge { .. })));
    }
}
