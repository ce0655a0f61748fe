//! `FrontendHandle`: all that `http/` may ask of the tree. It outlives restarts of the actors behind.

use std::sync::Arc;

use super::failure::Failure;
use super::models::{Readiness, ServedModel};
use super::reply::NewRequest;
use crate::metrics::Metrics;

/// A cheap clone for every connection.
#[derive(Clone)]
pub struct FrontendHandle {}

impl FrontendHandle {
    /// The model with this name, if one is served.
    pub fn model(&self, name: &str) -> Option<Arc<ServedModel>> {
        unimplemented!("{name}")
    }

    /// Every served model, by name.
    pub fn models(&self) -> Vec<Arc<ServedModel>> {
        unimplemented!()
    }

    /// One entry a model, by name.
    pub fn readiness(&self) -> Vec<Readiness> {
        unimplemented!()
    }

    /// Whether SIGTERM has come: new requests are refused.
    pub fn draining(&self) -> bool {
        unimplemented!()
    }

    /// The process's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        unimplemented!()
    }

    /// The live supervision tree as JSON, and as text for people.
    pub fn tree(&self) -> super::tree::Snapshot {
        unimplemented!()
    }

    /// Hands a request to the tree. On success the request's `Reply` hears the rest.
    ///
    /// # Errors
    /// [`Failure::TooManyRequests`], [`Failure::NotReady`], [`Failure::Draining`]: nothing was
    /// started, and the reply hears nothing.
    pub async fn admit(&self, request: NewRequest) -> Result<ClientGuard, Failure> {
        drop(request);
        unimplemented!()
    }

    /// Injects a fault; only where `faults.enabled`.
    ///
    /// # Errors
    /// Words for the client: unknown actor, unknown fault, or not enabled.
    pub async fn inject(&self, fault: super::faults::Fault) -> Result<String, String> {
        drop(fault);
        unimplemented!()
    }
}

/// Held by whoever sends the answer; dropping it means that the client is gone and cancels the
/// request (harmless once it has ended).
pub struct ClientGuard {}
