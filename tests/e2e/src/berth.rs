//! A sandbox with Berth in it, and the hands and eyes that tests have there.

use std::fmt;
use std::fs;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_core::report::{Event, ModelState, Status, Step, StepState, SwapSummary};
use gpusim::Client;
use gpusim::protocol::Stats;
use sandbox::{Output, Sandbox, exit_code};
use serde_json::Value;
use tempfile::TempDir;

use crate::builder::Builder;
use crate::{failure, http};

/// Nothing that a test asks of the guest takes longer, unless it says so itself.
const DEADLINE: Duration = Duration::from_mins(1);

/// What [`Berth::ask`] asks; the real weights go on with Thursday.
pub const PROMPT: &str = "Monday, Tuesday, Wednesday,";

/// How often [`Berth::wait_for`] looks.
const LOOK: Duration = Duration::from_millis(20);

/// A running sandbox with Berth. Dropped, it is gone; after a panic it first tells what can be known.
///
/// Methods panic where the guest can't be reached or a deadline passes; what berthctl and others answer,
/// refusals too, they give back.
#[derive(Debug)]
pub struct Berth {
    sandbox: Sandbox,
    /// On the host; the guest's /etc/berth.
    config: TempDir,
}

/// What a command left.
#[derive(Debug, Clone)]
pub struct CtlOutput {
    /// Its exit code; 128 + the signal that killed it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// What `berthctl --json` said about a change.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its exit code.
    pub code: i32,
    /// All events of it, in order.
    pub events: Vec<Event>,
    /// How it ended; None where it was refused or nothing was to do.
    pub swap: Option<SwapSummary>,
    /// The last line, whole: `exit` and `swap`, `accepted` or `problem`.
    pub last: Value,
}

/// One run of a model's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its main process, by the guest's number.
    pub main_pid: u32,
    /// systemd's InvocationID.
    pub invocation: String,
}

/// A server to ask: by the model's name or by its port.
#[derive(Debug, Clone)]
pub enum Server {
    /// The declared model of this name.
    Model(String),
    /// Whoever listens there.
    Port(u16),
}

impl From<&str> for Server {
    fn from(name: &str) -> Self {
        Server::Model(name.to_owned())
    }
}

impl From<u16> for Server {
    fn from(port: u16) -> Self {
        Server::Port(port)
    }
}

impl From<Output> for CtlOutput {
    fn from(output: Output) -> Self {
        CtlOutput { code: exit_code(output.status), stdout: output.stdout, stderr: output.stderr }
    }
}

impl fmt::Display for CtlOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}(exit {})", self.stdout, self.stderr, self.code)
    }
}

impl CtlOutput {
    /// Panics unless it ended with this code.
    #[track_caller]
    #[must_use]
    pub fn with_code(self, code: i32) -> CtlOutput {
        assert_eq!(self.code, code, "{self}");
        self
    }
}

impl Change {
    /// How the swap ended; panics where there was none.
    #[track_caller]
    pub fn swap(&self) -> &SwapSummary {
        self.swap.as_ref().unwrap_or_else(|| panic!("no swap came of it: {:#}", self.last))
    }

    /// Panics unless it ended with this code.
    #[track_caller]
    #[must_use]
    pub fn with_code(self, code: i32) -> Change {
        assert_eq!(self.code, code, "{:#}", self.last);
        self
    }
}

