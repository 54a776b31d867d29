//! What Berth itself needs: systemd, polkit and cgroups new enough, its users, folders and units, room for its state, a clock
//! that is right. A user's own Berth needs neither polkit nor users.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use berth_core::bytes::Bytes;
use berth_core::facts::Known;
use berth_observe::scope::Scope;
use berth_observe::systemd::{MANAGER, Reader, SERVICE, SystemdError, UNIT, call};
use nix::unistd::{Group, Uid, User, geteuid};
use zbus::{Connection, OwnedVariant};

use super::{Check, Finding, Ground, apart, check};

/// What Debian 12 has: the first that does all that berthd asks of it.
const SYSTEMD_FROM: u32 = 252;
/// Older ones have no rules in JavaScript.
const POLKIT_FROM: &str = "0.106";

const BERTHD: &str = "berthd.service";
const RULE: &str = "60-berth.rules";
const RULES: [&str; 2] = ["/usr/share/polkit-1/rules.d", "/etc/polkit-1/rules.d"];

/// Less than this is left for the ledger within days.
const SCARCE: Bytes = Bytes::mib(256);
/// With less berthd soon can't write down what it does.
const NONE_LEFT: Bytes = Bytes::mib(16);

/// A folder and what it should be like.
#[derive(Debug, Clone)]
struct Folder {
    path: PathBuf,
    owner: String,
    /// Bits that nobody may have there.
    never: u32,
    /// What that would let others do.
    why: &'static str,
}

/// The folders that a Berth has. Units make the state's folder, and an installation or its user the others.
fn expected(scope: Scope) -> Vec<Folder> {
    let (config, state) = (scope.config(), scope.state());
    let folder =
        |path: PathBuf, owner: &str, never, why| Folder { path, owner: owner.to_owned(), never, why };
    let (runs, knows) = ("say what runs as another user", "read or change what berthd has written down");
    match scope {
        Scope::System => vec![
            folder(config.clone(), "root", 0o022, runs),
            folder(config.join("models.d"), "root", 0o022, runs),
            folder(state, "berth", 0o027, knows),
            folder("/var/lib/berth-model".into(), "berth-model", 0o002, "change what models load"),
        ],
        Scope::User => {
            let own = name_of(geteuid());
            vec![
                folder(config.clone(), &own, 0o022, runs),
                folder(config.join("models.d"), &own, 0o022, runs),
                folder(state, &own, 0o077, knows),
            ]
        }
    }
}

/// A folder as it is: its owner's name and its mode.
type Is = Known<Option<(String, u32)>>;

