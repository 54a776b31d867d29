//! `models.d/NAME.toml`: from what is declared to a whole model, with the origin of each value.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::declared::{self, Command, Declared};
use super::error::{ConfigError, Place};
use super::reader::{Found, Reader, Table, nearest};
use super::{
    BackendKind, DEFAULT_ALIAS, Derived, Health, Memory, Model, Ready, Settings, SourceFile, main_file,
    tuned, variant,
};
use crate::backend;
use crate::name::ModelName;
use crate::policy::Policy;

/// What a file came to: as much as could be made of it.
pub(super) struct Draft {
    /// The model, where nothing is wrong with it alone. Its port is 0 where none was given.
    pub(super) model: Option<Model>,
    pub(super) name: Option<(ModelName, Place)>,
    pub(super) port: Option<(u16, Place)>,
    /// The model of whose file's variants it is one: it has that one's port, since the two never serve at once.
    pub(super) variant_of: Option<ModelName>,
    pub(super) shares_port: bool,
    pub(super) aliases: Vec<(String, Place)>,
    pub(super) retired: bool,
    pub(super) fallback: Option<(String, Place)>,
    pub(super) replaces: Option<(String, Place)>,
}

/// Reads one model's file: the model, and its variants. `node` is what holds where it says nothing.
pub(super) fn read(file: &SourceFile, node: &Settings) -> (Vec<Draft>, Found) {
    let reader = Reader::new(file);
    if file.path.to_string_lossy().contains('\0') {
        reader.error("the file's path holds a NUL character", &(0..0), "");
        return (Vec::new(), reader.finish());
    }
    let Some(table) = reader.parse() else { return (Vec::new(), reader.finish()) };
    if table.get_ref().is_empty() {
        let error = ConfigError::new("the file declares nothing", reader.place(&(0..0), ""));
        reader.note(error.help("one line is enough: `cmd = \"<the command line you run today>\"`"));
        return (Vec::new(), reader.finish());
    }
    let mut root = Table::root(&reader, &table);
    let declared = declared::read(&mut root, &reader, node);
    let variants = variant::read(&mut root, &reader, declared.deadlines);
    root.finish();
    let mut derive = Derive { reader: &reader, node, derived: Vec::new() };
    let (mut draft, model) = derive.draft(declared);
    let base =
        model.map(|model| Model { declared: reader.declared(), derived: derive.derived.clone(), ..model });
    let mut drafts = Vec::new();
    if let Some(base) = &base {
        drafts = variants.iter().filter_map(|variant| derive.variant(variant, base, &mut draft)).collect();
    }
    let found = reader.finish();
    if let Some(mut base) = base.filter(|_| found.errors.is_empty()) {
        for model in drafts.iter_mut().filter_map(|draft| draft.model.as_mut()) {
            model.declared = variant::lines(&base.declared, &base.name, model);
        }
        base.declared.retain(|key, _| !key.starts_with("variants."));
        base.aliases = draft.aliases.iter().map(|(alias, _)| alias.clone()).collect();
        draft.model = Some(base);
    }
    drafts.insert(0, draft);
    (drafts, found)
}

/// Fills in what is not declared, and remembers where it came from.
pub(super) struct Derive<'r, 'a> {
    pub(super) reader: &'r Reader<'a>,
    node: &'r Settings,
    derived: Vec<Derived>,
}

impl Derive<'_, '_> {
    fn record(&mut self, key: &str, value: &(impl ToString + ?Sized), from: impl Into<String>) {
        self.derived.push(Derived { key: key.to_owned(), value: value.to_string(), from: from.into() });
    }

