//! berth-launch: the program of `berth-model@.service`. A ticket in, the model's server out.
//!
//! It reads the ticket that systemd fetched for the unit from berthd, checks that what it names can be run,
//! reports ready and becomes the server. Where it may or can not, it says why on stderr and in the unit's
//! status, and ends with [`EXIT_REFUSED`], [`EXIT_CANNOT_RUN`] or [`EXIT_MISSING`]. It decides nothing.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

mod bounds;

use berth_launch::{EXIT_CANNOT_RUN, EXIT_MISSING, EXIT_REFUSED, Launch, Ticket};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, eaccess, execve};
use sd_notify::NotifyState;

/// Where a program without a `/` is searched for.
const PROGRAM_PATH: [&str; 2] = ["/usr/local/bin", "/usr/bin"];

/// How long the clearing away of what an earlier run left may take in all, and between two looks.
const CLEAR: Duration = Duration::from_secs(10);
const CLEAR_PAUSE: Duration = Duration::from_millis(5);

/// Why no server runs.
struct Failure {
    /// The exit status.
    code: u8,
    /// The error number that `systemctl status` shows.
    errno: Errno,
    /// One sentence.
    reason: String,
}

impl Failure {
    fn refused(reason: String) -> Self {
        Self { code: EXIT_REFUSED, errno: Errno::EPERM, reason }
    }

    fn cannot_run(errno: Errno, reason: String) -> Self {
        Self { code: EXIT_CANNOT_RUN, errno, reason }
    }

    fn missing(reason: String) -> Self {
        Self { code: EXIT_MISSING, errno: Errno::ENOENT, reason }
    }
}

fn main() -> ExitCode {
    let failure = match ticket() {
        Ok(Ticket::Launch(launch)) => run(&launch),
        Ok(Ticket::Refused(reason)) => Failure::refused(reason),
        Err(failure) => failure,
    };
    // One line: the protocol to systemd ends a field at a line break.
    let reason = failure.reason.split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("berth-launch: {reason}");
    // Without systemd there is nobody to tell, and stderr has said it already.
    _ = sd_notify::notify(&[NotifyState::Status(&reason), NotifyState::Errno(failure.errno as u32)]);
    ExitCode::from(failure.code)
}

/// The ticket that systemd fetched.
fn ticket() -> Result<Ticket, Failure> {
    let Some(folder) = env::var_os("CREDENTIALS_DIRECTORY") else {
        return Err(Failure::refused(
            "there is no ticket: this program is run by systemd as berth-model@MODEL.service; to start a model \
             run `berthctl start MODEL`"
                .to_owned(),
        ));
    };
    let path = Path::new(&folder).join("ticket");
    let text = fs::read(&path)
        .map_err(|error| Failure::refused(format!("the ticket {} can't be read: {error}", path.display())))?;
    Ticket::parse(&text).map_err(|error| Failure::refused(error.to_string()))
}

/// The arguments of exec.
struct Server {
    program: PathBuf,
    path: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
}

/// Becomes the server; returns only if that fails.
fn run(launch: &Launch) -> Failure {
    let server = match prepare(launch) {
        Ok(server) => server,
        Err(failure) => return failure,
    };
    if let Err(failure) = clear(launch, &server.env) {
        return failure;
    }
    // Before exec, since the server knows nothing of systemd; all that could be checked has been.
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        return Failure::cannot_run(
            Errno::EIO,
            format!("systemd can't be told that the server starts: {error}"),
        );
    }
    // Not std's exec: that hands what the kernel refuses to a shell, and the reason would be lost. Signals stay
    // as systemd set them.
    let Err(errno) = execve(&server.path, &server.argv, &server.env);
    let program = server.program.display();
    match errno {
        Errno::ENOENT => Failure::missing(format!(
            "{program} can't be run: the interpreter or loader that it names is missing"
        )),
        _ => Failure::cannot_run(errno, format!("{program} can't be run: {}", errno.desc())),
    }
}

/// Clears away what an earlier run left, as whoever becomes the server, and sees that it is gone. An engine may be at its
/// end already, so that a removal fails and it goes all the same.
fn clear(launch: &Launch, env: &[CString]) -> Result<(), Failure> {
    let Some(clear) = &launch.clear else { return Ok(()) };
    let end = Instant::now() + CLEAR;
    loop {
        let found = output(&clear.find, env, end)?;
        let status = found.status;
        let left = String::from_utf8_lossy(&found.stdout).into_owned();
        let left: Vec<String> = left.split_whitespace().map(str::to_owned).collect();
        if !status.success() {
            let command = clear.find.join(" ");
            return Err(Failure::cannot_run(
                Errno::EIO,
                format!("whether an earlier run left something is unknown: `{command}` ended with {status}"),
            ));
        }
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            let left = left.join(" ");
            return Err(Failure::cannot_run(
                Errno::EBUSY,
                format!("what an earlier run left is still there after {} s: {left}", CLEAR.as_secs()),
            ));
        }
        eprintln!("berth-launch: removing what an earlier run left: {}", left.join(" "));
        output(&[clear.remove.as_slice(), &left].concat(), env, end)?;
        thread::sleep(CLEAR_PAUSE);
    }
}

