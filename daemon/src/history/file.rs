//! The file: opened and checked, made anew, set aside where it can't be believed.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_core::history::{LOG, Limits, Tier};
use nix::unistd::{AccessFlags, access};
use rusqlite::{Connection, ErrorCode, OpenFlags};

/// The file within the folder of the state.
pub(super) const NAME: &str = "history.db";
/// What stands before the moment in the name of one that was set aside.
const ASIDE: &str = "history.db.damaged-";
/// How many that were set aside are kept: what one holds beyond that nobody has missed.
const KEPT: usize = 2;

/// The version of the tables, in SQLite's `user_version`.
const VERSION: i64 = 1;
/// Says that a file is Berth's history and no other database: "Brth".
const APPLICATION: i64 = 0x4272_7468;
/// SQLite's page.
pub(super) const PAGE: u64 = 4096;
/// How long one waits for another: the writer for a reader that holds up the log, a reader for a new log.
const BUSY: Duration = Duration::from_secs(5);

/// A table for each tier; times are milliseconds since 1970, memory is bytes.
const SAMPLES: &str = "
    CREATE TABLE {table} (
        at_ms INTEGER NOT NULL, device INTEGER NOT NULL,
        used INTEGER, used_max INTEGER, kept INTEGER, foreign_use INTEGER, free INTEGER,
        temperature_c INTEGER, power_w INTEGER, utilization_percent INTEGER,
        PRIMARY KEY (at_ms, device)
    ) STRICT, WITHOUT ROWID;";
const LISTS: &str = "
    CREATE TABLE device (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, position INTEGER, total INTEGER) STRICT;
    CREATE TABLE event (
        id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, kind TEXT NOT NULL, swap INTEGER, json TEXT NOT NULL
    ) STRICT;
    CREATE TABLE swap (
        n INTEGER PRIMARY KEY, id INTEGER NOT NULL, began_ms INTEGER NOT NULL, verb TEXT NOT NULL, model TEXT,
        who TEXT, outcome TEXT, elapsed_ms INTEGER NOT NULL, json TEXT NOT NULL, UNIQUE (id, began_ms)
    ) STRICT;
    CREATE TABLE problem (
        n INTEGER PRIMARY KEY, key TEXT NOT NULL, code TEXT NOT NULL, since_ms INTEGER NOT NULL, ended_ms INTEGER,
        json TEXT NOT NULL
    ) STRICT;";

/// The table of a tier.
pub(super) fn table(tier: Tier) -> &'static str {
    match tier {
        Tier::Each => "sample",
        Tier::Minute => "sample_minute",
        Tier::Quarter => "sample_quarter",
    }
}

/// Why the history can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// SQLite says no.
    #[error("history {path}: {source}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file system says no.
    #[error("history {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is no history, or its content contradicts itself.
    #[error("history {path}: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It says nothing for too long.
    #[error("history {path}: its disk did not answer within {} s", .after.as_secs())]
    Silent {
        /// The file.
        path: PathBuf,
        /// How long was waited.
        after: Duration,
    },
}

impl HistoryError {
    /// Whether another try with this file can't help.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            ),
            Self::Damaged { .. } => true,
            Self::Io { .. } | Self::Silent { .. } => false,
        }
    }

    /// Whether there is no room, on the disk or within the file's size.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Sqlite { source, .. } if source.sqlite_error_code() == Some(ErrorCode::DiskFull))
    }
}

/// Opens the file to write, or makes it. One that exists is checked whole first.
pub(super) fn open(path: &Path, limits: &Limits) -> Result<Connection, HistoryError> {
    let sqlite = |source| HistoryError::Sqlite { path: path.to_owned(), source };
    let connection = Connection::open(path).map_err(sqlite)?;
    if let Some(why) = prepare(&connection, path, limits).map_err(sqlite)? {
        return Err(HistoryError::Damaged { path: path.to_owned(), why });
    }
    Ok(connection)
}

