//! What is asked: jobs of one request or of a whole conversation, each a function of its number.

use std::time::Duration;

use super::draw::{self, Draw, Stream};
use super::lengths::Lengths;
use super::trace::Entry;

/// Most requests of a conversation.
const MOST_TURNS: u64 = 4096;

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Workload {
    /// Prompts that have nothing in common.
    Random {
        /// Tokens of each prompt.
        prompt: Lengths,
        /// Tokens of each answer.
        output: Lengths,
    },
    /// Prompts that begin like others.
    PrefixTree {
        /// The shared beginnings.
        tree: Tree,
        /// Tokens of a prompt after its shared beginning.
        prompt: Lengths,
        /// Tokens of each answer.
        output: Lengths,
    },
    /// Conversations; each request repeats all that was said before.
    Sessions {
        /// What conversations begin with, if they share anything.
        tree: Option<Tree>,
        /// Tokens that the user adds in each turn.
        prompt: Lengths,
        /// Tokens of each answer.
        output: Lengths,
        /// Turns of each conversation.
        turns: Lengths,
        /// Milliseconds between an answer and the next turn.
        think_ms: Lengths,
    },
    /// Recorded requests.
    Trace {
        /// In order of time.
        entries: Vec<Entry>,
        /// Tokens of a block.
        block: u32,
    },
}

/// A forest of prefixes, one leaf a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Leaves.
    pub groups: u32,
    /// Tokens from a root to a leaf.
    pub tokens: u32,
    /// Levels. Two neighbours on one level share what is above them.
    pub depth: u32,
}

/// A run of tokens: the first ones of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) key: u64,
    pub(super) tokens: u32,
}

/// One request of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// What it adds to the prompt.
    pub(super) text: Vec<Segment>,
    /// Tokens to answer with.
    pub(super) output: u32,
    /// The wait before it.
    pub(super) think: Duration,
    /// Stands for an answer whose tokens are not known.
    pub(super) answer_key: u64,
}

/// Requests that come one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) turns: Vec<Turn>,
    /// When it comes, if a trace says so.
    pub(super) at: Option<Duration>,
}

impl Tree {
    /// The beginning that a group shares, from the root.
    fn prefix(&self, seed: u64, group: u32) -> impl Iterator<Item = Segment> {
        let Self { tokens, depth, .. } = *self;
        (0..depth).map(move |level| {
            let node = group.checked_shr(depth - 1 - level).unwrap_or(0);
            let id = (u64::from(level) << 32) | u64::from(node);
            let end = |level| u64::from(tokens) * u64::from(level) / u64::from(depth);
            let tokens = (end(level + 1) - end(level)) as u32;
            Segment { key: draw::key(seed, Stream::PrefixText, id), tokens }
        })
    }
}

impl Workload {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Random { .. } => "random",
            Self::PrefixTree { .. } => "prefix-tree",
            Self::Sessions { .. } => "sessions",
            Self::Trace { .. } => "trace",
        }
    }

    /// Whether later requests need the answers of earlier ones.
    pub(super) fn keeps_answers(&self) -> bool {
        matches!(self, Self::Sessions { .. })
    }

    /// Job number `index`; `None` after the end of a trace.
    pub(super) fn job(&self, seed: u64, index: u64) -> Option<Job> {
        let mut draw = Draw::new(seed, Stream::Job, index);
        let own = |turn: u64, tokens| {
            let id = index.wrapping_mul(MOST_TURNS).wrapping_add(turn);
            Segment { key: draw::key(seed, Stream::OwnText, id), tokens }
        };
        let single = |text, output| Job {
            turns: vec![Turn { text, output, think: Duration::ZERO, answer_key: 0 }],
            at: None,
        };
        match self {
            Self::Random { prompt, output } => {
                let text = vec![own(0, prompt.sample(&mut draw))];
                Some(single(text, output.sample(&mut draw)))
            }
            Self::PrefixTree { tree, prompt, output } => {
                let group = draw.below(u64::from(tree.groups)) as u32;
                let mut text: Vec<_> = tree.prefix(seed, group).collect();
                text.push(own(0, prompt.sample(&mut draw)));
                Some(single(text, output.sample(&mut draw)))
            }
            Self::Sessions { tree, prompt, output, turns, think_ms } => {
                let shared = tree.map(|tree| {
                    let group = draw.below(u64::from(tree.groups)) as u32;
                    tree.prefix(seed, group).collect::<Vec<_>>()
                });
                let mut text = shared.unwrap_or_default();
                let turns = u64::from(turns.sample(&mut draw)).min(MOST_TURNS);
                let turns = (0..turns).map(|turn| {
                    text.push(own(turn, prompt.sample(&mut draw)));
                    let id = index.wrapping_mul(MOST_TURNS).wrapping_add(turn);
                    let think = if turn == 0 { 0 } else { think_ms.sample(&mut draw) };
                    Turn {
                        text: std::mem::take(&mut text),
                        output: output.sample(&mut draw),
                        think: Duration::from_millis(u64::from(think)),
                        answer_key: draw::key(seed, Stream::AnswerText, id),
                    }
                });
                Some(Job { turns: turns.collect(), at: None })
            }
            Self::Trace { entries, block } => {
                let entry = entries.get(usize::try_from(index).ok()?)?;
                let mut text = blocks(seed, entry, *block);
                let known: u32 = text.iter().map(|segment| segment.tokens).sum();
                if known < entry.input {
                    text.push(own(0, entry.input - known));
                }
                Some(Job { at: Some(entry.at), ..single(text, entry.output) })
            }
        }
    }
}

