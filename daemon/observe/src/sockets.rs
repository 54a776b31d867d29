//! TCP sockets as the kernel knows them: which ones listen, which one would take a connection, and in which
//! cgroup each was made. Asked by netlink's `sock_diag`, which needs no privilege.
//!
//! A socket keeps the cgroup of the process that made it, also when another process serves it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::OnceLock;

use berth_core::facts::{Listener, Listening, Named};
use berth_core::name::ModelName;

use crate::proc::{self, Groups};
use crate::published::{self, Forward};

mod netlink;

/// A TCP socket of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// The address it is bound to; `::` takes IPv4 connections too, unless `v6_only`.
    pub address: IpAddr,
    /// The port it is bound to.
    pub port: u16,
    /// Whether it listens; else it is one end of a connection.
    pub listens: bool,
    /// Whether it takes IPv6 connections only.
    pub v6_only: bool,
    /// The user that made it.
    pub uid: u32,
    /// Its inode, by which `/proc/PID/fd` shows who has it open; 0 while nobody has.
    pub inode: u32,
    /// The kernel's id of the cgroup in which it was made (`proc::cgroup_ids`); None from kernels before 5.8.
    pub cgroup_id: Option<u64>,
}

impl Socket {
    /// The fact that is told of it, given whose it is.
    pub fn as_fact(&self, owner: impl Fn(&Self) -> Option<ModelName>) -> Listener {
        let model = owner(self);
        let unit = self.cgroup_id.filter(|_| model.is_none()).and_then(proc::unit_of_cgroup);
        Listener { address: self.address, port: self.port, uid: self.uid, model, unit }
    }

    /// The processes that have it open, as far as this user may see them (root sees all).
    ///
    /// Reads the open files of every process: for an error's text, not for a poll.
    pub fn holders(&self) -> Vec<Named> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        self.held_by(processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
    }

    /// Those of these processes that have it open.
    fn held_by(&self, pids: impl Iterator<Item = u32>) -> Vec<Named> {
        let link = format!("socket:[{}]", self.inode);
        let has_it = |pid: &u32| {
            std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|files| {
                files.flatten().any(|file| {
                    std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == link.as_str())
                })
            })
        };
        pids.filter(|pid| self.inode != 0 && has_it(pid)).map(named).collect()
    }
}

/// A server's end of a connection whose client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned {
    /// Whether the server has read all that the client sent.
    pub is_read: bool,
}

/// The connections to a server's Unix socket at this path that it has not closed though their clients are gone: it may still
/// do what it was asked for. Those that it has not accepted yet are one of them, since of these nothing more is known.
///
/// # Errors
/// As [`listeners`], where the kernel has no `unix_diag`.
pub fn abandoned(path: &Path) -> io::Result<Vec<Abandoned>> {
    netlink::Asker::new()?.abandoned(path)
}

/// By what a model's sockets at a port are known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Makers {
    cgroups: BTreeSet<u64>,
    groups: Groups,
    /// Ports that docker leads to them: looked for, among all processes, when a socket is nobody's else.
    led: OnceLock<Vec<Forward>>,
    uid: Option<u32>,
}

impl Makers {
    /// Those who run in these cgroups now.
    pub fn of(groups: &Groups) -> Self {
        let cgroups = proc::cgroup_ids(groups);
        Self { cgroups, groups: groups.clone(), led: OnceLock::new(), uid: groups.moved }
    }

    /// Whether they had sockets before they came there. Of a connection that is not accepted yet older kernels name no user
    /// then, so that the socket that listens is all there is to go by.
    pub fn were_moved(&self) -> bool {
        self.uid.is_some()
    }

    /// Whether the socket, at the model's port, was made by one of them.
    pub fn made(&self, socket: &Socket) -> bool {
        let led = |id| {
            let all = self.led.get_or_init(|| published::into(&self.groups));
            all.iter().any(|led| led.cgroup_id == id && led.leads(socket.address, socket.port))
        };
        self.uid == Some(socket.uid)
            || socket.cgroup_id.is_some_and(|id| self.cgroups.contains(&id) || led(id))
    }
}

/// Whose a socket is, of models in these cgroups. `port` is that of a model: one whose processes were moved is known at
/// that alone, and everybody else comes first.
pub fn owner<'a>(
    socket: &Socket,
    groups: &'a BTreeMap<ModelName, Groups>,
    port: impl Fn(&ModelName) -> Option<u16>,
) -> Option<&'a ModelName> {
    let made = |(_, groups): &(&ModelName, &Groups)| Makers::of(groups).made(socket);
    let moved =
        |(name, groups): &(&ModelName, &Groups)| groups.moved.is_some() && port(name) == Some(socket.port);
    let sure = groups.iter().filter(|(_, groups)| groups.moved.is_none());
    sure.chain(groups.iter().filter(moved)).find(made).map(|(name, _)| name)
}

