//! `berthctl add`: what serves a model today becomes a declaration, with everything that has to change for it shown
//! first and recorded for the way back (`remove.rs`).
//!
//! Each kind of thing that can be added has a file below that makes a [`Draft`] of it; from there on all are treated
//! alike.

mod command_line;
mod draft;
mod from_file;
mod from_process;
mod from_unit;
mod llama_swap;
mod quadlet;
mod setting;
mod show;

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};

use berth_core::backend;
use berth_core::config::{self, BackendKind, Memory, Settings, SourceFile, Sources};
use berth_core::name::ModelName;
use nix::unistd::geteuid;

use crate::args::{AddOptions, CONFIG};
use crate::changes::{self, Change};
use crate::check;
use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;
use crate::systemd::{self, Loaded};
use crate::unit::{self, Around, File, Unit};
use crate::verbs::Context;

pub(crate) use draft::{Draft, drop_in_folder, secrets_path};
use from_unit::Refusal;

/// Where records of what `add` changed lie.
const RECORDS: &str = "/etc/berth/added";

/// Where an administrator's units lie.
const UNITS: &str = "/etc/systemd/system";

/// Whether people are asked, and whether anything is done at all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Consent {
    pub(crate) yes: bool,
    pub(crate) dry_run: bool,
}

/// What is to be added.
#[derive(Debug)]
pub(crate) struct Addition {
    pub(crate) drafts: Vec<Draft>,
    /// The service that it was, where it is one of this machine.
    pub(crate) service: Option<Service>,
    /// What of a file with several models has no equal.
    pub(crate) notes: Vec<draft::Note>,
}

impl Addition {
    fn of(draft: Draft) -> Self {
        Self { drafts: vec![draft], service: None, notes: Vec::new() }
    }
}

/// A service that is to be replaced.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) unit: String,
    pub(crate) loaded: Loaded,
    /// The links that start it at boot, or name it otherwise.
    pub(crate) links: Vec<PathBuf>,
}

/// Where the record of a model lies.
pub(crate) fn record(name: &ModelName) -> PathBuf {
    Path::new(RECORDS).join(name.as_str())
}

/// The file that declares a model.
pub(crate) fn declaration(name: &ModelName) -> PathBuf {
    Path::new(CONFIG).join("models.d").join(format!("{name}.toml"))
}

/// Adds what `what` names.
pub(crate) async fn add(what: &str, options: &AddOptions, berth: &Context) -> Result<Exit, Complaint> {
    let mut addition = find(what, options).await?;
    if options.stop && addition.service.is_none() {
        let title = format!("{what} is no service of this machine that could be stopped");
        return Err(Complaint::new(Exit::Usage, "nothing_to_stop", title, &["leave --stop out".to_owned()]));
    }
    let sources = sources()?;
    for draft in &mut addition.drafts {
        if let Some(user) = &options.user {
            runs_as(draft, user)?;
        }
        vacant(&draft.name, &sources)?;
    }
    let placed = placed(&mut addition, &sources, options.let_berth_place);
    let settings = match valid(&addition, &sources) {
        Ok(settings) => settings,
        Err(errors) => return Err(not_valid(&errors, berth.out)),
    };
    for draft in &mut addition.drafts {
        undeclared(draft, &settings);
    }
    let changes = to_change(&addition);
    let shown = show::Shown { addition: &addition, placed: &placed, options, changes: &changes };
    if options.dry_run {
        shown.tell(berth.out, None);
        return Ok(Exit::Done);
    }
    root("add")?;
    if !berth.out.json {
        shown.tell(berth.out, None);
    }
    let consent = Consent { yes: options.yes, dry_run: false };
    agreed(consent, "Make these changes?")?;
    make(&addition, &changes, what).map_err(|failed| cannot_write(&failed))?;
    let mut after = Vec::new();
    if addition.service.is_some() || addition.drafts.iter().any(|draft| draft.drop_in().is_some()) {
        after.extend(systemd::daemon_reload().await.err().map(|failed| failed.to_string()));
    }
    if let Some(service) = addition.service.as_ref().filter(|service| options.stop && service.loaded.runs()) {
        after.extend(systemd::stop(&service.unit).await.err().map(|failed| failed.to_string()));
    }
    after.extend(reload(berth).await);
    shown.tell(berth.out, Some(&after));
    Ok(if after.is_empty() { Exit::Done } else { Exit::Degraded })
}

