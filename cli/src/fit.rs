//! `berthctl fit`: whether models fit, judged without berthd as it would: by the files' headers, the policy and what is
//! on the devices now. Models of Berth that run count as absent.

mod find;
mod given;
mod judged;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use berth_core::backend;
use berth_core::config::{self, ConfigError, Model, Settings, SourceFile, Sources};
use berth_core::facts::{Active, Facts, Gpu, Host, Known, Unit};
use berth_core::name::ModelName;
use berth_core::plan;
use berth_core::policy::Concession;
use berth_core::report::{Refusal, SCHEMA};
use berth_core::shape::Kind;
use berth_core::state::State;
use berth_observe::nvml::Nvml;
use berth_observe::scope::Scope;
use berth_observe::{cpus, files, proc};
use serde::Serialize;

use crate::args::FitOptions;
use crate::check;
use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;
use crate::render;
use crate::standalone::NVML;

use find::Found;

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
    #[serde(rename = "folder")]
    pub(crate) path: PathBuf,
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
}

/// How a model on disk is judged: not declared, but as if it were.
struct Undeclared<'a> {
    sources: Sources,
    config: &'a Path,
    set: &'a BTreeMap<String, String>,
    host_only: bool,
}

/// Judges what is asked for.
pub(crate) async fn fit(what: &Path, options: &FitOptions, out: Out) -> Result<Exit, Complaint> {
    let set = given::settings(options)?;
    let given = options.gpus.as_deref().map(given::gpus).transpose()?;
    let host_only = given.as_ref().is_some_and(Vec::is_empty);
    let config = &*options.config.folder();
    let (settings, model, name) = match fs::metadata(what) {
        Ok(meta) => {
            let undeclared = Undeclared { sources: undeclared(config)?, config, set: &set, host_only };
            if meta.is_dir() {
                let found = find::find(what).map_err(|error| unreadable(what, &error.to_string()))?;
                // A folder that is one model by itself is judged like a file.
                if found.models != [what] {
                    let folder = Ground::look(given).await.judge_all(what, found, &undeclared)?;
                    return folder_told(&folder, out);
                }
            } else if !meta.is_file() {
                // To open a pipe would wait for whoever writes into it.
                return Err(unreadable(what, "it is neither a file nor a folder"));
            }
            let shape = files::shape(what).map_err(|why| unreadable(what, &why))?;
            if let Some((_, text)) = not_a_model(shape.kind) {
                let title = format!("{} is {text}", what.display());
                let hints = ["berthctl fit MODEL.gguf".to_owned()];
                return Err(Complaint::new(Exit::Usage, "not_a_model", title, &hints));
            }
            let (settings, model) = undeclared.model(what)?;
            (settings, model, what.display().to_string())
        }
        Err(error) if error.kind() == ErrorKind::NotFound && is_name(what) => {
            let (settings, model) = declared(what, config)?;
            let name = model.name.to_string();
            let model = changed(model, &settings, &set, host_only)?;
            (settings, model, name)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let title = format!("there is no file or folder {}", what.display());
            return Err(Complaint::new(Exit::Usage, "missing", title, &[list(what)]));
        }
        Err(error) => return Err(unreadable(what, &error.to_string())),
    };
    let mut ground = Ground::look(given).await;
    for path in backend::of(model.backend).files(&model) {
        let facts = files::look(&path, None);
        ground.facts.files.insert(path, facts);
    }
    let judged = ground.judge(&settings, &model, name).map_err(|refusal| refused(*refusal, what))?;
    Ok(told(&judged, out))
}

/// Judges every declared model that is not retired against these GPUs and the host. Reads files, which may not answer.
pub(crate) fn all(
    settings: &Settings,
    gpus: Known<Vec<Gpu>>,
) -> BTreeMap<ModelName, Result<Judged, Box<Refusal>>> {
    let mut ground = Ground::of(gpus);
    let models = || settings.models.values().filter(|model| !model.retired);
    for path in models().flat_map(|model| backend::of(model.backend).files(model)) {
        let facts = files::look(&path, None);
        ground.facts.files.insert(path, facts);
    }
    models()
        .map(|model| (model.name.clone(), ground.judge(settings, model, model.name.to_string())))
        .collect()
}

