//! Whether a model in service still serves: judged from checks of its health, and from one token now and then.
//!
//! A server that answers with an error is ill. One that does not answer may only be busy: while it works its silence
//! does not count, up to a limit. Being healthy is not enough: a server can say so and no longer generate, so one
//! that idles is asked for a token. What is asked, and of whom, is berthd's; time is an argument.

use std::time::Duration;

use crate::config::Health;
use crate::facts::Moment;
use crate::name::ModelName;

/// A health check is answered within this time, or within the pause between two where that is shorter.
const ANSWER: Duration = Duration::from_secs(5);
/// A token is there within this time, or within the pause between two where that is shorter.
const TOKEN: Duration = Duration::from_mins(1);
/// Processor time beyond this part of one core is work.
const SHARE: u32 = 50;
/// What is used up by answering a check, and the kernel's clock tick, is not.
const CHECK: Duration = Duration::from_millis(20);

/// What one question came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It answered as it should.
    Passed,
    /// It answered with an error, or nothing of its own answers on its port; as a clause.
    Failed(String),
    /// It was asked and gave no answer in time; as a clause.
    Unanswered(String),
}

/// Whether a server did something since the check before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It computed or read.
    Done,
    /// It did nothing.
    None,
    /// That can't be told. Not the same as nothing.
    Unknown,
}

impl Work {
    /// By the processor time that its processes used in `over`, whether they had pages read from disk, and whether
    /// its GPUs computed; each None where it is not known.
    pub fn of(used: Option<Duration>, read: Option<bool>, gpus: Option<bool>, over: Duration) -> Self {
        let computed = used.map(|used| used > over / SHARE + CHECK);
        let known = [computed, read, gpus];
        if known.contains(&Some(true)) {
            Self::Done
        } else if known.contains(&None) {
            Self::Unknown
        } else {
            Self::None
        }
    }
}

/// What the checks of a model come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The last check was passed.
    Healthy,
    /// It gives no answer and works.
    Busy {
        /// Since when.
        since: Moment,
        /// What is missed, as a clause about the model.
        what: String,
    },
    /// The last checks failed.
    Failing {
        /// How many in a row.
        count: u32,
        /// Since when.
        since: Moment,
        /// What is wrong, as a clause about the model.
        what: String,
    },
    /// It does not serve any more, though it runs; as a clause about the model.
    Hung(String),
}

impl Verdict {
    /// What people are told of it before it is brought down; None while there is nothing to tell.
    pub fn warning(&self, model: &ModelName, settings: &Health, now: Moment) -> Option<String> {
        let seconds = |since: &Moment| now.saturating_sub(*since).as_secs();
        match self {
            Self::Healthy => None,
            // Servers that answer nothing while they generate are not rare.
            Self::Busy { since, .. } if now.saturating_sub(*since) < settings.busy / 2 => None,
            Self::Busy { since, what } => Some(format!(
                "{model} {what} since {} s, and works; after {} it is restarted",
                seconds(since),
                humantime::format_duration(settings.busy)
            )),
            Self::Failing { count: 1, what, .. } => {
                Some(format!("{model} {what}; after {} times in a row it is restarted", settings.failures))
            }
            Self::Failing { count, since, what } => Some(format!(
                "{model} {what} {count} times in a row since {} s; after {} it is restarted",
                seconds(since),
                settings.failures
            )),
            Self::Hung(what) => Some(format!("{model} hangs: it {what}; it is restarted")),
        }
    }
}

/// Failures in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    count: u32,
    since: Moment,
    what: String,
}

/// Judges one run of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judge {
    settings: Health,
    health: Option<Row>,
    token: Option<Row>,
    /// Since when no health check was passed, and since when no token came though it was asked for.
    unwell: Option<Moment>,
    tokenless: Option<Moment>,
    /// When a token came last, or it became ready.
    generated: Moment,
}

impl Judge {
    /// For a model that serves since, or is known to serve at, `now`.
    pub fn new(settings: Health, now: Moment) -> Self {
        Self { settings, health: None, token: None, unwell: None, tokenless: None, generated: now }
    }