    fn draft(&mut self, declared: Declared) -> (Draft, Option<Model>) {
        let name = self.name(declared.name.as_ref());
        let aliases = self.aliases(&declared.aliases);
        let whole_file = self.reader.place(&(0..0), "");
        let mut draft = Draft {
            model: None,
            name: name.clone(),
            port: None,
            variant_of: None,
            shares_port: declared.shares_port,
            aliases,
            retired: declared.retired,
            fallback: declared
                .fallback
                .as_ref()
                .map(|name| (name.get_ref().clone(), self.reader.place(&name.span(), ""))),
            replaces: declared
                .replaces
                .as_ref()
                .map(|unit| (unit.get_ref().clone(), self.reader.place(&unit.span(), ""))),
        };
        let Some(command) = &declared.command else {
            if let Some(name) = &declared.policy
                && !self.node.policies.contains_key(name.get_ref())
            {
                self.no_policy(name);
            }
            // What is declared can be compared with other files all the same.
            draft.port = declared.port.as_ref().and_then(|port| self.usable_port(port));
            return (draft, None);
        };
        let args: Vec<String> = command.args.iter().map(|arg| arg.get_ref().clone()).collect();
        let env = variables(self.reader, &command.env, &declared.secrets);
        self.program(&command.program, declared.cwd.as_ref());
        self.check_paths(command);
        self.cwd(declared.cwd.as_ref());
        let kind = self.backend(declared.backend.as_ref(), &command.program, &args);
        let backend = backend::of(kind);

        let host = self.given(
            &declared,
            "host",
            declared.host.as_ref(),
            backend.spellings().host.given(&args, &env),
        );
        let host = host.map_or_else(
            || {
                let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
                self.record("host", &local, "default: this machine only");
                local
            },
            Spanned::into_inner,
        );
        let port = self.given(
            &declared,
            "port",
            declared.port.as_ref(),
            backend.spellings().port.given(&args, &env),
        );
        draft.port = port.as_ref().and_then(|port| self.usable_port(port));
        let (file, hub) = self.model_file(&declared, kind, &args, &env);
        let policy = self.policy(declared.policy.as_ref(), declared.memory.gpu.as_ref(), kind, &args);
        let policy = policy.map(|(policy, derived)| {
            self.derived.extend(derived);
            policy
        });
        let ready = self.ready(&declared, kind, &args);
        tuned::check_known(&declared.tuned, kind, self.reader);
        self.derived.extend(tuned::hold_against(&declared.tuned, kind, command, (&args, &env), self.reader));
        if let Some(policy) = &policy {
            tuned::advise(kind, command, (&args, &env), (&declared.tuned, policy), self.reader);
        }
        let model = name.zip(policy).map(|((name, _), policy)| Model {
            name,
            source: whole_file.path,
            backend: kind,
            program: PathBuf::from(command.program.get_ref()),
            args,
            env,
            secrets: declared.secrets,
            cwd: declared.cwd.map(|cwd| PathBuf::from(cwd.into_inner())),
            file,
            hub,
            host,
            port: draft.port.as_ref().map_or(0, |(port, _)| *port),
            shares_port: declared.shares_port,
            exposed: declared.exposed,
            replaces: declared.replaces.map(Spanned::into_inner),
            priority: declared.priority.map_or(policy.priority, Spanned::into_inner),
            policy,
            tuning: declared.tuned.tuning,
            memory: declared.memory.gpu.map_or(Memory::Undeclared, Spanned::into_inner),
            host_memory: declared.memory.host,
            known_as: declared.known_as.map(Spanned::into_inner),
            request: declared.request,
            aliases: declared.aliases.into_iter().map(Spanned::into_inner).collect(),
            retired: declared.retired,
            fallback: declared.fallback.and_then(|name| name.get_ref().parse().ok()),
            guests: declared.guests,
            health: Health { token: declared.health.token.filter(|_| ready.generate), ..declared.health },
            ready,
            deadlines: declared.deadlines,
            declared: BTreeMap::new(),
            derived: Vec::new(),
        });
        (draft, model)
    }

    fn name(&mut self, declared: Option<&Spanned<String>>) -> Option<(ModelName, Place)> {
        let span = declared.map_or(0..0, Spanned::span);
        let text = declared.map_or_else(
            || self.reader.file.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            |name| name.get_ref().clone(),
        );
        if declared.is_none() {
            self.record("name", &text, "the file's name");
        }
        // A name that stands nowhere in the file still has to be shown somewhere.
        let label = if declared.is_none() { "named by its file's name" } else { "" };
        let place = self.reader.place(&span, label);
        let error = match text.parse::<ModelName>() {
            Ok(name) if name.as_str().contains(':') => {
                ConfigError::new(format!("`{name}` can't be a model's own name"), place).help(
                    "what follows the `:` is a variant's name: declare `[variants.…]` in the model's file",
                )
            }
            Ok(name) if name.as_str() != DEFAULT_ALIAS => return Some((name, place)),
            Ok(_) => ConfigError::new("no model can be called `default`", place)
                .help("that name follows the switch: clients who ask for it get whatever serves"),
            Err(error) => ConfigError::new(error.to_string(), place),
        };
        self.reader.note(match declared {
            Some(_) => error,
            None => error.help("the name is the file's; rename the file, or set `name = \"…\"`"),
        });
        None
    }

