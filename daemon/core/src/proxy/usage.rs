//! What an answer says of itself: how many tokens it took, and when its first one comes. Seen as it passes: of an answer no
//! more is kept than its last few KiB, where servers say it.
//!
//! A number counts only where a server puts it. What a model wrote stands in strings, where quotes are escaped, or deeper
//! inside, as the arguments of a tool do.

use memchr::{memchr, memrchr};
use serde::Deserialize;
use serde_json::Value;

/// So much of an answer's end is looked at. What follows the numbers in it is short.
const TAIL: usize = 4 << 10;
/// An event of a stream that is longer says something else than a token.
const EVENT: usize = 4 << 10;
/// In so much of a stream its first token is looked for.
const BEGIN: usize = 64 << 10;

/// The tokens of one request, as far as its server says.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Of what was asked.
    pub prompt: Option<u64>,
    /// Of the answer.
    pub completion: Option<u64>,
    /// Generated in a second, where the server measured it.
    pub per_second: Option<f64>,
}

impl Usage {
    /// What this does not say, from another.
    fn or(self, other: Self) -> Self {
        Self {
            prompt: self.prompt.or(other.prompt),
            completion: self.completion.or(other.completion),
            per_second: self.per_second.or(other.per_second),
        }
    }
}

/// Looks at one answer.
#[derive(Debug)]
pub struct Reader {
    /// The end of what has come.
    tail: Vec<u8>,
    /// A stream of events, and how it begins.
    events: Option<Beginning>,
}

/// The events of a stream up to its first token.
#[derive(Debug, Default)]
struct Beginning {
    /// What has come of a line.
    line: Vec<u8>,
    /// It is too long to be kept.
    skips: bool,
    seen: usize,
    over: bool,
    /// Anthropic's servers say what was asked first of all.
    said: Usage,
}

impl Reader {
    /// A reader of answers of this content type; None where they say nothing that is understood.
    pub fn of(content_type: &str) -> Option<Self> {
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        let events = kind.eq_ignore_ascii_case("text/event-stream");
        let known = events || kind.eq_ignore_ascii_case("application/json");
        known.then(|| Self { tail: Vec::new(), events: events.then(Beginning::default) })
    }

    /// Takes the next bytes. True once: the first token of a stream came with them.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        self.keep(bytes);
        self.events.as_mut().filter(|events| !events.over).is_some_and(|events| events.push(bytes))
    }

    fn keep(&mut self, bytes: &[u8]) {
        if bytes.len() >= TAIL {
            self.tail.clear();
            self.tail.extend_from_slice(&bytes[bytes.len() - TAIL..]);
            return;
        }
        // Moved only now and then: most pieces are small.
        if self.tail.len() + bytes.len() > 2 * TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
        self.tail.extend_from_slice(bytes);
    }

    /// What was said, once all has come.
    pub fn usage(&self) -> Usage {
        let Some(events) = &self.events else { return numbers(&self.tail) };
        let mut found = Usage::default();
        let mut rest = self.tail.as_slice();
        loop {
            let end = memrchr(b'\n', rest);
            let line = &rest[end.map_or(0, |end| end + 1)..];
            // Where the first line is cut, what it was is not known: it counts as data.
            if let Some(data) = data(line).or(Some(line).filter(|_| end.is_none())) {
                found = found.or(numbers(data));
            }
            let Some(end) = end else { return found.or(events.said) };
            rest = &rest[..end];
        }
    }
}

impl Beginning {
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.seen += bytes.len();
        let mut rest = bytes;
        while let Some(end) = memchr(b'\n', rest) {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            self.over = if self.line.is_empty() && !self.skips {
                self.is_token(line)
            } else {
                self.keep(line);
                let line = std::mem::take(&mut self.line);
                !std::mem::take(&mut self.skips) && self.is_token(&line)
            };
            if self.over {
                return true;
            }
        }
        self.keep(rest);
        self.over = self.seen > BEGIN;
        false
    }

    fn keep(&mut self, part: &[u8]) {
        self.skips |= self.line.len() + part.len() > EVENT;
        if self.skips {
            self.line.clear();
        } else {
            self.line.extend_from_slice(part);
        }
    }

    fn is_token(&mut self, line: &[u8]) -> bool {
        let event = data(line).filter(|data| data.len() <= EVENT);
        let Some(event) = event.and_then(|data| serde_json::from_slice::<Value>(data).ok()) else {
            return false;
        };
        let usage = Some(&event["message"]["usage"]).filter(|usage| usage.is_object());
        if let Some(Ok(numbers)) = usage.map(Numbers::deserialize) {
            self.said = numbers.usage();
        }
        says(&event)
    }
}

/// The data of an event, where this line is one's.
fn data(line: &[u8]) -> Option<&[u8]> {
    Some(line.strip_prefix(b"data:")?.trim_ascii())
}

