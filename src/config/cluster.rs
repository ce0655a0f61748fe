//! `cluster:` from checked values, with the rules between its keys.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::read::Values;
use super::value::Value;
use super::{Cluster, ClusterTls, Discovery, Redial, Tls, files};

pub(super) fn cluster(values: &mut Values) -> Cluster {
    let listen = values.address("cluster.listen");
    let advertise = advertise(values, listen.ip());
    let cookie = match values.said("cluster.cookie").map(|said| &said.value) {
        Some(Value::Secret(cookie)) => cookie.clone(),
        _ => String::new(),
    };
    if cookie.is_empty() && !values.is_broken("cluster.cookie") {
        const RULE: &str = "must be given: a secret that all nodes share, env:NAME or file:PATH";
        values.complain("cluster.cookie", RULE);
    }
    Cluster {
        listen,
        advertise,
        cookie,
        failure_detection: values.time("cluster.failure_detection_ms"),
        tree_timeout: values.time("cluster.tree_timeout_ms"),
        confirm_timeout: values.time("cluster.confirm_timeout_s"),
        handshake_timeout: values.time("cluster.handshake_timeout_s"),
        max_handshakes: values.size("cluster.max_handshakes"),
        max_refused: values.size("cluster.max_refused"),
        max_frame: values.size("cluster.max_frame_bytes"),
        redial: redial(values),
        tls: tls(values),
        discovery: discovery(values),
    }
}

fn redial(values: &mut Values) -> Redial {
    let (first, max) = (values.time("cluster.redial_ms"), values.time("cluster.redial_max_ms"));
    if first > max {
        let rule = format!("must be at most cluster.redial_max_ms ({})", max.as_millis());
        values.complain("cluster.redial_ms", rule);
    }
    Redial { first, max }
}

fn advertise(values: &mut Values, listen: IpAddr) -> Option<String> {
    const KEY: &str = "cluster.advertise";
    let said = values.list(KEY);
    if said.len() > 1 {
        values.complain(KEY, "must be one host and port");
    }
    if said.is_empty() && listen.is_unspecified() && !values.is_broken(KEY) {
        let rule = "must be given when cluster.listen is every address: the host and port that \
             other nodes dial";
        values.complain(KEY, rule);
    }
    said.into_iter().next()
}

fn tls(values: &mut Values) -> Option<ClusterTls> {
    const FILES: [(&str, &str); 3] = [
        ("cluster.tls.cert", "CERTIFICATE"),
        ("cluster.tls.key", "PRIVATE KEY"),
        ("cluster.tls.ca", "CERTIFICATE"),
    ];
    let paths = FILES.map(|(key, _)| values.text(key).map(PathBuf::from));
    let some = paths.iter().any(Option::is_some);
    for ((key, what), path) in FILES.into_iter().zip(&paths) {
        match path {
            Some(path) => {
                if let Err(rule) = files::pem(Path::new(path), what) {
                    values.complain(key, rule);
                }
            }
            None if some && !values.is_broken(key) => {
                values.complain(key, "is needed as well; give cert, key and ca, or none of them");
            }
            None => {}
        }
    }
    let [cert, key, ca] = paths;
    let name = values.text("cluster.tls.name").unwrap_or_default();
    Some(ClusterTls { own: Tls { cert: cert?, key: key? }, ca: ca?, name })
}

fn discovery(values: &mut Values) -> Discovery {
    let ttl = values.time("cluster.ttl_s");
    match values.text("cluster.discovery").as_deref() {
        Some("file") => {
            let directory = values.text("cluster.directory").unwrap_or_default();
            needs(values, "cluster.directory", directory.is_empty());
            Discovery::File { directory: directory.into(), ttl }
        }
        Some("etcd") => {
            let endpoints = values.list("cluster.etcd.endpoints");
            needs(values, "cluster.etcd.endpoints", endpoints.is_empty());
            let prefix = values.text("cluster.etcd.prefix").unwrap_or_default();
            Discovery::Etcd { endpoints, prefix, ttl }
        }
        _ => Discovery::Static { seeds: values.list("cluster.seeds") },
    }
}

fn needs(values: &mut Values, key: &'static str, missing: bool) {
    if missing && !values.is_broken(key) {
        values.complain(key, "must be given with this cluster.discovery");
    }
}
