//! Names of full KV blocks: a keyed 128-bit hash, chained over (parent block, tokens, salt).

use std::fmt;

use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_128_with_secret;

use crate::ids::BlockHash;

/// Bytes of xxh3's secret; derived from the key so that every part of it is unpredictable.
const SECRET_BYTES: usize = 192;

/// What block hashes are keyed with. The nodes of one cluster must share it, or routers cannot
/// match prompts to blocks; clients should not know it, or they could construct collisions, which
/// cost cache hits (never wrong tokens: a hit compares the tokens themselves).
#[derive(Clone, PartialEq, Eq)]
pub struct HashKey(pub [u8; 32]);

impl Default for HashKey {
    /// A constant, for single nodes and tests.
    fn default() -> Self {
        Self(*b"cuelight: key of KV block hashes")
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(…)")
    }
}

/// Computes block hashes; the same key and block size give the same hashes on every node.
#[derive(Clone)]
pub struct BlockHasher {
    secret: [u8; SECRET_BYTES],
    block_tokens: usize,
    /// Hash input: parent (16 bytes), salt (8), tokens (4 each), all little-endian.
    input: Vec<u8>,
}

impl BlockHasher {
    /// A hasher for blocks of `block_tokens` tokens.
    pub fn new(key: &HashKey, block_tokens: usize) -> Self {
        let mut secret = [0; SECRET_BYTES];
        for (part, bytes) in secret.chunks_exact_mut(32).enumerate() {
            let digest = Sha256::new().chain_update(key.0).chain_update([part as u8]).finalize();
            bytes.copy_from_slice(&digest);
        }
        Self { secret, block_tokens, input: vec![0; 24 + 4 * block_tokens] }
    }

    /// Tokens in one block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Appends the hashes of the full blocks of `tokens` that `hashes` does not have yet.
    pub fn extend(&mut self, tokens: &[u32], salt: u64, hashes: &mut Vec<BlockHash>) {
        let known = hashes.len() * self.block_tokens;
        if tokens.len() < known + self.block_tokens {
            return;
        }
        let mut parent = hashes.last().map_or(0, |hash| hash.0);
        self.input[16..24].copy_from_slice(&salt.to_le_bytes());
        for block in tokens[known..].chunks_exact(self.block_tokens) {
            self.input[..16].copy_from_slice(&parent.to_le_bytes());
            for (bytes, token) in self.input[24..].chunks_exact_mut(4).zip(block) {
                bytes.copy_from_slice(&token.to_le_bytes());
            }
            parent = xxh3_128_with_secret(&self.input, &self.secret);
            hashes.push(BlockHash(parent));
        }
    }
}

impl fmt::Debug for BlockHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockHasher").field("block_tokens", &self.block_tokens).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(key: &HashKey, tokens: &[u32], salt: u64) -> Vec<BlockHash> {
        let mut out = Vec::new();
        BlockHasher::new(key, 4).extend(tokens, salt, &mut out);
        out
    }

    #[test]
    fn a_hash_depends_on_key_salt_tokens_and_everything_before() {
        let key = HashKey::default();
        let base = hashes(&key, &[1, 2, 3, 4, 5, 6, 7, 8, 9], 0);
        assert_eq!(base.len(), 2, "the partial block has no hash");
        let other_salt = hashes(&key, &[1, 2, 3, 4, 5, 6, 7, 8], 1);
        let other_key = hashes(&HashKey([7; 32]), &[1, 2, 3, 4, 5, 6, 7, 8], 0);
        let other_start = hashes(&key, &[0, 2, 3, 4, 5, 6, 7, 8], 0);
        let other_end = hashes(&key, &[1, 2, 3, 4, 5, 6, 7, 9], 0);
        for other in [&other_salt, &other_key, &other_start] {
            assert_ne!(base[0], other[0]);
            assert_ne!(base[1], other[1]);
        }
        assert_eq!(base[0], other_end[0]);
        assert_ne!(base[1], other_end[1]);
    }

    #[test]
    fn hashing_in_pieces_gives_the_same_chain() {
        let tokens: Vec<u32> = (0..37).collect();
        let whole = hashes(&HashKey::default(), &tokens, 9);
        let mut hasher = BlockHasher::new(&HashKey::default(), 4);
        let mut pieces = Vec::new();
        for end in 0..=tokens.len() {
            hasher.extend(&tokens[..end], 9, &mut pieces);
        }
        assert_eq!(whole, pieces);
    }

    #[test]
    fn hashes_are_stable_across_builds() {
        // Nodes of different builds must agree: a change here needs a new protocol version.
        let got = hashes(&HashKey::default(), &[1, 2, 3, 4], 5)[0];
        assert_eq!(got.to_string(), "298780bd50f43f3ceac31d72a32b1fb4");
    }
}