/// Whether something of the answer stands in this event.
fn says(event: &Value) -> bool {
    let filled = |value: &Value| match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        _ => false,
    };
    let any = |value: &Value, keys: &[&str]| keys.iter().any(|key| filled(&value[*key]));
    let choice = &event["choices"][0];
    any(&choice["delta"], &["content", "reasoning_content", "reasoning", "tool_calls"])
        || any(choice, &["text"])
        // llama.cpp's own, and of the responses API.
        || any(event, &["content", "delta"])
        // Anthropic's.
        || any(&event["delta"], &["text", "thinking", "partial_json"])
}

/// What servers count, under all the names that it has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Numbers {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    prompt_n: Option<u64>,
    predicted_n: Option<u64>,
    predicted_per_second: Option<f64>,
}

impl Numbers {
    fn usage(&self) -> Usage {
        Usage {
            prompt: self.prompt_tokens.or(self.input_tokens).or(self.prompt_n),
            completion: self.completion_tokens.or(self.output_tokens).or(self.predicted_n),
            per_second: self.predicted_per_second.filter(|speed| speed.is_finite() && *speed > 0.0),
        }
    }
}

/// What the object at the end of this text says. The text may begin anywhere in it.
///
/// Read backwards: from the end it is known what is inside a string, and how deep, also where the beginning is missing.
fn numbers(text: &[u8]) -> Usage {
    let text = text.trim_ascii_end();
    let (mut said, mut timed) = (Usage::default(), Usage::default());
    // Of the member of the outermost object that is being read, and may have no beginning here.
    let mut inner = Usage::default();
    let (mut depth, mut ends) = (0_usize, [0; 3]);
    let mut at = text.len();
    while at > 0 {
        at -= 1;
        let byte = text[at];
        if matches!(byte, b',' | b'{' | b'[') && (1..=2).contains(&depth) {
            let member = &text[at + 1..ends[depth]];
            ends[depth] = at;
            match depth {
                1 => {
                    let (usage, timings) = outer(member);
                    (said, timed) = (said.or(usage), timed.or(timings));
                    inner = Usage::default();
                }
                _ => inner = inner.or(value_of(member, "usage").map(counted).unwrap_or_default()),
            }
        }
        match byte {
            b'"' => match opening(text, at) {
                Some(begin) => at = begin,
                None => break,
            },
            b'}' | b']' => {
                depth += 1;
                if let Some(end) = ends.get_mut(depth) {
                    *end = at;
                }
            }
            b'{' | b'[' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    break;
                }
            }
            // Whatever else stands outside of an object is none.
            _ if depth == 0 => break,
            _ => {}
        }
    }
    said.or(inner).or(timed)
}

/// What a member of the outermost object says: as usage, and as what was measured besides.
fn outer(member: &[u8]) -> (Usage, Usage) {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Inside {
        usage: Numbers,
    }
    let whole = |key: &str| value_of(member, key).and_then(|value| serde_json::from_slice(value).ok());
    // Where the whole answer is one event's: the responses API's and Anthropic's.
    let inside = ["response", "message"].into_iter().find_map(|key| value_of(member, key));
    let inside = inside.and_then(object::<Inside>);
    let usage = match (value_of(member, "usage"), inside) {
        (Some(usage), _) => counted(usage),
        (None, Some(inside)) => inside.usage.usage(),
        (None, None) => Usage {
            prompt: whole("tokens_evaluated"),
            completion: whole("tokens_predicted"),
            per_second: None,
        },
    };
    (usage, value_of(member, "timings").map(counted).unwrap_or_default())
}

fn counted(value: &[u8]) -> Usage {
    object::<Numbers>(value).map(|numbers| numbers.usage()).unwrap_or_default()
}

fn object<'v, T: Deserialize<'v>>(value: &'v [u8]) -> Option<T> {
    // An array of the fields' values would do for serde too.
    let is_object = value.trim_ascii_start().starts_with(b"{");
    serde_json::from_slice(value).ok().filter(|_| is_object)
}

/// The value of this member, where this is its key.
fn value_of<'m>(member: &'m [u8], key: &str) -> Option<&'m [u8]> {
    let rest = member.trim_ascii_start().strip_prefix(b"\"")?.strip_prefix(key.as_bytes())?;
    rest.strip_prefix(b"\"")?.trim_ascii_start().strip_prefix(b":")
}

/// Where the string begins that ends here: at the quote before it that is not escaped; None where that is not in this text.
fn opening(text: &[u8], end: usize) -> Option<usize> {
    let mut quote = end;
    loop {
        quote = memrchr(b'"', &text[..quote])?;
        if quote == 0 || text[quote - 1] != b'\\' {
            return Some(quote);
        }
    }
}

#[cfg(test)]
mod tests;
