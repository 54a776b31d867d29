//! From a service's unit to a model: its command line as systemd would run it, its environment, and the rest of its
//! settings.

use std::collections::BTreeSet;

use berth_core::name::ModelName;
use toml::Value;

use super::command_line;
use super::draft::Draft;
use super::setting::{Fate, fate};
use crate::unit::{
    Around, Command, Depth, Setting, Unit, Unreadable, Variables, assignments, commands, expand, expanded, file, words,
};

/// A unit that can't become a model: why, where, and what to do instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) what: String,
    /// As `FILE:LINE`.
    pub(crate) place: Option<String>,
    pub(crate) instead: Option<String>,
}

impl Refusal {
    pub(crate) fn new(what: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { what: what.into(), place: None, instead: Some(instead.into()).filter(|text| !text.is_empty()) }
    }

    fn at(self, setting: &Setting) -> Self {
        Self { place: Some(setting.place()), ..self }
    }
}

impl From<Unreadable> for Refusal {
    fn from(wrong: Unreadable) -> Self {
        Self { what: wrong.what, place: wrong.place, instead: None }
    }
}

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

/// What is said of a server that runs as root.
pub(super) const AS_ROOT: &str = "it runs as root, as it did; `--user NAME` lets it run as who owns its files";

/// Settings that make a folder, the variable that names it, and where it lies.
const FOLDERS: [(&str, &str, &str); 5] = [
    ("RuntimeDirectory", "RUNTIME_DIRECTORY", "/run"),
    ("StateDirectory", "STATE_DIRECTORY", "/var/lib"),
    ("CacheDirectory", "CACHE_DIRECTORY", "/var/cache"),
    ("LogsDirectory", "LOGS_DIRECTORY", "/var/log"),
    ("ConfigurationDirectory", "CONFIGURATION_DIRECTORY", "/etc"),
];

/// The name that a unit's model would have: the instance's, else the unit's own.
pub(crate) fn name(unit: &Unit) -> String {
    let name = if unit.instance().is_empty() { unit.stem() } else { unit.instance() };
    super::sound_name(name)
}

/// The model that a unit comes to.
pub(crate) fn translate(unit: &Unit, name: ModelName, around: &Around) -> Result<Draft, Refusal> {
    Translation { unit, around, draft: Draft::new(name, unit.name.clone(), Vec::new()) }.run()
}

/// The command lines of `ExecStart=` and the assignments of `Environment=` as systemd tells them: before variables are
/// replaced, the name that `@` gives in front.
pub(crate) fn reading(unit: &Unit, around: &Around) -> Result<(Vec<Vec<String>>, Vec<String>), Refusal> {
    let mut start = Vec::new();
    for setting in unit.all("Service", "ExecStart") {
        let all = commands(&setting.value, unit, around)
            .map_err(|why| Refusal::new(format!("ExecStart= can't be read: {why}"), "").at(setting))?;
        start.extend(all.into_iter().map(|command| {
            let program = Some(command.program).filter(|_| !command.prefixes.contains('@'));
            program.into_iter().chain(command.args).collect()
        }));
    }
    let mut environment = Variables::new();
    for setting in unit.all("Service", "Environment") {
        let all = assignments(&setting.value, unit, around)
            .map_err(|why| Refusal::new(format!("Environment= can't be read: {why}"), "").at(setting))?;
        environment.extend(all);
    }
    Ok((start, environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect()))
}

/// Why a Quadlet file can't become a model, with the command that can.
pub(crate) fn quadlet(path: &std::path::Path) -> Refusal {
    let what = "a container's file makes podman run it in the background, and its processes are not in the unit's cgroup";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let file = crate::unit::File { path: path.to_owned(), text };
    let command = Unit::read("container.service", &[file]).ok().and_then(|unit| by_podman(&unit));
    let instead = command.unwrap_or_else(|| "podman run --cgroups=split … in a service of its own".to_owned());
    Refusal::new(what, format!("add a service with ExecStart={instead}"))
}

