//! `berthctl remove`: a model leaves Berth, and what it was before is there again.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use berth_core::backend;
use berth_core::config::{self, Model, Settings};
use berth_core::layout::Layout;
use berth_core::name::ModelName;
use berth_core::report::SCHEMA;
use serde::Serialize;

use crate::add::{
    Consent, agreed, cannot_write, declaration, drop_in_folder, record, reload, root, secrets_path, sources,
};
use crate::changes::{self, After, Change};
use crate::check;
use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;
use crate::render::text::{clean, paragraph};
use crate::systemd;
use crate::verbs::Context;

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    exit: u8,
    changed: bool,
    model: &'a str,
    /// The service that is there again, or was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    removed: &'a [PathBuf],
    left_to_do: &'a [String],
}

/// A model that would leave, with all that this changes; nothing is changed yet.
pub(crate) struct Prepared {
    name: ModelName,
    /// The service that it was.
    was: Option<String>,
    /// The unit that it is still, where that runs.
    goes_on: Option<String>,
    declaration: PathBuf,
    has_record: bool,
    pub(crate) removed: Vec<PathBuf>,
    /// A service of its own, where one is asked for.
    own: Vec<Change>,
}

/// Removes the model `name`.
pub(crate) async fn remove(
    name: &str,
    unit: bool,
    consent: Consent,
    berth: &Context,
) -> Result<Exit, Complaint> {
    let name: ModelName = name.parse().map_err(|bad: berth_core::name::BadName| {
        Complaint::new(
            Exit::Usage,
            "bad_name",
            bad.to_string(),
            &["berthctl check lists the models".to_owned()],
        )
    })?;
    let prepared = prepare(name, unit).await?;
    let (name, service) = (&prepared.name, prepared.service());
    let document = |changed, left: &[String]| {
        let exit = if left.is_empty() { Exit::Done } else { Exit::Degraded };
        Out::document(&Document {
            schema: SCHEMA,
            exit: exit.code(),
            changed,
            model: name.as_str(),
            service: service.as_deref(),
            removed: &prepared.removed,
            left_to_do: left,
        });
    };
    if consent.dry_run {
        if berth.out.json {
            document(false, &[]);
        } else {
            Out::say(&prepared.before());
        }
        return Ok(Exit::Done);
    }
    root("remove")?;
    if !berth.out.json {
        Out::say(&prepared.before());
    }
    agreed(consent, &format!("Take {name} out of Berth?"))?;
    let left = prepared.carry_out(berth).await?;
    if berth.out.json {
        document(true, &left);
    } else {
        Out::say(&after(&prepared, &left));
    }
    Ok(if left.is_empty() { Exit::Done } else { Exit::Degraded })
}

/// Looks what it takes to remove a model, and makes sure that it can be; with `unit` a service of its own is made of it.
pub(crate) async fn prepare(name: ModelName, unit: bool) -> Result<Prepared, Complaint> {
    let (path, settings) = declared(&name, &sources()?)?;
    stopped(&name).await?;
    let written = changes::read(&record(&name)).map_err(|failed| cannot_write(&failed))?;
    let has_record = written.is_some();
    let was = written.and_then(|written| written.unit);
    if let Some(was) = was.as_ref().filter(|_| unit) {
        let title = format!("{name} was {was}, which comes back as it was");
        return Err(Complaint::new(Exit::Usage, "comes_back", title, &["leave --unit out".to_owned()]));
    }
    let replaces = settings.models.get(&name).and_then(|model| model.replaces.clone());
    let goes_on = match replaces.or_else(|| was.clone()) {
        Some(unit) if systemd::loaded(&unit).await.is_ok_and(|loaded| loaded.runs()) => Some(unit),
        _ => None,
    };
    let own = if unit { service(&name, &settings)? } else { Vec::new() };
    let removed = paths(&name, &path);
    Ok(Prepared { name, was, goes_on, declaration: path, has_record, removed, own })
}

impl Prepared {
    /// The service that is there again then.
    pub(crate) fn service(&self) -> Option<String> {
        let own = || Some(self.own.last()?.path.file_name()?.to_string_lossy().into_owned());
        self.was.clone().or_else(own)
    }

