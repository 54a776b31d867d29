//! The ledger: what Berth knows of itself, on disk, so that berthd may die at any instant.
//!
//! A text file: a line with the version, then a line for each write, `CRC32 JSON`, the whole state each time.
//! The last whole line is the truth. A write is done when file (and, for a new file, folder) are synced.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use berth_core::state::State;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::fault;

const HEADER: &str = "berth-ledger 1\n";
/// Beyond this size the file is written anew with the last state alone.
const COMPACT_AT: u64 = 1 << 20;

/// An open ledger.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    size: u64,
    /// Held for as long as the ledger is open: two writers would not see each other's lines.
    _lock: Flock<File>,
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
    /// Written by a version of Berth that this one does not know.
    #[error(
        "ledger {path} begins with `{header}`; this version of berthd reads `berth-ledger 1`: install the newer version again"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its first line.
        header: String,
    },
    /// A line is damaged that no power cut can have torn.
    #[error(
        "ledger {path}: line {line} is damaged ({why}), so nothing is decided on it; models that run go on. \
         Move it away and start berthd: it takes over what runs, and asks for the rest"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

impl Ledger {
    /// Opens or makes the ledger in `dir`, and reads the last state. A torn last line (a write that a power cut
    /// interrupted, so never reported as done) is cut off; the note says so.
    pub fn open(dir: &Path) -> Result<(Self, State, Option<String>), LedgerError> {
        let path = dir.join("ledger");
        let io = |source| LedgerError::Io { path: path.clone(), source };
        let lock = File::create(dir.join("ledger.lock")).map_err(io)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => LedgerError::Busy { path: path.clone() },
            errno => io(errno.into()),
        })?;
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(mut file) => {
                file.read_to_end(&mut bytes).map_err(io)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let (state, good) = read(&path, &bytes)?;
        let torn = bytes.len() - good;
        let note = (torn > 0).then(|| {
            format!("ledger {}: cut off {torn} bytes of a write that was interrupted", path.display())
        });
        // Written anew at each start: this drops a torn tail and compacts in one.
        let (file, size) = rewrite(&path, &state).map_err(io)?;
        Ok((Self { path, file, size, _lock: lock }, state, note))
    }

    /// Writes the state and syncs it. After an error nothing of it counts, and the next write starts a new file.
    pub fn record(&mut self, state: &State) -> Result<(), LedgerError> {
        let result = if self.size > COMPACT_AT {
            rewrite(&self.path, state).map(|(file, size)| (self.file, self.size) = (file, size))
        } else {
            let line = line(state);
            self.file.write_all(line.as_bytes()).and_then(|()| fault::sync(|| self.file.sync_data())).map(
                |()| {
                    self.size += line.len() as u64;
                },
            )
        };
        result.map_err(|source| {
            self.size = u64::MAX;
            LedgerError::Io { path: self.path.clone(), source }
        })
    }
}

/// The last whole state, and how many bytes were good.
fn read(path: &Path, bytes: &[u8]) -> Result<(State, usize), LedgerError> {
    if bytes.is_empty() {
        return Ok((State::default(), 0));
    }
    if !bytes.starts_with(HEADER.as_bytes()) {
        let first = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
        let header = String::from_utf8_lossy(&first[..first.len().min(40)]).escape_debug().to_string();
        return Err(LedgerError::Version { path: path.to_owned(), header });
    }
    let damaged = |line, why| Err(LedgerError::Damaged { path: path.to_owned(), line, why });
    let mut state = State::default();
    let mut good = HEADER.len();
    let mut number = 1;
    while good < bytes.len() {
        number += 1;
        let rest = &bytes[good..];
        let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        // Only what was appended last can be torn, and then its checksum is wrong.
        let tearable = number > 2 && good + end + 1 >= bytes.len();
        match checked(&rest[..end]).map(serde_json::from_str) {
            Ok(Ok(read)) if end < rest.len() => state = read,
            Ok(Ok(_)) | Err(_) if tearable => break,
            Ok(Ok(_)) => return damaged(number, "it has no end".to_owned()),
            Ok(Err(error)) => return damaged(number, format!("another version wrote it: {error}")),
            Err(why) => return damaged(number, why),
        }
        good += end + 1;
    }
    Ok((state, good))
}

