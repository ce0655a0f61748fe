//! Which bytes of a peer's pool go where in ours: pure arithmetic over two [`Layout`]s.
//!
//! A sequence's tokens are cut into stretches that lie in one block on both sides. Within a stretch
//! layers, planes, heads and tokens are axes with a stride on either side; axes that are packed the
//! same way on both sides melt into one run. Runs that lie side by side on both sides then merge,
//! also across blocks.

#[cfg(test)]
mod tests;

use std::ops::Range;

use rustc_hash::FxHashSet;

use super::layout::Layout;
use crate::ids::BlockId;

/// One contiguous copy between two pools. Offsets are bytes from the start of each region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it starts in the peer's region.
    pub remote: u64,
    /// Where it starts in the local region.
    pub local: u64,
    /// Its length in bytes, at least 1.
    pub bytes: u64,
}

/// How far a transfer over a list of runs has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    run: usize,
    /// Bytes of that run.
    within: u64,
    /// Bytes in all.
    pub(super) done: u64,
}

impl Cursor {
    /// The next runs, at most `bytes` of them in at most `count` pieces.
    pub(super) fn peek(&self, runs: &[Run], mut bytes: u64, count: usize, out: &mut Vec<Run>) {
        out.clear();
        let mut within = self.within;
        for run in runs.iter().skip(self.run).take(count) {
            if bytes == 0 {
                break;
            }
            let len = (run.bytes - within).min(bytes);
            out.push(Run { remote: run.remote + within, local: run.local + within, bytes: len });
            bytes -= len;
            within = 0;
        }
    }

    /// Goes on by `bytes`, which must be left.
    pub(super) fn advance(&mut self, runs: &[Run], mut bytes: u64) {
        self.done += bytes;
        while bytes > 0 {
            let len = (runs[self.run].bytes - self.within).min(bytes);
            self.within += len;
            bytes -= len;
            if self.within == runs[self.run].bytes {
                (self.run, self.within) = (self.run + 1, 0);
            }
        }
    }
}

/// One side of a transfer: its pool, and the block table of the sequence from token 0 on.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// The pool.
    pub layout: &'a Layout,
    /// Token `t` is in `blocks[t / layout.block_tokens]`.
    pub blocks: &'a [BlockId],
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A layout contradicts itself.
    #[error("bad KV layout: {why} ({layout})")]
    #[expect(missing_docs, reason = "the text says it")]
    Layout { why: &'static str, layout: String },
    /// The two pools hold different models.
    #[error(
        "the two pools differ in {what}: {remote} at the peer, {local} here; both must serve the same model"
    )]
    #[expect(missing_docs, reason = "the text says it")]
    Mismatch { what: &'static str, remote: u64, local: u64 },
    /// No head is in both pools.
    #[error("the peer's heads {remote:?} and ours {local:?} have none in common")]
    #[expect(missing_docs, reason = "the text says it")]
    NoCommonHead { remote: Range<u32>, local: Range<u32> },
    /// A block table names a block that the pool does not have.
    #[error("block {block} is outside of a pool of {blocks} blocks")]
    #[expect(missing_docs, reason = "the text says it")]
    NoSuchBlock { block: u32, blocks: u32 },
    /// A block table is too short.
    #[error("tokens up to {end} are wanted, but the table of {blocks} blocks covers only {tokens}")]
    #[expect(missing_docs, reason = "the text says it")]
    TableTooShort { end: u64, blocks: usize, tokens: u64 },
    /// A local block would be written twice.
    #[error("block {block} is twice in the local table")]
    #[expect(missing_docs, reason = "the text says it")]
    Twice { block: u32 },
}

/// The copies that bring `tokens` of a sequence from the peer's pool to ours, ascending by local
/// offset, as few and as long as the two layouts allow.
///
/// Only heads that both pools have are copied: a pool with all heads is filled by one plan for each
/// shard, and a shard takes its part of a pool with all heads.
///
/// A stretch that ends inside a block breaks into a run for each head, where a whole block may be
/// one. Between pools with equal `block_tokens` a caller may round `tokens` up to whole blocks; what
/// lies behind a sequence's last token is never read.
///
/// # Errors
/// [`PlanError`]: nothing was planned.
pub fn plan(remote: Side<'_>, local: Side<'_>, tokens: Range<u64>) -> Result<Vec<Run>, PlanError> {
    let heads = common_heads(remote.layout, local.layout)?;
    table(remote, &tokens)?;
    let to = table(local, &tokens)?;
    let mut seen = FxHashSet::default();
    if let Some(block) = to.iter().find(|block| !seen.insert(block.0)) {
        return Err(PlanError::Twice { block: block.0 });
    }
    let mut runs = Vec::new();
    let mut token = tokens.start;
    while token < tokens.end {
        let stretch = Stretch::at(remote, local, token, tokens.end);
        stretch.emit(remote.layout, local.layout, &heads, &mut runs);
        token += u64::from(stretch.tokens);
    }
    Ok(merge(runs))
}