/// Judges the models in a folder against these GPUs and the host. Reads files, which may not answer.
pub(crate) fn folder(path: &Path, gpus: Known<Vec<Gpu>>) -> Result<Folder, Complaint> {
    let found = find::find(path).map_err(|error| unreadable(path, &error.to_string()))?;
    let config = &Scope::this().config();
    let undeclared =
        Undeclared { sources: undeclared(config)?, config, set: &BTreeMap::new(), host_only: false };
    Ground::of(gpus).judge_all(path, found, &undeclared)
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
        let path = folder.path.display();
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
        match given {
            Some(gpus) => Self::of(Known::Value(gpus)),
            None => Self::of(Nvml::spawn().read_all(NVML).await),
        }
    }

    /// These GPUs, and the host.
    fn of(gpus: Known<Vec<Gpu>>) -> Self {
        let mut facts = Facts {
            at: proc::monotonic_now(),
            gpus,
            host: Host { memory: proc::host_memory(), cpus: cpus::online() },
            ..Facts::none_yet()
        };
        for (model, used) in proc::of_models() {
            facts.units.insert(model, running(used));
        }
        let mut ground = Self { facts, state: State::default() };
        ground.find_models();
        ground
    }

    /// What models hold that run: such as these would be stopped for another. One of which that can't be seen counts as
    /// foreign.
    fn find_models(&mut self) {
        for model in self.facts.units.keys() {
            if let Some(claim) = State::found(model, &self.facts) {
                self.state.claims.insert(model.clone(), claim);
            }
        }
    }

    fn judge(&self, settings: &Settings, model: &Model, name: String) -> Result<Judged, Box<Refusal>> {
        judge(settings, &self.facts, &self.state, model, name)
    }

    /// Judges all models in a folder. What concerns the devices alone is said once, as an error.
    fn judge_all(
        &mut self,
        folder: &Path,
        found: Found,
        undeclared: &Undeclared<'_>,
    ) -> Result<Folder, Complaint> {
        let short = |path: &Path| path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
        let unreadable = found.unreadable.into_iter().map(|(path, why)| NotJudged {
            name: short(&path),
            kind: "unreadable",
            text: why,
        });
        let mut all = Folder { path: folder.to_owned(), models: Vec::new(), others: unreadable.collect() };
        for path in found.models {
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
            let (settings, model) = match undeclared.model(&path) {
                Ok(found) => found,
                Err(complaint) if complaint.code == "invalid_configuration" => return Err(complaint),
                Err(complaint) => {
                    pass("not_judged", complaint.title);
                    continue;
                }
            };
            match self.judge(&settings, &model, short(&path)) {
                Ok(judged) => all.models.push(judged),
                Err(refusal) if no_gpus(&refusal) => return Err(refused(*refusal, folder)),
                Err(refusal) => pass("not_judged", refusal.text),
            }
        }
        Ok(all)
    }
}

/// The unit of a model with these processes, as far as it can be told without systemd.
fn running(used: BTreeMap<u32, proc::Used>) -> Unit {
    let used = Known::Value(used);
    Unit {
        active: Active::Active,
        sub: String::new(),
        result: String::new(),
        exit: None,
        invocation: String::new(),
        started_at: None,
        main_pid: None,
        brought: proc::brought_by(&used, &proc::Groups::default()),
        docker: Unit::docker_not_asked(),
        predecessor: None,
        processes: proc::started_of(&used),
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
    fn model(&self, path: &Path) -> Result<(Settings, Model), Complaint> {
        let program = if path.is_dir() { "vllm" } else { "llama-server" };
        if self.host_only && path.is_dir() {
            let title = format!("{}: what vLLM takes without a GPU is not known", path.display());
            let hints = ["berthctl fit MODEL.gguf --gpus none".to_owned()];
            return Err(Complaint::new(Exit::Usage, "not_judged", title, &hints));
        }
        let text = format!("program = \"{program}\"\nmodel = \"{PATH}\"\n");
        let models = vec![SourceFile { path: PathBuf::from(NOWHERE), text }];
        let settings = config::load(&Sources { models, ..self.sources.clone() }, &check::host())
            .map_err(|errors| invalid(self.config, &errors))?;
        let Some(mut model) = settings.models.values().next().cloned() else {
            return Err(invalid(self.config, &[]));
        };
        model.file = Some(path.to_owned());
        if let Some(name) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()) {
            model.name = name;
        }
        let model = changed(model, &settings, self.set, self.host_only)?;
        Ok((settings, model))
    }
}

