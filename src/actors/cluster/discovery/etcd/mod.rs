//! Discovery through etcd: a key under a lease for this node, a watch for the others.
//!
//! Two loops that share nothing but the word that the own key is missing. One keeps the lease and the
//! key; the other lists all keys, then watches, and lists again once in a `ttl` whatever the watch
//! says: a watch over a dead connection is silent.

mod gateway;
mod wire;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout_at};
use tracing::debug;

use self::gateway::{Gateway, GatewayError};
use self::wire::{
    Bytes, Done, Event, EventKind, Int64, KeptAlive, KeyValue, Lease, Range, Streamed,
};
use super::super::redial::backoff;
use super::roster::Roster;
use super::{Announcement, Board, Complaints, MAX_ANNOUNCEMENTS};
use crate::config::Redial;

/// Bounds of the wait for one endpoint, a third of the `ttl`.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// Wait after the first failure; the longest is a third of the `ttl`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// After an outage a peer that is no longer listed is held for so many times the `ttl`. To be listed
/// again it needs at most a call that is under way, a pause and three calls, each up to a third of the
/// `ttl`; the rest is reserve for a busy machine.
const GRACE: u32 = 3;
/// The two loops, as parts that can have a problem.
const REGISTERING: &str = "registering";
const FOLLOWING: &str = "following";

/// Announces and follows until `stopped`, then takes the announcement back.
pub(super) async fn run(
    endpoints: Vec<String>,
    prefix: String,
    ttl: Duration,
    own: Announcement,
    board: Board,
    stopped: oneshot::Receiver<()>,
) {
    let gateway = Gateway::new(endpoints, (ttl / 3).clamp(PATIENCE.0, PATIENCE.1));
    let prefix = format!("{}/", prefix.trim_end_matches('/'));
    let key = format!("{prefix}{}/{:016x}", own.name, own.incarnation);
    let etcd = Etcd {
        gateway,
        prefix,
        key,
        ttl,
        own,
        board,
        lease: Mutex::default(),
        own_missing: Notify::new(),
    };
    tokio::select! {
        _ = stopped => {}
        () = etcd.register() => {}
        () = etcd.follow() => {}
    }
    etcd.withdraw().await;
}

/// What both loops need.
struct Etcd {
    gateway: Gateway,
    /// Ends in `/`.
    prefix: String,
    /// Where the own announcement is.
    key: String,
    ttl: Duration,
    own: Announcement,
    board: Board,
    /// The lease that was granted last, if it may still live.
    lease: Mutex<Option<Int64>>,
    /// The service does not list the own key.
    own_missing: Notify,
}

