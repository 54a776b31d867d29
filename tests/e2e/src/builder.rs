//! What a sandbox with Berth is made of, and its first boot.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sandbox::{Interrupt, Sandbox};
use tempfile::TempDir;

use crate::assets::Assets;
use crate::berth::Berth;
use crate::declare::{self, GUEST_ASSETS};

/// `berth.toml` unless a test has its own: deadlines that let a failure be seen within seconds.
const MAIN: &str = "node = \"tower\"\n\n[deadlines]\nstop = \"3s\"\nrelease = \"12s\"\nstart = \"10s\"\n";

/// Describes a sandbox with Berth.
#[derive(Debug, Clone)]
pub struct Builder {
    dir: Option<PathBuf>,
    gpus: String,
    seed: u64,
    main: String,
    models: Vec<(String, Text)>,
    policies: Vec<(String, String)>,
    programs: Vec<(PathBuf, String)>,
    assets: bool,
    berthd_may_fail: bool,
    faults: bool,
    interrupt: Interrupt,
}

/// A model's file: as it is, or one that needs the number of cards.
#[derive(Debug, Clone)]
enum Text {
    Whole(String),
    Fake { each: String, flags: Vec<String> },
    Real { each: String },
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder {
            dir: None,
            gpus: sandbox::DEFAULT_GPUS.to_owned(),
            seed: 0,
            main: MAIN.to_owned(),
            models: Vec::new(),
            policies: Vec::new(),
            programs: Vec::new(),
            assets: false,
            berthd_may_fail: false,
            faults: false,
            interrupt: Interrupt::default(),
        }
    }

    /// The sandbox's folder; without it a new one among the temporary files.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.dir = Some(dir.into());
        self
    }

    /// The simulated cards: `2x16311` (the default), `1x16GiB,1x24GiB`, `0`.
    #[must_use]
    pub fn gpus(mut self, gpus: &str) -> Builder {
        gpus.clone_into(&mut self.gpus);
        self
    }

    /// Another `berth.toml`. The default names the node `tower` and gives 3 s to stop, 12 s to release and
    /// 10 s to start.
    #[must_use]
    pub fn main(mut self, toml: &str) -> Builder {
        toml.clone_into(&mut self.main);
        self
    }

    /// A model's file as it is; [`declare::declaration`] and its like write one.
    #[must_use]
    pub fn model(mut self, name: &str, toml: &str) -> Builder {
        self.models.push((name.to_owned(), Text::Whole(toml.to_owned())));
        self
    }

    /// A policy's file.
    #[must_use]
    pub fn policy(mut self, name: &str, toml: &str) -> Builder {
        self.policies.push((name.to_owned(), toml.to_owned()));
        self
    }

    /// A fakellm that holds `each` (as "14300MiB") on every card, with more of its flags.
    #[must_use]
    pub fn fake(mut self, name: &str, each: &str, flags: &[&str]) -> Builder {
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        self.models.push((name.to_owned(), Text::Fake { each: each.to_owned(), flags }));
        self
    }

    /// The real llama-server, holding `each` simulated memory on every card.
    #[must_use]
    pub fn real(mut self, name: &str, each: &str) -> Builder {
        self.models.push((name.to_owned(), Text::Real { each: each.to_owned() }));
        self.assets = true;
        self
    }

    /// Shows the assets in the guest, at [`GUEST_ASSETS`]; [`Builder::real`] does it by itself.
    #[must_use]
    pub fn assets(mut self) -> Builder {
        self.assets = true;
        self
    }

    /// Shows one of the host's programs at this path of the guest.
    #[must_use]
    pub fn program(mut self, from: impl Into<PathBuf>, to: &str) -> Builder {
        self.programs.push((from.into(), to.to_owned()));
        self
    }

    /// Boots also when berthd does not come up, as with a bad configuration.
    #[must_use]
    pub fn berthd_may_fail(mut self) -> Builder {
        self.berthd_may_fail = true;
        self
    }

    /// Boots a berthd with fault points, from the tree that `make stage-faults` makes.
    #[must_use]
    pub fn faults(mut self) -> Builder {
        self.faults = true;
        self
    }

    /// Guests with different seeds have cards with different UUIDs.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Builder {
        self.seed = seed;
        self
    }

    /// Gives up and cleans up once this is set.
    #[must_use]
    pub fn interrupt(mut self, interrupt: Interrupt) -> Builder {
        self.interrupt = interrupt;
        self
    }

    /// Boots it, and waits until berthd is up.
    ///
    /// # Panics
    /// With the reason, where [`Builder::try_boot`] gives it.
    pub fn boot(self) -> Berth {
        match self.try_boot() {
            Ok(berth) => berth,
            Err(error) => panic!("no sandbox with Berth: {error:#}"),
        }
    }

    /// The same.
    ///
    /// # Errors
    /// The host lacks something, the tree or the assets are missing, or the guest or berthd does not come up;
    /// nothing is left then.
    pub fn try_boot(self) -> Result<Berth> {
        let config = self.write_config()?;
        let mut sandbox = Sandbox::builder()
            .name("tower")
            .gpus(&self.gpus)
            .seed(self.seed)
            .tree(if self.faults { tree("target/stage-faults", "make stage-faults")? } else { stage()? })
            .bind(config.path().join("berth"), "/etc/berth")
            .interrupt(self.interrupt);
        if let Some(dir) = self.dir {
            sandbox = sandbox.dir(dir);
        }
        for (from, to) in self.programs {
            sandbox = sandbox.bind_read_only(from, to);
        }
        if self.assets {
            let assets = Assets::get().map_err(|missing| anyhow::anyhow!("{missing}"))?;
            sandbox = sandbox.bind_read_only(assets.folder(), GUEST_ASSETS);
        }
        let berth = Berth::new(sandbox.up()?, config);
        if !self.berthd_may_fail {
            berth.wait_for_berthd(Duration::from_secs(10))?;
        }
        Ok(berth)
    }

    fn write_config(&self) -> Result<TempDir> {
        let config =
            tempfile::Builder::new().prefix("berth-config-").tempdir().context("no temporary folder")?;
        let [models, policies] =
            ["models.d", "policies.d"].map(|name| config.path().join("berth").join(name));
        fs::create_dir_all(&models)?;
        fs::create_dir_all(&policies)?;
        // berthd reads it as a user of its own.
        for folder in [&*models, &*policies, &config.path().join("berth")] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        }
        fs::write(config.path().join("berth/berth.toml"), &self.main)?;
        for (name, toml) in &self.policies {
            fs::write(policies.join(format!("{name}.toml")), toml)?;
        }
        let cards = count(&self.gpus)?;
        for (name, text) in &self.models {
            let toml = match text {
                Text::Whole(toml) => toml.clone(),
                Text::Fake { each, flags } => {
                    declare::fake(cards, each, &flags.iter().map(String::as_str).collect::<Vec<_>>())
                }
                Text::Real { each } => declare::real(cards, each),
            };
            fs::write(models.join(format!("{name}.toml")), toml)?;
        }
        Ok(config)
    }
}

