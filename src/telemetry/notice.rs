//! What happens often and is logged once in a while, with how often it was.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// One such thing.
pub struct Notice {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_line: Option<Instant>,
    count: u64,
}

impl Notice {
    /// At most one line in each `interval`.
    pub fn every(interval: Duration) -> Self {
        Notice { interval, state: Mutex::default() }
    }

    /// It has happened once more: how often since the last line, when it is time for another.
    pub fn due(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.count += 1;
        if state.last_line.is_some_and(|last| now.duration_since(last) < self.interval) {
            return None;
        }
        state.last_line = Some(now);
        Some(std::mem::take(&mut state.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_happens_often_is_logged_once_in_a_while_with_its_count() {
        let notice = Notice::every(Duration::from_secs(10));
        assert_eq!(notice.due(), Some(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(notice.due(), None);
        tokio::time::advance(Duration::from_secs(8)).await;
        assert_eq!(notice.due(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(notice.due(), Some(3));
    }
}
