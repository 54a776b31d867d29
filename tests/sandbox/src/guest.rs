//! Running things in a guest.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::wait::wait_until;

/// A guest that runs: what it takes to enter it.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) pid1: u32,
    cgroup: PathBuf,
}

/// What a command in the guest left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status; 128 + n after signal n, as a shell has it.
    pub status: ExitStatus,
    /// Standard output; what is not UTF-8 in it is replaced.
    pub stdout: String,
    /// Standard error, in the same way.
    pub stderr: String,
}

impl Output {
    /// The output of a command that succeeded.
    ///
    /// # Errors
    /// Its exit status and what it wrote, where that is not 0.
    pub fn check(self) -> Result<Output> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("{}: {}{}", self.status, self.stderr, self.stdout);
    }
}

impl Guest {
    pub(crate) fn new(pid1: u32, cgroup: &Path) -> Guest {
        Guest { pid1, cgroup: cgroup.to_owned() }
    }

    /// The command, to be run in the guest with a clean environment; as root, or as a user whom the guest
    /// knows, with the groups that the guest gives him.
    ///
    /// What is started has a waiting parent outside the guest, in the same process group: a signal to the
    /// group (Ctrl-C in a terminal is one) reaches the command once; SIGKILL to the parent kills both; and
    /// its exit status is the command's, 128 + n after signal n.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, user: Option<&str>, argv: &[S]) -> Result<Command> {
        if argv.is_empty() {
            bail!("no command to run in the sandbox");
        }
        let (uid, gid) = self.user(user.unwrap_or("root"))?;
        // Into the cgroup first, and from here: a cgroup namespace can be a boundary for moves.
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.cgroup);
        command.args(["nsenter", "--target", &self.pid1.to_string()]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--no-fork", "--"]);
        // Only a child is in the PID namespace; this shell waits for it, whatever signal both get, and keeps
        // its own word on how the child died to itself.
        let wait = "trap : INT QUIT HUP TERM; exec 3>&2 2>/dev/null; (exec \"$@\" 2>&3 3>&-); exit $?";
        command.args(["sh", "-c", wait, "sandbox"]);
        command.args(["setpriv", "--reuid", &uid, "--regid", &gid, "--init-groups"]);
        command.args(["--pdeathsig", "KILL", "--reset-env", "--", "env", "--"]);
        command.args(["LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        command.args(argv);
        Ok(command)
    }

    /// Uid and gid of a user, as the guest's own /etc/passwd has them.
    fn user(&self, name: &str) -> Result<(String, String)> {
        let path = format!("/proc/{}/root/etc/passwd", self.pid1);
        let users = fs::read_to_string(&path).context("can't read the guest's /etc/passwd: has it died?")?;
        let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
        for fields in fields {
            if let [user, _, uid, gid, ..] = fields[..]
                && user == name
            {
                return Ok((uid.to_owned(), gid.to_owned()));
            }
        }
        bail!("the guest has no user {name:?} (frank and mallory are there to test with)");
    }
}

/// The same, on a terminal of the guest's own.
pub(crate) fn on_terminal<S: AsRef<OsStr>>(argv: &[S]) -> Vec<OsString> {
    let quoted: Vec<OsString> = argv.iter().map(|word| quote(word.as_ref())).collect();
    let line = quoted.join(OsStr::new(" "));
    let script = ["script", "--quiet", "--return", "--flush", "--command"].map(OsString::from);
    script.into_iter().chain([line, "/dev/null".into()]).collect()
}

/// A word as a shell takes it back.
fn quote(word: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

/// Sends a signal to what was started by [`crate::Sandbox::command`], as Ctrl-C in a terminal would.
///
/// # Errors
/// The process is gone.
pub fn signal(child: &Child, signal: Signal) -> Result<()> {
    let group = Pid::from_raw(child.id().cast_signed());
    killpg(group, signal).with_context(|| format!("can't send {signal} to process group {group}"))
}

/// Runs to the end, gives it `input`, and collects what it writes.
///
/// # Errors
/// When it has not ended by the deadline it is killed, and the error has what it wrote until then.
pub(crate) fn run(mut command: Command, input: &[u8], deadline: Duration) -> Result<Output> {
    // A group of its own, so that the deadline reaches all of it.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("can't run sh")?;
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // One that doesn't read all of it is no error.
        thread::spawn(move || stdin.write_all(&input).ok());
    }
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let mut ended = None;
    wait_until(deadline, || {
        ended = child.try_wait().transpose();
        ended.is_some()
    });
    let text = |collected: Option<Collected>| collected.map(Collected::take).unwrap_or_default();
    if let Some(status) = ended {
        return Ok(Output { status: status?, stdout: text(stdout), stderr: text(stderr) });
    }
    signal(&child, Signal::SIGKILL).ok();
    child.wait()?;
    bail!(
        "it had not ended after {:.1} s and was killed; until then it wrote: {}{}",
        deadline.as_secs_f64(),
        text(stdout),
        text(stderr)
    );
}

/// What is read from a pipe so far.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    end: mpsc::Receiver<()>,
}

fn collect(mut pipe: impl Read + Send + 'static) -> Collected {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let (tell, end) = mpsc::channel::<()>();
    let shared = Arc::clone(&bytes);
    thread::spawn(move || {
        let _tell = tell;
        let mut buffer = [0; 16 << 10];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            shared.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..read]);
        }
    });
    Collected { bytes, end }
}

impl Collected {
    /// All of it; for a moment it waits for the pipe's end, which a child left in the background keeps open.
    fn take(self) -> String {
        self.end.recv_timeout(Duration::from_millis(300)).ok();
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The exit code that a shell would give for this status.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_shell_takes_quoted_words_back() {
        let words = ["it's", "a b", "$HOME", "", "\\"];
        let line = words.map(|word| quote(word.as_ref())).join(OsStr::new(" "));
        let mut command = Command::new("sh");
        command.args([OsString::from("-c"), [OsStr::new("printf '%s|' "), &line].concat_os()]);
        let output = run(command, &[], Duration::from_secs(5)).unwrap();
        assert_eq!(output.stdout, "it's|a b|$HOME||\\|");
    }

    trait Concat {
        fn concat_os(&self) -> OsString;
    }

    impl Concat for [&OsStr; 2] {
        fn concat_os(&self) -> OsString {
            self.join(OsStr::new(""))
        }
    }

    #[test]
    fn a_deadline_kills_and_tells_what_was_written() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo hello; sleep 60"]);
        let error = run(command, &[], Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("0.3 s") && error.contains("hello"), "{error}");
    }

    #[test]
    fn a_child_in_the_background_holds_nothing_up() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 3 & echo done"]);
        let start = std::time::Instant::now();
        let output = run(command, &[], Duration::from_secs(10)).unwrap();
        assert_eq!(output.stdout, "done\n");
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