/// How many cards `2x16311` and its like are.
fn count(gpus: &str) -> Result<usize> {
    let cards = gpusim::cards::parse_cards(gpus).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(cards.len())
}

/// The repository.
pub(crate) fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package)
}

/// The install tree that sandboxes boot with: target/stage, or another that `BERTH_STAGE` names.
///
/// # Errors
/// There is none.
pub fn stage() -> Result<PathBuf> {
    tree(env::var_os("BERTH_STAGE").unwrap_or_else(|| "target/stage".into()), "make stage")
}

fn tree(path: impl AsRef<Path>, made_by: &str) -> Result<PathBuf> {
    let tree = workspace().join(path);
    let daemon = tree.join("usr/bin/berthd");
    if !daemon.exists() {
        bail!("there is no {}: run `{made_by}` first", daemon.display());
    }
    Ok(tree)
}

/// Says so where berthd was built again after the tree was made: a test then judges an older one.
pub(crate) fn stale_stage() -> Option<String> {
    let made = |path: PathBuf| fs::metadata(path).and_then(|data| data.modified()).ok();
    let staged = made(workspace().join("target/stage/usr/bin/berthd"))?;
    let built = made(workspace().join("target/debug/berthd"))?;
    (built > staged)
        .then(|| "target/stage is older than target/debug/berthd: `make stage` renews it".to_owned())
}
