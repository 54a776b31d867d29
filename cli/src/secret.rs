//! `berthctl key` and `berthctl token`: make what a client or a program shows. Only its hash goes into the configuration, so
//! that nobody reads it there.

use std::fs::File;
use std::io::Read as _;

use berth_core::proxy::KeyHash;
use berth_core::report::{Rights, SCHEMA};
use berth_observe::scope::Scope;
use serde::Serialize;

use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;

/// Bytes of chance in a secret: more than anybody can try.
const CHANCE: usize = 24;

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    exit: u8,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rights: Option<Rights>,
    sha256: String,
}

/// Makes a key for a client of the proxy, and says what to do with it.
pub(crate) fn key(name: &str, out: Out) -> Result<Exit, Complaint> {
    let (key, sha256) = secret("key", name)?;
    if out.json {
        let (key, exit) = (Some(key.as_str()), Exit::Done.code());
        Out::document(&Document { schema: SCHEMA, exit, name, key, token: None, rights: None, sha256 });
    } else {
        let (main, sudo) = taken_up();
        Out::say(&format!(
            "{key}\n\nFor the client {name}, as its API key. It is shown this once. In {main}:\n\n\
             [proxy.keys.{name}]\nsha256 = \"{sha256}\"\n# models = [\"default\"]    # where it may not ask for all\n\
             # loads = false           # where it may have no model loaded\n\n\
             Then: {sudo}berthctl reload. With a key declared, nobody is answered without one.\n"
        ));
    }
    Ok(Exit::Done)
}

/// Makes a token for a program that asks the control API over TCP, and says what to do with it.
pub(crate) fn token(name: &str, rights: Rights, out: Out) -> Result<Exit, Complaint> {
    let (token, sha256) = secret("token", name)?;
    if out.json {
        let (token, rights, exit) = (Some(token.as_str()), Some(rights), Exit::Done.code());
        Out::document(&Document { schema: SCHEMA, exit, name, key: None, token, rights, sha256 });
    } else {
        let (main, sudo) = taken_up();
        let rights = rights.as_str();
        Out::say(&format!(
            "{token}\n\nFor {name}, which sends it as `Authorization: Bearer TOKEN` to the control API. It is shown this \
             once.\nIn {main}:\n\n[http.tokens.{name}]\nsha256 = \"{sha256}\"\nrights = \"{rights}\"\n\n\
             Then: {sudo}berthctl reload\n"
        ));
    }
    Ok(Exit::Done)
}

/// The file that the hash goes into, and what is typed before the command that takes it up.
fn taken_up() -> (String, &'static str) {
    let scope = Scope::this();
    (scope.config().join("berth.toml").display().to_string(), scope.sudo())
}

/// A new secret and its hash, for who is called so.
fn secret(what: &str, name: &str) -> Result<(String, String), Complaint> {
    let sound = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(sound) {
        let title = format!("{name:?} can't be the name of a {what}");
        let hint = "use 1 to 64 letters, digits, `-` and `_`".to_owned();
        return Err(Complaint::new(Exit::Usage, "bad_name", title, &[hint]));
    }
    let mut chance = [0_u8; CHANCE];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut chance)).map_err(|error| {
        Complaint::new(Exit::Usage, "no_chance", format!("/dev/urandom can't be read: {error}"), &[])
    })?;
    // As digits: whatever is as hard to guess will do.
    let secret = format!("berth-{}", KeyHash::of(&chance));
    let hash = KeyHash::of(secret.as_bytes()).to_string();
    Ok((secret, hash))
}
