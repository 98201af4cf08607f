//! Whose code a thread runs now: what the log can say of a panic.
//!
//! A panic's hook is given a message and a place in the code. Whose task it was it must find on the thread that panics, so
//! each poll of a run's future, its end, and each of its blocking closures carry that there.

use std::sync::Arc;

use tokio::task::futures::TaskLocalFuture;

use crate::task::{IntegrationName, RunId, Task, TaskId, Tenant};

tokio::task_local! {
    static OWNER: Arc<Owner>;
}

/// A run, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the struct says what they are")]
pub struct Owner {
    pub task: TaskId,
    pub run: RunId,
    pub integration: IntegrationName,
    pub tenant: Tenant,
}

impl Owner {
    pub(super) fn new(task: &Task, run: RunId) -> Arc<Self> {
        let Task { id, integration, tenant, .. } = task;
        Arc::new(Owner { task: id.clone(), run, integration: integration.clone(), tenant: tenant.clone() })
    }

    /// The run whose code this thread runs now; none where it is weir's own.
    pub fn now() -> Option<Arc<Self>> {
        OWNER.try_with(Arc::clone).ok()
    }

    /// The same future, polled and dropped as this run's code.
    pub(crate) fn future<F: Future>(self: Arc<Self>, code: F) -> TaskLocalFuture<Arc<Owner>, F> {
        OWNER.scope(self, code)
    }

    /// Calls `work` as this run's code.
    pub(super) fn call<T>(self: Arc<Self>, work: impl FnOnce() -> T) -> T {
        OWNER.sync_scope(self, work)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::integration::testing;

    #[tokio::test]
    async fn a_runs_code_is_its_own_on_whatever_thread_until_it_is_dropped() {
        let context = testing::context("{}");
        let (task, run) = (context.task().id.clone(), context.run());
        let is_own = move || Owner::now().is_some_and(|owner| owner.task == task && owner.run == run);
        struct AtEnd<F: Fn() -> bool>(F);
        impl<F: Fn() -> bool> Drop for AtEnd<F> {
            fn drop(&mut self) {
                assert!((self.0)(), "the end of a future is its run's code");
            }
        }
        let code = async {
            let _end = AtEnd(is_own.clone());
            assert!(is_own());
            assert_eq!(context.blocking(is_own.clone()).await, Ok(true));
            std::future::pending::<()>().await;
        };
        let mut code = Box::pin(context.owner().future(code));
        tokio::select! {
            biased;
            () = &mut code => unreachable!("it waits for ever"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(Owner::now(), None);
        assert!((&mut code).now_or_never().is_none());
        drop(code);
        assert_eq!(Owner::now(), None);
    }
}
