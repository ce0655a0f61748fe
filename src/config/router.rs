//! `frontend.router:` from checked values.

use super::Router;
use super::read::Values;
use crate::router::{Affinity, Mode, Policy, Weights};

pub(super) fn router(values: &mut Values) -> Router {
    let mode = named("frontend.router.mode", values, Mode::named);
    let modes = values.list("frontend.router.modes").into_iter().filter_map(|text| {
        let (model, mode) = text.rsplit_once('=')?;
        Some((model.to_owned(), Mode::named(mode)?))
    });
    Router {
        mode: mode.unwrap_or_default(),
        modes: modes.collect(),
        weights: Weights {
            overlap: values.decimal("frontend.router.overlap_weight"),
            host: values.decimal("frontend.router.host_weight"),
            disk: values.decimal("frontend.router.disk_weight"),
            prefill: values.decimal("frontend.router.prefill_weight"),
            decode: values.decimal("frontend.router.decode_weight"),
            legs: values.decimal("frontend.router.leg_weight"),
            temperature: values.decimal("frontend.router.temperature"),
        },
        predicted_ttl: values.time("frontend.router.predicted_ttl_s"),
        silent_ttl: values.time("frontend.router.silent_ttl_s"),
        predicted_blocks: values.size("frontend.router.predicted_blocks"),
        queue: values.size("frontend.router.queue"),
        queue_wait: values.time("frontend.router.queue_wait_s"),
        queue_policy: named("frontend.router.queue_policy", values, Policy::named)
            .unwrap_or_default(),
        affinity: named("frontend.router.affinity", values, Affinity::named).unwrap_or_default(),
        affinity_ttl: values.time("frontend.router.affinity_ttl_s"),
        affinity_sessions: values.size("frontend.router.affinity_sessions"),
    }
}

fn named<T>(key: &str, values: &Values, known: fn(&str) -> Option<T>) -> Option<T> {
    values.text(key).and_then(|name| known(&name))
}
