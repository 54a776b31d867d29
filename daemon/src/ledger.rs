//! The ledger: what Berth knows of itself, on disk, so that berthd may die at any instant.
//!
//! A text file: a line with the version, then a line for each write, `CRC32 JSON`, the whole state each time.
//! The last whole line is the truth. A write is done when file (and, for a new file, folder) are synced. What can be
//! believed of a file is [`read`]'s to say; one that is damaged is left as it is until somebody has it repaired.

#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use berth_core::report::Refusal;
use berth_core::state::State;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::fault;
use crate::scope::Scope;

pub use berth_observe::ledger::Damage;
use berth_observe::ledger::{self as written, NAME, Read, VERSION};

/// Beyond this size the file is written anew with the last state alone.
const COMPACT_AT: u64 = 1 << 20;

/// An open ledger.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    body: Body,
    /// Held for as long as the ledger is open: two writers would not see each other's lines.
    _lock: Flock<File>,
}

#[derive(Debug)]
enum Body {
    Sound { file: File, size: u64 },
    Damaged(Damage),
}

/// Why the ledger can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file system says no.
    #[error("ledger {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another berthd has it open.
    #[error("ledger {path} belongs to another berthd that runs; `systemctl status berthd` shows it")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// What it says can't be believed.
    #[error("ledger {path}: {damage}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
    },
}

impl LedgerError {
    /// What those are told who want a change, as long as nothing can be recorded.
    pub fn refusal(&self) -> Refusal {
        let repair = "berthctl repair".to_owned();
        let (code, text, hints) = match self {
            Self::Damaged { damage, .. } => {
                let text = format!("{self}. So nothing is started or stopped; models that run go on");
                let hints = match damage {
                    Damage::Line { .. } => vec![repair],
                    Damage::Newer { .. } => vec![
                        "install the newer version of Berth again".to_owned(),
                        format!("{repair} (sets it aside and begins anew from what runs)"),
                    ],
                };
                ("ledger_damaged", text, hints)
            }
            Self::Io { .. } | Self::Busy { .. } => (
                "ledger",
                format!("what Berth does can't be recorded, so no swap is begun: {self}"),
                vec![format!("make room on the disk of {}", Scope::this().state().display())],
            ),
        };
        Refusal { code: code.to_owned(), text, hints }
    }
}

