//! A cable between a client and a server that a test can pull out, with all that is on it, and plug in again; or that
//! swallows what is sent over it, as a firewall does that forgot the connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use weir::lifecycle::Lifecycle;

use super::house::LONG;

/// It must be unplugged before the test ends.
pub struct Cable {
    address: SocketAddr,
    target: SocketAddr,
    carried: Lifecycle,
    swallows: Arc<AtomicBool>,
}

impl Cable {
    /// A plugged one, with a port of its own that leads to `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let cable = Cable { address, target, carried: Lifecycle::new(), swallows: Arc::default() };
        cable.carry(listener);
        cable
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Whether bytes vanish from now on, in both directions. Connections stay open, and new ones can be made.
    pub fn swallow(&self, swallows: bool) {
        self.swallows.store(swallows, Ordering::SeqCst);
    }

    /// Cuts every connection; none can be made from now on.
    pub async fn unplug(&mut self) {
        self.carried.stop(LONG).await.expect("all connections end");
    }

    /// Connections can be made again, at the same address.
    pub async fn plug(&mut self) {
        self.carried = Lifecycle::new();
        self.carry(TcpListener::bind(self.address).await.expect("the port is still free"));
    }

    fn carry(&self, listener: TcpListener) {
        let (carried, target, token) = (self.carried.clone(), self.target, self.carried.token());
        let swallows = self.swallows.clone();
        self.carried.spawn("cable", async move {
            while let Some(accepted) = token.run_until_cancelled(listener.accept()).await {
                let (near, _) = accepted.expect("a connection");
                let (token, swallows) = (token.clone(), swallows.clone());
                carried.spawn("carried connection", async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                    let there = pass(near_read, far_write, &swallows);
                    let back = pass(far_read, near_write, &swallows);
                    token.run_until_cancelled(async { tokio::join!(there, back) }).await;
                });
            }
        });
    }
}

/// Until one side ends; then the other one is told.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallows: &AtomicBool) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if !swallows.load(Ordering::SeqCst) && to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
    // It may be gone already.
    let _ = to.shutdown().await;
}