/// Tokens that lie in one block on either side.
struct Stretch {
    /// Byte offsets of the block's token, layer 0, plane 0, first common head not yet added.
    remote: u64,
    local: u64,
    tokens: u32,
}

impl Stretch {
    fn at(remote: Side<'_>, local: Side<'_>, token: u64, end: u64) -> Self {
        let (from, from_left) = place(remote, token);
        let (to, to_left) = place(local, token);
        let left = (end - token).min(u64::from(from_left.min(to_left)));
        Self { remote: from, local: to, tokens: left as u32 } // at most block_tokens
    }

    fn emit(&self, remote: &Layout, local: &Layout, heads: &Range<u32>, runs: &mut Vec<Run>) {
        let (from, to) = (&remote.strides, &local.strides);
        let mut axes = [
            Axis { count: local.layers, remote: from.layer, local: to.layer },
            Axis { count: local.planes, remote: from.plane, local: to.plane },
            Axis { count: heads.end - heads.start, remote: from.head, local: to.head },
            Axis { count: self.tokens, remote: from.token, local: to.token },
        ];
        axes.sort_unstable_by_key(|axis| std::cmp::Reverse(axis.local));
        let (mut outer, mut bytes) = (axes.len(), local.head_bytes);
        // From the inside out: an axis packed alike on both sides makes the run longer.
        while let Some(axis) = outer.checked_sub(1).map(|last| &axes[last]) {
            if axis.count > 1 && (axis.remote != bytes || axis.local != bytes) {
                break;
            }
            bytes *= u64::from(axis.count);
            outer -= 1;
        }
        let skipped =
            |layout: &Layout, stride| u64::from(heads.start - layout.heads.start) * stride;
        let first = Run {
            remote: self.remote + skipped(remote, from.head),
            local: self.local + skipped(local, to.head),
            bytes,
        };
        each(&axes[..outer], first, runs);
    }
}

#[derive(Clone, Copy)]
struct Axis {
    count: u32,
    remote: u64,
    local: u64,
}

/// Pushes one run for each place on the axes.
fn each(axes: &[Axis], first: Run, runs: &mut Vec<Run>) {
    let Some((axis, inner)) = axes.split_first() else { return runs.push(first) };
    for place in 0..u64::from(axis.count) {
        let (remote, local) =
            (first.remote + place * axis.remote, first.local + place * axis.local);
        each(inner, Run { remote, local, ..first }, runs);
    }
}

/// Sorts by local offset and joins what lies side by side on both sides.
fn merge(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable_by_key(|run| run.local);
    let mut merged: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match merged.last_mut() {
            Some(last)
                if last.local + last.bytes == run.local
                    && last.remote + last.bytes == run.remote =>
            {
                last.bytes += run.bytes;
            }
            _ => merged.push(run),
        }
    }
    merged
}

/// Offset of a token, and how many tokens of its block are left from it on.
fn place(side: Side<'_>, token: u64) -> (u64, u32) {
    let in_block = u64::from(side.layout.block_tokens);
    let block = side.blocks[(token / in_block) as usize];
    let row = (token % in_block) as u32;
    let strides = &side.layout.strides;
    let offset = u64::from(block.0) * strides.block + u64::from(row) * strides.token;
    (offset, side.layout.block_tokens - row)
}

/// The part of the block table that `tokens` need.
fn table<'a>(side: Side<'a>, tokens: &Range<u64>) -> Result<&'a [BlockId], PlanError> {
    let in_block = u64::from(side.layout.block_tokens);
    let covered = (side.blocks.len() as u64).saturating_mul(in_block);
    if tokens.end > covered {
        let blocks = side.blocks.len();
        return Err(PlanError::TableTooShort { end: tokens.end, blocks, tokens: covered });
    }
    if tokens.is_empty() {
        return Ok(&[]);
    }
    let used = (tokens.start / in_block) as usize..tokens.end.div_ceil(in_block) as usize;
    let table = &side.blocks[used];
    match table.iter().find(|block| block.0 >= side.layout.blocks) {
        Some(b) => Err(PlanError::NoSuchBlock { block: b.0, blocks: side.layout.blocks }),
        None => Ok(table),
    }
}

fn common_heads(remote: &Layout, local: &Layout) -> Result<Range<u32>, PlanError> {
    remote.check()?;
    local.check()?;
    let pairs = [
        ("layers", u64::from(remote.layers), u64::from(local.layers)),
        ("planes", u64::from(remote.planes), u64::from(local.planes)),
        ("bytes of a head", remote.head_bytes, local.head_bytes),
    ];
    if let Some(&(what, remote, local)) = pairs.iter().find(|(_, theirs, ours)| theirs != ours) {
        return Err(PlanError::Mismatch { what, remote, local });
    }
    let heads = remote.heads.start.max(local.heads.start)..remote.heads.end.min(local.heads.end);
    if heads.is_empty() {
        let (remote, local) = (remote.heads.clone(), local.heads.clone());
        return Err(PlanError::NoCommonHead { remote, local });
    }
    Ok(heads)
}
