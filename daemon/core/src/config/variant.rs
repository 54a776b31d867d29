//! `[variants.NAME]` in a model's file: the same model with a few keys replaced. And the unnamed variants of `--set`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use toml::Spanned;

use super::declared::{self, Command};
use super::error::ConfigError;
use super::model_file::{Derive, Draft, variables};
use super::reader::{Reader, Table};
use super::tuned::{self, Tuned};
use super::{Deadlines, Memory, Model, Settings, main_file};
use crate::backend;
use crate::bytes::Bytes;
use crate::name::{BadName, ModelName};
use crate::tuning::{BadSetting, Tuning};

/// A variant as it is written.
pub(super) struct Written {
    name: Spanned<String>,
    tuned: Tuned,
    policy: Option<Spanned<String>>,
    env: Vec<(Spanned<String>, Spanned<String>)>,
    args: Option<Spanned<Vec<Spanned<String>>>>,
    aliases: Vec<Spanned<String>>,
    fallback: Option<Spanned<String>>,
    priority: Option<Spanned<i32>>,
    memory: Option<Spanned<Memory>>,
    host_memory: Option<Bytes>,
    health: Option<Spanned<String>>,
    generate: Option<bool>,
    deadlines: Deadlines,
}

/// Reads the variants of one file. `otherwise` are the deadlines where a variant says nothing.
pub(super) fn read(root: &mut Table<'_, '_>, reader: &Reader<'_>, otherwise: Deadlines) -> Vec<Written> {
    let mut variants = Vec::new();
    for (name, mut table) in root.tables("variants") {
        let memory = table.table("memory").map(|table| declared::memory(table, reader)).unwrap_or_default();
        let mut written = Written {
            name,
            tuned: tuned::read(&mut table, reader),
            policy: table.string("policy", "the name of a policy"),
            env: table.string_table("env", "a text, for example \"1\""),
            args: table.strings("args", "an array of texts"),
            aliases: table
                .strings("aliases", "an array of names")
                .map(Spanned::into_inner)
                .unwrap_or_default(),
            fallback: table.string("fallback", "the name of another model"),
            priority: table.whole("priority", -1000..=1000, "a whole number from -1000 to 1000"),
            memory: memory.gpu,
            host_memory: memory.host,
            health: None,
            generate: None,
            deadlines: main_file::deadlines(&mut table, otherwise),
        };
        if let Some(ready) = table.table("ready") {
            (written.health, written.generate) = declared::ready(ready);
        }
        table.finish();
        variants.push(written);
    }
    variants
}

impl Derive<'_, '_> {
    /// What a variant comes to, beside `base`, and what is declared for it: a draft of its own, or, where nothing of
    /// it needs a restart, one more name in the base's.
    pub(super) fn variant(&mut self, written: &Written, base: &Model, draft: &mut Draft) -> Option<Draft> {
        let place = self.reader.place(&written.name.span(), "");
        let name = match base.name.variant(written.name.get_ref()) {
            Ok(name) => name,
            Err(error) => {
                self.reader.note(ConfigError::new(error.to_string(), place));
                return None;
            }
        };
        let aliases = self.aliases(&written.aliases);
        let fallback = written.fallback.as_ref();
        let fallback = fallback.map(|name| (name.get_ref().clone(), self.reader.place(&name.span(), "")));
        let model = self.varied(written, name.clone(), base);
        let same = Model {
            name: base.name.clone(),
            aliases: base.aliases.clone(),
            fallback: base.fallback.clone(),
            replaces: base.replaces.clone(),
            priority: base.priority,
            declared: base.declared.clone(),
            derived: base.derived.clone(),
            ..model.clone()
        };
        if same == *base {
            let useless = written.priority.as_ref().map(|priority| ("priority", priority.span()));
            let useless = useless.or(written.fallback.as_ref().map(|fallback| ("fallback", fallback.span())));
            if let Some((key, span)) = useless {
                let label = format!("it has no effect: {name} is only another name for {}", base.name);
                let message = format!("`{key}` of a variant that changes nothing which needs a restart");
                self.reader.warn(ConfigError::new(message, self.reader.place(&span, label)));
            }
            draft.aliases.push((name.to_string(), place));
            draft.aliases.extend(aliases);
            return None;
        }
        Some(Draft {
            model: Some(model),
            name: Some((name, place)),
            port: None,
            variant_of: Some(base.name.clone()),
            shares_port: base.shares_port,
            aliases,
            retired: base.retired,
            fallback,
            replaces: None,
        })
    }

