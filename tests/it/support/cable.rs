//! A cable between a client and a server that a test can pull out, with all that is on it, and plug in again.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use weir::lifecycle::Lifecycle;

use super::house::LONG;

/// It must be unplugged before the test ends.
pub struct Cable {
    address: SocketAddr,
    target: SocketAddr,
    carried: Lifecycle,
}

impl Cable {
    /// A plugged one, with a port of its own that leads to `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let cable = Cable { address, target, carried: Lifecycle::new() };
        cable.carry(listener);
        cable
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
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
        self.carried.spawn("cable", async move {
            while let Some(accepted) = token.run_until_cancelled(listener.accept()).await {
                let (mut near, _) = accepted.expect("a connection");
                let token = token.clone();
                carried.spawn("carried connection", async move {
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    let carry = tokio::io::copy_bidirectional(&mut near, &mut far);
                    // Whichever side ends, the other one is told.
                    let _ = token.run_until_cancelled(carry).await;
                });
            }
        });
    }
}
