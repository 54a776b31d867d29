//! `make demo`: what goes wrong by hand and what Berth does instead, on two simulated GPUs.
//!
//! ```text
//! main ──► servers (what aeon and genesis are) ──► by_hand (systemctl stop, start: out of memory)
//!                                             └──► with_berth (berthctl switch) ──► table, last line
//! ```
//!
//! With a terminal it stays up afterwards, until Ctrl-C. It leaves nothing behind, whatever ends it.

mod by_hand;
mod servers;
mod show;
mod with_berth;

use std::io::{IsTerminal, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_tests::Berth;
use sandbox::Interrupt;
use tokio::signal::unix::{SignalKind, signal};

use crate::servers::Servers;

/// As a dead process's memory does on a card of the story, more or less.
const LINGER: &str = "2500ms";

/// The exit code of one that was interrupted.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let interrupt = match on_signals() {
        Ok(interrupt) => interrupt,
        Err(error) => return failed(&error),
    };
    let pretend = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--fakellm"] => true,
        _ => return failed(&anyhow::anyhow!("usage: demo [--fakellm]")),
    };
    match run(pretend, &interrupt) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupt.is_set() => {
            eprintln!("\ndemo: interrupted; nothing is left of it");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("demo: {error:#}");
    ExitCode::FAILURE
}

fn run(pretend: bool, interrupt: &Interrupt) -> Result<()> {
    let servers = Servers::choose(pretend)?;
    show::title(&servers);
    let start = Instant::now();
    let berth = Berth::builder()
        .dir(folder())
        // Not a test's short deadlines: a slow machine is no failure.
        .main("node = \"tower\"\n")
        .declare(&servers)
        .interrupt(interrupt.clone())
        .try_boot()?;
    show::booted(start.elapsed());
    let demo = Demo { berth, servers, interrupt: interrupt.clone() };
    demo.run().inspect_err(|_| {
        if !interrupt.is_set() {
            eprintln!("{}", demo.berth.report());
        }
    })
}

/// A place with a short name, since the reader may have to type it.
fn folder() -> PathBuf {
    std::env::temp_dir().join("berth-demo")
}

/// The machine and what is shown on it.
struct Demo {
    berth: Berth,
    servers: Servers,
    interrupt: Interrupt,
}

impl Demo {
    fn run(&self) -> Result<()> {
        self.gpu(&["linger", LINGER])?;
        let by_hand = self.by_hand()?;
        let switched = self.with_berth()?;
        show::table(&by_hand, &switched.swap);
        let terminal = stdin().is_terminal() && stdout().is_terminal();
        show::last_line(&by_hand, &switched);
        if !terminal {
            return Ok(());
        }
        show::what_to_try(self.berth.sandbox().dir());
        while !self.interrupt.is_set() {
            thread::sleep(Duration::from_millis(50));
        }
        println!("\ndemo: taken down, nothing is left of it");
        Ok(())
    }

    /// Runs a command in the guest as root; one that fails is an error.
    fn guest(&self, argv: &[&str]) -> Result<String> {
        self.go_on()?;
        let output = self.berth.sandbox().exec(argv)?.check();
        Ok(output.with_context(|| format!("`{}` in the sandbox", argv.join(" ")))?.stdout)
    }

    fn gpu(&self, arguments: &[&str]) -> Result<String> {
        self.guest(&[&["gpusim", "ctl"], arguments].concat())
    }

    /// Looks until there is an answer.
    fn wait<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            self.go_on()?;
            if let Some(found) = look()? {
                return Ok(found);
            }
            if start.elapsed() >= deadline {
                bail!("{what}: not within {} s", deadline.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// An error once the reader wants no more.
    fn go_on(&self) -> Result<()> {
        if self.interrupt.is_set() {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// A flag that SIGINT, SIGTERM and SIGHUP set from now on, instead of ending us. Handled, not blocked: programs
/// that we start would inherit the block.
fn on_signals() -> Result<Interrupt> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut streams = {
        let _inside = runtime.enter();
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        kinds.map(signal).into_iter().collect::<Result<Vec<_>, _>>().context("can't handle signals")?
    };
    let interrupt = Interrupt::default();
    let flag = interrupt.clone();
    thread::spawn(move || {
        let [int, term, hup] = &mut streams[..] else { return };
        runtime.block_on(async {
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
        });
        flag.set();
    });
    Ok(interrupt)
}

/// What a [`berth_tests::Builder`] is told of the servers.
trait Declare {
    fn declare(self, servers: &Servers) -> Self;
}

impl Declare for berth_tests::Builder {
    fn declare(self, servers: &Servers) -> Self {
        let builder = self.model("aeon", &servers.declaration()).model("genesis", &servers.declaration());
        if servers.are_real() { builder.assets() } else { builder }
    }
}
