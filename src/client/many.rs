//! Many tasks over few calls: one stream of submissions in, one answer for each out, and nothing beside the caller.
//!
//! Each task is a future of its own, with the same deadline and the same retries as [`Client::submit`]; only an attempt
//! differs, for it goes over a [`Call`] that all share. Nothing is spawned: whoever polls the answers polls the tasks
//! and the calls, and whoever drops them ends both. There is one call at a time that takes tasks; one that was retired
//! is kept until its last task is answered, so there are never more calls than tasks under way.

use std::collections::HashSet;
use std::sync::Arc;
use std::task::Poll;

use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered, Stream};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::backoff::until_started;
use super::call::{Attempt, Call, Withdrawn};
use super::error::SubmitError;
use super::{ANSWER_MARGIN, Client, Submission};
use crate::task::{Task, TaskId};

/// What came of one of the submissions.
pub type Answer = (TaskId, Attempt);

/// Submits each of `submissions`, at most as many at a time as the client's options say.
pub(super) fn submit<S>(client: Client, submissions: S) -> impl Stream<Item = Answer> + Unpin
where
    S: Stream<Item = Submission>,
{
    let most = client.options.max_in_flight.max(1);
    let link = Arc::new(Link { client, state: Mutex::default() });
    let opened = link.clone();
    let one = move |submission: Submission| {
        let (link, deadline) = (link.clone(), submission.deadline());
        async move { (submission.id.clone(), link.submit(submission, deadline).await) }
    };
    let mut answers = Box::pin(submissions.map(one).buffer_unordered(most));
    let mut calls = FuturesUnordered::new();
    stream::poll_fn(move |context| {
        loop {
            calls.extend(opened.take_opened().into_iter().map(|call| opened.run(call)));
            // Replies first: a task whose reply is here has not run out of time, however late the caller polls.
            while let Poll::Ready(Some(())) = calls.poll_next_unpin(context) {}
            let answer = answers.as_mut().poll_next(context);
            if matches!(answer, Poll::Ready(None)) {
                // A server that drains waits for open calls; nobody needs them any more.
                calls.clear();
            }
            if answer.is_ready() || !opened.has_opened() {
                return answer;
            }
        }
    })
}

/// What the tasks of one stream share.
struct Link {
    client: Client,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The ids of all tasks under way.
    ids: HashSet<TaskId>,
    /// The call that takes tasks.
    current: Option<Arc<Call>>,
    /// Calls that nobody runs yet.
    opened: Vec<Arc<Call>>,
}

impl Link {
    async fn submit(&self, submission: Submission, deadline: Instant) -> Attempt {
        submission.check()?;
        let task = submission.into_task(deadline);
        let Some(_taken) = Taken::new(self, &task.id) else {
            return Err(SubmitError::invalid(format!(
                "task id {:?} is under way in this stream: use another",
                task.id
            )));
        };
        until_started(self.client.options.backoff, deadline, || self.attempt(task.clone())).await
    }

    async fn attempt(&self, task: Task) -> Attempt {
        let (id, deadline) = (task.id.clone(), task.deadline);
        let (call, answer) = self.enqueue(task);
        match timeout_at(deadline + ANSWER_MARGIN, answer).await {
            Ok(Ok(attempt)) => attempt,
            Ok(Err(_)) => Err(SubmitError::unknown("the call was dropped".into())),
            Err(_) if call.withdraw(&id) == Withdrawn::Unsent => {
                let message = format!("{} did not take the task within its timeout", self.client.endpoint);
                Err(SubmitError::too_late(message))
            }
            Err(_) => Err(SubmitError::unknown(self.client.no_answer())),
        }
    }

    /// Hands the task to the call that takes tasks, or to a new one.
    fn enqueue(&self, task: Task) -> (Arc<Call>, oneshot::Receiver<Attempt>) {
        let mut state = self.state.lock();
        let task = match &state.current {
            Some(call) => match call.enqueue(task) {
                Ok(answer) => return (call.clone(), answer),
                Err(task) => task,
            },
            None => task,
        };
        let (call, answer) = Call::with(task);
        state.opened.push(call.clone());
        state.current = Some(call.clone());
        (call, answer)
    }

    fn run(&self, call: Arc<Call>) -> impl Future<Output = ()> + use<> {
        call.run(self.client.tasks.clone(), self.client.endpoint.clone())
    }

    fn take_opened(&self) -> Vec<Arc<Call>> {
        std::mem::take(&mut self.state.lock().opened)
    }

    fn has_opened(&self) -> bool {
        !self.state.lock().opened.is_empty()
    }
}

/// An id, while its task is under way.
struct Taken<'a> {
    link: &'a Link,
    id: &'a TaskId,
}

impl<'a> Taken<'a> {
    fn new(link: &'a Link, id: &'a TaskId) -> Option<Self> {
        let is_new = link.state.lock().ids.insert(id.clone());
        is_new.then_some(Taken { link, id })
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.link.state.lock().ids.remove(self.id);
    }
}
