//! `policies.d/NAME.toml`, and the policies that ship with Berth: where models may be placed.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use toml::Spanned;

use super::SourceFile;
use super::error::{ConfigError, Warning};
use super::reader::{Reader, Table};
use crate::bytes::Bytes;
use crate::policy::{Concession, Cores, Devices, Evicts, Fill, HostRules, Policy, Spread};

/// Those that ship, by name.
const SHIPPED: [(&str, &str); 4] = [
    ("auto", include_str!("../../../../policies/auto.toml")),
    ("cpu", include_str!("../../../../policies/cpu.toml")),
    ("exclusive", include_str!("../../../../policies/exclusive.toml")),
    ("split", include_str!("../../../../policies/split.toml")),
];

/// Every policy by its name: those that ship, and over them those of `files`.
pub(super) fn read_all(files: &[SourceFile]) -> (BTreeMap<String, Policy>, Vec<ConfigError>, Vec<Warning>) {
    let (mut policies, mut errors, mut warnings) = (BTreeMap::new(), Vec::new(), Vec::new());
    let shipped = SHIPPED.map(|(name, text)| {
        let path = PathBuf::from(format!("policies/{name}.toml"));
        (None, SourceFile { path, text: text.to_owned() })
    });
    let mut own: Vec<_> = files.iter().map(|file| (Some(file.path.clone()), file.clone())).collect();
    own.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (source, file) in shipped.into_iter().chain(own) {
        let reader = Reader::new(&file);
        if let Some(policy) = name(&reader).and_then(|name| read(&reader, name, source)) {
            policies.insert(policy.name.clone(), policy);
        }
        let found = reader.finish();
        errors.extend(found.errors);
        warnings.extend(found.warnings);
    }
    (policies, errors, warnings)
}

/// One file's policy. With errors noted it is no more than a name that models may use.
pub(super) fn read(reader: &Reader<'_>, name: String, source: Option<PathBuf>) -> Option<Policy> {
    let table = reader.parse()?;
    let mut root = Table::root(reader, &table);
    let devices = devices(&mut root, reader);
    let spread = parsed_word(&mut root, "gpus", "\"fewest\", \"all\", \"one\" or a number of GPUs");
    root.by_default("gpus", FEWEST);
    let fill = root.choice_or("fill", &[("even", Fill::Even), ("in order", Fill::InOrder)], Fill::Even);
    let headroom = root.parsed::<Bytes>("headroom", "a size, for example \"256 MiB\"");
    let share = root.boolean_or("share", true);
    let priority = root.whole_or("priority", -1000..=1000, "a whole number from -1000 to 1000", 0);
    let evicts = [("any", Evicts::Any), ("lower", Evicts::Lower), ("none", Evicts::None)];
    let evicts = root.choice_or("evict", &evicts, Evicts::Any);
    let ladder = ladder(&mut root, reader);
    let host = root.table("host").map(|table| host(table, reader)).unwrap_or_default();
    let policy = Policy {
        name,
        source,
        devices,
        spread: spread.map_or(Spread::Fewest, |spread: Spanned<Gpus>| spread.into_inner().0),
        fill,
        headroom: headroom.map(Spanned::into_inner),
        shares: share,
        priority,
        evicts,
        ladder: ladder.iter().map(|rung| *rung.get_ref()).collect(),
        host,
    };
    if !policy.uses_gpus() {
        no_gpu(&mut root, reader, &ladder);
    }
    root.finish();
    Some(policy)
}

fn name(reader: &Reader<'_>) -> Option<String> {
    let name = reader.file.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain) {
        return Some(name);
    }
    let message = format!("`{}` is not a name for a policy", name.escape_debug());
    let place = reader.place(&(0..0), "named by its file's name");
    reader.note(ConfigError::new(message, place).help("use letters, digits, `.`, `_` and `-`"));
    None
}

fn devices(root: &mut Table<'_, '_>, reader: &Reader<'_>) -> Vec<Devices> {
    const EXPECTED: &str =
        "\"all\", \"host\", an index, a UUID, a name pattern (\"RTX 5060*\"), or an array of GPUs";
    let words = root.words("devices", EXPECTED);
    root.by_default("devices", Devices::All.to_string());
    let Some(words) = words else { return vec![Devices::All] };
    let message = format!("`devices` must be {EXPECTED}");
    let devices = each::<Devices>(words.get_ref(), reader, &message);
    if words.get_ref().is_empty() {
        reader.error(message, &words.span(), "this names no GPU; for a model without one write \"host\"");
    } else if devices.len() > 1
        && let Some(word) =
            words.get_ref().iter().find(|word| ["host", "all"].contains(&word.get_ref().as_str()))
    {
        let text = format!("\"{}\" stands alone, not beside other devices", word.get_ref());
        reader.error("`devices` contradicts itself", &word.span(), text);
    }
    devices.into_iter().map(Spanned::into_inner).collect()
}

/// As few as hold it: what holds where nothing is said.
const FEWEST: &str = "fewest";

/// Over how many GPUs, as it is written.
struct Gpus(Spread);

impl FromStr for Gpus {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(match text {
            FEWEST => Spread::Fewest,
            "all" => Spread::All,
            "one" => Spread::Exactly(1),
            number => match number.parse() {
                Ok(0) => return Err("for a model without a GPU write `devices = \"host\"`"),
                Ok(number) => Spread::Exactly(number),
                Err(_) => return Err(""),
            },
        }))
    }
}

