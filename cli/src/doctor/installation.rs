//! What Berth itself needs: systemd, polkit and cgroups new enough, its users, folders and units, room for its state, a clock
//! that is right.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use berth_core::bytes::Bytes;
use berth_core::facts::Known;
use berth_observe::systemd::{MANAGER, Reader, SERVICE, SystemdError, UNIT, call};
use nix::unistd::{Group, Uid, User};
use zbus::{Connection, OwnedVariant};

use super::{Check, Finding, Ground, apart, check};

/// What Debian 12 has: the first that does all that berthd asks of it.
const SYSTEMD_FROM: u32 = 252;
/// Older ones have no rules in JavaScript.
const POLKIT_FROM: &str = "0.106";

const BERTHD: &str = "berthd.service";
const STATE: &str = "/var/lib/berth";
const RULE: &str = "60-berth.rules";
const RULES: [&str; 2] = ["/usr/share/polkit-1/rules.d", "/etc/polkit-1/rules.d"];

/// Less than this is left for the ledger within days.
const SCARCE: Bytes = Bytes::mib(256);
/// With less berthd soon can't write down what it does.
const NONE_LEFT: Bytes = Bytes::mib(16);

/// A folder and what it should be like.
#[derive(Debug, Clone, Copy)]
struct Folder {
    path: &'static str,
    owner: &'static str,
    /// Bits that nobody may have there.
    never: u32,
    /// What that would let others do.
    why: &'static str,
}

const FOLDERS: [Folder; 4] = [
    Folder { path: "/etc/berth", owner: "root", never: 0o022, why: "say what runs as another user" },
    Folder { path: "/etc/berth/models.d", owner: "root", never: 0o022, why: "say what runs as another user" },
    Folder { path: STATE, owner: "berth", never: 0o027, why: "read or change what berthd has written down" },
    Folder {
        path: "/var/lib/berth-model",
        owner: "berth-model",
        never: 0o002,
        why: "change what models load",
    },
];

/// A folder as it is: its owner's name and its mode.
type Is = Known<Option<(String, u32)>>;

/// What was seen.
#[derive(Debug)]
pub(super) struct Installation {
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
    /// What is free for the state, and how many more files it may have.
    room: Known<(Bytes, u64)>,
}

pub(super) async fn look(ground: &Ground, config: &Path) -> Installation {
    let here = config == Path::new(crate::args::CONFIG);
    let folders = FOLDERS.iter().filter(|folder| here || !folder.path.starts_with("/etc"));
    let folders: Vec<Folder> = folders.copied().collect();
    let looked = apart(move || {
        (folders.into_iter().map(|folder| (folder, folder_is(folder.path))).collect(), rule(), room())
    });
    let (folders, rule, room) = match looked.await {
        Known::Value(looked) => looked,
        Known::Unknown(why) => (Vec::new(), Known::Unknown(why.clone()), Known::Unknown(why)),
    };
    Installation {
        systemd: asked(ground, version).await,
        polkit: asked(ground, polkit).await,
        enabled: asked(ground, enabled).await,
        kept: asked(ground, kept).await,
        synchronized: asked(ground, synchronized).await,
        unified: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        users: ["berth", "berth-model"].map(|name| (name, has_user(name))).to_vec(),
        groups: ["berth", "berth-model"].map(|name| (name, has_group(name))).to_vec(),
        folders,
        rule,
        room,
    }
}

