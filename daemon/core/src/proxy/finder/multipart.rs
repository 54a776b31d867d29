//! `multipart/form-data` (RFC 7578, RFC 2046): the content of one field.
//!
//! Stricter than the RFCs where servers' readers differ: no folded headers, no parameter twice, no `name*`, no
//! parts that begin with the boundary, and nothing but blanks between a boundary and its line's end.

use memchr::{memchr, memmem, memrchr};

use super::{Found, LONGEST, Wrong, keep, note};

/// The most bytes of a part's headers.
const LONGEST_HEADERS: usize = 16 << 10;

/// The longest boundary, by RFC 2046.
const LONGEST_BOUNDARY: usize = 70;

/// The line's end before a boundary belongs to it, and before the first one and a part's content there need not be one.
const LINE_END: usize = "\r\n".len();

/// Finds the field `model` of a form.
#[derive(Debug)]
pub(super) struct Reader {
    /// What stands between parts: the end of a line and `--` with the boundary.
    delimiter: memmem::Finder<'static>,
    state: State,
    at: u64,
    /// What has come in of a part's headers, or of the content of `model`.
    pub(super) kept: Vec<u8>,
    /// Where the part's content begins.
    begins: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// In a content. Of the delimiter, `matched` bytes have come in; before `from` they were only assumed.
    Content {
        of: Of,
        from: usize,
        matched: usize,
    },
    /// In what follows a boundary in its line.
    Delimiter(After),
    Headers,
    /// After the last boundary, where anything may stand.
    Epilogue,
}

/// What came last after a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Nothing,
    Dash,
    Blank,
    CarriageReturn,
}

/// Whose content it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Nobody's: what stands before the first boundary.
    Preamble,
    Model,
    Other,
}

impl Reader {
    pub(super) fn new(boundary: &str) -> Result<Self, Wrong> {
        let bad = |why| Err(Wrong::Boundary { given: boundary.to_owned(), why });
        if boundary.is_empty() || boundary.len() > LONGEST_BOUNDARY {
            return bad("it has 1 to 70 characters");
        }
        if !boundary.bytes().all(|b| b.is_ascii_graphic() || b == b' ') || boundary.ends_with(' ') {
            return bad("it has only printable characters and does not end with a blank");
        }
        Ok(Self {
            delimiter: memmem::Finder::new(&[b"\r\n--", boundary.as_bytes()].concat()).into_owned(),
            state: State::Content { of: Of::Preamble, from: LINE_END, matched: LINE_END },
            at: 0,
            kept: Vec::new(),
            begins: 0,
        })
    }

    pub(super) fn push(&mut self, mut rest: &[u8], found: &mut Option<Found>) -> Result<(), Wrong> {
        while let Some(first) = rest.first() {
            let len = match self.state {
                State::Content { of, from, matched } => self.content(rest, of, from, matched, found)?,
                State::Delimiter(after) => {
                    self.state = match (after, first) {
                        (After::Nothing | After::Blank, b' ' | b'\t') => State::Delimiter(After::Blank),
                        (After::Nothing | After::Blank, b'\r') => State::Delimiter(After::CarriageReturn),
                        (After::CarriageReturn, b'\n') => State::Headers,
                        (After::Nothing, b'-') => State::Delimiter(After::Dash),
                        (After::Dash, b'-') => State::Epilogue,
                        _ => return Err(Wrong::Delimiter { at: self.at, byte: *first }),
                    };
                    1
                }
                State::Headers => self.headers(rest)?,
                State::Epilogue => rest.len(),
            };
            self.at += len as u64;
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(())
    }

    /// Takes a stretch of a content. Only the delimiter's first byte is a carriage return: one that turns out to be none
    /// can't have hidden the beginning of another.
    fn content(
        &mut self,
        rest: &[u8],
        of: Of,
        from: usize,
        matched: usize,
        found: &mut Option<Found>,
    ) -> Result<usize, Wrong> {
        if matched == 0 {
            // Where there is none in these bytes, one can still begin at their end.
            let found = self.delimiter.find(rest).or_else(|| memrchr(b'\r', rest));
            let len = found.unwrap_or(rest.len());
            self.keep(of, rest.get(..len).unwrap_or_default())?;
            if found.is_none() {
                return Ok(len);
            }
            self.state = State::Content { of, from: 0, matched: 1 };
            return Ok(len + 1);
        }
        let delimiter = self.delimiter.needle();
        let awaited = delimiter.get(matched..).unwrap_or_default();
        let len = awaited.iter().zip(rest).take_while(|(awaited, byte)| awaited == byte).count();
        let matched = matched + len;
        if matched == delimiter.len() {
            let after = self.at + len as u64;
            if from > 0 && of != Of::Preamble {
                return Err(Wrong::NoContent { at: after });
            }
            if of == Of::Model {
                let model = String::from_utf8(std::mem::take(&mut self.kept))
                    .map_err(|_| Wrong::NotUtf8 { at: self.begins })?;
                note(found, model, self.begins..after - matched as u64)?;
            }
            self.state = State::Delimiter(After::Nothing);
        } else if len == rest.len() {
            self.state = State::Content { of, from, matched };
        } else {
            let passed = delimiter.get(from..matched).unwrap_or_default();
            if of == Of::Model {
                keep(&mut self.kept, passed, LONGEST);
            }
            self.state = State::Content { of, from: 0, matched: 0 };
        }
        Ok(len)
    }

    fn keep(&mut self, of: Of, content: &[u8]) -> Result<(), Wrong> {
        if of == Of::Model {
            keep(&mut self.kept, content, LONGEST);
            if self.kept.len() > LONGEST {
                return Err(Wrong::TooLong { at: self.begins });
            }
        }
        Ok(())
    }

    /// Takes a stretch of a part's headers: a line at most, since an empty one ends them.
    fn headers(&mut self, rest: &[u8]) -> Result<usize, Wrong> {
        let len = memchr(b'\n', rest).map_or(rest.len(), |n| n + 1);
        keep(&mut self.kept, rest.get(..len).unwrap_or_default(), LONGEST_HEADERS);
        let at = self.at + len as u64;
        if self.kept.len() > LONGEST_HEADERS {
            return Err(Wrong::Headers { at, why: "they are too long" });
        }
        if self.kept == b"\r\n" || self.kept.ends_with(b"\r\n\r\n") {
            let of = whose(&self.kept).map_err(|why| Wrong::Headers { at, why })?;
            self.kept.clear();
            self.begins = at;
            self.state = State::Content { of, from: LINE_END, matched: LINE_END };
        }
        Ok(len)
    }

    pub(super) const fn end(&self) -> Result<(), Wrong> {
        match self.state {
            State::Epilogue => Ok(()),
            _ => Err(Wrong::Ended { at: self.at }),
        }
    }
}

/// Whose content follows these headers.
fn whose(headers: &[u8]) -> Result<Of, &'static str> {
    let mut disposition = None;
    let mut encoded = false;
    for line in headers.split_inclusive(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\r\n").ok_or("a line does not end with CR and LF")?;
        if line.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
            return Err("a control character is in them");
        }
        if line.is_empty() {
            continue;
        }
        let (name, value) = split_at_byte(line, b':').ok_or("a line has no colon")?;
        if !is_token(name) {
            return Err("a line does not begin with a header's name");
        }
        if name.eq_ignore_ascii_case(b"content-disposition") {
            let all = Parameters::read(value)?;
            if disposition.replace(all).is_some() {
                return Err("`Content-Disposition` is in them twice");
            }
        } else if name.eq_ignore_ascii_case(b"content-transfer-encoding") {
            let plain: [&[u8]; 3] = [b"7bit", b"8bit", b"binary"];
            encoded |= !plain.iter().any(|plain| plain.eq_ignore_ascii_case(value.trim_ascii()));
        }
    }
    // Without a disposition a part has no name.
    let Some(disposition) = disposition else { return Ok(Of::Other) };
    // A name in an encoding of its own (RFC 2231) is not allowed in forms, and some servers decode it.
    if disposition.0.iter().any(|(name, _)| name.starts_with(b"name*")) {
        return Err("its name is in `name*`");
    }
    let is_file = disposition.0.iter().any(|(name, _)| name == b"filename" || name.starts_with(b"filename*"));
    if is_file || disposition.get(b"name") != Some(b"model") {
        return Ok(Of::Other);
    }
    if encoded {
        return Err("the content of `model` is encoded");
    }
    Ok(Of::Model)
}

