//! The cache under a paused clock: its flights land when the test says so.

use futures_util::FutureExt;
use futures_util::future::join_all;
use secrecy::ExposeSecret;

use super::*;

const NEVER: fn(Flight) = |_| panic!("nobody asks for a token now");

fn granted(token: &str, seconds: u64) -> Result<Granted, Denied> {
    Ok(Granted { token: token.into(), lifetime: Some(Duration::from_secs(seconds)) })
}

fn denied(message: &str, retry_after: u64) -> Result<Granted, Denied> {
    Err(Denied { error: Error::retryable(message), retry_after: Duration::from_secs(retry_after) })
}

/// The token for which a flight, if one is started, lands at once with `result`.
async fn token(cache: &Cache, result: Result<Granted, Denied>) -> Result<String, String> {
    let access = cache.token(|flight| flight.land(result)).await;
    access.map(|access| access.token.expose_secret().to_owned()).map_err(|error| error.message)
}

async fn advance(seconds: f64) {
    tokio::time::advance(Duration::from_secs_f64(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_before_it_expires_and_serves_meanwhile() {
    let cache = Cache::default();
    assert_eq!(token(&cache, granted("one", 3600)).await.as_deref(), Ok("one"));
    advance(3539.0).await;
    let access = cache.token(NEVER).await.expect("it is fresh");
    assert_eq!(access.token.expose_secret(), "one");

    advance(1.0).await;
    let mut flight = None;
    let access = cache.token(|it| flight = Some(it)).now_or_never().expect("it does not wait").expect("it serves");
    assert_eq!(access.token.expose_secret(), "one");
    cache.token(NEVER).now_or_never().expect("nor does anybody else").expect("it serves");
    flight.expect("the first one asks").land(granted("two", 3600));
    assert_eq!(cache.token(NEVER).await.expect("fresh").token.expose_secret(), "two");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_disturbs_nobody_while_the_old_token_serves() {
    let cache = Cache::default();
    assert_eq!(token(&cache, granted("one", 100)).await.as_deref(), Ok("one"));
    advance(81.0).await;
    assert_eq!(token(&cache, denied("down", 0)).await.as_deref(), Ok("one"));
    assert_eq!(cache.token(NEVER).await.expect("it serves").token.expose_secret(), "one");
    advance(20.0).await;
    assert_eq!(token(&cache, denied("down", 0)).await, Err("down".into()), "it has expired");
}

#[tokio::test(start_paused = true)]
async fn lifetimes_count_from_the_asking_and_may_be_unknown_or_nothing() {
    let cache = Cache::default();
    let mut flight = None;
    let mut waiting = Box::pin(cache.token(|it| flight = Some(it)));
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(waiting);
    advance(50.0).await;
    flight.expect("started").land(granted("slow", 100));
    advance(31.0).await;
    assert_eq!(token(&cache, granted("next", 0)).await.as_deref(), Ok("slow"), "it is renewed after 80 s");
    let unknown = Granted { token: "unknown".into(), lifetime: None };
    assert_eq!(token(&cache, Ok(unknown)).await.as_deref(), Ok("unknown"), "the next one lived for 0 s");
    advance(1e7).await;
    cache.token(NEVER).await.expect("it serves until it is refused");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_wait_for_one_flight_and_those_who_leave_take_nothing_away() {
    let cache = Cache::default();
    let flight = Mutex::new(None);
    let start = |it: Flight| assert!(flight.lock().replace(it).is_none(), "there is one flight");
    let mut first = Box::pin(cache.token(start));
    assert!(first.as_mut().now_or_never().is_none());
    drop(first);
    let mut others: Vec<_> = (0..100).map(|_| Box::pin(cache.token(start))).collect();
    assert!(others.iter_mut().all(|other| other.as_mut().now_or_never().is_none()));
    others.truncate(50);
    flight.lock().take().expect("it is still on its way").land(granted("one", 60));
    for access in join_all(others).await {
        assert_eq!(access.expect("granted").token.expose_secret(), "one");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_is_lost_is_an_error_and_the_next_task_starts_another() {
    let cache = Cache::default();
    let error = cache.token(drop).await.err().expect("it was dropped");
    assert_eq!(error, lost());
    advance(0.5).await;
    assert_eq!(token(&cache, granted("one", 60)).await.as_deref(), Ok("one"));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_shared_and_pauses_double_to_a_limit_or_are_what_the_bank_asks_for() {
    let cache = Cache::default();
    assert_eq!(token(&cache, denied("first", 0)).await, Err("first".into()));
    let mut pause = 0.5;
    for _ in 0..10 {
        advance(pause - 0.01).await;
        cache.token(NEVER).await.err().expect("nobody asks during the pause");
        advance(0.01).await;
        assert_eq!(token(&cache, denied("again", 0)).await, Err("again".into()));
        pause = f64::min(2.0 * pause, 30.0);
    }
    advance(30.0).await;
    assert_eq!(token(&cache, granted("one", 1)).await.as_deref(), Ok("one"));
    advance(1.0).await;
    assert_eq!(token(&cache, denied("busy", 7)).await, Err("busy".into()));
    advance(6.9).await;
    assert!(cache.token(NEVER).await.is_err());
    advance(0.2).await;
    assert_eq!(token(&cache, granted("two", 60)).await.as_deref(), Ok("two"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_given_up_once() {
    let cache = Cache::default();
    let one = cache.token(|flight| flight.land(granted("one", 60))).await.expect("granted");
    one.accepted();
    assert!(cache.refused(&one), "it was good once");
    let two = cache.token(|flight| flight.land(granted("two", 60))).await.expect("granted");
    assert!(cache.refused(&one), "there is a newer one");
    assert_eq!(cache.token(NEVER).await.expect("kept").token.expose_secret(), "two");
    assert!(!cache.refused(&two), "it is new and was never accepted: another one would be refused, too");
    cache.token(NEVER).await.expect("kept");
    advance(10.0).await;
    assert!(cache.refused(&two));
    assert_eq!(token(&cache, granted("three", 60)).await.as_deref(), Ok("three"));
}
