//! JSON: what stands at the top level of an object, stretch by stretch.

use memchr::memchr2;

use super::{Found, LONGEST, Wrong, keep, note};

/// `"model"` with every letter escaped.
const LONGEST_KEY: usize = r#""\u006d\u006f\u0064\u0065\u006c""#.len();

/// The longest name with every byte escaped.
const LONGEST_VALUE: usize = 6 * LONGEST + 2;

const MARK: &[u8] = b"\xef\xbb\xbf";

/// Finds the key `model` of an object.
#[derive(Debug, Default)]
pub(super) struct Reader {
    scanner: Scanner,
    /// What has come in of the key, or of the value if it is ours.
    pub(super) kept: Vec<u8>,
    /// Where the value begins if it is ours.
    begins: u64,
    /// Whether the last key was `model`.
    ours: bool,
}

impl Reader {
    pub(super) fn push(&mut self, mut bytes: &[u8], found: &mut Option<Found>) -> Result<(), Wrong> {
        while let Some(piece) = self.scanner.next(&mut bytes)? {
            match piece.part {
                Part::Key => {
                    keep(&mut self.kept, piece.bytes, LONGEST_KEY);
                    if piece.ends {
                        self.ours = self.is_model()?;
                        self.kept.clear();
                    }
                }
                Part::Value if self.ours => self.value(&piece, found)?,
                Part::Value | Part::Between => {}
            }
        }
        Ok(())
    }

    fn is_model(&self) -> Result<bool, Wrong> {
        if !self.kept.contains(&b'\\') || self.kept.len() > LONGEST_KEY {
            return Ok(self.kept == br#""model""#);
        }
        let at = self.scanner.at - self.kept.len() as u64;
        Ok(string(&self.kept, at)? == "model")
    }

    fn value(&mut self, piece: &Piece<'_>, found: &mut Option<Found>) -> Result<(), Wrong> {
        if self.kept.is_empty() {
            self.begins = self.scanner.at - piece.bytes.len() as u64;
            let is = match piece.bytes.first() {
                Some(b'"') | None => None,
                Some(b'{') => Some("an object"),
                Some(b'[') => Some("a list"),
                Some(b't' | b'f') => Some("true or false"),
                Some(b'n') => Some("null"),
                Some(_) => Some("a number"),
            };
            if let Some(is) = is {
                return Err(Wrong::NotText { at: self.begins, is });
            }
        }
        keep(&mut self.kept, piece.bytes, LONGEST_VALUE);
        if self.kept.len() > LONGEST_VALUE {
            return Err(Wrong::TooLong { at: self.begins });
        }
        if piece.ends {
            note(found, string(&self.kept, self.begins)?, self.begins..self.scanner.at)?;
            self.kept.clear();
        }
        Ok(())
    }

    pub(super) fn end(&self) -> Result<(), Wrong> {
        self.scanner.end()
    }
}

/// A string as a whole, with its quotes.
pub(super) fn string(bytes: &[u8], at: u64) -> Result<String, Wrong> {
    serde_json::from_slice(bytes).map_err(|_| Wrong::Unreadable { at })
}

/// Divides an object into its keys, its values and what is between them. What is nested is not held to JSON's grammar,
/// only to its characters: so strings begin and end where every reader lets them, and the rest is for the server to say.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    state: State,
    /// How many bytes have been taken.
    pub(super) at: u64,
}

/// A stretch of the body that belongs to one part of it.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    pub(super) part: Part,
    pub(super) bytes: &'a [u8],
    /// Whether the key or value is complete with it. A number is only once the byte after it is there.
    pub(super) ends: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Key,
    Value,
    Between,
}

/// What was read last, or is awaited.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Mark,
    KeyOrEnd,
    Key,
    InKey {
        escaped: bool,
    },
    Colon,
    Value,
    InText {
        escaped: bool,
    },
    InWord,
    InNested {
        depth: u64,
        text: bool,
        escaped: bool,
    },
    CommaOrEnd,
    Done,
}

