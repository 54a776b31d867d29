//! The ledger: what Berth knows of itself, on disk, so that berthd may die at any instant.
//!
//! A text file: a line with the version, then a line for each write, `CRC32 JSON`, the whole state each time.
//! The last whole line is the truth. A write is done when file (and, for a new file, folder) are synced.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use berth_core::state::State;

const HEADER: &str = "berth-ledger 1\n";
/// Beyond this size the file is written anew with the last state alone.
const COMPACT_AT: u64 = 1 << 20;

/// An open ledger.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    size: u64,
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
    /// A line other than the last is damaged.
    #[error(
        "ledger {path}: line {line} is damaged ({why}); keep a copy, then move it away: berthd starts with nothing serving"
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
        Ok((Self { path, file, size }, state, note))
    }

    /// Writes the state and syncs it. After an error nothing of it counts, and the next write starts a new file.
    pub fn record(&mut self, state: &State) -> Result<(), LedgerError> {
        let result = if self.size > COMPACT_AT {
            rewrite(&self.path, state).map(|(file, size)| (self.file, self.size) = (file, size))
        } else {
            let line = line(state);
            self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data()).map(|()| {
                self.size += line.len() as u64;
            })
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
    let mut state = State::default();
    let mut good = HEADER.len();
    let mut number = 1;
    while good < bytes.len() {
        number += 1;
        let rest = &bytes[good..];
        let Some(end) = rest.iter().position(|b| *b == b'\n') else { break };
        match parse(&rest[..end]) {
            Ok(read) => state = read,
            // Only what was written last can be torn.
            Err(_) if good + end + 1 == bytes.len() => break,
            Err(why) => return Err(LedgerError::Damaged { path: path.to_owned(), line: number, why }),
        }
        good += end + 1;
    }
    Ok((state, good))
}

fn parse(line: &[u8]) -> Result<State, String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not text".to_owned())?;
    let (sum, json) = text.split_once(' ').ok_or("it has no checksum")?;
    if u32::from_str_radix(sum, 16).ok() != Some(crc32fast::hash(json.as_bytes())) {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
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
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
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
        assert_eq!(Ledger::open(dir.path()).unwrap().1, state(3));
    }

    #[test]
    fn every_prefix_gives_a_state_that_was_written() {
        let bytes = format!("{HEADER}{}{}{}", line(&state(1)), line(&state(2)), line(&state(3)));
        let dir = tempfile::tempdir().unwrap();
        for end in HEADER.len()..bytes.len() {
            std::fs::write(dir.path().join("ledger"), &bytes[..end]).unwrap();
            let (_, read, note) = Ledger::open(dir.path()).unwrap();
            assert!(read.last_swap_id <= 3 && (read == State::default() || read == state(read.last_swap_id)));
            let whole = bytes[..end].ends_with('\n');
            assert_eq!(note.is_none(), whole, "{end}");
        }
    }

    #[test]
    fn a_damaged_body_is_never_believed() {
        let bytes = format!("{HEADER}{}{}", line(&state(1)), line(&state(2)));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ledger");
        let mut damaged = bytes.clone().into_bytes();
        damaged[HEADER.len() + 20] ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        let error = Ledger::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 2 is damaged"), "{error}");
        std::fs::write(&file, "berth-ledger 9\n").unwrap();
        assert!(matches!(Ledger::open(dir.path()), Err(LedgerError::Version { .. })));
    }

    #[test]
    fn it_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, _, _) = Ledger::open(dir.path()).unwrap();
        for id in 0..20_000 {
            ledger.size += 1000; // as if each state were larger than it is here
            ledger.record(&state(id)).unwrap();
        }
        assert!(std::fs::metadata(dir.path().join("ledger")).unwrap().len() < COMPACT_AT);
    }
}
