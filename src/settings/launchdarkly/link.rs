//! Whether LaunchDarkly is there: the SDK's own way to the network, watched.
//!
//! The SDK goes on with what it has when its stream breaks, and says nothing to the program. It also stops for good after
//! an answer that it takes for final (any 4xx but 400, 408 and 429), even where the next one would be good. Whoever carries
//! its requests sees both.
//!
//! While nothing answers, its own pause doubles up to 30 s, which no setting of it bounds, and a change would take as long to
//! arrive after an outage. So a request that got no answer is made again here, within a few seconds, and the SDK hears only of
//! answers. What it does about those that are errors stays its own: whoever answers with one may have too much to do.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use launchdarkly_sdk_transport::{ByteStream, HttpTransport, HyperTransport, Request, ResponseFuture, TransportError};
use parking_lot::Mutex;
use rand::RngExt;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls_platform_verifier::Verifier;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::causes::with_causes;

/// How long connecting may take, TLS apart.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The pause after an attempt that got no answer, at first and at most; each is cut by up to a half, by chance, so that a fleet
/// does not come back as one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// How long a stream may be silent. LaunchDarkly and Relay send something every three minutes at least.
const SILENT_WITHIN: Duration = Duration::from_secs(300);

/// When a peer that is gone is noticed although nobody sends: after this and twice the interval.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// How long a report of evaluations may take.
const REPORT_WITHIN: Duration = Duration::from_secs(10);

/// Streams end now and then, and the SDK connects again within a second: that is no outage.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// Words of the TLS library, the second for an authority that has the name of one that is trusted, and what to do.
const UNTRUSTED: [&str; 2] = ["UnknownIssuer", "BadSignature"];
const TRUST_IT: &str = "; name the authority that signed it in settings.launchdarkly.ca_file";

/// The state of the connection, and who waits for news.
pub(super) struct Link {
    state: Mutex<State>,
    news: Notify,
}

struct State {
    is_up: bool,
    /// Since when that is so.
    since: Instant,
    /// Why it is not up.
    why: String,
    /// When the SDK last tried to connect.
    tried: Instant,
}

impl Default for Link {
    fn default() -> Self {
        let now = Instant::now();
        let why = "it has not sent its flags yet".to_owned();
        Link { state: Mutex::new(State { is_up: false, since: now, why, tried: now }), news: Notify::new() }
    }
}

impl Link {
    /// Tells whoever waits that there is something to look at.
    pub(super) fn changed(&self) {
        self.news.notify_one();
    }

    /// Waits until there is something to look at. One waits at a time.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Why the connection is away; none while it is up, and for [`GRACE`] after that.
    pub(super) fn away(&self) -> Option<String> {
        let state = self.state.lock();
        (!state.is_up && state.since.elapsed() >= GRACE).then(|| state.why.clone())
    }

    /// When [`Link::away`] may change by the passing of time alone.
    pub(super) fn grace_ends(&self) -> Option<Instant> {
        let state = self.state.lock();
        let ends = state.since + GRACE;
        (!state.is_up && ends > Instant::now()).then_some(ends)
    }

    /// For how long the connection has been away without an attempt to make one.
    pub(super) fn idle(&self) -> Duration {
        let state = self.state.lock();
        if state.is_up { Duration::ZERO } else { state.tried.elapsed() }
    }

    fn trying(&self) {
        self.state.lock().tried = Instant::now();
    }

    fn up(&self) {
        let now = Instant::now();
        *self.state.lock() = State { is_up: true, since: now, why: String::new(), tried: now };
        self.changed();
    }

    /// What happened last says most, but the outage began with the first of it.
    pub(super) fn down(&self, why: String) {
        let mut state = self.state.lock();
        if state.is_up {
            (state.is_up, state.since) = (false, Instant::now());
        }
        state.why = why;
        drop(state);
        self.changed();
    }

    /// Away without any grace.
    pub(super) fn refused(&self, why: String) {
        let mut state = self.state.lock();
        (state.is_up, state.why) = (false, why);
        state.since = state.since.min(Instant::now().checked_sub(GRACE).unwrap_or(state.since));
        drop(state);
        self.changed();
    }
}

/// The SDK's transport for its stream, watched by a [`Link`].
#[derive(Clone)]
pub(super) struct Watched<T> {
    inner: T,
    link: Arc<Link>,
    /// The answer that the SDK takes for final, when there was one.
    refused: watch::Sender<Option<String>>,
}

impl<T: HttpTransport> Watched<T> {
    pub(super) fn new(inner: T, link: Arc<Link>, refused: watch::Sender<Option<String>>) -> Self {
        Watched { inner, link, refused }
    }
}

