//! Whether a user may open a file: the rights of every folder on the way to it, as they stand in the file system.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use berth_core::facts::Known;
use berth_observe::scope::Scope;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// Who wants to open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The user's name, or its number where it has none.
    pub(crate) user: String,
    pub(crate) uid: u32,
    /// All groups.
    pub(crate) gids: BTreeSet<u32>,
}

impl Identity {
    /// The user and groups of a unit with these settings; empty ones are root's.
    ///
    /// # Errors
    /// Who is not there, as a clause.
    pub(crate) fn of_unit(user: &str, group: &str, more: &[String]) -> Result<Self, String> {
        let systemds = Scope::this().user().unwrap_or(0).to_string();
        let name = if user.is_empty() { &systemds } else { user };
        let found = match name.parse::<u32>() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)),
            Err(_) => User::from_name(name),
        };
        let known = found.ok().flatten().ok_or_else(|| format!("there is no user {name}"))?;
        let gid = if group.is_empty() { known.gid } else { gid_of(group)? };
        let listed = CString::new(known.name.as_bytes()).ok().and_then(|name| getgrouplist(&name, gid).ok());
        let mut gids: BTreeSet<u32> = listed.into_iter().flatten().map(Gid::as_raw).collect();
        gids.insert(gid.as_raw());
        for group in more {
            gids.insert(gid_of(group)?.as_raw());
        }
        Ok(Self { user: known.name, uid: known.uid.as_raw(), gids })
    }
}

fn gid_of(group: &str) -> Result<Gid, String> {
    let found = match group.parse::<u32>() {
        Ok(gid) => Group::from_gid(Gid::from_raw(gid)),
        Err(_) => Group::from_name(group),
    };
    found.ok().flatten().map(|group| group.gid).ok_or_else(|| format!("there is no group {group}"))
}

/// What is wanted of the last of a path's parts; of folders on the way it is to be passed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Read,
    ReadWrite,
    Execute,
}

impl Want {
    fn bits(self, folder: bool) -> u32 {
        match self {
            Self::Read if folder => 0o5,
            Self::Read => 0o4,
            Self::ReadWrite => 0o6,
            Self::Execute => 0o1,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ReadWrite => "open",
            Self::Execute => "run",
        }
    }
}

/// A file or folder as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) path: PathBuf,
    pub(crate) folder: bool,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// It has an access control list, so that its mode alone does not say who may.
    pub(crate) listed: bool,
}

/// The way to a file: what was passed through, the file last; and why it goes no further.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Way {
    pub(crate) steps: Vec<Step>,
    /// The first that is not there, or that whoever looks may not see.
    pub(crate) ends: Option<(PathBuf, End)>,
}

/// Why nothing more is known of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Missing,
    /// Why it can't be looked at.
    Hidden(String),
}

/// Looks at every part of a path, and of what it leads to where links are on it.
pub(crate) fn look(path: &Path) -> Way {
    let mut way = Way::default();
    let whole = fs::canonicalize(path).ok().filter(|whole| whole != path);
    for path in [Some(path), whole.as_deref()].into_iter().flatten() {
        let parts: Vec<&Path> = path.ancestors().collect();
        for part in parts.into_iter().rev() {
            if way.steps.iter().any(|step| step.path == part) {
                continue;
            }
            match fs::metadata(part) {
                Ok(meta) => way.steps.push(Step {
                    path: part.to_owned(),
                    folder: meta.is_dir(),
                    mode: meta.mode() & 0o7777,
                    uid: meta.uid(),
                    gid: meta.gid(),
                    listed: has_list(part),
                }),
                Err(error) => {
                    let end = match error.kind() {
                        ErrorKind::NotFound | ErrorKind::NotADirectory => End::Missing,
                        _ => End::Hidden(error.to_string()),
                    };
                    way.ends = Some((part.to_owned(), end));
                    return way;
                }
            }
        }
    }
    // What is wanted is wanted of what the path leads to.
    if let Some(whole) = whole
        && let Some(at) = way.steps.iter().position(|step| step.path == whole)
    {
        let last = way.steps.remove(at);
        way.steps.retain(|step| step.path != path || step.folder);
        way.steps.push(last);
    }
    way
}

fn has_list(path: &Path) -> bool {
    let mut none: [u8; 0] = [];
    rustix::fs::getxattr(path, "system.posix_acl_access", &mut none).is_ok()
}

/// What keeps somebody from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// This does not let them.
    By(Step),
    Missing(PathBuf),
}

/// Whether they may do what they want with the file at the end of this way. Unknown with the reason.
pub(crate) fn judge(way: &Way, who: &Identity, want: Want) -> Known<Result<(), Refused>> {
    let last = way.steps.len().saturating_sub(1);
    for (at, step) in way.steps.iter().enumerate() {
        let wanted = if at == last && way.ends.is_none() { want.bits(step.folder) } else { 0o1 };
        // root is kept from nothing but from running what nobody may run.
        if who.uid == 0 && (step.folder || want != Want::Execute || step.mode & 0o111 != 0) {
            continue;
        }
        let (shift, by_mode_alone) = if step.uid == who.uid {
            (6, true)
        } else if who.gids.contains(&step.gid) {
            (3, !step.listed)
        } else {
            (0, !step.listed)
        };
        if !by_mode_alone {
            return Known::Unknown(format!("{} has an access control list", step.path.display()));
        }
        if step.mode >> shift & wanted != wanted {
            return Known::Value(Err(Refused::By(step.clone())));
        }
    }
    match &way.ends {
        None => Known::Value(Ok(())),
        Some((path, End::Missing)) => Known::Value(Err(Refused::Missing(path.clone()))),
        Some((path, End::Hidden(why))) => Known::Unknown(format!("{}: {why}", path.display())),
    }
}