/// Makes the changes of every draft, or of none.
fn make(addition: &Addition, changes: &[Vec<Change>], what: &str) -> Result<(), changes::Failed> {
    let unit = addition.service.as_ref().map(|service| service.unit.as_str());
    for (at, (draft, changes)) in addition.drafts.iter().zip(changes).enumerate() {
        if let Err(failed) =
            changes::make(changes, &record(&draft.name), &format!("berthctl add {what}"), unit)
        {
            for before in &addition.drafts[..at] {
                // Why it failed is what has to be told; what stays behind is a model that `remove` takes away.
                _ = changes::undo(&record(&before.name));
            }
            return Err(failed);
        }
    }
    Ok(())
}

/// What `what` names, read and translated.
async fn find(what: &str, options: &AddOptions) -> Result<Addition, Complaint> {
    let path = Path::new(what);
    let name = options.name.as_deref();
    let refused = |refusal| refused(what, refusal);
    if what.chars().all(|c| c.is_ascii_digit()) {
        let pid = what.parse().map_err(|_| no_such(what))?;
        return match systemd::service_of(pid) {
            Some(unit) => of_machine(&unit, name).await,
            None => from_process::read(pid, name).map(Addition::of).map_err(refused),
        };
    }
    let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default().to_ascii_lowercase();
    if !what.contains('/') && !path.exists() {
        let unit = if kind == "service" { what.to_owned() } else { format!("{what}.service") };
        return of_machine(&unit, name).await;
    }
    match kind.as_str() {
        "yaml" | "yml" => llama_swap::read(path, name).map_err(refused),
        "container" | "kube" | "pod" => Err(refused(quadlet::refusal(path))),
        "service" => of_file(path, name).await,
        _ if !path.exists() => Err(no_such(what)),
        _ => from_file::read(path, name).map(Addition::of).map_err(refused),
    }
}

/// A service as systemd has it loaded.
async fn of_machine(unit: &str, name: Option<&str>) -> Result<Addition, Complaint> {
    let no_systemd = |failed: systemd::Failed| {
        let hint = "berthctl add ./FILE.service --dry-run reads a unit's file alone".to_owned();
        Complaint::new(
            Exit::Usage,
            "no_systemd",
            format!("systemd can't be asked for {unit}: {failed}"),
            &[hint],
        )
    };
    let loaded = systemd::loaded(unit).await.map_err(no_systemd)?;
    let wrong = match loaded.load.as_str() {
        _ if ModelName::from_unit(unit).is_some() => {
            Some(("is one of Berth's own".to_owned(), "berthctl status".to_owned()))
        }
        "not-found" => Some((
            "is no service that systemd knows".to_owned(),
            "systemctl list-unit-files --type=service".to_owned(),
        )),
        "masked" => Some(("is masked, so it can't be read".to_owned(), format!("systemctl unmask {unit}"))),
        "loaded" if loaded.stale => Some((
            "was changed on the disk and not loaded since".to_owned(),
            "sudo systemctl daemon-reload".to_owned(),
        )),
        "loaded" if loaded.files.is_empty() => {
            Some(("has no file of its own".to_owned(), format!("systemctl cat {unit}")))
        }
        // What is wrong with it is told by its line below.
        "loaded" | "bad-setting" => None,
        other => Some((format!("can't be loaded by systemd ({other})"), format!("systemctl status {unit}"))),
    };
    if let Some((what, hint)) = wrong {
        return Err(Complaint::new(Exit::Usage, "no_such_service", format!("{unit} {what}"), &[hint]));
    }
    if let Some(socket) = loaded.triggers.iter().find(|one| one.ends_with(".socket")) {
        let refusal = Refusal::new(
            format!("{unit} is given its port by {socket}, and a model opens its port itself"),
            "let the server listen itself, and disable the socket",
        );
        return Err(refused(unit, refusal));
    }
    let files = loaded.files.iter().map(|path| read_unit(path)).collect::<Result<Vec<_>, _>>()?;
    let around = around(systemd::environment().await.map_err(no_systemd)?);
    let read = Unit::read(unit, &files).map_err(|wrong| refused(unit, wrong.into()))?;
    let draft = of_unit(&read, name, &around)?;
    if loaded.load == "bad-setting" {
        let title = format!("{unit} has a setting that systemd does not load it with");
        return Err(Complaint::new(
            Exit::Usage,
            "no_such_service",
            title,
            &[format!("systemctl status {unit}")],
        ));
    }
    same_as_systemd(&read, &around, &loaded).map_err(|refusal| refused(unit, refusal))?;
    let service = Service { unit: unit.to_owned(), links: links(Path::new(UNITS), unit), loaded };
    Ok(Addition { service: Some(service), ..Addition::of(draft) })
}

