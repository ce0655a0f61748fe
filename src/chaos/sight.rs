//! In which phases the requests of a node are when a fault comes, as far as that can be seen from
//! outside: by the cards of all nodes, and by how many legs wait.

use std::collections::{BTreeMap, HashMap};

use super::plan::{Part, Phase, Role};
use super::site::Card;

/// What one node shows.
#[derive(Clone, Debug, Default)]
pub(super) struct Sight {
    pub(super) cards: Vec<Card>,
    /// Legs in its ranks' queues.
    pub(super) waiting: usize,
}

/// How many requests are in each phase; a request counts once for each of its choices.
pub(super) type Phases = BTreeMap<Phase, usize>;

/// Where one choice of a request is.
#[derive(Clone, Debug, Default)]
struct Whereabouts {
    /// Nodes that prefill it for others.
    prefill: Vec<usize>,
    /// Nodes that decode it, or will.
    decode: Vec<usize>,
    /// Its blocks are fetched; whether some are on their way now.
    transfer: Option<bool>,
}

/// The phases of the requests that have to do with node `victim`: those that it answers if it is a
/// front end, those that it computes otherwise.
pub(super) fn phases(roles: &[Role], sights: &[Sight], victim: usize) -> Phases {
    let tokens = requests(sights.iter());
    let asked = requests(sights.get(victim).into_iter());
    let choices = whereabouts(roles, sights);
    let is_frontend = roles[victim].part() == Part::FrontEnd;
    let mut found = Phases::new();
    let mut add = |phase, count| *found.entry(phase).or_default() += count;
    // Of the prompts that a node is to compute, some wait in its queue: which ones is not seen.
    let mut to_compute: HashMap<usize, usize> = HashMap::new();
    for (choice, at) in &choices {
        let request = request_of(choice);
        let concerned = match is_frontend {
            true => asked.contains_key(request),
            false => at.prefill.iter().chain(&at.decode).any(|node| *node == victim),
        };
        let has_tokens = tokens.get(request).is_some_and(|count| *count > 0);
        match phase(at, has_tokens) {
            _ if !concerned => {}
            Phase::Prefilling => {
                let node = at.prefill.iter().chain(&at.decode).next().copied().unwrap_or(victim);
                *to_compute.entry(node).or_default() += 1;
            }
            phase => add(phase, 1),
        }
    }
    for (node, count) in to_compute {
        let queued = count.min(sights[node].waiting);
        add(Phase::Queued, queued);
        add(Phase::Prefilling, count - queued);
    }
    if is_frontend {
        let placed = |request: &&&str| choices.keys().any(|choice| request_of(choice) == **request);
        add(Phase::Queued, asked.keys().filter(|request| !placed(request)).count());
    }
    found.retain(|_, count| *count > 0);
    found
}

fn phase(at: &Whereabouts, has_tokens: bool) -> Phase {
    match at.transfer {
        Some(true) => Phase::Transferring,
        Some(false) => Phase::Reserved,
        None if at.decode.is_empty() => Phase::Prefilling,
        None if has_tokens => Phase::Decoding,
        None if at.prefill.is_empty() => Phase::Prefilling,
        None => Phase::Lent,
    }
}

/// The requests of these nodes' front ends and how many tokens each has.
fn requests<'a>(sights: impl Iterator<Item = &'a Sight>) -> HashMap<&'a str, u64> {
    let cards = sights.flat_map(|sight| &sight.cards).filter(|card| card.kind == "Request");
    let tokens = |card: &Card| card.counters.get("tokens").copied().unwrap_or(0);
    cards.map(|card| (card.name.as_str(), tokens(card))).collect()
}

/// By the choices' names.
fn whereabouts<'a>(roles: &[Role], sights: &'a [Sight]) -> BTreeMap<&'a str, Whereabouts> {
    let mut choices: BTreeMap<&str, Whereabouts> = BTreeMap::new();
    for (node, sight) in sights.iter().enumerate() {
        for card in &sight.cards {
            // `REQUEST/CHOICE.ATTEMPT`
            let Some((choice, _)) = card.name.rsplit_once('.') else { continue };
            match card.kind.as_str() {
                "Sequence" if roles[node].prefills() => {
                    choices.entry(choice).or_default().prefill.push(node);
                }
                "Sequence" => choices.entry(choice).or_default().decode.push(node),
                "Transfer" => {
                    choices.entry(choice).or_default().transfer = Some(card.state == "pulling");
                }
                _ => {}
            }
        }
    }
    choices
}

fn request_of(choice: &str) -> &str {
    choice.split_once('/').map_or(choice, |(request, _)| request)
}

#[cfg(test)]
mod tests {
    use super::super::plan::Work;
    use super::*;

    fn card(kind: &str, name: &str, state: &str) -> Card {
        let counters = HashMap::from([("tokens".to_owned(), u64::from(state == "5"))]);
        let (kind, name, state) = (kind.to_owned(), name.to_owned(), state.to_owned());
        Card { kind, name, state, counters, ..Card::default() }
    }

    fn sight(waiting: usize, cards: &[(&str, &str, &str)]) -> Sight {
        let cards = cards.iter().map(|(kind, name, state)| card(kind, name, state)).collect();
        Sight { cards, waiting }
    }

    #[test]
    fn requests_are_in_the_phase_that_their_cards_show() {
        let worker = |work| Role { frontend: false, worker: Some(work) };
        let front = Role { frontend: true, worker: None };
        let roles = [front, worker(Work::Prefill), worker(Work::Decode), front];
        let request = |name| ("Request", name, "0");
        let leg = |name| ("Sequence", name, "admitted");
        let front = [
            request("a"),
            request("b"),
            request("c"),
            request("d"),
            request("e"),
            ("Request", "f", "5"),
        ];
        let sights = [
            sight(0, &front),
            sight(1, &[leg("b/0.0"), leg("b/1.0"), leg("c/0.0"), leg("d/0.0"), leg("e/0.0")]),
            sight(
                2,
                &[
                    leg("c/0.1"),
                    ("Transfer", "c/0.1", "waiting for more"),
                    leg("d/0.1"),
                    ("Transfer", "d/0.1", "pulling"),
                    leg("e/0.1"),
                    leg("f/0.0"),
                    leg("g/0.0"),
                    leg("h/0.0"),
                ],
            ),
            sight(0, &[request("g"), request("h")]),
        ];
        let shown = |victim| {
            let found = phases(&roles, &sights, victim);
            found.iter().map(|(phase, count)| format!("{phase} {count}")).collect::<Vec<_>>()
        };
        let on_their_way = ["lent 1", "reserved 1", "transferring 1"];
        let computed = [&["queued 1", "prefilling 1"][..], &on_their_way].concat();
        assert_eq!(shown(1), computed);
        assert_eq!(shown(2), [&["queued 2"][..], &on_their_way, &["decoding 1"]].concat());
        let all = [&["queued 2", "prefilling 1"][..], &on_their_way, &["decoding 1"]].concat();
        assert_eq!(shown(0), all, "a is nowhere yet");
        assert_eq!(shown(3), ["queued 2"]);
        let idle: Vec<_> = roles.iter().map(|_| Sight::default()).collect();
        assert!(phases(&roles, &idle, 0).is_empty());
    }
}