impl Berth {
    /// Starts to describe one.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn new(sandbox: Sandbox, config: TempDir) -> Berth {
        Berth { sandbox, config }
    }

    /// The sandbox below, for what has no method here.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Runs anything in the guest, as root or as a user.
    #[track_caller]
    pub fn run(&self, user: Option<&str>, argv: &[&str]) -> CtlOutput {
        self.run_within(DEADLINE, user, argv)
    }

    /// The same with another deadline.
    #[track_caller]
    pub fn run_within(&self, deadline: Duration, user: Option<&str>, argv: &[&str]) -> CtlOutput {
        match self.sandbox.exec_within(deadline, user, argv) {
            Ok(output) => output.into(),
            Err(error) => panic!("{error:#}"),
        }
    }

    /// `berthctl …` as root.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> CtlOutput {
        self.run(None, &with("berthctl", arguments))
    }

    /// `berthctl …` as `frank`, who is in group berth, or `mallory`, who is not.
    #[track_caller]
    pub fn ctl_as(&self, user: &str, arguments: &[&str]) -> CtlOutput {
        self.run(Some(user), &with("berthctl", arguments))
    }

    /// `berthctl … --json`: its last document.
    #[track_caller]
    pub fn ctl_json(&self, arguments: &[&str]) -> Value {
        let output = self.ctl(&[arguments, &["--json"]].concat());
        documents(&output).pop().unwrap_or_else(|| panic!("no JSON: {output}"))
    }

    /// `berthctl switch genesis --json` and its like, taken apart.
    #[track_caller]
    pub fn change(&self, arguments: &[&str]) -> Change {
        change(&self.ctl(&[arguments, &["--json"]].concat()))
    }

    /// `berthctl switch MODEL`; panics unless it ends as asked.
    #[track_caller]
    pub fn switch(&self, model: &str) -> SwapSummary {
        self.change(&["switch", model]).with_code(0).swap().clone()
    }

    /// Starts `berthctl …` and lets it run: standard output and error are pipes, [`sandbox::signal`] reaches
    /// it. Its end is the caller's to wait for.
    #[track_caller]
    pub fn ctl_spawn(&self, user: Option<&str>, arguments: &[&str]) -> Child {
        use std::process::Stdio;
        let spawned = self.command(user, &with("berthctl", arguments)).and_then(|mut command| {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            Ok(command.spawn()?)
        });
        spawned.unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn command(&self, user: Option<&str>, argv: &[&str]) -> Result<Command> {
        self.sandbox.command(user, argv)
    }

    /// What `berthctl status --json` says; also without berthd.
    #[track_caller]
    pub fn status(&self) -> Status {
        let output = self.ctl(&["status", "--json"]);
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("no status ({error}): {output}"))
    }

    /// A model's state, as the status has it.
    #[track_caller]
    pub fn state_of(&self, model: &str) -> ModelState {
        let status = self.status();
        let found = status.models.iter().find(|declared| declared.name.as_str() == model);
        found.map_or_else(|| panic!("no model {model} in {status:?}"), |model| model.state)
    }

    /// Names of the models that serve.
    #[track_caller]
    pub fn serving(&self) -> Vec<String> {
        let models = self.status().models;
        let serving = models.iter().filter(|model| model.state == ModelState::Serving);
        serving.map(|model| model.name.as_str().to_owned()).collect()
    }

    /// `gpusim ctl …`: turns the simulated cards' knobs. Panics when it is refused.
    #[track_caller]
    pub fn gpu(&self, arguments: &[&str]) -> String {
        self.run(None, &[&["gpusim", "ctl"], arguments].concat()).with_code(0).stdout
    }

    /// gpusim's counters and stamps, asked from outside.
    #[track_caller]
    pub fn stats(&self) -> Stats {
        let socket = self.sandbox.gpusim_socket();
        let stats = Client::connect_to(&socket, Duration::from_secs(2))
            .and_then(|client| client.limit(Duration::from_secs(5)))
            .and_then(|mut client| client.stats());
        stats.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Asks a server to go on from [`PROMPT`], on its own port.
    #[track_caller]
    pub fn ask(&self, server: impl Into<Server>) -> String {
        self.try_ask(server, PROMPT).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The same with another prompt; a server that does not answer is no panic.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn try_ask(&self, server: impl Into<Server>, prompt: &str) -> Result<String> {
        let port = match server.into() {
            Server::Port(port) => port,
            Server::Model(model) => self.port(&model)?,
        };
        http::ask(self.pid1()?, port, prompt)
    }

    /// The port of a declared model.
    ///
    /// # Errors
    /// There is no such model.
    pub fn port(&self, model: &str) -> Result<u16> {
        let status = self.status();
        let declared = status.models.iter().find(|declared| declared.name.as_str() == model);
        let address = &declared.with_context(|| format!("no model {model} is declared"))?.address;
        let port = address.rsplit(':').next().and_then(|port| port.trim_end_matches('/').parse().ok());
        port.with_context(|| format!("the address of {model} has no port: {address}"))
    }

    /// The host's number of the guest's PID 1.
    ///
    /// # Errors
    /// The guest is down.
    pub fn pid1(&self) -> Result<u32> {
        self.sandbox.pid1().context("the sandbox is down")
    }

    /// Looks until there is an answer; panics when there is none within the deadline.
    #[track_caller]
    pub fn wait_for<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut look: impl FnMut(&Berth) -> Option<T>,
    ) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(start.elapsed() < deadline, "{what}: not within {deadline:?}");
            thread::sleep(LOOK);
        }
    }

    /// Waits until a model serves.
    #[track_caller]
    pub fn wait_serving(&self, model: &str, deadline: Duration) {
        self.wait_for(&format!("{model} serves"), deadline, |berth| {
            berth.serving().iter().any(|serving| serving == model).then_some(())
        });
    }

    /// `systemctl …` as root.
    #[track_caller]
    pub fn systemctl(&self, arguments: &[&str]) -> CtlOutput {
        self.run(None, &with("systemctl", arguments))
    }

    /// One property of a unit, as `systemctl show` gives it.
    #[track_caller]
    pub fn property(&self, unit: &str, property: &str) -> String {
        let shown = self.systemctl(&["show", "--value", "--property", property, "--", unit]).with_code(0);
        shown.stdout.trim().to_owned()
    }

    /// Which run of a model's server this is: no other has the same main process and InvocationID. Main
    /// process 0 where none runs.
    #[track_caller]
    pub fn run_of(&self, model: &str) -> Run {
        let unit = format!("berth-model@{model}.service");
        let shown = self.systemctl(&["show", "--property=MainPID,InvocationID", "--", &unit]).with_code(0);
        let value =
            |key: &str| shown.stdout.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        let main_pid = value("MainPID=").and_then(|pid| pid.parse().ok());
        let main_pid = main_pid.unwrap_or_else(|| panic!("no main process: {shown}"));
        Run { main_pid, invocation: value("InvocationID=").unwrap_or_default() }
    }

    /// All that a unit and systemd about it wrote into the journal, all boots.
    #[track_caller]
    pub fn journal(&self, unit: &str) -> String {
        let arguments = ["--no-pager", "--quiet", "--output=short-precise", "--unit", unit];
        self.run(None, &with("journalctl", &arguments)).with_code(0).stdout
    }

    /// Writes or replaces a model's file; berthd reads it when it is started the next time.
    #[track_caller]
    pub fn declare(&self, model: &str, toml: &str) {
        self.configure(&format!("models.d/{model}.toml"), toml.as_bytes());
    }

    /// Writes or replaces any file below /etc/berth.
    #[track_caller]
    pub fn configure(&self, path: &str, contents: &[u8]) {
        let path = self.config.path().join("berth").join(path);
        if let Err(error) = fs::write(&path, contents) {
            panic!("can't write {}: {error}", path.display());
        }
    }

    /// Removes a file below /etc/berth.
    #[track_caller]
    pub fn unconfigure(&self, path: &str) {
        let path = self.config.path().join("berth").join(path);
        if let Err(error) = fs::remove_file(&path) {
            panic!("can't remove {}: {error}", path.display());
        }
    }

    /// `systemctl restart berthd`, and waits until it answers.
    #[track_caller]
    pub fn restart_berthd(&self) {
        _ = self.systemctl(&["restart", "berthd.service"]).with_code(0);
        if let Err(error) = self.wait_for_berthd(Duration::from_secs(10)) {
            panic!("{error:#}");
        }
    }

    /// Waits until berthd is up and answers.
    ///
    /// # Errors
    /// It isn't by the deadline; with what it said.
    pub fn wait_for_berthd(&self, deadline: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let answer = self.sandbox.exec(&["berthctl", "status", "--json"])?;
            if answer.status.success() {
                return Ok(());
            }
            if start.elapsed() >= deadline {
                bail!("berthd is not up within {deadline:?}: {}{}", answer.stderr, failure::report(self));
            }
            thread::sleep(LOOK);
        }
    }

    /// What berthd, systemd and the simulated GPUs say of themselves, for a reader who can't ask them.
    pub fn report(&self) -> String {
        failure::report(self)
    }

    /// Cuts the power.
    #[track_caller]
    pub fn cut(&mut self) {
        if let Err(error) = self.sandbox.cut() {
            panic!("the power can't be cut: {error:#}");
        }
    }

    /// Boots the same disk again; berthd may still be coming up.
    #[track_caller]
    pub fn boot(&mut self) {
        if let Err(error) = self.sandbox.boot() {
            panic!("it does not boot again: {error:#}");
        }
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", failure::report(self));
        }
    }
}