/// The boundary that a content type names, where it is `multipart/form-data`.
pub(super) fn boundary(content_type: &str) -> Result<Option<String>, Wrong> {
    let bad = |why| Wrong::ContentType { given: content_type.to_owned(), why };
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("multipart/form-data") {
        return Ok(None);
    }
    let all = Parameters::read(content_type.as_bytes()).map_err(bad)?;
    let boundary = all.get(b"boundary").ok_or_else(|| bad("it names no boundary"))?;
    Ok(Some(String::from_utf8_lossy(boundary).into_owned()))
}

/// The parameters of a header's value, with their names in small letters.
struct Parameters(Vec<(Vec<u8>, Vec<u8>)>);

impl Parameters {
    /// Reads `form-data; name="a \"b\""; filename=c`.
    fn read(value: &[u8]) -> Result<Self, &'static str> {
        let mut all = Self(Vec::new());
        let mut rest = split_at_byte(value, b';').map_or(&[] as &[u8], |(_, rest)| rest);
        loop {
            rest = rest.trim_ascii_start();
            if rest.is_empty() {
                return Ok(all);
            }
            // A `;` at the end, or two of them, name nothing.
            if let Some(after) = rest.strip_prefix(b";") {
                rest = after;
                continue;
            }
            let (name, after) = split_at_byte(rest, b'=').ok_or("a parameter has no value")?;
            let name = name.trim_ascii_end().to_ascii_lowercase();
            if !is_token(&name) {
                return Err("a parameter has no name");
            }
            if all.get(&name).is_some() {
                return Err("a parameter is there twice");
            }
            let after = after.trim_ascii_start();
            let (value, after) = if let Some(quoted) = after.strip_prefix(b"\"") {
                unquoted(quoted).ok_or("a quotation mark is missing")?
            } else {
                let end = after.iter().position(|b| *b == b';' || b.is_ascii_whitespace());
                let (value, after) = after.split_at_checked(end.unwrap_or(after.len())).unwrap_or_default();
                (value.to_vec(), after)
            };
            rest = after.trim_ascii_start();
            if !rest.is_empty() && !rest.starts_with(b";") {
                return Err("something stands after a parameter's value");
            }
            all.0.push((name, value));
        }
    }

    fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_slice())
    }
}

/// What stands before the closing quotation mark, with `\"` for `"`, and what is after it.
fn unquoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::new();
    let mut rest = text;
    loop {
        let (first, after) = rest.split_first()?;
        rest = after;
        match first {
            b'"' => return Some((value, rest)),
            b'\\' => {
                let (quoted, after) = rest.split_first()?;
                value.push(*quoted);
                rest = after;
            }
            byte => value.push(*byte),
        }
    }
}

fn split_at_byte(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let (before, rest) = bytes.split_at_checked(memchr(at, bytes)?)?;
    Some((before, rest.get(1..)?))
}

/// Whether it can be the name of a header or of a parameter.
fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}
