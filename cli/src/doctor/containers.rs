//! What models in containers need besides: an engine that answers and that the model's user may ask, and a unit that lets it
//! work.

use std::path::Path;
use std::time::Duration;

use berth_core::container::{Container, Engine};
use berth_core::facts::Known;
use berth_core::name::ModelName;
use berth_observe::scope::Scope;
use berth_observe::systemd::{Reader, SERVICE, SystemdError};
use serde::Deserialize;
use zbus::Connection;

use super::{Check, Finding, Ground, check};
use crate::access::{self, Identity, Want, Way};
use crate::client::{Client, Trouble};

/// Where docker is asked.
const SOCKET: &str = "/run/docker.sock";

/// How long docker may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What was seen of one model's engine.
#[derive(Debug)]
struct Seen {
    model: ModelName,
    container: Container,
    program: String,
    /// Whether its program is there.
    installed: bool,
    unit: Known<Unit>,
    /// The way to docker's socket.
    socket: Way,
    /// What docker says of itself; None for podman.
    docker: Option<Known<Docker>>,
    /// Whether the user of the unit has ranges of other users' ids, and goes on while logged out.
    user: Option<User>,
}

#[derive(Debug, Clone)]
struct Unit {
    user: Result<Identity, String>,
    delegates: bool,
    no_new_privileges: bool,
}

/// Docker's daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Docker {
    /// `systemd` or `cgroupfs`.
    driver: String,
    rootless: bool,
    /// Whether a process listens for each published port.
    listens: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    has_ranges: bool,
    lingers: bool,
}

/// All models in containers.
#[derive(Debug)]
pub(super) struct Containers(Vec<Seen>);

pub(super) async fn look(ground: &Ground) -> Containers {
    let Known::Value(settings) = &ground.settings else { return Containers(Vec::new()) };
    let mut all = Vec::new();
    let mut docker = None;
    for model in settings.models.values().filter(|model| !model.retired) {
        let Some(container) = &model.container else { continue };
        let program = model.program.to_string_lossy().into_owned();
        let unit = match &ground.bus {
            Known::Value(bus) => unit(bus, &model.name.unit())
                .await
                .map_or_else(|error| Known::Unknown(error.to_string()), Known::Value),
            Known::Unknown(why) => Known::Unknown(why.clone()),
        };
        let installed = berth_observe::files::found(&model.program).is_some();
        if container.engine == Engine::Docker && installed && docker.is_none() {
            docker = Some(self::docker(Path::new(SOCKET)).await);
        }
        let who = unit.value().and_then(|unit| unit.user.as_ref().ok()).filter(|who| who.uid != 0);
        all.push(Seen {
            model: model.name.clone(),
            socket: access::look(Path::new(SOCKET)),
            docker: docker.clone().filter(|_| container.engine == Engine::Docker),
            user: who.filter(|_| container.engine == Engine::Podman).map(user),
            container: container.clone(),
            program,
            installed,
            unit,
        });
    }
    Containers(all)
}

async fn unit(bus: &Connection, name: &str) -> Result<Unit, SystemdError> {
    let reader = Reader::of(bus, name);
    let user: String = reader.get(SERVICE, "User").await?;
    let group: String = reader.get(SERVICE, "Group").await?;
    let more: Vec<String> = reader.get(SERVICE, "SupplementaryGroups").await?;
    Ok(Unit {
        user: Identity::of_unit(&user, &group, &more),
        delegates: reader.get(SERVICE, "Delegate").await?,
        no_new_privileges: reader.get(SERVICE, "NoNewPrivileges").await?,
    })
}

/// What docker answers of itself, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    cgroup_driver: String,
    #[serde(default)]
    security_options: Vec<String>,
}

/// Asks docker's daemon what it is: by its socket, since the program that a model declares may be anybody's, and whoever
/// looks may be root.
async fn docker(socket: &Path) -> Known<Docker> {
    let client = Client::new(Some(socket.to_owned()), false);
    let info: Info = match tokio::time::timeout(ANSWER, client.get("/info")).await {
        Ok(Ok(info)) => info,
        Ok(Err(Trouble::Broken(_))) => {
            return Known::Unknown(format!("what it says at {} is not to be understood", socket.display()));
        }
        Ok(Err(trouble)) => return Known::Unknown(trouble.to_string()),
        Err(_) => return Known::Unknown(format!("it has not answered for {} s", ANSWER.as_secs())),
    };
    let settings = std::fs::read_to_string("/etc/docker/daemon.json").unwrap_or_default();
    let settings: serde_json::Value = serde_json::from_str(&settings).unwrap_or_default();
    Known::Value(Docker {
        driver: info.cgroup_driver,
        rootless: info.security_options.iter().any(|option| option == "name=rootless"),
        listens: settings["userland-proxy"] != serde_json::Value::Bool(false),
    })
}

