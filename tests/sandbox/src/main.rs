//! `sandbox`: a machine of your own to try Berth in, with simulated GPUs.

use std::io::{IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use sandbox::{DEFAULT_GPUS, Interrupt, Sandbox};

/// A real systemd with simulated GPUs, to try Berth in. Needs root; nothing of the host is changed.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct Where {
    /// The sandbox's folder.
    #[arg(long, default_value = ".sandbox")]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a new sandbox and boot it.
    Up {
        #[command(flatten)]
        at: Where,
        /// Simulated cards: `COUNTxMIB`, or several such with commas.
        #[arg(long, default_value = DEFAULT_GPUS)]
        gpus: String,
        /// Install tree to copy over its root, or `none` [default: stage, beside this program's folder].
        #[arg(long)]
        tree: Option<PathBuf>,
        /// Show a file or folder of the host in it: SRC:DST or SRC:DST:ro; may be repeated.
        #[arg(long, value_name = "SRC:DST", value_parser = parse_bind)]
        bind: Vec<(PathBuf, PathBuf, bool)>,
        /// Start this unit too; may be repeated.
        #[arg(long, value_name = "UNIT")]
        want: Vec<String>,
        /// Its host name.
        #[arg(long, default_value = "sandbox")]
        name: String,
        /// Sandboxes with different seeds have cards with different UUIDs.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Run a command in it.
    Exec {
        #[command(flatten)]
        at: Where,
        /// As this user of it: frank is in group berth, mallory is not [default: root].
        #[arg(long)]
        user: Option<String>,
        /// On a terminal of its own.
        #[arg(long)]
        tty: bool,
        /// The command.
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// A shell in it.
    Shell {
        #[command(flatten)]
        at: Where,
        /// As this user of it [default: root].
        #[arg(long)]
        user: Option<String>,
    },
    /// Turn the simulated GPUs' knobs: `linger 2500ms`, `lose 0`, `restore 0`, `stats --json`; --help lists all.
    #[command(disable_help_flag = true)]
    Gpu {
        #[command(flatten)]
        at: Where,
        /// What `gpusim ctl` takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Say what runs.
    Status {
        #[command(flatten)]
        at: Where,
    },
    /// Cut its power: what was not synced to /var/lib/berth is lost.
    Cut {
        #[command(flatten)]
        at: Where,
    },
    /// Boot the same disk again.
    Boot {
        #[command(flatten)]
        at: Where,
    },
    /// Shut it down in good order.
    Down {
        #[command(flatten)]
        at: Where,
        /// Remove its disk too.
        #[arg(long)]
        wipe: bool,
    },
}

fn parse_bind(text: &str) -> Result<(PathBuf, PathBuf, bool), String> {
    match text.split(':').collect::<Vec<_>>()[..] {
        [from, to] => Ok((from.into(), to.into(), false)),
        [from, to, "ro"] => Ok((from.into(), to.into(), true)),
        _ => Err("write it as SRC:DST or SRC:DST:ro".to_owned()),
    }
}

/// `println!`, but one who stops reading is no reason to panic.
macro_rules! say {
    ($($what:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($what)*);
    }};
}

fn main() -> ExitCode {
    let interrupt = Interrupt::default();
    match run(Arguments::parse().verb, &interrupt) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sandbox: {error:#}");
            if interrupt.is_set() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

fn run(verb: Verb, interrupt: &Interrupt) -> Result<ExitCode> {
    match verb {
        Verb::Up { at, gpus, tree, bind, want, name, seed } => {
            let start = Instant::now();
            let mut builder = Sandbox::builder().dir(&at.dir).gpus(gpus).name(name).seed(seed);
            set_on_signals(interrupt)?;
            builder = builder.interrupt(interrupt.clone());
            match tree {
                Some(tree) if tree.as_os_str() == "none" => {}
                tree => builder = builder.tree(tree.map_or_else(default_tree, Ok)?),
            }
            for (from, to, read_only) in bind {
                builder = if read_only { builder.bind_read_only(from, to) } else { builder.bind(from, to) };
            }
            for unit in want {
                builder = builder.want(unit);
            }
            let sandbox = builder.up_to_stay()?;
            say!("sandbox: up in {:.1} s", start.elapsed().as_secs_f64());
            show(&sandbox, &at)?;
            say!("{}", what_next(&at));
        }
        Verb::Exec { at, user, tty, command } => return exec(&at, user.as_deref(), tty, &command),
        Verb::Shell { at, user } => {
            let shell = ["sh", "-c", "cd; exec bash -l"].map(str::to_owned);
            return exec(&at, user.as_deref(), std::io::stdin().is_terminal(), &shell);
        }
        Verb::Gpu { at, arguments } => {
            let command: Vec<String> =
                ["gpusim", "ctl"].map(str::to_owned).into_iter().chain(arguments).collect();
            return exec(&at, None, false, &command);
        }
        Verb::Status { at } => return status(&at),
        Verb::Cut { at } => {
            Sandbox::attach(&at.dir)?.cut()?;
            say!("sandbox: power cut; `{}` starts the same disk", called(&at, "boot"));
        }
        Verb::Boot { at } => {
            let start = Instant::now();
            let mut sandbox = Sandbox::attach(&at.dir)?;
            set_on_signals(interrupt)?;
            sandbox.set_interrupt(interrupt.clone());
            sandbox.boot()?;
            say!("sandbox: boot {} in {:.1} s", sandbox.boots(), start.elapsed().as_secs_f64());
            show(&sandbox, &at)?;
        }
        Verb::Down { at, wipe } => {
            let mut sandbox = match Sandbox::attach(&at.dir) {
                Err(_) if wipe && !at.dir.exists() => return Ok(ExitCode::SUCCESS),
                sandbox => sandbox?,
            };
            if wipe {
                sandbox.down()?;
                say!("sandbox: down, nothing left");
            } else {
                sandbox.poweroff()?;
                say!(
                    "sandbox: down; `{}` starts the same disk, `{} --wipe` removes it",
                    called(&at, "boot"),
                    called(&at, "down")
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Becomes the command, so that its exit status and signals are this program's.
fn exec(at: &Where, user: Option<&str>, terminal: bool, argv: &[String]) -> Result<ExitCode> {
    let error = Sandbox::attach(&at.dir)?.foreground(user, terminal, argv)?.exec();
    Err(error).context("can't run sh")
}

/// From now on SIGINT, SIGTERM and SIGHUP set the flag instead of ending us.
fn set_on_signals(interrupt: &Interrupt) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Blocked here and thus in all threads; programs that we start get them unblocked.
    signals.thread_block().context("can't block signals")?;
    let flag = interrupt.clone();
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            flag.set();
        }
    });
    Ok(())
}

/// `stage` beside the folder that this program lies in: target/debug/sandbox takes target/stage.
fn default_tree() -> Result<PathBuf> {
    let program = std::env::current_exe().context("can't tell where this program lies")?;
    let tree = program.parent().and_then(|folder| folder.parent()).map(|target| target.join("stage"));
    match tree {
        Some(tree) if tree.is_dir() => Ok(tree),
        Some(tree) => bail!(
            "no install tree at {}: make it with `make stage`, or name one with --tree; `--tree none` boots a bare system",
            tree.display()
        ),
        None => bail!("name an install tree with --tree, or `--tree none` for a bare system"),
    }
}

fn status(at: &Where) -> Result<ExitCode> {
    let sandbox = Sandbox::attach(&at.dir)?;
    if sandbox.pid1().is_none() {
        say!("sandbox: down; `{}` starts the same disk", called(at, "boot"));
        // As systemctl's status does for what is not active.
        return Ok(ExitCode::from(3));
    }
    show(&sandbox, at)?;
    Ok(ExitCode::SUCCESS)
}

/// The facts about a running sandbox, a line each.
fn show(sandbox: &Sandbox, at: &Where) -> Result<()> {
    let (state, failed) = sandbox.health()?;
    let systemd = sandbox.exec(&["systemctl", "--version"])?.stdout;
    let systemd = systemd.lines().next().unwrap_or("systemd").to_owned();
    let pid1 = sandbox.pid1().unwrap_or_default();
    say!("  system   {state}: {systemd}, PID 1 is {pid1} outside, boot {}", sandbox.boots());
    for unit in &failed {
        say!("  failed   {unit}: `{} journalctl -u {unit}` says why", called(at, "exec"));
    }
    let units = ["gpusim.service", "berthd.service"];
    for unit in units {
        let shown =
            sandbox.exec(&["systemctl", "show", "--value", "--property=LoadState,ActiveState", unit])?;
        let states: Vec<&str> = shown.stdout.split_whitespace().collect();
        let said = match (unit, &states[..]) {
            ("gpusim.service", ["loaded", "active"]) => format!("{} simulated cards", sandbox.gpus()),
            ("gpusim.service", ["loaded", "inactive"]) => "off: no /usr/bin/gpusim in the tree".to_owned(),
            (_, ["loaded", state]) => (*state).to_owned(),
            _ => "not installed: no such unit in the tree".to_owned(),
        };
        say!("  {:<8} {said}", unit.trim_end_matches(".service"));
    }
    say!("  folder   {}", sandbox.dir().display());
    Ok(())
}

fn what_next(at: &Where) -> String {
    let lines = [
        (called(at, "exec -- berthctl"), "who holds the GPUs, what serves"),
        (called(at, "exec --user frank -- berthctl switch MODEL"), "as a member of group berth"),
        (called(at, "gpu linger 2500ms"), "freed memory comes back late"),
        (called(at, "shell"), "look around"),
        (called(at, "cut"), "a power cut; `boot` starts it again"),
        (called(at, "down --wipe"), "the end; nothing is left"),
    ];
    let width = lines.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
    let lines: Vec<_> = lines.iter().map(|(command, what)| format!("  {command:<width$}  {what}")).collect();
    format!("try\n{}", lines.join("\n"))
}

/// How the reader calls this program for a verb on the same sandbox.
fn called(at: &Where, verb: &str) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "sandbox".to_owned());
    let (verb, rest) = verb.split_once(' ').unwrap_or((verb, ""));
    let dir =
        if at.dir.as_os_str() == ".sandbox" { String::new() } else { format!(" --dir {}", at.dir.display()) };
    let rest = if rest.is_empty() { String::new() } else { format!(" {rest}") };
    format!("{program} {verb}{dir}{rest}")
}
