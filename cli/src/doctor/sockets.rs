//! Ports: whether each model's is free, and whether models listen where others reach them and nobody declared it (S13).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use berth_core::config::Settings;
use berth_core::exposure;
use berth_core::facts::{Known, Listening, Named};
use berth_core::name::ModelName;
use berth_observe::proc::{self, Groups};
use berth_observe::scope::Scope;
use berth_observe::sockets::{self, Socket};
use berth_observe::systemd::{Reader, SCOPE, SERVICE, SystemdError};
use zbus::Connection;

use super::{Check, Finding, Ground, check};

/// A socket that listens, with whose it is.
#[derive(Debug, Clone)]
struct Listener {
    address: SocketAddr,
    /// The model that listens there; None for anybody else.
    model: Option<ModelName>,
    /// Who has it open, as far as that can be seen.
    by: Vec<Named>,
    /// The unit of the first of them.
    unit: Option<String>,
}

/// What was seen of them.
#[derive(Debug)]
pub(super) struct Sockets {
    settings: Settings,
    /// Where each running model's server was told to listen.
    told: BTreeMap<ModelName, SocketAddr>,
    /// The models whose unit runs.
    running: BTreeSet<ModelName>,
    /// Where models' processes listen.
    of_models: Known<BTreeMap<ModelName, Vec<Listening>>>,
    /// Who listens on declared ports.
    on_ports: Known<Vec<Listener>>,
    /// Whether berthd runs, and so says itself where it can't listen.
    berthd: bool,
}

pub(super) async fn look(ground: &Ground) -> Option<Sockets> {
    let settings = ground.settings.value()?.clone();
    let groups = groups(ground, &settings).await;
    let of_models = match &groups {
        Known::Value(groups) => known(sockets::of_models(groups)),
        Known::Unknown(why) => Known::Unknown(why.clone()),
    };
    let running = groups.value().into_iter().flatten();
    let running =
        running.filter(|(_, group)| !group.paths.is_empty()).map(|(model, _)| model.clone()).collect();
    let berthd = ground.berthd.is_ok();
    let on_ports = match &groups {
        Known::Value(groups) => on_ports(&ports(&settings, berthd), groups),
        Known::Unknown(why) => Known::Unknown(why.clone()),
    };
    Some(Sockets { told: told(ground), settings, running, of_models, on_ports, berthd })
}

/// The cgroups of each model; none where it does not run.
async fn groups(ground: &Ground, settings: &Settings) -> Known<BTreeMap<ModelName, Groups>> {
    let bus = match &ground.bus {
        Known::Value(bus) => bus,
        Known::Unknown(why) => return Known::Unknown(why.clone()),
    };
    let mut groups = BTreeMap::new();
    // What runs under settings that nobody declared is known to berthd alone.
    let placed = ground.berthd.iter().flat_map(|status| status.placements.iter().map(|placed| &placed.model));
    let names: BTreeSet<&ModelName> = settings.models.keys().chain(placed).collect();
    for name in names {
        let mut own = match Reader::of(bus, &name.unit()).get::<String>(SERVICE, "ControlGroup").await {
            Ok(group) => Groups::of(group),
            Err(error) => return Known::Unknown(error.to_string()),
        };
        own.paths.extend(Some(proc::slice_of(name)).filter(|slice| proc::cgroup_id(slice).is_some()));
        let before = settings.models.get(name).and_then(|model| model.replaces.as_ref());
        let group = match before {
            Some(unit) if own.paths.is_empty() => match predecessor(bus, unit).await {
                Ok(groups) => groups,
                Err(error) => return Known::Unknown(error.to_string()),
            },
            _ => own,
        };
        groups.insert(name.clone(), group);
    }
    Known::Value(groups)
}

