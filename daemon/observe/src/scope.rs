//! Whose Berth this process belongs to: the machine's, or one user's own. It is decided once, when the process starts; its
//! folders, its systemd and what people are told to type follow from it, all of them here.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::unistd::geteuid;

/// Whose Berth it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The machine's: under PID 1, as a user of its own.
    System,
    /// One user's own: under that user's systemd, without root.
    User,
}

/// How the journal tells what belongs to one run of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// The fields of what a process of these units wrote.
    pub of_unit: Vec<String>,
    /// The fields of what systemd says about the unit's run.
    pub of_systemd: Vec<String>,
}

static THIS: OnceLock<Scope> = OnceLock::new();

impl Scope {
    /// That of this process: the machine's, unless [`Scope::enter`] said otherwise.
    pub fn this() -> Self {
        THIS.get().copied().unwrap_or(Self::System)
    }

    /// Decides it for this process, before anything is looked at. Only the first word counts.
    pub fn enter(self) {
        _ = THIS.set(self);
    }

    /// The one whose berthd is here, else the one that has a configuration; the machine's before the user's own.
    pub fn found() -> Self {
        let has = |folder: fn(Self) -> PathBuf| {
            [Self::System, Self::User].into_iter().find(|scope| folder(*scope).exists())
        };
        has(Self::socket).or_else(|| has(Self::config)).unwrap_or(Self::System)
    }

    /// The folder of berth.toml, models.d and policies.d.
    pub fn config(self) -> PathBuf {
        self.folder("/etc", "XDG_CONFIG_HOME", || home().join(".config"))
    }

    /// The folder of the ledger and the history.
    pub fn state(self) -> PathBuf {
        self.folder("/var/lib", "XDG_STATE_HOME", || home().join(".local/state"))
    }

    /// The folder of berthd's sockets.
    pub fn run(self) -> PathBuf {
        self.folder("/run", "XDG_RUNTIME_DIR", || format!("/run/user/{}", geteuid()).into())
    }

    /// berthd's control socket.
    pub fn socket(self) -> PathBuf {
        self.run().join("berth.sock")
    }

    fn folder(self, systems: &str, variable: &str, otherwise: impl FnOnce() -> PathBuf) -> PathBuf {
        match self {
            Self::System => Path::new(systems).join("berth"),
            Self::User => xdg(env::var_os(variable), otherwise).join("berth"),
        }
    }

    /// The user whose own systemd it is; None for PID 1.
    pub fn user(self) -> Option<u32> {
        match self {
            Self::System => None,
            Self::User => Some(geteuid().as_raw()),
        }
    }

    /// A unit of its systemd as the whole machine knows it: `user@1000.service/aeon.service`, or the name itself.
    pub fn qualified(self, unit: &str) -> String {
        self.user().map_or(unit.to_owned(), |uid| format!("user@{uid}.service/{unit}"))
    }

    /// The cgroup below which its systemd keeps units, from that of PID 1.
    pub fn control_group(self, of_pid1: &str) -> String {
        self.user().map_or(of_pid1.to_owned(), |uid| {
            format!("{of_pid1}/user.slice/user-{uid}.slice/user@{uid}.service")
        })
    }

    /// journalctl's option for all that there is of a unit, with what systemd says about it.
    pub fn unit_option(self) -> &'static str {
        self.word("--unit", "--user-unit")
    }

    /// What the journal has of these units, and of one run of one of them.
    pub fn journal(self, units: &[String], invocation: &str) -> Journal {
        let of_units = |field: &str| units.iter().map(|unit| format!("{field}={unit}")).collect::<Vec<_>>();
        match self.user() {
            None => Journal {
                of_unit: of_units("_SYSTEMD_UNIT"),
                of_systemd: vec!["_PID=1".to_owned(), format!("INVOCATION_ID={invocation}")],
            },
            Some(uid) => Journal {
                of_unit: [of_units("_SYSTEMD_USER_UNIT"), vec![format!("_UID={uid}")]].concat(),
                of_systemd: vec![
                    "_SYSTEMD_USER_UNIT=init.scope".to_owned(),
                    format!("_UID={uid}"),
                    format!("USER_INVOCATION_ID={invocation}"),
                ],
            },
        }
    }

    /// What makes the journal readable for berthd.
    pub fn journal_needs(self) -> &'static str {
        match self {
            Self::System => "berthd reads the journal through the group systemd-journal",
            Self::User => {
                "a user's own log can be read where the journal is kept on disk: `Storage=persistent` in journald.conf"
            }
        }
    }

    /// The bus that its systemd is on.
    pub fn bus(self) -> &'static str {
        self.word("the system bus", "the user's bus")
    }

    /// `systemctl` as it is typed to see something.
    pub fn systemctl(self) -> &'static str {
        self.word("systemctl", "systemctl --user")
    }

    /// `journalctl` as it is typed.
    pub fn journalctl(self) -> &'static str {
        self.word("journalctl", "journalctl --user")
    }

    /// What is typed before a command that changes something.
    pub fn sudo(self) -> &'static str {
        self.word("sudo ", "")
    }

    fn word(self, systems: &'static str, users: &'static str) -> &'static str {
        match self {
            Self::System => systems,
            Self::User => users,
        }
    }
}

/// A folder as the XDG base directory specification has it: what is no whole path counts as not said.
fn xdg(said: Option<OsString>, otherwise: impl FnOnce() -> PathBuf) -> PathBuf {
    said.map(PathBuf::from).filter(|path| path.is_absolute()).unwrap_or_else(otherwise)
}

fn home() -> PathBuf {
    env::home_dir().unwrap_or_else(|| "/".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_no_whole_path_counts_as_not_said() {
        let chosen = |said: &str| xdg(Some(said.into()), || "/home/frank/.config".into());
        assert_eq!(chosen("/srv/config"), Path::new("/srv/config"));
        assert_eq!(chosen(""), Path::new("/home/frank/.config"));
        assert_eq!(chosen("config"), Path::new("/home/frank/.config"));
        assert_eq!(xdg(None, || "/x".into()), Path::new("/x"));
    }

    #[test]
    fn a_user_has_a_systemd_below_that_of_the_machine() {
        let uid = geteuid();
        assert_eq!(Scope::System.control_group("/guest"), "/guest");
        let own = format!("/guest/user.slice/user-{uid}.slice/user@{uid}.service");
        assert_eq!(Scope::User.control_group("/guest"), own);
        assert_eq!(Scope::System.qualified("aeon.service"), "aeon.service");
        assert_eq!(Scope::User.qualified("aeon.service"), format!("user@{uid}.service/aeon.service"));
    }
}