impl<T: HttpTransport> HttpTransport for Watched<T> {
    fn request(&self, request: Request<Option<Bytes>>) -> ResponseFuture {
        let place = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let Watched { inner, link, refused } = self.clone();
        Box::pin(async move {
            let mut pause = FIRST_PAUSE;
            let answer = loop {
                link.trying();
                match inner.request(request.clone()).await {
                    Ok(answer) => break answer,
                    Err(error) => {
                        let why = with_causes(&error);
                        let is_untrusted = UNTRUSTED.iter().any(|word| why.contains(word));
                        link.down(format!("{place}: {why}{}", if is_untrusted { TRUST_IT } else { "" }));
                    }
                }
                let share = rand::rng().random_range(0.5..1.0);
                tokio::time::sleep(pause.mul_f64(share)).await;
                pause = LAST_PAUSE.min(pause * 2);
            };
            let status = answer.status();
            if status.is_success() {
                link.up();
                return Ok(answer.map(|body| -> ByteStream { Box::pin(Body { body, place, link }) }));
            }
            if is_final(status.as_u16()) {
                let meaning = match status.as_u16() {
                    401 | 403 => {
                        ": the SDK key is not valid there; is it the environment's key for servers, \"sdk-…\"?"
                    }
                    _ => ": is it LaunchDarkly, or a Relay Proxy?",
                };
                let why = format!("{place} answered {status}{meaning}");
                link.refused(why.clone());
                refused.send_replace(Some(why));
            } else {
                link.down(format!("{place} answered {status}"));
            }
            Ok(answer)
        })
    }
}

/// As the SDK decides it.
fn is_final(status: u16) -> bool {
    (400..500).contains(&status) && ![400, 408, 429].contains(&status)
}

/// A stream that says when it ends, by whatever cause.
struct Body {
    body: ByteStream,
    place: String,
    link: Arc<Link>,
}

impl Stream for Body {
    type Item = Result<Bytes, TransportError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.body.as_mut().poll_next(cx);
        match &polled {
            Poll::Ready(None) => self.link.down(format!("{} ended the stream", self.place)),
            Poll::Ready(Some(Err(error))) => self.link.down(format!("{}: {}", self.place, with_causes(error))),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }
}

/// The SDK's transport for reports of evaluations. After `closing`, no request takes longer than `within`, so that the SDK
/// can be closed.
#[derive(Clone)]
pub(super) struct Reports<T> {
    inner: T,
    closing: watch::Receiver<Option<Instant>>,
}

impl<T: HttpTransport> Reports<T> {
    /// `closing` is when all requests end.
    pub(super) fn new(inner: T, closing: watch::Receiver<Option<Instant>>) -> Self {
        Reports { inner, closing }
    }
}

impl<T: HttpTransport> HttpTransport for Reports<T> {
    fn request(&self, request: Request<Option<Bytes>>) -> ResponseFuture {
        let (answered, mut closing) = (self.inner.request(request), self.closing.clone());
        Box::pin(async move {
            let closed = async {
                // An error means that whoever would close is gone.
                let at = closing.wait_for(Option::is_some).await.ok().and_then(|at| *at);
                tokio::time::sleep_until(at.unwrap_or_else(Instant::now)).await;
            };
            tokio::select! {
                biased;
                () = closed => Err(timed_out()),
                answer = tokio::time::timeout(REPORT_WITHIN, answered) => answer.unwrap_or_else(|_| Err(timed_out())),
            }
        })
    }
}

fn timed_out() -> TransportError {
    TransportError::new(std::io::Error::from(std::io::ErrorKind::TimedOut))
}

/// An HTTP client as the SDK's own, with the TLS of the rest of weir, which trusts the system's authorities and these. It
/// honours HTTPS_PROXY and NO_PROXY.
pub(super) fn transport(authorities: Vec<CertificateDer<'static>>) -> Result<impl HttpTransport + use<>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new_with_extra_roots(authorities, provider.clone())
        .map_err(|error| format!("the system's certificates cannot be used: {error}"))?;
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_keepalive(Some(KEEPALIVE));
    http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(http);
    let builder = HyperTransport::builder().connect_timeout(CONNECT_WITHIN).read_timeout(SILENT_WITHIN);
    builder.build_with_connector(https).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers only from a time on, and notes when it was asked.
    #[derive(Clone)]
    struct Outage {
        until: Instant,
        asked: Arc<Mutex<Vec<Instant>>>,
    }

    impl HttpTransport for Outage {
        fn request(&self, _: Request<Option<Bytes>>) -> ResponseFuture {
            let now = Instant::now();
            self.asked.lock().push(now);
            let is_over = now >= self.until;
            Box::pin(async move {
                if !is_over {
                    return Err(TransportError::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)));
                }
                let body: ByteStream = Box::pin(futures_util::stream::pending());
                Ok(launchdarkly_sdk_transport::Response::new(body))
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_of_any_length_is_noticed_to_be_over_within_a_few_seconds() {
        let (until, asked) = (Instant::now() + Duration::from_secs(600), Arc::default());
        let (outage, link) = (Outage { until, asked: Arc::clone(&asked) }, Arc::<Link>::default());
        let (refused, _) = watch::channel(None);
        let answered = Watched::new(outage, link.clone(), refused).request(Request::new(None)).await;
        assert!(answered.is_ok() && link.away().is_none());
        assert!(until.elapsed() <= LAST_PAUSE, "{:?}", until.elapsed());
        let asked = asked.lock();
        let pauses: Vec<_> = asked.windows(2).map(|two| two[1].duration_since(two[0])).collect();
        assert!(pauses[0] <= FIRST_PAUSE && pauses.iter().all(|pause| *pause <= LAST_PAUSE), "{pauses:?}");
        assert!(asked.len() < 600 / 2, "and it is no storm: {}", asked.len());
    }
}
