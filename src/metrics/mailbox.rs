//! How deep the queues get that have no bound of their own: credits and admission bound them, and
//! these figures show that they do.

use std::sync::Arc;
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
    fn new(family: &Family<MailboxLabels, Gauge>, mailbox: &'static str) -> Arc<Self> {
        let deepest = family.get_or_create(&MailboxLabels { mailbox }).clone();
        Arc::new(Self { waiting: AtomicI64::new(0), deepest })
    }

    /// Counts one message more, until the answer is dropped: it travels with the message.
    pub fn put(self: &Arc<Self>) -> Queued {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        if waiting > self.deepest.get() {
            self.deepest.set(waiting);
        }
        Queued(self.clone())
    }
}

/// A message that waits in a mailbox, or that was lost with it.
#[derive(Debug)]
#[must_use = "dropping it takes the message out"]
pub struct Queued(Arc<Depth>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The mailboxes that many send to.
#[derive(Debug)]
pub struct Mailboxes {
    /// Of `Requests`: clients that wait for admission.
    pub requests: Arc<Depth>,
    /// Of the `Rank`s: legs to start and to end.
    pub ranks: Arc<Depth>,
    /// Of the ranks' threads: the same, on their way into the engines.
    pub engines: Arc<Depth>,
    /// Of the streams to workers on other nodes: legs to start and to end.
    pub streams: Arc<Depth>,
}

impl Mailboxes {
    pub(super) fn register(add: &mut Adder<'_>) -> Self {
        let family = add.family("mailbox_deepest", "Most messages that ever waited, by mailbox");
        Self {
            requests: Depth::new(&family, "requests"),
            ranks: Depth::new(&family, "ranks"),
            engines: Depth::new(&family, "engines"),
            streams: Depth::new(&family, "streams"),
        }
    }
}
