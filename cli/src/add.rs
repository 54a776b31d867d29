//! `berthctl add`: what serves a model today becomes a declaration, with everything that has to change for it shown
//! first and recorded for the way back (`remove.rs`).
//!
//! Each kind of thing that can be added has a file below that makes a [`Draft`] of it; from there on all are treated
//! alike.

mod command_line;
mod container;
mod draft;
mod find;
mod from_file;
mod from_process;
mod from_unit;
mod llama_swap;
mod measured;
mod quadlet;
mod setting;
mod show;
mod taken;

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};

use berth_core::backend;
use berth_core::config::{self, BackendKind, Memory, Settings, SourceFile, Sources};
use berth_core::facts::Known;
use berth_core::name::ModelName;
use berth_core::report::{Accepted, Request, Verb};
use nix::unistd::geteuid;

use crate::access::{self, Identity, Refused, Step, Want};
use crate::args::AddOptions;
use crate::changes::{self, Change};
use crate::check;
use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;
use crate::systemd::{self, Loaded};
use crate::verbs::Context;
use berth_observe::scope::Scope;

pub(crate) use draft::{Draft, Note, drop_in_folder, secrets_path};
use from_unit::Refusal;

/// Where records of what `add` changed lie.
const RECORDS: &str = "/etc/berth/added";

/// The user that berthd runs as.
const BERTHD: &str = "berth";

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
    /// The process that it is, where no service runs it.
    pub(crate) process: Option<u32>,
    /// What of a file with several models has no equal.
    pub(crate) notes: Vec<draft::Note>,
}

impl Addition {
    fn of(draft: Draft) -> Self {
        Self { drafts: vec![draft], service: None, process: None, notes: Vec::new() }
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

/// The links in an administrator's units that start this service at boot, or name it otherwise.
pub(crate) fn links(unit: &str) -> Vec<PathBuf> {
    find::links(Path::new(UNITS), unit)
}

/// Where the record of a model lies.
pub(crate) fn record(name: &ModelName) -> PathBuf {
    Path::new(RECORDS).join(name.as_str())
}

/// The file that declares a model.
pub(crate) fn declaration(name: &ModelName) -> PathBuf {
    Scope::System.config().join("models.d").join(format!("{name}.toml"))
}

/// What would be added, with every change that it takes; nothing is changed yet.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) addition: Addition,
    /// What command lines say of placement, by model.
    placed: Vec<Vec<String>>,
    changes: Vec<Vec<Change>>,
    /// The whole configuration with it.
    pub(crate) settings: Settings,
}

/// Adds what `what` names.
pub(crate) async fn add(what: &str, options: &AddOptions, berth: &Context) -> Result<Exit, Complaint> {
    let prepared = prepare(what, options, berth.out).await?;
    let Prepared { addition, placed, changes, .. } = &prepared;
    let shown = show::Shown { addition, placed, options, changes, stays: prepared.stays() };
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
    let mut after = prepared.carry_out(&format!("berthctl add {what}")).await?;
    if let Some(service) = addition.service.as_ref().filter(|service| options.stop && service.loaded.runs()) {
        after.extend(systemd::stop(&service.unit).await.err().map(|failed| failed.to_string()));
    }
    match reload(berth).await {
        Ok(()) => after.extend(prepared.keep(berth).await),
        Err(why) => {
            after.push(not_taken_up(&why));
            after.extend(prepared.not_kept());
        }
    }
    shown.tell(berth.out, Some(&after));
    Ok(if after.is_empty() { Exit::Done } else { Exit::Degraded })
}

/// Reads what `what` names, and makes sure that it can be added.
pub(crate) async fn prepare(what: &str, options: &AddOptions, out: Out) -> Result<Prepared, Complaint> {
    let mut addition = find::find(what, options).await?;
    if options.stop && addition.service.is_none() {
        let title = format!("{what} is no service of this machine that could be stopped");
        return Err(Complaint::new(Exit::Usage, "nothing_to_stop", title, &["leave --stop out".to_owned()]));
    }
    let sources = valid_sources()?;
    if let (Some(service), [draft]) = (&addition.service, addition.drafts.as_mut_slice())
        && service.loaded.runs()
        && !options.stop
    {
        if draft.apart {
            draft.note(service.unit.clone(), container::APART);
        } else {
            draft.replace(&service.unit);
        }
    }
    for draft in &mut addition.drafts {
        if let Some(user) = &options.run_as {
            runs_as(draft, user)?;
        }
        vacant(&draft.name, &sources)?;
    }
    let placed = placed(&mut addition, &sources, options.let_berth_place);
    let mut settings = valid(&addition, &sources).map_err(|errors| not_valid(&errors, out))?;
    if taken::finds_port(&mut addition, &settings) {
        settings = valid(&addition, &sources).map_err(|errors| not_valid(&errors, out))?;
    }
    let berthd = Identity::of_unit(BERTHD, "", &[]).ok();
    let why = |draft: &Draft| undeclared(draft, &settings, berthd.as_ref());
    let whys: Vec<_> = addition.drafts.iter().map(why).collect();
    if whys.iter().any(Option::is_some) {
        if measured::declare(&mut addition).await {
            _ = valid(&addition, &sources).map_err(|errors| not_valid(&errors, out))?;
        } else {
            let silent = addition.drafts.iter_mut().zip(whys);
            silent.for_each(|(draft, why)| why.into_iter().for_each(|why| draft.note("memory", why)));
        }
    }
    let changes = to_change(&addition);
    Ok(Prepared { addition, placed, changes, settings })
}

impl Prepared {
    /// Makes the changes of every draft, or of none, and has systemd load its units anew; `about` says what for. Gives what
    /// is left to do. berthd has not been told yet.
    pub(crate) async fn carry_out(&self, about: &str) -> Result<Vec<String>, Complaint> {
        let addition = &self.addition;
        make(addition, &self.changes, about).map_err(|failed| cannot_write(&failed))?;
        if let (Some(pid), Some(draft)) = (addition.process, addition.drafts.first())
            && let Some(scope) = draft.replaces()
            && let Err(failed) = taken::take(pid, scope, &draft.name).await
        {
            // Why it failed is what has to be told; what stays behind is a model that `remove` takes away.
            _ = changes::undo(&record(&draft.name));
            let title = format!("process {pid} can't be taken over: {failed}. Nothing was changed.");
            return Err(Complaint::new(Exit::Refused, "not_taken", title, &[]));
        }
        if addition.service.is_none() && addition.drafts.iter().all(|draft| draft.drop_in().is_none()) {
            return Ok(Vec::new());
        }
        Ok(systemd::daemon_reload().await.err().map(|failed| failed.to_string()).into_iter().collect())
    }
}

impl Prepared {
    /// Whether what runs goes on as the model, and was to come back after a boot.
    pub(crate) fn stays(&self) -> bool {
        let enabled = self.addition.service.as_ref().is_some_and(|service| !service.links.is_empty());
        enabled && self.addition.drafts.iter().any(|draft| draft.replaces().is_some())
    }