/// The cgroups of the unit that a model replaces; none where it does not run.
async fn predecessor(bus: &Connection, unit: &str) -> Result<Groups, SystemdError> {
    let is_scope = unit.rsplit('.').next() == Some("scope");
    let kind = if is_scope { SCOPE } else { SERVICE };
    let groups = match Reader::of(bus, unit).get(kind, "ControlGroup").await {
        Err(SystemdError::NoSuchUnit { .. } | SystemdError::Refused { .. }) => Groups::default(),
        read => Groups::of(read?),
    };
    let first = proc::cgroup_processes(&groups).value().and_then(|all| all.keys().next().copied());
    Ok(Groups { moved: first.filter(|_| is_scope).and_then(proc::uid_of), ..groups })
}

/// As berthd says, or as it has written down.
fn told(ground: &Ground) -> BTreeMap<ModelName, SocketAddr> {
    if let Ok(status) = &ground.berthd {
        let of =
            |model: &berth_core::report::ModelStatus| Some((model.name.clone(), model.address.parse().ok()?));
        return status.models.iter().filter_map(of).collect();
    }
    let claims = ground.state.value().into_iter().flat_map(|state| &state.claims);
    claims.filter_map(|(model, claim)| Some((model.clone(), claim.address?))).collect()
}

fn known<T>(read: std::io::Result<T>) -> Known<T> {
    read.map_or_else(
        |error| Known::Unknown(format!("the kernel does not say who listens: {error}")),
        Known::Value,
    )
}

/// Who is to listen where: models, and berthd where it does not run and so can't say it itself.
fn ports(settings: &Settings, berthd: bool) -> Vec<(Option<&ModelName>, SocketAddr)> {
    let models = settings.models.values().filter(|model| !model.retired);
    let models = models.map(|model| (Some(&model.name), SocketAddr::new(model.host, model.port)));
    let own = settings.proxy.listen.iter().chain(&settings.http.listen).filter(|_| !berthd);
    models.chain(own.map(|address| (None, *address))).collect()
}

fn on_ports(
    wanted: &[(Option<&ModelName>, SocketAddr)],
    groups: &BTreeMap<ModelName, Groups>,
) -> Known<Vec<Listener>> {
    let port = |name: &ModelName| {
        let of = |(model, address): &(Option<&ModelName>, SocketAddr)| {
            (*model == Some(name)).then(|| address.port())
        };
        wanted.iter().find_map(of)
    };
    let ports: BTreeSet<u16> = wanted.iter().map(|(_, address)| address.port()).collect();
    let listener = |socket: Socket| {
        let model = sockets::owner(&socket, groups, port).cloned();
        let address = SocketAddr::new(socket.address, socket.port);
        let by = if model.is_some() { Vec::new() } else { socket.holders() };
        let unit = by.first().and_then(|process| proc::describe(process.pid)?.unit);
        Listener { address, model, by, unit }
    };
    let all = match known(sockets::listeners(None)) {
        Known::Value(all) => all,
        Known::Unknown(why) => return Known::Unknown(why),
    };
    Known::Value(all.into_iter().filter(|socket| ports.contains(&socket.port)).map(listener).collect())
}

pub(super) fn judge(sockets: Option<&Sockets>) -> Vec<Check> {
    // Without a configuration nothing is declared, which its check says.
    let Some(sockets) = sockets else { return Vec::new() };
    vec![
        check("ports", taken(sockets)),
        check("listening sockets", exposed(sockets).into_iter().chain(past_keys(sockets))),
    ]
}

