//! The questions to the kernel's `sock_diag` and its answers, byte by byte (`linux/inet_diag.h`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::{Abandoned, Socket};

const HEADER: usize = 16;
const REQUEST: usize = 56;
/// `struct unix_diag_req` (`linux/unix_diag.h`), and the fixed part of its answer, `struct unix_diag_msg`.
const LOCAL_REQUEST: usize = 24;
const LOCAL_ANSWER: usize = 16;
/// The fixed part of an answer, `struct inet_diag_msg`; attributes follow.
const ANSWER: usize = 72;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// The list changed while it was read, so an entry may be missing.
const NLM_F_DUMP_INTR: u16 = 0x10;

const IPPROTO_TCP: u8 = 6;
const TCP_ESTABLISHED: u8 = 1;
const TCP_LISTEN: u8 = 10;
const AF_UNIX: u8 = 1;
const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_RQLEN: u32 = 0x10;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_SHUTDOWN: u16 = 6;
/// A stream on which nothing goes either way: its other end is gone. One that only sends no more still listens.
const SHUTDOWN_MASK: u8 = 3;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// The kernel answers at once; this only keeps a fault from becoming a wait without end.
const DEADLINE_SECONDS: i64 = 2;

/// The family of the sockets asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Family {
    /// `AF_INET`.
    V4 = 2,
    /// `AF_INET6`.
    V6 = 10,
}

