//! A model's log, read from systemd's journal by `journalctl`.
//!
//! Nothing is kept here. What a server wrote is text from outside: bytes that are no UTF-8 are replaced, and
//! what would steer a terminal is taken out.

use std::process::Stdio;
use std::time::Duration;

use berth_core::facts::Moment;
use berth_core::report::LogLine;
use futures_util::stream::{self, Stream};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::scope::{Journal, Scope};

/// A dead server's last line arrives within this time after systemd's signal, or nothing more does.
const QUIET: Duration = Duration::from_millis(200);
/// The most that is waited for a log that doesn't become quiet.
const TAIL_DEADLINE: Duration = Duration::from_secs(2);

/// systemd's message that it begins to stop a unit (`SD_MESSAGE_UNIT_STOPPING` in sd-messages.h). It is not sent
/// of a unit whose process ends by itself.
const STOPPING: &str = "de5b426a63be47a7b6ac3eaac82e2f6f";

/// Why a log can't be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The program could not be run.
    #[error("journalctl can't be run: {0}; it comes with systemd")]
    NoProgram(#[source] std::io::Error),
    /// It failed.
    #[error("journalctl failed: {said}; {}", Scope::this().journal_needs(), said = .0)]
    Failed(String),
    /// It took too long.
    #[error("the journal did not answer within {:.0} s", .0.as_secs_f64())]
    Late(Duration),
}

/// One run of a model, on this boot.
#[derive(Debug, Clone)]
pub struct Run {
    /// The units whose run it may be.
    pub units: Vec<String>,
    /// The unit's `InvocationID`; an empty one has no lines.
    pub invocation: String,
    /// When its main process was started, where that is known.
    pub started_at: Option<Moment>,
}

/// What the journal has of a run's end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tail {
    /// The last lines that it wrote, oldest first.
    pub lines: Vec<String>,
    /// When systemd says that it was told to stop it.
    pub told_to_stop: Option<Moment>,
}

/// The end of a run's log.
///
/// journald lags behind systemd's signals, so this reads until nothing new has come for 200 ms, at most 2 s;
/// then it gives what there is.
pub async fn tail(run: &Run, max_lines: usize) -> Result<Tail, JournalError> {
    if run.invocation.is_empty() || max_lines == 0 {
        return Ok(Tail::default());
    }
    let deadline = Instant::now() + TAIL_DEADLINE;
    let mut last = None;
    let mut tail = Tail::default();
    loop {
        let read_at = Instant::now();
        let entries = match timeout_at(deadline, read(run, max_lines)).await {
            Ok(entries) => entries?,
            Err(_) if last.is_some() => return Ok(tail),
            Err(_) => return Err(JournalError::Late(TAIL_DEADLINE)),
        };
        let newest = entries.last().map(|entry| entry.cursor.clone());
        let (of_systemd, own): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(Entry::is_of_systemd);
        tail = Tail {
            lines: own.into_iter().map(|entry| entry.line.text).collect(),
            told_to_stop: of_systemd
                .iter()
                .find(|entry| entry.message_id.as_deref() == Some(STOPPING))
                .and_then(|entry| entry.at),
        };
        let quiet = last.as_ref() == Some(&newest);
        last = Some(newest);
        let next = read_at + QUIET;
        if quiet || next >= deadline {
            return Ok(tail);
        }
        sleep_until(next).await;
    }
}