impl Etcd {
    /// Keeps the own key in etcd, forever.
    async fn register(&self) {
        let mut pauses = Pauses::new(self.ttl);
        let mut missing = true;
        loop {
            let pause = match self.keep(&mut missing).await {
                Ok(()) => {
                    self.board.report(REGISTERING, None);
                    pauses.reset();
                    self.ttl / 3
                }
                Err(error) => {
                    self.board.report(REGISTERING, Some(error.to_string()));
                    pauses.next()
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.own_missing.notified() => {
                    missing = true;
                    // Somebody may remove it again and again.
                    sleep(pauses.next()).await;
                }
            }
        }
    }

    /// Renews the lease; writes the key if it is `missing` or if the lease is new.
    async fn keep(&self, missing: &mut bool) -> Result<(), GatewayError> {
        let lease = self.current_lease();
        if let Some(lease) = lease {
            match self.renew(lease, *missing).await {
                Ok(true) => {
                    *missing = false;
                    return Ok(());
                }
                Ok(false) => debug!(lease = lease.0, "the lease has lapsed; asking for a new one"),
                Err(error) if error.is_lease_gone() => {}
                Err(error) => return Err(error),
            }
        }
        // Whole seconds, rounded up: the announcement must not lapse early.
        let seconds = Int64(i64::try_from(self.ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX));
        let lease: Lease = self.gateway.call("/v3/lease/grant", &json!({ "TTL": seconds })).await?;
        *missing = true;
        self.set_lease(Some(lease.id));
        self.put(lease.id).await?;
        *missing = false;
        Ok(())
    }

    /// `false` if the lease is gone.
    async fn renew(&self, lease: Int64, missing: bool) -> Result<bool, GatewayError> {
        let question = json!({ "ID": lease });
        let answer = self.gateway.call("/v3/lease/keepalive", &question).await?;
        match answer {
            Streamed::Result(KeptAlive { ttl }) if ttl.0 > 0 => {}
            Streamed::Result(_) | Streamed::Error(_) => return Ok(false),
        }
        if missing {
            self.put(lease).await?;
        }
        Ok(true)
    }

    async fn put(&self, lease: Int64) -> Result<(), GatewayError> {
        let key = Bytes(self.key.clone().into_bytes());
        let value = Bytes(json!(self.own).to_string().into_bytes());
        let question = json!({ "key": key, "value": value, "lease": lease });
        self.gateway.call::<Done>("/v3/kv/put", &question).await.map(|_| ())
    }

    /// Gives the lease back, and with it the key.
    async fn withdraw(&self) {
        let Some(lease) = self.current_lease() else { return };
        let revoked = self.gateway.call::<Done>("/v3/lease/revoke", &json!({ "ID": lease })).await;
        if let Err(error) = revoked {
            debug!(%error, "the announcement was not taken back; it lapses by itself");
        }
    }

    fn current_lease(&self) -> Option<Int64> {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_lease(&self, lease: Option<Int64>) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    /// Keeps the board up to date, forever.
    async fn follow(&self) {
        let mut others = Others::new(self.ttl);
        let mut pauses = Pauses::new(self.ttl);
        loop {
            match self.list_and_watch(&mut others, &mut pauses).await {
                Ok(End::Lifetime) => {}
                Ok(End::Cancelled) => sleep(pauses.next()).await,
                Err(error) => {
                    others.outage = true;
                    self.board.report(FOLLOWING, Some(error.to_string()));
                    sleep(pauses.next()).await;
                }
            }
        }
    }

    /// One list, and what changes after it, for one `ttl`.
    async fn list_and_watch(
        &self,
        others: &mut Others,
        pauses: &mut Pauses,
    ) -> Result<End, GatewayError> {
        let prefix = Bytes(self.prefix.clone().into_bytes());
        let range_end = wire::range_end(self.prefix.as_bytes());
        let question = json!({ "key": prefix, "range_end": range_end, "limit": MAX_ANNOUNCEMENTS.to_string() });
        let range: Range = self.gateway.call("/v3/kv/range", &question).await?;
        let next = Int64(range.header.revision.0.saturating_add(1));
        let more = range.more;
        if !others.list(range, &self.key, &self.own) {
            self.own_missing.notify_one();
        }
        self.board.peers(others.roster.peers(&self.own));

        let start = json!({ "key": prefix, "range_end": range_end, "start_revision": next });
        let mut watch = self.gateway.watch(&json!({ "create_request": start })).await?;
        self.board.report(FOLLOWING, more.then(|| crowded(&self.prefix)));
        let end = tokio::time::Instant::now() + self.ttl;
        loop {
            let Ok(watched) = timeout_at(end, watch.next()).await else { return Ok(End::Lifetime) };
            let watched = watched?;
            if watched.created {
                pauses.reset();
            }
            for event in watched.events {
                if !others.note(event, &self.key, &self.own) {
                    self.own_missing.notify_one();
                }
            }
            self.board.peers(others.roster.peers(&self.own));
            if watched.canceled {
                let (reason, compacted) = (watched.cancel_reason, watched.compact_revision.0);
                debug!(reason, compacted, "etcd has cancelled the watch; listing again");
                return Ok(End::Cancelled);
            }
        }
    }
}

/// How long to wait before the next attempt of one loop.
struct Pauses {
    limits: Redial,
    /// Attempts since the last success.
    attempts: u32,
}

impl Pauses {
    fn new(ttl: Duration) -> Self {
        Self { limits: Redial { first: FIRST_PAUSE, max: ttl / 3 }, attempts: 0 }
    }

    fn next(&mut self) -> Duration {
        let pause = backoff(self.attempts, &self.limits);
        self.attempts = self.attempts.saturating_add(1);
        pause
    }

    fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// How a watch ended.
enum End {
    /// It is time to list again.
    Lifetime,
    /// etcd does not go on, for example after a compaction.
    Cancelled,
}

fn crowded(prefix: &str) -> String {
    format!(
        "more than {MAX_ANNOUNCEMENTS} keys start with {prefix:?}; the rest is ignored, remove what \
         does not belong there"
    )
}

/// What the follower remembers.
struct Others {
    roster: Roster,
    complaints: Complaints,
    /// etcd was away since the last list, and may have come back without its data.
    outage: bool,
}

impl Others {
    fn new(ttl: Duration) -> Self {
        Self { roster: Roster::new(ttl * GRACE), complaints: Complaints::default(), outage: false }
    }

    /// Takes over a list; `false` if the own key is not in it as it should be.
    fn list(&mut self, mut range: Range, own_key: &str, own: &Announcement) -> bool {
        range.kvs.sort_by_key(|kv| kv.mod_revision); // etcd sorts by key
        let names: BTreeSet<String> = range.kvs.iter().map(|kv| text(&kv.key)).collect();
        self.complaints.keep(&names);
        let read = range.kvs.iter().filter_map(|kv| self.read(kv));
        let listed: Vec<_> = read.collect();
        let present =
            listed.iter().any(|(key, announcement)| key == own_key && announcement == own);
        self.roster.list(listed, std::mem::take(&mut self.outage), Instant::now());
        present
    }

    /// Takes over a change; `false` if it took the own key away.
    fn note(&mut self, event: Event, own_key: &str, own: &Announcement) -> bool {
        let key = text(&event.kv.key);
        let is_own = key == own_key;
        match event.kind {
            EventKind::Delete => {
                self.roster.remove(&key, Instant::now());
                !is_own
            }
            EventKind::Put => {
                let read = self.read(&event.kv);
                let as_it_should = read.as_ref().is_some_and(|(_, read)| read == own);
                if let Some((key, announcement)) = read {
                    self.roster.put(key, announcement);
                }
                !is_own || as_it_should
            }
        }
    }

    fn read(&mut self, kv: &KeyValue) -> Option<(String, Announcement)> {
        let key = text(&kv.key);
        match Announcement::read(&kv.value.0) {
            Ok(announcement) => Some((key, announcement)),
            Err(why) => {
                self.complaints.about(&key, &why);
                None
            }
        }
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(&bytes.0).into_owned()
}

#[cfg(test)]
mod tests;
