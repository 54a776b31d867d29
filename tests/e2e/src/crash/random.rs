//! A long row of operators' commands, deaths of berthd and of models, and power cuts, drawn from a seed.
//!
//! The reference says what home is after each command; what was cut off in the middle may be either. All else must be
//! as it always must: whatever happened, the machine comes to rest with home serving, and no allocation failed.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::rest::{self, Rest};
use super::trial::{self, Told};
use super::{EACH, MAIN, guarded};
use crate::Berth;

/// aeon and genesis exclude each other, tiny fits beside either.
const MODELS: [&str; 3] = ["aeon", "genesis", "tiny"];
/// The more often, the likelier.
const VERBS: [&str; 11] = [
    "switch",
    "switch",
    "switch",
    "switch",
    "start",
    "start",
    "stop",
    "stop --all",
    "restart",
    "back",
    "back",
];
/// A command and what disturbs it must have ended by then.
const ENDED: Duration = Duration::from_secs(60);

/// What came of a walk.
#[derive(Debug, Clone)]
pub struct Walk {
    /// Draws it.
    pub seed: u64,
    /// Steps that were taken.
    pub steps: usize,
    /// What must not be, with the last steps before it; the walk ends there.
    pub violation: Option<String>,
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let violations = usize::from(self.violation.is_some());
        write!(f, "random seed={} steps={} violations={violations}", self.seed, self.steps)
    }
}

/// An operator's command.
#[derive(Debug, Clone, Copy)]
struct Command {
    verb: &'static str,
    model: &'static str,
}

/// What happens to berthd, a model or the machine.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Blow {
    None,
    KillBerthd,
    Crash(&'static str),
    Cut,
}

struct Step {
    command: Option<Command>,
    blow: Blow,
    /// From the command to the blow.
    after: Duration,
    linger: Duration,
}

impl Command {
    fn words(&self) -> Vec<&'static str> {
        let named = !matches!(self.verb, "stop --all" | "back");
        self.verb.split(' ').chain(named.then_some(self.model)).collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = self.command.map_or_else(|| "nothing".to_owned(), |command| command.words().join(" "));
        write!(f, "{command}, lingering {} ms", self.linger.as_millis())?;
        match self.blow {
            Blow::None => Ok(()),
            blow => write!(f, ", after {} ms {blow:?}", self.after.as_millis()),
        }
    }
}

/// What Berth is held against: home, and what was home before; None where that is not known for certain.
#[derive(Debug, Clone, Default)]
struct Reference {
    home: Rest,
    before: Option<Rest>,
}

impl Reference {
    /// Home once a command is done; None where it has to be refused.
    fn done(&self, command: Command) -> Option<Rest> {
        let Command { verb, model } = command;
        let mut home = self.home.clone();
        let big = |name: &str| name != "tiny";
        let serves = home.models.iter().any(|name| name == model);
        match verb {
            "switch" => {
                home.models.retain(|name| name != model && !(big(model) && big(name)));
                home.models.push(model.to_owned());
                home.default = Some(model.to_owned());
            }
            "start" | "restart" if serves => {}
            "start" | "restart" => {
                if big(model) && home.models.iter().any(|name| big(name)) {
                    return None;
                }
                home.models.push(model.to_owned());
                home.default.get_or_insert_with(|| model.to_owned());
            }
            "stop" => {
                home.models.retain(|name| name != model);
                home.default = home.default.filter(|name| name != model);
            }
            "stop --all" => home = Rest::default(),
            // What was empty is nothing to go back to.
            _ => return self.before.clone().filter(|to| *to != self.home && !to.models.is_empty()),
        }
        home.models.sort();
        Some(home)
    }