fn named(pid: u32) -> Named {
    Named { pid, program: proc::program_of(pid).unwrap_or_default() }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of uid {}", SocketAddr::new(self.address, self.port), self.uid)
    }
}

/// The TCP sockets that listen, on this port or on any, IPv4 and IPv6.
///
/// # Errors
/// When the kernel can't be asked: no netlink socket may be made, or it has no `inet_diag`.
pub fn listeners(port: Option<u16>) -> io::Result<Vec<Socket>> {
    let mut found = both_families(|asker, family| asker.listeners(family, port.unwrap_or(0)))?;
    // The port in the question is a hint to the kernel.
    found.retain(|socket| socket.listens && port.is_none_or(|port| socket.port == port));
    Ok(found)
}

/// Where the processes of each model listen, given its cgroups; a port that docker leads to them counts
/// too. Of what only this machine reaches nobody is named.
///
/// # Errors
/// As [`listeners`], and when the kernel does not tell sockets' cgroups.
pub fn of_models(groups: &BTreeMap<ModelName, Groups>) -> io::Result<BTreeMap<ModelName, Vec<Listening>>> {
    let owners: BTreeMap<u64, &ModelName> = groups
        .iter()
        .flat_map(|(model, group)| proc::cgroup_ids(group).into_iter().map(move |id| (id, model)))
        .collect();
    let mut found: BTreeMap<ModelName, Vec<Listening>> = BTreeMap::new();
    if owners.is_empty() {
        return Ok(found);
    }
    let mut led: BTreeMap<(u64, SocketAddr), &ModelName> = BTreeMap::new();
    for (model, groups) in groups {
        led.extend(
            published::into(groups).into_iter().map(|forward| ((forward.cgroup_id, forward.at), model)),
        );
    }
    for socket in listeners(None)? {
        let address = SocketAddr::new(socket.address, socket.port);
        let Some(id) = socket.cgroup_id else {
            return Err(io::Error::other(
                "the kernel does not tell sockets' cgroups; Linux 5.8 or newer does",
            ));
        };
        let Some(model) = owners.get(&id).or_else(|| led.get(&(id, address))) else { continue };
        let mut processes = Vec::new();
        if !socket.address.is_loopback() {
            let of_unit = proc::cgroup_processes(&groups[*model]);
            let pids = || of_unit.value().into_iter().flat_map(BTreeMap::keys).copied();
            processes = socket.held_by(pids());
            if processes.is_empty() {
                // What another user's processes have open is not to be seen.
                processes = pids().map(named).collect();
            }
        }
        found.entry((*model).clone()).or_default().push(Listening { address, processes });
    }
    Ok(found)
}

/// How many connections there are to a port of sockets that were made by these, those that the server has not
/// accepted yet too.
///
/// # Errors
/// As [`listeners`].
pub fn clients(port: u16, makers: &Makers) -> io::Result<usize> {
    let found = both_families(|asker, family| asker.connected(family, port))?;
    Ok(found.iter().filter(|socket| !socket.listens && socket.port == port && makers.made(socket)).count())
}

fn both_families(
    mut list: impl FnMut(&mut netlink::Asker, netlink::Family) -> io::Result<Vec<Socket>>,
) -> io::Result<Vec<Socket>> {
    let mut asker = netlink::Asker::new()?;
    let mut found = list(&mut asker, netlink::Family::V4)?;
    match list(&mut asker, netlink::Family::V6) {
        Ok(more) => found.extend(more),
        // Machines without IPv6 have no such sockets.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(found)
}

/// The facts about those who listen on a port, given whose each is.
///
/// # Errors
/// As [`listeners`].
pub fn listeners_on(port: u16, owner: impl Fn(&Socket) -> Option<ModelName>) -> io::Result<Vec<Listener>> {
    Ok(listeners(Some(port))?.iter().map(|socket| socket.as_fact(&owner)).collect())
}

/// The socket that takes a connection to `server`, chosen by the kernel as it would for a real one; None where
/// nobody listens there. A wildcard server address means the loopback one, as it does for `connect`.
///
/// # Errors
/// As [`listeners`].
pub fn would_answer(server: SocketAddr) -> io::Result<Option<Socket>> {
    let nobody = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    answers(reachable(server), nobody)
}

/// The server's end of the connection from `client` to `server`; None when there is none on this machine.
///
/// # Errors
/// As [`listeners`].
pub fn answers(server: SocketAddr, client: SocketAddr) -> io::Result<Option<Socket>> {
    netlink::Asker::new()?.server_end(server, client)
}

/// The address by which a server bound to `address` is reached from this machine.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())),
        _ => address,
    }
}

#[cfg(test)]
#[path = "sockets/tests.rs"]
mod tests;
