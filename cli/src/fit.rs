//! `berthctl fit`: whether models fit, judged without berthd as it would: by the files' headers, the policy and what is
//! on the devices now. Models of Berth that run count as absent.

mod find;
mod given;
mod judged;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_core::backend;
use berth_core::config::{self, BackendKind, ConfigError, Model, Settings, SourceFile, Sources};
use berth_core::facts::{Active, Facts, Gpu, Host, Known, Unit};
use berth_core::plan;
use berth_core::policy::Concession;
use berth_core::report::{Refusal, SCHEMA};
use berth_core::shape::Kind;
use berth_core::state::State;
use berth_observe::nvml::Nvml;
use berth_observe::{cpus, files, proc};
use serde::Serialize;

use crate::args::{CONFIG, FitOptions};
use crate::check;
use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;
use crate::render;
use crate::standalone::NVML;

pub(crate) use judged::{Device, Judged, judge};

/// What `--json` prints of one model.
#[derive(Serialize)]
struct One<'a> {
    schema: u32,
    exit: u8,
    #[serde(flatten)]
    model: &'a Judged,
}

/// What it prints of a folder.
#[derive(Serialize)]
struct All<'a> {
    schema: u32,
    exit: u8,
    #[serde(flatten)]
    folder: &'a Folder,
}

/// The models of a folder.
#[derive(Debug, Serialize)]
pub(crate) struct Folder {
    pub(crate) folder: PathBuf,
    pub(crate) models: Vec<Judged>,
    /// What is there and was not judged.
    pub(crate) others: Vec<NotJudged>,
}

/// A file that was not judged.
#[derive(Debug, Serialize)]
pub(crate) struct NotJudged {
    /// Its path below the folder.
    pub(crate) name: String,
    /// For programs: `projector`, `vocabulary`, `other`, `unreadable` or `not_judged`.
    pub(crate) kind: &'static str,
    /// What it is, or why it can't be judged.
    pub(crate) text: String,
}

/// What a server is judged against.
struct Ground {
    facts: Facts,
    state: State,
    /// No GPU is to be used.
    host_only: bool,
}

/// How a model on disk is judged: not declared, but as if it were.
struct Undeclared<'a> {
    sources: Sources,
    config: &'a Path,
    set: &'a BTreeMap<&'static str, String>,
}

/// Judges what is asked for.
pub(crate) async fn fit(what: &Path, options: &FitOptions, out: Out) -> Result<Exit, Complaint> {
    let set = given::settings(options)?;
    let given = options.gpus.as_deref().map(given::gpus).transpose()?;
    let config = &options.config;
    let meta = match fs::metadata(what) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound && is_name(what) => {
            let (settings, model) = declared(what, config)?;
            let model = changed(model, &settings, &set)?;
            let mut ground = Ground::look(given).await;
            ground.look_at(&model);
            let name = model.name.to_string();
            let judged = ground.judge(&settings, model, name).map_err(|refusal| refused(*refusal, what))?;
            return Ok(told(&judged, out));
        }
        Err(error) => {
            return Err(unreadable(what, &error.to_string()));
        }
    };
    let undeclared = Undeclared { sources: undeclared(config)?, config, set: &set };
    if meta.is_dir() && !is_model(what) {
        let (paths, unreadable_ones) =
            find::find(what).map_err(|error| unreadable(what, &error.to_string()))?;
        let mut ground = Ground::look(given).await;
        let folder = ground.judge_all(what, paths, unreadable_ones, &undeclared)?;
        return folder_told(&folder, out);
    }
    let (settings, model) = undeclared.model(what, given.as_ref().is_some_and(Vec::is_empty))?;
    let kind = match files::shape(what) {
        Ok(shape) => shape.kind,
        Err(why) => return Err(unreadable(what, &why)),
    };
    if let Some((_, text)) = not_a_model(kind) {
        let title = format!("{} is {text}", what.display());
        return Err(Complaint::new(
            Exit::Usage,
            "not_a_model",
            title,
            &["berthctl fit MODEL.gguf".to_owned()],
        ));
    }
    let mut ground = Ground::look(given).await;
    ground.look_at(&model);
    let name = what.display().to_string();
    let judged = ground.judge(&settings, model, name).map_err(|refusal| refused(*refusal, what))?;
    Ok(told(&judged, out))
}

