//! One call of `SubmitMany`: what is still to be sent, and who waits for which reply.
//!
//! The connection takes the messages, whenever flow control lets it; whoever polls [`Call::run`] reads the replies. Both
//! meet under one short lock, so that at any moment a task is either here, unsent, or may have reached the server: this
//! is what tells "never started" from "outcome unknown" when the call breaks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Poll, Waker};

use futures_util::stream::{self, Stream};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use super::error::SubmitError;
use crate::task::{Outcome, Task, TaskId};
use crate::wire::error::{describe, never_arrived};
use crate::wire::proto::tasks_client::TasksClient;
use crate::wire::{self, Reason, Started, TaskError, proto};

/// What one attempt came to.
pub(super) type Attempt = Result<Outcome, SubmitError>;

/// One call. Clones of its `Arc` are held by the caller's stream, and by the connection until all is sent.
pub(super) struct Call {
    state: Mutex<State>,
    /// Woken when nobody waits for a reply any more and nobody ever will.
    over: Notify,
}

#[derive(Default)]
struct State {
    /// Bounded by the caller's stream: each is one of the tasks that it has under way.
    unsent: VecDeque<Task>,
    /// By task id, for a reply names nothing else; those of `unsent` too.
    waiting: HashMap<TaskId, oneshot::Sender<Attempt>>,
    /// Takes no more tasks.
    is_retired: bool,
    /// The connection, when it waits for a message.
    connection: Option<Waker>,
}

/// Where a task was when its wait was given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Withdrawn {
    /// Still here; it will not be sent.
    Unsent,
    /// Perhaps at the server.
    Sent,
}

impl State {
    fn enqueue(&mut self, task: Task) -> oneshot::Receiver<Attempt> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(task.id.clone(), sender);
        self.unsent.push_back(task);
        receiver
    }
}

impl Call {
    /// A call that begins with this task.
    pub(super) fn with(task: Task) -> (Arc<Self>, oneshot::Receiver<Attempt>) {
        let mut state = State::default();
        let receiver = state.enqueue(task);
        (Arc::new(Call { state: Mutex::new(state), over: Notify::new() }), receiver)
    }

    /// Puts a task behind the others that are to be sent; hands it back when this call takes no more.
    pub(super) fn enqueue(&self, task: Task) -> Result<oneshot::Receiver<Attempt>, Task> {
        let mut state = self.state.lock();
        if state.is_retired {
            return Err(task);
        }
        let receiver = state.enqueue(task);
        let connection = state.connection.take();
        drop(state);
        connection.into_iter().for_each(Waker::wake);
        Ok(receiver)
    }

    /// Gives up the wait for a task. If it may be at the server, this call takes no more tasks: a late reply must not
    /// be taken for that of another task with the same id.
    pub(super) fn withdraw(&self, id: &TaskId) -> Withdrawn {
        let mut state = self.state.lock();
        state.waiting.remove(id);
        let withdrawn = match state.unsent.iter().position(|task| task.id == *id) {
            Some(index) => {
                state.unsent.remove(index);
                Withdrawn::Unsent
            }
            None => Withdrawn::Sent,
        };
        let is_retired = state.is_retired;
        drop(state);
        if is_retired || withdrawn == Withdrawn::Sent {
            self.retire();
        }
        withdrawn
    }

    /// Takes no more tasks: what is unsent is still sent, then the call is closed towards the server.
    fn retire(&self) {
        let mut state = self.state.lock();
        state.is_retired = true;
        let connection = state.connection.take();
        let is_over = state.waiting.is_empty();
        drop(state);
        connection.into_iter().for_each(Waker::wake);
        if is_over {
            self.over.notify_one();
        }
    }

    /// Sends and reads until the call has ended or is over. Dropping this ends the call, which cancels its tasks.
    pub(super) async fn run(self: Arc<Self>, tasks: TasksClient<Channel>, endpoint: Arc<str>) {
        let _ended = EndedOnDrop(&self);
        tokio::select! {
            biased;
            broken = self.read(tasks) => self.end(&broken, &endpoint),
            () = self.over.notified() => {}
        }
    }

