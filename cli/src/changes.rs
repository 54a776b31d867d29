//! Changes of files that can be taken back exactly. What was there before is written down, and synced, before anything is
//! touched; each file is replaced as a whole.
//!
//! A record is a folder: `record.json` says what was there, numbered files keep the contents.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What `record.json` is called.
const RECORD: &str = "record.json";

/// The version of its form.
const VERSION: u32 = 1;

/// What a path is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum After {
    /// A file of root's with this text and mode.
    File {
        text: String,
        mode: u32,
    },
    Link(PathBuf),
    Nothing,
}

/// One path to be other than it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) path: PathBuf,
    pub(crate) after: After,
}

impl Change {
    pub(crate) fn write(path: impl Into<PathBuf>, text: impl Into<String>, mode: u32) -> Self {
        Self { path: path.into(), after: After::File { text: text.into(), mode } }
    }

    pub(crate) fn link(path: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), after: After::Link(to.into()) }
    }

    pub(crate) fn remove(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), after: After::Nothing }
    }
}

/// What was there before changes were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    /// What it is about, for whoever reads it.
    pub(crate) about: String,
    /// The unit that no longer starts, where one was replaced.
    pub(crate) unit: Option<String>,
    changed: Vec<Changed>,
    /// Folders that were made for it, outermost first.
    folders: Vec<PathBuf>,
}

/// One path that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Changed {
    path: PathBuf,
    before: Before,
    /// Where a link was put, what it points to: what stands there instead now is somebody else's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Before {
    Nothing,
    Link(PathBuf),
    /// A file, of which the contents are in the record's folder under this name.
    File {
        kept: String,
        mode: u32,
        uid: u32,
        gid: u32,
    },
}

/// A file that can't be changed, read or put back.
#[derive(Debug, thiserror::Error)]
#[error("{} {what}: {source}", .path.display())]
pub(crate) struct Failed {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

fn failed<'a>(path: &'a Path, what: &'static str) -> impl FnOnce(io::Error) -> Failed + 'a {
    move |source| Failed { path: path.to_owned(), what, source }
}

/// Makes the changes, and leaves a record of what was there in the folder `record`, which must not exist yet. If one of
/// them fails, those before it are taken back.
pub(crate) fn make(changes: &[Change], record: &Path, about: &str, unit: Option<&str>) -> Result<(), Failed> {
    let parent = record.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(failed(parent, "can't be made"))?;
    let mut unfinished = OsString::from(".");
    unfinished.push(record.file_name().unwrap_or_default());
    let unfinished = parent.join(unfinished);
    // What a run left that was cut off before it changed anything.
    if let Err(error) = fs::remove_dir_all(&unfinished)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(failed(&unfinished, "can't be removed")(error));
    }
    fs::create_dir(&unfinished).map_err(failed(&unfinished, "can't be made"))?;
    fs::set_permissions(&unfinished, Permissions::from_mode(0o700))
        .map_err(failed(&unfinished, "can't be made"))?;
    let mut written = Record {
        version: VERSION,
        about: about.to_owned(),
        unit: unit.map(str::to_owned),
        changed: Vec::new(),
        folders: Vec::new(),
    };
    for (at, change) in changes.iter().enumerate() {
        let link = match &change.after {
            After::Link(to) => Some(to.clone()),
            _ => None,
        };
        let before = keep(&change.path, &unfinished, at)?;
        written.changed.push(Changed { path: change.path.clone(), before, link });
        if change.after != After::Nothing {
            missing_folders(&change.path, &mut written.folders);
        }
    }
    let text = serde_json::to_vec_pretty(&written)
        .map_err(|error| failed(record, "can't be written")(error.into()))?;
    store(&unfinished.join(RECORD), &text, 0o600, None)?;
    fs::rename(&unfinished, record).map_err(failed(record, "can't be made"))?;
    sync(parent)?;
    for change in changes {
        if let Err(error) = carry_out(change) {
            // Why it failed is what has to be told; the record stays where it can't be taken back.
            _ = undo(record);
            return Err(error);
        }
    }
    Ok(())
}

/// Reads the record in this folder; None where there is none.
pub(crate) fn read(record: &Path) -> Result<Option<Record>, Failed> {
    let path = record.join(RECORD);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&path, "can't be read")(error)),
    };
    let record: Record =
        serde_json::from_slice(&text).map_err(|error| failed(&path, "can't be read")(error.into()))?;
    if record.version != VERSION {
        let why = format!("it has version {}, this berthctl knows {VERSION}", record.version);
        return Err(failed(&path, "can't be read")(io::Error::new(ErrorKind::InvalidData, why)));
    }
    Ok(Some(record))
}