/// The JSON of a line whose checksum is right.
fn checked(line: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not text".to_owned())?;
    let (sum, json) = text.split_once(' ').ok_or("it has no checksum")?;
    if u32::from_str_radix(sum, 16).ok() != Some(crc32fast::hash(json.as_bytes())) {
        return Err("its checksum is wrong".to_owned());
    }
    Ok(json)
}

fn line(state: &State) -> String {
    let json =
        serde_json::to_string(state).unwrap_or_else(|error| unreachable!("a state is always JSON: {error}"));
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}

fn rewrite(path: &Path, state: &State) -> io::Result<(File, u64)> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    let line = line(state);
    file.write_all(HEADER.as_bytes())?;
    file.write_all(line.as_bytes())?;
    fault::sync(|| file.sync_all())?;
    std::fs::rename(&new, path)?;
    if let Some(dir) = path.parent() {
        let dir = File::open(dir)?;
        fault::sync(|| dir.sync_all())?;
    }
    let file = OpenOptions::new().append(true).open(path)?;
    Ok((file, (HEADER.len() + line.len()) as u64))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn state(id: u64) -> State {
        State { last_swap_id: id, boot: "b".to_owned(), ..State::default() }
    }

    #[test]
    fn the_last_write_is_what_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, first, note) = Ledger::open(dir.path()).unwrap();
        assert_eq!((first, note), (State::default(), None));
        for id in 1..=3 {
            ledger.record(&state(id)).unwrap();
        }
        drop(ledger);
        assert_eq!(Ledger::open(dir.path()).unwrap().1, state(3));
    }

    #[test]
    fn every_prefix_gives_a_state_that_was_written() {
        let bytes = format!("{HEADER}{}{}{}", line(&state(1)), line(&state(2)), line(&state(3)));
        let dir = tempfile::tempdir().unwrap();
        // The first line is synced before the file has its name, so no cut can tear it.
        for end in HEADER.len() + line(&state(1)).len()..bytes.len() {
            std::fs::write(dir.path().join("ledger"), &bytes[..end]).unwrap();
            let (_, read, note) = Ledger::open(dir.path()).unwrap();
            assert!((1..=3).contains(&read.last_swap_id) && read == state(read.last_swap_id), "{end}");
            let whole = bytes[..end].ends_with('\n');
            assert_eq!(note.is_none(), whole, "{end}");
        }
    }

    #[test]
    fn a_damaged_body_is_never_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ledger");
        let refused = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            let error = Ledger::open(dir.path()).unwrap_err().to_string();
            assert_eq!(std::fs::read(&file).unwrap(), bytes, "it was changed");
            error
        };
        for lines in [vec![1], vec![1, 2]] {
            let mut bytes = HEADER.to_owned().into_bytes();
            for id in lines {
                bytes.extend(line(&state(id)).into_bytes());
            }
            bytes[HEADER.len() + 20] ^= 1;
            let error = refused(&bytes);
            assert!(error.contains("line 2 is damaged"), "{error}");
        }
        // What another version wrote has a right checksum and is no torn write.
        let json = r#"{"home":7}"#;
        let other = format!("{HEADER}{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
        let error = refused(other.as_bytes());
        assert!(error.contains("another version"), "{error}");
        assert!(refused(b"berth-ledger 9\n").contains("reads `berth-ledger 1`"));
    }

    #[test]
    fn only_one_berthd_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ledger::open(dir.path()).unwrap();
        assert!(matches!(Ledger::open(dir.path()), Err(LedgerError::Busy { .. })));
        drop(first);
        Ledger::open(dir.path()).unwrap();
    }

    #[test]
    fn it_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, _, _) = Ledger::open(dir.path()).unwrap();
        for id in 0..1500 {
            ledger.size += 1000; // as if each state were larger than it is here
            ledger.record(&state(id)).unwrap();
        }
        assert!(std::fs::metadata(dir.path().join("ledger")).unwrap().len() < COMPACT_AT);
    }
}