/// A netlink socket to ask by.
pub(super) struct Asker {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Asker {
    pub(super) fn new() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkSockDiag;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(DEADLINE_SECONDS))?;
        // The kernel never sends more than 32 KiB at once.
        Ok(Self { socket, sequence: 0, buffer: vec![0; 64 << 10] })
    }

    /// Every listening socket of a family, on this port or (0) on any.
    pub(super) fn listeners(&mut self, family: Family, port: u16) -> io::Result<Vec<Socket>> {
        self.list(family, TCP_LISTEN, port)
    }

    /// Every end of a connection of a family whose own port is this one.
    pub(super) fn connected(&mut self, family: Family, port: u16) -> io::Result<Vec<Socket>> {
        self.list(family, TCP_ESTABLISHED, port)
    }

    fn list(&mut self, family: Family, state: u8, port: u16) -> io::Result<Vec<Socket>> {
        let none = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let body = request(family, 1 << state, SocketAddr::new(none.ip(), port), none);
        self.dump(&body, parse)
    }

    /// The server's ends of the connections to the socket at this path whose clients are gone.
    pub(super) fn abandoned(&mut self, path: &Path) -> io::Result<Vec<Abandoned>> {
        let mut body = [0; LOCAL_REQUEST];
        body[0] = AF_UNIX;
        body[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        body[12..16].copy_from_slice(&(UDIAG_SHOW_NAME | UDIAG_SHOW_RQLEN).to_ne_bytes());
        let all = self.dump(&body, |answer| parse_local(answer, path))?;
        Ok(all.into_iter().flatten().collect())
    }

    fn dump<T>(&mut self, body: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        for _ in 0..10 {
            if let Some(found) = self.ask(NLM_F_REQUEST | NLM_F_DUMP, body, &parse)? {
                return Ok(found);
            }
        }
        Err(io::Error::other("the list of sockets changes faster than it can be read"))
    }

    /// The server's end of one connection, or else the socket that listens for it.
    pub(super) fn server_end(
        &mut self,
        server: SocketAddr,
        client: SocketAddr,
    ) -> io::Result<Option<Socket>> {
        let family = if server.is_ipv4() { Family::V4 } else { Family::V6 };
        match self.ask(NLM_F_REQUEST, &request(family, u32::MAX, server, client), parse) {
            Ok(found) => Ok(found.unwrap_or_default().pop()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One question and its whole answer; None when the list changed meanwhile.
    fn ask<T>(
        &mut self,
        flags_asked: u16,
        body: &[u8],
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Option<Vec<T>>> {
        self.sequence += 1;
        let length = HEADER + body.len();
        let mut question = Vec::with_capacity(length);
        question.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
        question.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        question.extend(flags_asked.to_ne_bytes());
        question.extend(self.sequence.to_ne_bytes());
        question.extend(0u32.to_ne_bytes());
        question.extend(body);
        let fd = self.socket.as_raw_fd();
        sendto(fd, &question, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;

        let (mut found, mut whole) = (Vec::new(), true);
        loop {
            let length = match recv(fd, &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(io::Error::other("sock_diag has not answered for 2 s")),
                Err(error) => return Err(error.into()),
            };
            let mut rest = &self.buffer[..length];
            while !rest.is_empty() {
                let (message, next) = split(rest).ok_or_else(cut_short)?;
                rest = next;
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let code = i32::from_ne_bytes(array(message.payload, 0).ok_or_else(cut_short)?);
                        if code < 0 {
                            return Err(io::Error::from_raw_os_error(-code));
                        }
                        return Ok(whole.then_some(found));
                    }
                    SOCK_DIAG_BY_FAMILY => found.push(parse(message.payload).ok_or_else(cut_short)?),
                    _ => {}
                }
                // An answer about one socket has no end mark.
                if flags_asked & NLM_F_DUMP == 0 {
                    return Ok(Some(found));
                }
            }
        }
    }
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "sock_diag's answer is cut short")
}

/// `struct inet_diag_req_v2`: `local` and `remote` as seen from the socket that is asked for.
fn request(family: Family, states: u32, local: SocketAddr, remote: SocketAddr) -> [u8; REQUEST] {
    let mut out = [0; REQUEST];
    out[0] = family as u8;
    out[1] = IPPROTO_TCP;
    out[4..8].copy_from_slice(&states.to_ne_bytes());
    out[8..10].copy_from_slice(&local.port().to_be_bytes());
    out[10..12].copy_from_slice(&remote.port().to_be_bytes());
    put_address(&mut out[12..28], local.ip());
    put_address(&mut out[28..44], remote.ip());
    // Index 44: any interface. From 48: no cookie, so whichever socket it is.
    out[48..56].fill(0xff);
    out
}

fn put_address(place: &mut [u8], address: IpAddr) {
    match address {
        IpAddr::V4(ip) => place[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => place.copy_from_slice(&ip.octets()),
    }
}

/// A netlink message.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// Cuts the first netlink message off the others.
fn split(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(array(bytes, 0)?)).ok()?;
    let message = Message {
        kind: u16::from_ne_bytes(array(bytes, 4)?),
        flags: u16::from_ne_bytes(array(bytes, 6)?),
        sequence: u32::from_ne_bytes(array(bytes, 8)?),
        payload: bytes.get(HEADER..length)?,
    };
    Some((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// `struct inet_diag_msg` and its attributes.
fn parse(answer: &[u8]) -> Option<Socket> {
    let address = match *answer.first()? {
        family if family == Family::V4 as u8 => IpAddr::V4(Ipv4Addr::from(array::<4>(answer, 8)?)),
        // A v6 socket bound to a mapped address is in truth a v4 one.
        _ => IpAddr::V6(Ipv6Addr::from(array::<16>(answer, 8)?)).to_canonical(),
    };
    let mut socket = Socket {
        address,
        port: u16::from_be_bytes(array(answer, 4)?),
        listens: *answer.get(1)? == TCP_LISTEN,
        v6_only: false,
        uid: u32::from_ne_bytes(array(answer, 64)?),
        inode: u32::from_ne_bytes(array(answer, 68)?),
        cgroup_id: None,
    };
    for (kind, value) in attributes(answer.get(ANSWER..)?)? {
        match kind {
            INET_DIAG_SKV6ONLY => socket.v6_only = *value.first()? != 0,
            INET_DIAG_CGROUP_ID => socket.cgroup_id = Some(u64::from_ne_bytes(array(value, 0)?)),
            _ => {}
        }
    }
    Some(socket)
}

/// `struct unix_diag_msg` and its attributes: a connection at this path whose client is or may be gone, or `Some(None)` for
/// another socket.
#[allow(clippy::option_option)]
fn parse_local(answer: &[u8], path: &Path) -> Option<Option<Abandoned>> {
    let (mut here, mut gone, mut unread) = (false, false, 0);
    for (kind, value) in attributes(answer.get(LOCAL_ANSWER..)?)? {
        match kind {
            UNIX_DIAG_NAME => here = value.strip_suffix(&[0]).unwrap_or(value) == path.as_os_str().as_bytes(),
            UNIX_DIAG_RQLEN => unread = u32::from_ne_bytes(array(value, 0)?),
            UNIX_DIAG_SHUTDOWN => gone = *value.first()? == SHUTDOWN_MASK,
            _ => {}
        }
    }
    // Connections that are not accepted yet are not listed, but counted in what is left to read of the socket that listens.
    let waits = *answer.get(2)? == TCP_LISTEN && unread > 0;
    Some((here && (gone || waits)).then_some(Abandoned { is_read: unread == 0 }))
}

/// The kind and value of each attribute; None where they are cut short.
fn attributes(mut rest: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut all = Vec::new();
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes(array(rest, 0)?));
        all.push((u16::from_ne_bytes(array(rest, 2)?), rest.get(4..length)?));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(all)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_cut_anywhere_are_no_socket_and_no_panic() {
        let mut whole = vec![0; ANSWER];
        whole[0] = Family::V4 as u8;
        whole[1] = TCP_LISTEN;
        whole[4..6].copy_from_slice(&8081u16.to_be_bytes());
        whole[8..12].copy_from_slice(&[127, 0, 0, 1]);
        whole.extend([12, 0, 21, 0]);
        whole.extend(77u64.to_ne_bytes());
        let socket = parse(&whole).unwrap();
        assert_eq!((socket.port, socket.cgroup_id), (8081, Some(77)));
        assert_eq!(socket.address.to_string(), "127.0.0.1");
        for length in (0..whole.len()).filter(|length| *length != ANSWER) {
            let cut = parse(&whole[..length]);
            assert!(cut.is_none_or(|socket| socket.cgroup_id.is_none()), "{length}");
        }
        // An attribute that claims to be longer than what is there, or shorter than its own head.
        whole[ANSWER] = 200;
        assert_eq!(parse(&whole), None);
        whole[ANSWER] = 1;
        assert_eq!(parse(&whole), None);
        assert!(split(&[0; 15]).is_none() && split(&[3; 40]).is_none());
    }
}
