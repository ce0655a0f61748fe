//! Gets through libucp with nothing around them: all posted at once, the thread spins until they
//! are there.

mod ffi;

use std::sync::Arc;
use std::time::Duration;

use cuelight::kvxfer::{Memory, Run};

use crate::peer::{self, Peer, pool};
use crate::subject::Subject;
use ffi::{Errors, Library, Worker};

/// How long the side that is read sleeps between looks; one-sided gets do not need it.
const LOOK: Duration = Duration::from_micros(200);

/// Serves the pool: says its address, its key and the worker's address.
pub(crate) fn serve(memory: &Arc<Memory>, say: impl Fn(&[u8]), has_ended: impl Fn() -> bool) {
    let dir = crate::ucx_dir().expect("the parent has it too");
    let library = Library::open(&dir).expect("the parent has it too");
    let worker = Worker::new(library, memory.clone());
    let mut hello = (memory.address().addr() as u64).to_le_bytes().to_vec();
    let key = worker.key();
    hello.extend((key.len() as u64).to_le_bytes());
    hello.extend(key);
    hello.extend(worker.address());
    say(&hello);
    while !has_ended() {
        worker.progress();
        std::thread::sleep(LOOK);
    }
}

pub(crate) struct Raw {
    name: &'static str,
    worker: Worker,
    endpoint: ffi::Endpoint,
    peer: Peer,
}

impl Raw {
    /// Without and with peer error handling; nothing where UCX is missing.
    pub(crate) fn all(blocks: u32) -> Vec<Self> {
        let Some(library) = crate::ucx_dir().and_then(|dir| Library::open(&dir)) else {
            return Vec::new();
        };
        let kinds = [("raw UCX get", Errors::None), ("raw UCX get, peer errors", Errors::Peer)];
        let one = |(name, errors)| {
            let peer = Peer::spawn("raw", blocks);
            let worker = Worker::new(library, pool(blocks));
            let number = |at: usize| {
                let bytes = peer.hello[at..at + 8].try_into().expect("eight bytes");
                u64::from_le_bytes(bytes)
            };
            let (base, key_end) = (number(0), 16 + number(8) as usize);
            let (key, address) = (&peer.hello[16..key_end], &peer.hello[key_end..]);
            let endpoint = worker.connect(address, key, base, errors);
            Self { name, worker, endpoint, peer }
        };
        kinds.into_iter().map(one).collect()
    }
}

impl Subject for Raw {
    fn name(&self) -> &'static str {
        self.name
    }

    fn pull(&mut self, runs: &[Run]) {
        self.worker.get_all(&self.endpoint, runs);
    }

    fn cpu(&self) -> Duration {
        peer::cpu("self") + self.peer.cpu()
    }
}