impl Scanner {
    /// The next stretch of `rest`, which is taken from it; None once all is taken.
    pub(super) fn next<'a>(&mut self, rest: &mut &'a [u8]) -> Result<Option<Piece<'a>>, Wrong> {
        let Some(first) = rest.first() else { return Ok(None) };
        let (part, len, ends) = match &mut self.state {
            State::InKey { escaped } => {
                let (len, ends) = text_end(rest, escaped);
                if ends {
                    self.state = State::Colon;
                }
                (Part::Key, len, ends)
            }
            State::InText { escaped } => {
                let (len, ends) = text_end(rest, escaped);
                if ends {
                    self.state = State::CommaOrEnd;
                }
                (Part::Value, len, ends)
            }
            State::InNested { depth, text, escaped } => {
                let (len, ends) = nested_end(rest, depth, text, escaped)
                    .map_err(|(n, byte)| Wrong::Unexpected { at: self.at + n as u64, byte })?;
                if ends {
                    self.state = State::CommaOrEnd;
                }
                (Part::Value, len, ends)
            }
            State::InWord => {
                let end = rest.iter().position(|b| !is_word(*b));
                if end.is_some() {
                    self.state = State::CommaOrEnd;
                }
                (Part::Value, end.unwrap_or(rest.len()), end.is_some())
            }
            State::Mark => (self.structure(*first)?, 1, false),
            _ if is_space(*first) => {
                (Part::Between, rest.iter().position(|b| !is_space(*b)).unwrap_or(rest.len()), false)
            }
            _ => (self.structure(*first)?, 1, false),
        };
        let (bytes, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        *rest = after;
        self.at += bytes.len() as u64;
        Ok(Some(Piece { part, bytes, ends }))
    }

    /// Takes a byte that is no white space and in no key or value.
    fn structure(&mut self, byte: u8) -> Result<Part, Wrong> {
        let marked = usize::try_from(self.at).ok().and_then(|at| MARK.get(at)) == Some(&byte);
        let (state, part) = match (self.state, byte) {
            (State::Start, _) if self.at == 0 && marked => (State::Mark, Part::Between),
            (State::Mark, _) if marked && self.at == 1 => (State::Mark, Part::Between),
            (State::Mark, _) if marked => (State::Start, Part::Between),
            (State::Start, b'{') => (State::KeyOrEnd, Part::Between),
            (State::Start | State::Mark, _) => return Err(Wrong::NotObject),
            (State::KeyOrEnd | State::Key, b'"') => (State::InKey { escaped: false }, Part::Key),
            (State::KeyOrEnd | State::CommaOrEnd, b'}') => (State::Done, Part::Between),
            (State::CommaOrEnd, b',') => (State::Key, Part::Between),
            (State::Colon, b':') => (State::Value, Part::Between),
            (State::Value, b'"') => (State::InText { escaped: false }, Part::Value),
            (State::Value, b'{' | b'[') => {
                (State::InNested { depth: 1, text: false, escaped: false }, Part::Value)
            }
            (State::Value, _) if is_word(byte) => (State::InWord, Part::Value),
            _ => return Err(Wrong::Unexpected { at: self.at, byte }),
        };
        self.state = state;
        Ok(part)
    }

    /// Whether the object is complete.
    pub(super) const fn end(&self) -> Result<(), Wrong> {
        match self.state {
            State::Done => Ok(()),
            _ => Err(Wrong::Ended { at: self.at }),
        }
    }
}

/// How many bytes belong to a string that has begun, and whether it ends with them. `escaped`: whether the byte before
/// was a backslash that escapes the next one.
fn text_end(bytes: &[u8], escaped: &mut bool) -> (usize, bool) {
    let mut at = usize::from(std::mem::take(escaped));
    while let Some((n, found)) = bytes.get(at..).and_then(|rest| {
        let n = memchr2(b'"', b'\\', rest)?;
        Some((n, rest.get(n)?))
    }) {
        if *found == b'"' {
            return (at + n + 1, true);
        }
        at += n + 2;
    }
    // The last backslash was the last byte: what it escapes is still to come.
    *escaped = at > bytes.len();
    (bytes.len(), false)
}

/// How many bytes belong to a list or object that has begun, and whether it ends with them; or the byte that can't be.
fn nested_end(
    bytes: &[u8],
    depth: &mut u64,
    text: &mut bool,
    escaped: &mut bool,
) -> Result<(usize, bool), (usize, u8)> {
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        if *text {
            let (len, ends) = text_end(rest, escaped);
            at += len;
            *text = !ends;
            if !ends {
                return Ok((bytes.len(), false));
            }
            continue;
        }
        let Some((n, byte)) = rest.iter().enumerate().find(|(_, byte)| !PLAIN[usize::from(**byte)]) else {
            return Ok((bytes.len(), false));
        };
        at += n + 1;
        match byte {
            b'"' => *text = true,
            b'{' | b'[' => *depth += 1,
            b'}' | b']' => {
                *depth = depth.saturating_sub(1);
                if *depth == 0 {
                    return Ok((at, true));
                }
            }
            _ => return Err((at - 1, *byte)),
        }
    }
}

const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Whether it can be in a number, `true`, `false` or `null`.
const fn is_word(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'+' | b'-' | b'.')
}

/// Whether a byte neither opens nor closes anything. A table, since lists of numbers are read four times as fast by it.
const PLAIN: [bool; 256] = {
    let mut all = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        all[byte as usize] = is_space(byte) || is_word(byte) || matches!(byte, b',' | b':');
        byte += 1;
    }
    all
};