fn with<'a>(program: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
    [&[program], arguments].concat()
}

/// The JSON documents on standard output, one or more.
#[track_caller]
fn documents(output: &CtlOutput) -> Vec<Value> {
    let documents = serde_json::Deserializer::from_str(&output.stdout).into_iter();
    documents.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("no JSON ({error}): {output}"))
}

#[track_caller]
fn change(output: &CtlOutput) -> Change {
    let mut documents = documents(output);
    let last = documents.pop().unwrap_or_else(|| panic!("no JSON: {output}"));
    let swap = last.get("swap").cloned().map(serde_json::from_value);
    let swap = swap.transpose().unwrap_or_else(|error| panic!("not a swap ({error}): {last:#}"));
    let events = documents.into_iter().map(serde_json::from_value::<Event>).collect::<Result<_, _>>();
    let events = events.unwrap_or_else(|error| panic!("not an event ({error}): {output}"));
    Change { code: output.code, events, swap, last }
}

/// How long a step of a swap took, in milliseconds, where it was done.
pub fn step_ms(swap: &SwapSummary, step: Step) -> Option<u64> {
    let done = swap
        .steps
        .iter()
        .find(|report| report.step == step && report.state == StepState::Done && !report.rollback);
    done.map(|report| report.elapsed_ms)
}