/// The log of these units over all their runs, with what systemd says about them: the last `lines`, and then, with
/// `follow`, each new line as it is written. Dropping the stream ends the reading.
pub fn follow(
    units: &[String],
    lines: usize,
    follow: bool,
) -> Result<impl Stream<Item = Result<LogLine, JournalError>> + Send + 'static, JournalError> {
    let mut command = journalctl();
    for unit in units {
        command.arg(Scope::this().unit_option()).arg(unit);
    }
    command.arg("--lines").arg(lines.to_string());
    if follow {
        command.arg("--follow");
    }
    let mut child = command.spawn().map_err(JournalError::NoProgram)?;
    let stdout = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
    let reading = stdout.map(|lines| Reading { lines, child });
    Ok(stream::unfold(reading, |reading| async move {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(line)) => Some((Ok(line), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// A running journalctl.
struct Reading {
    lines: Lines<BufReader<ChildStdout>>,
    child: Child,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<LogLine>, JournalError> {
        loop {
            let line =
                self.lines.next_line().await.map_err(|error| JournalError::Failed(error.to_string()))?;
            let Some(line) = line else { break };
            if let Some(entry) = Entry::parse(&line) {
                return Ok(Some(entry.line));
            }
        }
        let status = self.child.wait().await.map_err(|error| JournalError::Failed(error.to_string()))?;
        if status.success() {
            return Ok(None);
        }
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            // What it said helps; that it failed is known already.
            _ = stderr.read_to_string(&mut said).await;
        }
        Err(JournalError::Failed(format!("{status}: {}", one_line(&said))))
    }
}

/// The newest entries of a run: its own, and systemd's about it.
///
/// journald looks up the invocation of a writer when it gets to it. Of one that has ended by then it knows the unit
/// alone, so what the unit wrote since the run's start and has no invocation is the run's too.
async fn read(run: &Run, max_lines: usize) -> Result<Vec<Entry>, JournalError> {
    let invocation = &run.invocation;
    let Journal { of_unit, of_systemd } = Scope::this().journal(&run.units, invocation);
    let output = journalctl()
        .arg("--boot")
        .arg(format!("_SYSTEMD_INVOCATION_ID={invocation}"))
        .arg("+")
        .args(of_unit)
        .arg("+")
        .args(of_systemd)
        .arg("--lines")
        .arg(max_lines.to_string())
        .output()
        .await
        .map_err(JournalError::NoProgram)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(JournalError::Failed(format!("{}: {}", output.status, one_line(&said))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(Entry::parse).filter(|entry| entry.is_of(run)).collect())
}

/// journalctl as it is always run: one JSON object a line, whole messages, ended with its owner.
fn journalctl() -> Command {
    let mut command = Command::new("journalctl");
    command
        .args(["--quiet", "--no-pager", "--all", "--output=json"])
        .arg("--output-fields=MESSAGE,MESSAGE_ID,_PID,_SYSTEMD_USER_UNIT,_SYSTEMD_INVOCATION_ID")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// One entry of the journal.
struct Entry {
    cursor: String,
    line: LogLine,
    /// When, on the clock that systemd's monotonic stamps use too.
    at: Option<Moment>,
    pid: Option<u32>,
    user_unit: Option<String>,
    message_id: Option<String>,
    invocation: Option<String>,
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(line).ok()?;
        let text = |field: &str| json.get(field).and_then(Value::as_str);
        let micros: u64 = text("__REALTIME_TIMESTAMP")?.parse().ok()?;
        Some(Self {
            cursor: text("__CURSOR")?.to_owned(),
            line: LogLine { at_ms: micros / 1000, text: plain(&message(json.get("MESSAGE")?)) },
            at: text("__MONOTONIC_TIMESTAMP").and_then(|at| at.parse().ok()).map(Moment::from_micros),
            pid: text("_PID").and_then(|pid| pid.parse().ok()),
            user_unit: text("_SYSTEMD_USER_UNIT").map(str::to_owned),
            message_id: text("MESSAGE_ID").map(str::to_owned),
            invocation: text("_SYSTEMD_INVOCATION_ID").map(str::to_owned),
        })
    }

    /// Whether systemd says it: PID 1, or a user's own by the cgroup that it is in. journald asks the kernel for both.
    fn is_of_systemd(&self) -> bool {
        self.pid == Some(1) || self.user_unit.as_deref() == Some("init.scope")
    }

    /// Whether it belongs to this run of the unit, and not to another one.
    fn is_of(&self, run: &Run) -> bool {
        match &self.invocation {
            // systemd's own run is another one; what it says was asked for by the run's id.
            Some(invocation) => *invocation == run.invocation || self.is_of_systemd(),
            None => self.is_of_systemd() || self.at.zip(run.started_at).is_some_and(|(at, from)| at >= from),
        }
    }
}

/// A message: text; bytes as numbers where it is no UTF-8 or has control characters; a list where an entry has
/// more than one.
fn message(value: &Value) -> String {
    let Some(list) = value.as_array() else {
        return value.as_str().unwrap_or_default().to_owned();
    };
    let bytes: Option<Vec<u8>> = list.iter().map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
    match bytes {
        Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        None => list.iter().map(message).collect::<Vec<_>>().join(" "),
    }
}

/// The text without what steers a terminal: escape sequences go, other control characters become spaces. Of a
/// progress bar that was redrawn by carriage returns the last state is kept.
fn plain(text: &str) -> String {
    let text = text.trim_end_matches(['\r', '\n']);
    let text = text.rsplit_once('\r').map_or(text, |(_, last)| last);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' if chars.next_if_eq(&'[').is_some() => {
                // A control sequence ends with its first character from `@` to `~`.
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            '\u{1b}' => {}
            '\t' => out.push('\t'),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(message: &str) -> LogLine {
        let line = format!(
            r#"{{"__CURSOR":"s=1","__REALTIME_TIMESTAMP":"1795367000123456","MESSAGE":{message},"_BOOT_ID":"x"}}"#
        );
        Entry::parse(&line).unwrap().line
    }

    #[test]
    fn messages_are_read_in_every_form() {
        let line = parsed(r#""llama_model_load: error""#);
        assert_eq!(line, LogLine { at_ms: 1_795_367_000_123, text: "llama_model_load: error".into() });
        assert_eq!(parsed("[27,91,51,49,109,111,111,109,27,91,48,109]").text, "oom", "colours go");
        assert_eq!(parsed("[97,255,98]").text, "a\u{fffd}b", "bytes that are no text are marked");
        assert_eq!(parsed(r#"["first","second"]"#).text, "first second");
        assert_eq!(parsed("null").text, "");
        assert_eq!(parsed(r#""10%\r 50%\r100%\r""#).text, "100%");
        assert_eq!(parsed(r#""a\u0007b\tc""#).text, "a b\tc");
        assert_eq!(parsed(r#""cut off \u001b[""#).text, "cut off ");
    }

    #[test]
    fn what_is_no_entry_is_left_out() {
        for line in
            ["", "-- cursor: x", "{}", r#"{"__CURSOR":"s","__REALTIME_TIMESTAMP":"soon","MESSAGE":""}"#]
        {
            assert!(Entry::parse(line).is_none(), "{line}");
        }
    }

    fn run(invocation: &str) -> Run {
        Run {
            units: vec!["berth-model@aeon.service".to_owned()],
            invocation: invocation.to_owned(),
            started_at: Some(Moment::from_secs(10)),
        }
    }

    #[tokio::test]
    async fn a_run_that_never_was_has_no_lines() {
        assert_eq!(tail(&run(""), 10).await.unwrap(), Tail::default());
    }

    #[test]
    fn a_line_without_an_invocation_is_the_runs_that_had_begun() {
        let entry = |at: &str, pid: &str, invocation: &str| {
            let invocation = match invocation {
                "" => String::new(),
                id => format!(r#","_SYSTEMD_INVOCATION_ID":"{id}""#),
            };
            let line = format!(
                r#"{{"__CURSOR":"s","__REALTIME_TIMESTAMP":"1","__MONOTONIC_TIMESTAMP":"{at}","_PID":"{pid}","MESSAGE":"x"{invocation}}}"#
            );
            Entry::parse(&line).unwrap()
        };
        let is_ours = |entry: Entry| entry.is_of(&run("ours"));
        assert!(is_ours(entry("1", "7", "ours")));
        assert!(!is_ours(entry("10000001", "7", "theirs")));
        assert!(is_ours(entry("10000000", "7", "")), "journald came too late to see whose it is");
        assert!(!is_ours(entry("9999999", "7", "")), "an earlier run wrote it");
        assert!(is_ours(entry("1", "1", "")), "systemd's word of this run");
    }
}
