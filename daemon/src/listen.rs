//! Listening sockets, of the proxy and of the control API. They outlive berthd: over a restart systemd keeps them, and with
//! them every client that connects meanwhile.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use listenfd::ListenFd;
use nix::sys::socket::{setsockopt, sockopt};
use sd_notify::NotifyState;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;

use crate::driver::Message;

/// How many clients may have connected that were not taken in yet.
const BACKLOG: u32 = 1024;
/// Between two tries to listen at an address that somebody else has.
const AGAIN: Duration = Duration::from_secs(2);

/// An address, and what listens there.
pub type Opened = (SocketAddr, io::Result<TcpListener>);

/// The sockets that an earlier berthd left, as far as they are still wanted.
pub struct Kept(Vec<TcpListener>);

impl Kept {
    /// No socket was kept, or all are taken.
    fn none() -> Self {
        Self(Vec::new())
    }

    /// Takes them over, once; what listens at none of these addresses is closed.
    pub fn take(addresses: &[SocketAddr]) -> Self {
        let (wanted, others): (Vec<TcpListener>, _) = left_behind()
            .into_iter()
            .partition(|listener| listener.local_addr().is_ok_and(|at| addresses.contains(&at)));
        for address in others.iter().filter_map(|listener| listener.local_addr().ok()) {
            tracing::info!(%address, "berthd no longer listens here");
            let name = name(address);
            _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]);
        }
        Self(wanted)
    }

    /// What listens at each of these addresses.
    pub fn listeners(&mut self, addresses: &[SocketAddr]) -> Vec<Opened> {
        addresses.iter().map(|at| (*at, self.listener(*at))).collect()
    }

    /// The socket that listens at this address: a kept one, or a new one that systemd is to keep. An address that is not
    /// there yet, as one of a network that comes up later, is no error.
    fn listener(&mut self, address: SocketAddr) -> io::Result<TcpListener> {
        let kept = self.0.iter().position(|listener| listener.local_addr().is_ok_and(|at| at == address));
        if let Some(at) = kept {
            return Ok(self.0.swap_remove(at));
        }
        let listener = bind(address)?;
        let name = name(address);
        // Started by hand there is no service manager to keep it.
        let told = [NotifyState::FdStore, NotifyState::FdName(&name)];
        _ = sd_notify::notify_with_fds(&told, &[listener.as_fd()]);
        Ok(listener)
    }
}

/// A listener at this address, which another process may have until later: the driver is told meanwhile.
pub async fn listening(
    address: SocketAddr,
    mut first: io::Result<TcpListener>,
    driver: mpsc::Sender<Message>,
) -> TcpListener {
    let mut said = false;
    loop {
        match first {
            Ok(listener) => {
                if said {
                    _ = driver.send(Message::Unheard(address, None)).await;
                }
                return listener;
            }
            Err(error) if !said => {
                said = true;
                // The driver ends last.
                _ = driver.send(Message::Unheard(address, Some(error.to_string()))).await;
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
        first = Kept::none().listener(address);
    }
}

/// What systemd kept.
fn left_behind() -> Vec<TcpListener> {
    let mut fds = ListenFd::from_env();
    let all = (0..fds.len()).filter_map(|at| fds.take_tcp_listener(at).ok().flatten());
    all.filter(|listener| listener.set_nonblocking(true).is_ok()).collect()
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    setsockopt(&socket.as_fd(), sockopt::IpFreebind, &true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// In the store; colons are not allowed there.
fn name(address: SocketAddr) -> String {
    format!("listen-{address}").replace(':', "-")
}
