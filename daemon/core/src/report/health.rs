//! What watchdogs and supervisors are answered: `GET /health`, `/health/live` and `/health/ready`.

use serde::{Deserialize, Serialize};

use super::Problem;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It is to be looked at; all that should serve does.
    Warning,
    /// By it something that should serve does not, or it can't be known what should.
    Error,
}

/// Every code of a problem, and how bad it is.
pub const CODES: [(&str, Severity); 18] = [
    ("ledger_damaged", Severity::Error),
    ("ledger", Severity::Warning),
    ("quarantined", Severity::Error),
    ("degraded", Severity::Error),
    ("unhealthy", Severity::Warning),
    ("memory_held", Severity::Warning),
    ("gpus_unknown", Severity::Warning),
    ("gpu_unknown", Severity::Warning),
    ("gpu_suspect", Severity::Warning),
    ("proxy_unheard", Severity::Error),
    ("http_unheard", Severity::Warning),
    ("history_damaged", Severity::Warning),
    ("history_error", Severity::Warning),
    ("exposed", Severity::Warning),
    ("not_taken_over", Severity::Warning),
    ("rival", Severity::Warning),
    ("starting", Severity::Error),
    ("no_answer", Severity::Error),
];

impl Problem {
    /// How bad it is; one of a code that is not known is taken for bad.
    pub fn severity(&self) -> Severity {
        let known = CODES.iter().find(|(code, _)| *code == self.code);
        known.map_or(Severity::Error, |(_, severity)| *severity)
    }
}

/// Whether all is well: the answer of `GET /health`, with status 200 where it is and 503 where not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// In one word.
    pub status: HealthStatus,
    /// What is wrong, errors first.
    pub problems: Vec<Concern>,
    /// The swap that is under way. What an operator's one stops and starts is no problem until it ends.
    pub swap: Option<u64>,
}

/// Whether all is well, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Everything that should serve does.
    Ok,
    /// Something does not.
    Degraded,
}

/// A problem and how bad it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concern {
    /// Only errors make the answer 503.
    pub severity: Severity,
    /// The problem.
    #[serde(flatten)]
    pub problem: Problem,
}

/// Whether berthd can be sent requests: the answer of `GET /health/live` and `/health/ready`, 200 or 503.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// Whether it can.
    pub ready: bool,
    /// Why not.
    pub why: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The codes that a table of the docs has in its first cells, and how bad it says that they are.
    fn listed(text: &str) -> Vec<(&str, Severity)> {
        let table = text.split("## Problems, and what to do").nth(1).unwrap_or_default();
        let table = table.split("\n## ").next().unwrap_or_default();
        let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
        cells
            .filter_map(|cell| {
                let (code, mark) = cell.split_once('`')?;
                Some((code, if mark == " **E**" { Severity::Error } else { Severity::Warning }))
            })
            .collect()
    }

    #[test]
    fn every_code_has_a_severity_and_a_line_in_the_docs() {
        let source = [include_str!("../status.rs"), include_str!("../status/health.rs")].concat();
        let added = regex_lite::Regex::new(r#"add\(\s*"([a-z_]+)""#).unwrap();
        let added: Vec<String> = added.captures_iter(&source).map(|found| found[1].to_owned()).collect();
        assert!(added.len() >= 9, "{added:?}");
        for code in added.iter().map(String::as_str).chain(["ledger", "ledger_damaged"]) {
            assert!(CODES.iter().any(|(known, _)| *known == code), "{code}");
        }
        let mut documented = listed(include_str!("../../../../docs/operations.md"));
        let mut codes = CODES.to_vec();
        documented.sort_unstable();
        codes.sort_unstable();
        assert_eq!(documented, codes);
    }
}
