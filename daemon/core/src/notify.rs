//! What is pushed about problems to one target, and when: once when one begins and once when it ends.
//!
//! The target is told the difference between what stands and what it was told, so there is nothing that could queue up:
//! what could not be pushed is weighed anew when it can be. A problem counts once it stands for the settle time, and is over
//! once it has been gone for so long; what comes and goes within is never told. What was told outlives berthd ([`Told`]).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::facts::Moment;
use crate::report::{Problem, SCHEMA, Severity};

/// So many pushes may follow each other at once; after them one in each `every`.
pub const AT_ONCE: usize = 10;
/// The pause after a push that failed: it doubles with each further one, from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// When pushes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// How long a problem must stand, or be gone, before that is told.
    pub settle: Duration,
    /// The time in which one push may be made in the long run.
    pub every: Duration,
}

/// The problems that a target was told of and whose ends it was not, by their keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Told(BTreeMap<String, Problem>);

/// What is pushed: JSON for commands and webhooks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The node's name.
    pub node: String,
    /// Whether the problem begins or ends.
    pub event: PushEvent,
    /// How bad it is.
    pub severity: Severity,
    /// When this was put together.
    pub at_ms: u64,
    /// The problem.
    #[serde(flatten)]
    pub problem: Problem,
}

/// Whether a problem begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushEvent {
    /// It stands.
    Began,
    /// It is over.
    Ended,
}

impl PushEvent {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Began => "began",
            Self::Ended => "ended",
        }
    }
}

impl Push {
    /// One line: what, about whom, where.
    pub fn title(&self) -> String {
        let Problem { code, subject, .. } = &self.problem;
        let over = if self.event == PushEvent::Ended { "over: " } else { "" };
        let subject = if subject.is_empty() { String::new() } else { format!(" {subject}") };
        format!("{}: {over}{code}{subject}", self.node)
    }

    /// What there is to say, with what to do.
    pub fn text(&self) -> String {
        let Problem { text, next, since_ms, .. } = &self.problem;
        match self.event {
            PushEvent::Began => format!("{text}\n{next}"),
            PushEvent::Ended => {
                let seconds = self.at_ms.saturating_sub(*since_ms) / 1000;
                let stood = humantime::format_duration(Duration::from_secs(seconds));
                format!("Over after {stood}: {text}")
            }
        }
    }
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Push this, and say how that went.
    Push(PushEvent, Problem),
    /// Nothing before this moment, unless problems change.
    At(Moment),
    /// Nothing until problems change.
    Nothing,
}

/// What one target is told.
#[derive(Debug, Clone)]
pub struct Notifier {
    rules: Rules,
    told: Told,
    /// What stands, worst first, and since when it has been seen to.
    standing: Vec<(Problem, Moment)>,
    /// Since when what was told of is gone, by key.
    gone: BTreeMap<String, Moment>,
    /// When the newest pushes were made.
    pushed: VecDeque<Moment>,
    /// How many failed in a row, and until when nothing is tried.
    failed: u32,
    rests_until: Moment,
}

impl Notifier {
    /// One whose target was told this before.
    pub fn new(rules: Rules, told: Told) -> Self {
        Self {
            rules,
            told,
            standing: Vec::new(),
            gone: BTreeMap::new(),
            pushed: VecDeque::new(),
            failed: 0,
            rests_until: Moment::ZERO,
        }
    }

    /// What it was told.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// Takes what stands now.
    pub fn observe(&mut self, problems: &[Problem], now: Moment) {
        let since = |key: &str| self.standing.iter().find(|(known, _)| known.key() == key);
        self.standing = problems
            .iter()
            .map(|problem| (problem.clone(), since(&problem.key()).map_or(now, |(_, since)| *since)))
            .collect();
        // What is told of a model as over must not be worse by then: one that failed and is quarantined is not well.
        let stands = |told: &Problem| {
            let same = |problem: &Problem| !told.subject.is_empty() && problem.subject == told.subject;
            problems.iter().any(|problem| problem.key() == told.key() || same(problem))
        };
        let gone = self.told.0.iter().filter(|(_, told)| !stands(told));
        self.gone = gone.map(|(key, _)| (key.clone(), self.gone.get(key).copied().unwrap_or(now))).collect();
    }

    /// What to do now.
    pub fn next(&self, now: Moment) -> Next {
        let ends = self.gone.iter().filter_map(|(key, since)| {
            Some((*since + self.rules.settle, PushEvent::Ended, self.told.0.get(key)?))
        });
        let news = self.standing.iter().filter(|(problem, _)| !self.told.0.contains_key(&problem.key()));
        let begins = news.map(|(problem, since)| (*since + self.rules.settle, PushEvent::Began, problem));
        // Of those that are due at once the first one, ends before begins.
        let Some((due, event, problem)) = ends.chain(begins).min_by_key(|(due, ..)| *due) else {
            return Next::Nothing;
        };
        let within = u32::try_from(AT_ONCE).unwrap_or(u32::MAX);
        let rate = self.pushed.front().filter(|_| self.pushed.len() >= AT_ONCE);
        let allowed = rate.map_or(Moment::ZERO, |first| *first + self.rules.every * within);
        let due = due.max(allowed).max(self.rests_until);
        if due <= now { Next::Push(event, problem.clone()) } else { Next::At(due) }
    }

    /// A push was made, or failed and is tried again later.
    pub fn done(&mut self, event: PushEvent, problem: &Problem, made: bool, now: Moment) {
        if !made {
            let pause = FIRST_PAUSE.saturating_mul(1 << self.failed.min(16)).min(LONGEST_PAUSE);
            self.failed = self.failed.saturating_add(1);
            self.rests_until = now + pause;
            return;
        }
        self.failed = 0;
        if self.pushed.len() >= AT_ONCE {
            self.pushed.pop_front();
        }
        self.pushed.push_back(now);
        let key = problem.key();
        match event {
            PushEvent::Began => _ = self.told.0.insert(key, problem.clone()),
            PushEvent::Ended => {
                self.told.0.remove(&key);
                self.gone.remove(&key);
            }
        }
    }

    /// What is pushed, put together at `at_ms`.
    pub fn push(node: &str, event: PushEvent, problem: Problem, at_ms: u64) -> Push {
        let severity = problem.severity();
        Push { schema: SCHEMA, node: node.to_owned(), event, severity, at_ms, problem }
    }
}

#[cfg(test)]
#[path = "notify/tests.rs"]
mod tests;
