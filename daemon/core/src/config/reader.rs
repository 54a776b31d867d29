//! Reads typed values out of one TOML file and notes everything that is wrong with it.
//!
//! Not by serde's derive, since that stops at the first error, and a person who mends a file wants to hear of
//! all of them at once.

mod times;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;

use serde_json::{Number, Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::SourceFile;
use super::error::{ConfigError, Place, Warning};

pub(super) use times::shown;

/// One file being read, and what is wrong with it so far.
pub(super) struct Reader<'a> {
    pub(super) file: &'a SourceFile,
    found: RefCell<Found>,
    /// What is asked for, by its whole key; kept where keys are only told of.
    asked: Option<RefCell<Asked>>,
}

/// All that a file may hold, by its whole key (`memory.gpu`). Tables with names of the writer's own are `*`.
pub(super) type Asked = BTreeMap<String, May>;

/// What may stand under a key.
#[derive(Clone)]
pub(super) enum May {
    /// A value of this JSON schema.
    Value(Value),
    /// A table.
    Table,
    /// Tables of any name.
    Tables,
}

const TRUE_OR_FALSE: &str = "true or false";

/// What came of reading a file, besides its values.
#[derive(Default)]
pub(super) struct Found {
    pub(super) errors: Vec<ConfigError>,
    pub(super) warnings: Vec<Warning>,
    /// The line of each key that was read.
    pub(super) declared: BTreeMap<String, usize>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a SourceFile) -> Self {
        Self { file, found: RefCell::default(), asked: None }
    }

    /// One that notes what is asked for, and what holds otherwise.
    pub(super) fn noting(file: &'a SourceFile) -> Self {
        Self { asked: Some(RefCell::default()), ..Self::new(file) }
    }

    fn ask(&self, table: &Table<'_, '_>, key: &str, may: impl FnOnce() -> May) {
        if let Some(asked) = &self.asked {
            asked.borrow_mut().insert(format!("{}{key}", table.prefix), may());
        }
    }

    fn ask_default(&self, table: &Table<'_, '_>, key: &str, value: impl FnOnce() -> Value) {
        if let Some(asked) = &self.asked
            && let Some(May::Value(schema)) = asked.borrow_mut().get_mut(&format!("{}{key}", table.prefix))
        {
            schema["default"] = value();
        }
    }

    /// What was asked for.
    pub(super) fn asked(self) -> Asked {
        self.asked.map(RefCell::into_inner).unwrap_or_default()
    }

    /// The file's table. None where its text is not TOML; every error of the syntax is noted then.
    pub(super) fn parse(&self) -> Option<Spanned<DeTable<'a>>> {
        let (table, errors) = DeTable::parse_recoverable(&self.file.text);
        if errors.is_empty() {
            return Some(table);
        }
        for error in errors {
            self.error(error.message(), &error.span().unwrap_or(0..0), "");
        }
        None
    }

    pub(super) fn place(&self, span: &Range<usize>, label: impl Into<String>) -> Place {
        Place::new(self.file, span, label)
    }

    pub(super) fn note(&self, error: ConfigError) {
        self.found.borrow_mut().errors.push(error);
    }

    /// Notes what is allowed and known to hurt.
    pub(super) fn warn(&self, advice: ConfigError) {
        let warnings = &mut self.found.borrow_mut().warnings;
        // What a file asks for again, in a variant, is said once.
        if warnings.iter().all(|warning| warning.message() != advice.message) {
            warnings.push(Warning(advice));
        }
    }

    pub(super) fn error(&self, message: impl Into<String>, span: &Range<usize>, label: impl Into<String>) {
        self.note(ConfigError::new(message, self.place(span, label)));
    }

    /// The line of each key that was read so far.
    pub(super) fn declared(&self) -> BTreeMap<String, usize> {
        self.found.borrow().declared.clone()
    }

    pub(super) fn finish(self) -> Found {
        self.found.into_inner()
    }
}

/// One table of a file. Keys are read by name; what is left over in the end is unknown.
pub(super) struct Table<'r, 'a> {
    reader: &'r Reader<'a>,
    entries: &'r DeTable<'a>,
    /// What stands before a key in messages: empty, or `memory.`
    prefix: String,
    known: Vec<&'static str>,
}

impl<'r, 'a> Table<'r, 'a> {
    pub(super) fn root(reader: &'r Reader<'a>, table: &'r Spanned<DeTable<'a>>) -> Self {
        Self { reader, entries: table.get_ref(), prefix: String::new(), known: Vec::new() }
    }