impl Step {
    /// `drwx------ frank frank /home/frank`.
    pub(crate) fn shown(&self) -> String {
        let kind = if self.folder { 'd' } else { '-' };
        let bit = |at: u32, letter: char| if self.mode >> at & 1 == 1 { letter } else { '-' };
        let rights: String =
            (0..9).rev().zip("rwxrwxrwx".chars()).map(|(at, letter)| bit(at, letter)).collect();
        let user = User::from_uid(Uid::from_raw(self.uid)).ok().flatten();
        let group = Group::from_gid(Gid::from_raw(self.gid)).ok().flatten();
        let user = user.map_or(self.uid.to_string(), |user| user.name);
        let group = group.map_or(self.gid.to_string(), |group| group.name);
        format!("{kind}{rights} {user} {group} {}", self.path.display())
    }

    /// The command that lets them through, or lets them read.
    pub(crate) fn let_in(&self, who: &Identity, want: Want) -> String {
        let bits = if self.folder { 0o1 } else { want.bits(false) };
        let group = Group::from_gid(Gid::from_raw(self.gid)).ok().flatten().filter(|_| self.gid != 0);
        match group {
            Some(group) if self.mode >> 3 & bits == bits => {
                format!("sudo usermod -aG {} {}", group.name, who.user)
            }
            _ => self.let_alone_in(who, want),
        }
    }

    /// The command that does so for them and no group.
    pub(crate) fn let_alone_in(&self, who: &Identity, want: Want) -> String {
        let bits = if self.folder { 0o1 } else { want.bits(false) };
        let letters = [(0o4, "r"), (0o2, "w"), (0o1, "x")];
        let letters: String =
            letters.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, letter)| *letter).collect();
        let path = self.path.to_string_lossy().into_owned();
        format!("sudo setfacl -m u:{}:{letters} {}", who.user, shell_words::quote(&path))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn who(uid: u32, gids: &[u32]) -> Identity {
        Identity { user: "frank".into(), uid, gids: gids.iter().copied().collect() }
    }

    fn step(path: &str, mode: u32, uid: u32, gid: u32) -> Step {
        Step { path: path.into(), folder: mode & 0o40000 != 0, mode: mode & 0o7777, uid, gid, listed: false }
    }

    fn way(steps: &[Step]) -> Way {
        Way { steps: steps.to_vec(), ends: None }
    }

    #[test]
    fn the_first_folder_that_does_not_let_them_through_is_named() {
        let home = step("/home/frank", 0o40750, 1000, 1000);
        let file = step("/home/frank/q.gguf", 0o644, 1000, 1000);
        let all = way(&[step("/", 0o40755, 0, 0), home.clone(), file.clone()]);
        let may = |who: &Identity, want| judge(&all, who, want);
        let refused = Known::Value(Err(Refused::By(home.clone())));
        assert_eq!(may(&who(1000, &[1000]), Want::Read), Known::Value(Ok(())));
        assert_eq!(may(&who(980, &[980]), Want::Read), refused);
        assert_eq!(may(&who(980, &[980, 1000]), Want::Read), Known::Value(Ok(())));
        assert_eq!(may(&who(0, &[0]), Want::Read), Known::Value(Ok(())));
        // A file that nobody may run root can't run either.
        assert_eq!(may(&who(0, &[0]), Want::Execute), Known::Value(Err(Refused::By(file))));
        assert_eq!(home.shown().split(' ').next(), Some("drwxr-x---"));
    }

    #[test]
    fn an_owner_has_the_owner_s_rights_alone() {
        let odd = way(&[step("/m", 0o077, 1000, 1000)]);
        assert!(matches!(judge(&odd, &who(1000, &[1000]), Want::Read), Known::Value(Err(Refused::By(_)))));
        assert_eq!(judge(&odd, &who(5, &[1000]), Want::ReadWrite), Known::Value(Ok(())));
    }

    #[test]
    fn a_folder_of_weights_must_be_listed_too() {
        let closed = way(&[step("/m", 0o40711, 0, 0)]);
        assert!(matches!(judge(&closed, &who(5, &[5]), Want::Read), Known::Value(Err(_))));
    }

    #[test]
    fn an_access_control_list_and_what_can_t_be_seen_are_unknown() {
        let mut listed = step("/m", 0o40750, 0, 0);
        listed.listed = true;
        assert!(judge(&way(&[listed.clone()]), &who(5, &[5]), Want::Read).value().is_none());
        assert!(judge(&way(&[listed]), &who(0, &[0]), Want::Read).value().is_some());
        let hidden = Way { steps: Vec::new(), ends: Some(("/m".into(), End::Hidden("no".into()))) };
        assert_eq!(judge(&hidden, &who(5, &[5]), Want::Read), Known::Unknown("/m: no".into()));
        let gone = Way { steps: Vec::new(), ends: Some(("/m".into(), End::Missing)) };
        assert_eq!(judge(&gone, &who(5, &[5]), Want::Read), Known::Value(Err(Refused::Missing("/m".into()))));
    }

    #[test]
    fn links_are_followed_to_what_they_lead_to() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        fs::create_dir(&real).unwrap();
        fs::write(real.join("q.gguf"), "x").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o700)).unwrap();
        let link = folder.path().join("q.gguf");
        symlink(real.join("q.gguf"), &link).unwrap();
        let way = look(&link);
        assert_eq!(way.ends, None);
        let real = fs::canonicalize(&real).unwrap();
        assert_eq!(way.steps.last().unwrap().path, real.join("q.gguf"));
        assert!(way.steps.iter().any(|step| step.path == real && step.mode == 0o700));
        let gone = look(&folder.path().join("none/q.gguf"));
        assert_eq!(gone.ends, Some((folder.path().join("none"), End::Missing)));
    }
}
