//! Frames on a connection; numbers are little-endian.
//!
//! The side that pulls sends a [`Hello`], then requests. The side that is read answers with chunks:
//! a [`Head`] and so many bytes of the pull's ranges, in their order. Chunks of several pulls take
//! turns. A head after the last chunk of each says whether all of it was read under the grant.

use crate::kvxfer::plan::Run;
use crate::kvxfer::transport::{GrantId, RegionId};

/// Names the protocol and its version.
const MAGIC: [u8; 8] = *b"CLKVXF\x00\x02";
pub(super) const HELLO_BYTES: usize = 24;
pub(super) const REQUEST_BYTES: usize = 40;
/// One range of a request: offset and length.
pub(super) const RANGE_BYTES: usize = 16;
pub(super) const HEAD_BYTES: usize = 24;

const PULL: u32 = 1;
const CANCEL: u32 = 2;

/// The first bytes of a connection: proves that the descriptor is known.
pub(super) fn hello(token: u128) -> [u8; HELLO_BYTES] {
    let mut bytes = [0; HELLO_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..].copy_from_slice(&token.to_le_bytes());
    bytes
}

/// Whether these are the right first bytes; takes as long for any wrong token.
pub(super) fn hello_is_right(bytes: &[u8; HELLO_BYTES], token: u128) -> bool {
    let differences = bytes.iter().zip(hello(token)).fold(0, |acc, (a, b)| acc | (a ^ b));
    differences == 0
}

/// What the pulling side asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Pull { number: u32, grant: GrantId, region: RegionId, checksum: bool, runs: u32 },
    Cancel { number: u32 },
}

impl Request {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, number, grant, region, checksum, runs) = match *self {
            Self::Pull { number, grant, region, checksum, runs } => {
                (PULL, number, grant.0, region.0, checksum, runs)
            }
            Self::Cancel { number } => (CANCEL, number, 0, 0, false, 0),
        };
        out.extend(kind.to_le_bytes());
        out.extend(number.to_le_bytes());
        out.extend(grant.to_le_bytes());
        out.extend(region.to_le_bytes());
        out.extend(runs.to_le_bytes());
        out.extend(u64::from(checksum).to_le_bytes());
    }

    /// `None` for what no peer of ours sends.
    pub(super) fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let (kind, number) = (u32_at(bytes, 0)?, u32_at(bytes, 4)?);
        let grant = GrantId(u128::from_le_bytes(bytes.get(8..24)?.try_into().ok()?));
        let (region, runs) = (RegionId(u32_at(bytes, 24)?), u32_at(bytes, 28)?);
        let checksum = match u64_at(bytes, 32)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        match kind {
            PULL if runs > 0 => Some(Self::Pull { number, grant, region, checksum, runs }),
            CANCEL => Some(Self::Cancel { number }),
            _ => None,
        }
    }
}

/// The remote side of runs.
pub(super) fn encode_ranges(runs: &[Run], out: &mut Vec<u8>) {
    for run in runs {
        out.extend(run.remote.to_le_bytes());
        out.extend(run.bytes.to_le_bytes());
    }
}

/// Ranges as runs whose two sides are the same.
pub(super) fn decode_ranges(bytes: &[u8]) -> Vec<Run> {
    let range = |pair: &[u8]| {
        let (offset, bytes) = (u64_at(pair, 0)?, u64_at(pair, 8)?);
        Some(Run { remote: offset, local: offset, bytes })
    };
    bytes.chunks_exact(RANGE_BYTES).filter_map(range).collect()
}

/// What precedes a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// The hello was right.
    Welcome,
    /// `bytes` of a pull follow; `checksum` is 0 where none was asked for.
    Data { number: u32, bytes: u32, checksum: u64 },
    /// All bytes of a pull were sent, and are what was granted.
    End { number: u32 },
    /// A pull ends here.
    Refused { number: u32, why: Refusal },
}

/// Why a pull is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NoRegion,
    Outside,
    NotGranted,
    TooMany,
    Withdrawn,
}

impl Refusal {
    const ALL: [Self; 5] =
        [Self::NoRegion, Self::Outside, Self::NotGranted, Self::TooMany, Self::Withdrawn];

    /// For people.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::NoRegion => "it has no such region",
            Self::Outside => "a range leaves its region",
            Self::NotGranted => "the grant is unknown, ended or too small",
            Self::TooMany => "it serves too many pulls of ours",
            Self::Withdrawn => "the grant was withdrawn during the pull",
        }
    }
}

impl Head {
    pub(super) fn encode(self) -> [u8; HEAD_BYTES] {
        let (kind, number, bytes, checksum) = match self {
            Self::Welcome => (0u32, 0, 0, 0),
            Self::Data { number, bytes, checksum } => (1, number, bytes, checksum),
            Self::Refused { number, why } => (2, number, why as u32, 0),
            Self::End { number } => (3, number, 0, 0),
        };
        let mut out = [0; HEAD_BYTES];
        out[..4].copy_from_slice(&kind.to_le_bytes());
        out[4..8].copy_from_slice(&number.to_le_bytes());
        out[8..12].copy_from_slice(&bytes.to_le_bytes());
        out[16..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// `None` for what no peer of ours sends.
    pub(super) fn decode(bytes: &[u8; HEAD_BYTES]) -> Option<Self> {
        let (number, third) = (u32_at(bytes, 4)?, u32_at(bytes, 8)?);
        match u32_at(bytes, 0)? {
            0 => Some(Self::Welcome),
            1 if third > 0 => {
                Some(Self::Data { number, bytes: third, checksum: u64_at(bytes, 16)? })
            }
            2 => Some(Self::Refused { number, why: *Refusal::ALL.get(third as usize)? }),
            3 => Some(Self::End { number }),
            _ => None,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        let requests = [
            Request::Pull {
                number: 7,
                grant: GrantId(u128::MAX - 5),
                region: RegionId(3),
                checksum: true,
                runs: 9,
            },
            Request::Cancel { number: u32::MAX },
        ];
        for request in requests {
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            assert_eq!(Request::decode(bytes.as_slice().try_into().unwrap()), Some(request));
        }
        let heads = Refusal::ALL.map(|why| Head::Refused { number: 4, why });
        let data = Head::Data { number: 1, bytes: 1 << 20, checksum: u64::MAX };
        for head in heads.into_iter().chain([Head::Welcome, data, Head::End { number: 2 }]) {
            assert_eq!(Head::decode(&head.encode()), Some(head));
        }
        let run = Run { remote: 5, local: 5, bytes: 6 };
        let mut bytes = Vec::new();
        encode_ranges(&[run, run], &mut bytes);
        assert_eq!(decode_ranges(&bytes), [run, run]);
        assert!(hello_is_right(&hello(99), 99) && !hello_is_right(&hello(99), 98));
    }

    #[test]
    fn nonsense_is_no_frame() {
        let mut pull = [0; REQUEST_BYTES];
        pull[0] = 1;
        assert_eq!(Request::decode(&pull), None); // no runs
        assert_eq!(Request::decode(&[0xFF; REQUEST_BYTES]), None);
        let mut head = [0; HEAD_BYTES];
        (head[0], head[8]) = (2, 5);
        assert_eq!(Head::decode(&head), None); // no such refusal
        assert_eq!(Head::decode(&[0xFF; HEAD_BYTES]), None);
    }
}
