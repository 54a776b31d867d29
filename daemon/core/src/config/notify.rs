//! `[notify.NAME]` of `berth.toml`: who is told of problems.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use toml::Spanned;

use super::error::ConfigError;
use super::reader::{Reader, Table};
use crate::notify::Rules;

/// What is over within ten seconds need not wake anybody.
const RULES: Rules = Rules { settle: Duration::from_secs(10), every: Duration::from_secs(60) };

/// Somebody who is told of problems.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notify {
    /// Its name, also of the file that keeps what it was told.
    pub name: String,
    /// How it is told.
    pub target: Target,
    /// When it is.
    pub rules: Rules,
}

/// How somebody is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// By a program with its arguments.
    Command(Vec<String>),
    /// By a POST.
    Post {
        /// To this address, `http://…`.
        url: String,
        /// Of this form.
        format: Format,
    },
}

/// What is posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// All of it as JSON.
    Json,
    /// The text, with title, priority and tags as ntfy takes them.
    Ntfy,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(argv) => f.write_str(&shell_words::join(argv)),
            Self::Post { url, format: Format::Json } => write!(f, "{url} (JSON)"),
            Self::Post { url, format: Format::Ntfy } => write!(f, "{url} (ntfy)"),
        }
    }
}

/// All `[notify.NAME]`.
pub(super) fn read(root: &mut Table<'_, '_>, reader: &Reader<'_>) -> Vec<Notify> {
    let mut all = Vec::new();
    for (name, mut table) in root.tables("notify") {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.get_ref().is_empty() || name.get_ref().len() > 64 || !name.get_ref().chars().all(plain) {
            let message = "who is notified has a name of 1 to 64 letters, digits, `_` and `-`";
            reader.error(message, &name.span(), "");
        }
        let rules = Rules {
            settle: table.duration_or("settle", RULES.settle),
            every: table.duration_or("every", RULES.every),
        };
        if let Some(target) = target(&mut table, reader, &name) {
            all.push(Notify { name: name.into_inner(), target, rules });
        }
        table.finish();
    }
    all
}

fn target(table: &mut Table<'_, '_>, reader: &Reader<'_>, name: &Spanned<String>) -> Option<Target> {
    const COMMAND: &str = "a program and its arguments, for example [\"/usr/local/bin/tell\", \"frank\"]";
    const URL: &str = "an address, for example \"http://127.0.0.1:2586/berth\"";
    let command = table.strings("command", COMMAND);
    let url = table.string("url", URL);
    let formats = [("json", Format::Json), ("ntfy", Format::Ntfy)];
    let format = table.choice("format", &formats);
    table.by_default("format", formats[0].0);
    match (command, url) {
        (Some(command), None) => {
            if let Some(format) = format {
                reader.error("`format` belongs to `url`", &format.span(), "a command is given JSON");
            }
            let span = command.span();
            let argv: Vec<String> = command.into_inner().into_iter().map(Spanned::into_inner).collect();
            if argv.first().is_none_or(String::is_empty) {
                table.complain("command", COMMAND, &span, "no program is named");
                return None;
            }
            Some(Target::Command(argv))
        }
        (None, Some(url)) => {
            match bad_url(url.get_ref()) {
                Some(Wrong::Tls) => {
                    let place = reader.place(&url.span(), "berthd itself speaks no TLS");
                    let curl =
                        format!("command = [\"curl\", \"-fsS\", \"--json\", \"@-\", \"{}\"]", url.get_ref());
                    reader.note(
                        ConfigError::new("`url` must begin with http://", place)
                            .help(format!("leave it to curl, which is given the problem as JSON: {curl}")),
                    );
                }
                Some(Wrong::Other(why)) => table.complain("url", URL, &url.span(), why),
                None => {}
            }
            let format = format.map_or(formats[0].1, Spanned::into_inner);
            Some(Target::Post { url: url.into_inner(), format })
        }
        (Some(_), Some(url)) => {
            reader.error("`command` and `url` exclude each other", &url.span(), "declare two instead");
            None
        }
        (None, None) => {
            // One that is there and is nothing of the kind has been complained of.
            if !table.has("command") && !table.has("url") {
                let message = format!("`notify.{}` has neither `command` nor `url`", name.get_ref());
                reader.error(message, &name.span(), "");
            }
            None
        }
    }
}

