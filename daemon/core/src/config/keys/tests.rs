//! What is said of the keys against what those who read them say.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::*;
use crate::config::{Settings, Sources, load};

#[test]
fn every_key_is_told_and_no_other() {
    for kind in FileKind::ALL {
        let asked = asked(kind);
        let of_values = asked.iter().filter(|(_, may)| matches!(may, May::Value(_)));
        let silent: Vec<_> =
            of_values.map(|(key, _)| key).filter(|key| meaning(kind, key).is_none()).collect();
        assert!(silent.is_empty(), "{kind:?}: keys/said.rs says nothing of {silent:?}");
        let told: Vec<_> = said::said(kind).iter().map(|said| said.key).collect();
        let unknown: Vec<_> = told.iter().filter(|key| !asked.contains_key(**key)).collect();
        assert!(unknown.is_empty(), "{kind:?}: keys/said.rs tells of {unknown:?}, which nobody reads");
        assert!(told.iter().enumerate().all(|(i, key)| !told[..i].contains(key)), "{kind:?}: {told:?}");
    }
}

/// The settings that come of one file of this kind, without the lines on which keys stand.
fn settings(kind: FileKind, text: &str) -> Settings {
    let file = |path: &str, text: &str| SourceFile { path: path.into(), text: text.to_owned() };
    let mut sources = Sources {
        models: vec![file("models.d/a.toml", "cmd = \"llama-server -m /a.gguf\"\npolicy = \"mine\"\n")],
        policies: vec![file("policies.d/mine.toml", "evict = \"any\"\n")],
        main: Some(file("berth.toml", "node = \"tower\"\n")),
    };
    match kind {
        FileKind::Main => sources.main = Some(file("berth.toml", text)),
        FileKind::Model => sources.models[0].text.push_str(text),
        FileKind::Policy => sources.policies[0].text = text.to_owned(),
    }
    let mut settings = load(&sources, "tower").unwrap_or_else(|errors| panic!("{text}\n{}", errors[0]));
    settings.declared.clear();
    settings.models.values_mut().for_each(|model| model.declared.clear());
    settings
}

/// A file that says of every key what is said to hold without it changes nothing.
#[test]
fn what_is_said_to_be_the_default_is_the_default() {
    let mut tried = 0;
    for kind in FileKind::ALL {
        let mut tables: BTreeMap<String, String> = BTreeMap::new();
        for (key, may) in asked(kind) {
            let May::Value(value) = may else { continue };
            if let Some(default) = value.get("default").filter(|_| !key.contains('*')) {
                let (table, name) = key.rsplit_once('.').unwrap_or(("", &key));
                _ = writeln!(tables.entry(table.to_owned()).or_default(), "{name} = {default}");
                tried += 1;
            }
        }
        let with_name = |(table, keys): (&String, &String)| {
            if table.is_empty() { keys.clone() } else { format!("[{table}]\n{keys}") }
        };
        let text: String = tables.iter().map(with_name).collect();
        assert_eq!(settings(kind, &text), settings(kind, "# nothing\n"), "{kind:?}:\n{text}");
    }
    assert!(tried > 50, "only {tried} defaults are known");
}

#[test]
fn values_are_told_in_words() {
    let value = |kind, table: &str, key: &str| {
        let section = reference(kind).into_iter().find(|section| section.table == table).unwrap();
        let key = section.keys.into_iter().find(|other| other.name == key).unwrap();
        (key.value, key.otherwise)
    };
    let pair = |value: &str, otherwise: &str| (value.to_owned(), otherwise.to_owned());
    assert_eq!(value(FileKind::Main, "gpu", "headroom"), pair("a size", "`\"256 MiB\"`"));
    assert_eq!(
        value(FileKind::Main, "", "on_demand"),
        pair("`\"beside\"`, `\"evict\"`, `\"never\"`", "`\"beside\"`")
    );
    assert_eq!(value(FileKind::Main, "proxy.keys.NAME", "loads"), pair("`true`, `false`", "`true`"));
    assert_eq!(
        value(FileKind::Model, "", "env"),
        pair("a table; each value a text, for example `\"1\"`", "none")
    );
    assert_eq!(
        value(FileKind::Model, "health", "failures"),
        pair("a number from 1 to 1000", "as berth.toml says")
    );
    assert_eq!(value(FileKind::Policy, "", "share"), pair("`true`, `false`", "`true`"));
}

#[test]
fn examples_are_shown_where_there_is_no_default() {
    let addresses = "addresses with ports, for example [\"127.0.0.1:8010\", \"[::1]:8010\"]";
    assert_eq!(without_example(addresses, true), "addresses with ports");
    assert_eq!(
        coded(&without_example(addresses, false)),
        "addresses with ports, for example `[\"127.0.0.1:8010\", \"[::1]:8010\"]`"
    );
    assert_eq!(
        without_example("a time, for example \"10 s\" or \"5 min\", or \"off\"", true),
        "a time, or \"off\""
    );
}

#[test]
fn links_are_left_out() {
    assert_eq!(
        without_links("see [on demand](#on-demand) and `[proxy] cors`"),
        "see on demand and `[proxy] cors`"
    );
}

#[test]
fn variants_name_their_keys() {
    let sections = reference(FileKind::Model);
    let variants = sections.iter().find(|section| section.table == "variants.NAME").unwrap();
    assert!(variants.keys.is_empty() && variants.meaning.contains("`ctx`, "), "{}", variants.meaning);
    assert!(variants.meaning.contains("`[memory] gpu`") && !variants.meaning.contains("`port`"));
    let ctx = sections[0].keys.iter().find(|key| key.name == "ctx").unwrap();
    assert!(ctx.meaning.ends_with("llama.cpp: `-c`; vLLM: `--max-model-len`"), "{}", ctx.meaning);
}
