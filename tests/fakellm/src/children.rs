//! Families of processes: workers that outlive their parent, workers that leave its cgroup, and a child that
//! serves in its parent's place. Each is this program again, with a role.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gpusim::visible::Claims;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::socket::sockopt::Ipv6V6Only;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket};
use nix::unistd::{Pid, setsid};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Arguments, Role};
use crate::gpu;

/// This program again, in another role.
fn again(role: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("can't find this program")?);
    command.args(std::env::args_os().skip(1)).args(["--role", role]);
    Ok(command)
}

/// Starts the workers that the flags ask for, and returns once they hold what they hold.
pub(crate) fn start(arguments: &Arguments) -> Result<()> {
    if arguments.child_listens.is_some() {
        again("listener")?.stdin(Stdio::null()).spawn().context("can't start the child that listens")?;
    }
    let wanted = [(arguments.fork_child, "worker"), (arguments.escape_child, "escapee")];
    for role in wanted.iter().filter(|(wanted, _)| *wanted).map(|(_, role)| role) {
        // The worker says `holding` down this pipe, however many processes away.
        let mut child = again(role)?.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.trim() != "holding" {
            bail!("the {role} did not get its memory");
        }
        if *role == "escapee" {
            child.wait()?;
        }
    }
    Ok(())
}

/// Starts an escaped worker and ends at once.
pub(crate) fn step_aside() -> Result<u8> {
    again("escaped")?.stdin(Stdio::null()).spawn().context("can't start the worker")?;
    Ok(0)
}

/// A worker's life: it holds memory and ignores all that can be ignored.
pub(crate) fn be_worker(arguments: &Arguments) -> Result<u8> {
    // Fails only for a leader of a group, which a child is not.
    let _ = setsid();
    nix::sys::prctl::set_name(c"fakellm-worker")?;
    // Blocked for good, which is as deaf as a process can be without a handler.
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]).thread_block()?;
    if let Some(cgroup) = arguments.escape_to.as_deref().filter(|_| arguments.role == Role::Escaped) {
        match move_to(cgroup) {
            Ok(()) => eprintln!("fakellm: the worker is now in {}", cgroup.display()),
            Err(error) => eprintln!("fakellm: the worker stays where it is: {error:#}"),
        }
    }
    let claims = Claims { on: arguments.child_vram.clone(), each: None };
    gpu::take(&claims, arguments.style, Duration::ZERO)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "holding")?;
    stdout.flush()?;
    loop {
        std::thread::park();
    }
}

/// The life of a child that only listens: after a while, and until its parent ends.
pub(crate) fn listen(arguments: &Arguments) -> Result<u8> {
    // Not by the kernel's signal: that comes when the thread ends which started this process.
    let parent = std::os::unix::process::parent_id();
    std::thread::spawn(move || {
        while std::os::unix::process::parent_id() == parent {
            std::thread::sleep(Duration::from_millis(200));
        }
        std::process::exit(0);
    });
    let Some(address) = arguments.child_listens else { bail!("nothing to listen at") };
    std::thread::sleep(arguments.child_listens_after);
    let listener = match address {
        SocketAddr::V4(_) => TcpListener::bind(address)?,
        SocketAddr::V6(v6) => {
            let socket = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&socket, Ipv6V6Only, &true)?;
            bind(socket.as_raw_fd(), &SockaddrIn6::from(v6))?;
            nix::sys::socket::listen(&socket, Backlog::new(1)?)?;
            TcpListener::from(socket)
        }
    };
    eprintln!("fakellm: a child listens at {address}");
    loop {
        // Who connects is let in and asked nothing.
        drop(listener.accept()?);
    }
}

/// Moves this process to a cgroup, which is made if missing.
fn move_to(cgroup: &Path) -> Result<()> {
    std::fs::create_dir_all(cgroup).with_context(|| format!("can't make {}", cgroup.display()))?;
    let procs = cgroup.join("cgroup.procs");
    std::fs::write(&procs, std::process::id().to_string())
        .with_context(|| format!("can't write {}", procs.display()))
}

/// A parent's life: a child does the work, SIGTERM goes on to it, and its end is ours.
pub(crate) fn serve_from_child() -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let mut child = tokio::process::Command::from(again("server")?).spawn()?;
        loop {
            tokio::select! {
                ended = child.wait() => {
                    let status = ended?;
                    let code = status.code().or(status.signal().map(|signal| 128 + signal));
                    return Ok(u8::try_from(code.unwrap_or(1)).unwrap_or(1));
                }
                _ = term.recv() => {
                    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
                    }
                }
            }
        }
    })
}
