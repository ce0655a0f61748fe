//! The keys of `cluster:`.

use crate::config::schema::Preset::{Is, Words};
use crate::config::schema::{ENDPOINT, HOST_PORT, Key, Kind, cluster, millis, seconds, whole};

pub(super) const KEYS: &[Key] = &[
    Key::new(
        "cluster.listen",
        Kind::Address,
        Is("127.0.0.1:7000"),
        "address where other nodes connect; 0.0.0.0 needs `cluster.advertise`",
    ),
    Key::new(
        "cluster.advertise",
        Kind::List(HOST_PORT),
        Words("`cluster.listen`"),
        "host and port that other nodes dial",
    ),
    Key::new(
        "cluster.cookie",
        Kind::Secret,
        Words("none; it must be given"),
        "secret that all nodes share: `env:NAME` or `file:PATH`",
    ),
    Key::new(
        "cluster.failure_detection_ms",
        millis(200.0, 60_000.0),
        Is("2000"),
        "how soon a node that stands still or cannot be reached is taken for lost",
    )
    .metric("cuelight_cluster_lost_total")
    .limit(|c| cluster(c, |n| n.failure_detection.as_secs_f64() * 1e3)),
    Key::new(
        "cluster.handshake_timeout_s",
        seconds(0.1, 60.0),
        Is("5"),
        "how long a connection may take until both ends know each other",
    )
    .metric("cuelight_cluster_turned_away_total")
    .limit(|c| cluster(c, |n| n.handshake_timeout.as_secs_f64())),
    Key::new(
        "cluster.max_handshakes",
        whole(1, 65_536),
        Is("64"),
        "connections that have not proved yet that they belong here",
    )
    .metric("cuelight_cluster_turned_away_total")
    .limit(|c| cluster(c, |n| n.max_handshakes as f64)),
    Key::new(
        "cluster.max_refused",
        whole(1, 65_536),
        Is("64"),
        "nodes that cannot join and are shown in `/health`; with more the oldest are forgotten",
    )
    .metric("cuelight_cluster_refused")
    .limit(|c| cluster(c, |n| n.max_refused as f64)),
    Key::new(
        "cluster.max_frame_bytes",
        whole(65_536, 1 << 30),
        Is("16777216"),
        "largest message between nodes; a longer one ends the connection",
    )
    .advice("16777216 is 16 MiB")
    .metric("cuelight_cluster_largest_frame_bytes")
    .limit(|c| cluster(c, |n| n.max_frame as f64)),
    Key::new(
        "cluster.tree_timeout_ms",
        millis(1.0, 60_000.0),
        Is("1000"),
        "how long another node may take to show its tree; without it the tree is shown",
    )
    .metric("cuelight_cluster_trees_missed_total")
    .limit(|c| cluster(c, |n| n.tree_timeout.as_secs_f64() * 1e3)),
    Key::new(
        "cluster.confirm_timeout_s",
        seconds(0.1, 3600.0),
        Is("10"),
        "how long workers of other nodes stay in use after a restart of the `Cluster` actor that \
         has not found them again",
    )
    .metric("cuelight_cluster_unconfirmed_total")
    .limit(|c| cluster(c, |n| n.confirm_timeout.as_secs_f64())),
    Key::new("cluster.redial_ms", millis(1.0, 60_000.0), Is("50"), "wait before dialling again"),
    Key::new(
        "cluster.redial_max_ms",
        millis(1.0, 600_000.0),
        Is("1000"),
        "the longest such wait; it doubles with each attempt",
    ),
    Key::new(
        "cluster.tls.cert",
        Kind::Path,
        Words("none: plain TCP"),
        "PEM file with this node's certificate chain; needs `cluster.tls.key` and `cluster.tls.ca`",
    ),
    Key::new(
        "cluster.tls.key",
        Kind::Path,
        Words("none: plain TCP"),
        "PEM file with this node's private key",
    ),
    Key::new(
        "cluster.tls.ca",
        Kind::Path,
        Words("none: plain TCP"),
        "PEM file with the authority that signs all nodes' certificates",
    ),
    Key::new(
        "cluster.tls.name",
        Kind::Text,
        Is("cuelight"),
        "DNS name that every node's certificate carries",
    ),
    Key::new(
        "cluster.discovery",
        Kind::Choice(&["static", "file", "etcd"]),
        Is("static"),
        "where nodes find each other: `cluster.seeds`, `cluster.directory` or `cluster.etcd`",
    ),
    Key::new(
        "cluster.seeds",
        Kind::List(HOST_PORT),
        Words("none"),
        "nodes to dial; one that is up is enough, the others are learnt from it",
    ),
    Key::new(
        "cluster.directory",
        Kind::Path,
        Words("none"),
        "directory that all nodes share, for `cluster.discovery: file`",
    ),
    Key::new(
        "cluster.ttl_s",
        seconds(0.5, 3600.0),
        Is("10"),
        "how long the entry of a dead node stays in the directory or in etcd",
    ),
    Key::new(
        "cluster.etcd.endpoints",
        Kind::List(ENDPOINT),
        Words("none"),
        "members of etcd, for `cluster.discovery: etcd`",
    ),
    Key::new(
        "cluster.etcd.prefix",
        Kind::Text,
        Is("/cuelight"),
        "where the nodes of this cluster are in etcd",
    ),
];
