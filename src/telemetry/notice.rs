//! What happens often and is logged once in a while, with how often it was; or each time, up to so many times in a while.

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

/// A thing that gets a line each time, up to `most` in each `window`. What is beyond them is counted, and due to be told when
/// their window is over, whether or not it happens again.
pub struct Burst {
    most: u64,
    window: Duration,
    state: Mutex<BurstState>,
}

#[derive(Default)]
struct BurstState {
    began: Option<std::time::Instant>,
    lines: u64,
    left_out: u64,
    due: Option<std::time::Instant>,
}

impl Burst {
    /// None has happened yet.
    pub fn new(most: u64, window: Duration) -> Self {
        Burst { most, window, state: Mutex::default() }
    }

    /// It has happened once more: whether that gets a line.
    pub fn gets_line(&self, now: std::time::Instant) -> bool {
        let mut state = self.state.lock();
        let began = match state.began {
            Some(began) if now.saturating_duration_since(began) < self.window => began,
            _ => {
                state.lines = 0;
                *state.began.insert(now)
            }
        };
        if state.lines < self.most {
            state.lines += 1;
            return true;
        }
        state.left_out += 1;
        state.due.get_or_insert(began + self.window);
        false
    }

    /// How often it was left out, once that is due to be told.
    pub fn left_out(&self, now: std::time::Instant) -> Option<u64> {
        let mut state = self.state.lock();
        state.due.take_if(|due| *due <= now)?;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_lines_of_a_window_is_told_when_it_is_over() {
        let burst = Burst::new(2, Duration::from_secs(10));
        let start = std::time::Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let lines: Vec<_> = [0, 1, 2, 9].into_iter().map(|second| burst.gets_line(at(second))).collect();
        assert_eq!(lines, [true, true, false, false]);
        assert_eq!(burst.left_out(at(9)), None, "the window goes on");
        assert!(burst.gets_line(at(10)), "another window");
        assert_eq!(burst.left_out(at(10)), Some(2));
        assert_eq!(burst.left_out(at(100)), None, "it is told once");
    }

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
