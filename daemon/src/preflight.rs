//! What can be looked up about a model before anything is touched: program, files, port.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_core::config::{Model, Settings};
use berth_core::facts::{FileFacts, Gpu, Known, Listener, Moment, Preflight, Unit};
use berth_core::name::ModelName;
use berth_core::report::Request;
use berth_observe::files::{PROGRAMS, found};

use crate::declared::Declared;
use crate::files::Files;
use crate::nvml::Nvml;
use crate::observe;
use crate::proc::{Groups, monotonic_now};
use crate::sockets::{self, Socket};
use crate::systemd::Systemd;

/// How long the looking up of files may take: a network file system can hang for minutes.
pub const LOOK_UP: Duration = Duration::from_secs(10);

/// Looks up what decisions need, outside the driver.
#[derive(Clone)]
pub struct Looker {
    /// The GPUs.
    pub nvml: Nvml,
    /// The units.
    pub systemd: Systemd,
    /// Models' files.
    pub files: Files,
    /// What was declared.
    pub declared: Declared,
}

/// What was looked up for a decision, just now.
pub struct Looked {
    /// The GPUs; None once the driver has taken them over.
    pub gpus: Option<Known<Vec<Gpu>>>,
    /// The units; None where systemd did not answer, likewise.
    pub units: Option<BTreeMap<ModelName, Unit>>,
    /// What is known of files now.
    pub files: BTreeMap<PathBuf, FileFacts>,
    /// Files and ports.
    pub preflight: BTreeMap<ModelName, Preflight>,
    /// When the looking began.
    pub began: Moment,
}

impl Looker {
    /// Looks at everything that may decide this request. Answers within some seconds.
    pub async fn look(&self, request: &Request) -> Looked {
        let began = monotonic_now();
        let fresh = observe::fresh(&self.nvml, &self.systemd).await;
        let (settings, groups) = (self.declared.now(), fresh.control_groups);
        let known = Arc::clone(&settings);
        let wanted = request.clone();
        let looked = tokio::task::spawn_blocking(move || look(&settings, &wanted, &groups));
        let preflight = match tokio::time::timeout(LOOK_UP, looked).await {
            Ok(Ok(preflight)) => preflight,
            // Its file system hangs: the model's server would, too.
            _ => hung(&known, request, LOOK_UP),
        };
        let models = asked(&known, request).cloned().collect();
        let files = self.files.look(models).await;
        Looked { gpus: Some(fresh.gpus), units: fresh.units, files, preflight, began }
    }
}

/// Looks up the models that a request may start: the one it names, else all. Blocks on the file system.
fn look(
    settings: &Settings,
    request: &Request,
    control_groups: &BTreeMap<ModelName, Groups>,
) -> BTreeMap<ModelName, Preflight> {
    asked(settings, request).map(|model| (model.name.clone(), look_up(model, control_groups))).collect()
}

/// What there is to say when looking did not end within `deadline`.
fn hung(settings: &Settings, request: &Request, deadline: Duration) -> BTreeMap<ModelName, Preflight> {
    let why = silent(deadline);
    asked(settings, request)
        .map(|model| {
            let file = model.file.clone().unwrap_or_else(|| model.program.clone());
            (model.name.clone(), Preflight { files: vec![(file, why.clone())], port: None })
        })
        .collect()
}

/// The models that a request may start: the one it names, else all.
fn asked<'a>(settings: &'a Settings, request: &'a Request) -> impl Iterator<Item = &'a Model> {
    // What settings are tried with it makes no difference here.
    let asked = request.model.as_deref();
    let asked = asked.map(|name| {
        name.rsplit_once(':').filter(|(_, set)| set.contains('=')).map_or(name, |(base, _)| base)
    });
    settings.models.values().filter(move |model| match asked {
        None | Some("default") => true,
        Some(name) => model.name.as_str() == name || model.aliases.iter().any(|alias| alias == name),
    })
}

/// The first of a model's files that is missing, and why. Answers within [`LOOK_UP`].
pub async fn missing(model: Model) -> Option<(PathBuf, String)> {
    let hung = model.file.clone().unwrap_or_else(|| model.program.clone());
    let looked = tokio::task::spawn_blocking(move || files(&model).into_iter().next());
    match tokio::time::timeout(LOOK_UP, looked).await {
        Ok(Ok(missing)) => missing,
        _ => Some((hung, silent(LOOK_UP))),
    }
}

fn look_up(model: &Model, control_groups: &BTreeMap<ModelName, Groups>) -> Preflight {
    Preflight { files: files(model), port: on_port(model, control_groups) }
}

/// What is declared and missing, and why.
fn files(model: &Model) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    if let Err(why) = program(&model.program) {
        files.push((model.program.clone(), why));
    }
    // A name such as `org/model` is a hub's, not a path.
    if let Some(file) = model.file.as_ref().filter(|file| file.is_absolute())
        && let Err(why) = exists(file)
    {
        files.push((file.clone(), why));
    }
    if let Some(cwd) = &model.cwd
        && let Err(why) = exists(cwd)
    {
        files.push((cwd.clone(), why));
    }
    files
}

fn silent(deadline: Duration) -> String {
    format!("its file system did not answer within {} s", deadline.as_secs())
}

/// Who listens on the model's port now.
fn on_port(model: &Model, control_groups: &BTreeMap<ModelName, Groups>) -> Option<Listener> {
    let port = |name: &ModelName| (*name == model.name).then_some(model.port);
    let owner = |socket: &Socket| sockets::owner(socket, control_groups, port).cloned();
    match sockets::listeners_on(model.port, owner) {
        Ok(listeners) => listeners
            .into_iter()
            .find(|l| l.address == model.host || l.address.is_unspecified() || model.host.is_unspecified()),
        Err(error) => {
            tracing::warn!(%error, "the kernel does not say who listens");
            None
        }
    }
}

fn program(program: &Path) -> Result<(), String> {
    if program.is_absolute() {
        exists(program)?;
        return match fs::metadata(program) {
            Ok(meta) if !meta.is_file() => Err("it is not a file".to_owned()),
            Ok(meta) if meta.permissions().mode() & 0o111 == 0 => Err("it is not executable".to_owned()),
            _ => Ok(()),
        };
    }
    if found(program).is_some() {
        return Ok(());
    }
    Err(format!("no such program in {}", PROGRAMS.join(" and ")))
}

/// Whether a path is there. What berthd may not look into (a home folder, say) may be there: the model's own user
/// can read it, so that is no reason to refuse.
fn exists(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(nearest(path)),
        Err(error) => Err(error.to_string()),
    }
}

/// How far a missing path exists: usually shows at once what is wrong with it.
fn nearest(path: &Path) -> String {
    let there: Option<PathBuf> = path.ancestors().skip(1).find(|dir| dir.exists()).map(Path::to_owned);
    match there {
        Some(dir) if Some(dir.as_path()) != path.parent() => {
            format!("it does not exist; {} does", dir.display())
        }
        _ => "it does not exist".to_owned(),
    }
}