/// The command that runs what a Quadlet file describes within its unit.
fn by_podman(unit: &Unit) -> Option<String> {
    const OPTIONS: [(&str, &str); 7] = [
        ("AddDevice", "--device"),
        ("Environment", "--env"),
        ("EnvironmentFile", "--env-file"),
        ("Network", "--network"),
        ("PublishPort", "--publish"),
        ("ShmSize", "--shm-size"),
        ("Volume", "--volume"),
    ];
    let image = unit.last("Container", "Image")?;
    let mut words = ["/usr/bin/podman", "run", "--rm"].map(str::to_owned).to_vec();
    for (key, option) in OPTIONS {
        for setting in unit.all("Container", key) {
            words.extend([option.to_owned(), setting.value.clone()]);
        }
    }
    for setting in unit.all("Container", "PodmanArgs") {
        words.extend(crate::unit::words(&setting.value).ok()?);
    }
    words.push(image.value.clone());
    if let Some(run) = unit.last("Container", "Exec") {
        words.extend(crate::unit::words(&run.value).ok()?);
    }
    Some(command_line::by_podman(&words))
}

struct Translation<'a> {
    unit: &'a Unit,
    around: &'a Around,
    draft: Draft,
}

impl<'a> Translation<'a> {
    fn run(mut self) -> Result<Draft, Refusal> {
        self.can_be_a_model()?;
        self.rest()?;
        let environment = self.environment()?;
        let working_directory = self.working_directory(&environment.all)?;
        self.user()?;
        let (start, command) = self.command()?;
        let args = self.variables_replaced(&command, &environment.all).map_err(|why| {
            Refusal::new(why, "write the value into ExecStart= and run systemctl daemon-reload").at(start)
        })?;
        self.draft.argv = std::iter::once(command.program.clone()).chain(args).collect();
        self.draft.env = environment.declared;
        if let Some(folder) = working_directory {
            self.draft.cwd = Some(folder);
        }
        if command.prefixes.contains('-') {
            self.draft.note("ExecStart=-", "the server's failure is one for Berth, which brings it back");
        }
        let place = start.place();
        command_line::settle(&mut self.draft).map_err(|refusal| Refusal { place: Some(place), ..refusal })?;
        self.draft.hide_secrets();
        Ok(self.draft)
    }

    fn can_be_a_model(&self) -> Result<(), Refusal> {
        if !self.unit.name.ends_with(".service") {
            return Err(Refusal::new(format!("{} is no service", self.unit.name), "name the service that runs the server"));
        }
        if self.unit.is_template() {
            let name = self.unit.name.replace("@.", "@NAME.");
            let what = format!("{} is a template, and what it runs depends on the instance", self.unit.name);
            return Err(Refusal::new(what, format!("berthctl add {name}")));
        }
        if let Some(setting) = self.unit.last("Service", "Type") {
            let why = match setting.value.as_str() {
                "simple" | "exec" | "idle" | "notify" | "notify-reload" => return Ok(()),
                "forking" => "the server puts itself into the background",
                "oneshot" => "a command that ends is no server",
                "dbus" => "the server shows on D-Bus that it is ready, and Berth asks over HTTP",
                _ => "Berth does not know it",
            };
            let instead = "run the server in the foreground, with Type=exec";
            return Err(Refusal::new(format!("Type={} can't be taken over: {why}", setting.value), instead).at(setting));
        }
        Ok(())
    }

    /// The one command, and the setting that has it.
    fn command(&self) -> Result<(&'a Setting, Command), Refusal> {
        let unit: &'a Unit = self.unit;
        let starts = unit.all("Service", "ExecStart");
        let [start] = starts[..] else {
            return Err(match starts.get(1) {
                None => Refusal::new(format!("{} has no ExecStart=", self.unit.name), ""),
                Some(second) => {
                    let instead = "keep the one that is the server; ExecStartPre= runs before it";
                    Refusal::new("a model is one program, and ExecStart= is given twice", instead).at(second)
                }
            });
        };
        let mut commands = commands(&start.value, self.unit, self.around)
            .map_err(|why| Refusal::new(format!("ExecStart= can't be read: {why}"), "").at(start))?;
        if commands.len() > 1 {
            let instead = "keep the server alone; ExecStartPre= runs before it";
            return Err(Refusal::new("a model is one program, and ExecStart= runs several", instead).at(start));
        }
        let Some(command) = commands.pop() else {
            return Err(Refusal::new("ExecStart= is empty", "").at(start));
        };
        for prefix in command.prefixes.chars() {
            if prefix == '-' {
                continue;
            }
            let (why, instead) = match prefix {
                '@' => ("its program is given another name than its own", "leave `@` and that name out"),
                '+' | '!' => ("its program is run as root in spite of User=", "leave the prefix out, or User="),
                _ => continue,
            };
            return Err(Refusal::new(format!("ExecStart={prefix}… can't be taken over: {why}"), instead).at(start));
        }
        Ok((start, command))
    }