    /// The value of a key, of which a JSON schema is `schema`.
    fn take(
        &mut self,
        key: &'static str,
        schema: impl FnOnce() -> Value,
    ) -> Option<&'r Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.reader.ask(self, key, || May::Value(schema()));
        let value = self.entries.get(key)?;
        let line = self.reader.place(&value.span(), "").line;
        self.reader.found.borrow_mut().declared.insert(format!("{}{key}", self.prefix), line);
        Some(value)
    }

    /// Whether the key is there, of whatever type.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Where the key's value stands, of whatever type.
    pub(super) fn span(&self, key: &str) -> Option<Range<usize>> {
        self.entries.get(key).map(Spanned::span)
    }

    /// Notes that the value at `span` is not what it must be.
    pub(super) fn complain(&self, key: &str, expected: &str, span: &Range<usize>, label: &str) {
        self.reader.error(format!("`{}{key}` must be {expected}", self.prefix), span, label);
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let message = format!("`{}{key}` must be {expected}", self.prefix);
        let found = match value.get_ref().type_str() {
            "array" => "this is an array",
            "boolean" => "this is true or false",
            "datetime" => "this is a date",
            "float" | "integer" => "this is a number",
            "string" => "this is text",
            _ => "this is a table",
        };
        self.reader.error(message, &value.span(), found);
    }

    /// A text without NUL, which no program can be given.
    fn text(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) -> Option<Spanned<String>> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, expected);
            return None;
        };
        if text.contains('\0') {
            let message = format!("`{}{key}` holds a NUL character", self.prefix);
            self.reader.error(message, &value.span(), "no program can be given one");
            return None;
        }
        Some(Spanned::new(value.span(), text.to_owned()))
    }

    pub(super) fn string(&mut self, key: &'static str, expected: &str) -> Option<Spanned<String>> {
        let value = self.take(key, || text(expected))?;
        self.text(key, value, expected)
    }

    pub(super) fn strings(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Option<Spanned<Vec<Spanned<String>>>> {
        let value = self.take(key, || array(&text(expected)))?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, value, expected);
            return None;
        };
        let texts = array.iter().filter_map(|item| self.text(key, item, expected)).collect();
        Some(Spanned::new(value.span(), texts))
    }

    /// A text or a whole number, as text.
    pub(super) fn word(&mut self, key: &'static str, expected: &str) -> Option<Spanned<String>> {
        let value = self.take(key, || word(expected))?;
        self.text_or_number(key, value, expected)
    }

    fn text_or_number(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        expected: &str,
    ) -> Option<Spanned<String>> {
        match value.get_ref().as_integer() {
            Some(number) if number.radix() == 10 => {
                Some(Spanned::new(value.span(), number.as_str().to_owned()))
            }
            _ => self.text(key, value, expected),
        }
    }

    /// One text or whole number, or an array of them. None where one can't be read.
    pub(super) fn words(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Option<Spanned<Vec<Spanned<String>>>> {
        let value = self.take(
            key,
            || json!({ "description": expected, "anyOf": [word(expected), array(&word(expected))] }),
        )?;
        let words = match value.get_ref().as_array() {
            Some(array) => array
                .iter()
                .map(|item| self.text_or_number(key, item, expected))
                .collect::<Option<Vec<_>>>()?,
            None => vec![self.text_or_number(key, value, expected)?],
        };
        Some(Spanned::new(value.span(), words))
    }

    /// A setting of the server as text, whatever it is written as; `quoted` where that must be text.
    pub(super) fn setting(
        &mut self,
        key: &'static str,
        quoted: bool,
        expected: &str,
    ) -> Option<Spanned<String>> {
        let value = self.take(key, || match expected {
            _ if quoted => text(expected),
            TRUE_OR_FALSE => json!({ "type": "boolean" }),
            _ => json!({ "type": "number", "description": expected }),
        })?;
        let text = match value.get_ref() {
            DeValue::String(text) if quoted => text.to_string(),
            DeValue::Integer(number) if !quoted && number.radix() == 10 => number.as_str().to_owned(),
            DeValue::Float(number) if !quoted => number.as_str().to_owned(),
            DeValue::Boolean(on) if !quoted => on.to_string(),
            _ => {
                self.wrong_type(key, value, expected);
                return None;
            }
        };
        Some(Spanned::new(value.span(), text))
    }

    /// A table of which every value is a text: `env`.
    pub(super) fn string_table(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Vec<(Spanned<String>, Spanned<String>)> {
        let Some(value) =
            self.take(key, || json!({ "type": "object", "additionalProperties": text(expected) }))
        else {
            return Vec::new();
        };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, expected);
            return Vec::new();
        };
        let pairs = table.iter().filter_map(|(name, value)| {
            let text = self.text(&format!("{key}.{}", name.get_ref()), value, expected)?;
            Some((Spanned::new(name.span(), name.get_ref().to_string()), text))
        });
        pairs.collect()
    }

    /// A table of any values, as JSON has them.
    pub(super) fn json(&mut self, key: &'static str) -> BTreeMap<String, Value> {
        let Some(value) = self.take(key, || json!({ "type": "object" })) else { return BTreeMap::new() };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, "a table");
            return BTreeMap::new();
        };
        let pairs = table.iter().filter_map(|(name, value)| {
            let json = json(value.get_ref());
            if json.is_none() {
                let message = format!("`{}{key}.{}` is nothing that JSON has", self.prefix, name.get_ref());
                self.reader.error(message, &value.span(), "");
            }
            Some((name.get_ref().to_string(), json?))
        });
        pairs.collect()
    }

    /// Says what holds where a key that was asked for is not given.
    pub(super) fn by_default(&self, key: &str, value: impl Into<Value>) {
        self.reader.ask_default(self, key, || value.into());
    }

    pub(super) fn boolean_or(&mut self, key: &'static str, otherwise: bool) -> bool {
        let given = self.boolean(key);
        self.by_default(key, otherwise);
        given.unwrap_or(otherwise)
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key, || json!({ "type": "boolean" }))?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(key, value, TRUE_OR_FALSE);
        }
        found
    }

    pub(super) fn port(&mut self, key: &'static str) -> Option<Spanned<u16>> {
        const EXPECTED: &str = "a port number, for example 8022";
        let value = self.take(
            key,
            || json!({ "type": "integer", "minimum": 1, "maximum": 65535, "description": EXPECTED }),
        )?;
        let Some(number) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, EXPECTED);
            return None;
        };
        let Ok(port) = u16::from_str_radix(number.as_str(), number.radix()) else {
            let message = format!("`{}{key}` must be {EXPECTED}", self.prefix);
            self.reader.error(message, &value.span(), "ports are 1 to 65535");
            return None;
        };
        Some(Spanned::new(value.span(), port))
    }

    /// A whole number within `range`; `expected` says what it is, with its bounds.
    pub(super) fn whole<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
        expected: &str,
    ) -> Option<Spanned<T>>
    where
        T: TryFrom<i64> + Into<i64> + PartialOrd + Copy,
    {
        let value = self.take(key, || {
            let (least, most): (i64, i64) = ((*range.start()).into(), (*range.end()).into());
            json!({ "type": "integer", "minimum": least, "maximum": most, "description": expected })
        })?;
        let Some(number) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, expected);
            return None;
        };
        let number = i64::from_str_radix(number.as_str(), number.radix()).ok();
        let number = number.and_then(|number| T::try_from(number).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            self.reader.error(format!("`{}{key}` must be {expected}", self.prefix), &value.span(), "");
        }
        number.map(|number| Spanned::new(value.span(), number))
    }

    pub(super) fn whole_or<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
        expected: &str,
        otherwise: T,
    ) -> T
    where
        T: TryFrom<i64> + Into<i64> + PartialOrd + Copy,
    {
        let given = self.whole(key, range, expected);
        self.by_default(key, otherwise.into());
        given.map_or(otherwise, Spanned::into_inner)
    }

    pub(super) fn parsed_or<T>(&mut self, key: &'static str, expected: &str, otherwise: T) -> T
    where
        T: FromStr<Err: Display> + Display,
    {
        let given = self.parsed(key, expected);
        self.by_default(key, otherwise.to_string());
        given.map_or(otherwise, Spanned::into_inner)
    }

    /// A value written as text: a size, an address …
    pub(super) fn parsed<T>(&mut self, key: &'static str, expected: &str) -> Option<Spanned<T>>
    where
        T: FromStr<Err: Display>,
    {
        let text = self.string(key, expected)?;
        match text.get_ref().parse() {
            Ok(value) => Some(Spanned::new(text.span(), value)),
            Err(error) => {
                self.reader.error(
                    format!("`{}{key}` must be {expected}", self.prefix),
                    &text.span(),
                    error.to_string(),
                );
                None
            }
        }
    }

    /// A value that is one text or an array of them.
    pub(super) fn one_or_each<T>(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Option<Spanned<OneOrEach<T>>>
    where
        T: FromStr<Err: Display>,
    {
        let is_array = self.entries.get(key).is_some_and(|value| value.get_ref().is_array());
        if !is_array {
            let one = self.parsed(key, expected);
            let either =
                || json!({ "description": expected, "anyOf": [text(expected), array(&text(expected))] });
            self.reader.ask(self, key, || May::Value(either()));
            let one = one?;
            return Some(Spanned::new(one.span(), OneOrEach::One(one.into_inner())));
        }
        let texts = self.strings(key, expected)?;
        let mut each = Vec::new();
        for text in texts.get_ref() {
            match text.get_ref().parse::<T>() {
                Ok(value) => each.push(value),
                Err(error) => {
                    let message = format!("`{}{key}` must be {expected}", self.prefix);
                    self.reader.error(message, &text.span(), error.to_string());
                }
            }
        }
        // One that could not be read would shift the others to the wrong device.
        (each.len() == self.entries.get(key)?.get_ref().as_array()?.len())
            .then(|| Spanned::new(texts.span(), OneOrEach::Each(each)))
    }

    /// One of a few words; `otherwise` is what one of them stands for.
    pub(super) fn choice_or<T: Copy + PartialEq>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
        otherwise: T,
    ) -> T {
        let given = self.choice(key, choices);
        if let Some((word, _)) = choices.iter().find(|(_, value)| *value == otherwise) {
            self.by_default(key, *word);
        }
        given.map_or(otherwise, Spanned::into_inner)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<Spanned<T>> {
        let words = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let text = self.string(key, &format!("one of {words}"));
        self.reader.ask(self, key, || {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            May::Value(json!({ "enum": words }))
        });
        let text = text?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| word == text.get_ref()) {
            return Some(Spanned::new(text.span(), *value));
        }
        let near = nearest(text.get_ref(), choices.iter().map(|(word, _)| *word));
        let label = near.map_or(String::new(), |word| format!("did you mean \"{word}\"?"));
        self.reader.error(format!("`{}{key}` must be one of {words}", self.prefix), &text.span(), label);
        None
    }

    /// A table below this one. Finish it too.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Table<'r, 'a>> {
        self.known.push(key);
        self.reader.ask(self, key, || May::Table);
        let value = self.entries.get(key)?;
        let Some(entries) = value.get_ref().as_table() else {
            self.wrong_type(key, value, &format!("a table: `[{}{key}]`", self.prefix));
            return None;
        };
        Some(Table {
            reader: self.reader,
            entries,
            prefix: format!("{}{key}.", self.prefix),
            known: Vec::new(),
        })
    }

    /// The tables below `[KEY.…]`, each with its name. Finish them all.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<(Spanned<String>, Table<'r, 'a>)> {
        let group = self.table(key);
        self.reader.ask(self, key, || May::Tables);
        let Some(group) = group else { return Vec::new() };
        let mut tables = Vec::new();
        for (name, value) in group.entries {
            let text = name.get_ref().to_string();
            match value.get_ref().as_table() {
                Some(entries) => {
                    let prefix = format!("{}{text}.", group.prefix);
                    let table = Table { reader: self.reader, entries, prefix, known: Vec::new() };
                    tables.push((Spanned::new(name.span(), text), table));
                }
                None => group.wrong_type(&text.escape_debug().to_string(), value, "a table"),
            }
        }
        tables
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self) {
        for key in self.entries.keys() {
            if self.known.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let label = nearest(key.get_ref(), self.known.iter().copied()).map_or_else(
                || {
                    let mut known = self.known.clone();
                    known.sort_unstable();
                    format!("known here: {}", known.join(", "))
                },
                |near| format!("did you mean `{near}`?"),
            );
            let shown: String = key.get_ref().escape_debug().collect();
            self.reader.error(format!("unknown key `{}{shown}`", self.prefix), &key.span(), label);
        }
    }
}

