//! The access token that all tasks of an integration share, and who asks for the next one.
//!
//! At most one request for a token is on its way. It is a [`Flight`], which belongs to no task: whoever finds no token
//! starts one, all others wait for it, and whoever stops waiting (its task is cancelled or out of time) takes nothing
//! away from the rest. A token is renewed [`margin`] before it expires, while it still serves; so in the ordinary course
//! nobody waits. One that the bank refuses is given up once, by the first task that says so: the others, who used the
//! same one, find the next.
//!
//! A request that failed is not repeated for a pause that doubles up to [`MAX_PAUSE`]; its error is shared by those who
//! waited for it and those who come during the pause. And a token that is refused within [`REFUSED_PAUSE`] of its issue,
//! without ever having been accepted, is kept: another one would be refused, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::integration::Error;

/// A token is renewed at most this long before it expires.
const MAX_MARGIN: Duration = Duration::from_secs(60);

/// The pause after the first failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How long a token that was refused from the beginning is kept.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// A longer lifetime than this is taken for this.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The token of one integration. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Cache {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    access: Option<Arc<Access>>,
    flight: Option<watch::Receiver<Option<Landed>>>,
    failures: u32,
    /// Why there is no token, and until when nobody asks again.
    pause: Option<(Instant, Error)>,
}

type Landed = Result<Arc<Access>, Error>;

/// A token, as long as it serves.
pub(super) struct Access {
    pub(super) token: SecretString,
    issued: Instant,
    /// Unknown where the bank does not say: then it serves until it is refused.
    lifetime: Option<Duration>,
    accepted: AtomicBool,
}

/// What a token endpoint grants.
pub(super) struct Granted {
    pub(super) token: SecretString,
    pub(super) lifetime: Option<Duration>,
}

/// Why it grants nothing.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) error: Error,
    /// It asks for a pause of at least this long.
    pub(super) retry_after: Duration,
}

/// What there is for a task that needs a token.
enum Found {
    Serves(Arc<Access>),
    Landing(watch::Receiver<Option<Landed>>),
    Paused(Error),
}

/// The one request for a token that is on its way. However it ends, those who wait hear of it.
pub(super) struct Flight {
    state: Arc<Mutex<State>>,
    started: Instant,
    landed: Option<watch::Sender<Option<Landed>>>,
}

/// How long before its expiry a token is renewed: a fifth of its life, at most [`MAX_MARGIN`].
fn margin(lifetime: Duration) -> Duration {
    (lifetime / 5).min(MAX_MARGIN)
}

impl Access {
    fn new(granted: Granted, issued: Instant) -> Self {
        let lifetime = granted.lifetime.map(|lifetime| lifetime.min(MAX_LIFETIME));
        Access { token: granted.token, issued, lifetime, accepted: AtomicBool::new(false) }
    }

    /// The bank has taken it.
    pub(super) fn accepted(&self) {
        self.accepted.store(true, Ordering::Relaxed);
    }

    fn serves(&self, now: Instant) -> bool {
        self.lifetime.is_none_or(|lifetime| now < self.issued + lifetime)
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.lifetime.is_none_or(|lifetime| now < self.issued + lifetime - margin(lifetime))
    }
}

impl Cache {
    /// With a token that serves until it is refused, and that somebody has accepted before.
    pub(super) fn holding(token: SecretString) -> Self {
        let access = Access { token, issued: Instant::now(), lifetime: None, accepted: AtomicBool::new(true) };
        Cache { state: Arc::new(Mutex::new(State { access: Some(Arc::new(access)), ..State::default() })) }
    }

    /// A token that serves. Where one is to be asked for, and no other task does so, `start` is handed the flight.
    pub(super) async fn token(&self, start: impl FnOnce(Flight)) -> Result<Arc<Access>, Error> {
        let (found, flight) = self.find();
        if let Some(flight) = flight {
            start(flight);
        }
        let mut landing = match found {
            Found::Serves(access) => return Ok(access),
            Found::Paused(error) => return Err(error),
            Found::Landing(landing) => landing,
        };
        let landed = landing.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone());
        landed.unwrap_or_else(|| Err(lost()))
    }

    /// The bank has refused this token. Says whether it makes sense to ask once more with another one.
    pub(super) fn refused(&self, refused: &Arc<Access>) -> bool {
        let mut state = self.state.lock();
        if !state.access.as_ref().is_some_and(|current| Arc::ptr_eq(current, refused)) {
            return true;
        }
        let is_new = refused.issued.elapsed() < REFUSED_PAUSE;
        if is_new && !refused.accepted.load(Ordering::Relaxed) {
            return false;
        }
        state.access = None;
        true
    }

    /// What there is for a task, and the flight that it has to start, if it has to.
    fn find(&self) -> (Found, Option<Flight>) {
        let (now, mut state) = (Instant::now(), self.state.lock());
        let serving = state.access.clone().filter(|access| access.serves(now));
        if let Some(access) = serving.as_ref().filter(|access| access.is_fresh(now)) {
            return (Found::Serves(access.clone()), None);
        }
        if let Some(landing) = state.flight.clone() {
            return (serving.map_or(Found::Landing(landing), Found::Serves), None);
        }
        if let Some((_, error)) = state.pause.as_ref().filter(|(until, _)| now < *until) {
            return (serving.map_or_else(|| Found::Paused(error.clone()), Found::Serves), None);
        }
        let (sender, landing) = watch::channel(None);
        state.flight = Some(landing.clone());
        let flight = Flight { state: self.state.clone(), started: now, landed: Some(sender) };
        (serving.map_or(Found::Landing(landing), Found::Serves), Some(flight))
    }
}

impl Flight {
    /// Ends it; all who wait go on.
    pub(super) fn land(mut self, result: Result<Granted, Denied>) {
        self.end(result);
    }

    fn end(&mut self, result: Result<Granted, Denied>) {
        let Some(sender) = self.landed.take() else { return };
        let mut state = self.state.lock();
        state.flight = None;
        let landed = match result {
            Ok(granted) => {
                // Counted from the asking: the bank's clock started somewhere after it.
                let access = Arc::new(Access::new(granted, self.started));
                (state.failures, state.pause) = (0, None);
                state.access = Some(access.clone());
                Ok(access)
            }
            Err(Denied { error, retry_after }) => {
                let doubled = FIRST_PAUSE * 2_u32.pow(state.failures.min(10));
                let pause = doubled.max(retry_after).min(MAX_PAUSE);
                state.failures += 1;
                state.pause = Some((Instant::now() + pause, error.clone()));
                Err(error)
            }
        };
        sender.send_replace(Some(landed));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.end(Err(Denied { error: lost(), retry_after: Duration::ZERO }));
    }
}

fn lost() -> Error {
    Error::retryable("the request for a token was given up")
}

#[cfg(test)]
mod tests;