/// How a command ended and what it printed; it is killed at `end`.
fn output(command: &[String], env: &[CString], end: Instant) -> Result<Output, Failure> {
    let name = command.first().map_or("", String::as_str);
    let pairs = env.iter().filter_map(|pair| {
        let at = pair.as_bytes().iter().position(|byte| *byte == b'=')?;
        Some((OsStr::from_bytes(&pair.as_bytes()[..at]), OsStr::from_bytes(&pair.as_bytes()[at + 1..])))
    });
    let failed = |error: std::io::Error| {
        Failure::cannot_run(errno(&error), format!("`{}` can't be run: {error}", command.join(" ")))
    };
    let mut started = Command::new(find(name)?);
    started.args(command.get(1..).unwrap_or_default()).env_clear().envs(pairs);
    // What it prints is a few lines, which a pipe holds.
    started.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = started.spawn().map_err(failed)?;
    while child.try_wait().map_err(failed)?.is_none() {
        if Instant::now() >= end {
            // It may have ended by now.
            _ = child.kill();
            return Err(Failure::cannot_run(
                Errno::ETIMEDOUT,
                format!(
                    "`{}` has not ended within {} s: does it answer?",
                    command.join(" "),
                    CLEAR.as_secs()
                ),
            ));
        }
        thread::sleep(CLEAR_PAUSE);
    }
    child.wait_with_output().map_err(failed)
}

/// Checks what can be checked before systemd is told that the server starts, enters the working directory and takes on
/// processors, limit and priority.
fn prepare(launch: &Launch) -> Result<Server, Failure> {
    let Some(name) = launch.argv.first() else {
        return Err(Failure::refused("the ticket names no program".to_owned()));
    };
    let argv =
        launch.argv.iter().map(|text| c_string("the argument", text.as_ref())).collect::<Result<_, _>>()?;
    let env = environment(launch)?;
    if let Some(cwd) = &launch.cwd {
        c_string("the working directory", cwd.as_ref())?;
        env::set_current_dir(cwd).map_err(|error| {
            Failure::cannot_run(
                errno(&error),
                format!("the working directory {cwd} can't be entered as {}: {error}", user()),
            )
        })?;
    }
    bounds::set(launch)?;
    let program = find(name)?;
    let path = c_string("the program", program.as_os_str())?;
    Ok(Server { program, path, argv, env })
}

/// The unit's environment, with the ticket's on top.
fn environment(launch: &Launch) -> Result<Vec<CString>, Failure> {
    let mut variables: BTreeMap<OsString, OsString> = env::vars_os().collect();
    // What is between systemd and this program is not the server's: it must not report in our name.
    for private in ["NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"] {
        variables.remove(OsStr::new(private));
    }
    for (key, value) in &launch.env {
        if key.is_empty() || key.contains('=') {
            return Err(Failure::refused(format!("`{key}` can't be the name of an environment variable")));
        }
        variables.insert(key.into(), value.into());
    }
    for name in &launch.secrets {
        variables.insert(name.into(), secret(name)?);
    }
    variables
        .into_iter()
        .map(|(mut pair, value)| {
            pair.push("=");
            pair.push(value);
            c_string("the variable", &pair)
        })
        .collect()
}

/// The unit's credential of this name, without the line break at its end.
fn secret(name: &str) -> Result<OsString, Failure> {
    let folder = env::var_os("CREDENTIALS_DIRECTORY").unwrap_or_default();
    let plain = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
    let read = plain.then(|| fs::read(Path::new(&folder).join(name)).ok()).flatten();
    let Some(mut value) = read else {
        return Err(Failure::refused(format!(
            "the secret {name} is not there: give it to the unit as a credential, `systemctl edit berth-model@.service` \
             with [Service] and LoadCredential={name}:/PATH/OF/ITS/FILE"
        )));
    };
    if value.last() == Some(&b'\n') {
        value.pop();
    }
    Ok(OsString::from_vec(value))
}

/// The program's path, if it can be executed by this user.
fn find(name: &str) -> Result<PathBuf, Failure> {
    let candidates = if name.contains('/') {
        vec![PathBuf::from(name)]
    } else {
        PROGRAM_PATH.iter().map(|folder| Path::new(folder).join(name)).collect()
    };
    for path in &candidates {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(Failure::cannot_run(
                    errno(&error),
                    format!("{} can't be reached as {}: {error}", path.display(), user()),
                ));
            }
        };
        if !metadata.is_file() {
            return Err(Failure::cannot_run(Errno::EACCES, format!("{} is not a file", path.display())));
        }
        return match eaccess(path, AccessFlags::X_OK) {
            Ok(()) => Ok(path.clone()),
            Err(errno) => Err(Failure::cannot_run(
                errno,
                format!("{} is not executable for {}: {}", path.display(), user(), errno.desc()),
            )),
        };
    }
    Err(Failure::missing(match candidates.as_slice() {
        [only] => format!("there is no program {}", only.display()),
        _ => format!("there is no program `{name}` in {}; give its whole path", PROGRAM_PATH.join(" or ")),
    }))
}

/// The text as exec takes it.
fn c_string(what: &str, text: &OsStr) -> Result<CString, Failure> {
    CString::new(text.as_bytes()).map_err(|_| {
        Failure::refused(format!("{what} `{}` has a NUL in it", text.to_string_lossy().escape_debug()))
    })
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}

/// Who can't do it, since rights depend on the unit's `User=`.
fn user() -> String {
    env::var("USER").map_or_else(|_| format!("uid {}", nix::unistd::geteuid()), |name| format!("user {name}"))
}
