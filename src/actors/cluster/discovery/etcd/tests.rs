//! What the follower makes of lists and changes.

use super::*;

fn node(name: &str) -> Announcement {
    Announcement { name: name.into(), incarnation: 1, address: format!("{name}:1") }
}

fn kv(key: &str, value: &str, revision: i64) -> KeyValue {
    let bytes = |text: &str| Bytes(text.as_bytes().to_vec());
    KeyValue { key: bytes(key), value: bytes(value), mod_revision: Int64(revision) }
}

fn of(name: &str, revision: i64) -> KeyValue {
    kv(&format!("/c/{name}/1"), &json!(node(name)).to_string(), revision)
}

fn range(kvs: Vec<KeyValue>) -> Range {
    Range { kvs, ..Range::default() }
}

fn names(others: &Others) -> Vec<String> {
    others.roster.peers(&node("own")).into_iter().filter_map(|peer| peer.name).collect()
}

const OWN_KEY: &str = "/c/own/1";

#[test]
fn garbage_is_skipped_and_does_not_displace_what_was_known() {
    let (mut others, own) = (Others::new(Duration::from_secs(10)), node("own"));
    let garbage = kv("/c/x", "garbage", 5);
    assert!(others.list(range(vec![garbage, of("a", 4), of("own", 3)]), OWN_KEY, &own));
    let put = |kv| Event { kind: EventKind::Put, kv };
    assert!(others.note(put(of("b", 6)), OWN_KEY, &own));
    assert!(others.note(put(kv("/c/a/1", "{\"half", 7)), OWN_KEY, &own));
    assert!(others.note(put(kv("/c/\u{0}", "", 8)), OWN_KEY, &own));
    assert_eq!(names(&others), ["a", "b"]);
}

#[test]
fn a_missing_or_foreign_own_key_is_told_from_all_else() {
    let (mut others, own) = (Others::new(Duration::from_secs(10)), node("own"));
    assert!(!others.list(range(vec![of("a", 1)]), OWN_KEY, &own), "not listed");
    assert!(!others.list(range(vec![kv(OWN_KEY, "garbage", 1)]), OWN_KEY, &own), "garbage listed");
    let event = |kind, kv| Event { kind, kv };
    assert!(others.note(event(EventKind::Put, of("own", 2)), OWN_KEY, &own));
    assert!(others.note(event(EventKind::Delete, of("a", 3)), OWN_KEY, &own));
    assert!(!others.note(event(EventKind::Delete, of("own", 4)), OWN_KEY, &own), "removed");
    let foreign = kv(OWN_KEY, &json!(node("other")).to_string(), 5);
    assert!(!others.note(event(EventKind::Put, foreign), OWN_KEY, &own), "replaced");
}

#[test]
fn after_an_outage_the_peers_outlive_one_empty_list() {
    let (mut others, own) = (Others::new(Duration::from_secs(10)), node("own"));
    others.list(range(vec![of("a", 1)]), OWN_KEY, &own);
    others.outage = true;
    others.list(range(vec![]), OWN_KEY, &own);
    assert_eq!(names(&others), ["a"]);
    others.list(range(vec![]), OWN_KEY, &own);
    assert_eq!(names(&others), ["a"]);
}
