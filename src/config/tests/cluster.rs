//! Rules between the keys of `cluster:`.

use expect_test::{Expect, expect};

use super::*;

fn says(sets: &[&str], expected: Expect) {
    let sets: Vec<_> = sets.iter().map(ToString::to_string).collect();
    let problems = check(&host(), "", &sets, Profile::Serve).unwrap_err();
    expected.assert_eq(&ConfigErrors { file: None, problems }.to_string());
}

#[test]
fn a_cluster_without_what_it_needs_is_refused_key_by_key() {
    says(
        &["cluster.listen=0.0.0.0:7000", "cluster.discovery=etcd", "cluster.redial_ms=5000"],
        expect![[r#"
            configuration: 4 problems
              --set: cluster.redial_ms = 5000: must be at most cluster.redial_max_ms (1000)
              default: cluster.advertise: must be given when cluster.listen is every address: the host and port that other nodes dial
              default: cluster.cookie: must be given: a secret that all nodes share, env:NAME or file:PATH
              default: cluster.etcd.endpoints: must be given with this cluster.discovery"#]],
    );
}

#[test]
fn a_cookie_is_never_shown_and_a_short_one_is_refused() {
    says(
        &["cluster.cookie=my-secret-in-the-clear"],
        expect![[r#"
            configuration: 1 problem
              --set: cluster.cookie: must be env:NAME or file:PATH"#]],
    );
    let short = std::env::temp_dir().join(format!("cuelight-cookie-{}", std::process::id()));
    std::fs::write(&short, "abc\n").unwrap();
    let problems =
        check(&host(), "", &[format!("cluster.cookie=file:{}", short.display())], Profile::Serve);
    assert_eq!(problems.unwrap_err()[0].rule, "the secret has 3 bytes; give it 8 or more");
    std::fs::remove_file(&short).unwrap();
}

#[test]
fn seeds_and_endpoints_are_checked_item_by_item() {
    says(
        &["cluster.cookie=env:COOKIE", "cluster.seeds=[a:1, b, 'c:d']"],
        expect![[r#"
            configuration: 2 problems
              --set: cluster.seeds[1] = b: must be host and port such as 10.0.0.1:7000
              --set: cluster.seeds[2] = c:d: must be host and port such as 10.0.0.1:7000"#]],
    );
}

#[test]
fn a_part_of_tls_is_refused() {
    says(
        &["cluster.cookie=env:COOKIE", "cluster.tls.cert=tests/fixtures/tls/cert.pem"],
        expect![[r#"
            configuration: 2 problems
              default: cluster.tls.key: is needed as well; give cert, key and ca, or none of them
              default: cluster.tls.ca: is needed as well; give cert, key and ca, or none of them"#]],
    );
}
