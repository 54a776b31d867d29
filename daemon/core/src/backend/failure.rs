//! Reads out of a server's log why it failed.
//!
//! The first cause in the log counts: what follows (the other ranks of a split, "failed to load model", a
//! traceback through three processes) is its consequence. Where a server says that it tries another way, what it
//! ran out of before is forgotten.

use super::{Failure, FailureClass, Kind, Text};
use crate::facts::Exit;

/// The longest log line that is kept, in characters.
const LONGEST: usize = 300;

/// The exit status by which a loader, or a shell that could not run it, gives up.
const NOT_LOADED: Exit = Exit::Status(127);

/// Texts of CUDA, the C library and Python, whatever the server.
pub(super) const COMMON: &[Text] = &[
    Text::cause(FailureClass::OutOfMemory, &["cuda error: out of memory"]),
    Text::cause(FailureClass::PortTaken, &["address already in use"]),
    Text::cause(FailureClass::MissingLibrary, &["error while loading shared libraries"]),
    Text::cause(FailureClass::MissingLibrary, &["importerror", "cannot open shared object file"]),
];

pub(super) fn classify(texts: &[&[Text]], log: &[String], exit: Option<Exit>) -> Failure {
    let mut cause: Option<(FailureClass, &str)> = None;
    let mut loader = None;
    let mut wrapper = None;
    for line in log {
        let lower = line.to_ascii_lowercase();
        let Some(text) = texts.iter().copied().flatten().find(|text| text.is_in(&lower)) else { continue };
        match text.kind {
            Kind::Retries if cause.is_some_and(|(class, _)| class == FailureClass::OutOfMemory) => {
                cause = None;
            }
            Kind::Retries => {}
            // A helper that some script calls may lack a library without harm: the exit status tells.
            Kind::Cause(FailureClass::MissingLibrary) if exit.is_some_and(|exit| exit != NOT_LOADED) => {
                loader = loader.or(Some(line));
            }
            Kind::Cause(class) => cause = cause.or(Some((class, line))),
            Kind::Wrapper => wrapper = wrapper.or(Some(line)),
        }
    }
    // After what is wrong many programs, docker among them, tell where their help is.
    let last = log.iter().rev().find(|line| !line.trim().is_empty() && !line.contains("--help'"));
    let (class, line) = match (cause, loader) {
        (Some((class, line)), _) => (class, line),
        (None, Some(line)) => (FailureClass::MissingLibrary, line.as_str()),
        (None, None) => (FailureClass::Unclassified, wrapper.or(last).map_or("", String::as_str)),
    };
    Failure { class, line: shorten(line), exit }
}

impl Text {
    fn is_in(&self, lower: &str) -> bool {
        let mut rest = lower;
        self.parts.iter().all(|part| match rest.find(part) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
    }
}

/// A log line without what stands before its message in vLLM (`(EngineCore pid=7) ERROR 11-02 09:00:00
/// [core.py:700]`), and not longer than a person reads.
fn shorten(line: &str) -> String {
    let stamp = line.find(".py:").and_then(|at| {
        let number_ends = line[at + 4..].find(|c: char| !c.is_ascii_digit())? + at + 4;
        line[number_ends..].starts_with("] ").then_some(number_ends + 2)
    });
    let message = line[stamp.unwrap_or(0)..].trim();
    // What a server writes must not move the reader's cursor.
    let plain = without_escapes(message);
    let mut kept: String = plain.chars().take(LONGEST).collect();
    if kept.len() < plain.len() {
        kept.push('…');
    }
    kept
}

/// Text without control characters and terminal sequences (`ESC [ 31 m`).
fn without_escapes(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.next_if_eq(&'[').is_some() {
            _ = chars.find(|end| ('@'..='~').contains(end));
        } else if !c.is_control() {
            plain.push(c);
        }
    }
    plain
}

impl Failure {
    /// Why it failed, as one plain clause that follows the model's name: `it ran out of GPU memory: "…"`.
    pub fn sentence(&self) -> String {
        let what = match self.class {
            FailureClass::OutOfMemory if self.is_about_ram() => "it ran out of memory (RAM)",
            FailureClass::OutOfMemory => "it ran out of GPU memory",
            FailureClass::TooLittleFree => "less GPU memory was free than vLLM insists on",
            FailureClass::NoRoomForKv => "its weights fit, but no room was left for the KV cache",
            FailureClass::MemoryMoved => "another process's GPU memory changed while vLLM measured its own",
            FailureClass::BadModelFile => "the server can't read the model's file",
            FailureClass::PortTaken => "its port was taken",
            FailureClass::MissingLibrary => "a shared library is missing",
            FailureClass::Unclassified => return self.unclassified(),
        };
        if self.line.is_empty() { what.to_owned() } else { format!("{what}: \"{}\"", self.line) }
    }

    fn is_about_ram(&self) -> bool {
        let lower = self.line.to_ascii_lowercase();
        lower.contains("cpu") && !lower.contains("cuda")
    }

    fn unclassified(&self) -> String {
        let how = match self.exit {
            Some(Exit::Status(0)) => "it exited by itself, with status 0".to_owned(),
            Some(Exit::Status(status)) => format!("it exited with status {status} without a known reason"),
            Some(Exit::Signal(signal)) => format!("it was ended by signal {signal}{}", signal_name(signal)),
            None => "it failed without a known reason".to_owned(),
        };
        if self.line.is_empty() {
            format!("{how}; its log is empty")
        } else {
            format!("{how}; its log says \"{}\"", self.line)
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (SIGILL: the program was built for another processor)",
        6 => " (SIGABRT: it gave up by itself)",
        7 => " (SIGBUS: a file or memory that it had mapped went away)",
        9 => " (SIGKILL: by a person, or by the kernel when RAM ran out)",
        11 => " (SIGSEGV: a bug in the program)",
        15 => " (SIGTERM: it was asked to stop)",
        _ => "",
    }
}
