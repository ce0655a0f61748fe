//! KV transfers between real processes: what arrives, and what happens when a side dies, freezes,
//! gives up or lies. This binary starts itself again as the peer.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod promises;

mod faults;
mod garbage;
mod late;
mod local;
mod moves;
mod peer;
mod puller;
mod quarantine;

// `ucx_tcp` is UCX without shared memory: what it does between hosts.
over_transports! { tcp: "tcp", ucx: "ucx", ucx_tcp: "ucx-tcp" }
over_transports_that_stand_readers! { tcp: "tcp", ucx: "ucx" }

/// UCX is one for a process, so this one starts itself again with another.
#[test]
fn the_ucx_inside_nixl_moves_blocks_too() {
    let Some(dir) = puller::installed("nixl_cu13.libs") else {
        eprintln!("SKIPPED, NOTHING TESTED: PyPI's nixl-cu13 is not here");
        return;
    };
    let version = ["the_version_of_ucx_can_be_told", "--exact", "--nocapture"];
    let again = |arguments: &[&str]| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(arguments).env("CUELIGHT_UCX_DIR", &dir).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let told = again(&version);
    let is_another = told.contains("UCX 1.") && !told.contains("UCX 1.22");
    assert!(is_another, "that is libucx-cu13, or none: {told}");
    for module in ["ucx::", "ucx_tcp::any_plan"] {
        let told = again(&[module, "--test-threads=2"]);
        assert!(told.contains("ok") && !told.contains(" 0 passed"), "{told}");
    }
}

#[test]
fn the_version_of_ucx_can_be_told() {
    let dir = puller::installed("libucx/lib");
    match cuelight::kvxfer::ucx::Ucx::version(dir.as_deref()) {
        Ok(version) => println!("UCX {version}"),
        Err(error) => eprintln!("SKIPPED, NOTHING TESTED: {error}"),
    }
}

/// The other process: does nothing unless it was started as one.
#[test]
fn peer_process() {
    if let Ok(kind) = std::env::var(peer::KIND) {
        peer::serve(&kind);
    }
}