fn taken(sockets: &Sockets) -> Vec<Finding> {
    let listeners = match &sockets.on_ports {
        Known::Value(listeners) => listeners,
        Known::Unknown(why) => {
            let text = format!("whether ports are free can't be told: {why}");
            return vec![Finding::unknown("port_taken", "", text).next("sudo ss -ltnp")];
        }
    };
    let mut found = Vec::new();
    for (model, wanted) in ports(&sockets.settings, sockets.berthd) {
        if model.is_some_and(|model| sockets.running.contains(model)) {
            continue;
        }
        // systemd keeps berthd's sockets while it does not run; two models may share a port, and never run at once.
        let other = |listener: &&Listener| {
            let systemds = listener.unit.as_ref() == Some(&Scope::this().qualified("init.scope"));
            meets(listener.address, wanted) && listener.model.is_none() && !(model.is_none() && systemds)
        };
        let Some(other) = listeners.iter().find(other) else { continue };
        let by: Vec<String> = other.by.iter().map(Named::to_string).collect();
        let by =
            if by.is_empty() { "a process that can't be seen from here".to_owned() } else { by.join(", ") };
        let (who, next) = match model {
            Some(model) => (model.to_string(), format!("end it, or give {model} another `port`")),
            None => ("berthd".to_owned(), "end it, or name another in `listen` in berth.toml".to_owned()),
        };
        let text = format!("the port of {who}, {wanted}, is taken: {by} listens at {}", other.address);
        let of = other.unit.as_ref().map(|unit| format!("it is of {unit}"));
        found.push(Finding::error("port_taken", &who, text).shown_by(of).next(next));
    }
    found
}

/// Whether a socket at `there` keeps another from `wanted`.
fn meets(there: SocketAddr, wanted: SocketAddr) -> bool {
    let any = |address: IpAddr| address.is_unspecified();
    let same_family = there.is_ipv4() == wanted.is_ipv4();
    let both = there.ip() == wanted.ip()
        || (same_family && (any(there.ip()) || any(wanted.ip())))
        // One of IPv6 that is bound to all takes connections of IPv4 too.
        || (there.is_ipv6() && any(there.ip()))
        || (wanted.is_ipv6() && any(wanted.ip()));
    both && there.port() == wanted.port()
}

fn exposed(sockets: &Sockets) -> Vec<Finding> {
    let of_models = match &sockets.of_models {
        Known::Value(of_models) => of_models,
        Known::Unknown(why) => {
            let text = format!("where models listen can't be told: {why}");
            return vec![Finding::unknown("exposed", "", text).next("sudo ss -ltnp")];
        }
    };
    let found = of_models.iter().filter_map(|(name, listening)| {
        let model = sockets.settings.model(name)?;
        let exposure = exposure::of(&model, sockets.told.get(name).copied(), listening)?;
        Some(Finding::warning("exposed", name, exposure.text).next(exposure.next))
    });
    found.collect()
}

