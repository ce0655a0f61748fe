//! What etcd's JSON gateway says: protobuf as JSON, where 64-bit numbers are text, bytes are base64,
//! and what is zero is left out.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Bytes of a key or a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map(Self).map_err(de::Error::custom)
    }
}

/// A 64-bit number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Int64(pub(super) i64);

impl Serialize for Int64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Int64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;
        impl Visitor<'_> for TextOrNumber {
            type Value = i64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit number, as text or plain")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<i64, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<i64, E> {
                Ok(number)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<i64, E> {
                i64::try_from(number).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(TextOrNumber).map(Self)
    }
}

/// What every answer begins with.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    pub(super) revision: Int64,
}

/// A key with its value.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyValue {
    pub(super) key: Bytes,
    pub(super) value: Bytes,
    pub(super) mod_revision: Int64,
}

/// `/v3/kv/range`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Range {
    pub(super) header: Header,
    pub(super) kvs: Vec<KeyValue>,
    pub(super) more: bool,
}

/// `/v3/lease/grant`
#[derive(Debug, Deserialize)]
pub(super) struct Lease {
    #[serde(rename = "ID")]
    pub(super) id: Int64,
}

/// `/v3/lease/keepalive`, within a [`Streamed`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeptAlive {
    /// Seconds; zero for a lease that is gone.
    #[serde(rename = "TTL")]
    pub(super) ttl: Int64,
}

/// An answer without content.
#[derive(Debug, Deserialize)]
pub(super) struct Done {}

/// `/v3/watch`, within a [`Streamed`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Watched {
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) compact_revision: Int64,
    pub(super) cancel_reason: String,
    pub(super) events: Vec<Event>,
}

/// A change of a key.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    #[serde(rename = "type")]
    pub(super) kind: EventKind,
    pub(super) kv: KeyValue,
}

/// How a key changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum EventKind {
    #[default]
    Put,
    Delete,
}

/// A line of an answer that is a stream.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Streamed<T> {
    /// What was asked for.
    Result(T),
    /// The end of the stream.
    Error(Refusal),
}

/// Why etcd does not do what it is asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    /// gRPC's status code.
    #[serde(alias = "grpc_code")]
    pub(super) code: u32,
    pub(super) message: String,
}

/// The first key after all that start with `prefix`, which does not end in 0xff.
pub(super) fn range_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    Bytes(end)
}

/// Cuts a stream into lines of bounded length.
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Bytes at the front that are known to hold no end of line.
    searched: usize,
    limit: usize,
}

impl Lines {
    pub(super) fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), searched: 0, limit }
    }

    /// Takes what has arrived; `false` if a line is longer than the limit.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        self.buffer.extend_from_slice(bytes);
        self.buffer.len() <= self.limit || self.buffer.contains(&b'\n')
    }

    /// The next whole line that is not empty.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        while let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
            let rest = self.buffer.split_off(self.searched + at + 1);
            let mut line = std::mem::replace(&mut self.buffer, rest);
            self.searched = 0;
            line.pop();
            if !line.is_empty() {
                return Some(line);
            }
        }
        self.searched = self.buffer.len();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a, T: Deserialize<'a>>(text: &'a str) -> T {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    // The texts are what etcd 3.4.23 has answered.
    #[test]
    fn the_answers_of_etcd_are_understood() {
        let range: Range = read(
            r#"{"header":{"cluster_id":"9151734699010623715","revision":"2","raft_term":"2"},
            "kvs":[{"key":"L2MvYQ==","create_revision":"2","mod_revision":"2","version":"1",
            "value":"eyJ4IjoxfQ==","lease":"77"}],"count":"1"}"#,
        );
        assert_eq!((range.header.revision, range.more), (Int64(2), false));
        assert_eq!(range.kvs[0].key.0, b"/c/a");
        assert_eq!(range.kvs[0].value.0, b"{\"x\":1}");
        assert_eq!(read::<Range>(r#"{"header":{"revision":"1"}}"#).kvs.len(), 0);
        assert_eq!(
            read::<Lease>(r#"{"ID":"7751717529086806277","TTL":"2"}"#).id,
            Int64(7751717529086806277)
        );

        let alive = |text| match read::<Streamed<KeptAlive>>(text) {
            Streamed::Result(kept) => kept.ttl.0 > 0,
            Streamed::Error(error) => panic!("{error:?}"),
        };
        assert!(alive(r#"{"result":{"header":{"revision":"2"},"ID":"77","TTL":"2"}}"#));
        assert!(!alive(r#"{"result":{"header":{"revision":"2"},"ID":"7777777"}}"#));

        let refusal: Refusal = read(
            r#"{"error":"etcdserver: requested lease not found",
            "message":"etcdserver: requested lease not found","code":5}"#,
        );
        assert_eq!(refusal.code, 5);
        let Streamed::Error(refusal) =
            read::<Streamed<Watched>>(r#"{"error":{"grpc_code":14,"message":"gone"}}"#)
        else {
            panic!("not an error");
        };
        assert_eq!((refusal.code, refusal.message.as_str()), (14, "gone"));
    }

    #[test]
    fn the_lines_of_a_watch_are_understood() {
        let watched = |text| match read::<Streamed<Watched>>(text) {
            Streamed::Result(watched) => watched,
            Streamed::Error(error) => panic!("{error:?}"),
        };
        assert!(watched(r#"{"result":{"header":{"revision":"2"},"created":true}}"#).created);
        let put = watched(
            r#"{"result":{"header":{"revision":"3"},"events":[{"kv":{"key":"L2MvYg==",
            "create_revision":"3","mod_revision":"3","version":"1","value":"eyJ4IjoyfQ=="}}]}}"#,
        );
        assert_eq!(put.events[0].kind, EventKind::Put);
        assert_eq!(put.events[0].kv.key.0, b"/c/b");
        let gone = watched(
            r#"{"result":{"events":[{"type":"DELETE","kv":{"key":"L2MvYQ==","mod_revision":"4"}}]}}"#,
        );
        assert_eq!(gone.events[0].kind, EventKind::Delete);
        let compacted = watched(r#"{"result":{"canceled":true,"compact_revision":"3"}}"#);
        assert_eq!((compacted.canceled, compacted.compact_revision), (true, Int64(3)));
    }

    #[test]
    fn a_prefix_covers_what_starts_with_it_and_nothing_else() {
        let (prefix, end) = (b"/cuelight/".to_vec(), range_end(b"/cuelight/").0);
        let covered = |key: &[u8]| key >= prefix.as_slice() && key < end.as_slice();
        assert!(covered(b"/cuelight/a/1") && covered(b"/cuelight/\xff\xff"));
        assert!(!covered(b"/cuelight0") && !covered(b"/cuelight"));
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let text = b"one\n\ntwo\nthree";
        for size in 1..=text.len() {
            let mut lines = Lines::new(8);
            let mut got = Vec::new();
            for part in text.chunks(size) {
                assert!(lines.push(part), "pieces of {size}");
                while let Some(line) = lines.pop() {
                    got.push(String::from_utf8(line).unwrap());
                }
            }
            assert_eq!(got, ["one", "two"], "pieces of {size}");
        }
        let mut lines = Lines::new(8);
        assert!(lines.push(b"12345678"));
        assert!(!lines.push(b"9"), "a line may be 8 bytes long");
    }
}
