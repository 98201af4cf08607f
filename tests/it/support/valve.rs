//! Integrations whose tasks run until the test lets them go: order and overlap without a single sleep.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Semaphore;
use weir::integration::{Context, Error, Integration, OnCancel};
use weir::task::Json;

/// Lets tasks go; clones are the same valve.
#[derive(Clone)]
pub struct Valve {
    inner: Arc<Inner>,
}

struct Inner {
    permits: Semaphore,
    started: Mutex<Vec<String>>,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Default for Valve {
    fn default() -> Self {
        let (permits, started) = (Semaphore::new(0), Mutex::default());
        Valve { inner: Arc::new(Inner { permits, started, is_open: Mutex::new(false), opened: Condvar::new() }) }
    }
}

impl Valve {
    /// Lets this many held tasks go, now or when they come.
    pub fn release(&self, tasks: usize) {
        self.inner.permits.add_permits(tasks);
    }

    /// Lets all go, the stubborn ones too, for good.
    pub fn open(&self) {
        self.inner.permits.close();
        *self.inner.is_open.lock() = true;
        self.inner.opened.notify_all();
    }

    /// The ids of all tasks that have started, in that order.
    pub fn started(&self) -> Vec<String> {
        self.inner.started.lock().clone()
    }

    fn enter(&self, context: &Context) {
        self.inner.started.lock().push(context.task().id.to_string());
    }
}

/// Ends when it is let go, or cancelled.
pub struct Held(pub Valve);

#[async_trait]
impl Integration for Held {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        self.0.enter(context);
        tokio::select! {
            () = context.cancelled() => Err(Error::retryable("cancelled")),
            permit = self.0.inner.permits.acquire() => {
                // A closed valve, which is an open one here, has no permits to forget.
                permit.into_iter().for_each(|permit| permit.forget());
                Ok(Json::null())
            }
        }
    }
}

/// Computes on a blocking thread until the valve is open, whatever it is told; its future may be dropped at once.
pub struct Stubborn(pub Valve);

#[async_trait]
impl Integration for Stubborn {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        self.0.enter(context);
        let inner = self.0.inner.clone();
        let compute = move || {
            let mut is_open = inner.is_open.lock();
            inner.opened.wait_while(&mut is_open, |is_open| !*is_open);
        };
        context.blocking(compute).await.map(|()| Json::null())
    }

    fn on_cancel(&self) -> OnCancel {
        OnCancel::Stop { grace: Duration::ZERO }
    }
}
