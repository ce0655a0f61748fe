//! What one side publishes so that the other can connect. Opaque bytes to everybody else.

use std::net::SocketAddr;

use bincode::{Decode, Encode};
use xxhash_rust::xxh3::xxh3_64;

use super::error::XferError;
use super::process::Process;
use super::transport::RegionInfo;
use super::words::WORD_BYTES;

/// Larger descriptors are refused.
const MAX_BYTES: usize = 1 << 20;
/// First in every descriptor; a later version is refused by name.
const VERSION: u32 = 2;

/// One transport of one process.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Descriptor {
    version: u32,
    /// Drawn at random when the transport starts: a restarted peer is another one.
    pub(super) instance: u128,
    pub(super) regions: Vec<RegionInfo>,
    pub(super) endpoint: Endpoint,
}

/// How to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum Endpoint {
    /// The same process.
    Local,
    /// A listening socket, and the secret that opens it.
    Tcp { address: SocketAddr, token: u128 },
    /// A UCP worker.
    Ucx(UcxEndpoint),
    /// A NIXL agent.
    Nixl(NixlEndpoint),
}

/// What UCP needs to reach a worker and its memory.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct UcxEndpoint {
    /// Of `ucp_worker_get_address`.
    pub(super) worker: Vec<u8>,
    /// By region: its first address there, and what `ucp_rkey_pack` gave.
    pub(super) keys: Vec<(u64, Vec<u8>)>,
    /// For peers on the same host to watch.
    pub(super) process: Option<Process>,
    pub(super) words: WordTable,
}

/// What NIXL needs to reach an agent and its memory.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct NixlEndpoint {
    /// Of `nixl_capi_get_local_md`.
    pub(super) metadata: Vec<u8>,
    /// XXH3 of the metadata: NIXL may die of some that was spoiled.
    pub(super) checksum: u64,
    /// By region: its first address there.
    pub(super) bases: Vec<u64>,
    /// For peers on the same host to watch.
    pub(super) process: Option<Process>,
    /// Its key is empty: the metadata has it.
    pub(super) words: WordTable,
}

/// Where the words of a transport's grants lie ([`words`](super::words)).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct WordTable {
    /// Of the first word.
    pub(super) address: u64,
    pub(super) count: u32,
    /// Of `ucp_rkey_pack`.
    pub(super) key: Vec<u8>,
}

impl Descriptor {
    pub(super) fn new(instance: u128, regions: Vec<RegionInfo>, endpoint: Endpoint) -> Self {
        Self { version: VERSION, instance, regions, endpoint }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, XferError> {
        bincode::encode_to_vec(self, bincode::config::standard())
            .map_err(|error| XferError::BadDescriptor { why: error.to_string() })
    }

    /// Reads one and checks what can be checked.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, XferError> {
        let bad = |why: String| XferError::BadDescriptor { why };
        if bytes.len() > MAX_BYTES {
            return Err(bad(format!("{} bytes, more than {MAX_BYTES}", bytes.len())));
        }
        let config = bincode::config::standard().with_limit::<MAX_BYTES>();
        match bincode::decode_from_slice::<u32, _>(bytes, config) {
            Ok((VERSION, _)) => {}
            Ok((other, _)) => {
                return Err(bad(format!("version {other}, this build speaks {VERSION}")));
            }
            Err(error) => return Err(bad(error.to_string())),
        }
        let (descriptor, used) =
            bincode::decode_from_slice::<Self, _>(bytes, config).map_err(|e| bad(e.to_string()))?;
        if used != bytes.len() {
            return Err(bad(format!("{} bytes too many", bytes.len() - used)));
        }
        descriptor.check()?;
        Ok(descriptor)
    }

    fn check(&self) -> Result<(), XferError> {
        let bad = |why: String| Err(XferError::BadDescriptor { why });
        for (place, info) in self.regions.iter().enumerate() {
            info.layout.check()?;
            if info.region.0 as usize != place {
                return bad(format!("region {} at place {place}", info.region.0));
            }
            if info.layout.bytes() > info.bytes {
                return bad(format!("region {place} is smaller than its layout"));
            }
        }
        match &self.endpoint {
            Endpoint::Ucx(UcxEndpoint { keys, words, .. }) => {
                let bases = keys.iter().map(|(base, _)| *base);
                self.check_addresses("keys", keys.len(), bases, words)
            }
            Endpoint::Nixl(NixlEndpoint { metadata, checksum, bases, words, .. }) => {
                if xxh3_64(metadata) != *checksum {
                    return bad("its metadata was changed on the way".into());
                }
                self.check_addresses("addresses", bases.len(), bases.iter().copied(), words)
            }
            Endpoint::Local | Endpoint::Tcp { .. } => Ok(()),
        }
    }

