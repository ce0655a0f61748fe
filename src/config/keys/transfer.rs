//! The keys of `frontend.disaggregation:`, and `worker.role` with `worker.transfer:`.

use super::MIB;
use crate::config::TransportKind;
use crate::config::schema::Preset::{Is, Words};
use crate::config::schema::TimeUnit::Millis;
use crate::config::schema::{Key, Kind, frontend, seconds, transfer, whole};
use crate::router::Role;

pub(super) const FRONTEND: &[Key] = &[
    Key::new(
        "frontend.disaggregation.min_uncached_tokens",
        whole(0, 1 << 30),
        Is("256"),
        "prompts of which the rank that decodes has fewer tokens to compute are prefilled there, also \
         if there are ranks that prefill",
    )
    .metric("cuelight_prefill_places_total")
    .limit(|c| frontend(c, |f| f.disaggregation.thresholds.min_uncached_tokens as f64)),
    Key::new(
        "frontend.disaggregation.max_cached_share",
        Kind::Decimal { min: 0.0, max: 1.0 },
        Is("0.75"),
        "so are prompts of which it has this share cached, or more",
    )
    .metric("cuelight_prefill_places_total")
    .limit(|c| frontend(c, |f| f.disaggregation.thresholds.max_cached_share)),
    Key::new(
        "frontend.disaggregation.max_queued_tokens",
        whole(0, 1 << 40),
        Is("65536"),
        "ranks that prefill and have more prompt tokens to compute count as full",
    )
    .metric("cuelight_prefill_places_total")
    .limit(|c| frontend(c, |f| f.disaggregation.thresholds.max_queued_tokens as f64)),
    Key::new(
        "frontend.disaggregation.shun_ms",
        Kind::Time { unit: Millis, min: 0.0, max: 3_600_000.0 },
        Is("2000"),
        "how long a rank is asked for no prefill after one that failed there",
    )
    .metric("cuelight_prefill_places_total")
    .limit(|c| frontend(c, |f| f.disaggregation.shun.as_secs_f64() * 1e3)),
    Key::new(
        "frontend.disaggregation.overlap",
        Kind::Switch,
        Is("true"),
        "whether KV blocks are fetched while the rest of their prompt is still being computed",
    ),
];