    /// Has berthd let go of what runs, while that is still the model's to it: afterwards it would be missed.
    async fn let_go(&self, unit: &str, berth: &Context) -> Result<(), Complaint> {
        let mut aside = self.declaration.clone().into_os_string();
        aside.push(".removed");
        let moved = |from: &Path, to: &Path| {
            std::fs::rename(from, to).map_err(|error| {
                let title = format!("{} can't be moved: {error}", from.display());
                Complaint::new(Exit::Usage, "not_written", title, &[])
            })
        };
        moved(&self.declaration, Path::new(&aside))?;
        if let Err(why) = reload(berth).await {
            moved(Path::new(&aside), &self.declaration)?;
            let title = format!(
                "{unit} runs, and berthd can't let go of it as {}: {}. Nothing was changed.",
                self.name, why.title
            );
            return Err(Complaint::new(Exit::Refused, "in_use", title, &why.hints));
        }
        moved(Path::new(&aside), &self.declaration)
    }

    fn before(&self) -> String {
        before(self.was.as_deref(), &self.removed, &self.own)
    }

    /// Makes the changes. Gives what is left to do.
    pub(crate) async fn carry_out(&self, berth: &Context) -> Result<Vec<String>, Complaint> {
        let (name, mut left) = (&self.name, Vec::new());
        if let Some(unit) = &self.goes_on {
            self.let_go(unit, berth).await?;
        }
        for change in &self.own {
            changes::carry_out(change).map_err(|failed| cannot_write(&failed))?;
        }
        if self.has_record {
            let others = changes::undo(&record(name)).map_err(|failed| cannot_write(&failed))?;
            left.extend(others.iter().map(|path| left_alone(path)));
        }
        for path in &self.removed {
            changes::carry_out(&Change::remove(path)).map_err(|failed| cannot_write(&failed))?;
        }
        // One that has something else in it stays.
        _ = std::fs::remove_dir(drop_in_folder(name));
        left.extend(systemd::daemon_reload().await.err().map(|failed| failed.to_string()));
        // The next berthd reads what is declared then.
        let reloaded = reload(berth).await.err().filter(|why| why.code != "berthd_not_running");
        left.extend(reloaded.map(|why| {
            format!("berthd has not taken it up: {}; `sudo berthctl reload` once that is over", why.title)
        }));
        Ok(left)
    }
}

/// What is said of a path at which there is something else by now.
pub(crate) fn left_alone(path: &Path) -> String {
    format!("{} is left as it is: somebody has put something else there since", path.display())
}

/// The file that declares the model, and what is declared. Without it all must still be valid: another may name it as its
/// fallback.
fn declared(name: &ModelName, sources: &config::Sources) -> Result<(PathBuf, Settings), Complaint> {
    let not_valid = |errors: Vec<config::ConfigError>, title: String| {
        let first = errors.first().map_or(String::new(), |error| format!(": {}", error.render(false)));
        Complaint::new(Exit::Usage, "not_valid", format!("{title}{first}"), &["berthctl check".to_owned()])
    };
    let settings = config::load(sources, &check::host())
        .map_err(|errors| not_valid(errors, "the configuration is not valid".to_owned()))?;
    let Some(model) = settings.models.get(name).filter(|_| !name.as_str().contains(':')) else {
        let names: Vec<&str> = settings.models.keys().map(ModelName::as_str).collect();
        let title = format!("no file of its own declares {name}");
        let there = if names.is_empty() {
            "no model is declared".to_owned()
        } else {
            format!("there are {}", names.join(", "))
        };
        return Err(Complaint::new(Exit::Usage, "unknown_model", title, &[there]));
    };
    let path = model.source.clone();
    let mut rest = sources.clone();
    rest.models.retain(|file| file.path != path);
    config::load(&rest, &check::host()).map_err(|errors| {
        not_valid(errors, format!("without {name} the configuration would not be valid"))
    })?;
    Ok((path, settings))
}

/// Refuses while the model, or a variant of it, runs.
pub(crate) async fn stopped(name: &ModelName) -> Result<(), Complaint> {
    let active = systemd::active("berth-model@*").await.map_err(|failed| {
        Complaint::new(Exit::Usage, "no_systemd", format!("whether {name} runs can't be seen: {failed}"), &[])
    })?;
    let runs = active
        .iter()
        .filter_map(|unit| ModelName::from_unit(unit))
        .find(|running| running.as_str().split(':').next() == Some(name.as_str()));
    match runs {
        None => Ok(()),
        Some(running) => {
            let title = format!("{running} runs. Nothing was changed.");
            Err(Complaint::new(Exit::Refused, "in_use", title, &[format!("berthctl stop {running}")]))
        }
    }
}