fn user(who: &Identity) -> User {
    let (name, uid) = (who.user.as_str(), who.uid.to_string());
    let listed = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().filter_map(|line| line.split(':').next()).any(|first| first == name || first == uid)
    };
    User {
        has_ranges: listed("/etc/subuid") && listed("/etc/subgid"),
        lingers: Path::new("/var/lib/systemd/linger").join(name).exists(),
    }
}

pub(super) fn judge(containers: &Containers) -> Vec<Check> {
    if containers.0.is_empty() {
        return Vec::new();
    }
    vec![check("containers", containers.0.iter().flat_map(of_model))]
}

fn of_model(seen: &Seen) -> Vec<Finding> {
    let (name, engine) = (&seen.model, seen.container.engine);
    if engine == Engine::Docker && Scope::this() == Scope::User {
        let text = format!("docker would run {name} under the machine's systemd, past a user's own Berth");
        let next = "declare it with podman run instead of docker run";
        return vec![Finding::error("engine_unfit", name, text).next(next)];
    }
    if !seen.installed {
        let package = if engine == Engine::Docker { "docker.io" } else { "podman" };
        let text = format!("{name} can't start: {} is not there", seen.program);
        return vec![Finding::error("no_engine", name, text).next(format!("sudo apt install {package}"))];
    }
    let mut found = match engine {
        Engine::Docker => by_docker(seen),
        Engine::Podman => Vec::new(),
    };
    let unit = match &seen.unit {
        Known::Value(unit) => unit,
        Known::Unknown(why) => {
            let text = format!("what the unit of {name} allows can't be looked at: {why}");
            let next = format!("{} status dbus", Scope::this().systemctl());
            found.push(Finding::unknown("engine_denied", name, text).next(next));
            return found;
        }
    };
    let edit = |what: &str| format!("{} and {what}", super::models::edit(&name.unit()));
    match engine {
        Engine::Docker => {
            let Ok(who) = &unit.user else { return found };
            if let Known::Value(Err(access::Refused::By(step))) =
                access::judge(&seen.socket, who, Want::ReadWrite)
            {
                let text = format!("{name} may not ask docker: it runs as {}", who.user);
                let next = edit("set SupplementaryGroups=docker, which lets its server do all that root can");
                found.push(Finding::error("engine_denied", name, text).shown_by([step.shown()]).next(next));
            }
        }
        Engine::Podman => {
            if !unit.delegates || unit.no_new_privileges {
                let text = format!("the unit of {name} forbids what podman needs");
                let shown =
                    format!("Delegate={}, NoNewPrivileges={}", unit.delegates, unit.no_new_privileges);
                let next = edit("set what docs/configuration.md has for podman");
                found.push(Finding::error("engine_denied", name, text).shown_by([shown]).next(next));
            }
        }
    }
    if let (Some(user), Ok(who)) = (seen.user, &unit.user) {
        let who = &who.user;
        if !user.has_ranges {
            let text = format!("podman can't run {name} as {who}: {who} has no ids for a container's users");
            let next = format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {who}");
            found.push(
                Finding::error("no_subuids", name, text)
                    .shown_by(["/etc/subuid, /etc/subgid".to_owned()])
                    .next(next),
            );
        }
        if !user.lingers {
            let text = format!(
                "podman loses {who}'s containers when {who} logs out, and then {name} does not start"
            );
            found.push(
                Finding::warning("no_linger", name, text).next(format!("sudo loginctl enable-linger {who}")),
            );
        }
    }
    found
}

