//! A client's connection, beside what is read from it and written to it.

use std::future::pending;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::Interest;

/// Who is connected.
#[derive(Debug)]
pub(super) struct Client {
    /// From where.
    pub(super) address: SocketAddr,
    /// Another handle of its socket.
    socket: TcpStream,
    /// Its request waits for a model. It has one at a time.
    waits: AtomicBool,
}

/// Its request waits, until this is dropped.
pub(super) struct Waits<'c>(&'c Client);

impl Client {
    /// The client at the other end of this socket.
    pub(super) fn new(socket: &TcpStream, address: SocketAddr) -> io::Result<Self> {
        Ok(Self { address, socket: socket.try_clone()?, waits: AtomicBool::new(false) })
    }

    /// Comes back when it has hung up, also while nothing is read of what it sends.
    pub(super) async fn hangs_up(&self) {
        let socket = self.socket.try_clone().and_then(tokio::net::TcpStream::from_std);
        if let Ok(socket) = socket {
            while let Ok(ready) = socket.ready(Interest::READABLE).await {
                if ready.is_read_closed() {
                    return;
                }
                // What it sends is not read here; the next that comes is news again.
                _ = socket.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
            }
        }
        // The kernel does not say; that it is gone is seen when it is answered.
        pending::<()>().await;
    }

    /// Its request begins to wait.
    pub(super) fn waits(&self) -> Waits<'_> {
        self.waits.store(true, Ordering::Relaxed);
        Waits(self)
    }

    /// Whether its request waits.
    pub(super) fn is_waiting(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waits.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// A client, and its own end.
    pub(in crate::proxy) fn connected() -> (Client, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, address) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        (Client::new(&socket, address).unwrap(), own)
    }

    #[tokio::test]
    async fn a_client_that_hangs_up_is_seen_behind_what_it_sent() {
        let (client, mut own) = connected();
        own.write_all(b"POST / HTTP/1.1").unwrap();
        assert!(timeout(Duration::from_millis(50), client.hangs_up()).await.is_err());
        own.write_all(b"\r\n").unwrap();
        assert!(timeout(Duration::from_millis(50), client.hangs_up()).await.is_err());
        drop(own);
        client.hangs_up().await;
    }
}
