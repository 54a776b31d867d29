//! Reads one file's header from its bytes: keys and tensors, every length held against the file and a bound of ours.

use std::collections::{BTreeMap, HashSet};
use std::io::{ErrorKind, Read};

use super::{Error, types};

/// A longer header is refused: those of today have at most 20 MiB, nearly all of it vocabulary.
const LONGEST: u64 = 64 << 20;
/// More tensors than any model has in one file.
const MOST_TENSORS: u64 = 1 << 16;
/// More keys than any model has.
const MOST_KEYS: u64 = 1 << 14;
/// More strings in arrays than any vocabulary has with its merges.
const MOST_STRINGS: u64 = 1 << 22;
/// Longer keys are passed over: no key that we ask for is as long.
const LONGEST_KEY: u64 = 256;
/// Longer values are passed over: templates and licences.
const LONGEST_TEXT: u64 = 256;
/// A name has to be shorter: llama.cpp keeps 64 bytes with the closing zero.
const LONGEST_NAME: u64 = 64;
/// Longer arrays of numbers are passed over: no model has as many layers.
const LONGEST_LIST: u64 = 1024;
/// Numbers in the arrays that are kept, all together.
const MOST_NUMBERS: u64 = 1 << 18;

/// The value of a key, as far as one is ever asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A whole number, or a boolean as 0 or 1.
    Number(i128),
    /// A short string.
    Text(String),
    /// An array of numbers with an entry for each layer, or a few.
    List(Vec<i128>),
    /// An array that was passed over: how many entries it has.
    Long(u64),
    /// Something that no arithmetic needs: a fraction, a long text.
    Other,
}

/// A tensor as the header describes it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// One file's header.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) keys: BTreeMap<String, Value>,
    pub(super) tensors: Vec<Entry>,
}

/// Reads the header of a file of `len` bytes.
pub(super) fn read(source: &mut impl Read, len: u64) -> Result<Header, Error> {
    let mut source = Source { from: source, at: 0, len, strings: 0, numbers: 0, passed: [0; 4096] };
    let magic = source.bytes::<4>("its first four bytes")?;
    if &magic != b"GGUF" {
        return Err(Error::Magic { found: magic.escape_ascii().to_string() });
    }
    let version = source.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(Error::Version { version });
    }
    let tensors = source.count("tensors", MOST_TENSORS, 24)?;
    let keys = source.count("keys", MOST_KEYS, 13)?;
    let mut header = Header::default();
    for _ in 0..keys {
        source.key(&mut header.keys)?;
    }
    let alignment = match header.keys.get("general.alignment") {
        None => 32,
        Some(Value::Number(n)) if *n > 0 && *n <= 1 << 20 && n & (n - 1) == 0 => {
            u64::try_from(*n).unwrap_or(32)
        }
        Some(_) => return Err(Error::Alignment),
    };
    let mut end = 0;
    for number in 0..tensors {
        let entry = source.tensor(number, alignment, &mut end)?;
        header.tensors.push(entry);
    }
    let mut end = source.at;
    let mut first = None;
    for entry in &header.tensors {
        end = end.checked_next_multiple_of(alignment).unwrap_or(u64::MAX).saturating_add(entry.bytes);
        if end > len {
            first = first.or(Some(entry.name.clone()));
        }
    }
    if let Some(tensor) = first {
        return Err(Error::Beyond { tensor, end, len });
    }
    let mut seen = HashSet::with_capacity(header.tensors.len());
    if let Some(twice) = header.tensors.iter().find(|entry| !seen.insert(entry.name.as_str())) {
        return Err(Error::TensorTwice { tensor: twice.name.clone() });
    }
    Ok(header)
}

/// The file, and how far it was read.
struct Source<'a, R> {
    from: &'a mut R,
    at: u64,
    len: u64,
    strings: u64,
    numbers: u64,
    /// Where what is passed over goes.
    passed: [u8; 4096],
}