    fn variables_replaced(&self, command: &Command, environment: &Variables) -> Result<Vec<String>, String> {
        if command.prefixes.contains(':') {
            return Ok(command.args.clone());
        }
        let passed: BTreeSet<String> =
            self.unit.all("Service", "PassEnvironment").iter().flat_map(|one| words(&one.value).unwrap_or_default()).collect();
        expanded(&command.args, environment, |name| {
            if passed.contains(name) || AT_START.contains(&name) {
                return Some(format!("`${name}` is known to systemd alone, and only when it starts the service"));
            }
            let of_user = ["HOME", "LOGNAME", "SHELL", "USER"].contains(&name);
            if let Some(user) = self.unit.last("Service", "User").filter(|_| of_user && self.known_user().is_none()) {
                return Some(format!("`${name}` is of user {}, who is not known on this machine", user.value));
            }
            (name == "PATH" || name == "LANG").then(|| format!("`${name}` is systemd's own, and can't be asked for here"))
        })
    }

    /// Settings that become lines of the drop-in, or notes.
    fn rest(&mut self) -> Result<(), Refusal> {
        for (section, key) in self.unit.keys() {
            let all = self.unit.all(section, key);
            let Some(last) = all.last() else { continue };
            match fate(section, key) {
                Fate::Read | Fate::Dropped => {}
                Fate::Kept => {
                    let counting = if is_single(key) { &all[all.len() - 1..] } else { &all[..] };
                    for setting in counting {
                        let line = self.line(setting)?;
                        if section == "Unit" { self.draft.unit.push(line) } else { self.draft.service.push(line) }
                    }
                }
                Fate::Left(why) => {
                    let what = if section == "Service" || section == "Unit" {
                        format!("{key}={}", last.value)
                    } else {
                        format!("[{section}] {key}={}", last.value)
                    };
                    self.draft.note(what, why);
                }
                Fate::Refused(why) => {
                    let what = format!("{key}={} can't be taken over: {why}", last.value);
                    return Err(Refusal { what, place: Some(last.place()), instead: None });
                }
            }
        }
        self.dependencies()?;
        self.commands_beside()?;
        if let Some(setting) = self.unit.last("Service", "Nice")
            && setting.value.starts_with('-')
        {
            let why = "kept, and known to hurt: a raised priority can starve the threads of the CUDA driver";
            self.draft.note(format!("Nice={}", setting.value), why);
        }
        let stop = self.unit.last("Service", "TimeoutStopSec").or_else(|| self.unit.last("Service", "TimeoutSec"));
        if let Some(setting) = stop {
            match time(&setting.value) {
                Some(time) => {
                    let stop = toml::Table::from_iter([("stop".to_owned(), Value::from(time))]);
                    self.draft.keys.insert("deadlines".to_owned(), Value::from(stop));
                }
                None => {
                    let why = "Berth waits for `stop` in [deadlines], 30 s where it is not declared";
                    self.draft.note(format!("{}={}", setting.key, setting.value), why);
                }
            }
        }
        Ok(())
    }

    /// What must run for the model. Nothing that stops or restarts stops it behind Berth's back.
    fn dependencies(&mut self) -> Result<(), Refusal> {
        for key in ["Requires", "Requisite", "BindsTo"] {
            for setting in self.unit.all("Unit", key) {
                let line = self.line(setting)?;
                let wants = line.replacen(key, "Wants", 1);
                if !self.draft.unit.contains(&wants) {
                    self.draft.unit.push(wants);
                }
                let why = "now Wants=: started before the model, and its end does not stop the model";
                self.draft.note(format!("{key}={}", setting.value), why);
            }
        }
        Ok(())
    }

    fn commands_beside(&mut self) -> Result<(), Refusal> {
        for setting in self.unit.all("Service", "ExecStartPre") {
            let line = self.line(setting)?;
            self.draft.service.push(line);
        }
        if self.unit.last("Service", "ExecStartPre").is_some() {
            self.draft.note("ExecStartPre=", "kept; it may take 30 s, which is as long as a permission to start lasts");
        }
        Ok(())
    }