/// Models that others reach as declared, although the proxy asks them for a key.
fn past_keys(sockets: &Sockets) -> Vec<Finding> {
    if sockets.settings.proxy.keys.is_empty() {
        return Vec::new();
    }
    let models = sockets.settings.models.values();
    let open = models.filter(|model| !model.retired && !model.exposed && !model.host.is_loopback());
    open.map(|model| {
        let (name, host) = (&model.name, model.host);
        let text = format!(
            "{name} is declared to listen at {host}: who reaches it there is asked for none of the keys of [proxy.keys]"
        );
        let next = format!(
            "let it listen at 127.0.0.1, or say that it is meant: exposed = true in {}",
            model.source.display()
        );
        Finding::warning("past_keys", name, text).next(next)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use berth_core::config::{SourceFile, Sources, load};

    use super::*;
    use crate::doctor::Severity;

    fn sockets() -> Sockets {
        let file = |name: &str, text: &str| SourceFile {
            path: format!("/etc/berth/models.d/{name}.toml").into(),
            text: text.into(),
        };
        let models = vec![
            file("genesis", "cmd = \"llama-server -m /g.gguf\"\nport = 8022\n"),
            file("aeon", "cmd = \"llama-server -m /a.gguf\"\nport = 8023\n"),
        ];
        Sockets {
            settings: load(&Sources { models, ..Sources::default() }, "tower").unwrap(),
            told: BTreeMap::new(),
            running: BTreeSet::new(),
            of_models: Known::Value(BTreeMap::new()),
            on_ports: Known::Value(Vec::new()),
            berthd: true,
        }
    }

    fn listener(address: &str, model: Option<&str>, by: u32) -> Listener {
        let unit = if by == 1 { "init.scope" } else { "nginx.service" };
        Listener {
            address: address.parse().unwrap(),
            model: model.map(|name| name.parse().unwrap()),
            by: vec![Named { pid: by, program: "nginx".into() }],
            unit: Some(unit.into()),
        }
    }

    #[test]
    fn a_port_that_another_has_is_named_with_who_has_it() {
        let mut seen = sockets();
        let with = |seen: &mut Sockets, listener| {
            seen.on_ports = Known::Value(vec![listener]);
            taken(seen).into_iter().map(|finding| finding.text).collect::<Vec<_>>()
        };
        assert_eq!(
            with(&mut seen, listener("0.0.0.0:8022", None, 7)),
            ["the port of genesis, 127.0.0.1:8022, is taken: nginx (pid 7) listens at 0.0.0.0:8022"]
        );
        assert_eq!(with(&mut seen, listener("10.0.0.1:8022", None, 7)).len(), 0);
        assert_eq!(with(&mut seen, listener("[::]:8022", None, 7)).len(), 1);
        assert_eq!(with(&mut seen, listener("127.0.0.1:8022", Some("aeon"), 7)).len(), 0);
        seen.running.insert("genesis".parse().unwrap());
        assert_eq!(with(&mut seen, listener("0.0.0.0:8022", None, 7)).len(), 0);
        // berthd's own ports: while it runs it says so itself, and systemd may keep its sockets while it doesn't.
        assert_eq!(with(&mut seen, listener("127.0.0.1:8010", None, 7)).len(), 0);
        seen.berthd = false;
        assert_eq!(with(&mut seen, listener("127.0.0.1:8010", None, 7)).len(), 1);
        assert_eq!(with(&mut seen, listener("127.0.0.1:8010", None, 1)).len(), 0);
    }

    #[test]
    fn a_model_that_is_declared_open_beside_keys_is_a_hole() {
        let with = |main: &str, model: &str| {
            let main = SourceFile { path: "/etc/berth/berth.toml".into(), text: main.into() };
            let text = format!("cmd = \"llama-server -m /g.gguf --host 0.0.0.0\"\n{model}");
            let models = vec![SourceFile { path: "/etc/berth/models.d/genesis.toml".into(), text }];
            let sources = Sources { main: Some(main), models, ..Sources::default() };
            past_keys(&Sockets { settings: load(&sources, "tower").unwrap(), ..sockets() }).len()
        };
        let keys = format!("[proxy.keys.frank]\nsha256 = \"{}\"\n", "a".repeat(64));
        assert_eq!(
            (with(&keys, ""), with(&keys, "exposed = true\n"), with("node = \"tower\"\n", "")),
            (1, 0, 0)
        );
    }

    #[test]
    fn what_listens_more_widely_is_found_as_berthd_finds_it() {
        let mut seen = sockets();
        let wide = Listening {
            address: "0.0.0.0:8022".parse().unwrap(),
            processes: vec![Named { pid: 812, program: "llama-server".into() }],
        };
        seen.of_models = Known::Value(BTreeMap::from([("genesis".parse().unwrap(), vec![wide])]));
        let found = exposed(&seen);
        assert_eq!(
            (found.len(), found[0].code.as_str(), found[0].severity),
            (1, "exposed", Severity::Warning)
        );
        assert!(found[0].text.starts_with("genesis listens at 0.0.0.0:8022 by llama-server (pid 812)"));
        seen.told.insert("genesis".parse().unwrap(), "0.0.0.0:8022".parse().unwrap());
        assert_eq!(exposed(&seen), []);
        seen.of_models = Known::Unknown("no netlink".into());
        seen.on_ports = Known::Unknown("no netlink".into());
        let found: Vec<Finding> = judge(Some(&seen)).into_iter().flat_map(|check| check.findings).collect();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|finding| finding.severity == Severity::Unknown));
    }
}
