//! What nodes do for the cluster, and by that: which of them may be hit.

use std::fmt;

use serde::Serialize;

/// What the ranks of a worker do: `worker.role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    Aggregated,
    Prefill,
    Decode,
}

impl Work {
    /// As the configuration names it; anything else is no role.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "aggregated" => Some(Self::Aggregated),
            "prefill" => Some(Self::Prefill),
            "decode" => Some(Self::Decode),
            _ => None,
        }
    }
}

/// What a node does for the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Role {
    /// Clients come here.
    pub(crate) frontend: bool,
    /// Computes.
    pub(crate) worker: Option<Work>,
}

impl Role {
    /// Whether it decodes: without any such node nothing is answered.
    pub(crate) fn decodes(self) -> bool {
        matches!(self.worker, Some(Work::Aggregated | Work::Decode))
    }

    /// Whether it prefills for others.
    pub(crate) fn prefills(self) -> bool {
        self.worker == Some(Work::Prefill)
    }

    /// As what it is hit. A node that is both counts as a front end.
    pub(crate) fn part(self) -> Part {
        match self.worker {
            _ if self.frontend => Part::FrontEnd,
            Some(Work::Prefill) => Part::Prefill,
            Some(Work::Decode) => Part::Decode,
            Some(Work::Aggregated) | None => Part::Aggregated,
        }
    }
}

/// As what a node is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    FrontEnd,
    Aggregated,
    Prefill,
    Decode,
}

impl Part {
    pub(crate) const ALL: [Self; 4] =
        [Self::FrontEnd, Self::Aggregated, Self::Prefill, Self::Decode];

    /// As it is typed and reported.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FrontEnd => "front_end",
            Self::Aggregated => "aggregated",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }

    /// The phases in which a fault can catch a request there.
    pub(crate) fn phases(self) -> &'static [Phase] {
        use Phase::{Decoding, Lent, Prefilling, Queued, Reserved, Transferring};
        match self {
            Self::FrontEnd | Self::Decode => &Phase::ALL,
            Self::Aggregated => &[Queued, Prefilling, Decoding],
            Self::Prefill => &[Queued, Prefilling, Lent, Reserved, Transferring],
        }
    }
}

/// How far a request has got, as far as that can be seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// In the queue of a front end or of a rank that will compute its prompt.
    Queued,
    /// Its prompt is being computed.
    Prefilling,
    /// A rank keeps its prompt, or the part that is computed, for one that has no room for it yet.
    Lent,
    /// That one holds the blocks, and nothing is on its way to them at the moment.
    Reserved,
    /// Blocks are on their way.
    Transferring,
    /// It has tokens.
    Decoding,
}

impl Phase {
    pub(crate) const ALL: [Self; 6] = [
        Self::Queued,
        Self::Prefilling,
        Self::Lent,
        Self::Reserved,
        Self::Transferring,
        Self::Decoding,
    ];

    /// As it is typed and reported.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Prefilling => "prefilling",
            Self::Lent => "lent",
            Self::Reserved => "reserved",
            Self::Transferring => "transferring",
            Self::Decoding => "decoding",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_report() {
        for part in Part::ALL {
            assert_eq!(serde_json::to_value(part).unwrap(), part.name());
            assert!(part.phases().is_sorted());
        }
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
        for work in [Work::Aggregated, Work::Prefill, Work::Decode] {
            let name = serde_json::to_value(work).unwrap();
            assert_eq!(Work::named(name.as_str().unwrap()), Some(work));
            let role = Role { frontend: false, worker: Some(work) };
            assert_eq!(name, role.part().name());
            assert_ne!(role.decodes(), role.prefills());
        }
        assert_eq!(Work::named("front_end"), None);
        let both = Role { frontend: true, worker: Some(Work::Decode) };
        assert_eq!((both.part(), both.decodes()), (Part::FrontEnd, true));
    }
}
