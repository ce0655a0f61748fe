//! Adapters (LoRA) on an engine's weights. TensorRT-LLM is given one's weights with the first request that
//! wants it, and keeps them in a cache; where it has dropped them since, the request is made again with them.

use std::fmt;
use std::path::Path;

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::Value;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::super::ffi::{Fault, HostTensor, RequestOptions, Row};
use super::Adapter;
use crate::engine::{Leg, StepOutput};
use crate::ids::LegId;

/// An adapter, as TensorRT-LLM's `hf_lora_convert.py` writes it.
#[derive(Clone, PartialEq)]
pub struct Lora {
    /// What requests call it.
    pub name: String,
    /// What TensorRT-LLM calls it: the same in all engines.
    pub id: u64,
    /// `[modules and layers, most numbers of one]`.
    weights: HostTensor,
    /// `[modules and layers, 3]`: module, layer, rank.
    config: HostTensor,
}

impl Lora {
    /// Reads `model.lora_weights.npy` and `model.lora_config.npy` in a folder.
    ///
    /// # Errors
    /// The file, and what is wrong with it.
    pub fn read(name: &str, folder: &Path) -> Result<Self, String> {
        let read = |file: &str| {
            let path = folder.join(file);
            let bytes = std::fs::read(&path).map_err(|error| error.to_string());
            bytes.and_then(|bytes| array(&bytes)).map_err(|why| {
                format!("{}: {why}; write it with hf_lora_convert.py", path.display())
            })
        };
        let (weights, config) = (read("model.lora_weights.npy")?, read("model.lora_config.npy")?);
        let fits = config.dtype == "int32"
            && config.shape.len() == 2
            && config.shape[1] == 3
            && weights.shape.len() == 2
            && weights.shape[0] == config.shape[0];
        if !fits {
            return Err(format!(
                "{}: weights of shape {:?} and a config of shape {:?} ({}) do not belong together: they must be \
                 [N, any] and [N, 3] (int32)",
                folder.display(),
                weights.shape,
                config.shape,
                config.dtype
            ));
        }
        Ok(Self { name: name.to_owned(), id: xxh3_64(name.as_bytes()), weights, config })
    }

    /// Changes with its name and its weights.
    pub(super) fn fingerprint(&self) -> u64 {
        xxh3_64_with_seed(&self.weights.bytes, self.id)
    }
}

impl fmt::Debug for Lora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lora")
            .field("name", &self.name)
            .field("shape", &self.weights.shape)
            .finish()
    }
}

/// An array of numpy's, without leading dimensions of 1 until it has two.
fn array(bytes: &[u8]) -> Result<HostTensor, String> {
    let (header, data) = split(bytes).ok_or("it is no array of numpy's")?;
    // A dictionary as Python writes it; in JSON's words it is one of JSON's.
    let header = header.replace('\'', "\"").replace("False", "false").replace("True", "true");
    let header = header.replace('(', "[").replace(",)", "]").replace(')', "]");
    let header = header.trim_end().replace(", }", "}");
    let header: Value =
        serde_json::from_str(&header).map_err(|why| format!("its header: {why}"))?;
    let (dtype, size) = match header["descr"].as_str() {
        Some("<f4") => ("float32", 4),
        Some("<f2") => ("float16", 2),
        Some("|V2" | "<V2") => ("bfloat16", 2), // as TensorRT-LLM's tools write it
        Some("<i4") => ("int32", 4),
        other => return Err(format!("numbers of type {other:?} are of no use here")),
    };
    if header["fortran_order"] != Value::Bool(false) {
        return Err("its order is Fortran's, not C's".to_owned());
    }
    let shape = header["shape"].as_array().into_iter().flatten();
    let mut shape: Vec<i64> = shape.filter_map(Value::as_i64).collect();
    while shape.len() > 2 && shape[0] == 1 {
        shape.remove(0);
    }
    let count = shape.iter().try_fold(size, |all: i64, &n| all.checked_mul(n));
    if count != i64::try_from(data.len()).ok() || shape.is_empty() {
        return Err(format!("{} bytes are not shape {shape:?} of {dtype}", data.len()));
    }
    Ok(HostTensor { some: true, dtype: dtype.into(), shape, bytes: data.to_vec() })
}

