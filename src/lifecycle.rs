//! The one owner of concurrent work: every task and thread of weir is spawned here, named, counted, and awaited.
//!
//! Nothing is detached. A component takes a [`Lifecycle`], spawns on it, and whoever made the lifecycle stops it:
//! [`Lifecycle::stop`] cancels the token that all of its work can see, waits for all of it until a deadline, and names
//! what did not end. A task that panics here is a bug of weir's own (integrations are caught where they run): it is
//! logged and the whole lifecycle is cancelled, so that a process never lives on with a dead loop inside.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

/// An owner of tasks and threads. Clones share the same work.
#[derive(Clone)]
pub struct Lifecycle {
    inner: Arc<Inner>,
}

struct Inner {
    token: CancellationToken,
    tracker: TaskTracker,
    running: Mutex<BTreeMap<&'static str, usize>>,
    failed: OnceLock<&'static str>,
}

/// Work that had not ended at a stop's deadline: names and how many of each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Stragglers(pub BTreeMap<&'static str, usize>);

impl fmt::Display for Stragglers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("still running:")?;
        for (name, count) in &self.0 {
            write!(f, " {name} ×{count}")?;
        }
        Ok(())
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// An owner of nothing yet.
    pub fn new() -> Self {
        let inner = Inner {
            token: CancellationToken::new(),
            tracker: TaskTracker::new(),
            running: Mutex::default(),
            failed: OnceLock::new(),
        };
        Lifecycle { inner: Arc::new(inner) }
    }

    /// Runs `future` as a task. The handle is for its result; dropping it loses nothing.
    ///
    /// A panic inside is logged, and cancels this lifecycle.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_in(Span::none(), name, future)
    }

    /// The same, in a span: all that is logged in the task has the span's fields.
    pub fn spawn_in<F>(&self, span: Span, name: &'static str, future: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let running = Running::new(&self.inner, name);
        let guarded = async move {
            let result = AssertUnwindSafe(future).catch_unwind().await;
            result.map_err(|panic| running.failed(&*panic)).ok()
        };
        let guarded = guarded.instrument(span);
        #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
        self.inner.tracker.spawn(guarded)
    }

    /// Runs `work` on an operating-system thread of its own; it must return soon after the token is cancelled.
    pub fn thread<F>(&self, name: &'static str, work: F) -> io::Result<()>
    where
        F: FnOnce(CancellationToken) + Send + 'static,
    {
        let (running, tracked, token) = (Running::new(&self.inner, name), self.inner.tracker.token(), self.token());
        #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| work(token)));
            if let Err(panic) = result {
                running.failed(&*panic);
            }
            drop((running, tracked));
        })?;
        Ok(())
    }

    /// Runs `work` on tokio's pool of blocking threads, in the span of who asks for it. It cannot be interrupted: the
    /// handle ends when the work does.
    pub fn blocking<F, T>(&self, name: &'static str, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (running, span) = (Running::new(&self.inner, name), Span::current());
        #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
        self.inner.tracker.spawn_blocking(move || {
            let _running = running;
            span.in_scope(work)
        })
    }

    /// Cancelled when this lifecycle is to stop.
    pub fn token(&self) -> CancellationToken {
        self.inner.token.clone()
    }

    /// How many tasks and threads are running.
    pub fn running(&self) -> usize {
        self.inner.running.lock().values().sum()
    }

    /// The name of the work whose panic cancelled this lifecycle, if one did.
    pub fn failed(&self) -> Option<&'static str> {
        self.inner.failed.get().copied()
    }

    /// Waits until one of these lifecycles is cancelled; before anybody stops them that means that one has failed.
    pub async fn any_cancelled(lifecycles: impl IntoIterator<Item = &Lifecycle>) {
        let cancelled = lifecycles.into_iter().map(|lifecycle| Box::pin(lifecycle.inner.token.cancelled()));
        futures_util::future::select_all(cancelled).await;
    }

    /// Cancels the token and waits until all work has ended, at most for `within`.
    pub async fn stop(&self, within: Duration) -> Result<(), Stragglers> {
        self.inner.token.cancel();
        self.wait(within).await
    }

    /// Waits until all work has ended by itself, at most for `within`; nothing more should be spawned meanwhile.
    pub async fn wait(&self, within: Duration) -> Result<(), Stragglers> {
        self.inner.tracker.close();
        match tokio::time::timeout(within, self.inner.tracker.wait()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Stragglers(self.inner.running.lock().clone())),
        }
    }
}

/// Counts one piece of work while it lives.
struct Running {
    inner: Arc<Inner>,
    name: &'static str,
}

impl Running {
    fn new(inner: &Arc<Inner>, name: &'static str) -> Self {
        *inner.running.lock().entry(name).or_default() += 1;
        Running { inner: inner.clone(), name }
    }

    fn failed(&self, panic: &(dyn std::any::Any + Send)) {
        tracing::error!(work = self.name, "stopping, because a part of weir panicked: {}", panic_message(panic));
        let _ = self.inner.failed.set(self.name);
        self.inner.token.cancel();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.inner.running.lock();
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

/// The text of a panic, as far as it has one.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stop_waits_for_all_and_names_what_stays() {
        let lifecycle = Lifecycle::new();
        let token = lifecycle.token();
        lifecycle.spawn("polite", async move { token.cancelled().await });
        let (release, held) = tokio::sync::oneshot::channel::<()>();
        lifecycle.spawn("stubborn", held);

        let stragglers = lifecycle.stop(Duration::from_secs(1)).await.expect_err("one is stubborn");
        assert_eq!(stragglers.to_string(), "still running: stubborn ×1");
        drop(release);
        lifecycle.stop(Duration::from_secs(1)).await.expect("all ended");
        assert_eq!(lifecycle.running(), 0);
    }

    #[tokio::test]
    async fn a_panic_cancels_the_lifecycle_and_is_named() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn("loop", async { panic!("on purpose") });
        lifecycle.token().cancelled().await;
        assert_eq!(lifecycle.failed(), Some("loop"));
        lifecycle.stop(Duration::from_secs(5)).await.expect("it has ended");
    }

    #[tokio::test]
    async fn threads_are_awaited() {
        let lifecycle = Lifecycle::new();
        lifecycle
            .thread("encoder", |token| {
                while !token.is_cancelled() {
                    std::thread::yield_now();
                }
            })
            .expect("a thread starts");
        assert_eq!(lifecycle.running(), 1);
        lifecycle.stop(Duration::from_secs(5)).await.expect("the thread ended");
    }
}
