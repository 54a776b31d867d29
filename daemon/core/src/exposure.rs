//! Exposure: whether a model's processes listen where other machines reach them and nobody declared it.

use std::net::{IpAddr, SocketAddr};

use crate::config::Model;
use crate::facts::{Listening, Named};

/// So many processes are named; a server may have dozens of workers.
const NAMED: usize = 3;

/// That a model listens more widely than declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// Where it listens, who does, and what is declared, in one sentence.
    pub text: String,
    /// What to do.
    pub next: String,
}

/// How `model` is exposed by the sockets on which its processes listen, if it is. `told` is the address that the server
/// that runs was told, where that is known: what is declared may have changed since.
pub fn of(model: &Model, told: Option<SocketAddr>, sockets: &[Listening]) -> Option<Exposure> {
    if model.exposed {
        return None;
    }
    let declared = told.unwrap_or_else(|| SocketAddr::new(model.host, model.port));
    // An engine that publishes a port at all addresses does so for IPv4 and IPv6.
    let published = model.container.as_ref().is_some_and(|container| container.port.is_some());
    let all = published && declared.ip().is_unspecified();
    let mut wider: Vec<&Listening> = sockets
        .iter()
        .filter(|socket| {
            !(is_declared(declared, socket.address) || all && socket.address.port() == declared.port())
        })
        .collect();
    wider.sort_by_key(|socket| socket.address);
    // Each thread of a server may have a socket of its own at the same address.
    wider.dedup_by_key(|socket| socket.address);
    if wider.is_empty() {
        return None;
    }
    let name = &model.name;
    let found: Vec<String> =
        wider.iter().map(|socket| format!("{}{}", socket.address, by(&socket.processes))).collect();
    let text = format!(
        "{name} listens at {}, where other machines may reach it; declared is {declared}",
        found.join(" and at ")
    );
    let next = format!(
        "let its server listen at {} alone and berthctl restart {name}; where it is meant: exposed = true in {}, then \
         berthctl reload",
        declared.ip(),
        model.source.display()
    );
    Some(Exposure { text, next })
}

/// Whether a socket is no wider than what is declared. Addresses of this machine alone always are.
fn is_declared(declared: SocketAddr, socket: SocketAddr) -> bool {
    let (wanted, is) = (declared.ip(), socket.ip());
    let covered = match (wanted, is) {
        // All of IPv4; one of IPv6 takes connections of both.
        (IpAddr::V4(all), IpAddr::V4(_)) if all.is_unspecified() => true,
        (IpAddr::V6(all), _) if all.is_unspecified() => true,
        _ => wanted == is,
    };
    is.is_loopback() || covered && declared.port() == socket.port()
}

/// " by python3 (pid 812)", or nothing where nobody can be named.
fn by(processes: &[Named]) -> String {
    let mut named: Vec<String> = processes.iter().take(NAMED).map(Named::to_string).collect();
    if processes.len() > NAMED {
        named.push(format!("{} more", processes.len() - NAMED));
    }
    match named.split_last() {
        None => String::new(),
        Some((last, [])) => format!(" by {last}"),
        Some((last, others)) => format!(" by {} or {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{self, SourceFile, Sources};

    fn model(declared: &str) -> Model {
        let text = format!("cmd = \"/opt/llama-server -m /m.gguf\"\nport = 8022\n{declared}\n");
        let models = vec![SourceFile { path: "/etc/berth/models.d/genesis.toml".into(), text }];
        let settings = config::load(&Sources { models, ..Sources::default() }, "tower").unwrap();
        settings.models.into_values().next().unwrap()
    }

    fn socket(address: &str, pids: &[u32]) -> Listening {
        let processes = pids.iter().map(|pid| Named { pid: *pid, program: "python3".into() }).collect();
        Listening { address: address.parse().unwrap(), processes }
    }

    fn exposed(declared: &str, sockets: &[&str]) -> bool {
        let sockets: Vec<Listening> = sockets.iter().map(|address| socket(address, &[])).collect();
        of(&model(declared), None, &sockets).is_some()
    }

    #[test]
    fn what_is_declared_and_what_this_machine_alone_reaches_exposes_nothing() {
        assert!(!exposed("", &[]));
        assert!(!exposed("", &["127.0.0.1:8022", "127.0.0.1:40111", "[::1]:8022", "127.3.0.1:1"]));
        assert!(!exposed("host = \"0.0.0.0\"", &["0.0.0.0:8022", "10.10.10.1:8022"]));
        assert!(!exposed("host = \"::\"", &["[::]:8022", "0.0.0.0:8022", "[fd00::1]:8022"]));
        assert!(!exposed("host = \"10.10.10.1\"", &["10.10.10.1:8022"]));
        assert!(!exposed("exposed = true", &["0.0.0.0:8022", "[::]:40111"]));
    }

    #[test]
    fn a_wider_address_and_another_port_are_exposed() {
        for wider in ["0.0.0.0:8022", "[::]:8022", "10.10.10.1:8022", "[fd00::1]:8022", "0.0.0.0:40111"] {
            assert!(exposed("", &["127.0.0.1:8022", wider]), "{wider}");
        }
        // Who declares all of IPv4 has said nothing of IPv6, and nothing of other ports.
        for wider in ["[::]:8022", "[fd00::1]:8022", "0.0.0.0:40111"] {
            assert!(exposed("host = \"0.0.0.0\"", &[wider]), "{wider}");
        }
        assert!(exposed("host = \"10.10.10.1\"", &["192.168.1.4:8022"]));
    }

    #[test]
    fn what_the_server_was_told_counts_until_it_is_restarted() {
        let open = model("host = \"0.0.0.0\"");
        let sockets = [socket("0.0.0.0:8022", &[7])];
        let told = "127.0.0.1:8022".parse().ok();
        assert!(of(&open, told, &sockets).is_some());
        assert!(of(&open, None, &sockets).is_none());
    }

    #[test]
    fn it_says_where_who_and_what_to_do() {
        let sockets = [
            socket("[::]:40111", &[812, 815, 816, 817, 818]),
            socket("0.0.0.0:8022", &[812]),
            socket("0.0.0.0:8022", &[812]),
        ];
        let exposure = of(&model(""), None, &sockets).unwrap();
        assert_eq!(
            exposure.text,
            "genesis listens at 0.0.0.0:8022 by python3 (pid 812) and at [::]:40111 by python3 (pid 812), \
             python3 (pid 815), python3 (pid 816) or 2 more, where other machines may reach it; declared is \
             127.0.0.1:8022"
        );
        assert_eq!(
            exposure.next,
            "let its server listen at 127.0.0.1 alone and berthctl restart genesis; where it is meant: \
             exposed = true in /etc/berth/models.d/genesis.toml, then berthctl reload"
        );
    }
}
