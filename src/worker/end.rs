//! What a run comes to: its integration's code, guarded against panics, and the result that its caller is told.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;

use crate::integration::{self, Context, Integration};
use crate::lifecycle::panic_message;
use crate::task::{Failure, FailureCode, IntegrationName, Json, Remedy};
use crate::wire::MAX_OUTPUT_BYTES;

/// The part of a failure's message that is kept: an error of a parser may quote the whole of what it was given.
const MESSAGE_CHARS: usize = 1_000;

/// What ended a run.
pub(crate) enum End {
    Returned(Returned),
    Cancelled,
    DeadlinePassed,
}

/// What an integration's code came to; the outer error is a panic.
pub(crate) type Returned = Result<Result<Json, integration::Error>, Failure>;

/// Runs the integration's code; a panic is its result, not the worker's end.
pub(crate) async fn guarded(integration: Arc<dyn Integration>, context: Context) -> Returned {
    let caught = AssertUnwindSafe(context.owner().future(integration.run(&context))).catch_unwind().await;
    caught.map_err(|panic| {
        let message = format!("the integration panicked: {}", panic_message(&*panic));
        Failure::new(FailureCode::Panic, message, Remedy::None)
    })
}

impl End {
    /// The same, unless the integration gave up because its task was cancelled, and said so before the run was asked again
    /// whether it is: then it is the cancellation that ended it.
    pub(crate) fn or_cancelled(self, is_cancelled: bool) -> Self {
        match self {
            End::Returned(Ok(Err(_))) if is_cancelled => End::Cancelled,
            end => end,
        }
    }

    /// The same, unless its time was over when the integration returned: one that blocks its thread cannot be told so before.
    /// Nobody waits for what it brings, and a panic says more than that it was late.
    pub(crate) fn or_late(self, is_late: bool) -> Self {
        match self {
            End::Returned(Ok(_)) if is_late => End::DeadlinePassed,
            end => end,
        }
    }

    /// What the caller is told of a run of `integration`.
    pub(crate) fn result(self, integration: &IntegrationName) -> Result<Json, Failure> {
        self.whole(integration).map_err(brief)
    }

    fn whole(self, integration: &IntegrationName) -> Result<Json, Failure> {
        let failure = |code, message: String, remedy| Err(Failure::new(code, message, remedy));
        match self {
            End::Cancelled => {
                failure(FailureCode::Cancelled, "the task was cancelled while it ran".into(), Remedy::Retry)
            }
            End::DeadlinePassed => {
                failure(FailureCode::Deadline, "the task ran into its deadline".into(), Remedy::Retry)
            }
            End::Returned(Err(panic)) => Err(panic),
            End::Returned(Ok(Err(integration::Error { message, remedy, reason }))) => {
                Err(Failure { code: FailureCode::Integration, message, remedy, reason })
            }
            End::Returned(Ok(Ok(output))) if output.as_str().len() > MAX_OUTPUT_BYTES => {
                let size = output.as_str().len();
                let message =
                    format!("the output of {integration} has {size} bytes, at most {MAX_OUTPUT_BYTES} are sent");
                failure(FailureCode::OutputTooLarge, message, Remedy::None)
            }
            End::Returned(Ok(Ok(output))) => Ok(output),
        }
    }
}

/// The same failure with a message of bounded length.
fn brief(mut failure: Failure) -> Failure {
    if let Some((end, _)) = failure.message.char_indices().nth(MESSAGE_CHARS) {
        failure.message.truncate(end);
        failure.message.push('…');
    }
    failure
}