    /// Reads replies until there are no more; returns what ended them.
    async fn read(self: &Arc<Self>, mut tasks: TasksClient<Channel>) -> Status {
        let mut replies = match tasks.submit_many(self.clone().messages()).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status,
        };
        loop {
            match replies.message().await {
                Ok(Some(reply)) => self.answer(reply),
                Ok(None) => return Status::unknown("the server ended the stream"),
                Err(status) => return status,
            }
        }
    }

    /// What the connection sends. A task's remaining time is read when it leaves; one whose time is over stays, and is
    /// told so by whoever waits for it.
    fn messages(self: Arc<Self>) -> impl Stream<Item = proto::Task> + Send + 'static {
        stream::poll_fn(move |context| {
            let mut state = self.state.lock();
            let now = Instant::now();
            let Some(index) = state.unsent.iter().position(|task| task.deadline > now) else {
                if state.is_retired {
                    return Poll::Ready(None);
                }
                state.connection = Some(context.waker().clone());
                return Poll::Pending;
            };
            let task = state.unsent.remove(index);
            drop(state);
            Poll::Ready(task.map(|task| wire::task_out(&task, task.deadline - now)))
        })
    }

    fn answer(&self, reply: proto::Reply) {
        let Ok(id) = reply.task_id.parse() else { return };
        let attempt = match reply.result {
            Some(proto::reply::Result::Outcome(outcome)) => wire::outcome_in(outcome).map_err(SubmitError::unknown),
            Some(proto::reply::Result::Error(error)) => Err(refusal(&wire::stream::status_of(error))),
            None => Err(SubmitError::unknown("a reply has neither outcome nor error".into())),
        };
        // A server that is ending can end only when this call has: what comes now goes over another connection.
        let is_ending = matches!(&attempt, Err(SubmitError::NotStarted(error)) if error.reason == Reason::Draining);
        let mut state = self.state.lock();
        let waiting = state.waiting.remove(&id);
        let is_over = state.is_retired && state.waiting.is_empty();
        drop(state);
        // Nobody waits for what was given up.
        if let Some(sender) = waiting {
            let _ = sender.send(attempt);
        }
        if is_over {
            self.over.notify_one();
        } else if is_ending {
            self.retire();
        }
    }

    /// Tells everybody who still waits that there will be no reply.
    fn end(&self, broken: &Status, endpoint: &str) {
        let mut state = self.state.lock();
        state.is_retired = true;
        let (unsent, mut waiting) = (std::mem::take(&mut state.unsent), std::mem::take(&mut state.waiting));
        drop(state);
        let cause = describe(broken);
        let unsent: Vec<_> = unsent.into_iter().filter_map(|task| waiting.remove(&task.id)).collect();
        for sender in unsent {
            let _ = sender.send(Err(SubmitError::unreachable(endpoint, cause.clone())));
        }
        for sender in waiting.into_values() {
            let error = match never_arrived(broken) {
                true => SubmitError::unreachable(endpoint, cause.clone()),
                false => SubmitError::unknown(format!("the stream broke after the task was sent: {cause}")),
            };
            let _ = sender.send(Err(error));
        }
    }
}

/// What an error in place of an outcome says about its task.
fn refusal(status: &Status) -> SubmitError {
    match TaskError::from_status(status) {
        Some(error) if error.started == Started::No => SubmitError::NotStarted(error),
        Some(error) => SubmitError::OutcomeUnknown(error),
        None => {
            SubmitError::unknown(format!("the server answered without saying whether it ran: {}", describe(status)))
        }
    }
}

/// Ends the messages. As long as the connection waits for more of them, dropping the replies alone resets nothing, and
/// the server would run on.
struct EndedOnDrop<'a>(&'a Call);

impl Drop for EndedOnDrop<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.unsent.clear();
        drop(state);
        self.0.retire();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::task::{IntegrationName, Json, Priority, Tenant};

    fn task(id: &str) -> Task {
        let integration: IntegrationName = "bank".parse().expect("a name");
        let (tenant, priority, input) = (Tenant::default(), Priority::Batch, Json::null());
        let deadline = Instant::now() + Duration::from_secs(60);
        Task { id: id.parse().expect("an id"), integration, tenant, priority, input, deadline }
    }

    fn refused(id: &str, error: &TaskError) -> proto::Reply {
        let status = error.to_status();
        let error = prost::Message::decode(status.details()).expect("rich");
        proto::Reply { task_id: id.into(), result: Some(proto::reply::Result::Error(error)) }
    }

    fn reason(answer: oneshot::Receiver<Attempt>) -> &'static str {
        let attempt = answer.now_or_never().expect("an answer").expect("it was sent");
        attempt.expect_err("no outcome").reason()
    }

    #[tokio::test]
    async fn a_broken_call_tells_what_was_sent_from_what_was_not() {
        let (call, first) = Call::with(task("t-1"));
        let second = call.enqueue(task("t-2")).expect("it takes tasks");
        let sent = call.clone().messages().next().now_or_never().flatten().expect("one is there");
        assert_eq!((sent.id.as_str(), sent.timeout.map(|timeout| timeout.seconds)), ("t-1", Some(59)));
        call.end(&Status::unavailable("cut"), "there");
        assert_eq!((reason(first), reason(second)), ("OUTCOME_UNKNOWN", "UNREACHABLE"));
        assert!(call.enqueue(task("t-3")).is_err());
    }

    #[tokio::test]
    async fn a_task_that_is_given_up_unsent_leaves_and_one_that_was_sent_retires_the_call() {
        let (call, _first) = Call::with(task("t-1"));
        let _second = call.enqueue(task("t-2")).expect("it takes tasks");
        let mut messages = call.clone().messages().boxed();
        assert!(messages.next().now_or_never().flatten().is_some());
        assert_eq!(call.withdraw(&task("t-2").id), Withdrawn::Unsent);
        assert!(messages.next().now_or_never().is_none(), "it waits for more");
        assert!(call.over.notified().now_or_never().is_none(), "it goes on");
        assert_eq!(call.withdraw(&task("t-1").id), Withdrawn::Sent);
        assert!(call.enqueue(task("t-1")).is_err(), "the late reply would be taken for this one's");
        assert_eq!(messages.next().now_or_never(), Some(None), "the server is told that no more come");
        assert!(call.over.notified().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_server_that_drains_gets_no_more_tasks_and_the_others_are_still_answered() {
        let (call, first) = Call::with(task("t-1"));
        let second = call.enqueue(task("t-2")).expect("it takes tasks");
        call.answer(refused("t-1", &TaskError::draining("ending")));
        assert!(call.enqueue(task("t-3")).is_err());
        call.answer(refused("t-2", &TaskError::worker_full("full")));
        call.answer(refused("t-2", &TaskError::worker_full("twice")));
        call.answer(refused("not/an/id", &TaskError::worker_full("nobody's")));
        assert_eq!((reason(first), reason(second)), ("DRAINING", "WORKER_FULL"));
        assert!(call.over.notified().now_or_never().is_some());
    }
}
