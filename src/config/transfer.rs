//! `worker.transfer:` and `frontend.disaggregation:`, with the rules between their keys.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::read::Values;
use crate::kvxfer;
use crate::router::{Role, Thresholds};

/// `worker.transfer:` how KV blocks get from ranks that prefill to those that decode.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub struct Transfer {
    /// `worker.transfer.transport`. Default `auto`.
    pub transport: TransportKind,
    /// `worker.transfer.listen`: where `tcp` serves blocks. Default: `cluster.listen`, any port.
    pub listen: SocketAddr,
    /// `worker.transfer.advertise`: where others reach it. Default: there.
    pub advertise: Option<IpAddr>,
    /// `worker.transfer.lease_s`: how long a prefilled prompt is kept. Default 60 s.
    pub lease: Duration,
    /// `worker.transfer.timeout_s`: longest pull. Default 30 s.
    pub timeout: Duration,
    /// `worker.transfer.quiet_s`: how long a failed pull may take to prove quiet. Default 2 s.
    pub quiet: Duration,
    /// `worker.transfer.quarantine_alarm`: blocks that raise the alarm. Default 64.
    pub quarantine_alarm: u32,
    /// `worker.transfer.quarantine_max`: blocks with which nothing is fetched any more. Default 1,024.
    pub quarantine_max: u32,
    /// `worker.transfer.checksums`: whether blocks are compared with what was sent. Default false.
    pub checksums: bool,
    /// `worker.transfer.max_pulls`, `max_peers`, `max_leases`, `max_runs`, `chunk_bytes`, `window_bytes`,
    /// `stall_s` and `handshake_s`.
    pub limits: kvxfer::Limits,
    /// `worker.transfer.ucx`.
    pub ucx: kvxfer::ucx::Options,
    /// `worker.transfer.nixl`.
    pub nixl: kvxfer::nixl::Options,
}

/// How KV blocks are moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum TransportKind {
    /// By UCX where it is found, else by TCP.
    #[default]
    Auto,
    /// By UCX.
    Ucx,
    /// By TCP.
    Tcp,
    /// By NIXL.
    Nixl,
}

impl TransportKind {
    pub(super) const NAMES: &[&str] = &["auto", "ucx", "tcp", "nixl"];
    const ALL: [Self; 4] = [Self::Auto, Self::Ucx, Self::Tcp, Self::Nixl];

    fn named(name: &str) -> Option<Self> {
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        Some(Self::ALL[index])
    }
}

/// `frontend.disaggregation:` when prompts are prefilled on ranks of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Disaggregation {
    /// `min_uncached_tokens` (default 256), `max_cached_share` (0.75), `max_queued_tokens` (65,536).
    pub thresholds: Thresholds,
    /// `shun_ms`: how long a rank is left alone after a failure. Default 2 s.
    pub shun: Duration,
    /// `overlap`: whether blocks are fetched before the whole prompt is computed. Default true.
    pub overlap: bool,
}

pub(super) fn disaggregation(values: &mut Values) -> Disaggregation {
    let size = |values: &Values, key| values.size(key) as u64;
    Disaggregation {
        thresholds: Thresholds {
            min_uncached_tokens: size(values, "frontend.disaggregation.min_uncached_tokens"),
            max_cached_share: values.decimal("frontend.disaggregation.max_cached_share"),
            max_queued_tokens: size(values, "frontend.disaggregation.max_queued_tokens"),
        },
        shun: values.time("frontend.disaggregation.shun_ms"),
        overlap: values.switch("frontend.disaggregation.overlap"),
    }
}

pub(super) fn transfer(values: &mut Values) -> Transfer {
    let transport = values.text("worker.transfer.transport");
    let host = match values.has_section("cluster") {
        true => values.address("cluster.listen").ip(),
        false => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let listen = values.maybe_address("worker.transfer.listen");
    if listen.is_some_and(|address| address.port() != 0) && values.size("worker.dp_size") > 1 {
        let rule = "must have port 0 when worker.dp_size is over 1: each rank takes one of its own";
        values.complain("worker.transfer.listen", rule);
    }
    let listen = listen.unwrap_or_else(|| SocketAddr::new(host, 0));
    let advertise = advertise(values, listen.ip());
    let devices = if host.is_loopback() { "lo" } else { "all" };
    for key in ["worker.transfer.nixl.transports", "worker.transfer.nixl.devices"] {
        if values.text(key).is_some_and(|names| names.contains([',', '='])) {
            let rule = "must be one name: NIXL takes no lists (UCX_TLS and UCX_NET_DEVICES in the \
                 environment may be lists)";
            values.complain(key, rule);
        }
    }
    Transfer {
        transport: transport.and_then(|name| TransportKind::named(&name)).unwrap_or_default(),
        listen,
        advertise,
        lease: values.time("worker.transfer.lease_s"),
        timeout: values.time("worker.transfer.timeout_s"),
        quiet: values.time("worker.transfer.quiet_s"),
        quarantine_alarm: values.size("worker.transfer.quarantine_alarm") as u32,
        quarantine_max: values.size("worker.transfer.quarantine_max") as u32,
        checksums: values.switch("worker.transfer.checksums"),
        limits: kvxfer::Limits {
            peers: values.size("worker.transfer.max_peers"),
            pulls: values.size("worker.transfer.max_pulls"),
            grants: values.size("worker.transfer.max_leases"),
            runs: values.size("worker.transfer.max_runs"),
            chunk_bytes: values.size("worker.transfer.chunk_bytes") as u32,
            window_bytes: values.size("worker.transfer.window_bytes") as u64,
            stall: values.time("worker.transfer.stall_s"),
            handshake: values.time("worker.transfer.handshake_s"),
            ..kvxfer::Limits::default()
        },
        ucx: kvxfer::ucx::Options {
            dir: values.text("worker.transfer.ucx.dir").map(PathBuf::from),
            transports: values.text("worker.transfer.ucx.transports").unwrap_or_default(),
            devices: values
                .text("worker.transfer.ucx.devices")
                .unwrap_or_else(|| devices.to_owned()),
            ..kvxfer::ucx::Options::default()
        },
        nixl: kvxfer::nixl::Options {
            dir: values.text("worker.transfer.nixl.dir").map(PathBuf::from),
            transports: values.text("worker.transfer.nixl.transports").unwrap_or_default(),
            devices: values
                .text("worker.transfer.nixl.devices")
                .unwrap_or_else(|| devices.to_owned()),
        },
    }
}

/// Where others reach what serves blocks, if that is not where it listens.
fn advertise(values: &mut Values, listen: IpAddr) -> Option<IpAddr> {
    const KEY: &str = "worker.transfer.advertise";
    if let Some(text) = values.text(KEY) {
        let address = text.parse().ok();
        if address.is_none() {
            values.complain(KEY, "must be an IP address such as 192.0.2.7");
        }
        return address;
    }
    if !listen.is_unspecified() || values.is_broken(KEY) {
        return None;
    }
    let host = values.list("cluster.advertise").into_iter().next();
    let ip = host.and_then(|host| host.rsplit_once(':')?.0.trim_matches(['[', ']']).parse().ok());
    let role = values.text("worker.role").and_then(|name| Role::named(&name)).unwrap_or_default();
    if ip.is_none() && role != Role::Aggregated {
        let rule = "must be given with a role when KV blocks are served on every address: the IP \
             address that others reach";
        values.complain(KEY, rule);
    }
    ip
}
