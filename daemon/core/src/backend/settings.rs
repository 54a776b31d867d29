//! How a server is told the settings that decide how much memory it takes, and what its command line says of them.

use std::collections::BTreeMap;

use super::arguments::{Given, Spelling, switch, without};
use crate::tuning::Tuning;

/// How a server is told one setting of [`Tuning`].
#[derive(Debug)]
pub struct Setting {
    /// The key under which it is declared.
    pub(crate) key: &'static str,
    /// What gives it a value; the first flag is the one that is added.
    pub(crate) spelling: Spelling,
    /// Flags without a value that turn it on, and off. The first of each is the one that is added.
    pub(crate) switches: Option<(&'static [&'static str], &'static [&'static str])>,
    /// The server's word for a value, as it is declared. None where it says nothing certain.
    pub(crate) read: fn(&str) -> Option<String>,
    /// A declared value in the server's word.
    pub(crate) write: fn(&str) -> String,
}

impl Setting {
    /// What a command line says of it. Its text is a declared one where it could be read, else as it is written.
    pub(crate) fn given(&self, args: &[String], env: &BTreeMap<String, String>) -> Option<Given> {
        let switched = self.switches.and_then(|(on, off)| switch(args, on, off));
        switched.or_else(|| self.spelling.given(args, env))
    }

    /// Takes all that says something of it out of a command line and its variables.
    pub(crate) fn forget(&self, args: &mut Vec<String>, env: &mut BTreeMap<String, String>) {
        let (on, off) = self.switches.unwrap_or_default();
        *args = without(args, self.spelling.flags, &[on, off].concat());
        if let Some(variable) = self.spelling.variable {
            env.remove(variable);
        }
    }

    /// The flags that are added for it, one or, of a switch, the other.
    pub(crate) fn added(&self) -> impl Iterator<Item = &'static str> {
        let (on, off) = self.switches.unwrap_or((self.spelling.flags, &[]));
        on.first().into_iter().chain(off.first()).copied()
    }

    /// What is added to the command line for this value.
    pub(crate) fn words(&self, value: &str) -> Vec<String> {
        if let Some((on, off)) = self.switches {
            let flags = if value == "true" { on } else { off };
            flags.first().map(|flag| (*flag).to_owned()).into_iter().collect()
        } else {
            let flag = self.spelling.flags.first().map(|flag| (*flag).to_owned());
            flag.into_iter().chain([(self.write)(value)]).collect()
        }
    }
}

/// What the command line says, as far as it is certain.
pub(super) fn given_tuning(settings: &[Setting], args: &[String], env: &BTreeMap<String, String>) -> Tuning {
    let mut tuning = Tuning::default();
    for setting in settings {
        if let Some(text) = setting.given(args, env).and_then(|given| (setting.read)(&given.text)) {
            // What the server would refuse too is left to it.
            _ = tuning.set(setting.key, &text);
        }
    }
    tuning
}

/// What must be added to the command line for `tuning`: what it says itself stays.
pub(super) fn flags(
    settings: &[Setting],
    tuning: &Tuning,
    args: &[String],
    env: &BTreeMap<String, String>,
) -> Vec<String> {
    let missing = settings.iter().filter(|setting| setting.given(args, env).is_none());
    missing.filter_map(|setting| Some(setting.words(&tuning.get(setting.key)?))).flatten().collect()
}

/// A number above 0: servers write 0 and -1 for a value of their own choice.
pub(super) fn positive(text: &str) -> Option<String> {
    text.parse::<u64>().ok().filter(|number| *number > 0).map(|number| number.to_string())
}

pub(super) fn same(text: &str) -> String {
    text.to_owned()
}

/// A word for on or off, as llama.cpp takes them.
pub(super) fn truth(text: &str) -> Option<String> {
    match text {
        "on" | "enabled" | "true" | "1" => Some("true".to_owned()),
        "off" | "disabled" | "false" | "0" => Some("false".to_owned()),
        _ => None,
    }
}
