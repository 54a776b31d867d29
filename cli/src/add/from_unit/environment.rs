//! A service's variables: what systemd sets, what the unit sets, what files set, and which of it a command line names.

use std::collections::BTreeSet;

use berth_core::config::is_secret;

use super::{Refusal, Translation};
use crate::unit::{Command, Depth, Setting, Variables, assignments, expand, expanded, file, words};

/// Commands besides the server's that go into the drop-in.
const COMMANDS: [&str; 3] = ["ExecStartPre", "ExecStop", "ExecStopPost"];

/// Variables that systemd makes anew for each start.
const AT_START: [&str; 8] = [
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "MAINPID",
    "NOTIFY_SOCKET",
    "CREDENTIALS_DIRECTORY",
    "MEMORY_PRESSURE_WATCH",
    "WATCHDOG_USEC",
];

/// Settings that make a folder, the variable that names it, and where it lies.
const FOLDERS: [(&str, &str, &str); 5] = [
    ("RuntimeDirectory", "RUNTIME_DIRECTORY", "/run"),
    ("StateDirectory", "STATE_DIRECTORY", "/var/lib"),
    ("CacheDirectory", "CACHE_DIRECTORY", "/var/cache"),
    ("LogsDirectory", "LOGS_DIRECTORY", "/var/log"),
    ("ConfigurationDirectory", "CONFIGURATION_DIRECTORY", "/etc"),
];

