#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::mem::{Discriminant, discriminant};

use proptest::prelude::*;

use super::*;

mod edit;
mod json;
mod multipart;

/// What came of a body: the model, or the kind of what is wrong.
type Outcome = Result<Option<String>, Discriminant<Wrong>>;

/// Reads a body in pieces of these sizes, over and over.
fn read(mut finder: Finder, body: &[u8], sizes: &[usize]) -> Result<Option<Found>, Wrong> {
    let mut rest = body;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*size).clamp(1, rest.len()));
        finder.push(piece)?;
        rest = after;
    }
    finder.end()?;
    Ok(finder.found().cloned())
}

fn outcome(read: &Result<Option<Found>, Wrong>) -> Outcome {
    match read {
        Ok(found) => Ok(found.as_ref().map(|found| found.model.clone())),
        Err(wrong) => Err(discriminant(wrong)),
    }
}

fn kind(wrong: &Wrong) -> Discriminant<Wrong> {
    discriminant(wrong)
}

/// What has to come of these values of `model`, in their order; None is a value that is no string.
fn ruled(values: impl IntoIterator<Item = Option<String>>) -> Outcome {
    let mut model: Option<String> = None;
    for value in values {
        let Some(value) = value else { return Err(kind(&Wrong::NotText { at: 0, is: "" })) };
        if value.len() > 512 {
            return Err(kind(&Wrong::TooLong { at: 0 }));
        }
        if *model.get_or_insert_with(|| value.clone()) != value {
            return Err(kind(&Wrong::Twice { first: String::new(), second: String::new(), at: 0 }));
        }
    }
    Ok(model)
}

/// All ways to read a body give the same: as a whole, byte by byte, and in pieces of these sizes.
fn read_all_ways(finder: impl Fn() -> Finder, body: &[u8], sizes: &[usize]) -> Result<Option<Found>, Wrong> {
    let whole = read(finder(), body, &[usize::MAX]);
    assert_eq!(read(finder(), body, &[1]), whole, "{}", body.escape_ascii());
    assert_eq!(read(finder(), body, sizes), whole, "{} {sizes:?}", body.escape_ascii());
    whole
}

/// Sizes of pieces.
fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..40, 1..6)
}

/// Pieces of text at random, one after the other.
fn soup(of: &'static [&'static [u8]], most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(of), 0..most).prop_map(|pieces| pieces.concat())
}

#[test]
fn what_was_wrong_stays_wrong() {
    let mut finder = Finder::json();
    assert_eq!(finder.push(br#"{"model":"a","model":"#), Ok(()));
    assert_eq!(finder.found(), Some(&Found { model: "a".to_owned(), at: 9..12, again: false }));
    let wrong = finder.push(br#""b","#).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "`model` stands a second time at byte 21 of the body, as `b` after `a`; ask for one model"
    );
    assert_eq!(finder.found(), None);
    assert_eq!(finder.push(br#""x":1}"#), Err(wrong.clone()));
    assert_eq!(finder.end(), Err(wrong));
}

#[test]
fn the_content_type_says_how_a_body_is_read() {
    for (given, form) in [
        ("application/json", Form::Json),
        ("application/x-www-form-urlencoded", Form::Json),
        ("", Form::Json),
        ("multipart/form-data; boundary=b", Form::Multipart),
        (r#"Multipart/Form-Data ; charset=utf-8; Boundary="a b""#, Form::Multipart),
    ] {
        assert_eq!(Finder::of(given).map(|finder| finder.form()), Ok(form), "{given}");
    }
    for (given, wrong) in [
        ("multipart/form-data", "the content type `multipart/form-data` can't be read: it names no boundary"),
        (
            "multipart/form-data; boundary=a; boundary=b",
            "the content type `multipart/form-data; boundary=a; boundary=b` can't be read: a parameter is there twice",
        ),
        ("multipart/form-data; boundary=", "`` can't be a boundary: it has 1 to 70 characters"),
        (
            "multipart/form-data; boundary=\"a\rb\"",
            "`a\\rb` can't be a boundary: it has only printable characters and does not end with a blank",
        ),
    ] {
        assert_eq!(Finder::of(given).unwrap_err().to_string(), wrong);
    }
}

#[test]
fn a_name_is_spelled_as_it_is_found() {
    for model in ["a", "", "a\"b\\c\n", "ä😀", "a\u{0}b"] {
        let at_six = |spelled: &[u8], before: &str| {
            let start = before.len() as u64;
            Ok(Some(Found { model: model.to_owned(), at: start..start + spelled.len() as u64, again: false }))
        };
        let json = spelled(Form::Json, model);
        let before = r#"{"model":"#;
        let body = [before.as_bytes(), &json, b"}"].concat();
        assert_eq!(read(Finder::json(), &body, &[3]), at_six(&json, before));
        let content = spelled(Form::Multipart, model);
        let before = "--b\r\nContent-Disposition: form-data; name=model\r\n\r\n";
        let body = [before.as_bytes(), &content, b"\r\n--b--"].concat();
        assert_eq!(read(Finder::multipart("b").unwrap(), &body, &[3]), at_six(&content, before));
    }
}

/// However long a body, its keys and its values are, what is kept does not grow.
#[test]
fn nothing_is_kept_that_is_not_needed() {
    let long = "x".repeat(3 << 20);
    let nested = "[".repeat(1 << 20);
    let json = format!(r#"{{"{long}":"{long}","model":"a","{long}\\":{nested}"#);
    let mut finder = Finder::json();
    finder.push(json.as_bytes()).unwrap();
    assert_eq!(finder.found().unwrap().model, "a");
    assert!(finder.kept() < 8 << 10, "{}", finder.kept());
    let form = format!("{long}\r\n--b\r\nContent-Disposition: form-data; name=file\r\n\r\n{long}");
    let mut finder = Finder::multipart("b").unwrap();
    finder.push(form.as_bytes()).unwrap();
    assert!(finder.kept() < 8 << 10, "{}", finder.kept());
    for (open, most) in
        [("Content-Disposition: form-data; name=model\r\n\r\n", 4 << 10), ("Content-Disposition: ", 64 << 10)]
    {
        let mut finder = Finder::multipart("b").unwrap();
        assert!(finder.push(format!("--b\r\n{open}{long}").as_bytes()).is_err());
        assert!(finder.kept() < most, "{}", finder.kept());
    }
    let mut finder = Finder::json();
    assert_eq!(
        finder.push(format!(r#"{{"model":"{long}"#).as_bytes()),
        Err(Wrong::TooLong { at: 9 }),
        "known before it ends"
    );
    assert!(finder.kept() < 8 << 10, "{}", finder.kept());
}
