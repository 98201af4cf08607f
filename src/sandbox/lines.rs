//! The line in front of a bank that works on so many of a client's requests at a time.
//!
//! Each client has as many places as its limit says, and a line in which its other requests wait, first come, first
//! served. So throughput ends at limit / latency, and beyond it only the waiting grows: the knee that a worker should
//! find. The limit may change at any time; it is looked up again whenever a place becomes free.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::behaviour::{Beyond, Concurrency};
use super::conduct::Conduct;

/// Requests of one client that wait; more are refused, as a bank's own queue would.
const MAX_WAITING: usize = 20_000;

pub(super) struct Lines {
    conduct: Arc<Conduct>,
    lines: Mutex<BTreeMap<String, Line>>,
}

#[derive(Default)]
struct Line {
    busy: usize,
    waiting: VecDeque<oneshot::Sender<Place>>,
}

/// A place where a request is worked on; dropping it frees it for the next one.
pub(super) struct Place {
    /// None once the place was given back by hand.
    held: Option<(Arc<Lines>, String)>,
}

/// When a request gets its place.
pub(super) enum Turn {
    Now(Place),
    Waits(oneshot::Receiver<Place>),
}

impl Turn {
    /// Waits for the place; none comes when the bank has gone.
    pub(super) async fn place(self) -> Option<Place> {
        match self {
            Turn::Now(place) => Some(place),
            Turn::Waits(turn) => turn.await.ok(),
        }
    }
}

impl Lines {
    pub(super) fn new(conduct: Arc<Conduct>) -> Arc<Self> {
        Arc::new(Lines { conduct, lines: Mutex::default() })
    }

    /// Takes a place, or a place in the line; none means that the request is refused.
    pub(super) fn join(self: &Arc<Self>, client: &str, rule: Option<Concurrency>) -> Option<Turn> {
        let mut lines = self.lines.lock();
        let line = lines.entry(client.to_owned()).or_default();
        let limit = rule.map_or(usize::MAX, |rule| rule.limit);
        self.serve(client, line, limit);
        if line.busy < limit && line.waiting.is_empty() {
            line.busy += 1;
            return Some(Turn::Now(self.place(client)));
        }
        let refuses = rule.is_some_and(|rule| rule.beyond == Beyond::Refuse);
        if refuses || line.waiting.len() >= MAX_WAITING {
            return None;
        }
        let (sender, turn) = oneshot::channel();
        line.waiting.push_back(sender);
        Some(Turn::Waits(turn))
    }

    /// Looks at all limits again, after they may have changed.
    pub(super) fn limits_changed(self: &Arc<Self>) {
        for (client, line) in self.lines.lock().iter_mut() {
            self.serve(client, line, self.limit(client));
        }
    }

    fn limit(&self, client: &str) -> usize {
        let rule = self.conduct.towards(client, Instant::now()).concurrency;
        rule.map_or(usize::MAX, |rule| rule.limit)
    }

    fn place(self: &Arc<Self>, client: &str) -> Place {
        Place { held: Some((self.clone(), client.to_owned())) }
    }

    /// Gives free places to those who wait longest; those who went away are passed over.
    fn serve(self: &Arc<Self>, client: &str, line: &mut Line, limit: usize) {
        while line.busy < limit
            && let Some(next) = line.waiting.pop_front()
        {
            match next.send(self.place(client)) {
                Ok(()) => line.busy += 1,
                // Not by its drop, which would ask for the lock that is held here.
                Err(mut place) => place.held = None,
            }
        }
    }

    fn leave(self: &Arc<Self>, client: &str) {
        let limit = self.limit(client);
        let mut lines = self.lines.lock();
        if let Some(line) = lines.get_mut(client) {
            line.busy -= 1;
            self.serve(client, line, limit);
            if line.busy == 0 && line.waiting.is_empty() {
                lines.remove(client);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((lines, client)) = self.held.take() {
            lines.leave(&client);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use futures_util::{FutureExt, pin_mut};

    use super::*;
    use crate::sandbox::Config;
    use crate::sandbox::behaviour::Behaviour;

    impl Lines {
        async fn enter(self: &Arc<Self>, client: &str, rule: Option<Concurrency>) -> Option<Place> {
            self.join(client, rule)?.place().await
        }
    }

    fn rule(limit: usize, beyond: Beyond) -> Option<Concurrency> {
        Some(Concurrency { limit, beyond })
    }

    fn lines(limit: usize) -> Arc<Lines> {
        let behaviour = Behaviour { concurrency: rule(limit, Beyond::Wait), ..Behaviour::default() };
        let config = Config { behaviour, ..Config::default() };
        Lines::new(Arc::new(Conduct::new(&config, None, Instant::now())))
    }

    fn is_empty(lines: &Lines) -> bool {
        lines.lines.lock().is_empty()
    }

    /// How long `requests` that come together take in all, at this limit and a latency of 100 ms.
    async fn duration_of(requests: usize, limit: usize) -> Duration {
        let (lines, began) = (lines(limit), Instant::now());
        join_all((0..requests).map(|_| async {
            let _place = lines.enter("a", rule(limit, Beyond::Wait)).await.expect("its turn");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }))
        .await;
        assert!(is_empty(&lines));
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_knee_is_where_the_limit_says() {
        for (requests, expected) in [(1, 100), (8, 100), (9, 200), (16, 200), (80, 1_000)] {
            assert_eq!(duration_of(requests, 8).await, Duration::from_millis(expected), "{requests} at a limit of 8");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_longest_is_next_and_who_left_is_passed_over() {
        let lines = lines(1);
        let enter = |client| lines.enter(client, rule(1, Beyond::Wait));
        let first = enter("a").await.expect("a free place");
        let (second, third) = (enter("a"), enter("a"));
        let mut second = Box::pin(second);
        pin_mut!(third);
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        assert!(enter("b").now_or_never().flatten().is_some(), "another client has its own line");
        drop(second);
        drop(first);
        drop(third.now_or_never().flatten().expect("its turn"));
        assert!(is_empty(&lines));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_nobody_took_is_the_next_ones() {
        let lines = lines(1);
        let enter = || lines.enter("a", rule(1, Beyond::Wait));
        let first = enter().await.expect("a free place");
        let mut second = Box::pin(enter());
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        // It was given the place, and leaves without having looked.
        drop(second);
        drop(enter().now_or_never().flatten().expect("a free place"));
        assert!(is_empty(&lines));
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_limit_may_be_refused_instead() {
        let lines = lines(2);
        let enter = || lines.enter("a", rule(2, Beyond::Refuse)).now_or_never().flatten();
        let (first, second) = (enter(), enter());
        assert!(first.is_some() && second.is_some() && enter().is_none());
        drop(first);
        assert!(enter().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_raised_limit_lets_those_who_wait_in() {
        let lines = lines(1);
        let enter = || Box::pin(lines.enter("a", rule(1, Beyond::Wait)));
        let _first = enter().await.expect("a free place");
        let (mut second, mut third) = (enter(), enter());
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        let raised = Behaviour { concurrency: rule(3, Beyond::Wait), ..Behaviour::default() };
        lines.conduct.set(raised).expect("valid");
        lines.limits_changed();
        let both = (second.now_or_never().flatten(), third.now_or_never().flatten());
        assert!(both.0.is_some() && both.1.is_some());
    }
}