/// What is removed: the declaration, the drop-ins of its unit, its secrets.
fn paths(name: &ModelName, declaration_path: &Path) -> Vec<PathBuf> {
    let mut paths = vec![declaration_path.to_owned()];
    if declaration_path != declaration(name) && declaration(name).exists() {
        paths.push(declaration(name));
    }
    paths.extend(drop_ins(name));
    let secrets = PathBuf::from(secrets_path(name));
    if secrets.exists() {
        paths.push(secrets);
    }
    paths
}

/// A service of its own that runs the model as it is declared, on the GPUs that it takes by itself, and the file of its
/// secrets.
fn service(name: &ModelName, settings: &Settings) -> Result<Vec<Change>, Complaint> {
    let path = PathBuf::from(format!("/etc/systemd/system/{name}.service"));
    if path.symlink_metadata().is_ok() {
        let title = format!("{} is there already", path.display());
        let hints = ["leave --unit out, or move it away".to_owned()];
        return Err(Complaint::new(Exit::Usage, "in_the_way", title, &hints));
    }
    let Some(model) = settings.models.get(name) else { return Ok(Vec::new()) };
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| {
            let title = format!("{} can't be read: {error}", path.display());
            Complaint::new(Exit::Usage, "unreadable", title, &["run it with sudo".to_owned()])
        })
    };
    let mut drop_ins = String::new();
    for file in self::drop_ins(name) {
        drop_ins.push('\n');
        let text = read(&file)?;
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            drop_ins.push_str(line);
            drop_ins.push('\n');
        }
    }
    let secrets = secrets_path(name);
    let mut changes = Vec::new();
    if Path::new(&secrets).exists() {
        let moved = format!("/etc/systemd/system/{name}.env");
        changes.push(Change::write(&moved, read(Path::new(&secrets))?, 0o600));
        drop_ins = drop_ins.replace(&secrets, &moved);
    }
    changes.push(Change::write(path, unit_text(model, &drop_ins), 0o644));
    Ok(changes)
}

/// The drop-ins of the model's unit, in their order.
fn drop_ins(name: &ModelName) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(drop_in_folder(name)).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|kind| kind == "conf"));
    paths.sort();
    paths
}

fn unit_text(model: &Model, drop_ins: &str) -> String {
    let mut launch = backend::launch(model, &[], &Layout::default());
    // Without Berth nobody says which GPUs it sees, unless its declaration does.
    let unsaid = |name: &str| name.starts_with("CUDA_") && !model.env.contains_key(name);
    launch.argv.retain(|arg| !arg.strip_prefix("--env=").is_some_and(unsaid));
    launch.env.retain(|name, _| !unsaid(name));
    let mut text = format!(
        "[Unit]\nDescription=Model {}\nAfter=network.target\n\n[Service]\nType=exec\nUser=berth-model\nWorkingDirectory=-~\n",
        model.name
    );
    if let Some(cwd) = &launch.cwd {
        // Writing to a String can't fail; nor below.
        _ = writeln!(text, "WorkingDirectory={}", cwd.display().to_string().replace('%', "%%"));
    }
    for (name, value) in &launch.env {
        _ = writeln!(text, "Environment={}", word(&format!("{name}={value}"), false));
    }
    if let Some(container) = &model.container {
        container.without_berth(model, &mut launch.argv);
    }
    let argv: Vec<String> = launch.argv.iter().map(|arg| word(arg, true)).collect();
    _ = writeln!(text, "ExecStart={}\nRestart=on-failure\nLimitMEMLOCK=infinity", argv.join(" "));
    text.push_str(drop_ins);
    text.push_str("\n[Install]\nWantedBy=multi-user.target\n");
    text
}

/// A word as systemd reads it back; in a command a `$` would be a variable's.
pub(crate) fn word(text: &str, in_command: bool) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '%' => out.push_str("%%"),
            '$' if in_command => out.push_str("$$"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out + "\""
}