fn ladder(root: &mut Table<'_, '_>, reader: &Reader<'_>) -> Vec<Spanned<Concession>> {
    const EXPECTED: &str =
        "an array of what is given up, for example [\"experts\", \"kv q8_0\", \"ctx 16384\"]";
    let Some(texts) = root.strings("ladder", EXPECTED) else { return Vec::new() };
    let ladder = each::<Concession>(texts.get_ref(), reader, &format!("`ladder` must be {EXPECTED}"));
    for (at, rung) in ladder.iter().enumerate() {
        let lower = |earlier: &Concession| match (earlier, rung.get_ref()) {
            (Concession::Ctx(before), Concession::Ctx(now)) => now >= before,
            (Concession::Kv(before), Concession::Kv(now)) => now.bytes_of_32() >= before.bytes_of_32(),
            (before, now) => before == now,
        };
        if let Some(earlier) = ladder[..at].iter().find(|earlier| lower(earlier.get_ref())) {
            let place = reader.place(&rung.span(), "this gives up nothing more");
            let error = ConfigError::new("a rung of `ladder` takes nothing less than one before it", place);
            reader.note(error.and(reader.place(&earlier.span(), "this was given up before")));
        }
    }
    ladder
}

/// Notes what a policy without GPUs can't mean.
fn no_gpu(root: &mut Table<'_, '_>, reader: &Reader<'_>, ladder: &[Spanned<Concession>]) {
    const HOST: &str = "`devices` is \"host\", so there is no GPU";
    for key in ["gpus", "fill", "headroom", "share"] {
        if let Some(span) = root.span(key) {
            reader.error(format!("`{key}` is about GPUs"), &span, HOST);
        }
    }
    for rung in ladder {
        if matches!(rung.get_ref(), Concession::Experts | Concession::Layers) {
            reader.error(format!("`{}` leaves a GPU for the host", rung.get_ref()), &rung.span(), HOST);
        }
    }
}

fn host(mut table: Table<'_, '_>, reader: &Reader<'_>) -> HostRules {
    const CORES: &str =
        "\"all\", \"physical\", \"performance\", \"efficiency\", a list (\"0,2,4-9\") or a mask (\"0x3F5\")";
    let otherwise = HostRules::default();
    let cores = table.parsed::<Cores>("cores", CORES);
    table.by_default("cores", otherwise.cores.to_string());
    let threads = table.whole("threads", 1..=4096_u32, "a number from 1 to 4096");
    let lock = table.boolean_or("lock", otherwise.lock);
    let nice = table.whole("nice", -20..=19, "a number from -20 to 19");
    table.by_default("nice", otherwise.nice);
    let memory = table.parsed::<Bytes>("memory", "a size, for example \"24 GiB\"");
    let headroom = table.parsed_or("headroom", "a size, for example \"2 GiB\"", otherwise.headroom);
    table.finish();
    if let Some(nice) = nice.as_ref().filter(|nice| *nice.get_ref() < 0) {
        let place = reader.place(&nice.span(), "measured: 67.4 instead of 69.8 tokens a second");
        reader.warn(
            ConfigError::new("a `nice` below 0 can starve the threads of the CUDA driver", place)
                .help("leave it at 0"),
        );
    }
    if let (Some(Cores::These(these)), Some(threads)) = (cores.as_ref().map(Spanned::get_ref), &threads)
        && these.len() < *threads.get_ref() as usize
    {
        let label = format!("{} on {} processors", threads.get_ref(), these.len());
        let place = reader.place(&threads.span(), label);
        reader.warn(
            ConfigError::new("there are more threads than processors, so they wait for each other", place)
                .help(format!("set `threads` to {} or leave it out", these.len())),
        );
    }
    if let Some(memory) = memory.as_ref().filter(|memory| *memory.get_ref() == Bytes::ZERO) {
        reader.error("`host.memory` must be more than 0", &memory.span(), "nothing runs in no memory");
    }
    HostRules {
        cores: cores.map_or(otherwise.cores, Spanned::into_inner),
        threads: threads.map(Spanned::into_inner),
        lock,
        nice: nice.map_or(otherwise.nice, Spanned::into_inner),
        memory: memory.map(Spanned::into_inner),
        headroom,
    }
}

/// Each text's value. What can't be read is noted and left out.
fn each<T: FromStr<Err: Display>>(
    texts: &[Spanned<String>],
    reader: &Reader<'_>,
    message: &str,
) -> Vec<Spanned<T>> {
    let read = |text: &Spanned<String>| match text.get_ref().parse() {
        Ok(value) => Some(Spanned::new(text.span(), value)),
        Err(error) => {
            let error: T::Err = error;
            reader.error(message, &text.span(), error.to_string());
            None
        }
    };
    texts.iter().filter_map(read).collect()
}

/// A value written as text or as a number.
fn parsed_word<T: FromStr<Err: Display>>(
    root: &mut Table<'_, '_>,
    key: &'static str,
    expected: &str,
) -> Option<Spanned<T>> {
    let word = root.word(key, expected)?;
    let value = word.get_ref().parse().map_err(|error: T::Err| {
        root.complain(key, expected, &word.span(), &error.to_string());
    });
    value.ok().map(|value| Spanned::new(word.span(), value))
}
