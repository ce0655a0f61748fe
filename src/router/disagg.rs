//! Whether a prompt is prefilled on another rank than it is decoded on: a pure decision.
//!
//! To prefill elsewhere pays off when there is much to compute, and a rank for it that is free: else the
//! rank that decodes does it, which is always possible.

use bincode::{Decode, Encode};

/// What a worker's ranks do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Role {
    /// Prefill and decode.
    #[default]
    Aggregated,
    /// Prefill alone: their KV blocks are fetched by others.
    Prefill,
    /// Decode, of prompts that others have prefilled; short ones they prefill themselves.
    Decode,
}

impl Role {
    /// All of them, as they are written in the configuration.
    pub const NAMES: &[&str] = &["aggregated", "prefill", "decode"];
    const ALL: [Self; 3] = [Self::Aggregated, Self::Prefill, Self::Decode];

    /// The role of this name.
    pub fn named(name: &str) -> Option<Self> {
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        Some(Self::ALL[index])
    }

    /// As it is written in the configuration.
    pub fn name(self) -> &'static str {
        Self::NAMES[Self::ALL.iter().position(|role| *role == self).unwrap_or_default()]
    }
}

/// When a prompt is worth prefilling elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Fewer tokens that the decode rank has not cached are prefilled there.
    pub min_uncached_tokens: u64,
    /// So are those of which it has this share cached, or more.
    pub max_cached_share: f64,
    /// Ranks that have more prompt tokens to compute than this count as full.
    pub max_queued_tokens: u64,
}

/// A rank that prefills, as the decision sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillRank {
    /// Whether it may be given one more leg.
    pub has_room: bool,
    /// Whether something went wrong there a moment ago.
    pub is_shunned: bool,
    /// Prompt tokens that it has still to compute.
    pub queued_tokens: u64,
}

/// Where a prompt is prefilled, and why there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a rank that prefills.
    Elsewhere,
    /// Where it is decoded: there is little to compute.
    Short,
    /// Where it is decoded: most of it is cached there.
    Cached,
    /// Where it is decoded: no rank that prefills is up.
    Empty,
    /// Where it is decoded: all ranks that prefill are full.
    Full,
    /// Where it is decoded: something went wrong on those that are not full.
    Failing,
}

impl Thresholds {
    /// Whether the rank may be asked to prefill now.
    pub fn takes(&self, rank: PrefillRank) -> bool {
        !self.is_full(rank) && !rank.is_shunned
    }

    fn is_full(&self, rank: PrefillRank) -> bool {
        !rank.has_room || rank.queued_tokens > self.max_queued_tokens
    }

    /// Where a prompt of `tokens`, of which the decode rank has `cached`, is prefilled.
    pub fn place(&self, tokens: u64, cached: u64, ranks: &[PrefillRank]) -> Place {
        if ranks.is_empty() {
            Place::Empty
        } else if tokens.saturating_sub(cached) < self.min_uncached_tokens {
            Place::Short
        } else if cached as f64 >= self.max_cached_share * tokens as f64 {
            Place::Cached
        } else if ranks.iter().any(|rank| self.takes(*rank)) {
            Place::Elsewhere
        } else if ranks.iter().all(|rank| self.is_full(*rank)) {
            Place::Full
        } else {
            Place::Failing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANK: PrefillRank = PrefillRank { has_room: true, is_shunned: false, queued_tokens: 0 };
    const FULL: PrefillRank = PrefillRank { has_room: false, ..RANK };
    const BUSY: PrefillRank = PrefillRank { queued_tokens: 1001, ..RANK };
    const SHUNNED: PrefillRank = PrefillRank { is_shunned: true, ..RANK };

    #[test]
    fn a_prompt_is_prefilled_elsewhere_only_where_that_helps() {
        let limits = Thresholds {
            min_uncached_tokens: 100,
            max_cached_share: 0.75,
            max_queued_tokens: 1000,
        };
        let cases: [(u64, u64, &[PrefillRank], Place); 11] = [
            (500, 0, &[RANK], Place::Elsewhere),
            (100, 0, &[RANK], Place::Elsewhere),
            (99, 0, &[RANK], Place::Short),
            (500, 401, &[RANK], Place::Short),
            (500, 374, &[RANK], Place::Elsewhere),
            (500, 375, &[RANK], Place::Cached),
            (500, 0, &[], Place::Empty),
            (500, 0, &[FULL, BUSY], Place::Full),
            (500, 0, &[FULL, SHUNNED], Place::Failing),
            (500, 0, &[FULL, SHUNNED, RANK], Place::Elsewhere),
            (50, 60, &[RANK], Place::Short),
        ];
        for (tokens, cached, ranks, place) in cases {
            assert_eq!(limits.place(tokens, cached, ranks), place, "{tokens} {cached} {ranks:?}");
        }
    }

    #[test]
    fn roles_have_the_names_of_the_configuration() {
        for name in Role::NAMES {
            assert_eq!(Role::named(name).map(Role::name), Some(*name));
        }
        assert_eq!((Role::named("x"), Role::default()), (None, Role::Aggregated));
    }
}