fn before(was: Option<&str>, removed: &[PathBuf], own: &[Change]) -> String {
    let mut out = String::new();
    for path in removed {
        out.push_str(&paragraph(&format!("{}  ", path.display()), "removed"));
    }
    if let Some(unit) = was {
        out.push_str(&paragraph(
            &format!("{unit}  "),
            "back as it was: its file, and what it was enabled for",
        ));
    }
    if let Some(Change { path, after: After::File { text, .. } }) = own.last() {
        _ = writeln!(out, "{}", path.display());
        for line in text.lines() {
            _ = writeln!(out, "{}", format!("  {}", clean(line)).trim_end());
        }
    }
    out
}

fn after(prepared: &Prepared, left: &[String]) -> String {
    let mut out = paragraph("", &format!("{} is no longer Berth's.", prepared.name));
    for what in left {
        out.push_str(&paragraph("still to do: ", &clean(what)));
    }
    if let Some(unit) = &prepared.goes_on {
        out.push_str(&paragraph("", &format!("{unit} serves on.")));
    }
    if let Some(service) = prepared.service().filter(|service| prepared.goes_on.as_ref() != Some(service)) {
        let first = prepared.goes_on.as_ref().map(|unit| format!("sudo systemctl stop {unit}, then "));
        let first = first.unwrap_or_default();
        out.push_str(&paragraph("", &format!("Next: {first}sudo systemctl start {service}")));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::unit::{Around, File, Unit, commands, expanded};

    #[test]
    fn a_container_of_its_own_has_gpus_and_none_of_berth_s_marks() {
        let text = |command: &str| {
            let path = PathBuf::from("/etc/berth/models.d/q.toml");
            let text = format!("cmd = \"{command}\"\nport = 8022\n");
            let models = vec![config::SourceFile { path, text }];
            let settings = config::load(&config::Sources { models, ..config::Sources::default() }, "tower");
            let settings = settings.unwrap();
            let text = unit_text(settings.models.values().next().unwrap(), "");
            text.lines().find(|line| line.starts_with("ExecStart=")).unwrap().to_owned()
        };
        let all = [
            "/usr/bin/docker run -p 8022:8000 vllm/vllm-openai --model a/b",
            "/usr/bin/docker run --gpus device=1 -p 8022:8000 vllm/vllm-openai --model a/b",
            "/usr/bin/podman run --network=host vllm/vllm-openai --model a/b",
        ];
        insta::assert_snapshot!(all.map(text).join("\n"));
    }

    #[test]
    fn a_service_of_its_own_runs_what_was_declared() {
        let text = "program = \"/opt/llama.cpp/llama-server\"\n\
            args = [\"-m\", \"/models/a b.gguf\", \"--chat-template\", \"{{ \\\"x\\\" }} 100% ${HOME}\\n\\\\\", \"\", \"$A\"]\n\
            port = 8022\nctx = 4096\ncwd = \"/srv\"\nenv = { A = \"b $c %d\" }\n";
        let path = PathBuf::from("/etc/berth/models.d/gemma.toml");
        let sources = config::Sources {
            models: vec![config::SourceFile { path, text: text.to_owned() }],
            ..config::Sources::default()
        };
        let settings = config::load(&sources, "tower").unwrap();
        let model = settings.models.values().next().unwrap();
        let text = unit_text(model, "\n[Service]\nUser=frank\n");
        let file = File { path: "gemma.service".into(), text };
        let (unit, around) = (Unit::read("gemma.service", &[file]).unwrap(), Around::default());
        let command =
            commands(&unit.last("Service", "ExecStart").unwrap().value, &unit, &around).unwrap().remove(0);
        let args = expanded(&command.args, &std::collections::BTreeMap::new(), |_| None).unwrap();
        let declared =
            ["-m", "/models/a b.gguf", "--chat-template", "{{ \"x\" }} 100% ${HOME}\n\\", "", "$A"];
        let added = ["--host", "127.0.0.1", "--port", "8022", "-c", "4096"];
        assert_eq!(args, [declared.as_slice(), &added].concat());
        let set =
            crate::unit::assignments(&unit.last("Service", "Environment").unwrap().value, &unit, &around)
                .unwrap();
        assert_eq!(set, [("A".to_owned(), "b $c %d".to_owned())]);
        assert_eq!(unit.last("Service", "User").unwrap().value, "frank");
        assert_eq!(unit.last("Service", "WorkingDirectory").unwrap().value, "/srv");
    }
}