/// What was seen.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    scope: Scope,
    systemd: Known<String>,
    polkit: Known<String>,
    /// systemd's `UnitFileState` of berthd; None where it has no unit, which is told where units are looked at.
    enabled: Known<Option<String>>,
    /// How many sockets systemd keeps for berthd over a restart.
    kept: Known<u32>,
    synchronized: Known<bool>,
    /// Whether all cgroups are in the unified hierarchy.
    unified: bool,
    users: Vec<(&'static str, bool)>,
    groups: Vec<(&'static str, bool)>,
    folders: Vec<(Folder, Is)>,
    /// Where the polkit rule is; None where it is not.
    rule: Known<Option<PathBuf>>,
    /// Whether a user's own systemd runs while that user is not logged in.
    lingers: Known<bool>,
    /// What is free for the state, and how many more files it may have.
    room: Known<(Bytes, u64)>,
}

pub(super) async fn look(ground: &Ground, config: &Path) -> Installation {
    let scope = Scope::this();
    let mut folders = expected(scope);
    folders.retain(|folder| config == scope.config() || !folder.path.starts_with(scope.config()));
    let looked = apart(move || {
        let is = |folder: Folder| (folder.clone(), folder_is(&folder.path));
        (folders.into_iter().map(is).collect(), rule(), room(&scope.state()))
    });
    let (folders, rule, room) = match looked.await {
        Known::Value(looked) => looked,
        Known::Unknown(why) => (Vec::new(), Known::Unknown(why.clone()), Known::Unknown(why)),
    };
    Installation {
        scope,
        systemd: asked(&ground.bus, version).await,
        polkit: asked(&ground.machine, polkit).await,
        enabled: asked(&ground.bus, enabled).await,
        kept: asked(&ground.bus, kept).await,
        synchronized: asked(&ground.machine, synchronized).await,
        lingers: asked(&ground.machine, lingers).await,
        unified: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        users: ["berth", "berth-model"].map(|name| (name, has_user(name))).to_vec(),
        groups: ["berth", "berth-model"].map(|name| (name, has_group(name))).to_vec(),
        folders,
        rule,
        room,
    }
}

async fn asked<T>(
    bus: &Known<Connection>,
    question: impl AsyncFnOnce(&Connection) -> Result<T, SystemdError>,
) -> Known<T> {
    match bus {
        Known::Value(bus) => {
            question(bus).await.map_or_else(|error| Known::Unknown(error.to_string()), Known::Value)
        }
        Known::Unknown(why) => Known::Unknown(why.clone()),
    }
}

async fn version(bus: &Connection) -> Result<String, SystemdError> {
    Reader::of_manager(bus, "read systemd's version").get(MANAGER, "Version").await
}

async fn polkit(bus: &Connection) -> Result<String, SystemdError> {
    const NAME: &str = "org.freedesktop.PolicyKit1";
    let path = "/org/freedesktop/PolicyKit1/Authority";
    property(bus, "read polkit's version", NAME, path, &format!("{NAME}.Authority"), "BackendVersion").await
}

async fn synchronized(bus: &Connection) -> Result<bool, SystemdError> {
    const NAME: &str = "org.freedesktop.timedate1";
    let path = "/org/freedesktop/timedate1";
    property(bus, "ask whether the clock is synchronized", NAME, path, NAME, "NTPSynchronized").await
}

async fn lingers(bus: &Connection) -> Result<bool, SystemdError> {
    const NAME: &str = "org.freedesktop.login1";
    let path = format!("/org/freedesktop/login1/user/_{}", geteuid());
    let doing = "ask whether your systemd runs without a login";
    property(bus, doing, NAME, &path, &format!("{NAME}.User"), "Linger").await
}

/// A property of one who is not systemd.
async fn property<T: TryFrom<OwnedVariant>>(
    bus: &Connection,
    doing: &str,
    name: &str,
    path: &str,
    interface: &str,
    property: &str,
) -> Result<T, SystemdError> {
    const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
    let value: OwnedVariant = call(bus, doing, name, path, PROPERTIES, "Get", &(interface, property)).await?;
    T::try_from(value).map_err(|_| SystemdError::Refused {
        doing: doing.to_owned(),
        name: property.to_owned(),
        said: "the answer is of an unexpected form".to_owned(),
    })
}

async fn enabled(bus: &Connection) -> Result<Option<String>, SystemdError> {
    let reader = Reader::of(bus, BERTHD);
    if reader.get::<String>(UNIT, "LoadState").await? == "not-found" {
        return Ok(None);
    }
    reader.get(UNIT, "UnitFileState").await.map(Some)
}

async fn kept(bus: &Connection) -> Result<u32, SystemdError> {
    Reader::of(bus, BERTHD).get(SERVICE, "FileDescriptorStoreMax").await
}

// A database that can't be read knows nobody, here and below.
fn has_user(name: &str) -> bool {
    User::from_name(name).ok().flatten().is_some()
}

fn has_group(name: &str) -> bool {
    Group::from_name(name).ok().flatten().is_some()
}

fn name_of(uid: Uid) -> String {
    User::from_uid(uid).ok().flatten().map_or(uid.to_string(), |user| user.name)
}

fn folder_is(path: &Path) -> Is {
    match fs::metadata(path) {
        Ok(meta) => Known::Value(Some((name_of(Uid::from_raw(meta.uid())), meta.mode() & 0o7777))),
        Err(error) if error.kind() == ErrorKind::NotFound => Known::Value(None),
        Err(error) => Known::Unknown(error.to_string()),
    }
}

fn rule() -> Known<Option<PathBuf>> {
    let mut hidden = None;
    for folder in RULES {
        let path = Path::new(folder).join(RULE);
        match fs::metadata(&path) {
            Ok(_) => return Known::Value(Some(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => hidden = Some(format!("{folder}: {error}")),
        }
    }
    hidden.map_or(Known::Value(None), Known::Unknown)
}

fn room(state: &Path) -> Known<(Bytes, u64)> {
    let at = state.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match nix::sys::statvfs::statvfs(at) {
        Ok(disk) => {
            // A file system that counts no files says that it has none.
            let files = if disk.files() == 0 { u64::MAX } else { disk.files_available() };
            Known::Value((Bytes(disk.blocks_available().saturating_mul(disk.fragment_size())), files))
        }
        Err(error) => Known::Unknown(format!("{}: {error}", at.display())),
    }
}

pub(super) fn judge(here: &Installation) -> Vec<Check> {
    let own = match here.scope {
        Scope::System => vec![check("polkit", may_act(here)), check("users and groups", people(here))],
        Scope::User => vec![check("lingering", lingering(here))],
    };
    let all = vec![
        check("systemd", versions(here)),
        check("cgroups", cgroups(here)),
        check("berthd at boot", boot(here)),
        check("folders", folders(here)),
        check("disk space", space(here)),
        check("clock", clock(here)),
    ];
    own.into_iter().chain(all).collect()
}

fn versions(here: &Installation) -> Option<Finding> {
    match &here.systemd {
        Known::Value(version) => match first_number(version) {
            Some(number) if number >= SYSTEMD_FROM => None,
            Some(_) => {
                let text =
                    format!("systemd is of version {version}, and Berth needs {SYSTEMD_FROM} or newer");
                Some(
                    Finding::error("systemd_old", "", text)
                        .next("upgrade to Debian 12, Ubuntu 24.04 or newer"),
                )
            }
            None => {
                let text = format!("systemd's version can't be told from `{version}`");
                Some(Finding::unknown("systemd_old", "", text).next("systemctl --version"))
            }
        },
        Known::Unknown(why) => {
            let text = format!("systemd's version can't be told: {why}");
            let next = format!("{} status dbus", here.scope.systemctl());
            Some(Finding::unknown("systemd_old", "", text).next(next))
        }
    }
}

/// `252.39-1~deb12u1` → 252.
fn first_number(version: &str) -> Option<u32> {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Whether polkit is new enough: those before it counted `0.105`, `0.106` …, those after 0.120 `121`, `122` ….
fn has_rules(version: &str) -> Option<bool> {
    match version.split_once('.') {
        Some(("0", minor)) => Some(first_number(minor)? >= 106),
        _ => Some(first_number(version)? > 0),
    }
}

fn may_act(here: &Installation) -> Vec<Finding> {
    let mut found = Vec::new();
    match &here.polkit {
        Known::Value(version) if has_rules(version) == Some(true) => {}
        Known::Value(version) => {
            let text = format!("polkit is of version {version}, and Berth needs {POLKIT_FROM} or newer");
            found.push(Finding::error("polkit_old", "", text).next("sudo apt install polkitd"));
        }
        Known::Unknown(why) => {
            let text = format!("polkit, which lets berthd start models, can't be asked: {why}");
            found.push(Finding::unknown("polkit_old", "", text).next("systemctl status polkit"));
        }
    }
    match &here.rule {
        Known::Value(Some(_)) => {}
        Known::Value(None) => {
            let text = format!("polkit has no {RULE}, without which berthd may start and stop no model");
            let looked = RULES.map(|folder| format!("{folder} has none"));
            found.push(
                Finding::error("polkit_rule", "", text)
                    .shown_by(looked)
                    .next("install Berth's package again"),
            );
        }
        Known::Unknown(why) => {
            let text = format!("whether polkit has Berth's rule can't be told: {why}");
            found.push(Finding::unknown("polkit_rule", "", text).next("sudo berthctl doctor"));
        }
    }
    found
}

fn cgroups(here: &Installation) -> Option<Finding> {
    let text =
        "cgroups are not in one hierarchy (version 2): which process belongs to which model can't be told";
    (!here.unified).then(|| {
        Finding::error("cgroup_v1", "", text.to_owned())
            .shown_by(["there is no /sys/fs/cgroup/cgroup.controllers".to_owned()])
            .next("boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line")
    })
}

fn boot(here: &Installation) -> Vec<Finding> {
    let mut found = Vec::new();
    match &here.enabled {
        Known::Value(Some(state)) if !state.starts_with("enabled") => {
            let text = format!("{BERTHD} is not enabled ({state}): after a reboot Berth brings nothing back");
            let next = format!("{}{} enable {BERTHD}", here.scope.sudo(), here.scope.systemctl());
            found.push(Finding::warning("not_enabled", BERTHD, text).next(next));
        }
        Known::Value(_) => {}
        Known::Unknown(why) => {
            let text = format!("whether berthd is enabled for boot can't be told: {why}");
            found.push(
                Finding::unknown("not_enabled", "", text)
                    .next(format!("{} is-enabled berthd", here.scope.systemctl())),
            );
        }
    }
    // Where the units can't be read, that is told once.
    if here.kept == Known::Value(0) && here.enabled.value().is_some_and(Option::is_some) {
        let text = "systemd keeps no sockets for berthd: while it restarts, clients are refused";
        found.push(
            Finding::warning("no_fd_store", "", text.to_owned())
                .shown_by(["FileDescriptorStoreMax=0 of berthd.service".to_owned()])
                .next(format!(
                    "{}{} edit berthd and set FileDescriptorStoreMax=16",
                    here.scope.sudo(),
                    here.scope.systemctl()
                )),
        );
    }
    found
}

fn lingering(here: &Installation) -> Option<Finding> {
    match &here.lingers {
        Known::Value(true) => None,
        Known::Value(false) => {
            let text = "your services end when you log out, and begin when you log in: models too";
            let finding = Finding::warning("no_linger", "", text.to_owned());
            Some(finding.shown_by(["Linger=no".to_owned()]).next("loginctl enable-linger"))
        }
        Known::Unknown(why) => {
            let text = format!("whether your services run while you are not logged in can't be told: {why}");
            Some(Finding::unknown("no_linger", "", text).next("loginctl show-user --property=Linger"))
        }
    }
}

/// Users and groups, in one finding: whatever makes one of them makes all.
fn people(here: &Installation) -> Option<Finding> {
    let missing = |kind: &str, list: &[(&'static str, bool)]| {
        let gone = list.iter().filter(|(_, there)| !there);
        gone.map(|(name, _)| format!("{kind} {name}")).collect::<Vec<_>>()
    };
    let gone = [missing("user", &here.users), missing("group", &here.groups)].concat();
    let [first, ..] = gone.as_slice() else { return None };
    let text = format!("there is no {}", gone.join(", no "));
    Some(Finding::error("no_user", first, text).next("sudo systemd-sysusers"))
}

fn folders(here: &Installation) -> Vec<Finding> {
    let found = here.folders.iter().filter_map(|(folder, is)| {
        let Folder { path, owner, never, why } = folder;
        let (path, sudo) = (path.display(), here.scope.sudo());
        match is {
            Known::Value(Some((is, mode))) if is != owner || mode & never != 0 => {
                let text = if is == owner {
                    format!("others than {owner} may {why}: {path} has mode {mode:04o}")
                } else {
                    format!("{path} belongs to {is} instead of {owner}")
                };
                let next = if is == owner {
                    format!("{sudo}chmod {:04o} {path}", mode & !never)
                } else {
                    format!("sudo chown {owner} {path}")
                };
                Some(Finding::error("folder", &path, text).next(next))
            }
            Known::Value(_) => None,
            Known::Unknown(why) => {
                let text = format!("{path} can't be looked at: {why}");
                let next = match here.scope {
                    Scope::System => "sudo berthctl doctor".to_owned(),
                    Scope::User => format!("ls -ld {path}"),
                };
                Some(Finding::unknown("folder", &path, text).next(next))
            }
        }
    });
    missing(here).into_iter().chain(found).collect()
}

/// The folders that are not there, in one finding.
fn missing(here: &Installation) -> Option<Finding> {
    let gone = here.folders.iter().filter(|(_, is)| *is == Known::Value(None));
    let gone: Vec<String> = gone.map(|(folder, _)| folder.path.display().to_string()).collect();
    let text = match gone.as_slice() {
        [] => return None,
        [only] => format!("{only} is not there"),
        [rest @ .., last] => format!("{} and {last} are not there", rest.join(", ")),
    };
    let next = match here.scope {
        Scope::System => "sudo systemd-tmpfiles --create; sudo systemctl restart berthd".to_owned(),
        Scope::User => format!("mkdir -p {}; systemctl --user restart berthd", gone.join(" ")),
    };
    Some(Finding::error("folder", &gone[0], text).next(next))
}

fn space(here: &Installation) -> Option<Finding> {
    let state = &here.scope.state().display().to_string();
    let next = format!("df -h {state}; df -i {state}");
    match &here.room {
        Known::Value((free, files)) => {
            let what = if *files < 100 { format!("{files} files") } else { free.to_string() };
            let text =
                format!("there is room for {what} where {state} is: berthd writes down there what it does");
            if *free < NONE_LEFT || *files < 100 {
                Some(Finding::error("disk_full", state, text).next(next))
            } else {
                (*free < SCARCE).then(|| Finding::warning("disk_full", state, text).next(next))
            }
        }
        Known::Unknown(why) => {
            let text = format!("how much room there is for berthd's state can't be told: {why}");
            Some(Finding::unknown("disk_full", state, text).next(next))
        }
    }
}

fn clock(here: &Installation) -> Option<Finding> {
    match &here.synchronized {
        Known::Value(true) => None,
        Known::Value(false) => {
            let text = "the clock is not synchronized: times in logs and in the history may be wrong";
            let finding = Finding::warning("clock", "", text.to_owned());
            Some(finding.shown_by(["NTPSynchronized=no".to_owned()]).next("sudo timedatectl set-ntp true"))
        }
        Known::Unknown(why) => {
            let text = format!("whether the clock is right can't be told: {why}");
            Some(Finding::unknown("clock", "", text).next("timedatectl"))
        }
    }
}

#[cfg(test)]
#[path = "installation/tests.rs"]
mod tests;