async fn asked<T>(
    ground: &Ground,
    question: impl AsyncFnOnce(&Connection) -> Result<T, SystemdError>,
) -> Known<T> {
    match &ground.bus {
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

fn folder_is(path: &str) -> Is {
    match fs::metadata(path) {
        Ok(meta) => {
            let user = User::from_uid(Uid::from_raw(meta.uid())).ok().flatten();
            let owner = user.map_or(meta.uid().to_string(), |user| user.name);
            Known::Value(Some((owner, meta.mode() & 0o7777)))
        }
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

fn room() -> Known<(Bytes, u64)> {
    let at = Path::new(STATE).ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
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
    vec![
        check("systemd", versions(here)),
        check("polkit", may_act(here)),
        check("cgroups", cgroups(here)),
        check("berthd at boot", boot(here)),
        check("users and groups", people(here)),
        check("folders", folders(here)),
        check("disk space", space(here)),
        check("clock", clock(here)),
    ]
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
            Some(Finding::unknown("systemd_old", "", text).next("systemctl status dbus"))
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
            let next = format!("sudo systemctl enable {BERTHD}");
            found.push(Finding::warning("not_enabled", BERTHD, text).next(next));
        }
        Known::Value(_) => {}
        Known::Unknown(why) => {
            let text = format!("whether berthd is enabled for boot can't be told: {why}");
            found.push(Finding::unknown("not_enabled", "", text).next("systemctl is-enabled berthd"));
        }
    }
    // Where the units can't be read, that is told once.
    if here.kept == Known::Value(0) && here.enabled.value().is_some_and(Option::is_some) {
        let text = "systemd keeps no sockets for berthd: while it restarts, clients are refused";
        found.push(
            Finding::warning("no_fd_store", "", text.to_owned())
                .shown_by(["FileDescriptorStoreMax=0 of berthd.service".to_owned()])
                .next("sudo systemctl edit berthd and set FileDescriptorStoreMax=16"),
        );
    }
    found
}

fn people(here: &Installation) -> Vec<Finding> {
    let missing = |kind: &str, list: &[(&'static str, bool)]| {
        let gone = list.iter().filter(|(_, there)| !there);
        gone.map(|(name, _)| {
            let text = format!("there is no {kind} {name}");
            Finding::error("no_user", &format!("{kind} {name}"), text).next("sudo systemd-sysusers")
        })
        .collect::<Vec<_>>()
    };
    [missing("user", &here.users), missing("group", &here.groups)].concat()
}

fn folders(here: &Installation) -> Vec<Finding> {
    let found = here.folders.iter().filter_map(|(folder, is)| {
        let Folder { path, owner, never, why } = folder;
        match is {
            Known::Value(None) => {
                // Units make the state's folder, and an installation the others.
                let text = format!("{path} is not there");
                let finding = Finding::error("folder", *path, text);
                Some(finding.next("sudo systemd-tmpfiles --create; sudo systemctl restart berthd"))
            }
            Known::Value(Some((is, mode))) if is != owner || mode & never != 0 => {
                let text = if is == owner {
                    format!("others than {owner} may {why}: {path} has mode {mode:04o}")
                } else {
                    format!("{path} belongs to {is} instead of {owner}")
                };
                let next = if is == owner {
                    format!("sudo chmod {:04o} {path}", mode & !never)
                } else {
                    format!("sudo chown {owner} {path}")
                };
                Some(Finding::error("folder", *path, text).next(next))
            }
            Known::Value(Some(_)) => None,
            Known::Unknown(why) => {
                let text = format!("{path} can't be looked at: {why}");
                Some(Finding::unknown("folder", *path, text).next("sudo berthctl doctor"))
            }
        }
    });
    found.collect()
}

fn space(here: &Installation) -> Option<Finding> {
    let next = format!("df -h {STATE}; df -i {STATE}");
    match &here.room {
        Known::Value((free, files)) => {
            let what = if *files < 100 { format!("{files} files") } else { free.to_string() };
            let text =
                format!("there is room for {what} where {STATE} is: berthd writes down there what it does");
            if *free < NONE_LEFT || *files < 100 {
                Some(Finding::error("disk_full", STATE, text).next(next))
            } else {
                (*free < SCARCE).then(|| Finding::warning("disk_full", STATE, text).next(next))
            }
        }
        Known::Unknown(why) => {
            let text = format!("how much room there is for berthd's state can't be told: {why}");
            Some(Finding::unknown("disk_full", STATE, text).next(next))
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