    /// Holds what is home now against what was told, and goes on from there.
    fn judge(&mut self, command: Command, told: &Told, disturbed: bool, now: &Rest) -> Result<()> {
        let back = command.verb == "back";
        let done = self.done(command);
        // A stop counts from its first moment, whatever comes of it.
        let stops = command.verb.starts_with("stop");
        let sure = self.before.is_some() || !back;
        let (was, text) = (&self.home, &told.text);
        if sure && told.done {
            ensure!(done.as_ref() == Some(now), "it is done, and home is {now}, not {done:?}: {text}");
        } else if told.code == Some(3) || told.restored && !stops {
            ensure!(now == was, "it was refused or restored, and home is {now}, not {was}: {text}");
        } else if sure {
            ensure!(now == was || done.as_ref() == Some(now), "home is {now}, not {was} or {done:?}");
        }
        if !disturbed && sure {
            let code = if done.is_some() { 0 } else { 3 };
            ensure!(told.code == Some(code), "undisturbed it should end with {code}: {text}");
        }
        if now != was {
            // An empty home is not kept as the one before.
            let kept = if was.models.is_empty() { self.before.clone() } else { Some(was.clone()) };
            self.before = kept.filter(|_| told.done);
            self.home = now.clone();
        } else if disturbed && !told.done && (stops || back) {
            self.before = None;
        }
        Ok(())
    }
}

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        let index = self.below(all.len() as u64);
        all[usize::try_from(index).unwrap_or_default()]
    }

    fn millis(&mut self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }

    fn step(&mut self) -> Step {
        let command = Command { verb: self.of(&VERBS), model: self.of(&MODELS) };
        let crash = Blow::Crash(self.of(&MODELS));
        let blows =
            [Blow::None, Blow::None, Blow::None, Blow::KillBerthd, Blow::KillBerthd, crash, crash, Blow::Cut];
        Step {
            command: Some(command).filter(|_| self.below(5) > 0),
            blow: self.of(&blows),
            after: self.millis(700),
            linger: self.millis(1200),
        }
    }
}

/// Walks for this long. `progress` is told of each step and what came of it.
///
/// # Errors
/// The machine does not come up.
pub fn walk(seed: u64, time: Duration, mut progress: impl FnMut(usize, &str)) -> Result<Walk> {
    let load = ["--load-time", "150ms"];
    let builder = Berth::builder().faults().main(MAIN).fake("aeon", EACH, &load).fake("genesis", EACH, &load);
    let mut berth = builder.fake("tiny", "700MiB", &["--load-time", "20ms"]).try_boot()?;
    let (mut dice, mut reference) = (Dice(seed), Reference::default());
    // Nothing was home before: known for certain.
    reference.before = Some(Rest::default());
    let mut steps = 0;
    let start = Instant::now();
    while start.elapsed() < time {
        let step = dice.step();
        steps += 1;
        let taken = guarded(|| take(&mut berth, &step, &mut reference));
        match taken {
            Ok(said) => progress(steps, &format!("{step}: {said}home is {}", reference.home)),
            Err(why) => {
                let violation =
                    format!("seed {seed}, step {steps}, {step}: {why}{}", trial::evidence(&berth));
                progress(steps, &format!("VIOLATION {violation}"));
                return Ok(Walk { seed, steps, violation: Some(violation) });
            }
        }
    }
    Ok(Walk { seed, steps, violation: None })
}

/// Takes a step and judges what came of it; what berthctl said.
fn take(berth: &mut Berth, step: &Step, reference: &mut Reference) -> Result<String> {
    berth.gpu(&["linger", &format!("{}ms", step.linger.as_millis())]);
    let asked = step.command.map(|command| trial::ask(berth, &command.words()));
    if step.blow != Blow::None {
        thread::sleep(step.after);
    }
    rest::no_failed_allocation(berth)?;
    match step.blow {
        Blow::None => {}
        Blow::KillBerthd => _ = berth.systemctl(&["kill", "--signal=KILL", "berthd.service"]),
        // One that does not run can't crash.
        Blow::Crash(model) => {
            _ = berth.systemctl(&["kill", "--signal=KILL", &format!("berth-model@{model}.service")]);
        }
        Blow::Cut => berth.cut(),
    }
    let told = asked.map(|asked| asked.wait(ENDED)).transpose()?;
    if step.blow == Blow::Cut {
        berth.boot();
    }
    let now = rest::come_to_rest(berth)?;
    rest::no_failed_allocation(berth)?;
    let Some((command, told)) = step.command.zip(told) else {
        let home = &reference.home;
        ensure!(now == *home, "nobody asked for anything, and home is {now}, not {home}");
        return Ok(String::new());
    };
    reference.judge(command, &told, step.blow != Blow::None, &now)?;
    Ok(told.code.map_or_else(String::new, |code| format!("exit {code}, ")))
}