    /// Whether memory that peers read by themselves can lie where it is said to.
    fn check_addresses(
        &self,
        what: &str,
        count: usize,
        bases: impl Iterator<Item = u64>,
        words: &WordTable,
    ) -> Result<(), XferError> {
        let bad = |why: String| Err(XferError::BadDescriptor { why });
        if count != self.regions.len() {
            return bad(format!("{count} {what}, {} regions", self.regions.len()));
        }
        let leaves = |address: u64, bytes| address == 0 || address.checked_add(bytes).is_none();
        if bases.zip(&self.regions).any(|(base, info)| leaves(base, info.bytes)) {
            return bad("a region leaves the address space".into());
        }
        let (address, count) = (words.address, words.count);
        if leaves(address, u64::from(count) * WORD_BYTES) {
            return bad(format!("its {count} words leave the address space"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvxfer::layout::{Layout, Sizes};
    use crate::kvxfer::region::MemoryKind;
    use crate::kvxfer::transport::RegionId;
    use proptest::prelude::*;

    fn sample() -> Descriptor {
        let sizes =
            Sizes { blocks: 4, layers: 2, planes: 2, heads: 0..2, block_tokens: 16, head_bytes: 8 };
        let layout = Layout::block_major(sizes).unwrap();
        let (bytes, kind) = (layout.bytes(), MemoryKind::Host);
        let info = RegionInfo { region: RegionId(0), bytes, kind, device: 0, layout };
        let words = WordTable { address: 1 << 20, count: 8, key: vec![7; 9] };
        let (worker, keys) = (vec![1, 2, 3], vec![(4096, vec![9; 10])]);
        let ucx = UcxEndpoint { worker, keys, process: None, words };
        Descriptor::new(5, vec![info], Endpoint::Ucx(ucx))
    }

    #[test]
    fn what_was_published_is_understood_and_what_contradicts_itself_is_not() {
        let good = sample();
        assert_eq!(Descriptor::decode(&good.encode().unwrap()).unwrap(), good);
        fn ucx(descriptor: &mut Descriptor) -> &mut UcxEndpoint {
            let Endpoint::Ucx(ucx) = &mut descriptor.endpoint else { unreachable!() };
            ucx
        }
        type Spoil = fn(&mut Descriptor);
        let spoil: [(&str, Spoil); 7] = [
            ("version 1, this build speaks 2", |d| d.version = 1),
            ("region 1 at place 0", |d| d.regions[0].region = RegionId(1)),
            ("region 0 is smaller than its layout", |d| d.regions[0].bytes -= 1),
            ("1 keys, 2 regions", |d| {
                let mut second = d.regions[0].clone();
                second.region = RegionId(1);
                d.regions.push(second);
            }),
            ("a region leaves the address space", |d| {
                ucx(d).keys[0].0 = u64::MAX - 3;
            }),
            ("its 8 words leave the address space", |d| ucx(d).words.address = u64::MAX - 127),
            ("its 8 words leave the address space", |d| ucx(d).words.address = 0),
        ];
        for (expected, spoil) in spoil {
            let mut bad = sample();
            spoil(&mut bad);
            let error = Descriptor::decode(&bad.encode().unwrap()).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }

    #[test]
    fn what_nixl_is_to_read_arrives_as_it_was_or_not_at_all() {
        let Descriptor { regions, endpoint, .. } = sample();
        let Endpoint::Ucx(UcxEndpoint { words, .. }) = endpoint else { unreachable!() };
        let metadata = b"an agent".to_vec();
        let (checksum, bases, process) = (xxh3_64(&metadata), vec![4096], None);
        let nixl = NixlEndpoint { metadata, checksum, bases, process, words };
        let with = |nixl| Descriptor::new(5, regions.clone(), Endpoint::Nixl(nixl));
        let read = |descriptor: &Descriptor| Descriptor::decode(&descriptor.encode().unwrap());
        let good = with(nixl.clone());
        assert_eq!(read(&good).unwrap(), good);
        let cases = [
            (
                NixlEndpoint { metadata: b"An agent".to_vec(), ..nixl.clone() },
                "its metadata was changed on the way",
            ),
            (NixlEndpoint { bases: vec![], ..nixl.clone() }, "0 addresses, 1 regions"),
            (NixlEndpoint { bases: vec![u64::MAX], ..nixl }, "a region leaves the address space"),
        ];
        for (spoiled, expected) in cases {
            let error = read(&with(spoiled)).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, fork: false, ..ProptestConfig::default() })]
        #[test]
        fn garbage_is_an_error_and_nothing_worse(
            flips in proptest::collection::vec((0usize..200, any::<u8>()), 1..6),
            cut in 0usize..200,
        ) {
            let mut bytes = sample().encode().unwrap();
            for (place, byte) in flips {
                if let Some(at) = bytes.get_mut(place) { *at ^= byte; }
            }
            bytes.truncate(cut.max(1));
            if let Ok(read) = Descriptor::decode(&bytes) {
                prop_assert!(read.regions.iter().all(|info| info.layout.bytes() <= info.bytes));
            }
        }
    }
}
