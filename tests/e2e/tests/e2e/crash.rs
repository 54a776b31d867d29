//! `make crash` in short: berthd killed at every point of a switch, and cut from power at those that decide.

use berth_tests::crash::{self, Kind, Switch};

/// Points at which a cut decides: nothing is stopped yet, nothing runs, and the new home is on the disk, where the
/// last of three syncs has put it.
const CUTS: [(&str, u32); 3] = [("before stop", 1), ("before start", 1), ("after ledger sync", 3)];

#[test]
fn a_switch_that_is_cut_off_anywhere_comes_to_rest() {
    let mut berth = crash::machine().unwrap();
    let mut cases = crash::scout(&mut berth, Switch::Done).unwrap();
    // The test of the test.
    crash::finds_an_unsynced_ledger(&mut berth).unwrap();
    drop(berth);

    let cut = |point: &str, nth| CUTS.contains(&(point, nth));
    cases.retain(|case| match case.kind {
        Kind::Kill => true,
        Kind::Cut => case.point.since.is_none() && cut(&case.point.at.point, case.point.at.nth),
        // systemd did as it was told, and its answer was lost.
        Kind::Fail => case.point.at.point == "after systemd Stop",
    });
    let cuts = cases.iter().filter(|case| case.kind == Kind::Cut).count();
    assert_eq!(cuts, CUTS.len(), "points have other names now: {cases:?}");
    assert!(cases.len() > 40, "{} points are too few: {cases:?}", cases.len());

    let sum = crash::run(cases, 2, |_, _, _| {}).unwrap();
    assert_eq!(sum.violations, Vec::<String>::new());
    assert_eq!(sum.converged, sum.points);
}
