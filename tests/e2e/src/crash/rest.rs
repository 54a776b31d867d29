//! A machine at rest, looked at from outside: berthctl, the ledger's file, systemd and gpusim must agree.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use berth_core::report::ModelState;
use berth_core::state::{Phase, State};

use crate::Berth;

/// How long a machine may take to come to rest, and a look to be answered.
const DEADLINE: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(40);

/// What a machine at rest has: exactly these models, serving and home.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rest {
    /// By name.
    pub models: Vec<String>,
    /// The one that is `default`.
    pub default: Option<String>,
}

impl Rest {
    /// One model alone.
    pub(super) fn of(model: &str) -> Rest {
        Rest { models: vec![model.to_owned()], default: Some(model.to_owned()) }
    }
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = self.default.as_deref().unwrap_or("nothing");
        write!(f, "[{}], `default` {default}", self.models.join(", "))
    }
}

/// Waits until the machine is at rest; else what was not as it should be at the end.
pub(super) fn come_to_rest(berth: &Berth) -> Result<Rest> {
    let start = Instant::now();
    loop {
        let why = match look(berth) {
            Ok(rest) => return Ok(rest),
            Err(why) => why,
        };
        if start.elapsed() > DEADLINE {
            bail!("not at rest within {} s: {why}", DEADLINE.as_secs());
        }
        std::thread::sleep(LOOK);
    }
}

/// Looks once.
fn look(berth: &Berth) -> std::result::Result<Rest, String> {
    let output = berth.ctl(&["status", "--json"]);
    let status: berth_core::report::Status =
        serde_json::from_str(&output.stdout).map_err(|error| format!("no status ({error}): {output}"))?;
    if status.uptime_ms.is_none() {
        return Err(format!("berthd is not up: {}", output.stderr));
    }
    if let Some(swap) = &status.swap {
        return Err(format!("a swap is under way: {swap:?}"));
    }
    if !status.problems.is_empty() {
        return Err(format!("problems stand: {:?}", status.problems));
    }
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    let home = sorted(status.home.iter().map(ToString::to_string).collect());
    let mut serving = Vec::new();
    for model in &status.models {
        match model.state {
            ModelState::Serving => serving.push(model.name.to_string()),
            ModelState::Loading | ModelState::Stopping | ModelState::Failed => {
                return Err(format!("{} is {:?}", model.name, model.state));
            }
            _ => {}
        }
    }
    if serving != home {
        return Err(format!("home is {home:?}, and {serving:?} serve"));
    }

    let ledger = ledger(berth)?;
    let claims: Vec<String> = ledger.claims.keys().map(ToString::to_string).collect();
    let recorded = sorted(ledger.home.models.iter().map(ToString::to_string).collect());
    if claims != serving || recorded != home || ledger.intent.is_some() {
        return Err(format!(
            "{serving:?} serve; the ledger has home {recorded:?}, claims {claims:?}, and means to do {:?}",
            ledger.intent
        ));
    }
    if let Some((model, claim)) = ledger.claims.iter().find(|(_, claim)| claim.phase != Phase::Serving) {
        return Err(format!("the ledger has {model} as {:?}", claim.phase));
    }

    let units = sorted(units(berth));
    let expected: Vec<String> = serving.iter().map(|model| format!("berth-model@{model}.service")).collect();
    if units != expected {
        return Err(format!("{serving:?} serve, and of systemd's units {units:?} are not down"));
    }
    for device in berth.stats().devices {
        let pids: Vec<u32> = device.held.iter().map(|held| held.pid).collect();
        if pids.len() != serving.len() || !device.lingering.is_empty() {
            return Err(format!(
                "GPU {} is held by {:?} and {:?}",
                device.index, device.held, device.lingering
            ));
        }
    }
    for model in &serving {
        let answer = berth.try_ask(model.as_str(), crate::PROMPT).map_err(|error| format!("{error:#}"))?;
        if answer.is_empty() {
            return Err(format!("{model} answers with nothing"));
        }
    }
    Ok(Rest { models: serving, default: status.default.as_ref().map(ToString::to_string) })
}

/// What the ledger's last line says.
fn ledger(berth: &Berth) -> std::result::Result<State, String> {
    let path = berth.sandbox().root().join("var/lib/berth/ledger");
    let text = fs::read_to_string(&path).map_err(|error| format!("the ledger can't be read: {error}"))?;
    let line = text.lines().next_back().unwrap_or_default();
    let json = line.find('{').map_or("", |start| &line[start..]);
    serde_json::from_str(json)
        .map_err(|error| format!("the ledger's last line is no state ({error}): {line}"))
}

/// Models' units that are not down, as systemd tells.
fn units(berth: &Berth) -> Vec<String> {
    let argv = ["list-units", "--all", "--plain", "--no-legend", "--no-pager", "berth-model@*"];
    let listed = berth.systemctl(&argv).stdout;
    let up = |line: &&str| {
        line.split_whitespace().nth(2).is_some_and(|active| !["inactive", "failed"].contains(&active))
    };
    let name = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    listed.lines().filter(up).map(name).collect()
}

/// An allocation that failed for lack of memory: two models were on one card.
pub(super) fn no_failed_allocation(berth: &Berth) -> Result<()> {
    let stats = berth.stats();
    ensure!(stats.failed == 0, "{} allocations failed: {:?}", stats.failed, stats.failures);
    Ok(())
}
