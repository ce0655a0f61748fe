//! Numbers nobody can guess, for ids and for seeds that clients left out.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A keyed hash of a counter: the keys come from the system once.
pub(super) fn number() -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    KEYS.hash_one(COUNT.fetch_add(1, Ordering::Relaxed))
}

/// `prefix` and 32 hexadecimal digits.
pub(super) fn id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", number(), number())
}
