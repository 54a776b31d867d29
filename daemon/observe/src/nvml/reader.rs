//! NVML's thread: it answers one question after another, and finds library and devices again after a failure.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use berth_core::facts::{DeviceId, Gpu, Known, Moment};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use tokio::sync::oneshot;

use super::card::{Calls, Card, Identity};
use super::progress::Progress;
use super::xids::Gate;
use super::{Driver, PerDevice, Question, reason, unknown};
use crate::proc::monotonic_now;

/// The library is initialised at most this often while that fails.
const RETRY: Duration = Duration::from_secs(1);

/// A library that shows no GPU, or not all that were there, is closed and opened again: only a new initialisation
/// sees a GPU that was reset or added. It is done after this time, and less and less often, since it can take
/// seconds in which the other GPUs are not read.
const REOPEN_FIRST: Duration = Duration::from_secs(5);
/// At least this often.
const REOPEN_LAST: Duration = Duration::from_secs(300);

/// The state of NVML's thread.
pub(super) struct Reader {
    progress: Arc<Progress>,
    gate: Arc<Gate>,
    /// Every GPU that was ever seen, so that a lost one keeps its name.
    seen: Vec<Identity>,
    /// When and why the library could not be used last.
    failed: Option<(Instant, String)>,
    /// How long a session without all GPUs is kept before the library is opened again.
    patience: Duration,
}

/// How a session with the library ended.
enum End {
    /// It must be opened again.
    Reopen,
    /// Nobody is left who could ask.
    NobodyAsks,
}

impl Question {
    /// Whether the one who asked has given up.
    fn is_abandoned(&self) -> bool {
        match self {
            Self::Driver(answer) => answer.is_closed(),
            Self::All(answer) => answer.is_closed(),
            Self::Memory(_, answer) => answer.is_closed(),
            Self::Processes(_, answer) => answer.is_closed(),
        }
    }

    /// Answers that nothing is known. That nobody listens any more is no concern of this thread, here and below.
    fn refuse(self, why: &str) {
        match self {
            Self::Driver(answer) => _ = answer.send(Known::Unknown(why.to_owned())),
            Self::All(answer) => _ = answer.send(Known::Unknown(why.to_owned())),
            Self::Memory(devices, answer) => _ = answer.send(unknown(&devices, why)),
            Self::Processes(devices, answer) => _ = answer.send(unknown(&devices, why)),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.gate.end();
    }
}

impl Reader {
    pub(super) fn new(progress: Arc<Progress>, gate: Arc<Gate>) -> Self {
        Self { progress, gate, seen: Vec::new(), failed: None, patience: REOPEN_FIRST }
    }

    /// Answers questions until nobody is left who could ask.
    pub(super) fn serve(&mut self, questions: &Receiver<Question>) {
        while let Some(question) = next(questions) {
            self.progress.begin();
            match self.initialise() {
                Ok(nvml) => {
                    if let End::NobodyAsks = self.session(&nvml, question, questions) {
                        return;
                    }
                    self.progress.call("closing the library", None);
                    self.gate.close();
                    drop(nvml);
                }
                Err(why) => question.refuse(&why),
            }
            self.progress.end();
        }
    }

    fn initialise(&mut self) -> Result<Nvml, String> {
        if let Some((at, why)) = &self.failed
            && at.elapsed() < RETRY
        {
            return Err(why.clone());
        }
        self.progress.call("opening the library", None);
        Nvml::init().map_err(|error| self.fail(&error))
    }

    fn fail(&mut self, error: &NvmlError) -> String {
        let why = reason::of_library(error);
        self.failed = Some((Instant::now(), why.clone()));
        why
    }

    /// Answers questions by one initialisation of the library, for as long as it is good for that.
    fn session(&mut self, nvml: &Nvml, first: Question, questions: &Receiver<Question>) -> End {
        let opened = Instant::now();
        let mut cards = match self.cards(nvml) {
            Ok(cards) => cards,
            Err(error) => {
                first.refuse(&self.fail(&error));
                return End::Reopen;
            }
        };
        self.failed = None;
        self.gate.open();
        let mut question = first;
        loop {
            let everything = matches!(question, Question::All(_));
            self.answer(nvml, question, &mut cards);
            if cards.iter().any(|card| card.library_failed) {
                return End::Reopen;
            }
            if !cards.is_empty() && cards.iter().all(Card::is_found) {
                self.patience = REOPEN_FIRST;
            } else if everything && opened.elapsed() >= self.patience {
                self.patience = REOPEN_LAST.min(self.patience * 2);
                return End::Reopen;
            }
            self.progress.end();
            question = match next(questions) {
                Some(question) => question,
                None => return End::NobodyAsks,
            };
            self.progress.begin();
        }
    }