fn told(judged: &Judged, out: Out) -> Exit {
    let exit = if judged.fits == Some(true) { Exit::Done } else { Exit::Refused };
    if out.json {
        Out::document(&One { schema: SCHEMA, exit: exit.code(), model: judged });
    } else {
        Out::say(&render::fit::one(judged, out.paint));
    }
    exit
}

fn folder_told(folder: &Folder, out: Out) -> Result<Exit, Complaint> {
    if folder.models.is_empty() && folder.others.is_empty() {
        let path = folder.folder.display();
        let title =
            format!("{path} holds no model: neither a GGUF file nor a config.json with safetensors files");
        return Err(Complaint::new(Exit::Usage, "no_model", title, &[format!("ls {path}")]));
    }
    let any = folder.models.iter().any(|model| model.fits == Some(true));
    let exit = match any {
        true => Exit::Done,
        false if folder.models.is_empty() => Exit::Usage,
        false => Exit::Refused,
    };
    if out.json {
        Out::document(&All { schema: SCHEMA, exit: exit.code(), folder });
    } else {
        Out::say(&render::fit::folder(folder, out.paint));
    }
    Ok(exit)
}

impl Ground {
    /// The GPUs, or those that are given instead, and the host, with nothing of Berth's on them.
    async fn look(given: Option<Vec<Gpu>>) -> Self {
        let host_only = given.as_ref().is_some_and(Vec::is_empty);
        let gpus = match given {
            Some(gpus) => Known::Value(gpus),
            None => Nvml::spawn().read_all(NVML).await,
        };
        let mut facts = Facts {
            at: proc::monotonic_now(),
            gpus,
            host: Host { memory: proc::host_memory(), cpus: cpus::online() },
            ..Facts::none_yet()
        };
        for (model, used) in proc::of_models() {
            let used = Known::Value(used);
            let unit = Unit {
                active: Active::Active,
                sub: String::new(),
                result: String::new(),
                exit: None,
                invocation: String::new(),
                started_at: None,
                main_pid: None,
                brought: proc::brought_by(&used, ""),
                processes: proc::started_of(&used),
            };
            facts.units.insert(model, unit);
        }
        let mut state = State::default();
        for model in facts.units.keys() {
            // One of which it can't be seen what it holds counts as foreign.
            if let Some(claim) = State::found(model, &facts) {
                state.claims.insert(model.clone(), claim);
            }
        }
        Self { facts, state, host_only }
    }

    /// Reads the headers of a model's files.
    fn look_at(&mut self, model: &Model) {
        for path in backend::of(model.backend).files(model) {
            let facts = files::look(&path, None);
            self.facts.files.insert(path, facts);
        }
    }

    fn judge(&self, settings: &Settings, mut model: Model, name: String) -> Result<Judged, Box<Refusal>> {
        if self.host_only
            && model.policy.uses_gpus()
            && let Some(policy) = settings.policies.get(HOST_POLICY)
        {
            model.policy = policy.clone();
        }
        judge(settings, &self.facts, &self.state, &model, name)
    }

