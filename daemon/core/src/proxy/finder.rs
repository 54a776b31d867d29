//! Finds which model a request asks for, in its body, while that streams through.
//!
//! One pass, and at most a few KiB are kept: a body can carry 100 MB of images. Whatever two readers could understand
//! differently is refused, since a body that asks for one model here and for another one at the server would get past
//! whatever allows only the first.

use std::ops::Range;

mod edit;
mod json;
mod multipart;

pub use edit::edited;

/// The longest name of a model in a body, in bytes.
const LONGEST: usize = 512;

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One JSON object; the model is its key `model`.
    Json,
    /// `multipart/form-data`; the model is its field `model`.
    Multipart,
}

/// Finds the model that a request's body asks for, as far as it has come in.
#[derive(Debug)]
pub struct Finder {
    reader: Reader,
    found: Option<Found>,
    wrong: Option<Wrong>,
}

#[derive(Debug)]
enum Reader {
    Json(json::Reader),
    Multipart(Box<multipart::Reader>),
}

/// The model that a body asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name; may be empty.
    pub model: String,
    /// Where it stands first in the body, in bytes: in JSON with its quotes, in multipart the field's content.
    pub at: Range<u64>,
    /// Whether it stands in the body once more, with the same value: another one written at `at` alone would not do.
    pub again: bool,
}

impl Finder {
    /// For a body that is a JSON object. A byte order mark may stand before it.
    pub fn json() -> Self {
        Self::new(Reader::Json(json::Reader::default()))
    }

    /// For a body of type `multipart/form-data` with this boundary.
    pub fn multipart(boundary: &str) -> Result<Self, Wrong> {
        Ok(Self::new(Reader::Multipart(Box::new(multipart::Reader::new(boundary)?))))
    }

    /// For the body of a request with this `Content-Type`. What is not `multipart/form-data` is read as JSON, since
    /// servers read it as JSON whatever type is named, and curl names another one.
    pub fn of(content_type: &str) -> Result<Self, Wrong> {
        multipart::boundary(content_type)?.map_or_else(|| Ok(Self::json()), |it| Self::multipart(&it))
    }

    const fn new(reader: Reader) -> Self {
        Self { reader, found: None, wrong: None }
    }

    /// How the body is written.
    pub const fn form(&self) -> Form {
        match self.reader {
            Reader::Json(_) => Form::Json,
            Reader::Multipart(_) => Form::Multipart,
        }
    }

    /// Takes the next bytes of the body. What was wrong once stays wrong.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        self.hold(|reader, found| match reader {
            Reader::Json(reader) => reader.push(bytes, found),
            Reader::Multipart(reader) => reader.push(bytes, found),
        })
    }

    /// The body is over.
    pub fn end(&mut self) -> Result<(), Wrong> {
        self.hold(|reader, _| match reader {
            Reader::Json(reader) => reader.end(),
            Reader::Multipart(reader) => reader.end(),
        })
    }

    /// What was found so far; nothing once something was wrong, so that nobody goes on with it.
    pub const fn found(&self) -> Option<&Found> {
        match self.wrong {
            None => self.found.as_ref(),
            Some(_) => None,
        }
    }

    /// How many bytes there is room for.
    #[cfg(test)]
    const fn kept(&self) -> usize {
        match &self.reader {
            Reader::Json(reader) => reader.kept.capacity(),
            Reader::Multipart(reader) => reader.kept.capacity(),
        }
    }

    fn hold(
        &mut self,
        step: impl FnOnce(&mut Reader, &mut Option<Found>) -> Result<(), Wrong>,
    ) -> Result<(), Wrong> {
        if self.wrong.is_none() {
            self.wrong = step(&mut self.reader, &mut self.found).err();
        }
        self.wrong.clone().map_or(Ok(()), Err)
    }
}

/// The value as it stands in a body of this form: a JSON string with its quotes, or a field's content.
pub fn spelled(form: Form, model: &str) -> Vec<u8> {
    match form {
        Form::Json => serde_json::Value::from(model).to_string().into_bytes(),
        Form::Multipart => model.as_bytes().to_vec(),
    }
}

/// Takes a value of `model` down. A second one has to be the same: servers take the first or the last.
fn note(found: &mut Option<Found>, model: String, at: Range<u64>) -> Result<(), Wrong> {
    if model.len() > LONGEST {
        return Err(Wrong::TooLong { at: at.start });
    }
    match found {
        None => *found = Some(Found { model, at, again: false }),
        Some(first) if first.model == model => first.again = true,
        Some(first) => {
            return Err(Wrong::Twice { first: first.model.clone(), second: model, at: at.start });
        }
    }
    Ok(())
}

/// Keeps what comes in, and of what is longer than `most` just enough to tell.
fn keep(kept: &mut Vec<u8>, bytes: &[u8], most: usize) {
    let room = most.saturating_add(1).saturating_sub(kept.len());
    kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
}

/// Why a body does not say which model it asks for. `at` is the byte at which it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Wrong {
    #[error("the body is not a JSON object")]
    NotObject,
    #[error("the body is no JSON: byte {at} can't be `{}`", .byte.escape_ascii())]
    Unexpected { at: u64, byte: u8 },
    #[error("the string at byte {at} of the body is no JSON string in UTF-8")]
    Unreadable { at: u64 },
    #[error("`model` has to be a string, and at byte {at} of the body it is {is}")]
    NotText { at: u64, is: &'static str },
    #[error("`model`, at byte {at} of the body, is longer than {LONGEST} bytes")]
    TooLong { at: u64 },
    #[error(
        "`model` stands a second time at byte {at} of the body, as `{}` after `{}`; ask for one model",
        .second.escape_debug(), .first.escape_debug()
    )]
    Twice { first: String, second: String, at: u64 },
    #[error("the body ends too early, after {at} bytes")]
    Ended { at: u64 },
    #[error("the content type `{}` can't be read: {why}", .given.escape_debug())]
    ContentType { given: String, why: &'static str },
    #[error("`{}` can't be a boundary: {why}", .given.escape_debug())]
    Boundary { given: String, why: &'static str },
    #[error("the body is no multipart/form-data: after its boundary, at byte {at} can't be `{}`", .byte.escape_ascii())]
    Delimiter { at: u64, byte: u8 },
    #[error(
        "the body is no multipart/form-data: the part that begins with its boundary ends before byte {at}"
    )]
    NoContent { at: u64 },
    #[error("the headers of the part before byte {at} of the body can't be read: {why}")]
    Headers { at: u64, why: &'static str },
    #[error("the field `model`, at byte {at} of the body, is no UTF-8")]
    NotUtf8 { at: u64 },
}

#[cfg(test)]
mod tests;
