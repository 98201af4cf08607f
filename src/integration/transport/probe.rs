//! Whether a host can be reached: a connection as any request would make it, TLS included, and no request on it.

use std::future::poll_fn;

use tokio::time::Instant;
use tower_service::Service;

use super::{Error, Request, Transport, root_cause};

impl Transport {
    /// Connects to the host of `url`; says where to, and how long it took.
    pub(in crate::integration) async fn probe(&self, url: &str) -> Result<String, Error> {
        let request = Request::get(url);
        let target = request.target().trim_start_matches("GET ").to_owned();
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            let problem = root_cause(&*error);
            Error::Connect { target: target.clone(), problem }
        };
        let built = request.build().map_err(|problem| Error::Invalid { target: target.clone(), problem })?;
        let mut connector = self.inner.connector.clone();
        let started = Instant::now();
        poll_fn(|cx| connector.poll_ready(cx)).await.map_err(failed)?;
        connector.call(built.uri().clone()).await.map_err(failed)?;
        Ok(format!("{target} takes connections, {:.1} ms", started.elapsed().as_secs_f64() * 1000.0))
    }
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