/// A unit's file with the drop-ins beside it.
async fn of_file(path: &Path, name: Option<&str>) -> Result<Addition, Complaint> {
    let unreadable = |error: io::Error| {
        let title = format!("can't read {}: {error}", path.display());
        Complaint::new(Exit::Usage, "unreadable", title, &[format!("ls -l {}", path.display())])
    };
    let files = unit::beside(path).map_err(unreadable)?;
    let unit = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // Where there is no systemd, what only that knows can't be told.
    let around = around(systemd::environment().await.unwrap_or_default());
    let read = Unit::read(&unit, &files).map_err(|wrong| refused(&unit, wrong.into()))?;
    of_unit(&read, name, &around).map(Addition::of)
}

fn of_unit(unit: &Unit, name: Option<&str>, around: &Around) -> Result<Draft, Complaint> {
    let name = named(name, &from_unit::name(unit))?;
    from_unit::translate(unit, name, around).map_err(|refusal| refused(&unit.name, refusal))
}

fn read_unit(path: &Path) -> Result<File, Complaint> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let title = format!("can't read {}: {error}", path.display());
        Complaint::new(Exit::Usage, "unreadable", title, &["run it with sudo".to_owned()])
    })?;
    Ok(File { path: path.to_owned(), text })
}

/// Refuses what systemd reads otherwise than we do.
fn same_as_systemd(unit: &Unit, around: &Around, loaded: &Loaded) -> Result<(), Refusal> {
    let (start, environment) = from_unit::reading(unit, around)?;
    let theirs: std::collections::BTreeSet<&String> = loaded.environment.iter().collect();
    if start != loaded.start || environment.iter().collect::<std::collections::BTreeSet<_>>() != theirs {
        let what = format!("systemd reads {} otherwise than berthctl does", unit.name);
        return Err(Refusal::new(
            what,
            format!("compare `systemctl show {} -p ExecStart -p Environment`", unit.name),
        ));
    }
    Ok(())
}

fn around(environment: unit::Variables) -> Around {
    let machine_id = std::fs::read_to_string("/etc/machine-id").ok();
    Around {
        root: "/".into(),
        environment,
        hostname: check::host(),
        machine_id: machine_id.map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()),
    }
}