    fn varied(&mut self, written: &Written, name: ModelName, base: &Model) -> Model {
        let kind = base.backend;
        let mut model = Model { name, aliases: Vec::new(), replaces: None, ..base.clone() };
        tuned::check_known(&written.tuned, kind, self.reader);
        let own: Vec<String> =
            written.args.iter().flat_map(Spanned::get_ref).map(|arg| arg.get_ref().clone()).collect();
        let command = Command {
            key: "args",
            program: written.name.clone(),
            args: written.args.iter().flat_map(|args| args.get_ref().clone()).collect(),
            env: written.env.clone(),
        };
        let env = variables(self.reader, &written.env, &base.secrets);
        let given = tuned::hold_against(&written.tuned, kind, &command, (&own, &env), self.reader);
        // Its own flags and variables win over the base's keys, as its keys do over the base's flags.
        for setting in backend::of(kind).settings().iter().map(|setting| setting.key) {
            if backend::of(kind).given(setting, &own, &env).is_some() {
                model.tuning.clear(setting);
                model.derived.retain(|derived| derived.key != setting);
            }
        }
        for (key, _) in &written.tuned.written {
            if let Some(text) = written.tuned.tuning.get(key) {
                // What is wrong with it was noted.
                _ = replace(&mut model, key, &text);
            }
        }
        model.args.extend(own);
        model.env.extend(env);
        model.derived.extend(given);
        self.check_paths(&command);
        model.host_memory = written.host_memory.or(model.host_memory);
        if let Some(memory) = &written.memory {
            model.memory = memory.get_ref().clone();
        }
        let policy = written.policy.as_ref();
        if policy.is_some() || !base.declared.contains_key("policy") {
            model.derived.retain(|derived| derived.key != "policy");
            let memory = written.memory.clone().or(Some(Spanned::new(0..0, model.memory.clone())));
            // The base's memory says nothing about a variant without a GPU.
            let memory = if policy.is_some() { written.memory.clone() } else { memory };
            if let Some((policy, derived)) = self.policy(policy, memory.as_ref(), kind, &model.args) {
                model.derived.extend(derived);
                model.policy = policy;
            }
        }
        if !model.policy.uses_gpus() {
            if let Some(memory) = written.memory.as_ref().filter(|_| policy.is_none()) {
                let label = format!("so this would never be used: `policy` is {}", model.policy);
                self.reader.error("a model without a GPU needs no GPU memory", &memory.span(), label);
            }
            model.memory = Memory::Undeclared;
        }
        model.aliases = written.aliases.iter().map(|alias| alias.get_ref().clone()).collect();
        if let Some(fallback) = &written.fallback {
            model.fallback = fallback.get_ref().parse().ok();
        }
        let of_policy = (!base.declared.contains_key("priority")).then_some(model.policy.priority);
        model.priority =
            written.priority.as_ref().map(|it| *it.get_ref()).or(of_policy).unwrap_or(base.priority);
        if let Some(health) = &written.health {
            self.check_health(health);
            model.ready.health.clone_from(health.get_ref());
        }
        model.ready.generate = written.generate.unwrap_or(model.ready.generate);
        model.health.token = model.health.token.filter(|_| model.ready.generate);
        model.deadlines = written.deadlines;
        // The base's arguments stand elsewhere; what hurts of them together with a variant's keys is shown at its name.
        let based = model.args.len() - command.args.len();
        let of_base = model.args[..based].iter().map(|arg| Spanned::new(written.name.span(), arg.clone()));
        let command = Command { args: of_base.chain(command.args).collect(), ..command };
        let tuned = Tuned { tuning: model.tuning, written: written.tuned.written.clone() };
        tuned::advise(kind, &command, (&model.args, &model.env), (&tuned, &model.policy), self.reader);
        model
    }
}

