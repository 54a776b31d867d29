//! `berthctl key`: makes a key for a client. Only its hash goes into the configuration, so that nobody reads it there.

use std::fs::File;
use std::io::Read as _;

use berth_core::proxy::KeyHash;
use berth_core::report::SCHEMA;
use serde::Serialize;

use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;

/// Bytes of chance in a key: more than anybody can try.
const CHANCE: usize = 24;

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    exit: u8,
    name: &'a str,
    key: &'a str,
    sha256: String,
}

/// Makes a key and says what to do with it.
pub(crate) fn key(name: &str, out: Out) -> Result<Exit, Complaint> {
    let sound = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(sound) {
        let title = format!("{name:?} can't be the name of a key");
        let hint = "use 1 to 64 letters, digits, `-` and `_`".to_owned();
        return Err(Complaint::new(Exit::Usage, "bad_name", title, &[hint]));
    }
    let mut chance = [0_u8; CHANCE];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut chance)).map_err(|error| {
        Complaint::new(Exit::Usage, "no_chance", format!("/dev/urandom can't be read: {error}"), &[])
    })?;
    // As digits: whatever is as hard to guess will do.
    let key = format!("berth-{}", KeyHash::of(&chance));
    let hash = KeyHash::of(key.as_bytes()).to_string();
    if out.json {
        Out::document(&Document { schema: SCHEMA, exit: Exit::Done.code(), name, key: &key, sha256: hash });
    } else {
        Out::say(&format!(
            "{key}\n\nFor the client {name}, as its API key. It is shown this once. In /etc/berth/berth.toml:\n\n\
             [proxy.keys.{name}]\nsha256 = \"{hash}\"\n# models = [\"default\"]    # where it may not ask for all\n\
             # loads = false           # where it may have no model loaded\n\n\
             Then: sudo systemctl restart berthd. With a key declared, nobody is answered without one.\n"
        ));
    }
    Ok(Exit::Done)
}
