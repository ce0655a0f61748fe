//! `FrontendHandle`: all that `http/` may ask of the tree. It outlives restarts of the actors behind.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use ractor::ActorRef;
use tokio::sync::{oneshot, watch};

use super::context::NodeContext;
use super::failure::Failure;
use super::models::{ModelView, Readiness, ServedModel, View};
use super::reply::NewRequest;
use super::requests::request_id;
use super::{faults, request, requests, tree};
use crate::config::Frontend;
use crate::ids::RequestId;
use crate::metrics::Metrics;

/// What the front end's actors and the HTTP server share.
pub struct Shared {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The latest view of the models; written by `Models` alone.
    pub view: watch::Sender<Arc<View>>,
    /// The living `Requests`, if any.
    pub requests: ArcSwapOption<ActorRef<requests::Msg>>,
    /// Requests in flight.
    pub(super) active: AtomicUsize,
    limits: Arc<Frontend>,
    nonce: u32,
    last_request: AtomicU64,
}

impl Shared {
    /// A front end whose actors are not started yet. `models` are what its node will serve.
    pub fn new(node: Arc<NodeContext>, limits: Frontend, models: Vec<Arc<ServedModel>>) -> Self {
        let view = |served| {
            let alone = node.config.worker.is_some();
            let reason = if alone { "its worker is starting" } else { "no worker has joined yet" };
            let (reason, refused) = (reason.to_string(), BTreeMap::new());
            ModelView { served, links: Vec::new(), reason, refused }
        };
        let models = models.into_iter().map(view).collect();
        Self {
            node,
            view: watch::Sender::new(Arc::new(View { models })),
            requests: ArcSwapOption::empty(),
            active: AtomicUsize::new(0),
            limits: Arc::new(limits),
            nonce: RandomState::new().hash_one(std::process::id()) as u32,
            last_request: AtomicU64::new(0),
        }
    }

    /// `frontend:` of the configuration.
    pub fn frontend_config(&self) -> Arc<Frontend> {
        self.limits.clone()
    }

    /// Whether SIGTERM has come.
    pub fn draining(&self) -> bool {
        self.node.draining()
    }

    /// Refuses new requests from now on.
    pub fn drain(&self) {
        self.node.drain();
    }

    /// Requests in flight.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// A new request's id.
    pub fn next_request_id(&self) -> RequestId {
        request_id(self.nonce, self.last_request.fetch_add(1, Ordering::Relaxed))
    }
}

/// A cheap clone for every connection.
#[derive(Clone)]
pub struct FrontendHandle {
    shared: Arc<Shared>,
}

impl FrontendHandle {
    /// A handle to the front end behind `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The model with this name, if one is served.
    pub fn model(&self, name: &str) -> Option<Arc<ServedModel>> {
        self.shared.view.borrow().model(name).map(|model| model.served.clone())
    }

    /// Every served model, by name.
    pub fn models(&self) -> Vec<Arc<ServedModel>> {
        self.shared.view.borrow().models.iter().map(|model| model.served.clone()).collect()
    }

    /// One entry a model, by name.
    pub fn readiness(&self) -> Vec<Readiness> {
        self.shared.view.borrow().models.iter().map(ModelView::readiness).collect()
    }

    /// Whether SIGTERM has come: new requests are refused.
    pub fn draining(&self) -> bool {
        self.shared.draining()
    }

    /// Refuses new requests from now on.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Requests in flight.
    pub fn active(&self) -> usize {
        self.shared.active()
    }

    /// The process's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.node.metrics
    }

    /// All metrics, as [`Metrics::encode`] writes them, with what is only known when one asks.
    pub fn encode_metrics(&self) -> String {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for model in self.models() {
            let (usage, metrics) = (model.text.usage(), self.metrics().model(&model.name));
            metrics.text.cached_words.set(gauge(usage.cached_words));
            metrics.text.cached_bytes.set(gauge(usage.cached_bytes));
            metrics.text.most_fuel.set(i64::try_from(usage.most_fuel).unwrap_or(i64::MAX));
        }
        self.metrics().encode()
    }

    /// The node behind it.
    pub fn node(&self) -> &Arc<NodeContext> {
        &self.shared.node
    }

    /// The live supervision tree of this node; `None` while its root is starting.
    pub fn tree(&self) -> Option<tree::Snapshot> {
        self.shared.node.board.snapshot()
    }

    /// Hands a request to the tree. On success the request's `Reply` hears the rest.
    ///
    /// # Errors
    /// [`Failure::TooManyRequests`], [`Failure::NotReady`], [`Failure::Draining`],
    /// [`Failure::Internal`]: nothing was started, and the reply hears nothing.
    pub async fn admit(&self, request: NewRequest) -> Result<ClientGuard, Failure> {
        let not_ready = |reason: &str, model: String| Failure::NotReady {
            model,
            reason: reason.to_string(),
            retry_after: self.shared.limits.retry_after,
        };
        let model = request.model.name.clone();
        let (reply_to, outcome) = oneshot::channel();
        let asked = match &*self.shared.requests.load() {
            Some(requests) => {
                let queued = self.shared.node.metrics.mailboxes.requests.put();
                let request = Box::new(request);
                requests.cast(requests::Msg::Admit { request, reply_to, queued }).is_ok()
            }
            None => false,
        };
        if !asked {
            return Err(not_ready("the front end is restarting", model));
        }
        match tokio::time::timeout(self.shared.limits.admit_timeout, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(not_ready("the front end was restarted", model)),
            Err(_) => Err(not_ready("the front end does not answer", model)),
        }
    }

    /// Injects a fault; only where `faults.enabled`.
    ///
    /// # Errors
    /// Words for the client: unknown actor, unknown rank, or not enabled.
    pub fn inject(&self, fault: faults::Fault) -> Result<String, String> {
        faults::inject(&self.shared.node, fault)
    }
}

/// Held by whoever sends the answer; dropping it means that the client is gone and cancels the
/// request (harmless once it has ended).
pub struct ClientGuard {
    request: ActorRef<request::Msg>,
}

impl ClientGuard {
    pub(super) fn new(request: ActorRef<request::Msg>) -> Self {
        Self { request }
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        let _ = self.request.cast(request::Msg::ClientGone); // it has ended: nothing to cancel
    }
}
