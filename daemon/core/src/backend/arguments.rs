//! Finds out what a command line says already, so that what the user wrote himself wins.

use std::collections::BTreeMap;

/// How a server is told its address, port and model.
#[derive(Debug)]
pub struct Spellings {
    pub(crate) host: Spelling,
    pub(crate) port: Spelling,
    pub(crate) model: Spelling,
}

/// The flags and the variable for one setting.
#[derive(Debug)]
pub(crate) struct Spelling {
    pub(crate) flags: &'static [&'static str],
    pub(crate) variable: Option<&'static str>,
}

/// A setting that a command line gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The value as written.
    pub(crate) text: String,
    /// The flag or variable that gives it.
    pub(crate) by: String,
    /// The argument that holds the value; None for a variable.
    pub(crate) index: Option<usize>,
}

impl Spelling {
    /// The setting's value: an argument wins over a variable, as it does in the servers.
    pub(crate) fn given(&self, args: &[String], env: &BTreeMap<String, String>) -> Option<Given> {
        flag(args, self.flags).or_else(|| {
            let name = self.variable?;
            Some(Given { text: env.get(name)?.clone(), by: name.to_owned(), index: None })
        })
    }
}

/// The value of a flag, written as two words or with `=`. The last one counts, and `_` in a long flag is the
/// same as `-`, as in the servers.
pub(crate) fn flag(args: &[String], names: &[&str]) -> Option<Given> {
    args.iter().enumerate().rev().find_map(|(i, arg)| {
        let (written, value) = match arg.split_once('=') {
            Some((written, value)) if written.starts_with('-') => (written, Some(value)),
            _ => (arg.as_str(), None),
        };
        let name = spelled(written);
        if !names.contains(&name.as_str()) {
            return None;
        }
        let (text, index) = match value {
            Some(value) => (value.to_owned(), i),
            None => (args.get(i + 1)?.clone(), i + 1),
        };
        Some(Given { text, by: written.to_owned(), index: Some(index) })
    })
}

/// Whether a flag without a value is there.
pub(crate) fn has(args: &[String], names: &[&str]) -> bool {
    args.iter().any(|arg| names.contains(&spelled(arg).as_str()))
}

/// What the last of these flags without a value turns on or off.
pub(crate) fn switch(args: &[String], on: &[&str], off: &[&str]) -> Option<Given> {
    args.iter().enumerate().rev().find_map(|(i, arg)| {
        let name = spelled(arg);
        let text = match () {
            () if on.contains(&name.as_str()) => "true",
            () if off.contains(&name.as_str()) => "false",
            () => return None,
        };
        Some(Given { text: text.to_owned(), by: arg.clone(), index: Some(i) })
    })
}

/// The arguments without these flags and their values, and without these switches.
pub(crate) fn without(args: &[String], flags: &[&str], switches: &[&str]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let (name, has_value) = match arg.split_once('=') {
            Some((name, _)) if name.starts_with('-') => (spelled(name), true),
            _ => (spelled(arg), false),
        };
        if switches.contains(&name.as_str()) {
            continue;
        }
        if !flags.contains(&name.as_str()) {
            kept.push(arg.clone());
        } else if !has_value {
            args.next();
        }
    }
    kept
}

fn spelled(flag: &str) -> String {
    if flag.starts_with("--") { flag.replace('_', "-") } else { flag.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn args(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_last_flag_counts_however_it_is_written() {
        let found = |line| flag(&args(line), &["-m", "--model-path"]).map(|given| given.text);
        assert_eq!(found("-m a -m b"), Some("b".into()));
        assert_eq!(found("--model_path=a/b=c -x"), Some("a/b=c".into()));
        assert_eq!(found("--model-path"), None);
        assert_eq!(found("x=-m --model-paths y"), None);
    }

    #[test]
    fn an_argument_wins_over_a_variable() {
        let spelling = Spelling { flags: &["--port"], variable: Some("LLAMA_ARG_PORT") };
        let env = BTreeMap::from([("LLAMA_ARG_PORT".to_owned(), "1".to_owned())]);
        assert_eq!(spelling.given(&args("--port 2"), &env).unwrap().text, "2");
        assert_eq!(spelling.given(&args("-x"), &env).unwrap().by, "LLAMA_ARG_PORT");
    }
}