/// The schema of a text.
fn text(expected: &str) -> Value {
    json!({ "type": "string", "description": expected })
}

/// The schema of a text or a whole number.
fn word(expected: &str) -> Value {
    json!({ "type": ["string", "integer"], "description": expected })
}

/// The schema of an array.
fn array(items: &Value) -> Value {
    json!({ "type": "array", "items": items })
}

/// What TOML says as JSON; None for a date, or a number that JSON can't hold.
fn json(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(number) => Value::from(i64::from_str_radix(number.as_str(), number.radix()).ok()?),
        DeValue::Float(number) => Number::from_f64(number.as_str().parse().ok()?)?.into(),
        DeValue::Boolean(on) => Value::from(*on),
        DeValue::Array(array) => array.iter().map(|item| json(item.get_ref())).collect::<Option<_>>()?,
        DeValue::Table(table) => {
            let pairs =
                table.iter().map(|(name, value)| Some((name.get_ref().to_string(), json(value.get_ref())?)));
            Value::Object(pairs.collect::<Option<_>>()?)
        }
        DeValue::Datetime(_) => return None,
    })
}

/// One value, or one for each of several.
pub(super) enum OneOrEach<T> {
    One(T),
    Each(Vec<T>),
}

/// The candidate that was probably meant, if one is near enough.
pub(super) fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let scored = candidates.map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate));
    let (distance, near) = scored.min()?;
    // About one slip in three characters: more is another word.
    (distance <= near.chars().count().div_ceil(3).min(3)).then_some(near)
}
