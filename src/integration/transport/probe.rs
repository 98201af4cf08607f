//! Whether a host can be reached: a connection as any request would make it, TLS included, and no request on it.
//!
//! The client has no call for that. So a layer around its connector, in a client of the probe's own, turns each finished
//! connection into the error [`Reached`], which ends the exchange before a byte of a request is written.

use std::error::Error as StdError;

use tokio::time::Instant;
use tower::BoxError;
use tower::util::MapResultLayer;

use super::{Error, Request, Transport, builder, root_cause};

/// The connection was made, and that was all.
#[derive(Debug, thiserror::Error)]
#[error("reached")]
struct Reached;

impl Transport {
    /// Connects to the host of `url`; says where to, and how long it took.
    pub(in crate::integration) async fn probe(&self, url: &str) -> Result<String, Error> {
        let request = Request::get(url);
        let target = request.target().trim_start_matches("GET ").to_owned();
        let failed = |error: &reqwest::Error| Error::Connect { target: target.clone(), problem: root_cause(error) };
        let built = request.build().map_err(|problem| Error::Invalid { target: target.clone(), problem })?;
        let client = builder(&self.inner.config).connector_layer(MapResultLayer::new(stop_here));
        let client = client.build().map_err(|error| failed(&error))?;
        let started = Instant::now();
        match client.execute(built).await {
            Err(error) if !was_reached(&error) => Err(failed(&error)),
            _ => Ok(format!("{target} takes connections, {:.1} ms", started.elapsed().as_secs_f64() * 1000.0)),
        }
    }
}

fn stop_here<C>(connected: Result<C, BoxError>) -> Result<C, BoxError> {
    connected.and_then(|_connection| Err(Reached.into()))
}

fn was_reached(error: &reqwest::Error) -> bool {
    let first: Option<&(dyn StdError + 'static)> = error.source();
    std::iter::successors(first, |error| (**error).source()).any(|error| error.is::<Reached>())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::integration::transport::Config;
    use crate::telemetry::Telemetry;

    fn transport() -> Transport {
        let config = Config { connect_timeout: Duration::from_secs(5), ..Config::default() };
        Transport::new("bank", "integrations.bank", &config, &Telemetry::new().expect("recorder")).expect("valid")
    }

    #[tokio::test]
    async fn it_connects_and_says_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let transport = transport();
        let heard = async {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).await.expect("its end");
            bytes
        };
        let (reached, heard) = tokio::join!(transport.probe(&url), heard);
        assert!(reached.expect("reached").contains("takes connections"));
        assert!(heard.is_empty(), "{heard:?}");
    }

    #[tokio::test]
    async fn who_does_not_listen_or_speak_tls_is_not_reached() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let transport = transport();
        let hang_up = async { drop(listener.accept().await.expect("a connection")) };
        let url = format!("https://{address}/v1");
        let (reached, ()) = tokio::join!(transport.probe(&url), hang_up);
        let error = reached.expect_err("no TLS").to_string();
        assert!(error.starts_with(&format!("https://{address}: no connection: ")), "{error}");
        drop(listener);
        let error = transport.probe(&format!("http://{address}")).await.expect_err("nobody listens").to_string();
        assert!(error.contains("refused"), "{error}");
    }
}
