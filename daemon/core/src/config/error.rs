//! What is wrong with the configuration, shown at its place: file, line, column and the line itself.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use super::SourceFile;

/// How wide errors are drawn; longer lines of source are cut around the place that matters.
const WIDTH: usize = 100;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigError {
    /// What is wrong, as one clause.
    pub message: String,
    /// Where; the first is where to mend it, the others are what it is at odds with.
    pub places: Vec<Place>,
    /// What to do instead, where that is known.
    pub help: Option<String>,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Its line, from 1.
    pub line: usize,
    /// The character in that line, from 1.
    pub column: usize,
    /// What to say about this place; may be empty.
    pub label: String,
    /// Bytes of the text.
    #[serde(skip)]
    span: Range<usize>,
    #[serde(skip)]
    text: Arc<str>,
}

impl Place {
    /// The bytes `span` of `file`. A span that is not one of the text's is moved to the nearest that is.
    pub(super) fn new(file: &SourceFile, span: &Range<usize>, label: impl Into<String>) -> Self {
        let start = floor(&file.text, span.start);
        let end = floor(&file.text, span.end).max(start);
        let before = &file.text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            path: file.path.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            label: printable(&label.into()),
            span: start..end,
            text: Arc::from(file.text.as_str()),
        }
    }

    /// The same place with this label, where it has none of its own.
    pub(super) fn labelled(&self, label: &str) -> Self {
        let label = if self.label.is_empty() { label } else { &self.label };
        Self { label: label.to_owned(), ..self.clone() }
    }
}

/// The nearest character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

impl ConfigError {
    pub(super) fn new(message: impl Into<String>, place: Place) -> Self {
        Self { message: printable(&message.into()), places: vec![place], help: None }
    }

    pub(super) fn and(mut self, place: Place) -> Self {
        self.places.push(place);
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(printable(&help.into()));
        self
    }

    /// The order in which errors are shown: by file, then by place.
    pub(super) fn order(&self) -> (Option<(&PathBuf, usize, usize)>, &str) {
        (self.places.first().map(|place| (&place.path, place.line, place.column)), &self.message)
    }

    /// The error with the lines it is about, in several lines of text. `color` adds terminal colours, which
    /// carry nothing that the text does not say.
    pub fn render(&self, color: bool) -> String {
        self.render_as(Level::ERROR, color)
    }

    fn render_as(&self, level: Level<'_>, color: bool) -> String {
        let paths: Vec<String> = self.places.iter().map(|at| printable(&at.path.to_string_lossy())).collect();
        let mut snippets: Vec<Snippet<'_, _>> = Vec::new();
        for (i, place) in self.places.iter().enumerate() {
            // Places in one file are shown together, with the file's first place.
            if self.places[..i].iter().any(|earlier| earlier.path == place.path) {
                continue;
            }
            let here = self.places.iter().enumerate().filter(|(_, other)| other.path == place.path);
            snippets.push(Snippet::source(&*place.text).path(paths[i].as_str()).annotations(here.map(
                |(n, other)| {
                    let kind = if n == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
                    let label = (!other.label.is_empty()).then_some(other.label.as_str());
                    kind.span(other.span.clone()).label(label)
                },
            )));
        }
        let mut group = Group::with_title(level.primary_title(&self.message)).elements(snippets);
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        renderer.term_width(WIDTH).render(&[group])
    }
}

/// The text without control characters: what stands in a file must not move a reader's cursor.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for ConfigError {}

/// Advice: something that is allowed and known to hurt, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Warning(pub(super) ConfigError);

impl Warning {
    /// What is known to hurt, as one clause.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where it is asked for.
    pub fn place(&self) -> Option<&Place> {
        self.0.places.first()
    }

    /// The advice with the lines it is about, as errors are shown.
    pub fn render(&self, color: bool) -> String {
        self.0.render_as(Level::WARNING, color)
    }

    /// The order in which they are shown.
    pub(super) fn order(&self) -> (Option<(&PathBuf, usize, usize)>, &str) {
        self.0.order()
    }
}