    /// Judges all models in a folder. What concerns the devices alone is said once, as an error.
    fn judge_all(
        &mut self,
        folder: &Path,
        paths: Vec<PathBuf>,
        unreadable: Vec<(PathBuf, String)>,
        undeclared: &Undeclared<'_>,
    ) -> Result<Folder, Complaint> {
        let short = |path: &Path| path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
        let unreadable = unreadable.into_iter().map(|(path, why)| NotJudged {
            name: short(&path),
            kind: "unreadable",
            text: why,
        });
        let mut all = Folder { folder: folder.to_owned(), models: Vec::new(), others: unreadable.collect() };
        for path in paths {
            let mut pass = |kind, text| all.others.push(NotJudged { name: short(&path), kind, text });
            let looked = files::look(&path, None);
            let kind = match &looked.shape {
                Known::Value(shape) => shape.kind,
                Known::Unknown(why) => {
                    pass("unreadable", why.clone());
                    continue;
                }
            };
            if let Some((kind, text)) = not_a_model(kind) {
                pass(kind, text.to_owned());
                continue;
            }
            self.facts.files.insert(path.clone(), looked);
            let (settings, model) = match undeclared.model(&path, self.host_only) {
                Ok(found) => found,
                Err(complaint) if complaint.code == "invalid_configuration" => return Err(complaint),
                Err(complaint) => {
                    pass("not_judged", complaint.title);
                    continue;
                }
            };
            match self.judge(&settings, model, short(&path)) {
                Ok(judged) => all.models.push(judged),
                Err(refusal) if no_gpus(&refusal) => return Err(refused(*refusal, folder)),
                Err(refusal) => pass("not_judged", refusal.text),
            }
        }
        Ok(all)
    }
}

/// The policy for a machine whose GPUs are left out.
const HOST_POLICY: &str = "cpu";

/// Where a model that is not declared would be, as errors show it.
const NOWHERE: &str = "model.toml";

/// What stands for its path there: what is in a path can't be written in every file.
const PATH: &str = "/model";

impl Undeclared<'_> {
    /// The model at this path as if it were declared with what is given and nothing else.
    fn model(&self, path: &Path, host_only: bool) -> Result<(Settings, Model), Complaint> {
        let program = if path.is_dir() { "vllm" } else { "llama-server" };
        if host_only && path.is_dir() {
            let title = format!(
                "{}: what vLLM takes without a GPU is not known; a GGUF file of the model can be judged",
                path.display()
            );
            let hints = ["berthctl fit MODEL.gguf --gpus none".to_owned()];
            return Err(Complaint::new(Exit::Usage, "not_judged", title, &hints));
        }
        let mut text = format!("program = \"{program}\"\nmodel = \"{PATH}\"\n");
        for (key, value) in self.set {
            let quote = if key.starts_with("kv") { "\"" } else { "" };
            // Writing to a String cannot fail.
            _ = writeln!(text, "{key} = {quote}{value}{quote}");
        }
        let mut sources = self.sources.clone();
        sources.models = vec![SourceFile { path: PathBuf::from(NOWHERE), text }];
        let settings = match config::load(&sources, &check::host()) {
            Ok(settings) => settings,
            Err(errors) => return Err(self.wrong(&errors)),
        };
        let Some(mut model) = settings.models.values().next().cloned() else {
            return Err(invalid(self.config, "it declares nothing"));
        };
        model.file = Some(path.to_owned());
        keep(&mut model, self.set);
        Ok((settings, model))
    }

    fn wrong(&self, errors: &[ConfigError]) -> Complaint {
        let Some(error) = errors.first() else { return invalid(self.config, "it can't be read") };
        match error.places.first() {
            Some(place) if place.path == Path::new(NOWHERE) => {
                let title = format!("{}: {}", error.message, place.label);
                Complaint::new(Exit::Usage, "bad_setting", title, &["berthctl help fit".to_owned()])
            }
            _ => invalid(self.config, &error.message),
        }
    }
}

/// Whether it can be a model's name: a path says by a `/` or its ending that it is one.
fn is_name(what: &Path) -> bool {
    what.to_str().is_some_and(|text| !text.contains('/') && !text.to_ascii_lowercase().ends_with(".gguf"))
}

/// Whether a folder is a model by itself.
fn is_model(folder: &Path) -> bool {
    let has_config = folder.join("config.json").is_file();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut weights = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "safetensors" || ending == "gguf"));
    has_config && weights.by_ref().all(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
}

/// What is no model: for programs, and in words.
fn not_a_model(kind: Kind) -> Option<(&'static str, &'static str)> {
    match kind {
        Kind::Model => None,
        Kind::Projector => {
            Some(("projector", "the projector of a model that sees or hears, no model by itself"))
        }
        Kind::Vocabulary => Some(("vocabulary", "a vocabulary without weights")),
        Kind::Other => {
            Some(("other", "an adapter, importance matrix or the like: no server serves it alone"))
        }
    }
}

