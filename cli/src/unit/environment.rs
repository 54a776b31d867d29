//! Variables: `Environment=`, files of them, and what `$NAME` and `${NAME}` in a command stand for.

use std::collections::BTreeMap;

use super::word::{words, words_of_variable};
use super::{Around, Depth, Unit, expand};

/// Variables by name.
pub(crate) type Variables = BTreeMap<String, String>;

/// The assignments of one `Environment=`, specifiers replaced. What is no assignment systemd passes over.
pub(crate) fn assignments(
    value: &str,
    unit: &Unit,
    around: &Around,
) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for word in words(value)? {
        let word = expand(&word, unit, around, Depth::All)?;
        if let Some((name, value)) = word.split_once('=').filter(|(name, _)| is_name(name)) {
            all.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(all)
}

/// The assignments of an `EnvironmentFile=`, in its order.
pub(crate) fn file(text: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.peek().copied() {
        if c.is_whitespace() {
            chars.next();
        } else if c == '#' || c == ';' {
            chars.by_ref().find(|c| *c == '\n');
        } else {
            let mut name = String::new();
            let mut assigned = false;
            for c in chars.by_ref() {
                match c {
                    '=' => assigned = true,
                    '\n' => {}
                    c => {
                        name.push(c);
                        continue;
                    }
                }
                break;
            }
            if assigned {
                let value = value(&mut chars);
                if is_name(name.trim_end()) {
                    all.push((name.trim_end().to_owned(), value));
                }
            }
        }
    }
    all
}

/// A value up to the end of its line. Quotes count only where the value, or what follows another quote, begins.
fn value(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let mut value = String::new();
    // How much of it stays when the blanks at its end are cut off: what is quoted or escaped is no such blank.
    let mut kept = 0;
    let mut plain = false;
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\r' => break,
            '\'' if !plain => {
                value.extend(chars.by_ref().take_while(|c| *c != '\''));
                kept = value.len();
            }
            '"' if !plain => {
                while let Some(c) = chars.next().filter(|c| *c != '"') {
                    match (c, chars.peek().copied()) {
                        ('\\', Some('\n')) => _ = chars.next(),
                        ('\\', Some(next @ ('"' | '\\' | '`' | '$'))) => {
                            value.push(next);
                            chars.next();
                        }
                        (c, _) => value.push(c),
                    }
                }
                kept = value.len();
            }
            '\\' => {
                plain = true;
                if let Some(next) = chars.next().filter(|next| *next != '\n') {
                    value.push(next);
                    kept = value.len();
                }
            }
            c if c.is_whitespace() => {
                if plain {
                    value.push(c);
                }
            }
            c => {
                plain = true;
                value.push(c);
                kept = value.len();
            }
        }
    }
    value.truncate(kept);
    value
}

/// A value as a file of variables has it, so that it is read as it is.
pub(crate) fn quoted(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        if matches!(c, '"' | '\\' | '`' | '$') {
            out.push('\\');
        }
        out.push(c);
    }
    out + "\""
}

/// Arguments with their variables replaced as systemd does: `$NAME` alone becomes the words of its value, and vanishes
/// where there is none; `${NAME}` becomes the value itself; `$$` is a `$`. `unknown` says why a variable's value can't be
/// known here.
pub(crate) fn expanded(
    args: &[String],
    variables: &Variables,
    unknown: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, String> {
    let look_up = |name: &str| match variables.get(name) {
        Some(value) => Ok(value.as_str()),
        None => unknown(name).map_or(Ok(""), Err),
    };
    let mut all = Vec::new();
    for arg in args {
        match arg.strip_prefix('$') {
            Some(name) if !name.starts_with(['{', '$']) => all.extend(words_of_variable(look_up(name)?)),
            _ => all.push(inside(arg, look_up)?),
        }
    }
    Ok(all)
}

fn inside<'a>(arg: &str, look_up: impl Fn(&str) -> Result<&'a str, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = arg;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            out.push_str(look_up(name)?);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Whether a variable can be called so.
fn is_name(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
