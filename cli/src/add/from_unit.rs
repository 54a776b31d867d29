//! From a service's unit to a model: its command line as systemd would run it, its environment, and the rest of its
//! settings.

mod environment;

use berth_core::name::ModelName;
use toml::Value;

use super::command_line;
use super::draft::Draft;
use super::setting::{Fate, fate};
use crate::unit::{
    Around, Command, Depth, Setting, Unit, Unreadable, Variables, assignments, commands, expand, unescaped,
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

/// What is said of a server that runs as root.
pub(super) const AS_ROOT: &str =
    "it runs as root, as it did; `--run-as NAME` lets it run as who owns its files";

/// The name that a unit's model would have: the instance's, else the unit's own.
pub(crate) fn name(unit: &Unit) -> String {
    let name = if unit.instance().is_empty() { unit.stem() } else { unit.instance() };
    super::sound_name(&unescaped(name))
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
            return Err(Refusal::new(
                format!("{} is no service", self.unit.name),
                "name the service that runs the server",
            ));
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
            return Err(Refusal::new(format!("Type={} can't be taken over: {why}", setting.value), instead)
                .at(setting));
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
            return Err(
                Refusal::new("a model is one program, and ExecStart= runs several", instead).at(start)
            );
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
                '+' | '!' => {
                    ("its program is run as root in spite of User=", "leave the prefix out, or User=")
                }
                _ => continue,
            };
            return Err(
                Refusal::new(format!("ExecStart={prefix}… can't be taken over: {why}"), instead).at(start)
            );
        }
        Ok((start, command))
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
                        if section == "Unit" {
                            self.draft.unit.push(line);
                        } else {
                            self.draft.service.push(line);
                        }
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
        let stop =
            self.unit.last("Service", "TimeoutStopSec").or_else(|| self.unit.last("Service", "TimeoutSec"));
        if let Some(setting) = stop {
            if let Some(time) = time(&setting.value) {
                let stop = toml::Table::from_iter([("stop".to_owned(), Value::from(time))]);
                self.draft.keys.insert("deadlines".to_owned(), Value::from(stop));
            } else {
                let why = "Berth waits for `stop` in [deadlines], 30 s where it is not declared";
                self.draft.note(format!("{}={}", setting.key, setting.value), why);
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
            self.draft.note(
                "ExecStartPre=",
                "kept; it may take 30 s, which is as long as a permission to start lasts",
            );
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
                lines.push(line.replacen("Ambient", "", 1).replacen(
                    "Capabilities",
                    "CapabilityBoundingSet",
                    1,
                ));
            }
            lines.push(line);
        }
        self.draft.service.splice(0..0, lines);
        Ok(())
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
    const SINGLE: [&str; 8] = [
        "Nice",
        "UMask",
        "OOMScoreAdjust",
        "KillSignal",
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "NoNewPrivileges",
    ];
    key.starts_with("Limit")
        || key.starts_with("Memory")
        || key.starts_with("CPUScheduling")
        || SINGLE.contains(&key)
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
