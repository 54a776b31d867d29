//! A switch in peace, and the points that are passed on its way.
//!
//! What the swap machine asks for, what is told to it and the calls that change something come in the same number in
//! every run: each is a point. Readings come as often as time allows; of each kind the first ones after each mark
//! count, a mark being a point after which there is time for some.

use std::collections::HashMap;

use anyhow::{Result, ensure};

use super::case::{At, Case, Homes, Kind, Point, Switch};
use super::{fault, trial};
use crate::Berth;

/// Walks before it is known which points are always there.
const WALKS: usize = 3;
/// Readings of each kind that count after each mark.
const READINGS: u32 = 2;
const READS: [&str; 4] = ["systemd Get", "systemd ListUnits", "systemd ListUnitFiles", "systemd SystemState"];
const MARKS: [&str; 5] = ["before look", "after stop", "after kill", "after start", "after diagnose"];
/// The driver's own effects: their order is the order of its decisions.
const DRIVERS: [&str; 8] = ["record", "stop", "kill", "start", "ledger sync", "say ended", "end", "probe"];

/// All cases of a switch.
pub(super) fn scout(berth: &mut Berth, switch: Switch) -> Result<Vec<Case>> {
    let mut walks: Vec<Vec<String>> = Vec::new();
    for _ in 0..WALKS {
        let mut walk = fault::passed(berth, |berth| {
            let change = berth.change(&["switch", switch.target()]);
            ensure!(change.code == switch.code(), "the switch in peace ended otherwise: {:#}", change.last);
            // The last points may be passed after berthctl has heard of the end.
            std::thread::sleep(std::time::Duration::from_millis(100));
            Ok(())
        })?;
        let end = walk.iter().position(|point| point == "after end").unwrap_or(walk.len());
        walk.truncate(end + 1);
        ensure!(walk.last().is_some_and(|last| last == "after end"), "the end was not passed: {walk:?}");
        walks.push(walk);
        trial::go_back_to_aeon(berth)?;
    }
    let named: Vec<Vec<(At, Option<At>)>> = walks.iter().map(|walk| name(walk)).collect();
    let first = &named[0];
    let decided = Decided::of(&walks[0]);
    let mut cases = Vec::new();
    for (index, (at, since)) in first.iter().enumerate() {
        let always = named.iter().all(|walk| walk.contains(&(at.clone(), since.clone())));
        if !always || is_reading(&at.point) && (since.is_none() || at.nth > READINGS) {
            continue;
        }
        let drivers = DRIVERS.iter().any(|name| at.point.split_once(' ').is_some_and(|(_, of)| of == *name));
        let (killed, cut) = match switch {
            Switch::GoesBack => (Homes::Old, Homes::Old),
            Switch::Done if drivers => (decided.after_a_kill(index), decided.after_a_cut(index)),
            // What other tasks do may fall before or after what the driver does at the same time.
            Switch::Done => (Homes::Both, Homes::Both),
        };
        let point = Point { at: at.clone(), since: since.clone(), killed, cut };
        let mut kinds = vec![Kind::Kill, Kind::Cut];
        kinds.extend(can_fail(&at.point).then_some(Kind::Fail));
        cases.extend(kinds.into_iter().map(|kind| Case { switch, point: point.clone(), kind }));
    }
    Ok(cases)
}

/// Each passing with its number: from the beginning, or for a reading from the last mark.
fn name(walk: &[String]) -> Vec<(At, Option<At>)> {
    let mut counts: HashMap<(Option<At>, &str), u32> = HashMap::new();
    let mut mark: Option<At> = None;
    let mut named = Vec::new();
    for point in walk {
        let since = mark.clone().filter(|_| is_reading(point));
        let nth = counts.entry((since.clone(), point)).or_default();
        *nth += 1;
        let at = At { point: point.clone(), nth: *nth };
        if MARKS.contains(&point.as_str()) {
            mark = Some(at.clone());
        }
        named.push((at, since));
    }
    named
}

/// Whether this is a question that is asked again and again.
fn is_reading(point: &str) -> bool {
    let of = point.split_once(' ').map_or(point, |(_, of)| of);
    of.starts_with("nvml ") || READS.contains(&of)
}

/// Whether there is a call that can fail. A reading has no effect, so it is the same whether it fails early or late.
fn can_fail(point: &str) -> bool {
    let of = point.split_once(' ').map_or(point, |(_, of)| of);
    let late = point.starts_with("after ");
    match of {
        _ if is_reading(point) => late,
        "ledger sync" => true,
        of => of.starts_with("systemd "),
    }
}

/// Where in a walk it is decided that the new model is home.
struct Decided {
    start: usize,
    written: usize,
    synced: usize,
}

impl Decided {
    fn of(walk: &[String]) -> Decided {
        let find = |what: &str| walk.iter().position(|point| point == what).unwrap_or(walk.len());
        let said = find("before say ended");
        let before = |what: &str| walk[..said].iter().rposition(|point| point == what).unwrap_or(said);
        Decided {
            start: find("before start"),
            written: before("before ledger sync"),
            synced: before("after ledger sync"),
        }
    }

    /// A new model that serves may go on to do so.
    fn after_a_kill(&self, index: usize) -> Homes {
        match index {
            _ if index >= self.synced => Homes::New,
            _ if index >= self.start => Homes::Both,
            _ => Homes::Old,
        }
    }

    fn after_a_cut(&self, index: usize) -> Homes {
        match index {
            _ if index >= self.synced => Homes::New,
            _ if index >= self.written => Homes::Both,
            _ => Homes::Old,
        }
    }
}
