//! Settings that decide a server's memory, declared by keys of their own: held against what the command line says.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;

use super::declared::Command;
use super::error::ConfigError;
use super::model_file::{origin, span_of};
use super::reader::{Reader, Table};
use super::{BackendKind, Derived};
use crate::backend;
use crate::policy::{Cores, Policy};
use crate::tuning::{BadSetting, Tuning};

/// Such settings as they are written.
#[derive(Default)]
pub(super) struct Tuned {
    pub(super) tuning: Tuning,
    /// Each key that is written, with its value's place.
    pub(super) written: Vec<(&'static str, Range<usize>)>,
}

/// Reads them from a model's table or a variant's.
pub(super) fn read(table: &mut Table<'_, '_>, reader: &Reader<'_>) -> Tuned {
    let mut tuned = Tuned::default();
    for key in Tuning::KEYS {
        let expected = Tuning::expected(key);
        let Some(text) = table.setting(key, key.starts_with("kv"), expected) else { continue };
        let both = tuned.written.iter().find(|(other, _)| *other == "kv").filter(|_| key.starts_with("kv_"));
        if let Some((_, span)) = both {
            let place = reader.place(&text.span(), "and this says it again");
            let error = ConfigError::new(format!("`kv` and `{key}` are both given"), place);
            reader
                .note(error.and(reader.place(span, "this is for keys and values")).help("keep one of them"));
        } else if let Err(error) = tuned.tuning.set(key, text.get_ref()) {
            let label = match error {
                BadSetting::Kv(error) => error.to_string(),
                _ => format!("this is `{}`", text.get_ref().escape_debug()),
            };
            table.complain(key, expected, &text.span(), &label);
        } else {
            tuned.written.push((key, text.span()));
        }
    }
    tuned
}

/// Notes settings that this backend does not have, or not with this value.
pub(super) fn check_known(tuned: &Tuned, kind: BackendKind, reader: &Reader<'_>) {
    for (key, span) in &tuned.written {
        if let Err(why) = known(key, &tuned.tuning, kind) {
            reader.error(format!("`{key}` can't be set like this for {kind}"), span, why);
        }
    }
}

/// Whether this backend has the setting and takes its value; if not, why.
pub(super) fn known(key: &str, tuning: &Tuning, kind: BackendKind) -> Result<(), String> {
    let backend = backend::of(kind);
    let keys = backend::settings_for(backend, key);
    if keys.is_empty() {
        let has: Vec<&str> = backend.settings().iter().map(|setting| setting.key).collect();
        return Err(match (kind, key) {
            (BackendKind::Command, _) => "Berth doesn't know this program's flags: write its own".to_owned(),
            (BackendKind::Vllm, "kv_k" | "kv_v") => "vLLM keeps keys and values alike: write `kv`".to_owned(),
            _ => format!("{kind} has {}", has.join(", ")),
        });
    }
    let settings = backend.settings().iter().filter(|setting| keys.contains(&setting.key));
    for setting in settings.filter(|setting| setting.key != "cpu_experts") {
        let value = tuning.get(setting.key);
        if let Some(value) =
            value.filter(|value| (setting.read)(&(setting.write)(value)).as_ref() != Some(value))
        {
            return Err(format!("{kind} knows no `{value}`"));
        }
    }
    Ok(())
}

/// Notes every contradiction between them and the command line. What is given by that alone is returned with its
/// origin.
pub(super) fn hold_against(
    tuned: &Tuned,
    kind: BackendKind,
    command: &Command,
    (args, env): (&[String], &BTreeMap<String, String>),
    reader: &Reader<'_>,
) -> Vec<Derived> {
    let backend = backend::of(kind);
    let mut derived = Vec::new();
    for setting in backend.settings() {
        let Some((given, value)) = backend.given(setting.key, args, env) else { continue };
        let declares = |key: &str| backend::settings_for(backend, key).contains(&setting.key);
        match tuned.written.iter().find(|(key, _)| declares(key)) {
            Some((key, span)) => {
                if value != tuned.tuning.get(setting.key) || value.is_none() {
                    let says = format!("`{}` says another", written(&given));
                    let place = reader.place(&span_of(command, &given), says);
                    let message = format!("`{key}` and `{}` contradict each other", given.by);
                    let error = ConfigError::new(message, reader.place(span, "this says one thing"));
                    reader.note(error.and(place).help("remove one of them"));
                }
            }
            None => derived.extend(value.map(|value| Derived {
                key: setting.key.to_owned(),
                value,
                from: origin(command, &given),
            })),
        }
    }
    derived
}

/// Flag and value; a flag without a value alone.
fn written(given: &backend::Given) -> String {
    let switched = ["true", "false"].contains(&given.text.as_str()) && given.index.is_some();
    if switched { given.by.clone() } else { format!("{} {}", given.by, given.text) }
}

/// Warns of what is known to hurt. `threads` is the place where their number is declared, if it is.
pub(super) fn advise(
    kind: BackendKind,
    command: &Command,
    (args, env): (&[String], &BTreeMap<String, String>),
    (tuned, policy): (&Tuned, &Policy),
    reader: &Reader<'_>,
) {
    let backend = backend::of(kind);
    let effective = backend.given_tuning(args, env).or(tuned.tuning);
    for advice in backend.advice(args, env, &effective) {
        let place = reader.place(&span_of(command, &advice.given), advice.why);
        reader.warn(ConfigError::new(advice.what, place).help(advice.instead));
    }
    if let Some((span, what)) = raised(command) {
        let place = reader.place(&span, "measured: 67.4 instead of 69.8 tokens a second");
        reader.warn(
            ConfigError::new(format!("{what} can starve the threads of the CUDA driver"), place)
                .help("run the server itself"),
        );
    }
    if let (Cores::These(cores), Some(threads)) = (&policy.host.cores, effective.threads)
        && cores.len() < threads as usize
    {
        let declared = tuned.written.iter().find(|(key, _)| *key == "threads").map(|(_, span)| span.clone());
        let given = || backend.given("threads", args, env).map(|(given, _)| span_of(command, &given));
        let span = declared.or_else(given).unwrap_or(0..0);
        let label = format!("{threads} on the {} processors of policy {}", cores.len(), policy.name);
        let message = "there are more threads than processors, so they wait for each other";
        reader.warn(
            ConfigError::new(message, reader.place(&span, label)).help(format!("{} are enough", cores.len())),
        );
    }
}

/// A program before the server that raises its priority: where, and what it asks for.
fn raised(command: &Command) -> Option<(Range<usize>, &'static str)> {
    let mut words = std::iter::once(&command.program).chain(&command.args);
    let base = |word: &Spanned<String>| word.get_ref().rsplit('/').next().unwrap_or_default().to_owned();
    let tool = words.find(|word| ["chrt", "nice"].contains(&base(word).as_str()))?;
    // The tool's own options, up to what it runs.
    let options: Vec<&str> =
        words.map(|word| word.get_ref().as_str()).take_while(|word| !word.starts_with('/')).take(4).collect();
    let any = |known: &[&str]| options.iter().any(|option| known.contains(option));
    let what = match base(tool).as_str() {
        "chrt" if !any(&["-o", "--other", "-b", "--batch", "-i", "--idle", "-m", "--max", "-p", "--pid"]) => {
            "real-time scheduling"
        }
        "nice" if options.iter().any(|option| negative(option)) => "a `nice` below 0",
        _ => return None,
    };
    Some((tool.span(), what))
}

/// `-5` after `-n`, `--5`, `-n-5` or `--adjustment=-5`; `nice -5` alone lowers the priority.
fn negative(option: &str) -> bool {
    let number = option.trim_start_matches("--adjustment=").trim_start_matches("-n");
    let number = if option.starts_with("--") && number == option { &option[1..] } else { number };
    number.parse::<i32>().is_ok_and(|number| number < 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_raises_a_priority_is_known_by_its_options() {
        let found = |line: &str| {
            let mut words = line.split(' ').map(|word| Spanned::new(0..0, word.to_owned()));
            let program = words.next().unwrap_or_else(|| Spanned::new(0..0, String::new()));
            let command = Command { key: "cmd", program, args: words.collect(), env: Vec::new() };
            raised(&command).map(|(_, what)| what)
        };
        assert_eq!(found("chrt -f 50 /opt/llama-server"), Some("real-time scheduling"));
        assert_eq!(found("/usr/bin/chrt 50 llama-server"), Some("real-time scheduling"));
        assert_eq!(found("numactl -N 0 chrt --rr 1 llama-server"), Some("real-time scheduling"));
        assert_eq!(found("chrt -b 0 llama-server"), None);
        assert_eq!(found("nice -n -5 llama-server"), Some("a `nice` below 0"));
        assert_eq!(found("nice --adjustment=-5 llama-server"), Some("a `nice` below 0"));
        assert_eq!(found("nice -n 5 llama-server"), None);
        assert_eq!(found("llama-server -c 32768"), None);
    }
}