/// Puts back what was there, and removes the record. Gives the paths that were left as they are, since somebody else has
/// put something there meanwhile. Can be repeated after it was cut off.
pub(crate) fn undo(record: &Path) -> Result<Vec<PathBuf>, Failed> {
    let Some(written) = read(record)? else { return Ok(Vec::new()) };
    let mut left = Vec::new();
    for changed in written.changed.iter().rev() {
        if let Some(link) = &changed.link
            && !is_or_was(changed, link, record)
        {
            left.push(changed.path.clone());
            continue;
        }
        match &changed.before {
            Before::Nothing => remove(&changed.path)?,
            Before::Link(to) => put_link(&changed.path, to)?,
            Before::File { kept, mode, uid, gid } => {
                let kept = record.join(kept);
                let text = fs::read(&kept).map_err(failed(&kept, "can't be read"))?;
                store(&changed.path, &text, *mode, Some((*uid, *gid)))?;
            }
        }
    }
    for folder in written.folders.iter().rev() {
        // One that has something else in it by now stays.
        _ = fs::remove_dir(folder);
    }
    fs::remove_dir_all(record).map_err(failed(record, "can't be removed"))?;
    if let Some(parent) = record.parent() {
        _ = fs::remove_dir(parent);
    }
    Ok(left)
}

/// Makes a change of which nothing is kept.
pub(crate) fn carry_out(change: &Change) -> Result<(), Failed> {
    let path = &change.path;
    if change.after != After::Nothing
        && let Some(folder) = path.parent()
    {
        fs::create_dir_all(folder).map_err(failed(folder, "can't be made"))?;
    }
    match &change.after {
        After::File { text, mode } => store(path, text.as_bytes(), *mode, None),
        After::Link(to) => put_link(path, to),
        After::Nothing => remove(path),
    }
}

/// Whether there stands what was put there, or again what was there before: an undo that was cut off.
fn is_or_was(changed: &Changed, link: &Path, record: &Path) -> bool {
    match (fs::read_link(&changed.path), &changed.before) {
        (Ok(to), before) => to == *link || *before == Before::Link(to),
        (Err(error), _) if error.kind() == ErrorKind::NotFound => true,
        (Err(_), Before::File { kept, .. }) => match (fs::read(&changed.path), fs::read(record.join(kept))) {
            (Ok(now), Ok(then)) => now == then,
            _ => false,
        },
        _ => false,
    }
}

/// Keeps what is at a path.
fn keep(path: &Path, record: &Path, at: usize) -> Result<Before, Failed> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Before::Nothing),
        Err(error) => return Err(failed(path, "can't be read")(error)),
    };
    if metadata.is_symlink() {
        return fs::read_link(path).map(Before::Link).map_err(failed(path, "can't be read"));
    }
    if !metadata.is_file() {
        let why = io::Error::new(ErrorKind::InvalidInput, "it is neither a file nor a link");
        return Err(failed(path, "can't be replaced")(why));
    }
    let kept = at.to_string();
    let text = fs::read(path).map_err(failed(path, "can't be read"))?;
    store(&record.join(&kept), &text, 0o600, None)?;
    Ok(Before::File { kept, mode: mode(&metadata), uid: metadata.uid(), gid: metadata.gid() })
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.permissions().mode() & 0o7777
}

/// The folders above a path that are not there yet.
fn missing_folders(path: &Path, folders: &mut Vec<PathBuf>) {
    let missing: Vec<&Path> = path.ancestors().skip(1).take_while(|folder| !folder.exists()).collect();
    for folder in missing.into_iter().rev() {
        if !folders.iter().any(|one| one == folder) {
            folders.push(folder.to_owned());
        }
    }
}

/// Puts a file there as a whole, on the disk when this returns.
fn store(path: &Path, text: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<(), Failed> {
    let beside = beside(path);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text)?;
        if let Some((uid, gid)) = owner {
            chown(&beside, Some(uid), Some(gid))?;
        }
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    replaced(&beside, write).map_err(failed(path, "can't be written"))?;
    sync(path.parent().unwrap_or(Path::new("/")))
}

fn put_link(path: &Path, to: &Path) -> Result<(), Failed> {
    let beside = beside(path);
    replaced(&beside, || {
        symlink(to, &beside)?;
        fs::rename(&beside, path)
    })
    .map_err(failed(path, "can't be linked"))?;
    sync(path.parent().unwrap_or(Path::new("/")))
}

/// Does what leaves nothing at `beside`, where a run that was cut off may have left something.
fn replaced(beside: &Path, mut work: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let first = work();
    let again = matches!(&first, Err(error) if error.kind() == ErrorKind::AlreadyExists);
    let ended = if again { fs::remove_file(beside).and_then(|()| work()) } else { first };
    if ended.is_err() {
        // What matters is why it failed.
        _ = fs::remove_file(beside);
    }
    ended
}

/// A name of our own in the same folder, which systemd and berthd read over.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".berthctl-new");
    path.with_file_name(name)
}

