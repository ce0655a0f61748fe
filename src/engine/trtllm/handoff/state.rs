//! What a prefill leaves, with the mark of the engine that left it.

use bincode::{Decode, Encode};

use crate::engine::trtllm::ffi::Handoff;

/// Larger states are refused.
const MAX_BYTES: usize = 16 << 20;
/// First in every state.
const VERSION: u32 = 1;

/// What two engines must have in common for one to read the other's KV.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Identity {
    /// Of TensorRT-LLM: the state's bytes mean something to the same build only.
    pub version: String,
    /// Of the model, as its engine folder tells it.
    pub model: u64,
    /// Type of the numbers in the KV cache.
    pub kv_dtype: String,
    /// Tokens in a KV block.
    pub tokens_per_block: u32,
    /// Tensor parallelism.
    pub tp: u32,
    /// Pipeline parallelism.
    pub pp: u32,
    /// What carries the KV: `UCX`, `NIXL`, ….
    pub backend: String,
}

/// Why a state is of no use here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The engines differ.
    #[error(
        "the prompt was computed by an engine with {what} {theirs}, this one has {ours}; give the workers that prefill \
         and those that decode the same engine"
    )]
    Mismatch {
        /// In what.
        what: &'static str,
        /// There.
        theirs: String,
        /// Here.
        ours: String,
    },
    /// It is no state.
    #[error("{bytes} bytes are no state of a prefill: {why}")]
    Unreadable {
        /// How many there are.
        bytes: usize,
        /// What is wrong.
        why: String,
    },
}

impl Identity {
    /// # Errors
    /// The first thing in which they differ.
    fn check(&self, theirs: &Self) -> Result<(), StateError> {
        let model = |model: u64| format!("{model:016x}");
        let pairs = [
            ("version", self.version.clone(), theirs.version.clone()),
            ("model", model(self.model), model(theirs.model)),
            ("KV type", self.kv_dtype.clone(), theirs.kv_dtype.clone()),
            (
                "tokens per block",
                self.tokens_per_block.to_string(),
                theirs.tokens_per_block.to_string(),
            ),
            ("tensor parallelism", self.tp.to_string(), theirs.tp.to_string()),
            ("pipeline parallelism", self.pp.to_string(), theirs.pp.to_string()),
            ("transfer back end", self.backend.clone(), theirs.backend.clone()),
        ];
        match pairs.into_iter().find(|(_, ours, theirs)| ours != theirs) {
            Some((what, ours, theirs)) => Err(StateError::Mismatch { what, theirs, ours }),
            None => Ok(()),
        }
    }
}

/// A prefill's state as it travels.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct State {
    version: u32,
    identity: Identity,
    context_request: u64,
    first_tokens: Vec<i32>,
    draft_tokens: Vec<i32>,
    state: Vec<u8>,
    dp_rank: Option<i32>,
    endpoint: Option<String>,
}

impl State {
    /// Bytes for the decode's engine. `None` if the executor left nothing that could be sent.
    pub fn pack(identity: &Identity, handoff: &Handoff) -> Option<Vec<u8>> {
        if !(handoff.some && handoff.has_state) {
            return None;
        }
        let state = Self {
            version: VERSION,
            identity: identity.clone(),
            context_request: handoff.context_request,
            first_tokens: handoff.first_tokens.clone(),
            draft_tokens: handoff.draft_tokens.clone(),
            state: handoff.state.clone(),
            dp_rank: handoff.dp_rank.into(),
            endpoint: handoff.endpoint.clone().into(),
        };
        bincode::encode_to_vec(state, bincode::config::standard()).ok()
    }

    /// What the decode's request takes on.
    ///
    /// # Errors
    /// Why it cannot; the prompt must then be computed here.
    pub fn unpack(identity: &Identity, bytes: &[u8]) -> Result<Handoff, StateError> {
        let unreadable = |why: String| StateError::Unreadable { bytes: bytes.len(), why };
        let config = bincode::config::standard().with_limit::<MAX_BYTES>();
        let (state, read): (Self, usize) = bincode::decode_from_slice(bytes, config)
            .map_err(|error| unreadable(error.to_string()))?;
        if state.version != VERSION || read != bytes.len() {
            return Err(unreadable(format!("version {} and {read} bytes of it", state.version)));
        }
        identity.check(&state.identity)?;
        Ok(Handoff {
            some: true,
            context_request: state.context_request,
            first_tokens: state.first_tokens,
            draft_tokens: state.draft_tokens,
            has_state: true,
            state: state.state,
            dp_rank: state.dp_rank.into(),
            endpoint: state.endpoint.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            version: "1.2.1".into(),
            model: 7,
            kv_dtype: "bfloat16".into(),
            tokens_per_block: 32,
            tp: 2,
            pp: 1,
            backend: "NIXL".into(),
        }
    }

    fn handoff() -> Handoff {
        Handoff {
            some: true,
            context_request: 11,
            first_tokens: vec![5],
            draft_tokens: vec![],
            has_state: true,
            state: vec![1, 2, 3],
            dp_rank: 3.into(),
            endpoint: Default::default(),
        }
    }

    #[test]
    fn a_state_comes_through_whole_or_not_at_all() {
        let bytes = State::pack(&identity(), &handoff()).unwrap();
        assert_eq!(State::unpack(&identity(), &bytes), Ok(handoff()));
        for wrong in [&bytes[..bytes.len() - 1], &[], &[&bytes[..], &[0]].concat(), &[255; 40]] {
            let error = State::unpack(&identity(), wrong).unwrap_err();
            assert!(matches!(error, StateError::Unreadable { .. }), "{error}");
        }
        let nothing = Handoff { has_state: false, ..handoff() };
        assert_eq!(State::pack(&identity(), &nothing), None);
    }

    #[test]
    fn engines_that_differ_in_anything_are_refused_by_name() {
        let bytes = State::pack(&identity(), &handoff()).unwrap();
        let cases = [
            (Identity { version: "1.2.0".into(), ..identity() }, "version 1.2.1"),
            (Identity { model: 8, ..identity() }, "model 0000000000000007"),
            (Identity { kv_dtype: "fp8".into(), ..identity() }, "KV type bfloat16"),
            (Identity { tokens_per_block: 64, ..identity() }, "tokens per block 32"),
            (Identity { tp: 1, ..identity() }, "tensor parallelism 2"),
            (Identity { pp: 2, ..identity() }, "pipeline parallelism 1"),
            (Identity { backend: "UCX".into(), ..identity() }, "transfer back end NIXL"),
        ];
        for (here, named) in cases {
            let error = State::unpack(&here, &bytes).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
