//! `cmd`: the command line that someone runs today, taken apart without a shell.
//!
//! Only words, quotes and leading `NAME=value` are understood. What would need a shell is refused with the
//! reason, since a server behind a pipe or a variable is not the program that berthd sees, stops and measures.

use std::ops::Range;

use crate::container::COMPOSERS;

/// A command line's parts.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts {
    /// The variables that are set before the program, in their order.
    pub env: Vec<(String, String)>,
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
}

/// Takes a command line apart as `cmd` of a declaration is; an error says in one clause why that needs a shell.
pub fn parts(line: &str) -> Result<Parts, String> {
    split(line).map_err(|refused| refused.why)
}

/// Why a command line can't be used, and where in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) at: Range<usize>,
    pub(super) why: String,
    pub(super) instead: &'static str,
}

const WRITE_OUT: &str = "write the value out, or put it in quotes ('…') if it is meant as it stands";
const NO_SHELL: &str = "run the server alone; what must come before it or after it does not belong to `cmd`";

/// Words that are a shell's own, or that hide the server from systemd.
const NO_PROGRAMS: &[(&[&str], &str, &str)] = &[
    (&["cd"], "`cd` is a shell's word, and no shell runs this", "set `cwd` instead"),
    (
        &["export", "set"],
        "this is a shell's word, and no shell runs this",
        "write NAME=value before the program, or set `env`",
    ),
    (
        &["source", ".", "exec", "eval", "ulimit", "trap", "if", "for", "while"],
        "this is a shell's word, and no shell runs this",
        "give the program itself, for a Python environment the path of its `bin/python` or `bin/vllm`",
    ),
    (
        &["sudo", "doas", "su"],
        "the unit runs as its own user, without a password prompt",
        "leave it out; set `User=` in a drop-in of the unit",
    ),
    (
        &["nohup", "setsid", "screen", "tmux"],
        "the server would leave systemd's sight",
        "leave it out; systemd keeps the server running",
    ),
    (
        &COMPOSERS,
        "it runs servers in the background, outside their unit",
        "write it as `docker run … IMAGE …` or `podman run … IMAGE …`",
    ),
];

pub(super) fn split(line: &str) -> Result<Parts, Refused> {
    refuse_shell(line)?;
    let everything = 0..line.len();
    let words = shell_words::split(line).map_err(|_| Refused {
        at: everything.clone(),
        why: "a quote is opened and not closed".to_owned(),
        instead: "close it, or use `program` and `args`",
    })?;
    let mut words = words.into_iter().peekable();
    let mut env = Vec::new();
    while let Some((name, value)) = words.peek().and_then(|word| assignment(word)) {
        env.push((name.to_owned(), value.to_owned()));
        words.next();
    }
    let Some(program) = words.next() else {
        let why = if env.is_empty() { "it is empty" } else { "it sets variables and runs nothing" };
        return Err(Refused {
            at: everything,
            why: why.to_owned(),
            instead: "add the program, for example /usr/bin/llama-server",
        });
    };
    let base = program.rsplit('/').next().unwrap_or_default();
    if let Some((_, why, instead)) = NO_PROGRAMS.iter().find(|(words, ..)| words.contains(&base)) {
        let start = line.find(&program).unwrap_or(0);
        return Err(Refused { at: start..start + program.len(), why: (*why).to_owned(), instead });
    }
    Ok(Parts { env, program, args: words.collect() })
}

/// `NAME=value`, where NAME could be a variable's.
fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    (starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then_some((name, value))
}

/// Refuses what only a shell could carry out. Follows quotes as a shell does.
fn refuse_shell(line: &str) -> Result<(), Refused> {
    let mut quote = None;
    let mut word_start = true;
    let mut chars = line.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, next)| *next);
        let refuse =
            |len: usize, why: &str, instead| Err(Refused { at: at..at + len, why: why.to_owned(), instead });
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (_, '\\') => _ = chars.next(),
            (_, '`') => return refuse(1, "a command within the command needs a shell", WRITE_OUT),
            (_, '$') if next == Some('(') => {
                return refuse(2, "a command within the command needs a shell", WRITE_OUT);
            }
            (_, '$') if next.is_some_and(|n| n.is_ascii_alphanumeric() || "_{@*#?$!-".contains(n)) => {
                return refuse(1, "no shell replaces variables here", WRITE_OUT);
            }
            (None, '|') if next != Some('|') => return refuse(1, "a pipe needs a shell", NO_SHELL),
            (None, '<' | '>') => {
                return refuse(
                    1,
                    "redirections need a shell; the server's output goes to the journal",
                    NO_SHELL,
                );
            }
            (None, '&') if next != Some('&') => {
                return refuse(
                    1,
                    "nothing goes to the background here; systemd runs the server",
                    "leave the `&` out",
                );
            }
            (None, '&' | '|') => return refuse(2, "several commands need a shell", NO_SHELL),
            (None, ';') => return refuse(1, "several commands need a shell", NO_SHELL),
            (None, '#') if word_start => {
                return refuse(
                    1,
                    "a comment starts here, and the rest would be lost",
                    "put it in quotes, or on a line of its own",
                );
            }
            (None, '~') if word_start => {
                return refuse(1, "`~` is another folder for each user", "write the whole path, from `/`");
            }
            _ => {}
        }
        word_start = quote.is_none() && (c.is_whitespace() || c == '=');
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn words_quotes_and_assignments() {
        let line = r#"A=1 B='x y' /opt/vllm serve --spec '{"a":"b|c"}' "it's" C=2 \
            a\ b 50$ '$HOME' {port}"#;
        let parts = split(line).unwrap();
        assert_eq!(parts.env, [("A".into(), "1".into()), ("B".into(), "x y".into())]);
        assert_eq!(parts.program, "/opt/vllm");
        let args = ["serve", "--spec", r#"{"a":"b|c"}"#, "it's", "C=2", "a b", "50$", "$HOME", "{port}"];
        assert_eq!(parts.args, args);
    }

    #[test]
    fn what_needs_a_shell_is_refused_at_its_place() {
        let cases = [
            ("a | tee log", 2, "pipe"),
            ("a > log", 2, "redirections"),
            ("a 2>&1", 3, "redirections"),
            ("a < in", 2, "redirections"),
            ("a && b", 2, "several"),
            ("a || b", 2, "several"),
            ("a; b", 1, "several"),
            ("a &", 2, "background"),
            ("a $(b)", 2, "within"),
            ("a \"`b`\"", 3, "within"),
            ("a \"$HOME/m\"", 3, "variables"),
            ("a ${M}", 2, "variables"),
            ("a ~/m", 2, "each user"),
            ("a -m=~/m", 5, "each user"),
            ("a # b", 2, "comment"),
            ("a 'b", 0, "not closed"),
            ("  ", 0, "empty"),
            ("A=1", 0, "runs nothing"),
            ("cd /opt", 0, "shell's word"),
            ("A=1 /usr/bin/sudo a", 4, "password"),
            ("docker-compose up", 0, "outside their unit"),
        ];
        for (line, at, why) in cases {
            let refused = split(line).unwrap_err();
            assert_eq!(refused.at.start, at, "{line}");
            assert!(refused.why.contains(why), "{line}: {}", refused.why);
        }
        assert!(split("a~b c#d --x=a#b").is_ok());
    }
}