    /// What is left to do where berthd has not taken it up.
    pub(crate) fn not_kept(&self) -> Option<String> {
        let draft = self.addition.drafts.first().filter(|_| self.stays())?;
        Some(format!("then `berthctl start {}`, or it does not come back after a boot", draft.name))
    }

    /// Lets what came back after a boot do so as Berth's; berthd has taken it up. Gives what is left to do.
    pub(crate) async fn keep(&self, berth: &Context) -> Option<String> {
        let draft = self.addition.drafts.first().filter(|_| self.stays())?;
        let request =
            Request { verb: Verb::Start, model: Some(draft.name.to_string()), set: BTreeMap::new() };
        let kept: Result<Accepted, _> = berth.client.post("/api/v1/swaps", &request).await;
        let why = Complaint::from(kept.err()?).title;
        Some(format!("{why}; `berthctl start {}`, or it does not come back after a boot", draft.name))
    }
}

/// Makes the changes of every draft, or of none.
fn make(addition: &Addition, changes: &[Vec<Change>], about: &str) -> Result<(), changes::Failed> {
    let unit = addition.service.as_ref().map(|service| service.unit.as_str());
    for (at, (draft, changes)) in addition.drafts.iter().zip(changes).enumerate() {
        if let Err(failed) = changes::make(changes, &record(&draft.name), about, unit) {
            for before in &addition.drafts[..at] {
                // Why it failed is what has to be told; what stays behind is a model that `remove` takes away.
                _ = changes::undo(&record(&before.name));
            }
            return Err(failed);
        }
    }
    Ok(())
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
        changes.extend(draft.replaces().map(|unit| taken::rule(&draft.name, unit)));
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
        // An engine's options are no flags of the server's.
        let inside = model.is_some_and(|model| model.container.is_some());
        let before = if inside { args.len() - model.map_or(0, |model| model.args.len()) } else { 0 };
        let (program, engine, mut args) = (program.clone(), args[..before].to_vec(), args[before..].to_vec());
        let (kept, mut found) = container::without_gpus(&engine);
        found.extend(backend::placing(kind, &args, &draft.env));
        if let_berth {
            backend::without_placing(kind, &mut args, &mut draft.env);
            draft.argv = std::iter::once(program).chain(kept).chain(args).collect();
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
    let folder = Scope::System.config();
    if folder.exists() { check::read(&folder) } else { Ok(Sources::default()) }
}

/// What is declared now, which has to be valid before anything is added to it.
fn valid_sources() -> Result<Sources, Complaint> {
    let sources = sources()?;
    match config::load(&sources, &check::host()) {
        Ok(_) => Ok(sources),
        Err(errors) => {
            let folder = Scope::System.config();
            let title = format!("{} is not valid as it is: {} to mend first", folder.display(), errors.len());
            Err(Complaint::new(Exit::Usage, "not_valid", title, &["berthctl check".to_owned()]))
        }
    }
}

/// Why the model can't be started until its memory is declared; None where it can. `berthd` is who reads its files then.
fn undeclared(draft: &Draft, settings: &Settings, berthd: Option<&Identity>) -> Option<String> {
    const DECLARE: &str = "add [memory] gpu = \"… GiB\"";
    let model = settings.models.get(&draft.name)?;
    if model.memory != Memory::Undeclared || !model.policy.uses_gpus() {
        return None;
    }
    if model.backend == BackendKind::Command {
        return Some(format!("Berth can't read how much this program takes: {DECLARE} before you start it"));
    }
    let (file, berthd) = (model.file.as_deref()?, berthd?);
    let closed = closed(file, berthd)?;
    let (shown, let_in) = (closed.shown(), closed.let_alone_in(berthd, Want::Read));
    Some(format!(
        "berthd can't read how much the model takes ({shown}): {let_in}, or {DECLARE}, before you start it"
    ))
}

/// What keeps somebody from reading a file.
fn closed(file: &Path, who: &Identity) -> Option<Step> {
    match access::judge(&access::look(file), who, Want::Read) {
        Known::Value(Err(Refused::By(step))) => Some(step),
        _ => None,
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
    container::rootless(draft, user);
    Ok(())
}

/// Ends here where who asks is not root.
pub(crate) fn root(verb: &str) -> Result<(), Complaint> {
    if geteuid().is_root() {
        return Ok(());
    }
    Err(Complaint::new(
        Exit::Usage,
        "not_root",
        "only root can change files in /etc".to_owned(),
        &[format!("sudo berthctl {verb} …, or --dry-run to see what would change")],
    ))
}

/// Asks, where somebody can be asked. Whoever says no has changed nothing.
pub(crate) fn agreed(consent: Consent, question: &str) -> Result<(), Complaint> {
    if consent.yes {
        return Ok(());
    }
    askable()?;
    match answer(&format!("{question} [y/N] ")) {
        Some(answer) if YES.contains(&answer.as_str()) => Ok(()),
        _ => Err(Complaint::new(Exit::Refused, "declined", "Nothing was changed.".to_owned(), &[])),
    }
}

/// What counts as yes.
pub(crate) const YES: [&str; 2] = ["y", "yes"];

/// Ends here where nobody can be asked.
pub(crate) fn askable() -> Result<(), Complaint> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    let title = "nobody can be asked here, so nothing was changed".to_owned();
    Err(Complaint::new(Exit::Usage, "not_asked", title, &["--yes".to_owned()]))
}

/// What somebody types, in lower case; None at the end of their input.
pub(crate) fn answer(question: &str) -> Option<String> {
    Out::complain(question);
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok_and(|bytes| bytes > 0).then(|| answer.trim().to_ascii_lowercase())
}

/// Has berthd take up what is declared now. Says what is left to do where it does not.
pub(crate) async fn reload(berth: &Context) -> Result<(), Complaint> {
    let reloaded: Result<berth_core::report::Reloaded, _> = berth.client.post("/api/v1/reload", &()).await;
    reloaded.map(drop).map_err(Complaint::from)
}

/// What is left to do where berthd did not take up what was added.
pub(crate) fn not_taken_up(why: &Complaint) -> String {
    if why.code == "berthd_not_running" {
        "berthd is not running, and nothing else starts a model: sudo systemctl enable --now berthd"
            .to_owned()
    } else {
        format!("berthd has not taken it up: {}; `sudo berthctl reload` once that is over", why.title)
    }
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
    let mut title = "it would not be a valid declaration, so nothing was changed".to_owned();
    if out.json {
        title = format!("{title}: {}", rendered.join("; "));
    }
    Complaint::new(Exit::Usage, "not_valid", title, &["berthctl check".to_owned()])
}

pub(crate) fn cannot_write(failed: &changes::Failed) -> Complaint {
    let title = format!("{failed}; what was changed before that has been put back");
    Complaint::new(Exit::Usage, "not_written", title, &[])
}

#[cfg(test)]
mod tests;