    /// The GPUs that the library lists, and then those seen before that it no longer does.
    fn cards<'n>(&mut self, nvml: &'n Nvml) -> Result<Vec<Card<'n>>, NvmlError> {
        self.progress.call("number of GPUs", None);
        let count = nvml.device_count()?;
        let mut cards: Vec<Card<'n>> = Vec::new();
        let mut without: Vec<(u32, NvmlError)> = Vec::new();
        for index in 0..count {
            self.progress.call("handle", Some(index));
            match nvml.device_by_index(index).and_then(|device| Card::found(index, device)) {
                Ok(card) => cards.push(card),
                Err(error) if reason::is_of_library(&error) => return Err(error),
                Err(error) => without.push((index, error)),
            }
        }
        for (index, error) in without {
            // It is the one that was seen in this place, unless that one is seen elsewhere now.
            let here = |seen: &&Identity| seen.index == index && !has(&cards, &seen.id);
            let identity = self.seen.iter().find(here).cloned().unwrap_or_else(|| Identity::not_seen(index));
            cards.push(Card::lost(identity, reason::of_device("handle", &error)));
        }
        cards.sort_by_key(|card| card.identity.index);
        for seen in &self.seen {
            if !has(&cards, &seen.id) {
                let why = "GPU is gone: NVML no longer lists it; see `dmesg`, then reboot or restart berthd";
                cards.push(Card::lost(seen.clone(), why.to_owned()));
            }
        }
        self.remember(&cards);
        Ok(cards)
    }

    fn remember(&mut self, cards: &[Card<'_>]) {
        for card in cards.iter().filter(|card| card.identity.is_seen()) {
            match self.seen.iter_mut().find(|seen| seen.id == card.identity.id) {
                Some(seen) => *seen = card.identity.clone(),
                None => self.seen.push(card.identity.clone()),
            }
        }
    }

    fn answer<'n>(&mut self, nvml: &'n Nvml, question: Question, cards: &mut [Card<'n>]) {
        match question {
            Question::Driver(answer) => {
                let driver = self.read(&answer, |calls| read_driver(nvml, cards, calls));
                _ = answer.send(Known::Value(driver));
            }
            Question::All(answer) => {
                let gpus = self.read(&answer, |calls| read_all(nvml, cards, calls));
                self.remember(cards);
                _ = answer.send(Known::Value(gpus));
            }
            Question::Memory(devices, answer) => {
                let read = |card: &mut Card<'n>, calls: &Calls<'_>| card.memory(nvml, calls);
                let values = self.read(&answer, |calls| read_each(&devices, cards, calls, read));
                _ = answer.send(values);
            }
            Question::Processes(devices, answer) => {
                let read = |card: &mut Card<'n>, calls: &Calls<'_>| card.processes(nvml, calls);
                let values = self.read(&answer, |calls| read_each(&devices, cards, calls, read));
                _ = answer.send(values);
            }
        }
    }

    fn read<T, R>(&self, answer: &oneshot::Sender<T>, read: impl FnOnce(&Calls<'_>) -> R) -> R {
        let abandoned = || answer.is_closed();
        read(&Calls { progress: &self.progress, abandoned: &abandoned })
    }
}

fn read_all<'n>(nvml: &'n Nvml, cards: &mut [Card<'n>], calls: &Calls<'_>) -> Vec<Gpu> {
    cards.iter_mut().map(|card| card.read(nvml, calls)).collect()
}

fn read_driver<'n>(nvml: &'n Nvml, cards: &mut [Card<'n>], calls: &Calls<'_>) -> Driver {
    calls.progress.call("driver's version", None);
    let version = nvml.sys_driver_version();
    Driver {
        version: version.map_or_else(|error| Known::Unknown(reason::of_library(&error)), Known::Value),
        persistence: cards
            .iter_mut()
            .map(|card| (card.identity.index, card.persistence(nvml, calls)))
            .collect(),
    }
}

fn read_each<'n, T>(
    devices: &[DeviceId],
    cards: &mut [Card<'n>],
    calls: &Calls<'_>,
    read: impl Fn(&mut Card<'n>, &Calls<'_>) -> (Moment, Known<T>),
) -> PerDevice<T> {
    let mut of = |id: &DeviceId| match cards.iter_mut().find(|card| card.identity.id == *id) {
        Some(card) => read(card, calls),
        None => (monotonic_now(), Known::Unknown(format!("NVML lists no GPU {id}"))),
    };
    devices.iter().map(|id| (id.clone(), of(id))).collect()
}

fn has(cards: &[Card<'_>], id: &DeviceId) -> bool {
    cards.iter().any(|card| card.identity.id == *id)
}

/// The next question that someone still waits for; None when nobody is left who could ask.
fn next(questions: &Receiver<Question>) -> Option<Question> {
    questions.iter().find(|question| !question.is_abandoned())
}