    /// How long a health check may take.
    pub fn answer_within(settings: &Health) -> Duration {
        settings.every.map_or(ANSWER, |every| every.min(ANSWER))
    }

    /// How long a request for one token may take.
    pub fn token_within(settings: &Health) -> Duration {
        settings.token.map_or(TOKEN, |every| every.min(TOKEN))
    }

    /// Takes the outcome of a health check, and what the model did since the one before.
    pub fn health(&mut self, now: Moment, outcome: &Outcome, work: Work) -> Verdict {
        let what = match outcome {
            Outcome::Passed => {
                (self.health, self.unwell) = (None, None);
                // What is wrong with its tokens is not mended by that.
                return standing(self.token.as_ref());
            }
            Outcome::Failed(why) => format!("failed its health check ({why})"),
            Outcome::Unanswered(_) => "has not answered its health check".to_owned(),
        };
        let unwell = *self.unwell.get_or_insert(now);
        if now.saturating_sub(unwell) >= self.settings.busy {
            let limit = humantime::format_duration(self.settings.busy);
            return Verdict::Hung(format!("{what}, and passed none for {limit}"));
        }
        if matches!(outcome, Outcome::Unanswered(_)) && work != Work::None {
            // It is alive, so what it left unanswered before is no row any more.
            self.health = None;
            return Verdict::Busy { since: unwell, what };
        }
        fails(&mut self.health, now, self.settings.failures, what)
    }

    /// Whether to ask for a token after a health check that was passed. `clients`: connections to it, which are
    /// counted only where everything else speaks for asking; None where they can't be.
    pub fn wants_token(&self, now: Moment, work: Work, clients: impl FnOnce() -> Option<usize>) -> bool {
        let Some(pause) = self.settings.token else { return false };
        // One that left a request unanswered may still be at it.
        let asked_again = self.tokenless.is_some();
        let due = asked_again || now.saturating_sub(self.generated) >= pause;
        due && (asked_again || work == Work::None) && clients() == Some(0)
    }

    /// Takes the outcome of a request for one token, and what the model did and who came meanwhile.
    pub fn token(&mut self, now: Moment, outcome: &Outcome, work: Work, clients: Option<usize>) -> Verdict {
        let why = match outcome {
            Outcome::Passed => {
                (self.token, self.tokenless, self.generated) = (None, None, now);
                return Verdict::Healthy;
            }
            Outcome::Failed(why) | Outcome::Unanswered(why) => why,
        };
        let what = format!("answered its health check and did not generate ({why})");
        // Those who came meanwhile may have been served first.
        if matches!(outcome, Outcome::Unanswered(_)) && clients != Some(0) {
            return standing(self.token.as_ref());
        }
        let since = *self.tokenless.get_or_insert(now);
        if matches!(outcome, Outcome::Unanswered(_)) && work != Work::None {
            if now.saturating_sub(since) >= self.settings.busy {
                let limit = humantime::format_duration(self.settings.busy);
                return Verdict::Hung(format!("{what} for {limit}"));
            }
            return Verdict::Busy { since, what };
        }
        fails(&mut self.token, now, self.settings.failures, what)
    }
}

/// One failure more in a row.
fn fails(row: &mut Option<Row>, now: Moment, enough: u32, what: String) -> Verdict {
    let (count, since) = row.take().map_or((0, now), |row| (row.count, row.since));
    let row = row.insert(Row { count: count + 1, since, what });
    match row.count {
        1 if enough == 1 => Verdict::Hung(row.what.clone()),
        count if count >= enough => Verdict::Hung(format!("{} {count} times in a row", row.what)),
        _ => standing(Some(row)),
    }
}

fn standing(row: Option<&Row>) -> Verdict {
    row.map_or(Verdict::Healthy, |row| Verdict::Failing {
        count: row.count,
        since: row.since,
        what: row.what.clone(),
    })
}

#[cfg(test)]
mod tests;
