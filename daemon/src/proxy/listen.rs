//! The proxy's listening sockets. They outlive berthd: over a restart systemd keeps them, and with them every client that
//! connects meanwhile.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use listenfd::ListenFd;
use nix::sys::socket::{setsockopt, sockopt};
use sd_notify::NotifyState;
use tokio::net::TcpSocket;

/// How many clients may have connected that were not taken in yet.
const BACKLOG: u32 = 1024;

/// The sockets that an earlier berthd left, as far as they are still wanted.
pub(super) struct Kept(Vec<TcpListener>);

impl Kept {
    /// No socket was kept, or all are taken.
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    /// Takes them over; what listens at none of these addresses is closed.
    pub(super) fn take(addresses: &[SocketAddr]) -> Self {
        let (wanted, others): (Vec<TcpListener>, _) = left_behind()
            .into_iter()
            .partition(|listener| listener.local_addr().is_ok_and(|at| addresses.contains(&at)));
        for address in others.iter().filter_map(|listener| listener.local_addr().ok()) {
            tracing::info!(%address, "the proxy no longer listens here");
            let name = name(address);
            _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]);
        }
        Self(wanted)
    }

    /// The socket that listens at this address: a kept one, or a new one that systemd is to keep. An address that is not
    /// there yet, as one of a network that comes up later, is no error.
    pub(super) fn listener(&mut self, address: SocketAddr) -> io::Result<TcpListener> {
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
    format!("proxy-{address}").replace(':', "-")
}