impl Ledger {
    /// Opens or makes the ledger in `dir`, and reads the last state. The note says what was done to it: a torn last
    /// line (a write that a power cut interrupted, so never reported as done) cut off, an older version written anew.
    /// One that is damaged is not touched: the state is empty then, and nothing can be recorded until it is replaced.
    pub fn open(dir: &Path) -> Result<(Self, State, Option<String>), LedgerError> {
        let path = dir.join("ledger");
        let io = |source| LedgerError::Io { path: path.clone(), source };
        let lock = File::create(dir.join("ledger.lock")).map_err(io)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => LedgerError::Busy { path: path.clone() },
            errno => io(errno.into()),
        })?;
        let bytes = contents(&path).map_err(io)?;
        let new = Read { state: State::default(), version: VERSION, torn: 0 };
        match bytes.map_or(Ok(new), |bytes| written::read(&bytes)) {
            Ok(Read { state, version, torn }) => {
                // Written anew at each start: this drops a torn tail, migrates and compacts in one.
                let (file, size) = rewrite(&path, &state).map_err(io)?;
                let note = note(&path, version, torn);
                Ok((Self { path, body: Body::Sound { file, size }, _lock: lock }, state, note))
            }
            Err(damage) => {
                Ok((Self { path, body: Body::Damaged(damage), _lock: lock }, State::default(), None))
            }
        }
    }

    /// What is wrong with it; None while it is sound.
    pub fn damage(&self) -> Option<LedgerError> {
        let Body::Damaged(damage) = &self.body else { return None };
        Some(LedgerError::Damaged { path: self.path.clone(), damage: damage.clone() })
    }

    /// Writes the state and syncs it. After an error nothing of it counts, and the next write starts a new file.
    pub fn record(&mut self, state: &State) -> Result<(), LedgerError> {
        let Body::Sound { file, size } = &mut self.body else { return self.damage().map_or(Ok(()), Err) };
        let result = if *size > COMPACT_AT {
            rewrite(&self.path, state).map(|anew| (*file, *size) = anew)
        } else {
            let line = line(state);
            file.write_all(line.as_bytes()).and_then(|()| fault::sync(|| file.sync_data())).map(|()| {
                *size += line.len() as u64;
            })
        };
        result.map_err(|source| {
            *size = u64::MAX;
            LedgerError::Io { path: self.path.clone(), source }
        })
    }

    /// The newest state that the file, damaged as it is, still tells, and its line.
    pub fn salvage(&self) -> Result<Option<(usize, State)>, LedgerError> {
        let bytes = contents(&self.path);
        let bytes = bytes.map_err(|source| LedgerError::Io { path: self.path.clone(), source })?;
        Ok(bytes.and_then(|bytes| written::salvage(&bytes)))
    }

    /// Begins a new file with `state`, after a copy of the old one is safe beside it; gives the copy's path, where
    /// there was a file. `at`: seconds since 1970.
    pub fn replace(&mut self, state: &State, at: u64) -> Result<Option<PathBuf>, LedgerError> {
        let io = |source| LedgerError::Io { path: self.path.clone(), source };
        let aside = set_aside(&self.path, at).map_err(io)?;
        let (file, size) = rewrite(&self.path, state).map_err(io)?;
        self.body = Body::Sound { file, size };
        Ok(aside)
    }
}

/// The whole file; None where there is none.
fn contents(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What was done to a ledger when it was opened, in words.
fn note(path: &Path, version: u32, torn: usize) -> Option<String> {
    let cut = (torn > 0).then(|| format!("cut off {torn} bytes of a write that was interrupted"));
    let anew = (version < VERSION).then(|| format!("was of version {version}, written anew as {VERSION}"));
    let done: Vec<String> = cut.into_iter().chain(anew).collect();
    (!done.is_empty()).then(|| format!("ledger {}: {}", path.display(), done.join("; ")))
}

fn line(state: &State) -> String {
    let json =
        serde_json::to_string(state).unwrap_or_else(|error| unreachable!("a state is always JSON: {error}"));
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}

fn rewrite(path: &Path, state: &State) -> io::Result<(File, u64)> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    let text = format!("{NAME}{VERSION}\n{}", line(state));
    file.write_all(text.as_bytes())?;
    fault::sync(|| file.sync_all())?;
    fs::rename(&new, path)?;
    if let Some(dir) = path.parent() {
        let dir = File::open(dir)?;
        fault::sync(|| dir.sync_all())?;
    }
    let file = OpenOptions::new().append(true).open(path)?;
    Ok((file, text.len() as u64))
}

/// Copies the file to `ledger.damaged-AT`, or the next such name that is free, and syncs the copy. A copy, so that at
/// no instant there is no ledger, which would read as a new machine.
fn set_aside(path: &Path, at: u64) -> io::Result<Option<PathBuf>> {
    let Some(bytes) = contents(path)? else { return Ok(None) };
    let mut at = at;
    let (aside, mut file) = loop {
        let aside = path.with_extension(format!("damaged-{at}"));
        match File::create_new(&aside) {
            Ok(file) => break (aside, file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => at += 1,
            Err(error) => return Err(error),
        }
    };
    let written = file.write_all(&bytes).and_then(|()| fault::sync(|| file.sync_all()));
    if let Err(error) = written {
        // Half a copy helps nobody, and the disk may be full.
        _ = fs::remove_file(&aside);
        return Err(error);
    }
    Ok(Some(aside))
}