fn remove(path: &Path) -> Result<(), Failed> {
    match fs::remove_file(path) {
        Ok(()) => sync(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => Ok(()),
        Err(error) => Err(failed(path, "can't be removed")(error)),
    }
}

fn sync(folder: &Path) -> Result<(), Failed> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder, "can't be synced"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::*;

    /// Every path with its kind, mode and contents.
    fn all(root: &Path) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let what = if metadata.is_symlink() {
                    format!("-> {}", fs::read_link(&path).unwrap().display())
                } else if metadata.is_dir() {
                    folders.push(path.clone());
                    "folder".to_owned()
                } else {
                    format!("{:o} {:?}", mode(&metadata), fs::read(&path).unwrap())
                };
                found.insert(path, what);
            }
        }
        found
    }

    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("system/multi-user.target.wants")).unwrap();
        fs::write(path("system/genesis.service"), b"[Service]\nnot UTF-8: \xff\n").unwrap();
        fs::set_permissions(path("system/genesis.service"), Permissions::from_mode(0o640)).unwrap();
        symlink("../genesis.service", path("system/multi-user.target.wants/genesis.service")).unwrap();
        root
    }

    fn changes(root: &Path) -> Vec<Change> {
        vec![
            Change::write(root.join("berth/models.d/genesis.toml"), "cmd = \"a\"\n", 0o644),
            Change::link(root.join("system/genesis.service"), "/dev/null"),
            Change::remove(root.join("system/multi-user.target.wants/genesis.service")),
        ]
    }

    #[test]
    fn what_was_there_comes_back_byte_for_byte() {
        let root = machine();
        let before = all(root.path());
        let record = root.path().join("berth/added/genesis");
        make(&changes(root.path()), &record, "genesis", Some("genesis.service")).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("berth/models.d/genesis.toml")).unwrap(),
            "cmd = \"a\"\n"
        );
        assert_eq!(
            fs::read_link(root.path().join("system/genesis.service")).unwrap(),
            Path::new("/dev/null")
        );
        assert!(!root.path().join("system/multi-user.target.wants/genesis.service").is_symlink());
        assert_eq!(read(&record).unwrap().unwrap().unit.as_deref(), Some("genesis.service"));
        // The declaration is Berth's own, however it was edited.
        fs::write(root.path().join("berth/models.d/genesis.toml"), "cmd = \"b\"\n").unwrap();
        assert_eq!(undo(&record).unwrap(), Vec::<PathBuf>::new());
        let mut after = all(root.path());
        after.remove(&root.path().join("berth"));
        assert_eq!(after, before);
        assert_eq!(undo(&record).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn an_undo_that_was_cut_off_is_ended() {
        let root = machine();
        let before = all(root.path());
        let record = root.path().join("berth/added/genesis");
        make(&changes(root.path()), &record, "genesis", None).unwrap();
        // As far as it got: the link of the enabled unit is back, the mask is gone, and half a file was written.
        symlink("../genesis.service", root.path().join("system/multi-user.target.wants/genesis.service"))
            .unwrap();
        fs::remove_file(root.path().join("system/genesis.service")).unwrap();
        fs::write(root.path().join("system/.genesis.service.berthctl-new"), "half").unwrap();
        assert_eq!(undo(&record).unwrap(), Vec::<PathBuf>::new());
        let mut after = all(root.path());
        after.remove(&root.path().join("berth"));
        assert_eq!(after, before);
    }

    #[test]
    fn a_change_that_fails_takes_back_those_before_it() {
        let root = machine();
        let before = all(root.path());
        let record = root.path().join("berth/added/genesis");
        let mut changes = changes(root.path());
        // A file can't be a folder.
        changes.push(Change::write(root.path().join("berth/models.d/genesis.toml/x"), "", 0o644));
        let error = make(&changes, &record, "genesis", None).unwrap_err().to_string();
        assert!(error.contains("genesis.toml"), "{error}");
        let mut after = all(root.path());
        after.remove(&root.path().join("berth"));
        assert_eq!(after, before);
    }

    #[test]
    fn what_somebody_put_in_place_of_a_link_stays() {
        let root = machine();
        let record = root.path().join("berth/added/genesis");
        make(&changes(root.path()), &record, "genesis", None).unwrap();
        let unit = root.path().join("system/genesis.service");
        fs::remove_file(&unit).unwrap();
        fs::write(&unit, "mine").unwrap();
        assert_eq!(undo(&record).unwrap(), std::slice::from_ref(&unit));
        assert_eq!(fs::read_to_string(&unit).unwrap(), "mine");
    }

    #[test]
    fn a_record_of_another_version_is_not_guessed_at() {
        let root = machine();
        let record = root.path().join("added");
        make(&[], &record, "a", None).unwrap();
        let text =
            fs::read_to_string(record.join(RECORD)).unwrap().replace("\"version\": 1", "\"version\": 2");
        fs::write(record.join(RECORD), text).unwrap();
        assert!(undo(&record).unwrap_err().to_string().contains("version 2"));
    }
}
