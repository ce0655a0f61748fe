//! The live supervision tree: every actor hangs a card on the board while it lives.
//!
//! A [`Card`] is part of an actor's state, so it leaves the board however the actor ends, also by a
//! kill or a panic. Reading the board costs the actors nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bincode::{Decode, Encode};
use ractor::ActorCell;
use serde::Serialize;

use crate::word::Word;

/// Identifies a card while the process lives; 0 is above the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CardId(u64);

impl CardId {
    /// What the root hangs below.
    pub const TOP: CardId = CardId(0);
}

/// Most counters a card shows.
const COUNTERS: usize = 4;

/// What the board and the actor share.
struct Shown {
    state: Mutex<&'static str>,
    counters: [AtomicU64; COUNTERS],
}

struct Entry {
    parent: CardId,
    kind: &'static str,
    name: Box<str>,
    generation: u32,
    counter_names: &'static [&'static str],
    shown: Arc<Shown>,
    bearer: Bearer,
}

/// Who hangs on the board.
#[derive(Clone)]
pub enum Bearer {
    /// An actor.
    Actor(ActorCell),
    /// A part of its parent that ends by itself; calling this kills it.
    Part(Arc<dyn Fn() + Send + Sync>),
}

impl From<ActorCell> for Bearer {
    fn from(cell: ActorCell) -> Self {
        Self::Actor(cell)
    }
}

impl Bearer {
    /// Ends it as a fault would.
    pub fn kill(&self) {
        match self {
            Self::Actor(cell) => cell.kill(),
            Self::Part(kill) => kill(),
        }
    }
}

/// All cards of the process.
#[derive(Default)]
pub struct Board {
    last: AtomicU64,
    cards: Mutex<HashMap<CardId, Entry>>,
}

/// What an actor is, for [`Board::hang`].
pub struct Label {
    /// `Rank`, `Request`, ….
    pub kind: &'static str,
    /// Which one of its kind.
    pub name: String,
    /// How often this part was started, from 1.
    pub generation: u32,
    /// Names of its counters, in the order of [`Card::count`]; at most 4.
    pub counters: &'static [&'static str],
}

impl Board {
    /// Hangs a card for `bearer` below `parent`.
    pub fn hang(self: &Arc<Self>, parent: CardId, label: Label, bearer: impl Into<Bearer>) -> Card {
        debug_assert!(label.counters.len() <= COUNTERS, "{} has too many counters", label.kind);
        let id = CardId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let shown = Arc::new(Shown { state: Mutex::new("starting"), counters: Default::default() });
        let entry = Entry {
            parent,
            kind: label.kind,
            name: label.name.into(),
            generation: label.generation,
            counter_names: label.counters,
            shown: shown.clone(),
            bearer: bearer.into(),
        };
        self.lock().insert(id, entry);
        Card { id, board: self.clone(), shown }
    }

