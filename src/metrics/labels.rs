//! Label values as types, so that a misspelt one does not compile and each series exists from the
//! start, at zero.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// A closed set of label values.
pub trait LabelValue: Copy + 'static {
    /// All of them, in the order of their numbers.
    const ALL: &'static [Self];
    /// As exported.
    fn text(self) -> &'static str;
    /// Its place in [`LabelValue::ALL`].
    fn number(self) -> usize;
}

/// Declares an enum and its label texts together.
macro_rules! label_values {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)*
        }
        impl LabelValue for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];
            fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
            fn number(self) -> usize {
                self as usize
            }
        }
    };
}

label_values! {
    /// How a request ended.
    Outcome {
        /// Answered in full.
        Ok = "ok",
        /// Ended with an error after it was admitted.
        Failed = "failed",
        /// Its client left, or was cut off.
        Cancelled = "cancelled",
        /// Refused before any work was done.
        Rejected = "rejected",
    }
}

label_values! {
    /// Why a request was cancelled.
    Cancellation {
        /// The client closed the connection.
        Disconnect = "disconnect",
        /// The client did not read its stream.
        SlowClient = "slow_client",
        /// `frontend.request_timeout_s` has passed.
        Timeout = "timeout",
        /// The node stopped before the request had ended.
        Drain = "drain",
    }
}

label_values! {
    /// Why a choice was placed again.
    Migration {
        /// Its worker failed or panicked.
        WorkerLost = "worker_lost",
        /// Its rank was lost, and its worker was not.
        RankLost = "rank_lost",
        /// Its sequence's actor was lost.
        SequenceLost = "sequence_lost",
        /// The rank's queue was full.
        Pressure = "pressure",
    }
}

label_values! {
    /// Where a prompt was prefilled, and why there.
    PrefillPlace {
        /// On a rank that prefills.
        Elsewhere = "elsewhere",
        /// Where it is decoded: there was little to compute.
        Short = "short",
        /// Where it is decoded: most of it was cached.
        Cached = "cached",
        /// Where it is decoded: no rank that prefills was up.
        Empty = "empty",
        /// Where it is decoded: all ranks that prefill were full.
        Full = "full",
        /// Where it is decoded: something had gone wrong on the others.
        Failing = "failing",
        /// Where it is decoded, although it was to be prefilled elsewhere: that failed.
        Fallback = "fallback",
    }
}

label_values! {
    /// What became of a sequence's KV that was to be fetched.
    Fetched {
        /// All of it has come.
        Whole = "whole",
        /// Some of it has come; the rest was computed.
        Part = "part",
        /// None of it has come; it was computed.
        Nothing = "nothing",
        /// Its leg ended before.
        Cancelled = "cancelled",
        /// Nothing was fetched, since too many blocks are in quarantine.
        Quarantine = "quarantine",
    }
}

label_values! {
    /// Why a connection of another node was turned away.
    Turned {
        /// It does not know the cookie.
        Cookie = "cookie",
        /// It speaks another version.
        Protocol = "protocol",
        /// It is known, but not wanted: connected already, or an earlier incarnation.
        Unwanted = "unwanted",
        /// It is no node, or did not say in time that it is one.
        Stranger = "stranger",
    }
}

label_values! {
    /// Why a request was refused.
    Refusal {
        /// `frontend.max_requests` are in flight.
        Requests = "max_requests",
        /// `frontend.max_connections` are open.
        Connections = "max_connections",
        /// Every rank's queue is full (`worker.max_waiting`).
        Waiting = "max_waiting",
        /// `frontend.tokenizer_queue` long prompts wait.
        Tokenizer = "tokenizer_queue",
        /// No rank can serve the model.
        NotReady = "not_ready",
        /// The node is shutting down.
        Draining = "draining",
        /// No API key, or a wrong one.
        Unauthorized = "unauthorized",
        /// The body is over `frontend.max_body_bytes`.
        Body = "max_body_bytes",
        /// Headers or body took longer than `frontend.header_timeout_s`.
        SlowRequest = "header_timeout",
        /// The request itself is wrong.
        Invalid = "invalid",
    }
}

/// One counter for each value of a label, found by number.
#[derive(Clone, Debug)]
pub struct Counters<L> {
    counters: Box<[Counter]>,
    label: std::marker::PhantomData<L>,
}

impl<L: LabelValue> Counters<L> {
    /// Creates the series of every value; `labels` gives the full label set of one.
    pub(super) fn new<S>(family: &Family<S, Counter>, labels: impl Fn(&'static str) -> S) -> Self
    where
        S: EncodeLabelSet + Clone + std::hash::Hash + Eq,
    {
        let series = |value: &L| family.get_or_create_owned(&labels(value.text()));
        Self { counters: L::ALL.iter().map(series).collect(), label: std::marker::PhantomData }
    }

    /// The counter of this value.
    pub fn get(&self, value: L) -> &Counter {
        &self.counters[value.number()]
    }

    /// Counts one.
    pub fn inc(&self, value: L) {
        self.get(value).inc();
    }
}