pub(super) const WORKER: &[Key] = &[
    Key::new(
        "worker.role",
        Kind::Choice(Role::NAMES),
        Is("aggregated"),
        "what its ranks do: both, `prefill` for others, or `decode` what others have prefilled",
    ),
    Key::new(
        "worker.transfer.transport",
        Kind::Choice(TransportKind::NAMES),
        Is("auto"),
        "how KV blocks come from ranks that prefill: by UCX, TCP or NIXL, or (`auto`) by UCX on one host \
         and with RDMA, if its library is found, and else by TCP; all workers of a model need the same",
    ),
    Key::new(
        "worker.transfer.listen",
        Kind::Address,
        Words("the IP of `cluster.listen`, any port"),
        "where `tcp` serves KV blocks on ranks that prefill",
    ),
    Key::new(
        "worker.transfer.advertise",
        Kind::Text,
        Words("the IP of `worker.transfer.listen`"),
        "the IP address that others reach it at",
    ),
    Key::new(
        "worker.transfer.lease_s",
        seconds(0.1, 86_400.0),
        Is("60"),
        "how long a rank keeps a prefilled prompt that nobody has fetched",
    )
    .metric("cuelight_kv_leases_expired_total")
    .limit(|c| transfer(c, |t| t.lease.as_secs_f64())),
    Key::new(
        "worker.transfer.timeout_s",
        seconds(0.01, 86_400.0),
        Is("30"),
        "a pull that takes longer fails, and its prompt is computed where it was wanted",
    )
    .metric("cuelight_kv_pull_seconds")
    .limit(|c| transfer(c, |t| t.timeout.as_secs_f64())),
    Key::new(
        "worker.transfer.quiet_s",
        seconds(0.0, 3600.0),
        Is("2"),
        "how long a failed pull may take to prove that nothing writes to its blocks any more; then they \
         go into quarantine, and its leg to other ones",
    )
    .metric("cuelight_kv_blocks_quarantined")
    .limit(|c| transfer(c, |t| t.quiet.as_secs_f64())),
    Key::new(
        "worker.transfer.quarantine_alarm",
        whole(1, u32::MAX as u64),
        Is("64"),
        "KV blocks in quarantine that raise `cuelight_kv_quarantine_level` to 1",
    )
    .metric("cuelight_kv_blocks_quarantined")
    .limit(|c| transfer(c, |t| f64::from(t.quarantine_alarm))),
    Key::new(
        "worker.transfer.quarantine_max",
        whole(1, u32::MAX as u64),
        Is("1024"),
        "KV blocks in quarantine, or a quarter of the pool, with which a rank ends and is started again",
    )
    .metric("cuelight_kv_blocks_quarantined")
    .limit(|c| transfer(c, |t| f64::from(t.quarantine_max))),
    Key::new(
        "worker.transfer.checksums",
        Kind::Switch,
        Is("false"),
        "whether each fetched KV block is compared with a checksum of the one that was prefilled",
    ),
    Key::new("worker.transfer.max_pulls", whole(1, 1 << 20), Is("1024"), "pulls in flight on a rank")
        .metric("cuelight_kv_pulls_in_flight")
        .limit(|c| transfer(c, |t| t.limits.pulls as f64)),
    Key::new(
        "worker.transfer.max_peers",
        whole(1, 1 << 20),
        Is("1024"),
        "ranks that a rank is connected to, and as many that are connected to it",
    )
    .metric("cuelight_kv_peers_lost_total")
    .limit(|c| transfer(c, |t| t.limits.peers as f64)),
    Key::new(
        "worker.transfer.max_leases",
        whole(1, 1 << 20),
        Is("65536"),
        "prefilled prompts that a rank keeps at a time",
    )
    .metric("cuelight_kv_leases")
    .limit(|c| transfer(c, |t| t.limits.grants as f64)),
    Key::new(
        "worker.transfer.max_runs",
        whole(1024, 1 << 24),
        Is("65536"),
        "runs of bytes that lie side by side, in one pull; blocks beyond are fetched by the next one; all \
         workers of a model need the same",
    )
    .metric("cuelight_kv_pull_runs")
    .limit(|c| transfer(c, |t| t.limits.runs as f64)),
    Key::new(
        "worker.transfer.chunk_bytes",
        whole(4096, 1024 * MIB),
        Is("1048576"),
        "bytes that one pull moves before another has its turn",
    ),
    Key::new(
        "worker.transfer.window_bytes",
        whole(4096, 1024 * MIB),
        Is("16777216"),
        "bytes that `ucx` and `nixl` ask a peer for ahead of those that have come",
    ),
    Key::new(
        "worker.transfer.stall_s",
        seconds(0.01, 3600.0),
        Is("5"),
        "a peer that owes bytes and sends none for so long is lost",
    )
    .metric("cuelight_kv_peers_lost_total")
    .limit(|c| transfer(c, |t| t.limits.stall.as_secs_f64())),
    Key::new(
        "worker.transfer.handshake_s",
        seconds(0.01, 3600.0),
        Is("5"),
        "how long connecting to a peer may take (`tcp`)",
    )
    .metric("cuelight_kv_peers_lost_total")
    .limit(|c| transfer(c, |t| t.limits.handshake.as_secs_f64())),
    Key::new(
        "worker.transfer.ucx.dir",
        Kind::Path,
        Words("where the system's loader finds it"),
        "directory of `libucp.so.0`",
    ),
    Key::new(
        "worker.transfer.ucx.transports",
        Kind::Text,
        Is("posix,sysv,cma,tcp,cuda_copy,cuda_ipc"),
        "UCX_TLS; add `rc` for InfiniBand and RoCE",
    ),
    Key::new(
        "worker.transfer.ucx.devices",
        Kind::Text,
        Words("`lo` if `cluster.listen` is a loopback address, else `all`"),
        "UCX_NET_DEVICES: network devices that it may use, or `all`",
    ),
    Key::new(
        "worker.transfer.nixl.dir",
        Kind::Path,
        Words("where the system's loader finds it"),
        "directory of `libnixl_capi.so`",
    ),
    Key::new(
        "worker.transfer.nixl.transports",
        Kind::Text,
        Is("^tcp"),
        "UCX_TLS of NIXL's own UCX, one name: all but TCP, which ends the process that is read if a \
         reader vanishes",
    ),
    Key::new(
        "worker.transfer.nixl.devices",
        Kind::Text,
        Words("`lo` if `cluster.listen` is a loopback address, else `all`"),
        "UCX_NET_DEVICES of NIXL's own UCX, one name",
    ),
];