impl Translation<'_> {
    /// The arguments of the command, with what its variables stand for.
    pub(super) fn variables_replaced(
        &self,
        command: &Command,
        environment: &Variables,
    ) -> Result<Vec<String>, String> {
        if command.prefixes.contains(':') {
            return Ok(command.args.clone());
        }
        let passed: BTreeSet<String> = self
            .unit
            .all("Service", "PassEnvironment")
            .iter()
            .flat_map(|one| words(&one.value).unwrap_or_default())
            .collect();
        expanded(&command.args, environment, |name| {
            if passed.contains(name) || AT_START.contains(&name) {
                return Some(format!(
                    "`${name}` is known to systemd alone, and only when it starts the service"
                ));
            }
            let of_user = ["HOME", "LOGNAME", "SHELL", "USER"].contains(&name);
            if let Some(user) =
                self.unit.last("Service", "User").filter(|_| of_user && self.known_user().is_none())
            {
                return Some(format!(
                    "`${name}` is of user {}, who is not known on this machine",
                    user.value
                ));
            }
            (name == "PATH" || name == "LANG")
                .then(|| format!("`${name}` is systemd's own, and can't be asked for here"))
        })
    }

    /// The variables of the service: those that the declaration sets, and the lines of the drop-in for the rest.
    pub(super) fn environment(&mut self) -> Result<Environment, Refusal> {
        let mut set = Variables::new();
        for setting in self.unit.all("Service", "Environment") {
            let all = assignments(&setting.value, self.unit, self.around).map_err(|why| {
                let what = format!("Environment= can't be read: {why}; systemd passes over all of it");
                Refusal::new(what, "").at(setting)
            })?;
            set.extend(all);
        }
        let mut from_files = Variables::new();
        let mut file_lines = Vec::new();
        for setting in self.unit.all("Service", "EnvironmentFile") {
            from_files.extend(self.variables_of_file(setting)?);
            file_lines.push(self.line(setting)?);
        }
        let mut all = self.around.environment.clone();
        all.extend(self.of_user());
        all.extend(self.of_folders());
        all.extend(set.clone());
        all.extend(from_files.clone());
        let mut declared = set.clone();
        for setting in self.unit.all("Service", "UnsetEnvironment") {
            let line = self.line(setting)?;
            for word in words(&setting.value).unwrap_or_default() {
                let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
                if value.is_none() || all.get(name).map(String::as_str) == value {
                    all.remove(name);
                    declared.remove(name);
                }
            }
            self.draft.service.push(line);
        }
        // A file's variables win, and the declaration's would win over the file's; other commands of the unit are given
        // the unit's alone.
        declared.retain(|name, _| !from_files.contains_key(name));
        let beside = COMMANDS.iter().any(|key| self.unit.last("Service", key).is_some());
        let lines = set
            .iter()
            .filter(|(name, _)| beside || from_files.contains_key(*name))
            .map(|(name, value)| format!("Environment={}", assignment(name, value)))
            .collect::<Vec<_>>();
        self.draft.service.extend(lines);
        self.draft.service.extend(file_lines);
        self.frozen(&from_files);
        Ok(Environment { declared, all })
    }

    /// Says which arguments are written down that a file of variables gave.
    fn frozen(&mut self, from_files: &Variables) {
        let starts = self.unit.all("Service", "ExecStart");
        let [start] = starts[..] else { return };
        let used: Vec<&String> = from_files
            .keys()
            .filter(|name| {
                start.value.contains(&format!("${name}")) || start.value.contains(&format!("${{{name}}}"))
            })
            .collect();
        for name in used {
            let mut why =
                "its value is part of the command line now, whatever the file says later".to_owned();
            if is_secret(name) {
                why.push_str("; so everybody can read it in the declaration, as in the list of processes");
            }
            self.draft.note(format!("${name} of EnvironmentFile="), why);
        }
    }

    fn variables_of_file(&self, setting: &Setting) -> Result<Vec<(String, String)>, Refusal> {
        let (optional, path) = match setting.value.strip_prefix('-') {
            Some(path) => (true, path),
            None => (false, setting.value.as_str()),
        };
        let path = expand(path, self.unit, self.around, Depth::All)
            .map_err(|why| Refusal::new(format!("EnvironmentFile= can't be read: {why}"), "").at(setting))?;
        if path.contains(['*', '?', '[']) {
            let what = format!("EnvironmentFile={path} may be several files");
            return Err(Refusal::new(what, "name each with an EnvironmentFile= of its own").at(setting));
        }
        match std::fs::read_to_string(self.around.path(&path)) {
            Ok(text) => Ok(file(&text)),
            Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => {
                let what = format!("{path} can't be read, which the service has its variables from: {error}");
                Err(Refusal::new(what, format!("ls -l {path}")).at(setting))
            }
        }
    }

    /// The user of `User=`, where this machine knows one of that name.
    fn known_user(&self) -> Option<nix::unistd::User> {
        let user = self.unit.last("Service", "User")?;
        let name = expand(&user.value, self.unit, self.around, Depth::All).unwrap_or_default();
        let found = name.parse().map_or_else(
            |_| nix::unistd::User::from_name(&name),
            |uid| nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)),
        );
        found.ok().flatten()
    }

    /// What systemd sets for a user.
    fn of_user(&self) -> Variables {
        let Some(user) = self.known_user() else { return Variables::new() };
        let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let mut all =
            Variables::from([("USER".to_owned(), user.name.clone()), ("LOGNAME".to_owned(), user.name)]);
        let home = path(&user.dir);
        if home != "/" {
            all.insert("HOME".to_owned(), home);
        }
        // A shell that lets nobody in is none.
        let shell = path(&user.shell);
        if !shell.ends_with("/nologin") && !shell.ends_with("/false") {
            all.insert("SHELL".to_owned(), shell);
        }
        all
    }

    fn of_folders(&self) -> Variables {
        let mut all = Variables::new();
        for (key, variable, base) in FOLDERS {
            let named = self.unit.all("Service", key);
            let names = named.iter().filter_map(|one| {
                let value = expand(&one.value, self.unit, self.around, Depth::All).ok()?;
                words(&value).ok()
            });
            let paths: Vec<String> = names.flatten().map(|name| format!("{base}/{name}")).collect();
            if !paths.is_empty() {
                all.insert(variable.to_owned(), paths.join(":"));
            }
        }
        all
    }
}

/// A service's variables.
pub(super) struct Environment {
    /// Those that go into the declaration.
    pub(super) declared: Variables,
    /// All that its command line could name.
    pub(super) all: Variables,
}

/// `NAME=value` as a word of `Environment=`.
fn assignment(name: &str, value: &str) -> String {
    let mut out = format!("\"{name}=");
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '%' => out.push_str("%%"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out + "\""
}
