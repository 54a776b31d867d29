//! What berthctl says when it can't do what was asked: what, where, and what to do next.

use std::io::{self, ErrorKind};
use std::path::Path;

use berth_core::report::{ApiProblem, PlanReport, SCHEMA};
use berth_observe::scope::Scope;
use nix::unistd::{Group, User, getgid, getgroups, getuid};
use serde::Serialize;

use crate::client::Trouble;
use crate::exit::Exit;
use crate::out::Out;
use crate::render::text::{clean, paragraph};
use crate::render::{Tone, plan};

/// The group whose members may use berthd's socket.
const GROUP: &str = "berth";

/// Why it can't be done.
#[derive(Debug, Serialize)]
pub(crate) struct Complaint {
    #[serde(skip)]
    pub(crate) exit: Exit,
    /// Stable, for programs.
    pub(crate) code: String,
    pub(crate) title: String,
    pub(crate) hints: Vec<String>,
    /// The plan that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) plan: Option<Box<PlanReport>>,
}

/// The last line of every verb that fails, with `--json`.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    exit: u8,
    problem: &'a Complaint,
}

impl Complaint {
    pub(crate) fn new(exit: Exit, code: &str, title: String, hints: &[String]) -> Self {
        Self { exit, code: code.to_owned(), title, hints: hints.to_vec(), plan: None }
    }

    /// Tells it, and gives the exit code.
    pub(crate) fn tell(&self, out: Out) -> Exit {
        if out.json {
            Out::document(&Document { schema: SCHEMA, exit: self.exit.code(), problem: self });
            return self.exit;
        }
        // What was asked for goes on: nothing is wrong.
        if matches!(self.exit, Exit::Timeout | Exit::Stopped) {
            Out::complain(&format!("{}{}", paragraph("", &clean(&self.title)), plan::hints(&self.hints)));
            return self.exit;
        }
        if self.exit == Exit::Refused {
            let problem = ApiProblem {
                status: 409,
                code: self.code.clone(),
                title: self.title.clone(),
                hints: self.hints.clone(),
                plan: self.plan.as_deref().cloned(),
            };
            Out::complain(&plan::problem(&problem, out.errors));
        } else {
            let word = "error: ";
            let text = paragraph(word, &clean(&self.title));
            let rest = text.strip_prefix(word).unwrap_or(&text);
            Out::complain(&format!("{}{rest}{}", out.errors.tint(Tone::Bad, word), plan::hints(&self.hints)));
        }
        self.exit
    }
}

impl From<Trouble> for Complaint {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Unreachable { socket, passed_over, source } => {
                unreachable(&socket, passed_over.as_deref(), &source, &Caller::of_this_process())
            }
            Trouble::Broken(text) => Self::new(Exit::Unreachable, "no_answer", text, &[status_of_berthd()]),
            Trouble::Answer(problem) => {
                let exit = match problem.status {
                    400 | 422 => Exit::Usage,
                    500.. => Exit::Unreachable,
                    _ => Exit::Refused,
                };
                let ApiProblem { code, title, hints, plan, .. } = *problem;
                Self { exit, code, title, hints, plan: plan.map(Box::new) }
            }
        }
    }
}

/// Who runs berthctl.
#[derive(Debug)]
struct Caller {
    user: String,
    uid: u32,
    /// Whether the user database has them in the group.
    member: bool,
    /// Whether this process has the group.
    has_group: bool,
    /// Whether they run a berthd of their own.
    has_own: bool,
}

impl Caller {
    fn of_this_process() -> Self {
        let uid = getuid();
        // A user without a name, or a database that can't be read, is still a uid.
        let user = User::from_uid(uid).ok().flatten().map_or_else(|| format!("#{uid}"), |user| user.name);
        let group = Group::from_name(GROUP).ok().flatten();
        let has_group = group.as_ref().is_some_and(|group| {
            getgid() == group.gid || getgroups().is_ok_and(|groups| groups.contains(&group.gid))
        });
        let member = group.is_some_and(|group| group.mem.contains(&user));
        let has_own = Scope::User.socket().exists();
        Self { user, uid: uid.as_raw(), member, has_group, has_own }
    }
}

/// What can be asked of the machine's Berth alone.
pub(crate) fn of_the_machine() -> Complaint {
    let folder = Scope::this().config().join("models.d");
    let title = "what serves today can be added to the machine's Berth, and not to a user's own".to_owned();
    let hints = [format!("declare it by hand: NAME.toml in {}, then berthctl reload", folder.display())];
    Complaint::new(Exit::Usage, "of_the_machine", title, &hints)
}

fn status_of_berthd() -> String {
    format!("{} status berthd", Scope::this().systemctl())
}

fn unreachable(socket: &Path, passed_over: Option<&Path>, source: &io::Error, caller: &Caller) -> Complaint {
    let at = socket.display();
    let Caller { user, uid, .. } = caller;
    let service = [status_of_berthd()];
    let say =
        |code: &str, title: String, hints: &[String]| Complaint::new(Exit::Unreachable, code, title, hints);
    match source.kind() {
        ErrorKind::NotFound => {
            let nor = passed_over.map_or_else(String::new, |other| format!(", nor {}", other.display()));
            say(
                "berthd_not_running",
                format!("berthd is not running: there is no socket {at}{nor}"),
                &service,
            )
        }
        ErrorKind::ConnectionRefused => {
            say("berthd_not_running", format!("berthd is not running: nobody listens on {at}"), &service)
        }
        ErrorKind::PermissionDenied if caller.has_group => say(
            "permission_denied",
            format!("{user} (uid {uid}) is in group {GROUP} and still may not open {at}"),
            &[format!("ls -l {at}")],
        ),
        ErrorKind::PermissionDenied if caller.member => say(
            "permission_denied",
            format!(
                "{user} (uid {uid}) may not open {at}: this session is older than {user}'s place in group {GROUP}"
            ),
            &[format!("newgrp {GROUP} (or log in again)")],
        ),
        ErrorKind::PermissionDenied => say(
            "permission_denied",
            format!("{user} (uid {uid}) may not open {at}: not in group {GROUP}"),
            &[
                vec![format!("sudo usermod -aG {GROUP} {user}, then log in again")],
                if caller.has_own {
                    vec!["berthctl --user …, for the berthd of your own".to_owned()]
                } else {
                    Vec::new()
                },
            ]
            .concat(),
        ),
        ErrorKind::TimedOut => {
            say("no_answer", format!("berthd has not taken a connection on {at} for 5 s"), &service)
        }
        _ => say("no_answer", format!("can't connect to berthd on {at}: {source}"), &service),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kind: ErrorKind, member: bool, has_group: bool) -> String {
        let caller = Caller { user: "frank".into(), uid: 1000, member, has_group, has_own: member };
        let other = Some(Path::new("/run/user/1000/berth/berth.sock")).filter(|_| !member);
        let complaint = unreachable(Path::new("/run/berth/berth.sock"), other, &kind.into(), &caller);
        format!(
            "{}\n{}{}\n",
            complaint.code,
            paragraph("error: ", &complaint.title),
            plan::hints(&complaint.hints)
        )
    }

    #[test]
    fn each_way_of_not_reaching_berthd_has_its_own_next_step() {
        let all = [
            told(ErrorKind::NotFound, false, false),
            told(ErrorKind::ConnectionRefused, true, true),
            told(ErrorKind::PermissionDenied, false, false),
            told(ErrorKind::PermissionDenied, true, false),
            told(ErrorKind::PermissionDenied, true, true),
            told(ErrorKind::TimedOut, true, true),
        ];
        insta::assert_snapshot!(all.join("\n"));
    }
}
