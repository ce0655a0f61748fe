//! A bounded pool for work that would hold up a connection's thread: long prompts.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Semaphore;

use crate::actors::failure::Failure;

/// So many run, so many wait, one more is refused.
pub(super) struct Pool {
    threads: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    limit: usize,
    retry_after: Duration,
    /// Shows how many wait.
    waiting: Gauge,
}

impl Pool {
    pub(super) fn new(threads: usize, limit: usize, retry_after: Duration, waiting: Gauge) -> Self {
        Self {
            threads: Arc::new(Semaphore::new(threads)),
            queue: Arc::new(Semaphore::new(limit)),
            limit,
            retry_after,
            waiting,
        }
    }

    /// Runs `work` on a thread of its own. Dropped while it waits, it leaves its place.
    ///
    /// # Errors
    /// [`Failure::TooManyRequests`] if the queue is full, [`Failure::Internal`] if `work` panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = match self.threads.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _place = self.queue.try_acquire().map_err(|_| Failure::TooManyRequests {
                    what: "long prompts wait to be tokenized (frontend.tokenizer_queue)",
                    current: self.limit,
                    limit: self.limit,
                    retry_after: self.retry_after,
                })?;
                let _waits = Waits::new(&self.waiting);
                let stopped = |_| Failure::Internal("the tokenizer pool was closed");
                self.threads.clone().acquire_owned().await.map_err(stopped)?
            }
        };
        // The permit goes with the work: it runs to its end even if nobody waits for it any more.
        let work = move || {
            let result = work();
            drop(permit);
            result
        };
        let panicked = |_| Failure::Internal("reading the prompt panicked");
        tokio::task::spawn_blocking(work).await.map_err(panicked)
    }
}

/// Counts one that waits, for as long as it does.
struct Waits<'a>(&'a Gauge);

impl<'a> Waits<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn the_queue_is_bounded_and_a_dropped_wait_frees_its_place() {
        let gauge = Gauge::default();
        let pool = Arc::new(Pool::new(1, 1, Duration::from_secs(1), gauge.clone()));
        let (go, wait) = mpsc::channel::<()>();
        let (started, starts) = tokio::sync::oneshot::channel();
        let first = tokio::spawn({
            let pool = pool.clone();
            async move {
                let work = move || {
                    let _ = started.send(());
                    wait.recv().is_ok()
                };
                pool.run(work).await
            }
        });
        starts.await.unwrap();
        let second = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(|| 2).await }
        });
        while gauge.get() == 0 {
            tokio::task::yield_now().await;
        }
        let refused = pool.run(|| 3).await.unwrap_err();
        assert!(matches!(refused, Failure::TooManyRequests { limit: 1, .. }), "{refused:?}");
        second.abort();
        assert!(second.await.unwrap_err().is_cancelled());
        assert_eq!(gauge.get(), 0);
        let third = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(|| 3).await }
        });
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(true));
        assert_eq!(third.await.unwrap(), Ok(3));
        assert_eq!(
            pool.run(|| panic!("on purpose")).await,
            Err::<(), _>(Failure::Internal("reading the prompt panicked"))
        );
        assert_eq!(pool.run(|| 4).await, Ok(4));
    }
}