    /// How many actors of each kind live.
    pub fn census(&self) -> BTreeMap<&'static str, usize> {
        let mut census = BTreeMap::new();
        for entry in self.lock().values() {
            *census.entry(entry.kind).or_default() += 1;
        }
        census
    }

    /// Actors of this kind, and of this name if one is given, oldest first.
    pub fn find(&self, kind: &str, name: Option<&str>) -> Vec<(String, Bearer)> {
        let cards = self.lock();
        let mut found: Vec<_> = cards
            .iter()
            .filter(|(_, e)| e.kind == kind && name.is_none_or(|name| &*e.name == name))
            .map(|(id, e)| (*id, e.name.to_string(), e.bearer.clone()))
            .collect();
        found.sort_by_key(|(id, ..)| *id);
        found.into_iter().map(|(_, name, bearer)| (name, bearer)).collect()
    }

    /// The whole tree; `None` while there is no root.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let cards = self.lock();
        let mut children: HashMap<CardId, Vec<CardId>> = HashMap::new();
        for (id, entry) in cards.iter() {
            // A killed parent's card can fall before its child's: show the child below the root.
            let parent = if cards.contains_key(&entry.parent) { entry.parent } else { CardId::TOP };
            children.entry(parent).or_default().push(*id);
        }
        children.values_mut().for_each(|ids| ids.sort());
        let mut tops = children.get(&CardId::TOP)?.iter();
        let mut root = snapshot_of(*tops.next()?, &cards, &children);
        root.children.extend(tops.map(|id| snapshot_of(*id, &cards, &children)));
        Some(root)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CardId, Entry>> {
        self.cards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn snapshot_of(
    id: CardId,
    cards: &HashMap<CardId, Entry>,
    children: &HashMap<CardId, Vec<CardId>>,
) -> Snapshot {
    let entry = &cards[&id];
    let counts = entry.shown.counters.iter().map(|c| c.load(Ordering::Relaxed));
    let state = *entry.shown.state.lock().unwrap_or_else(PoisonError::into_inner);
    let below = children.get(&id).into_iter().flatten();
    Snapshot {
        kind: entry.kind.into(),
        name: entry.name.to_string(),
        state: state.into(),
        generation: entry.generation,
        counters: entry.counter_names.iter().map(|name| Word::from(*name)).zip(counts).collect(),
        children: below.map(|child| snapshot_of(*child, cards, children)).collect(),
    }
}

/// An actor's place on the board; dropping it takes it off.
pub struct Card {
    id: CardId,
    board: Arc<Board>,
    shown: Arc<Shown>,
}

impl Card {
    /// For children to hang below.
    pub fn id(&self) -> CardId {
        self.id
    }

    /// What the actor is doing now.
    pub fn state(&self, state: &'static str) {
        *self.shown.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// A handle to the counters, for a thread or task that works for the actor.
    pub fn counters(&self) -> Counters {
        Counters(self.shown.clone())
    }

    /// Adds to the counter with this index in [`Label::counters`].
    pub fn add(&self, counter: usize, more: u64) {
        self.shown.counters[counter].fetch_add(more, Ordering::Relaxed);
    }

    /// Sets the counter with this index in [`Label::counters`].
    pub fn count(&self, counter: usize, value: u64) {
        self.shown.counters[counter].store(value, Ordering::Relaxed);
    }
}

/// Counts on an actor's card from elsewhere.
#[derive(Clone)]
pub struct Counters(Arc<Shown>);

impl Counters {
    /// Adds to the counter with this index in [`Label::counters`].
    pub fn add(&self, counter: usize, more: u64) {
        self.0.counters[counter].fetch_add(more, Ordering::Relaxed);
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.board.lock().remove(&self.id);
    }
}

/// One actor and all below it, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Encode, Decode)]
pub struct Snapshot {
    /// `NodeRoot`, `Frontend`, `Request`, …
    pub kind: Word,
    /// Which one: a model, a worker, a request id.
    pub name: String,
    /// What it is doing now.
    pub state: Word,
    /// How often this part was started, from 1.
    pub generation: u32,
    /// Its counters.
    #[serde(serialize_with = "as_map")]
    pub counters: Vec<(Word, u64)>,
    /// What it supervises.
    pub children: Vec<Snapshot>,
}

fn as_map<S: serde::Serializer>(
    counters: &[(Word, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counters.iter().map(|(name, count)| (name, count)))
}

impl Snapshot {
    /// The tree as indented text, one actor a line.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write_line(&mut text, "", "");
        text
    }

    fn write_line(&self, text: &mut String, branch: &str, indent: &str) {
        let _ = write!(text, "{branch}{} {} [{}]", self.kind, self.name, self.state);
        if self.generation > 1 {
            let _ = write!(text, " generation={}", self.generation);
        }
        for (name, count) in &self.counters {
            let _ = write!(text, " {name}={count}");
        }
        text.push('\n');
        for (i, child) in self.children.iter().enumerate() {
            let last = i + 1 == self.children.len();
            let (branch, deeper) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            child.write_line(text, &format!("{indent}{branch}"), &format!("{indent}{deeper}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn actor(name: &str, children: Vec<Snapshot>) -> Snapshot {
        Snapshot {
            kind: "Rank".into(),
            name: name.to_string(),
            state: "serving".into(),
            generation: name.len() as u32,
            counters: vec![("steps".into(), 7)],
            children,
        }
    }

    #[test]
    fn the_text_shows_who_supervises_whom() {
        let tree = actor("a", vec![actor("bb", vec![actor("c", vec![])]), actor("d", vec![])]);
        expect![[r#"
            Rank a [serving] steps=7
            ├─ Rank bb [serving] generation=2 steps=7
            │  └─ Rank c [serving] steps=7
            └─ Rank d [serving] steps=7
        "#]]
        .assert_eq(&tree.to_text());
        assert_eq!(serde_json::to_value(&tree).unwrap()["counters"]["steps"], 7);
    }
}