    pub(super) fn aliases(&self, declared: &[Spanned<String>]) -> Vec<(String, Place)> {
        let mut aliases: Vec<(String, Place)> = Vec::new();
        for alias in declared {
            let (text, place) = (alias.get_ref(), self.reader.place(&alias.span(), ""));
            let wrong = if text == DEFAULT_ALIAS {
                "`default` follows the switch and can't be given away"
            } else if text.is_empty() || text.len() > 100 {
                "an alias has 1 to 100 characters"
            } else if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
                "an alias has no spaces or control characters"
            } else {
                aliases.push((text.clone(), place));
                continue;
            };
            self.reader.error("this alias can't be used", &alias.span(), wrong);
        }
        aliases
    }

    /// A bare name is looked up by berthd; a relative path would depend on where that happens.
    fn program(&self, program: &Spanned<String>, cwd: Option<&Spanned<String>>) {
        let text = program.get_ref();
        if text.is_empty() {
            self.reader.error("`program` is empty", &program.span(), "");
        } else if text.contains('/') && !text.starts_with(['/', '~']) {
            let help = match cwd {
                Some(cwd) => format!("write \"{}/{}\"", cwd.get_ref(), text.trim_start_matches("./")),
                None => "write the whole path, from `/`".to_owned(),
            };
            let place = self
                .reader
                .place(&program.span(), format!("`{text}` starts from some folder, and berthd from another"));
            self.reader.note(ConfigError::new("the program's path must be whole", place).help(help));
        }
    }

    /// `~` and relative folders mean something else in berthd than in the shell in which they were tried.
    pub(super) fn check_paths(&self, command: &Command) {
        let mut texts = vec![&command.program];
        // In `cmd` a `~` that a shell would replace was refused already, and a quoted one is meant as it stands.
        if command.key == "args" {
            texts.extend(&command.args);
        }
        for text in texts {
            if text.get_ref() == "~" || text.get_ref().starts_with("~/") {
                self.tilde(&text.span());
            }
        }
    }

    fn cwd(&self, cwd: Option<&Spanned<String>>) {
        match cwd {
            Some(cwd) if cwd.get_ref() == "~" || cwd.get_ref().starts_with("~/") => self.tilde(&cwd.span()),
            Some(cwd) if !cwd.get_ref().starts_with(['/', '~']) => {
                self.reader.error("`cwd` must be a whole path, from `/`", &cwd.span(), "");
            }
            _ => {}
        }
    }

    fn tilde(&self, span: &Range<usize>) {
        let place = self.reader.place(span, "`~` is another folder for each user, and the unit has its own");
        self.reader.note(
            ConfigError::new("`~` can't be used in a path", place).help("write the whole path, from `/`"),
        );
    }

    fn backend(
        &mut self,
        declared: Option<&Spanned<BackendKind>>,
        program: &Spanned<String>,
        args: &[String],
    ) -> BackendKind {
        if let Some(declared) = declared {
            return *declared.get_ref();
        }
        let kind = backend::kind_of(program.get_ref(), args);
        let base = program.get_ref().rsplit('/').next().unwrap_or_default();
        let from = match kind {
            BackendKind::Command => format!("the program `{base}` is no server that Berth knows"),
            BackendKind::Vllm if base != "vllm" => format!("`{base}` runs vllm"),
            _ => format!("the program's name, `{base}`"),
        };
        self.record("backend", &kind, from);
        kind
    }

    /// A value that a key may declare and the command line may give: one of them, or both alike.
    fn given<T>(
        &mut self,
        declared: &Declared,
        key: &'static str,
        value: Option<&Spanned<T>>,
        given: Option<backend::Given>,
    ) -> Option<Spanned<T>>
    where
        T: std::str::FromStr + PartialEq + Clone + ToString,
    {
        let command = declared.command.as_ref();
        let placeholder = format!("{{{key}}}");
        let Some((given, command)) = given.filter(|given| given.text != placeholder).zip(command) else {
            return value.cloned();
        };
        let span = span_of(command, &given);
        let Ok(parsed) = given.text.parse::<T>() else {
            let error = ConfigError::new(
                format!(
                    "`{}` gives no {}",
                    given.by,
                    if key == "port" { "port number" } else { "IP address" }
                ),
                self.reader.place(&span, format!("this is `{}`", given.text.escape_debug())),
            );
            self.reader.note(if given.text == "localhost" { error.help("write 127.0.0.1") } else { error });
            return None;
        };
        match value {
            Some(value) if *value.get_ref() != parsed => {
                let place = self.reader.place(&value.span(), "this says one thing");
                let error =
                    ConfigError::new(format!("`{key}` and `{}` contradict each other", given.by), place)
                        .and(self.reader.place(&span, format!("`{} {}` says another", given.by, given.text)))
                        .help(format!("remove `{key}`, or make it {}", given.text));
                self.reader.note(error);
                None
            }
            Some(value) => Some(value.clone()),
            None => {
                self.record(key, &given.text, origin(command, &given));
                Some(Spanned::new(span, parsed))
            }
        }
    }

    fn usable_port(&self, port: &Spanned<u16>) -> Option<(u16, Place)> {
        if let Some((span, why)) = main_file::bad_port(port) {
            self.reader.error(format!("port {} can't be used", port.get_ref()), &span, why);
            return None;
        }
        Some((*port.get_ref(), self.reader.place(&port.span(), "")))
    }

    /// The model's file or folder, or its name at Hugging Face.
    fn model_file(
        &mut self,
        declared: &Declared,
        kind: BackendKind,
        args: &[String],
        env: &BTreeMap<String, String>,
    ) -> (Option<PathBuf>, Option<String>) {
        let given = declared.command.as_ref().zip(backend::of(kind).names_model(args, env));
        if let Some(model) = &declared.model {
            if let Some((command, given)) = &given
                && given.text != *model.get_ref()
            {
                let error = ConfigError::new(
                    format!("`model` and `{}` contradict each other", given.by),
                    self.reader.place(&model.span(), "this says one thing"),
                );
                let place = self
                    .reader
                    .place(&span_of(command, given), format!("`{} {}` says another", given.by, given.text));
                self.reader.note(error.and(place).help("remove one of them"));
            }
            return self.path_or_hub(model, kind, None);
        }
        let Some((command, given)) = given else {
            if kind == BackendKind::Vllm
                && let Some(command) = &declared.command
            {
                let place =
                    self.reader.place(&command.program.span(), "vLLM would serve a model of its own choice");
                self.reader.note(
                    ConfigError::new("nothing says which model vLLM serves", place)
                        .help("add `model = \"/path/of/the/model\"`"),
                );
            }
            return (None, None);
        };
        let text = Spanned::new(span_of(command, &given), given.text.clone());
        let (file, hub) = self.path_or_hub(&text, kind, declared.cwd.as_ref());
        let shown =
            file.as_ref().map_or_else(|| given.text.clone(), |file| file.to_string_lossy().into_owned());
        self.record("model", &shown, origin(command, &given));
        (file, hub)
    }

    fn path_or_hub(
        &self,
        text: &Spanned<String>,
        kind: BackendKind,
        cwd: Option<&Spanned<String>>,
    ) -> (Option<PathBuf>, Option<String>) {
        let path = text.get_ref();
        if path.starts_with('/') {
            return (Some(PathBuf::from(path)), None);
        }
        if path.starts_with('~') {
            self.tilde(&text.span());
            return (None, None);
        }
        // An address or ORGANISATION/NAME; llama.cpp is given the latter by another flag than a path.
        let parts: Vec<&str> = path.split('/').collect();
        let hub = kind != BackendKind::Command
            && (path.contains("://")
                || matches!(parts[..], [org, name] if !org.is_empty() && !org.starts_with('.') && !name.is_empty()))
            && !Path::new(path).extension().is_some_and(|kind| kind.eq_ignore_ascii_case("gguf"));
        if hub {
            return (None, Some(path.clone()));
        }
        if let Some(cwd) = cwd {
            return (Some(Path::new(cwd.get_ref()).join(path)), None);
        }
        let place = self
            .reader
            .place(&text.span(), format!("`{path}` starts from some folder, and berthd from another"));
        self.reader.note(
            ConfigError::new("the model's path must be whole", place).help("write it from `/`, or set `cwd`"),
        );
        (None, None)
    }

    /// The policy itself, and where it comes from if not from a key. None where there is none of that name, which is
    /// noted.
    pub(super) fn policy(
        &self,
        declared: Option<&Spanned<String>>,
        memory: Option<&Spanned<Memory>>,
        kind: BackendKind,
        args: &[String],
    ) -> Option<(Policy, Option<Derived>)> {
        if let Some(name) = declared {
            let Some(policy) = self.node.policies.get(name.get_ref()) else {
                self.no_policy(name);
                return None;
            };
            if !policy.uses_gpus()
                && let Some(memory) = memory
            {
                let place = self.reader.place(&memory.span(), "so this would never be used");
                let error = ConfigError::new("a model without a GPU needs no GPU memory", place);
                self.reader
                    .note(error.and(self.reader.place(&name.span(), "no GPU")).help("remove one of them"));
            }
            return Some((policy.clone(), None));
        }
        let (policy, from) = match (memory.map(Spanned::get_ref), kind, backend::parallel(args)) {
            (Some(Memory::PerDevice(each)), ..) if each.len() > 1 => {
                ("split", format!("`memory.gpu` names {} GPUs", each.len()))
            }
            (_, BackendKind::Vllm, Some((gpus, flag))) if gpus > 1 => {
                ("split", format!("`{flag}`: over {gpus} GPUs"))
            }
            _ => ("auto", "default: the fewest GPUs that hold it".to_owned()),
        };
        let derived = Derived { key: "policy".to_owned(), value: policy.to_owned(), from };
        // Those that ship are always there; one that replaces them and is wrong has been noted.
        Some((self.node.policies.get(policy)?.clone(), Some(derived)))
    }

    fn no_policy(&self, name: &Spanned<String>) {
        let all = self.node.policies.keys().map(String::as_str);
        let label = nearest(name.get_ref(), all.clone())
            .map_or(String::new(), |near| format!("did you mean \"{near}\"?"));
        let place = self.reader.place(&name.span(), label);
        let message = format!("there is no policy `{}`", name.get_ref().escape_debug());
        let there = format!("there are {}", all.collect::<Vec<_>>().join(", "));
        self.reader.note(ConfigError::new(message, place).help(there));
    }

    pub(super) fn check_health(&self, health: &Spanned<String>) {
        let text = health.get_ref();
        if !text.starts_with('/') || !text.chars().all(|c| c.is_ascii_graphic() && c != '#') {
            let message = "`ready.health` must be a path of a URL, for example \"/health\"";
            self.reader.error(message, &health.span(), "");
        }
    }

    fn ready(&mut self, declared: &Declared, kind: BackendKind, args: &[String]) -> Ready {
        if kind == BackendKind::Vllm
            && let (Err(given), Some(command)) = (backend::utilization(args, None), &declared.command)
        {
            let message = format!("`{}` must be more than 0 and at most 1", given.by);
            self.reader.error(
                message,
                &span_of(command, &given),
                format!("this is `{}`", given.text.escape_debug()),
            );
        }
        let health = if let Some(health) = &declared.ready {
            self.check_health(health);
            health.get_ref().clone()
        } else {
            let path = backend::of(kind).health(args);
            self.record("ready.health", &path, "default");
            path
        };
        let generate = declared.generate.unwrap_or_else(|| {
            let (generate, from) = backend::of(kind).generates(args);
            self.record("ready.generate", &generate, from);
            generate
        });
        Ready { health, generate }
    }
}

