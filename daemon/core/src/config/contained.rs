//! A command that runs its server in a container: taken apart, so that the server's own flags are read as ever.

use std::path::PathBuf;

use toml::Spanned;

use super::BackendKind;
use super::declared::{Command, Declared};
use super::error::ConfigError;
use super::model_file::{Derive, span_of};
use super::reader::Reader;
use crate::backend::{self, Given};
use crate::container::{Container, elsewhere};

/// Takes the container off the declared command. What can't be run so is noted, and then there is no command.
pub(super) fn take_off(declared: Declared, reader: &Reader<'_>) -> Declared {
    let Some(command) = &declared.command else { return declared };
    let args: Vec<String> = command.args.iter().map(|arg| arg.get_ref().clone()).collect();
    match Container::read(command.program.get_ref(), &args) {
        None => declared,
        Some(Err(unfit)) => {
            let span = command.args.get(unfit.at).map_or(command.program.span(), Spanned::span);
            let message = format!("`{}` can't be run as it is", command.key);
            reader.note(ConfigError::new(message, reader.place(&span, unfit.why)).help(unfit.instead));
            Declared { command: None, ..declared }
        }
        Some(Ok((mut container, before))) => {
            for (name, value) in &command.env {
                container.gpus_by_env(name.get_ref(), value.get_ref());
                if let Some((why, instead)) = elsewhere(container.engine, name.get_ref(), value.get_ref()) {
                    let message = format!("`{}` can't be run as it is", command.key);
                    reader.note(ConfigError::new(message, reader.place(&name.span(), why)).help(instead));
                    return Declared { command: None, ..declared };
                }
            }
            let at = |text: &String| Spanned::new(command.program.span(), text.clone());
            // Those of the file win, as they do in the container.
            let given = container.env.iter().map(|(name, value)| (at(name), at(value)));
            let command = Command {
                key: command.key,
                program: command.program.clone(),
                args: command.args[before..].to_vec(),
                env: given.chain(command.env.iter().cloned()).collect(),
            };
            Declared { command: Some(command), container: Some(container), ..declared }
        }
    }
}

impl Derive<'_, '_> {
    /// What the container's published port says of the address; what is wrong with it is noted.
    pub(super) fn published(
        &self,
        container: &mut Container,
        declared: &Declared,
        kind: BackendKind,
        (host, port): (Option<Given>, Option<Given>),
    ) -> Option<(Given, Given)> {
        let command = declared.command.as_ref()?;
        let told = port.as_ref().and_then(|port| port.text.parse().ok());
        let wanted = declared.port.as_ref().map(|port| *port.get_ref());
        let wrong = |span, why: String, help: &str| {
            let place = self.reader.place(&span, why);
            self.reader.note(ConfigError::new("the server could not be reached", place).help(help));
        };
        if let Err(why) = container.settle(wanted, told.or(backend::usual_port(kind))) {
            let inside = told.or(backend::usual_port(kind)).unwrap_or(8000);
            let help = format!(
                "publish it, for this machine alone: `-p 127.0.0.1:{{port}}:{inside}`; or declare which with `port`"
            );
            wrong(command.program.span(), why, &help);
            return None;
        }
        let published = container.port.as_ref()?;
        let inside = published.inside;
        if let (Some(given), Some(told)) = (&port, told.filter(|told| *told != inside)) {
            let why = format!("it listens on {told}, and the published port leads to {inside}");
            wrong(span_of(command, given), why, "make them the same");
        }
        if let Some(given) = host.filter(|host| host.text.starts_with("127.") || host.text == "localhost") {
            let why = format!("inside the container {} is the container's own", given.text);
            wrong(span_of(command, &given), why, "leave it out, or write 0.0.0.0");
        }
        let by = |text: &str| Given { text: text.to_owned(), by: "-p".to_owned(), index: None };
        Some((by(&published.host.to_string()), by(&published.port)))
    }

    /// Makes sure that the model's file is in the container.
    pub(super) fn check_mounted(&self, declared: &Declared, file: Option<&PathBuf>) {
        let (Some(container), Some(file), Some(written)) = (&declared.container, file, &declared.model)
        else {
            return;
        };
        if container.inside(file).is_none() {
            let folder = file.parent().unwrap_or(file).display().to_string();
            let place = self
                .reader
                .place(&written.span(), "no folder of this machine that is mounted there holds it");
            let error = ConfigError::new("the model's file is not in the container", place);
            self.reader.note(error.help(format!("mount it: `-v {folder}:{folder}:ro`")));
        }
    }

    /// Which server runs in the container, and how that is known.
    pub(super) fn kind_inside(&mut self, container: &Container, args: &[String]) -> BackendKind {
        let kind = container.kind(args);
        let by_program = |program: &String| backend::kind_of(program, args) == kind;
        let from = match (&container.entrypoint, kind) {
            (_, BackendKind::Command) => {
                format!("nothing says which server the image {} runs", container.image)
            }
            (Some(program), _) if by_program(program) => format!("`--entrypoint {program}`"),
            _ => format!("the image, {}", container.image),
        };
        self.record("backend", &kind, from);
        kind
    }
}