/// Whether it can be a model's name: a path says by a `/` or its ending that it is one.
fn is_name(what: &Path) -> bool {
    what.to_str().is_some_and(|text| !text.contains('/') && !text.to_ascii_lowercase().ends_with(".gguf"))
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

/// The declared model of this name, with all settings.
fn declared(what: &Path, config: &Path) -> Result<(Settings, Model), Complaint> {
    let name = what.to_string_lossy();
    let title = |rest: &str| format!("there is no file or folder `{}`, and {rest}", name.escape_debug());
    let unknown = |rest: &str| {
        let hints = ["berthctl fit FILE.gguf".to_owned(), "berthctl check".to_owned()];
        Complaint::new(Exit::Usage, "unknown_model", title(rest), &hints)
    };
    if !config.is_dir() && config == Scope::this().config() {
        let folder = config.display();
        return Err(unknown(&format!("no {folder} that could declare a model of that name")));
    }
    let sources = check::read(config)?;
    let settings = config::load(&sources, &check::host()).map_err(|errors| invalid(config, &errors))?;
    match plan::resolve(&settings, &State::default(), &name) {
        Ok(model) => {
            let model = model.clone();
            Ok((settings, model))
        }
        Err(refusal) => Err(unknown(&refusal.text)),
    }
}

/// A model with other settings, and on the host alone where no GPU is to be used. A concession would take back what is
/// given by hand: such ones are not made.
fn changed(
    mut model: Model,
    settings: &Settings,
    set: &BTreeMap<String, String>,
    host_only: bool,
) -> Result<Model, Complaint> {
    let mut all = set.clone();
    if host_only && model.policy.uses_gpus() {
        all.insert("policy".to_owned(), HOST_POLICY.to_owned());
    }
    // One by one: the name that all of them make would be too long for a unit, and none is started here.
    let name = model.name.clone();
    for (key, value) in all {
        model = config::with_settings(settings, &model, &BTreeMap::from([(key, value)])).map_err(|bad| {
            let hints = ["berthctl help fit".to_owned()];
            Complaint::new(Exit::Usage, "bad_setting", bad.to_string(), &hints)
        })?;
        model.name = name.clone();
    }
    model.policy.ladder.retain(|concession| match concession {
        Concession::Kv(_) => !set.keys().any(|key| key.starts_with("kv")),
        Concession::Ctx(_) => !set.contains_key("ctx"),
        Concession::Experts | Concession::Layers => true,
    });
    Ok(model)
}

/// The configuration without its models; nothing where an installation has none.
fn undeclared(config: &Path) -> Result<Sources, Complaint> {
    if !config.exists() && config == Scope::this().config() {
        return Ok(Sources::default());
    }
    let sources = check::read(config)?;
    Ok(Sources { models: Vec::new(), ..sources })
}

fn invalid(config: &Path, errors: &[ConfigError]) -> Complaint {
    let why = errors.first().map_or("it declares nothing", |error| &error.message);
    let title = format!("the configuration in {} is not valid: {why}", config.display());
    let hint = format!("berthctl check --config {}", config.display());
    Complaint::new(Exit::Usage, "invalid_configuration", title, &[hint])
}

fn unreadable(path: &Path, why: &str) -> Complaint {
    let hint = match path.extension().and_then(|ending| ending.to_str()) {
        // A model of such files is judged as a whole.
        Some("safetensors" | "json") => format!("berthctl fit {}", folder_of(path).display()),
        Some(ending) if ending.eq_ignore_ascii_case("gguf") => format!("ls -l {}", path.display()),
        _ => "berthctl fit MODEL.gguf, or a folder with config.json and safetensors files".to_owned(),
    };
    Complaint::new(Exit::Usage, "unreadable", format!("{}: {why}", path.display()), &[hint])
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn list(path: &Path) -> String {
    format!("ls {}", folder_of(path).display())
}

/// Whether there is no GPU to judge against, whatever the model.
fn no_gpus(refusal: &Refusal) -> bool {
    ["gpu_unknown", "no_gpu"].contains(&refusal.code.as_str())
}

/// A refusal as `fit` tells it: it stops nothing and starts nothing.
fn refused(refusal: Refusal, what: &Path) -> Complaint {
    let Refusal { code, text, mut hints } = refusal;
    // What is not declared can't be corrected there.
    hints.retain(|hint| !hint.contains(NOWHERE));
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
#[path = "fit/policies_tests.rs"]
mod policies_tests;
#[cfg(test)]
#[path = "fit/tests.rs"]
mod tests;
