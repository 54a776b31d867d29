//! `ExecStart=` and its like: prefixes, program, arguments. Variables are still as they are written.

use super::word::{Escapes, first};
use super::{Around, Depth, Unit, expand};

/// One command of a setting.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Command {
    /// What stands before the program: `-`, `@`, `:`, `+`, `!`.
    pub(crate) prefixes: String,
    pub(crate) program: String,
    /// Without the program, but with the name that `@` gives it.
    pub(crate) args: Vec<String>,
}

/// The commands of one setting, which `;` separates.
pub(crate) fn commands(value: &str, unit: &Unit, around: &Around) -> Result<Vec<Command>, String> {
    let blank = |c: char| c == ' ' || c == '\t';
    let mut all = Vec::new();
    let mut rest = value;
    while let Some((word, after)) = first(rest, Escapes::OfC)? {
        let program = word.trim_start_matches(['-', '@', ':', '+', '!']);
        let prefixes = word[..word.len() - program.len()].to_owned();
        let program = expand(program, unit, around, Depth::All)?;
        if program.is_empty() {
            return Err("it names no program".to_owned());
        }
        let mut command = Command { prefixes, program, args: Vec::new() };
        rest = after;
        let mut more = false;
        loop {
            if let Some(after) =
                rest.strip_prefix(';').filter(|after| after.is_empty() || after.starts_with(blank))
            {
                (rest, more) = (after, true);
                break;
            }
            if let Some(after) =
                rest.strip_prefix("\\;").filter(|after| after.is_empty() || after.starts_with(blank))
            {
                command.args.push(";".to_owned());
                rest = after.trim_start_matches(blank);
                continue;
            }
            let Some((word, after)) = first(rest, Escapes::OfC)? else { break };
            command.args.push(expand(&word, unit, around, Depth::All)?);
            rest = after;
        }
        all.push(command);
        if !more {
            break;
        }
    }
    Ok(all)
}
