//! Looks keys up: numbers, or an array with one for each layer.

use std::collections::BTreeMap;

use super::Error;
use super::header::Value;

/// The largest number that a key may have: llama.cpp reads them into 32 bits.
const LARGEST: i128 = u32::MAX as i128;

/// The keys of a header.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    keys: &'a BTreeMap<String, Value>,
    prefix: &'a str,
}

impl<'a> Keys<'a> {
    pub(super) const fn new(keys: &'a BTreeMap<String, Value>) -> Self {
        Self { keys, prefix: "" }
    }

    /// Those under an architecture's prefix.
    pub(super) const fn of(self, architecture: &'a str) -> Self {
        Self { keys: self.keys, prefix: architecture }
    }

    fn name(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        if self.prefix.is_empty() { self.keys.get(key) } else { self.keys.get(&self.name(key)) }
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// How many entries an array has, that of another prefix: the vocabulary.
    pub(super) fn entries(&self, key: &str) -> Option<u64> {
        match self.keys.get(key)? {
            Value::Long(count) => Some(*count),
            Value::List(list) => Some(list.len() as u64),
            _ => None,
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Number(n)) => self.bounded(key, *n).map(Some),
            Some(_) => Err(self.unfit(key, "a whole number")),
        }
    }

    pub(super) fn number_or(&self, key: &str, otherwise: u64) -> Result<u64, Error> {
        Ok(self.number(key)?.unwrap_or(otherwise))
    }

    pub(super) fn required(&self, key: &str) -> Result<u64, Error> {
        self.number(key)?.ok_or_else(|| Error::Missing { key: self.name(key) })
    }

    /// A number for each of `layers`, or one for all.
    pub(super) fn each(&self, key: &str, layers: usize) -> Result<Option<Vec<u64>>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Number(n)) => Ok(Some(vec![self.bounded(key, *n)?; layers])),
            Some(Value::List(list)) if list.len() == layers => {
                list.iter().map(|n| self.bounded(key, *n)).collect::<Result<_, _>>().map(Some)
            }
            Some(Value::List(list)) => Err(Error::Entries { key: self.name(key), count: list.len(), layers }),
            Some(_) => Err(self.unfit(key, "a whole number, or an array of them")),
        }
    }

    /// An array of yes and no, one for each layer; shorter ones say no for the rest, as llama.cpp takes them.
    pub(super) fn marks(&self, key: &str, layers: usize) -> Option<Vec<bool>> {
        match self.value(key)? {
            Value::List(list) => {
                let said = list.iter().map(|n| *n != 0);
                Some(said.chain(std::iter::repeat(false)).take(layers).collect())
            }
            _ => None,
        }
    }

    /// Whether there is such a key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    fn bounded(&self, key: &str, n: i128) -> Result<u64, Error> {
        let fits = (0..=LARGEST).contains(&n);
        fits.then_some(n)
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| self.unfit(key, "between 0 and 4294967295"))
    }

    pub(super) fn unfit(&self, key: &str, wanted: &'static str) -> Error {
        Error::Unfit { key: self.name(key), wanted }
    }
}
