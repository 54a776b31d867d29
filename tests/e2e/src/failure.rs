//! What one wants to read when a test failed on a machine that is gone: what berthd, systemd and the simulated
//! GPUs said.

use std::fmt::Write as _;
use std::time::Duration;

use crate::berth::Berth;
use crate::builder::stale_stage;

/// A guest that is in trouble must not hold the report up.
const DEADLINE: Duration = Duration::from_secs(10);

const QUESTIONS: &[&[&str]] = &[
    &["berthctl", "status"],
    &["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "berth*", "gpusim*"],
    &["gpusim", "ctl", "show"],
    &["journalctl", "--no-pager", "--quiet", "--output=short-precise", "--lines=80", "--unit=berthd.service"],
    &["journalctl", "--no-pager", "--quiet", "--output=short-precise", "--lines=60", "--unit=berth-model@*"],
];

/// All of it; what can't be asked is said to be so.
pub(crate) fn report(berth: &Berth) -> String {
    let mut report = String::from("\n---- the sandbox\n");
    if let Some(stale) = stale_stage() {
        _ = writeln!(report, "note: {stale}");
    }
    if berth.sandbox().pid1().is_none() {
        _ = writeln!(report, "it is down");
        return report;
    }
    for question in QUESTIONS {
        _ = writeln!(report, "$ {}", question.join(" "));
        match berth.sandbox().exec_within(DEADLINE, None, question) {
            Ok(output) => _ = writeln!(report, "{}{}", output.stdout.trim_end(), output.stderr.trim_end()),
            Err(error) => _ = writeln!(report, "{error:#}"),
        }
    }
    report
}