/// A concession would take back what is given by hand: such ones are not made.
fn keep(model: &mut Model, set: &BTreeMap<&'static str, String>) {
    model.policy.ladder.retain(|concession| match concession {
        Concession::Kv(_) => !set.keys().any(|key| key.starts_with("kv")),
        Concession::Ctx(_) => !set.contains_key("ctx"),
        Concession::Experts | Concession::Layers => true,
    });
}

/// The declared model of this name, with all settings.
fn declared(what: &Path, config: &Path) -> Result<(Settings, Model), Complaint> {
    let name = what.to_string_lossy();
    let title = |rest: &str| format!("there is no file or folder `{}`, and {rest}", name.escape_debug());
    let unknown = |rest: &str| {
        let hints = ["berthctl fit FILE.gguf".to_owned(), "berthctl check".to_owned()];
        Complaint::new(Exit::Usage, "unknown_model", title(rest), &hints)
    };
    if !config.is_dir() && config == Path::new(CONFIG) {
        return Err(unknown(&format!("no {CONFIG} that could declare a model of that name")));
    }
    let sources = check::read(config)?;
    let settings = config::load(&sources, &check::host()).map_err(|errors| {
        invalid(config, errors.first().map_or("it can't be read", |error| &error.message))
    })?;
    match plan::resolve(&settings, &State::default(), &name) {
        Ok(model) => {
            let model = model.clone();
            Ok((settings, model))
        }
        Err(refusal) => Err(unknown(&refusal.text)),
    }
}

/// A declared model with other settings.
fn changed(
    mut model: Model,
    _settings: &Settings,
    set: &BTreeMap<&'static str, String>,
) -> Result<Model, Complaint> {
    if let Some(key) = set.keys().next() {
        let title = format!("`{}` is a declared model and has its own `{key}`", model.name);
        let hints = ["berthctl fit FILE with these options".to_owned()];
        return Err(Complaint::new(Exit::Usage, "bad_setting", title, &hints));
    }
    keep(&mut model, set);
    Ok(model)
}

/// The configuration without its models; nothing where an installation has none.
fn undeclared(config: &Path) -> Result<Sources, Complaint> {
    if !config.exists() && config == Path::new(CONFIG) {
        return Ok(Sources::default());
    }
    let sources = check::read(config)?;
    Ok(Sources { models: Vec::new(), ..sources })
}

fn invalid(config: &Path, why: &str) -> Complaint {
    let title = format!("the configuration in {} is not valid: {why}", config.display());
    let hint = format!("berthctl check --config {}", config.display());
    Complaint::new(Exit::Usage, "invalid_configuration", title, &[hint])
}

fn unreadable(path: &Path, why: &str) -> Complaint {
    let hint = match path.extension().and_then(|ending| ending.to_str()) {
        Some("safetensors" | "json") => {
            format!("berthctl fit {}", path.parent().unwrap_or(Path::new(".")).display())
        }
        _ => format!("ls -l {}", path.display()),
    };
    Complaint::new(Exit::Usage, "unreadable", format!("{}: {why}", path.display()), &[hint])
}

/// Whether there is no GPU to judge against, whatever the model.
fn no_gpus(refusal: &Refusal) -> bool {
    ["gpu_unknown", "no_gpu"].contains(&refusal.code.as_str())
}

/// A refusal as `fit` tells it: it stops nothing and starts nothing.
fn refused(refusal: Refusal, what: &Path) -> Complaint {
    let Refusal { code, text, hints } = refusal;
    let at = what.display();
    match code.as_str() {
        "gpu_unknown" | "no_gpu" => {
            let hints = [format!("berthctl fit {at} --gpus 16GiB"), format!("berthctl fit {at} --gpus none")];
            Complaint::new(Exit::Usage, &code, text, &hints)
        }
        // What is missing is in the declaration.
        "memory_undeclared" => Complaint::new(Exit::Usage, &code, text, &hints),
        _ => Complaint::new(Exit::Refused, &code, text, &hints),
    }
}

#[cfg(test)]
#[path = "fit/tests.rs"]
mod tests;
