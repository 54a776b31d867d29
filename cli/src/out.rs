//! Standard output and error. Whoever reads may go away, which is a way of stopping to watch.

use std::io::{self, IsTerminal, Write};

use clap::ColorChoice;
use serde::Serialize;

use crate::exit::Exit;
use crate::render::Paint;

/// How to say things.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    /// JSON for programs.
    pub(crate) json: bool,
    /// Standard output is a terminal that can redraw a line.
    pub(crate) terminal: bool,
    /// Colours on standard output.
    pub(crate) paint: Paint,
    /// Colours on standard error.
    pub(crate) errors: Paint,
}

impl Out {
    pub(crate) fn new(json: bool, choice: ColorChoice) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let paint = |terminal: bool| Paint {
            color: match choice {
                ColorChoice::Always => true,
                ColorChoice::Never => false,
                ColorChoice::Auto => terminal && !dumb && !plain,
            },
        };
        let terminal = io::stdout().is_terminal();
        Self {
            json,
            terminal: terminal && !dumb,
            paint: paint(terminal),
            errors: paint(io::stderr().is_terminal()),
        }
    }

    /// Prints text as it is.
    pub(crate) fn say(text: &str) {
        let mut stdout = io::stdout().lock();
        if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            // Nobody reads any more (a pipe to `head`), or nothing can be written: the watching is over.
            std::process::exit(Exit::Stopped.code().into());
        }
    }

    /// Prints a document as one line of JSON.
    pub(crate) fn document(document: &impl Serialize) {
        match serde_json::to_string(document) {
            Ok(text) => Self::say(&(text + "\n")),
            // A report has nothing that JSON can't say; should that change, say so instead of nothing.
            Err(e) => Self::complain(&format!("error: can't write JSON: {e}\n")),
        }
    }

    /// Prints text to standard error.
    pub(crate) fn complain(text: &str) {
        // With nobody to tell, the exit code has to do.
        _ = io::stderr().lock().write_all(text.as_bytes());
    }
}
