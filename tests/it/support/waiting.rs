//! Waiting for what must come true.

use std::time::Duration;

/// Long enough for anything on a busy machine; nothing waits for it when all is well.
pub const LONG: Duration = Duration::from_secs(30);

/// Waits until something holds, and fails with what was awaited when it never does.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, waited).await.unwrap_or_else(|_| panic!("it never came true: {what}"));
}
