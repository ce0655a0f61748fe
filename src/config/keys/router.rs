//! The keys of `frontend.router:`.

use crate::config::schema::Preset::{Is, Words};
use crate::config::schema::{Key, Kind, MODEL_MODE, frontend, seconds, whole};
use crate::router::{Affinity, Mode, Policy};

const WEIGHT: Kind = Kind::Decimal { min: 0.0, max: 1e6 };

pub(super) const KEYS: &[Key] = &[
    Key::new(
        "frontend.router.mode",
        Kind::Choice(Mode::NAMES),
        Is("kv"),
        "how a rank is chosen: by cached prefix and load (`kv`), in turn, at random, the better of two, \
         by load alone, or by the request's own word",
    )
    .metric("cuelight_router_decision_seconds"),
    Key::new(
        "frontend.router.modes",
        Kind::List(MODEL_MODE),
        Words("none: `frontend.router.mode` for all"),
        "modes of single models, as NAME=MODE",
    ),
    Key::new(
        "frontend.router.overlap_weight",
        WEIGHT,
        Is("1.0"),
        "computed KV blocks that a cached one takes off in mode `kv`",
    ),
    Key::new(
        "frontend.router.host_weight",
        WEIGHT,
        Is("0.75"),
        "the same for one that the rank must load from its host's memory",
    ),
    Key::new(
        "frontend.router.disk_weight",
        WEIGHT,
        Is("0.25"),
        "the same for one that it must load from disk",
    ),
    Key::new(
        "frontend.router.prefill_weight",
        WEIGHT,
        Is("1.0"),
        "weight of each KV block that the rank has to compute",
    ),
    Key::new(
        "frontend.router.decode_weight",
        WEIGHT,
        Is("0.25"),
        "weight of each KV block that live legs hold there",
    ),
    Key::new(
        "frontend.router.leg_weight",
        WEIGHT,
        Is("0.0"),
        "weight of each live leg there, in KV blocks",
    ),
    Key::new(
        "frontend.router.temperature",
        Kind::Decimal { min: 0.0, max: 1000.0 },
        Is("0.0"),
        "0 takes the rank of the lowest cost; more draws among all by how little they cost more",
    ),
    Key::new(
        "frontend.router.predicted_ttl_s",
        seconds(0.0, 3600.0),
        Is("5"),
        "how long a prompt's blocks count as cached on the rank it was sent to, before that says so; \
         0 for not at all",
    )
    .metric("cuelight_router_predicted_blocks")
    .limit(|c| frontend(c, |f| f.router.predicted_ttl.as_secs_f64())),
    Key::new(
        "frontend.router.silent_ttl_s",
        seconds(0.0, 86_400.0),
        Is("120"),
        "the same for ranks that do not tell what they have cached",
    )
    .metric("cuelight_router_predicted_blocks")
    .limit(|c| frontend(c, |f| f.router.silent_ttl.as_secs_f64())),
    Key::new(
        "frontend.router.predicted_blocks",
        whole(0, 1 << 30),
        Is("1048576"),
        "KV blocks of a model that may count so; with more the oldest are forgotten",
    )
    .metric("cuelight_router_predicted_blocks")
    .limit(|c| frontend(c, |f| f.router.predicted_blocks as f64)),
    Key::new(
        "frontend.router.queue",
        whole(0, 10_000),
        Is("0"),
        "requests of a model that wait here while all its ranks are full; 0: they get 429 at once",
    )
    .metric("cuelight_router_queue")
    .limit(|c| frontend(c, |f| f.router.queue as f64)),
    Key::new(
        "frontend.router.queue_wait_s",
        seconds(0.01, 86_400.0),
        Is("30"),
        "how long they wait before they get 429",
    )
    .metric("cuelight_router_queue_seconds")
    .limit(|c| frontend(c, |f| f.router.queue_wait.as_secs_f64())),
    Key::new(
        "frontend.router.queue_policy",
        Kind::Choice(Policy::NAMES),
        Is("fcfs"),
        "which of a client's requests of one priority goes first",
    ),
    Key::new(
        "frontend.router.affinity",
        Kind::Choice(Affinity::NAMES),
        Is("off"),
        "whether a session (header `x-cuelight-session`) stays on its rank: `soft` unless that is full, \
         `hard` as long as it lives",
    ),
    Key::new(
        "frontend.router.affinity_ttl_s",
        seconds(0.1, 604_800.0),
        Is("600"),
        "how long a session is remembered after its last request",
    )
    .metric("cuelight_router_sessions")
    .limit(|c| frontend(c, |f| f.router.affinity_ttl.as_secs_f64())),
    Key::new(
        "frontend.router.affinity_sessions",
        whole(1, 100_000_000),
        Is("65536"),
        "sessions of a model that are remembered; a further one is not",
    )
    .metric("cuelight_router_sessions")
    .limit(|c| frontend(c, |f| f.router.affinity_sessions as f64)),
];