/// Gives why the file can't be believed, where that is so.
fn prepare(connection: &Connection, path: &Path, limits: &Limits) -> Result<Option<String>, rusqlite::Error> {
    connection.busy_timeout(BUSY)?;
    // Rows are appended: a few hundred KiB of pages in memory are enough.
    connection.pragma_update(None, "cache_size", -256)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    // One of a later format it takes for read-only, as one that may not be written to. To open it and look at its header
    // would take SQLite's locks from it when it is closed again.
    if connection.is_readonly("main")? && access(path, AccessFlags::W_OK).is_ok() {
        return Ok(Some("it is damaged (SQLite would only read it)".to_owned()));
    }
    match (application, version) {
        (0, 0) if tables == 0 => create(connection)?,
        (APPLICATION, VERSION) => {
            let said: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if said != "ok" {
                let first = said.lines().find(|line| !line.starts_with("***")).unwrap_or(&said);
                return Ok(Some(format!("it is damaged ({first})")));
            }
        }
        (APPLICATION, newer) if newer > VERSION => {
            let text = "a newer version of Berth wrote it";
            return Ok(Some(format!("{text} (its tables are of version {newer}, known is {VERSION})")));
        }
        _ => return Ok(Some("it is no history of Berth".to_owned())),
    }
    connection.pragma_update(None, "journal_size_limit", LOG.0 / 2)?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG.0 / 2 / PAGE)?;
    fit(connection, limits)?;
    Ok(None)
}

fn create(connection: &Connection) -> Result<(), rusqlite::Error> {
    // Before there is any table, or it has no effect: pages that are free can be given back later.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let samples = Tier::ALL.map(|tier| SAMPLES.replace("{table}", table(tier))).concat();
    connection.execute_batch(&format!(
        "BEGIN; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; {LISTS} {samples} COMMIT;"
    ))
}

/// Whether the file has all the pages that it may have, or nearly so.
pub(super) fn is_at_limit(connection: &Connection, limits: &Limits) -> Result<bool, rusqlite::Error> {
    let pages: u64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    Ok(pages * PAGE >= limits.pages.0 / 16 * 15)
}

/// Holds the file to its size; one that is larger gives back the pages that are free.
pub(super) fn fit(connection: &Connection, limits: &Limits) -> Result<(), rusqlite::Error> {
    let most = i64::try_from(limits.pages.0 / PAGE).unwrap_or(i64::MAX);
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    if pages > most {
        let mut freed = connection.prepare(&format!("PRAGMA incremental_vacuum({})", pages - most))?;
        let mut freed = freed.query([])?;
        // A page with each step.
        while freed.next()?.is_some() {}
    }
    connection.pragma_update(None, "max_page_count", most)
}

/// Opens the file to read only.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, HistoryError> {
    let sqlite = |source| HistoryError::Sqlite { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    connection.busy_timeout(BUSY).map_err(sqlite)?;
    connection.pragma_update(None, "cache_size", -1024).map_err(sqlite)?;
    Ok(connection)
}

/// Moves the file away with what belongs to it, under a name with the moment (seconds since 1970), and removes the oldest
/// of those that were. Gives where it is now.
pub(super) fn set_aside(path: &Path, at: u64) -> Result<PathBuf, HistoryError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let io = |source| HistoryError::Io { path: path.to_owned(), source };
    let mut at = at;
    while folder.join(format!("{ASIDE}{at}")).exists() {
        at += 1;
    }
    let aside = folder.join(format!("{ASIDE}{at}"));
    // The log first: a file without its log is set aside again, a log without its file is nobody's.
    for end in ["-wal", ""] {
        match fs::rename(with(path, end), with(&aside, end)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    _ = fs::remove_file(with(path, "-shm"));
    let mut all = aside_in(folder).map_err(io)?;
    all.sort();
    for old in all.iter().rev().skip(KEPT) {
        for end in ["", "-wal", "-shm"] {
            // What can't be removed now is the oldest the next time too.
            _ = fs::remove_file(with(old, end));
        }
    }
    Ok(aside)
}

/// Those that were set aside and are still there.
pub(super) fn aside_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let at = name.to_str().and_then(|name| name.strip_prefix(ASIDE));
        if at.is_some_and(|at| at.bytes().all(|byte| byte.is_ascii_digit())) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn with(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    PathBuf::from(name)
}