/// The blocks of a trace's prompt that have a name.
fn blocks(seed: u64, entry: &Entry, block: u32) -> Vec<Segment> {
    let mut left = entry.input;
    let segments = entry.blocks.iter().map(|&id| {
        let tokens = left.min(block);
        left -= tokens;
        Segment { key: draw::key(seed, Stream::BlockText, id), tokens }
    });
    segments.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &[Segment]) -> u32 {
        text.iter().map(|segment| segment.tokens).sum()
    }

    #[test]
    fn a_job_is_a_function_of_the_seed_and_its_number() {
        let workload = Workload::Random { prompt: Lengths::Fixed(5), output: Lengths::Fixed(3) };
        let job = |seed, index| workload.job(seed, index).unwrap();
        assert_eq!(job(1, 7), job(1, 7));
        assert_ne!(job(1, 7).turns[0].text, job(1, 8).turns[0].text);
        assert_ne!(job(1, 7).turns[0].text, job(2, 7).turns[0].text);
        assert_eq!((tokens(&job(1, 7).turns[0].text), job(1, 7).turns[0].output), (5, 3));
    }

    #[test]
    fn a_tree_shares_its_upper_levels_between_neighbours() {
        let tree = Tree { groups: 8, tokens: 100, depth: 3 };
        let prefix = |group| tree.prefix(0, group).collect::<Vec<_>>();
        assert_eq!(tokens(&prefix(5)), 100);
        let shared = |a, b| prefix(a).iter().zip(prefix(b)).filter(|(a, b)| **a == *b).count();
        // (two groups, levels that they share)
        for (a, b, levels) in [(0, 0, 3), (0, 1, 2), (1, 2, 1), (3, 4, 0), (4, 7, 1), (6, 7, 2)] {
            assert_eq!(shared(a, b), levels, "{a} {b}");
        }
        let deep = Tree { groups: 2, tokens: 64, depth: 64 };
        assert_eq!(tokens(&deep.prefix(0, 1).collect::<Vec<_>>()), 64);
    }

    #[test]
    fn groups_are_chosen_about_equally_often() {
        let tree = Tree { groups: 4, tokens: 10, depth: 1 };
        let one = Lengths::Fixed(1);
        let workload = Workload::PrefixTree { tree, prompt: one, output: one };
        let mut seen = std::collections::HashMap::new();
        for index in 0..1000 {
            let job = workload.job(3, index).unwrap();
            *seen.entry(job.turns[0].text[0].key).or_insert(0) += 1;
            assert_eq!(tokens(&job.turns[0].text), 11);
        }
        assert!(seen.len() == 4 && seen.values().all(|&count| count > 200), "{seen:?}");
    }

    #[test]
    fn a_session_has_its_turns_and_pauses_between_them() {
        let workload = Workload::Sessions {
            tree: Some(Tree { groups: 1, tokens: 50, depth: 1 }),
            prompt: Lengths::Fixed(10),
            output: Lengths::Fixed(4),
            turns: Lengths::Fixed(3),
            think_ms: Lengths::Fixed(20),
        };
        let turns = workload.job(0, 9).unwrap().turns;
        let sizes: Vec<_> = turns.iter().map(|turn| tokens(&turn.text)).collect();
        let pauses: Vec<_> = turns.iter().map(|turn| turn.think.as_millis()).collect();
        assert_eq!((sizes, pauses), (vec![60, 10, 10], vec![0, 20, 20]));
    }

    #[test]
    fn the_same_block_of_a_trace_is_the_same_text() {
        let entry = |input, blocks| Entry { at: Duration::from_secs(1), input, output: 2, blocks };
        let entries = vec![entry(600, vec![4, 9]), entry(1100, vec![4, 9])];
        let workload = Workload::Trace { entries, block: 512 };
        let [a, b] = [0, 1].map(|index| workload.job(0, index).unwrap());
        assert_eq!(a.turns[0].text[0], b.turns[0].text[0]);
        assert_eq!(a.turns[0].text[1].key, b.turns[0].text[1].key);
        let sizes = |job: &Job| job.turns[0].text.iter().map(|s| s.tokens).collect::<Vec<_>>();
        assert_eq!((sizes(&a), sizes(&b)), (vec![512, 88], vec![512, 512, 76]));
        assert_eq!(a.at, Some(Duration::from_secs(1)));
        assert_eq!(workload.job(0, 2), None);
    }
}
