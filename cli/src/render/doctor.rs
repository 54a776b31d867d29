//! What `berthctl doctor` found, worst first; what is well in one line.

use std::fmt::Write as _;

use crate::doctor::{Finding, Report, Severity};

use super::text::{clean, join, paragraph, wrap};
use super::{Paint, Tone, WIDTH};

/// Where text begins, after the longest word for how bad it is.
const INDENT: usize = 9;

/// What it prints.
pub(crate) fn report(report: &Report, paint: Paint) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        out.push_str(&one(finding, paint));
    }
    let count = |severity, one: &str, many: &str| match report
        .findings
        .iter()
        .filter(|finding| finding.severity == severity)
        .count()
    {
        0 => String::new(),
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    };
    let counts = [
        count(Severity::Error, "error", "errors"),
        count(Severity::Warning, "warning", "warnings"),
        count(Severity::Unknown, "unknown", "unknown"),
    ];
    let counts = join(counts.into_iter().filter(|count| !count.is_empty()), ", ");
    let well = match report.well.len() {
        0 => "nothing is well".to_owned(),
        1 => "1 check is well".to_owned(),
        n => format!("{n} checks are well"),
    };
    let last =
        if counts.is_empty() { format!("Nothing wrong: {well}.") } else { format!("{counts}; {well}.") };
    out.push_str(&paragraph("", &last));
    out
}

fn one(finding: &Finding, paint: Paint) -> String {
    let (word, tone) = match finding.severity {
        Severity::Error => ("error", Tone::Bad),
        Severity::Warning => ("warning", Tone::Warn),
        Severity::Unknown => ("unknown", Tone::Dim),
    };
    let text = clean(&finding.text);
    let lines = wrap(&text, WIDTH - INDENT);
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        let (lead, blanks) = if at == 0 { (word, INDENT - word.len()) } else { ("", INDENT) };
        // Writing to a String cannot fail.
        _ = writeln!(out, "{}{}{line}", paint.tint(tone, lead), " ".repeat(blanks));
    }
    let indent = " ".repeat(INDENT);
    for evidence in &finding.evidence {
        out.push_str(&paragraph(&format!("{indent}- "), &clean(evidence)));
    }
    if !finding.next.is_empty() {
        out.push_str(&paragraph(&format!("{indent}Next: "), &clean(&finding.next)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::PLAIN;

    fn finding(severity: Severity, text: &str, evidence: &[&str], next: &str) -> Finding {
        Finding {
            severity,
            code: "unit_missing".into(),
            subject: "ssh.service".into(),
            text: text.into(),
            evidence: evidence.iter().map(|&line| line.to_owned()).collect(),
            next: next.into(),
        }
    }

    #[test]
    fn findings_are_told_with_evidence_and_the_next_step() {
        let findings = vec![
            finding(
                Severity::Error,
                "genesis can't read /home/frank/models/qwen3.6-27b-int4/model-00001-of-00004.safetensors: it runs as \
                 berth-model",
                &["drwx------ frank frank /home/frank"],
                "sudo setfacl -m u:berth-model:x /home/frank",
            ),
            finding(
                Severity::Warning,
                "ssh.service names tailscale.service (After), which does not exist: that has no effect; is \
                 tailscaled.service meant?",
                &["/etc/systemd/system/ssh.service.d/wire.conf:3: After=tailscale.service"],
                "correct /etc/systemd/system/ssh.service.d/wire.conf:3, then sudo systemctl daemon-reload",
            ),
            finding(
                Severity::Unknown,
                "whether the clock is right can't be told: no answer",
                &[],
                "timedatectl",
            ),
        ];
        let all = [
            Report { findings, well: vec!["driver", "GPUs"] },
            Report { findings: Vec::new(), well: vec!["driver", "GPUs", "clock"] },
        ];
        let shown = all.map(|all| report(&all, PLAIN)).join("\n");
        for line in shown.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        insta::assert_snapshot!(shown);
    }
}
