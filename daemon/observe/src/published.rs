//! Ports of this machine that docker leads into the containers of models.
//!
//! Such a port's socket is no model's: docker's daemon keeps a process for each, in its own cgroup. Where that leads to it
//! says on its command line, and which addresses a container has the kernel tells of any process in it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;

use procfs::process::Process;

use crate::proc::{self, Groups};

/// The program that docker keeps for a published port.
const PROXY: &str = "docker-proxy";

/// A port that leads into a model's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where it is on this machine.
    pub at: SocketAddr,
    /// The kernel's id of the cgroup in which its socket was made.
    pub cgroup_id: u64,
}

impl Forward {
    /// Whether a socket at this address is its, or one end of a connection to it.
    pub fn leads(&self, address: IpAddr, port: u16) -> bool {
        self.at.port() == port && (self.at.ip() == address || self.at.ip().is_unspecified())
    }
}

/// The ports that lead into containers of these cgroups.
pub fn into(groups: &Groups) -> Vec<Forward> {
    let paths = groups.paths.iter().filter(|group| proc::is_slice(group)).cloned().collect();
    let inside = proc::cgroup_processes(&Groups { paths, moved: None });
    // All processes of a container have its addresses, and a model has one container.
    let addresses =
        inside.value().into_iter().flat_map(|processes| processes.keys()).find_map(|pid| addresses(*pid));
    let Some(addresses) = addresses else { return Vec::new() };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let forwards = pids.filter_map(|pid| {
        let (at, to) = forward(pid)?;
        let cgroup_id = proc::cgroup_id(&proc::control_group_of(pid)?)?;
        addresses.contains(&to).then_some(Forward { at, cgroup_id })
    });
    forwards.collect()
}

/// Where a process of docker's leads from and to; None for any other process. Only root's is believed.
fn forward(pid: u32) -> Option<(SocketAddr, IpAddr)> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if name.trim_end() != PROXY || std::fs::metadata(format!("/proc/{pid}")).ok()?.uid() != 0 {
        return None;
    }
    ends(&Process::new(i32::try_from(pid).ok()?).ok()?.cmdline().ok()?)
}

fn ends(command: &[String]) -> Option<(SocketAddr, IpAddr)> {
    let value = |name: &str| command.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str());
    if value("-proto") != Some("tcp") {
        return None;
    }
    let at = SocketAddr::new(value("-host-ip")?.parse().ok()?, value("-host-port")?.parse().ok()?);
    Some((at, value("-container-ip")?.parse().ok()?))
}

/// The addresses of a process's network but its loopback ones; None when it is gone.
fn addresses(pid: u32) -> Option<BTreeSet<IpAddr>> {
    let v4 = std::fs::read_to_string(format!("/proc/{pid}/net/fib_trie")).ok()?;
    let v6 = std::fs::read_to_string(format!("/proc/{pid}/net/if_inet6")).unwrap_or_default();
    let mut found = local_v4(&v4);
    found.extend(v6.lines().filter_map(|line| {
        let digits = u128::from_str_radix(line.split_whitespace().next()?, 16).ok()?;
        Some(IpAddr::V6(digits.into()))
    }));
    found.retain(|address| !address.is_loopback());
    Some(found)
}

/// In the routes' tree an address stands above the line that says that it is the network's own.
fn local_v4(trie: &str) -> BTreeSet<IpAddr> {
    let lines: Vec<&str> = trie.lines().map(str::trim).collect();
    let own = lines.windows(2).filter(|pair| pair[1] == "/32 host LOCAL");
    own.filter_map(|pair| pair[0].strip_prefix("|-- ")?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_proxy_s_command_line_says_where_it_leads() {
        let line = "/usr/sbin/docker-proxy -proto tcp -host-ip 127.0.0.1 -host-port 8022 -container-ip 172.17.0.2 \
                    -container-port 8000";
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let expected = ("127.0.0.1:8022".parse().unwrap(), "172.17.0.2".parse().unwrap());
        assert_eq!(ends(&words(line)), Some(expected));
        assert_eq!(ends(&words(&line.replace("tcp", "udp"))), None);
        assert_eq!(ends(&words(&line.replace("127.0.0.1", "::"))).unwrap().0.to_string(), "[::]:8022");
        assert_eq!(ends(&words("docker-proxy -proto tcp")), None);
    }

    #[test]
    fn another_port_of_docker_s_is_not_the_model_s() {
        let leads = |at: &str, socket: &str| {
            let socket: SocketAddr = socket.parse().unwrap();
            Forward { at: at.parse().unwrap(), cgroup_id: 1 }.leads(socket.ip(), socket.port())
        };
        assert!(leads("127.0.0.1:8022", "127.0.0.1:8022"));
        assert!(leads("0.0.0.0:8022", "10.0.0.1:8022"));
        assert!(!leads("127.0.0.1:8022", "10.0.0.1:8022"));
        assert!(!leads("0.0.0.0:8022", "10.0.0.1:8023"));
    }

    #[test]
    fn a_network_s_own_addresses_are_told_from_its_routes() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n           |-- 127.0.0.1\n              \
                    /32 host LOCAL\n           |-- 172.17.0.0\n              /16 link UNICAST\n           |-- 172.17.0.2\n              \
                    /32 host LOCAL\n        |-- 172.17.255.255\n           /32 link BROADCAST\n";
        assert_eq!(local_v4(trie), ["127.0.0.1", "172.17.0.2"].map(|a| a.parse().unwrap()).into());
        let own = addresses(std::process::id()).unwrap();
        assert!(own.iter().all(|address| !address.is_loopback()), "{own:?}");
        assert!(into(&Groups::of("/no/such.slice".to_owned())).is_empty());
    }
}