/// The lines of a variant's keys over those of its base; `declared` are those of the whole file.
pub(super) fn lines(
    declared: &BTreeMap<String, usize>,
    base: &ModelName,
    variant: &Model,
) -> BTreeMap<String, usize> {
    let mut lines = declared.clone();
    // What it replaces stands there no more.
    lines.retain(|key, _| {
        let derived = variant.derived.iter().any(|derived| derived.key == *key);
        let unused = key == "memory.gpu" && variant.memory == Memory::Undeclared;
        !key.starts_with("variants.") && !derived && !unused
    });
    let own = variant.name.as_str().strip_prefix(base.as_str()).unwrap_or_default().trim_start_matches(':');
    let prefix = format!("variants.{own}.");
    for (key, line) in declared.iter().filter_map(|(key, line)| Some((key.strip_prefix(&prefix)?, line))) {
        match key {
            "kv" => lines.retain(|other, _| !other.starts_with("kv_")),
            "kv_k" | "kv_v" => _ = lines.remove("kv"),
            _ => {}
        }
        lines.insert(key.to_owned(), *line);
    }
    lines
}

/// Sets `key` of a model to the value `text`, over whatever its keys and its command line say.
fn replace(model: &mut Model, key: &str, text: &str) -> Result<(), String> {
    let mut wanted = Tuning::default();
    wanted.set(key, text).map_err(|error| error.to_string())?;
    tuned::known(key, &wanted, model.backend)
        .map_err(|why| format!("`{key}` can't be set to `{text}`: {why}"))?;
    let backend = backend::of(model.backend);
    for setting in backend::settings_for(backend, key) {
        let given = backend.given(setting, &model.args, &model.env);
        let now = given.map_or_else(|| model.tuning.get(setting), |(_, value)| value);
        let Some(value) = wanted.get(setting).filter(|value| now.as_ref() != Some(value)) else { continue };
        backend.forget(setting, &mut model.args, &mut model.env);
        model.derived.retain(|derived| derived.key != setting && derived.key != key);
        model.tuning.set(setting, &value).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Why settings can't be tried.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadSet {
    /// One is none, or has a value that it can't have.
    #[error("{0}")]
    Setting(String),
    /// There is no such policy.
    #[error("there is no policy `{}`; there are {}", .0.escape_debug(), .1.join(", "))]
    Policy(String, Vec<String>),
    /// The model can't be called so.
    #[error(transparent)]
    Name(#[from] BadName),
}

/// An unnamed variant: the declared model `base` with these settings changed. It is `base` itself where they change
/// nothing.
pub fn with_settings(
    settings: &Settings,
    base: &Model,
    set: &BTreeMap<String, String>,
) -> Result<Model, BadSet> {
    let mut model = base.clone();
    for (key, text) in set {
        if key == "policy" {
            let Some(policy) = settings.policies.get(text) else {
                return Err(BadSet::Policy(text.clone(), settings.policies.keys().cloned().collect()));
            };
            model.policy = policy.clone();
        } else if Tuning::KEYS.contains(&key.as_str()) {
            replace(&mut model, key, text).map_err(BadSet::Setting)?;
        } else {
            return Err(BadSet::Setting(format!("{}, policy", BadSetting::Key(key.clone()))));
        }
    }
    if model == *base {
        return Ok(model);
    }
    if !model.policy.uses_gpus() {
        model.memory = Memory::Undeclared;
    }
    model.name = base.name.with_settings(set)?;
    model.aliases = Vec::new();
    model.replaces = None;
    Ok(model)
}

impl Settings {
    /// A model by its name, be it an unnamed variant. None where it, or what it is a variant of, is not declared.
    pub fn model(&self, name: &ModelName) -> Option<Cow<'_, Model>> {
        if let Some(model) = self.models.get(name) {
            return Some(Cow::Borrowed(model));
        }
        let (base, set) = name.settings()?;
        let base = self.models.get(&base)?;
        let model = with_settings(self, base, &set).ok()?;
        if model == *base {
            // What was tried is what is declared by now, and may still serve or be home under this name.
            return Some(Cow::Owned(Model {
                name: name.clone(),
                aliases: Vec::new(),
                replaces: None,
                ..model
            }));
        }
        (model.name == *name).then_some(Cow::Owned(model))
    }

    /// These settings with the unnamed variants among `names`, and no others.
    pub fn with_unnamed<'a>(&self, names: impl IntoIterator<Item = &'a ModelName>) -> Self {
        let mut settings = self.clone();
        settings.models.retain(|name, _| name.settings().is_none());
        let unnamed = names.into_iter().filter(|name| name.settings().is_some());
        let models =
            unnamed.filter_map(|name| self.model(name)).map(|model| (model.name.clone(), model.into_owned()));
        settings.models.extend(models);
        settings
    }
}