/// The variables, with what is wrong with their names noted.
pub(super) fn variables(
    reader: &Reader<'_>,
    declared: &[(Spanned<String>, Spanned<String>)],
    secrets: &[String],
) -> BTreeMap<String, String> {
    for (name, _) in declared {
        let text = name.get_ref();
        if secrets.contains(text) {
            let message = format!("`{text}` is among `secrets` too");
            reader.error(message, &name.span(), "its value would stand here for all to read");
        }
        let label = if text.is_empty() {
            "it is empty"
        } else if text.contains('=') {
            "it has a `=`"
        } else if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            "it has a space or control character"
        } else {
            continue;
        };
        reader.error("this is no name for a variable", &name.span(), label);
    }
    declared.iter().map(|(name, value)| (name.get_ref().clone(), value.get_ref().clone())).collect()
}

/// Where in the file a setting of the command line stands.
pub(super) fn span_of(command: &Command, given: &backend::Given) -> Range<usize> {
    let by_variable =
        || command.env.iter().find(|(name, _)| *name.get_ref() == given.by).map(|(_, value)| value.span());
    let by_argument = given.index.and_then(|index| command.args.get(index)).map(Spanned::span);
    by_argument.or_else(by_variable).unwrap_or(command.program.span())
}

pub(super) fn origin(command: &Command, given: &backend::Given) -> String {
    let place = if given.index.is_some() || command.key == "cmd" { command.key } else { "env" };
    format!("`{}` in {place}", given.by)
}
