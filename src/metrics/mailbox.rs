//! How deep the queues get that have no bound of their own: credits and admission bound them, and
//! these figures show that they do.

use std::sync::atomic::{AtomicI64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Adder;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MailboxLabels {
    mailbox: &'static str,
}

/// One kind of mailbox: how many messages wait, and the most that ever did.
#[derive(Debug)]
pub struct Depth {
    waiting: AtomicI64,
    deepest: Gauge,
}

impl Depth {
    fn new(family: &Family<MailboxLabels, Gauge>, mailbox: &'static str) -> Self {
        let deepest = family.get_or_create(&MailboxLabels { mailbox }).clone();
        Self { waiting: AtomicI64::new(0), deepest }
    }

    /// A message was put in.
    pub fn put(&self) {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        if waiting > self.deepest.get() {
            self.deepest.set(waiting);
        }
    }

    /// A message was taken out.
    pub fn taken(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The mailboxes that many send to.
#[derive(Debug)]
pub struct Mailboxes {
    /// Of `Requests`: clients that wait for admission.
    pub requests: Depth,
    /// Of the ranks' threads: legs to start and to end.
    pub ranks: Depth,
    /// Of the streams to workers on other nodes: legs to start and to end.
    pub streams: Depth,
}

impl Mailboxes {
    pub(super) fn register(add: &mut Adder<'_>) -> Self {
        let family = add.family("mailbox_deepest", "Most messages that ever waited, by mailbox");
        Self {
            requests: Depth::new(&family, "requests"),
            ranks: Depth::new(&family, "ranks"),
            streams: Depth::new(&family, "streams"),
        }
    }
}