/// What is wrong with docker's daemon.
fn by_docker(seen: &Seen) -> Vec<Finding> {
    let name = &seen.model;
    let restart = "in /etc/docker/daemon.json, then sudo systemctl restart docker";
    let docker = match &seen.docker {
        Some(Known::Value(docker)) => docker,
        other => {
            let why = other.as_ref().and_then(Known::why_unknown).unwrap_or("it was not asked");
            let text = format!("docker, which runs {name}, does not answer: {why}");
            return vec![
                Finding::unknown("engine_silent", name, text)
                    .next("systemctl status docker; sudo berthctl doctor"),
            ];
        }
    };
    let mut found = Vec::new();
    if docker.rootless {
        let text = format!("docker runs {name} without root, in cgroups that Berth can't tell from others'");
        found.push(
            Finding::error("engine_unfit", name, text)
                .next("declare it with podman run instead of docker run"),
        );
    } else if docker.driver != "systemd" {
        let text = format!("docker makes cgroups past systemd, so Berth can't tell {name}'s processes");
        let next = format!("\"exec-opts\": [\"native.cgroupdriver=systemd\"] {restart}");
        let shown = format!("Cgroup Driver: {} in docker info", docker.driver);
        found.push(Finding::error("engine_unfit", name, text).shown_by([shown]).next(next));
    }
    if !docker.listens && seen.container.port.is_some() {
        let text =
            format!("nothing listens for the published port of {name}, so Berth can't tell whose it is");
        let next = format!("take \"userland-proxy\": false out {restart}; or --network=host instead of -p");
        let shown = "\"userland-proxy\": false in /etc/docker/daemon.json".to_owned();
        found.push(Finding::error("engine_unfit", name, text).shown_by([shown]).next(next));
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    fn seen(line: &str) -> Seen {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let (mut container, _) = Container::read(&words[0], &words[1..]).unwrap().unwrap();
        container.settle(None, None).unwrap();
        let docker = Docker { driver: "systemd".to_owned(), rootless: false, listens: true };
        let frank = Identity { user: "frank".to_owned(), uid: 2001, gids: BTreeSet::from([2001]) };
        Seen {
            model: "genesis".parse().unwrap(),
            program: words[0].clone(),
            installed: true,
            unit: Known::Value(Unit { user: Ok(frank), delegates: true, no_new_privileges: false }),
            socket: Way::default(),
            docker: (container.engine == Engine::Docker).then_some(Known::Value(docker)),
            user: None,
            container,
        }
    }

    fn codes(seen: &Seen) -> Vec<String> {
        of_model(seen).into_iter().map(|finding| format!("{} {:?}", finding.code, finding.severity)).collect()
    }

    #[test]
    fn what_is_missing_for_a_container_is_named() {
        let docker = "/usr/bin/docker run -p 127.0.0.1:8022:8000 vllm/vllm-openai";
        assert_eq!(codes(&seen(docker)), [""; 0]);
        assert_eq!(codes(&Seen { installed: false, ..seen(docker) }), ["no_engine Error"]);
        let silent = Some(Known::Unknown("Cannot connect".to_owned()));
        assert_eq!(codes(&Seen { docker: silent, ..seen(docker) }), ["engine_silent Unknown"]);
        let with = |driver: &str, rootless, listens| {
            let docker = Docker { driver: driver.to_owned(), rootless, listens };
            Seen {
                docker: Some(Known::Value(docker)),
                ..seen("/usr/bin/docker run -p 8022:8000 vllm/vllm-openai")
            }
        };
        assert_eq!(codes(&with("cgroupfs", false, true)), ["engine_unfit Error"]);
        assert_eq!(codes(&with("systemd", true, true)), ["engine_unfit Error"]);
        assert_eq!(codes(&with("systemd", false, false)), ["engine_unfit Error"]);

        let podman = seen("/usr/bin/podman run --network=host vllm/vllm-openai");
        assert_eq!(codes(&podman), [""; 0]);
        let user = Some(User { has_ranges: false, lingers: false });
        assert_eq!(codes(&Seen { user, ..podman }), ["no_subuids Error", "no_linger Warning"]);
        let mut closed = seen("/usr/bin/podman run --network=host vllm/vllm-openai");
        if let Known::Value(unit) = &mut closed.unit {
            unit.delegates = false;
        }
        assert_eq!(codes(&closed), ["engine_denied Error"]);
    }

    #[tokio::test]
    async fn docker_is_asked_at_its_socket() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        let why = docker(&socket).await;
        assert!(why.why_unknown().unwrap().contains("docker.sock"), "{why:?}");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let answers = tokio::spawn(async move {
            for body in [
                r#"{"ID":"a","CgroupDriver":"cgroupfs","CgroupVersion":"2","SecurityOptions":["name=seccomp,profile=builtin","name=rootless"]}"#,
                r#"{"ID":"a"}"#,
            ] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = [0; 1024];
                let read = stream.read(&mut asked).await.unwrap();
                assert!(asked[..read].starts_with(b"GET /info HTTP/1.1\r\n"));
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            }
        });
        let said = docker(&socket).await;
        let said = said.value().unwrap();
        assert_eq!((said.driver.as_str(), said.rootless), ("cgroupfs", true));
        assert!(docker(&socket).await.why_unknown().unwrap().contains("not to be understood"));
        answers.await.unwrap();
    }

    #[test]
    fn who_may_not_ask_docker_is_told_what_lets_him() {
        let step =
            access::Step { path: SOCKET.into(), folder: false, mode: 0o660, uid: 0, gid: 105, listed: false };
        let socket = Way { steps: vec![step], ends: None };
        let denied = Seen { socket, ..seen("docker run -p 1:1 i") };
        let found = of_model(&denied);
        assert_eq!(found[0].code, "engine_denied");
        assert!(found[0].next.contains("SupplementaryGroups=docker"), "{}", found[0].next);
    }
}