impl<R: Read> Source<'_, R> {
    /// Refuses to read what the file can't hold.
    fn need(&self, what: &'static str, bytes: u64) -> Result<(), Error> {
        let left = self.len.saturating_sub(self.at);
        if bytes > left {
            return Err(Error::Ended { what, at: self.at, needs: bytes, left });
        }
        if bytes > LONGEST.saturating_sub(self.at) {
            return Err(Error::TooLong { what, at: self.at, needs: bytes, most: LONGEST });
        }
        Ok(())
    }

    fn fill(&mut self, what: &'static str, into: &mut [u8]) -> Result<(), Error> {
        let bytes = into.len() as u64;
        self.need(what, bytes)?;
        let read = self.from.read_exact(into);
        self.read(what, bytes, read)
    }

    fn bytes<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    /// How many there are: not negative, not more than anyone has, not more than fit into the rest of the file.
    fn count(&mut self, what: &'static str, most: u64, least_bytes: u64) -> Result<u64, Error> {
        let at = self.at;
        let count = self.u64(what)?;
        if count > most {
            return Err(Error::TooMany { what, at, count: count.cast_signed(), most });
        }
        self.need(what, count * least_bytes)?;
        Ok(count)
    }

    fn skip(&mut self, what: &'static str, bytes: u64) -> Result<(), Error> {
        self.need(what, bytes)?;
        let mut left = bytes;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(self.passed.len());
            let read = self.from.read_exact(&mut self.passed[..now]);
            self.read(what, now as u64, read)?;
            left -= now as u64;
        }
        Ok(())
    }

    /// Counts what was read, or says why it was not.
    fn read(&mut self, what: &'static str, bytes: u64, read: std::io::Result<()>) -> Result<(), Error> {
        read.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::Ended { what, at: self.at, needs: bytes, left: 0 },
            _ => Error::Read { at: self.at, error },
        })?;
        self.at += bytes;
        Ok(())
    }

    /// A string; None where it is longer than `longest` and was passed over.
    fn text(&mut self, what: &'static str, longest: u64) -> Result<Option<String>, Error> {
        let bytes = self.u64(what)?;
        self.need(what, bytes)?;
        if bytes > longest {
            self.skip(what, bytes)?;
            return Ok(None);
        }
        let mut text = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.fill(what, &mut text)?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }

    fn key(&mut self, keys: &mut BTreeMap<String, Value>) -> Result<(), Error> {
        let at = self.at;
        let name = self.text("a key", LONGEST_KEY)?;
        let kind = self.u32("the type of a key")?;
        let value = match kind {
            8 => self.text("the value of a key", LONGEST_TEXT)?.map_or(Value::Other, Value::Text),
            9 => self.list(name.as_deref().unwrap_or_default())?,
            _ => self.number(kind, name.as_deref().unwrap_or_default())?,
        };
        if let Some(name) = name {
            if keys.contains_key(&name) {
                return Err(Error::KeyTwice { key: name, at });
            }
            keys.insert(name, value);
        }
        Ok(())
    }

    fn number(&mut self, kind: u32, key: &str) -> Result<Value, Error> {
        let what = "the value of a key";
        Ok(match kind {
            0 | 7 => Value::Number(i128::from(self.bytes::<1>(what)?[0])),
            1 => Value::Number(i128::from(i8::from_le_bytes(self.bytes(what)?))),
            2 => Value::Number(i128::from(u16::from_le_bytes(self.bytes(what)?))),
            3 => Value::Number(i128::from(i16::from_le_bytes(self.bytes(what)?))),
            4 => Value::Number(i128::from(self.u32(what)?)),
            5 => Value::Number(i128::from(i32::from_le_bytes(self.bytes(what)?))),
            10 => Value::Number(i128::from(self.u64(what)?)),
            11 => Value::Number(i128::from(i64::from_le_bytes(self.bytes(what)?))),
            6 => self.skip(what, 4).map(|()| Value::Other)?,
            12 => self.skip(what, 8).map(|()| Value::Other)?,
            _ => return Err(Error::KeyType { key: key.to_owned(), at: self.at - 4, kind }),
        })
    }

    fn list(&mut self, key: &str) -> Result<Value, Error> {
        let at = self.at;
        let kind = self.u32("the type of an array")?;
        let count = self.u64("the length of an array")?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(Error::Nested { key: key.to_owned(), at }),
            _ => return Err(Error::KeyType { key: key.to_owned(), at, kind }),
        };
        let bytes = count.checked_mul(size).ok_or(Error::Ended {
            what: "an array",
            at: self.at,
            needs: u64::MAX,
            left: self.len.saturating_sub(self.at),
        })?;
        self.need("an array", bytes)?;
        if kind == 8 {
            self.strings += count;
            if self.strings > MOST_STRINGS {
                return Err(Error::TooMany {
                    what: "strings in arrays",
                    at,
                    count: self.strings.cast_signed(),
                    most: MOST_STRINGS,
                });
            }
            for _ in 0..count {
                let bytes = self.u64("a string of an array")?;
                self.skip("a string of an array", bytes)?;
            }
            return Ok(Value::Long(count));
        }
        if count > LONGEST_LIST || kind == 6 || kind == 12 {
            self.skip("an array", bytes)?;
            return Ok(Value::Long(count));
        }
        self.numbers += count;
        if self.numbers > MOST_NUMBERS {
            return Err(Error::TooMany {
                what: "numbers in arrays",
                at,
                count: self.numbers.cast_signed(),
                most: MOST_NUMBERS,
            });
        }
        let mut list = Vec::new();
        for _ in 0..count {
            if let Value::Number(n) = self.number(kind, key)? {
                list.push(n);
            }
        }
        Ok(Value::List(list))
    }

    /// Reads one tensor; `end` is where the tensors before it end, counted from the first one's begin, and moves on.
    fn tensor(&mut self, number: u64, alignment: u64, end: &mut u64) -> Result<Entry, Error> {
        let at = self.at;
        let name = self.text("the name of a tensor", LONGEST_NAME - 1)?;
        let name = name.ok_or(Error::Name { number, at, most: LONGEST_NAME - 1 })?;
        let tensor = || name.clone();
        let dimensions = self.u32("the dimensions of a tensor")?;
        if dimensions > 4 {
            return Err(Error::Dimensions { tensor: tensor(), at: self.at - 4, dimensions });
        }
        let mut row = 1;
        let mut rows = 1u64;
        for dimension in 0..dimensions {
            let at = self.at;
            let size = self.u64("the size of a tensor")?;
            if i64::try_from(size).is_err() {
                return Err(Error::Negative { tensor: tensor(), at, size: size.cast_signed() });
            }
            if dimension == 0 {
                row = size;
            } else {
                rows = rows.checked_mul(size).ok_or(Error::Overflow { tensor: tensor(), at })?;
            }
        }
        let at = self.at;
        let kind = self.u32("the type of a tensor")?;
        let (called, block, size) =
            types::block(kind).ok_or(Error::TensorType { tensor: tensor(), at, kind })?;
        if row % block != 0 {
            return Err(Error::Block { tensor: tensor(), at, row, called, block });
        }
        let bytes = (row / block).checked_mul(size).and_then(|row| row.checked_mul(rows));
        let bytes = bytes
            .filter(|bytes| i64::try_from(*bytes).is_ok())
            .ok_or(Error::Overflow { tensor: tensor(), at })?;
        let at = self.at;
        let offset = self.u64("the place of a tensor")?;
        if offset != *end {
            return Err(Error::Offset { tensor: tensor(), at, offset, expected: *end });
        }
        let next = end.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(alignment));
        *end = next.ok_or(Error::Overflow { tensor: tensor(), at })?;
        Ok(Entry { name, bytes })
    }
}