/// An array's header and its numbers.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (version, rest) = rest.split_first_chunk::<2>()?;
    let (length, rest) = match version[0] {
        1 => {
            rest.split_first_chunk::<2>().map(|(n, rest)| (u16::from_le_bytes(*n).into(), rest))?
        }
        _ => rest
            .split_first_chunk::<4>()
            .map(|(n, rest)| (u32::from_le_bytes(*n) as usize, rest))?,
    };
    let (header, data) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(header).ok()?, data))
}

/// Which adapters the executor was given.
#[derive(Debug, Default)]
pub(super) struct Sent {
    ids: FxHashSet<u64>,
    /// Legs without an answer yet whose requests came without the weights.
    unsure: FxHashMap<LegId, Leg>,
}

impl Sent {
    /// Gives a request the weights of its adapter, if they were not sent before.
    /// Returns whose.
    pub(super) fn attach(
        &mut self,
        leg: &Leg,
        all: &[Lora],
        options: &mut RequestOptions,
    ) -> Option<u64> {
        let wanted =
            all.iter().find(|lora| options.lora_id.some && lora.id == options.lora_id.value);
        let lora = wanted?;
        if self.ids.insert(lora.id) {
            options.lora_weights = lora.weights.clone();
            options.lora_config = lora.config.clone();
            return Some(lora.id);
        }
        self.unsure.insert(leg.id, leg.clone());
        None
    }

    /// The leg's request was refused, and with it these weights.
    pub(super) fn take_back(&mut self, leg: LegId, weights: Option<u64>) {
        self.unsure.remove(&leg);
        if let Some(id) = weights {
            self.ids.remove(&id);
        }
    }

    /// The leg has been answered, or has ended.
    pub(super) fn forget(&mut self, leg: LegId) {
        self.unsure.remove(&leg);
    }
}

impl Adapter {
    /// Whether the row says that a live leg's adapter is not there any more; the leg is then asked again.
    pub(super) fn asks_again(&mut self, row: &Row, out: &mut StepOutput) -> bool {
        if row.fault != Fault::LoraMissing {
            return false;
        }
        let tracked = self.requests.get(&row.request).filter(|tracked| !tracked.ended);
        let leg = tracked.and_then(|tracked| self.sent.unsure.remove(&tracked.leg));
        let Some(leg) = leg else { return false };
        self.leave(leg.id);
        self.requests.remove(&row.request);
        self.sent.ids.clear();
        self.not_taken(leg.id, out);
        let id = leg.id;
        if let Err(error) = self.begin(leg, None) {
            out.failed.push((id, error));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An array as numpy writes it.
    pub(in super::super) fn npy(descr: &str, shape: &str, bytes: usize) -> Vec<u8> {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        let header = format!("{header:117}\n");
        let length = (header.len() as u16).to_le_bytes();
        [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), &vec![1; bytes]].concat()
    }

    #[test]
    fn arrays_are_read_as_numpy_writes_them() {
        let read = |descr, shape, bytes| {
            array(&npy(descr, shape, bytes)).map(|tensor| (tensor.dtype, tensor.shape))
        };
        assert_eq!(read("<f4", "(1, 2, 3)", 24), Ok(("float32".into(), vec![2, 3])));
        assert_eq!(read("|V2", "(2, 3)", 12), Ok(("bfloat16".into(), vec![2, 3])));
        assert_eq!(read("<i4", "(3,)", 12), Ok(("int32".into(), vec![3])));
        for (descr, shape, bytes, says) in [
            ("<f8", "(1,)", 8, "numbers of type Some(\"<f8\")"),
            ("<f4", "(2, 3)", 20, "20 bytes are not shape [2, 3] of float32"),
            ("<f4", "(9000000000, 9000000000)", 8, "are not shape"),
            ("<f4", "(", 8, "its header"),
        ] {
            let error = read(descr, shape, bytes).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(array(b"PK").is_err() && array(b"\x93NUMPY\x01\x00\xff\xff").is_err());
    }
}