/// The links in an administrator's units that lead to this one: what it is enabled for, and its other names.
fn links(units: &Path, unit: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(units).into_iter().flatten().flatten() {
        let path = entry.path();
        let folder = path
            .extension()
            .is_some_and(|kind| ["wants", "requires", "upholds"].iter().any(|one| kind == *one));
        if folder {
            let link = path.join(unit);
            if link.is_symlink() {
                found.push(link);
            }
        } else if path.file_name().is_some_and(|name| name != unit)
            && std::fs::read_link(&path).is_ok_and(|to| to.file_name().is_some_and(|name| name == unit))
        {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The changes that each draft takes.
fn to_change(addition: &Addition) -> Vec<Vec<Change>> {
    let of = |draft: &Draft| {
        let mut changes = Vec::new();
        if let Some(text) = draft.secrets() {
            changes.push(Change::write(secrets_path(&draft.name), text, 0o600));
        }
        if let Some(text) = draft.drop_in() {
            changes.push(Change::write(format!("{}/added.conf", drop_in_folder(&draft.name)), text, 0o644));
        }
        changes.push(Change::write(declaration(&draft.name), draft.declaration(), 0o644));
        changes
    };
    let mut all: Vec<_> = addition.drafts.iter().map(of).collect();
    if let (Some(first), Some(service)) = (all.first_mut(), &addition.service) {
        first.extend(service.links.iter().map(Change::remove));
        first.push(Change::link(Path::new(UNITS).join(&service.unit), "/dev/null"));
    }
    all
}

/// What the command lines say of placement, by model; taken out where Berth is to place them.
fn placed(addition: &mut Addition, sources: &Sources, let_berth: bool) -> Vec<Vec<String>> {
    // Which server it is, its declaration says; where that is not valid, that is told later.
    let settings = valid(addition, sources).ok();
    let place = |draft: &mut Draft| {
        let model = settings.as_ref().and_then(|settings| settings.models.get(&draft.name));
        let kind = model.map_or(BackendKind::Command, |model| model.backend);
        let Some((program, args)) = draft.argv.split_first() else { return Vec::new() };
        let (program, mut args) = (program.clone(), args.to_vec());
        let found = backend::placing(kind, &args, &draft.env);
        if let_berth {
            backend::without_placing(kind, &mut args, &mut draft.env);
            draft.argv = std::iter::once(program).chain(args).collect();
        }
        found
    };
    addition.drafts.iter_mut().map(place).collect()
}

/// The whole configuration with what is added.
fn valid(addition: &Addition, sources: &Sources) -> Result<Settings, Vec<config::ConfigError>> {
    let mut sources = sources.clone();
    let files = addition
        .drafts
        .iter()
        .map(|draft| SourceFile { path: declaration(&draft.name), text: draft.declaration() });
    sources.models.extend(files);
    config::load(&sources, &check::host())
}

/// What is declared; nothing where Berth has no configuration yet.
pub(crate) fn sources() -> Result<Sources, Complaint> {
    if Path::new(CONFIG).exists() { check::read(Path::new(CONFIG)) } else { Ok(Sources::default()) }
}

/// Says where a model can't be started until its memory is declared.
fn undeclared(draft: &mut Draft, settings: &Settings) {
    let model = settings.models.get(&draft.name);
    if model.is_some_and(|model| {
        model.backend == BackendKind::Command
            && model.memory == Memory::Undeclared
            && model.policy.uses_gpus()
    }) {
        let why =
            "Berth can't read how much this program takes: add [memory] gpu = \"… GiB\" before you start it";
        draft.note("memory", why);
    }
}

/// Refuses a name that is taken.
fn vacant(name: &ModelName, sources: &Sources) -> Result<(), Complaint> {
    let path = declaration(name);
    if sources.models.iter().any(|file| file.path == path) || record(name).exists() {
        let title = format!("there is a model {name} already, in {}", path.display());
        let hints = [format!("--name OTHER, or first: sudo berthctl remove {name}")];
        return Err(Complaint::new(Exit::Usage, "name_taken", title, &hints));
    }
    Ok(())
}

/// The model's name: as it is asked for, else this one.
fn named(asked: Option<&str>, otherwise: &str) -> Result<ModelName, Complaint> {
    let name = asked.unwrap_or(otherwise);
    let plain = || name.parse::<ModelName>().map_err(|bad| bad.to_string());
    plain()
        .and_then(|name| {
            if name.as_str().contains(':') { Err(format!("`{name}` is a variant's name")) } else { Ok(name) }
        })
        .map_err(|why| Complaint::new(Exit::Usage, "bad_name", why, &["--name NAME".to_owned()]))
}

/// A text as a model could be called.
fn sound_name(text: &str) -> String {
    let name: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    name.trim_start_matches(['.', '-']).to_owned()
}

/// Lets the server run as somebody else.
fn runs_as(draft: &mut Draft, user: &str) -> Result<(), Complaint> {
    let known = nix::unistd::User::from_name(user).ok().flatten();
    if known.is_none() {
        let title = format!("there is no user {user} on this machine");
        return Err(Complaint::new(Exit::Usage, "no_such_user", title, &["getent passwd".to_owned()]));
    }
    let about = |line: &String| {
        ["User=", "Group=", "CapabilityBoundingSet=~"].iter().any(|key| line.starts_with(key))
    };
    draft.service.retain(|line| !about(line));
    draft.service.insert(0, format!("User={user}"));
    draft.notes.retain(|note| note.why != from_unit::AS_ROOT);
    Ok(())
}

/// Ends here where who asks is not root.
pub(crate) fn root(verb: &str) -> Result<(), Complaint> {
    if geteuid().is_root() {
        return Ok(());
    }
    let title = format!("only root can change files in /etc, and so {verb} a model");
    Err(Complaint::new(
        Exit::Usage,
        "not_root",
        title,
        &[format!("sudo berthctl {verb} …, or --dry-run to see what would change")],
    ))
}

/// Asks, where somebody can be asked. Whoever says no has changed nothing.
pub(crate) fn agreed(consent: Consent, question: &str) -> Result<(), Complaint> {
    if consent.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        let title = "nobody can be asked here, so nothing was changed".to_owned();
        return Err(Complaint::new(Exit::Usage, "not_asked", title, &["--yes".to_owned()]));
    }
    Out::complain(&format!("{question} [y/N] "));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()) {
        return Ok(());
    }
    Err(Complaint::new(Exit::Refused, "declined", "Nothing was changed.".to_owned(), &[]))
}

/// Has berthd take up what is declared now. Says what is left to do where it does not.
pub(crate) async fn reload(berth: &Context) -> Option<String> {
    let reloaded: Result<berth_core::report::Reloaded, _> = berth.client.post("/api/v1/reload", &()).await;
    let trouble = reloaded.err()?;
    let complaint = Complaint::from(trouble);
    // Without a berthd there is nothing to take up: the next one reads it when it starts.
    if complaint.code == "berthd_not_running" {
        return None;
    }
    Some(format!("berthd has not taken it up: {}; `sudo berthctl reload` once that is over", complaint.title))
}

/// Why something can't become a model.
fn refused(what: &str, refusal: Refusal) -> Complaint {
    let place = refusal.place.map_or(String::new(), |place| format!(" ({place})"));
    let hints: Vec<String> = refusal.instead.into_iter().collect();
    let title = format!("{what} can't be added: {}{place}. Nothing was changed.", refusal.what);
    Complaint::new(Exit::Refused, "not_addable", title, &hints)
}

fn no_such(what: &str) -> Complaint {
    let title = format!("{what} is no service, process or file");
    let hints = ["berthctl add NAME.service, a process's number, or a path".to_owned()];
    Complaint::new(Exit::Usage, "not_found", title, &hints)
}

fn not_valid(errors: &[config::ConfigError], out: Out) -> Complaint {
    let rendered: Vec<String> = errors.iter().map(|error| error.render(out.errors.color)).collect();
    if !out.json {
        Out::complain(&format!("{}\n\n", rendered.join("\n\n")));
    }
    let title = "it would not be a valid declaration, so nothing was changed".to_owned();
    Complaint::new(Exit::Usage, "not_valid", title, &["berthctl check".to_owned()])
}

pub(crate) fn cannot_write(failed: &changes::Failed) -> Complaint {
    let title = format!("{failed}; what was changed before that has been put back");
    Complaint::new(Exit::Usage, "not_written", title, &[])
}

#[cfg(test)]
mod tests;
