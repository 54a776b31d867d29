//! The ticket: what berthd tells `berth-launch` to run, or why it may not run.
//!
//! It travels as JSON in a systemd credential, written by berthd and by the unit template's default, read by
//! `berth-launch`. Its version stands beside its body, so that a daemon and a launcher of different versions
//! say so instead of guessing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The ticket's format that this build writes and reads.
pub const FORMAT: u32 = 1;

/// The exit status for a start that is refused, or that has no ticket that can be read (`EX_CONFIG`).
pub const EXIT_REFUSED: u8 = 78;
/// The exit status when the program is there but can't be run: not executable, no such working directory …
pub const EXIT_CANNOT_RUN: u8 = 126;
/// The exit status when the program is missing.
pub const EXIT_MISSING: u8 = 127;

/// Permission to start once, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ticket {
    /// Run this.
    Launch(Launch),
    /// Run nothing; one sentence that says why and what to do.
    Refused(String),
}

/// What to execute, complete: nothing is decided after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// The program and its arguments. A program without a `/` is searched for in `/usr/local/bin` and `/usr/bin`.
    pub argv: Vec<String>,
    /// Variables set on top of the unit's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Variables whose values are credentials of the unit of the same name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// The working directory; the unit's where none is given.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The processors that it runs on; the unit's where none is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u32>,
    /// How many bytes it may lock in memory, no fewer and no more; the unit's limit where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memlock: Option<u64>,
    /// Its scheduling priority as `nice` has it; the unit's where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
    /// How what an earlier run left is cleared away first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clear: Option<Clear>,
}

/// How what an earlier run left is cleared away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clear {
    /// Prints it, a word for each.
    pub find: Vec<String>,
    /// Removes what is named behind it.
    pub remove: Vec<String>,
}

/// A ticket that can't be read.
#[derive(Debug)]
pub enum BadTicket {
    /// It is of a format that this build doesn't know.
    Format(u32),
    /// It is no ticket at all, and why.
    Garbage(String),
}

impl std::fmt::Display for BadTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Format(found) => write!(
                f,
                "the ticket has format {found}, this berth-launch reads {FORMAT}: install berthd and \
                 berth-launch of the same version"
            ),
            Self::Garbage(why) => write!(f, "the ticket can't be read: {why}"),
        }
    }
}

impl std::error::Error for BadTicket {}

/// The ticket as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    ticket: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    launch: Option<Launch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

/// The part that every format has.
#[derive(Deserialize)]
struct Version {
    ticket: u32,
}

impl Ticket {
    /// The ticket as JSON.
    pub fn to_json(&self) -> String {
        let (launch, refused) = match self {
            Self::Launch(launch) => (Some(launch.clone()), None),
            Self::Refused(reason) => (None, Some(reason.clone())),
        };
        // Strings and maps of strings always have a JSON form.
        serde_json::to_string(&Wire { ticket: FORMAT, launch, refused }).unwrap_or_default()
    }

    /// Reads a ticket.
    pub fn parse(text: &[u8]) -> Result<Self, BadTicket> {
        let garbage = |error: serde_json::Error| BadTicket::Garbage(error.to_string());
        let version: Version = serde_json::from_slice(text).map_err(garbage)?;
        if version.ticket != FORMAT {
            return Err(BadTicket::Format(version.ticket));
        }
        let wire: Wire = serde_json::from_slice(text).map_err(garbage)?;
        match (wire.launch, wire.refused) {
            (Some(launch), None) if !launch.argv.is_empty() => Ok(Self::Launch(launch)),
            (Some(_), None) => Err(BadTicket::Garbage("it names no program".to_owned())),
            (None, Some(reason)) => Ok(Self::Refused(reason)),
            _ => Err(BadTicket::Garbage("it must say either what to launch or why not".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tickets_survive_the_way() {
        let launch = Launch {
            argv: vec!["/opt/llama-server".into(), "--jinja".into(), "ä\n\"".into()],
            env: BTreeMap::from([("CUDA_VISIBLE_DEVICES".into(), "GPU-1".into())]),
            secrets: vec!["HF_TOKEN".into()],
            cwd: Some("/models".into()),
            cpus: vec![0, 2],
            memlock: Some(18 << 30),
            nice: Some(-5),
            clear: Some(Clear { find: vec!["/usr/bin/podman".into()], remove: vec!["/bin/rm".into()] }),
        };
        for ticket in [Ticket::Launch(launch), Ticket::Refused("genesis is off".into())] {
            assert_eq!(Ticket::parse(ticket.to_json().as_bytes()).unwrap(), ticket);
        }
    }

    #[test]
    fn the_form_on_the_wire_stays() {
        let mut launch = Launch {
            argv: vec!["a".into()],
            env: BTreeMap::new(),
            secrets: Vec::new(),
            cwd: None,
            cpus: Vec::new(),
            memlock: None,
            nice: None,
            clear: None,
        };
        assert_eq!(
            Ticket::Launch(launch.clone()).to_json(),
            r#"{"ticket":1,"launch":{"argv":["a"],"env":{},"cwd":null}}"#
        );
        (launch.cpus, launch.memlock, launch.nice) = (vec![0, 2], Some(4096), Some(5));
        assert_eq!(
            Ticket::Launch(launch).to_json(),
            r#"{"ticket":1,"launch":{"argv":["a"],"env":{},"cwd":null,"cpus":[0,2],"memlock":4096,"nice":5}}"#
        );
        assert_eq!(Ticket::Refused("no".into()).to_json(), r#"{"ticket":1,"refused":"no"}"#);
    }

    #[test]
    fn what_is_no_ticket_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "can't be read: EOF"),
            ("\0\u{1}", "can't be read"),
            ("{}", "missing field `ticket`"),
            (r#"{"ticket":2,"future":[]}"#, "format 2, this berth-launch reads 1"),
            (r#"{"ticket":1}"#, "either what to launch or why not"),
            (r#"{"ticket":1,"launch":{"argv":[]}}"#, "names no program"),
            (r#"{"ticket":1,"launch":{"argv":["a"]},"refused":"b"}"#, "either what to launch or why not"),
            (r#"{"ticket":1,"launch":{"argv":["a"],"numa":1}}"#, "unknown field `numa`"),
        ] {
            let error = Ticket::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
