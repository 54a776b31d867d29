//! What is declared: read from the configuration's folder when berthd starts, and again on reload.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_core::config::{self, ConfigError, Settings, SourceFile, Sources};
use berth_core::name::ModelName;
use berth_core::state::{Claim, State};
use tokio::sync::watch;

/// Why a folder's configuration does not hold.
#[derive(Debug, thiserror::Error)]
pub enum Unsound {
    /// A file or a folder is there and can't be read.
    #[error("{} can't be read: {source}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// All that is wrong with what it says.
    #[error("the configuration is not valid:\n{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<ConfigError>),
}

/// What holds now. Clones share it.
#[derive(Debug, Clone)]
pub struct Declared {
    folder: PathBuf,
    now: watch::Sender<Arc<Settings>>,
}

impl Declared {
    /// What a folder declares.
    pub fn read(folder: &Path) -> Result<Self, Unsound> {
        let settings = Arc::new(settings(folder)?);
        Ok(Self { folder: folder.to_owned(), now: watch::Sender::new(settings) })
    }

    /// What holds.
    pub fn now(&self) -> Arc<Settings> {
        Arc::clone(&self.now.borrow())
    }

    /// What the folder declares by now, which does not hold yet. Blocks on the file system.
    pub fn look(&self) -> Result<Settings, Unsound> {
        let had = self.now().models.iter().map(|(name, model)| (name.clone(), model.port)).collect();
        let mut settings = settings(&self.folder)?;
        settings.keep_ports(&had);
        Ok(settings)
    }

    /// What was started by an earlier berthd keeps its port.
    pub fn keep_ports(&self, state: &State) {
        let base = |name: &ModelName| name.settings().map_or_else(|| name.clone(), |(base, _)| base);
        let at = |(name, claim): (&ModelName, &Claim)| Some((base(name), claim.address?.port()));
        let had = state.claims.iter().filter_map(at).collect();
        self.now.send_modify(|settings| Arc::make_mut(settings).keep_ports(&had));
    }

    /// From now on this holds.
    pub fn set(&self, settings: Arc<Settings>) {
        self.now.send_replace(settings);
    }
}

/// Reads and validates all of the configuration.
fn settings(folder: &Path) -> Result<Settings, Unsound> {
    let main = folder.join("berth.toml");
    let sources = Sources {
        main: if main.exists() { Some(read(main)?) } else { None },
        models: read_all(&folder.join("models.d"))?,
        policies: read_all(&folder.join("policies.d"))?,
    };
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    config::load(&sources, &host).map_err(Unsound::Invalid)
}

fn read(path: PathBuf) -> Result<SourceFile, Unsound> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok(SourceFile { path, text }),
        Err(source) => Err(Unsound::Unreadable { path, source }),
    }
}

/// The declarations in a folder, by name; none where there is no such folder.
fn read_all(folder: &Path) -> Result<Vec<SourceFile>, Unsound> {
    let unreadable = |source| Unsound::Unreadable { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(read(path)?);
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}