    /// A setting as a line of another unit.
    fn line(&self, setting: &Setting) -> Result<String, Refusal> {
        let value = expand(&setting.value, self.unit, self.around, Depth::Name)
            .map_err(|why| Refusal::new(format!("{}= can't be read: {why}", setting.key), "").at(setting))?;
        Ok(format!("{}={value}", setting.key))
    }

    /// Who it runs as. The template's user is another one, so it is always said.
    fn user(&mut self) -> Result<(), Refusal> {
        let mut lines = Vec::new();
        let user = self.unit.last("Service", "User");
        lines.push(user.map(|user| self.line(user)).transpose()?.unwrap_or_else(|| "User=".to_owned()));
        if user.is_none_or(|user| ["root", "0"].contains(&user.value.as_str())) {
            let what = user.map_or("no User=".to_owned(), |user| format!("User={}", user.value));
            self.draft.note(what, AS_ROOT);
            // A model's unit has none of root's rights otherwise.
            if self.unit.last("Service", "CapabilityBoundingSet").is_none() {
                lines.push("CapabilityBoundingSet=~".to_owned());
            }
        }
        if let Some(group) = self.unit.last("Service", "Group") {
            lines.push(self.line(group)?);
        }
        for setting in self.unit.all("Service", "AmbientCapabilities") {
            let line = self.line(setting)?;
            // The template bounds them to none.
            if self.unit.last("Service", "CapabilityBoundingSet").is_none() {
                lines.push(line.replacen("Ambient", "", 1).replacen("Capabilities", "CapabilityBoundingSet", 1));
            }
            lines.push(line);
        }
        self.draft.service.splice(0..0, lines);
        Ok(())
    }

    fn environment(&mut self) -> Result<Environment, Refusal> {
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
            .filter(|name| start.value.contains(&format!("${name}")) || start.value.contains(&format!("${{{name}}}")))
            .collect();
        for name in used {
            let why = "its value is part of the command line now; a later change of the file does not change that";
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
        let mut all = Variables::from([
            ("USER".to_owned(), user.name.clone()),
            ("LOGNAME".to_owned(), user.name),
        ]);
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

    /// The working directory where a declaration can say it; else a line of the drop-in does.
    fn working_directory(&mut self, environment: &Variables) -> Result<Option<String>, Refusal> {
        let setting = self.unit.last("Service", "WorkingDirectory");
        let value = setting.map_or("/", |setting| setting.value.as_str());
        let root = self.unit.last("Service", "User").is_none();
        if value == "/" {
            self.draft.service.insert(0, "WorkingDirectory=/".to_owned());
            return Ok(None);
        }
        let Some(setting) = setting.filter(|_| !value.starts_with(['-', '~'])) else {
            // Without a user there is no home of one, and systemd goes to root's.
            let home = environment.get("HOME").map_or("/root", String::as_str);
            let line = match (value.trim_start_matches('-'), root) {
                ("~", true) => format!("WorkingDirectory={}", value.replace('~', home)),
                _ => setting.map(|setting| self.line(setting)).transpose()?.unwrap_or_default(),
            };
            self.draft.service.insert(0, line);
            return Ok(None);
        };
        let folder = expand(value, self.unit, self.around, Depth::All)
            .map_err(|why| Refusal::new(format!("WorkingDirectory= can't be read: {why}"), "").at(setting))?;
        if root {
            // The template's is the home of its user.
            self.draft.service.insert(0, "WorkingDirectory=/".to_owned());
        }
        Ok(Some(folder))
    }
}

/// Whether only the last of this setting counts, so that the others need not be kept.
fn is_single(key: &str) -> bool {
    const SINGLE: [&str; 8] =
        ["Nice", "UMask", "OOMScoreAdjust", "KillSignal", "ProtectSystem", "ProtectHome", "PrivateTmp", "NoNewPrivileges"];
    key.starts_with("Limit") || key.starts_with("Memory") || key.starts_with("CPUScheduling") || SINGLE.contains(&key)
}

/// A service's variables.
struct Environment {
    /// Those that go into the declaration.
    declared: Variables,
    /// All that its command line could name.
    all: Variables,
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

/// A time of systemd's as a declaration has it; None for one that never passes or is written in another way.
fn time(text: &str) -> Option<String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim();
    if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit()) || digits == "0" {
        return None;
    }
    match unit {
        "" | "s" | "sec" => Some(format!("{digits} s")),
        "min" | "m" => Some(format!("{digits} min")),
        "h" | "ms" => Some(format!("{digits} {unit}")),
        _ => None,
    }
}
