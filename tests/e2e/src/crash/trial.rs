//! One trial: a switch, something that happens in the middle, and what must be so afterwards.

use std::process::Output as Ended;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_core::report::{self, Event, SwapSummary, What};
use serde_json::Value;

use super::case::{Case, Homes, Kind, Switch};
use super::rest::{self, Rest};
use super::{LINGER, fault};
use crate::Berth;

/// For a point to be reached, and for berthctl to end.
const REACHED: Duration = Duration::from_secs(20);
const ENDED: Duration = Duration::from_secs(40);
/// Between two looks whether it has happened.
const LOOK: Duration = Duration::from_millis(1);
/// Points may still be passed so long after berthctl has heard of the end.
const LATE: Duration = Duration::from_millis(300);

/// What was told to the one who asked for the switch.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) done: bool,
    pub(super) restored: bool,
    pub(super) code: Option<i32>,
    pub(super) text: String,
}

/// A berthctl that runs.
pub(super) struct Asked(JoinHandle<std::io::Result<Ended>>);

/// Starts `berthctl …` and reads what it prints.
pub(super) fn ask(berth: &Berth, words: &[&str]) -> Asked {
    let child = berth.ctl_spawn(None, &[words, &["--json"]].concat());
    Asked(thread::spawn(move || child.wait_with_output()))
}

impl Asked {
    fn has_ended(&self) -> bool {
        self.0.is_finished()
    }

    /// What it said until its end.
    pub(super) fn wait(self, deadline: Duration) -> Result<Told> {
        ensure!(wait(deadline, || self.has_ended()), "berthctl does not end");
        let ended = self.0.join().map_err(|_| anyhow::anyhow!("berthctl can't be read"))??;
        Ok(told(&ended))
    }
}

/// Tries one case, and brings the machine back to its beginning; whether the point was reached. An error is what
/// must not be.
pub(super) fn trial(berth: &mut Berth, case: &Case) -> Result<bool> {
    fault::arm(berth, case)?;
    let asked = ask(berth, &["switch", case.switch.target()]);
    let ended = || {
        let ended = asked.has_ended();
        if ended {
            thread::sleep(LATE);
        }
        ended
    };
    wait(REACHED, || fault::has_happened(berth) || ended());
    let reached = fault::has_happened(berth);
    fault::disarm(berth)?;
    rest::no_failed_allocation(berth)?;
    if reached && case.kind == Kind::Cut {
        berth.cut();
    }
    let told = asked.wait(ENDED)?;
    if reached && case.kind == Kind::Cut {
        berth.boot();
    }
    let rest = rest::come_to_rest(berth).with_context(|| format!("after berthctl said `{}`", told.text))?;
    judge(case, reached, &told, &rest)?;
    rest::no_failed_allocation(berth)?;
    go_back_to_aeon(berth)?;
    Ok(reached)
}

/// Whether this may be home now.
fn judge(case: &Case, reached: bool, told: &Told, home: &Rest) -> Result<()> {
    let old = *home == Rest::of("aeon");
    let new = *home == Rest::of("genesis") && case.switch == Switch::Done;
    ensure!(old || new, "home is {home}");
    if told.done {
        ensure!(new, "the switch was reported as done, and home is {home}: {}", told.text);
    }
    if told.restored {
        ensure!(old, "aeon was reported as restored, and home is {home}: {}", told.text);
    }
    let allowed = match (case.kind, reached) {
        (Kind::Kill, true) => case.point.killed,
        (Kind::Cut, true) => case.point.cut,
        (Kind::Fail, _) | (_, false) => Homes::Both,
    };
    match allowed {
        Homes::Old => ensure!(old, "home is {home} before that was decided"),
        Homes::New => ensure!(new, "home is {home} after genesis was written down as home"),
        Homes::Both => {}
    }
    if !reached && case.kind != Kind::Fail {
        ensure!(told.code == Some(case.switch.code()), "without a fault it ended otherwise: {}", told.text);
    }
    Ok(())
}

/// What berthctl printed, also one that was cut off in the middle.
fn told(ended: &Ended) -> Told {
    let stdout = String::from_utf8_lossy(&ended.stdout);
    let mut told = Told { code: ended.status.code(), ..Told::default() };
    let mut heard = |swap: &SwapSummary| {
        told.done |= swap.outcome == Some(report::Outcome::Done);
        told.restored |= swap.outcome == Some(report::Outcome::Restored);
    };
    for document in serde_json::Deserializer::from_str(&stdout).into_iter::<Value>().map_while(Result::ok) {
        if let Ok(Event { what: What::SwapEnded { swap }, .. }) = serde_json::from_value(document.clone()) {
            heard(&swap);
        }
        let last = document.get("swap").filter(|_| document.get("exit").is_some());
        if let Some(swap) = last.and_then(|swap| serde_json::from_value(swap.clone()).ok()) {
            heard(&swap);
        }
    }
    told.done |= told.code == Some(0);
    let said = stdout.lines().next_back().unwrap_or_default();
    told.text = format!("{said}{} ({})", String::from_utf8_lossy(&ended.stderr).trim_end(), ended.status);
    told
}

fn wait(deadline: Duration, look: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !look() {
        if start.elapsed() > deadline {
            return false;
        }
        thread::sleep(LOOK);
    }
    true
}

/// aeon is home, alone, nothing lingers, and berthd is a new one: what it learned in the last trial (how long to wait
/// before a model is tried again, whose unit systemd keeps for it) would make the next one another.
pub(super) fn go_back_to_aeon(berth: &Berth) -> Result<()> {
    berth.gpu(&["linger", LINGER]);
    if rest::come_to_rest(berth)? != Rest::of("aeon") {
        let change = berth.change(&["switch", "aeon"]);
        ensure!(change.code == 0, "aeon can't be brought back: {:#}", change.last);
    }
    berth.restart_berthd();
    let rest = rest::come_to_rest(berth)?;
    ensure!(rest == Rest::of("aeon"), "home is {rest} after a restart of berthd");
    rest::no_failed_allocation(berth)
}

/// What berthd said lately, for one who can't ask it any more.
pub(super) fn evidence(berth: &Berth) -> String {
    if berth.sandbox().pid1().is_none() {
        return "\n  (the sandbox is down)".to_owned();
    }
    let argv = ["journalctl", "--no-pager", "--quiet", "--output=short-precise", "--lines=40"];
    let argv = [&argv[..], &["--unit=berthd.service", "--unit=berth-model@*"]].concat();
    let said = berth.sandbox().exec(&argv).map_or_else(|error| format!("{error:#}"), |output| output.stdout);
    said.lines().fold(String::new(), |all, line| all + "\n  | " + line)
}

/// A cut right after a reported success, of a ledger that is not synced: Ok with what was found, as it must be.
pub(super) fn unsynced(berth: &mut Berth) -> Result<String> {
    fault::leave_ledger_unsynced(berth)?;
    let change = berth.change(&["switch", "genesis"]);
    ensure!(change.code == 0, "{:#}", change.last);
    berth.cut();
    berth.boot();
    let rest = rest::come_to_rest(berth)?;
    if rest == Rest::of("genesis") {
        bail!("with a ledger that is not synced, a cut after a reported success did no harm");
    }
    go_back_to_aeon(berth)?;
    Ok(format!("the switch was reported as done, and home is {rest}"))
}
