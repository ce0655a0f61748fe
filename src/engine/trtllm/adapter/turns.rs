//! Which requests the executor has room for. It takes them in the order of their priority, then of their
//! arrival; before its turn a request fetches nothing, and is not ended by a cancel either.

use std::time::Instant;

use super::Adapter;

/// A request, as it is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Queued {
    /// Whether it is not running: those that run have what they need.
    waits: bool,
    priority: i32,
    arrival: u64,
    blocks: u64,
    request: u64,
}

/// The requests that fit into a batch and a pool of KV blocks beside all that go before them. The first always
/// does: it waits for nobody.
fn fitting(mut all: Vec<Queued>, batch: usize, pool: u64) -> Vec<u64> {
    all.sort_unstable();
    let mut blocks = 0_u64;
    let fits = |queued: &&Queued| {
        let is_first = blocks == 0;
        blocks = blocks.saturating_add(queued.blocks);
        is_first || !queued.waits || blocks <= pool
    };
    all.iter().take(batch.max(1)).take_while(fits).map(|queued| queued.request).collect()
}

impl Adapter {
    /// Has the time of prompts count that come from other engines, from when there is room for them.
    pub(super) fn take_turns(&mut self, now: Instant) {
        let Some(handover) = &mut self.handover else { return };
        if !self.requests.values().any(|tracked| !tracked.started && tracked.turn.is_none()) {
            return;
        }
        let block_tokens = self.config.block_tokens.max(1);
        let all = self.requests.iter().map(|(&request, tracked)| Queued {
            waits: !tracked.started && tracked.turn.is_none(),
            priority: tracked.priority,
            arrival: tracked.client,
            blocks: tracked.total.div_ceil(block_tokens) as u64,
            request,
        });
        let pool = match self.latest.has_kv {
            true => self.latest.kv_blocks.max(0) as u64,
            false => self.config.blocks.into(), // 0 if it is not known before the first step
        };
        for request in fitting(all.collect(), self.config.max_running, pool) {
            if let Some(tracked) = self.requests.get_mut(&request)
                && tracked.turn.is_none()
            {
                tracked.turn = Some(now);
                if tracked.fetches {
                    handover.begin(tracked.leg, request, now);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(request: u64, priority: i32, blocks: u64) -> Queued {
        Queued { waits: true, priority, arrival: request, blocks, request }
    }

    #[test]
    fn requests_have_their_turn_in_order_while_there_is_room() {
        let three = || vec![queued(3, 0, 4), queued(1, 0, 4), queued(2, 0, 4)];
        assert_eq!(fitting(three(), 8, 100), [1, 2, 3]);
        assert_eq!(fitting(three(), 2, 100), [1, 2], "the batch is full");
        assert_eq!(fitting(three(), 8, 8), [1, 2], "the pool is full");
        assert_eq!(fitting(three(), 8, 3), [1]);
        let mut all = three();
        all.push(queued(4, -1, 4));
        assert_eq!(fitting(all.clone(), 2, 100), [4, 1], "the first by priority");
        all[0].waits = false; // 3 runs
        assert_eq!(fitting(all.clone(), 2, 100), [3, 4]);
        assert_eq!(fitting(all, 8, 3), [3], "what runs has its blocks");
    }
}
