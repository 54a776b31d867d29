//! What outlives the server: the cards and knobs (a file replaced whole) and the counters (a file only ever
//! appended to, so that a kill at any instant costs at most its last line).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::protocol::Stats;
use crate::state::{Config, Happening};

/// How many failures and releases are listed; all are counted.
const LISTED: usize = 20_000;

/// Counters and lists, and the file that keeps them.
#[derive(Debug, Default)]
pub struct Record {
    file: Option<File>,
    allocations: u64,
    failed: u64,
    failures: Vec<crate::protocol::FailedAllocation>,
    releases: Vec<crate::protocol::Release>,
}

impl Record {
    /// Continues the record in `path`, or one that is only in memory.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let mut record = Record::default();
        let Some(path) = path else { return Ok(record) };
        match std::fs::read_to_string(path) {
            Ok(text) => {
                for happening in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
                    record.count(happening);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        // A line cut short by a kill must not swallow the next one.
        file.write_all(b"\n")?;
        record.file = Some(file);
        Ok(record)
    }

    fn count(&mut self, happening: Happening) {
        match happening {
            Happening::Allocated { .. } => self.allocations += 1,
            Happening::Failed(failed) => {
                self.failed += 1;
                push_bounded(&mut self.failures, failed);
            }
            Happening::Released(release) => push_bounded(&mut self.releases, release),
        }
    }

    /// Counts what happened and writes it down.
    pub fn add(&mut self, happenings: Vec<Happening>) {
        for happening in happenings {
            if let Some(file) = &mut self.file {
                let line = serde_json::to_string(&happening).unwrap_or_default() + "\n";
                if let Err(error) = file.write_all(line.as_bytes()) {
                    eprintln!("gpusim: the stats file can't be written ({error}); counting in memory only");
                    self.file = None;
                }
            }
            self.count(happening);
        }
    }

    /// Forgets everything, in the file too.
    pub fn reset(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file {
            file.set_len(0)?;
        }
        *self = Record { file: self.file.take(), ..Record::default() };
        Ok(())
    }

    /// Counters and lists into an answer.
    pub fn fill(&self, stats: &mut Stats) {
        stats.allocations = self.allocations;
        stats.failed = self.failed;
        stats.failures.clone_from(&self.failures);
        stats.releases.clone_from(&self.releases);
    }
}

fn push_bounded<T>(list: &mut Vec<T>, item: T) {
    if list.len() >= LISTED {
        list.remove(0);
    }
    list.push(item);
}

/// Where cards and knobs are kept, if anywhere.
#[derive(Debug, Default)]
pub struct ConfigFile(pub Option<PathBuf>);

impl ConfigFile {
    /// What was kept, if something was.
    pub fn read(&self) -> io::Result<Option<Config>> {
        let Some(path) = &self.0 else { return Ok(None) };
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps this.
    pub fn write(&self, config: &Config) -> io::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        let mut aside = path.clone().into_os_string();
        aside.push(".new");
        std::fs::write(&aside, serde_json::to_vec_pretty(config)?)?;
        std::fs::rename(&aside, path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::units::MIB;

    fn allocated(pid: u32) -> Happening {
        Happening::Allocated { time_ns: 1, pid, device: 0, bytes: MIB }
    }

    #[test]
    fn counters_survive_a_restart_and_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        Record::open(Some(&path)).unwrap().add(vec![allocated(1), allocated(2)]);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"allocated\":{\"ti").unwrap();
        let mut record = Record::open(Some(&path)).unwrap();
        record.add(vec![allocated(3)]);
        assert_eq!(Record::open(Some(&path)).unwrap().allocations, 3);
        record.reset().unwrap();
        record.add(vec![allocated(4)]);
        assert_eq!(Record::open(Some(&path)).unwrap().allocations, 1);
    }

    #[test]
    fn cards_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = ConfigFile(Some(dir.path().join("config")));
        assert_eq!(file.read().unwrap(), None);
        let config = Config::new(&[MIB, 2 * MIB], 3);
        file.write(&config).unwrap();
        assert_eq!(file.read().unwrap(), Some(config));
    }
}