enum Wrong {
    Tls,
    Other(&'static str),
}

/// Why nothing can be posted there.
fn bad_url(url: &str) -> Option<Wrong> {
    if url.starts_with("https://") {
        return Some(Wrong::Tls);
    }
    let Some(rest) = url.strip_prefix("http://") else { return Some(Wrong::Other("it begins with http://")) };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let wrong = if url.contains(|c: char| !c.is_ascii_graphic()) {
        "spaces and letters beyond ASCII are percent-encoded"
    } else if authority.contains('@') {
        "no user and no password"
    } else if authority.is_empty() || authority.starts_with(':') {
        "it names no host"
    } else if url.contains('#') {
        "nothing stands after a `#`"
    } else {
        return None;
    };
    Some(Wrong::Other(wrong))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{Settings, SourceFile, Sources, explain, load};

    fn read(text: &str) -> Result<Settings, String> {
        let main = SourceFile { path: "/etc/berth/berth.toml".into(), text: text.to_owned() };
        let sources = Sources { main: Some(main), ..Sources::default() };
        load(&sources, "tower")
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn who_is_told_and_how() {
        let settings = read(
            "[notify.phone]\nurl = \"http://127.0.0.1:2586/berth\"\nformat = \"ntfy\"\nsettle = \"1 min\"\n\
             [notify.mail]\ncommand = [\"/usr/local/bin/tell\", \"frank here\"]\nevery = \"5 min\"\n",
        )
        .unwrap();
        let [mail, phone] = &settings.notify[..] else { panic!("{:?}", settings.notify) };
        assert_eq!(mail.target, Target::Command(vec!["/usr/local/bin/tell".into(), "frank here".into()]));
        assert_eq!((mail.rules.settle, mail.rules.every.as_secs()), (RULES.settle, 300));
        let url = "http://127.0.0.1:2586/berth".to_owned();
        assert_eq!(phone.target, Target::Post { url, format: Format::Ntfy });
        assert_eq!((phone.rules.settle.as_secs(), phone.rules.every), (60, RULES.every));
        let explained: Vec<String> = explain(&settings)
            .values
            .iter()
            .filter(|value| value.key.starts_with("notify."))
            .map(|value| format!("{} = {} ({})", value.key, value.value, value.origin))
            .collect();
        assert_eq!(explained[0], "notify.mail.command = /usr/local/bin/tell 'frank here' (line 6)");
        assert_eq!(explained[3], "notify.phone.url = http://127.0.0.1:2586/berth (ntfy) (line 2)");
        assert_eq!(explained[4], "notify.phone.settle = 1m (line 4)");
    }

    #[test]
    fn what_can_not_be_told_is_an_error_that_says_why() {
        for (text, wrong) in [
            ("[notify.x]\n", "`notify.x` has neither `command` nor `url`"),
            ("[notify.x]\ncommand = []\n", "no program is named"),
            ("[notify.x]\ncommand = [\"a\"]\nurl = \"http://a/\"\n", "exclude each other"),
            ("[notify.x]\ncommand = [\"a\"]\nformat = \"ntfy\"\n", "`format` belongs to `url`"),
            ("[notify.x]\nurl = \"ntfy.sh/x\"\n", "it begins with http://"),
            ("[notify.x]\nurl = \"http:///x\"\n", "it names no host"),
            ("[notify.x]\nurl = \"http://a:b@c/\"\n", "no user and no password"),
            ("[notify.x]\nurl = \"http://a/b c\"\n", "percent-encoded"),
            ("[notify.x]\nurl = \"https://ntfy.sh/x\"\n", "berthd itself speaks no TLS"),
            ("[notify.x]\nurl = \"https://ntfy.sh/x\"\n", "\"curl\", \"-fsS\", \"--json\", \"@-\""),
            ("[notify.\"a/b\"]\nurl = \"http://a/\"\n", "has a name of 1 to 64"),
            ("[notify.x]\nurl = \"http://a/\"\nto = 1\n", "unknown key"),
        ] {
            let errors = read(text).unwrap_err();
            assert!(errors.contains(wrong), "{text}: {errors}");
        }
    }
}
