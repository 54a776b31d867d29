//! What the driver does with the machine, and what must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

use berth_core::backend::{Failure, FailureClass};
use berth_core::bytes::Bytes;
use berth_core::config::Settings;
use berth_core::facts::Facts;
use berth_core::name::ModelName;
use berth_core::plan::{self, Plan, Start, Verdict};
use berth_core::proxy::{Clients, Queue, Turns};
use berth_core::release::Proofs;
use berth_core::report::{Actor, ModelState, Outcome, Request, SwapSummary, Verb, What};
use berth_core::state::{Home, Phase, State};
use berth_core::swap::{self, Action, Beside, Event, Swap, Watch};
use berth_core::upkeep::{Deed, End, Upkeep};

use super::nature::{Nature, RESERVED, TOTAL};
use crate::story::{DRIVER, device, settings};

/// Two that fill both cards, one of more than half a card, two small ones and one without a card. In every order
/// they fit as they fitted in any other.
const MODELS: &[(&str, &str)] = &[
    ("aeon", "cmd = \"serve\"\npolicy = \"split\"\n[memory]\ngpu = [\"14 GiB\", \"14 GiB\"]\n"),
    ("genesis", "cmd = \"serve\"\npolicy = \"split\"\n[memory]\ngpu = [\"14 GiB\", \"14 GiB\"]\n"),
    ("glm", "cmd = \"serve\"\n[memory]\ngpu = \"9 GiB\"\n"),
    ("small", "cmd = \"serve\"\n[memory]\ngpu = \"5 GiB\"\n"),
    ("tiny", "cmd = \"serve\"\n[memory]\ngpu = \"4 GiB\"\n"),
    ("host", "cmd = \"serve\"\npolicy = \"cpu\"\n[memory]\nhost = \"6 GiB\"\n"),
];
/// See [`DEADLINES`].
const DRAIN: u64 = 8000;
const DEADLINES: &str = "[deadlines]\ndrain = \"8s\"\nstop = \"5s\"\nrelease = \"10s\"\nstart = \"20s\"\n";

/// What will happen, and when.
#[derive(Debug, Clone)]
pub(super) enum Due {
    Observe,
    Tick,
    Unit(ModelName),
    StartEnded(u64, ModelName, Result<(), String>),
    Stop(u64, ModelName),
    StopAsked(u64, ModelName, u64),
    StopEnded(u64, ModelName, Result<(), String>),
    Probe(u64, ModelName, u32),
    Diagnosed(u64, ModelName),
    Ended(ModelName),
    Looked(ModelName),
    LookedForLoad(ModelName),
    Answered(ModelName, u64),
    HangsUp(ModelName, u64),
}

/// Berth in the simulated world.
pub(crate) struct World {
    pub(crate) nature: Nature,
    pub(crate) settings: Settings,
    pub(crate) state: State,
    pub(crate) ledger_fails: bool,
    /// What systemd says of units does not arrive yet.
    pub(crate) unheard: bool,
    /// What clients do, and which run of a model their answers come from.
    pub(crate) clients: Queue,
    pub(super) runs: BTreeMap<ModelName, u64>,
    /// How many answers were cut off, and how many came to their end.
    pub(crate) cut: usize,
    pub(crate) answered: usize,
    pub(crate) turns: Turns,
    pub(super) looking: bool,
    /// When the swap under way held requests back.
    held_back: u64,
    /// Every swap that ended.
    pub(crate) ended: Vec<SwapSummary>,
    /// How many events the machine and the driver took.
    pub(crate) events: u64,
    pub(crate) facts: Facts,
    /// Units that were really told to stop or start.
    pub(crate) touched: Vec<ModelName>,
    proofs: Proofs,
    pub swap: Option<Swap>,
    began: u64,
    watch: Watch,
    probes: u32,
    queue: BTreeMap<(u64, u64), Due>,
    sequence: u64,
    /// What the disk has.
    pub(crate) ledger: State,
    pub(crate) upkeep: Upkeep,
    /// Models whose stop by hand was taken for an operator's word.
    pub(crate) stopped_by_hand: Vec<ModelName>,
    /// Where the newest `back` goes.
    pub(crate) back_to: Home,
    boots: u32,
    pub(super) waiting: Option<Request>,
}

impl World {
    pub(crate) fn new(gpus: usize) -> Self {
        let nature = Nature::new(gpus);
        let mut world = Self {
            facts: nature.facts(),
            nature,
            settings: declared(),
            state: State::default(),
            ledger_fails: false,
            unheard: false,
            clients: Queue::default(),
            runs: BTreeMap::new(),
            cut: 0,
            answered: 0,
            turns: Turns::default(),
            looking: false,
            held_back: 0,
            ended: Vec::new(),
            events: 0,
            touched: Vec::new(),
            proofs: Proofs::default(),
            swap: None,
            began: 0,
            watch: Watch::Idle,
            probes: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            ledger: State::default(),
            upkeep: Upkeep::default(),
            stopped_by_hand: Vec::new(),
            back_to: Home::default(),
            boots: 0,
            waiting: None,
        };
        world.state.boot = world.boot();
        world.record();
        world.due(0, Due::Observe);
        world.due(0, Due::Tick);
        world
    }

    pub(crate) fn names(&self) -> Vec<ModelName> {
        self.settings.models.keys().cloned().collect()
    }

    pub(crate) fn busy(&self) -> bool {
        self.swap.is_some()
    }

    pub(super) fn due(&mut self, after: u64, due: Due) {
        self.sequence += 1;
        self.queue.insert((self.nature.now.saturating_add(after), self.sequence), due);
    }

    /// An operator asks: the refusal's code, or the verdict's plan was begun (None) or there was nothing to do.
    pub(crate) fn ask(&mut self, verb: Verb, model: Option<&str>) -> Option<String> {
        let request = Request { verb, model: model.map(str::to_owned), set: BTreeMap::new() };
        self.facts = self.nature.facts();
        self.observed();
        self.decide(request)
    }

    fn decide(&mut self, request: Request) -> Option<String> {
        let before = self.state.clone();
        let refused = |world: &Self, code: &str| {
            assert_eq!(world.state, before, "a refused request changed something");
            Some(code.to_owned())
        };
        if let Some(swap) = &self.swap {
            if !swap.verb().is_own() || self.waiting.is_some() {
                return refused(self, "busy");
            }
            let decide =
                |state: &State| plan::plan(&self.settings, &self.facts, state, &request, &BTreeMap::new());
            match swap.beside(&self.settings, &self.state, &request, &decide) {
                Beside::GiveWay => {
                    self.waiting = Some(request);
                    self.step(Event::GiveWay("an operator".to_owned()));
                    return Some("waiting".to_owned());
                }
                Beside::TakesOver(plan) => {
                    let by = Actor { user: "op".to_owned(), uid: Some(1000), pid: Some(1) };
                    self.upkeep.gives_way();
                    if let Some(swap) = &mut self.swap {
                        swap.take_over(plan, by, &mut self.state);
                    }
                    self.record();
                    return Some("taken over".to_owned());
                }
                Beside::Same => return Some("same".to_owned()),
                Beside::Answered(Verdict::Refused { refusal, .. }) => return refused(self, &refusal.code),
                Beside::Answered(_) => return None,
            }
        }
        match plan::plan(&self.settings, &self.facts, &self.state, &request, &BTreeMap::new()) {
            Verdict::Go(plan) => {
                let by = Actor { user: "op".to_owned(), uid: Some(1000), pid: Some(1) };
                self.begin(plan, Some(by), Event::Begin);
                None
            }
            Verdict::Nothing(_) => None,
            Verdict::Refused { refusal, .. } => refused(self, &refusal.code),
        }
    }

    /// An operator cancels what is under way: the refusal's code, or None where it is called off.
    pub(crate) fn cancel(&mut self) -> Option<String> {
        let Some(swap) = &self.swap else { return Some("no swap".to_owned()) };
        if let Err(refusal) = swap.may_be_cancelled() {
            return Some(refusal.code);
        }
        self.step(Event::Cancel("op".to_owned()));
        None
    }

    pub(super) fn begin(&mut self, plan: Plan, by: Option<Actor>, first: Event) {
        if by.is_some() {
            self.upkeep.gives_way();
        }
        if plan.verb == Verb::Back {
            self.back_to = plan.home.clone();
        }
        self.state.last_swap_id += 1;
        let id = self.state.last_swap_id;
        self.began = self.nature.now;
        let clients = &self.clients.clients();
        let world =
            world(&self.settings, &self.facts, &mut self.state, &mut self.proofs, clients, self.nature.now);
        self.swap = Some(Swap::new(plan, id, by, 0, &world));
        self.step(first);
    }

    pub(super) fn step(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let Some(swap) = &mut self.swap else { return };
            self.events += 1;
            let home = self.state.home.clone();
            // What an operator stops stays stopped from the first moment, unless nothing could be stopped.
            let stopping = matches!(swap.verb(), Verb::Stop | Verb::StopAll);
            let clients = &self.clients.clients();
            let mut world = world(
                &self.settings,
                &self.facts,
                &mut self.state,
                &mut self.proofs,
                clients,
                self.nature.now,
            );
            let actions = swap.step(&mut world, event);
            if self.state.home != home {
                let ended = actions.iter().any(|action| {
                    matches!(action, Action::Say(What::SwapEnded { swap })
                        if !swap.verb.is_own() && (stopping || swap.outcome == Some(Outcome::Done)))
                });
                // Not before it is written down, and then at once.
                let written = actions.contains(&Action::Record { first: true });
                assert!(ended || stopping && written, "home changed without an operator's swap being done");
            }
            next = self.perform(actions);
        }
        if self.swap.is_none()
            && let Some(request) = self.waiting.take()
        {
            self.decide(request);
        }
    }

    fn perform(&mut self, actions: Vec<Action>) -> Option<Event> {
        let id = self.swap.as_ref().map_or(0, Swap::id);
        let ending = actions.contains(&Action::End);
        let mut next = None;
        for action in actions {
            match action {
                Action::HoldBack => {
                    self.held_back = self.nature.now;
                    next = Some(Event::Tick);
                }
                Action::Record { first } => {
                    self.record();
                    if self.ledger_fails && first && !ending {
                        return Some(Event::RecordFailed("no space left on device".to_owned()));
                    }
                }
                Action::Stop(model) if self.cuts_off(&model) => {
                    panic!("an answer of {model} was cut off before its deadline")
                }
                Action::Stop(model) => match self.nature.manner(model.as_str()).heeds {
                    0 => self.stop(id, &model),
                    heeds => self.due(heeds, Due::Stop(id, model)),
                },
                Action::Kill(model) => {
                    self.nature.kill(&model);
                    self.unit_changes(&model);
                }
                Action::Start(start) => self.start(id, &start),
                Action::Probe(model) => {
                    self.probes += 1;
                    self.due(50, Due::Probe(id, model, self.probes));
                }
                Action::Diagnose(model) => {
                    self.probes += 1;
                    self.due(200, Due::Diagnosed(id, model));
                }
                Action::Watch(watch) => {
                    self.watch = watch;
                    self.due(0, Due::Observe);
                }
                Action::Say(What::SwapEnded { swap }) => self.swap_ended(swap),
                Action::Say(_) => {}
                Action::End => {
                    self.probes += 1;
                    self.swap = None;
                }
            }
        }
        next
    }

    /// Whether an answer of it is under way that should be let end. What failed or falls has none that counts.
    fn cuts_off(&self, model: &ModelName) -> bool {
        let back = self.swap.as_ref().is_some_and(Swap::is_going_back);
        let under_way = self.clients.usage(model).under_way > 0;
        !back && under_way && self.nature.now < self.held_back + DRAIN
    }

    fn start(&mut self, id: u64, start: &Start) {
        self.probes += 1;
        self.touched.push(start.model.clone());
        for part in &start.gpus {
            let index = part.index as usize;
            assert!(
                self.facts.gpus()[index].suspect.is_none(),
                "{} was started on a suspect GPU",
                start.model
            );
            // By the truth, but for foreign processes, which may take memory at any time: as they were seen last.
            let seen: u64 = self.facts.gpus()[index]
                .processes
                .value()
                .into_iter()
                .flatten()
                .filter(|process| process.pid == 9)
                .map(|process| process.memory.value().unwrap().0 >> 20)
                .sum();
            let held = self.nature.of_models(index);
            assert!(
                held + seen + DRIVER + RESERVED + (part.bytes.0 >> 20) <= TOTAL,
                "{} was started on GPU {index} over {held} MiB that models still hold",
                start.model
            );
            let claimed = self.state.claimed(&device(index), &[]).0 + self.settings.headroom.0;
            let outside = Bytes::mib(seen + DRIVER + RESERVED).0;
            assert!(claimed + outside <= Bytes::mib(TOTAL).0, "GPU {index} is promised to too many");
        }
        let result = self.nature.start(start);
        self.unit_changes(&start.model);
        self.due(25, Due::StartEnded(id, start.model.clone(), result));
    }

    fn stop(&mut self, id: u64, model: &ModelName) {
        self.cuts(model);
        let ran = !self.nature.is_down(model);
        let result = self.nature.stop(model);
        self.unit_changes(model);
        match result {
            Ok(()) => {
                self.touched.extend(ran.then(|| model.clone()));
                self.due(2, Due::StopAsked(id, model.clone(), self.nature.now + 25_000));
            }
            Err(why) => self.due(5, Due::StopEnded(id, model.clone(), Err(why))),
        }
    }

    /// systemd's signals come a little later, and not in a fixed order with the ends of jobs.
    fn unit_changes(&mut self, model: &ModelName) {
        let late = self.sequence % 40;
        self.due(late, Due::Unit(model.clone()));
    }

    fn swap_ended(&mut self, swap: SwapSummary) {
        let starts = |model: &ModelName| {
            let of = self.settings.models.get(model).map(|m| m.deadlines).unwrap();
            let slowest = self.state.times.get(model).and_then(|t| t.load.iter().max().copied()).unwrap_or(0);
            let loads = of.start.max(Duration::from_millis(2 * slowest));
            Duration::from_secs(30 + 5) + 2 * loads
        };
        let down = Duration::from_secs(5 + 10 + 10);
        let up: Duration = swap.starts.iter().chain(&swap.stops).map(starts).sum();
        let took = Duration::from_millis(self.nature.now - self.began);
        assert!(took <= 2 * down + up + Duration::from_secs(2), "a swap took {took:?}: {swap:?}");
        match swap.outcome.unwrap() {
            Outcome::Done => {
                for model in &swap.starts {
                    let dying = self.nature.ends_at(model) <= self.nature.now + 200;
                    assert!(
                        self.nature.ready(model) || dying || self.nature.is_down(model),
                        "{model}: {swap:?}"
                    );
                }
                for model in swap.stops.iter().filter(|model| !swap.starts.contains(model)) {
                    assert!(self.nature.is_down(model), "{model} still runs: {swap:?}");
                    assert!(!self.state.claims.contains_key(model), "{model} still has a claim: {swap:?}");
                }
            }
            Outcome::Restored => {
                for model in &self.state.home.models {
                    let provided = self.state.is_provided(model) || self.state.is_displaced(model);
                    assert!(provided, "{model} of home does not serve: {swap:?}");
                }
            }
            Outcome::Degraded => {}
        }
        // What an earlier berthd left is settled by itself.
        let its = |model: &ModelName| swap.starts.contains(model) && !swap.stops.contains(model);
        let half = self.state.claims.iter().find(|(model, c)| c.phase == Phase::Starting && its(model));
        assert_eq!(half, None, "{swap:?}");
        let called_off = self.swap.as_ref().is_some_and(Swap::was_called_off);
        let deeds = self.with_upkeep(|upkeep, world| upkeep.ended(world, &swap, called_off));
        self.fulfil(deeds);
        self.load_ended(&swap, called_off);
        self.ended.push(swap);
    }

    fn observed(&mut self) {
        self.facts.at = Duration::from_millis(self.nature.now);
        let swapping = self.swap.is_some();
        let deeds = self.with_upkeep(|upkeep, world| upkeep.observe(world, swapping));
        self.fulfil(deeds);
        if swapping {
            return self.step(Event::Facts);
        }
        self.events += 1;
        self.restore();
    }

    pub(super) fn restore(&mut self) {
        if self.swap.is_some() || self.ledger_fails || self.waiting.is_some() {
            return;
        }
        let (begun, deeds) = self.with_upkeep(Upkeep::next);
        self.fulfil(deeds);
        if let Some((plan, first)) = begun {
            return self.begin(plan, None, first);
        }
        self.look_for_load();
    }

    pub(super) fn with_upkeep<T>(&mut self, decide: impl FnOnce(&mut Upkeep, &mut swap::World) -> T) -> T {
        let clients = &self.clients.clients();
        let mut world =
            world(&self.settings, &self.facts, &mut self.state, &mut self.proofs, clients, self.nature.now);
        decide(&mut self.upkeep, &mut world)
    }

    fn fulfil(&mut self, deeds: Vec<Deed>) {
        if deeds.contains(&Deed::Record) {
            self.record();
        }
        for deed in deeds {
            match deed {
                Deed::Stop(model) => self.stop(0, &model),
                Deed::Kill(model) => {
                    self.nature.kill(&model);
                    self.unit_changes(&model);
                }
                Deed::Diagnose { model, .. } => self.due(200, Due::Ended(model)),
                Deed::Look(model) => self.due(3, Due::Looked(model)),
                Deed::Say(What::Model { model, state: ModelState::Stopping, .. }) => {
                    self.stopped_by_hand.push(model);
                }
                Deed::Record | Deed::Say(_) => {}
            }
        }
    }

    /// A write to the ledger that is synced, unless the disk is full.
    pub(crate) fn record(&mut self) {
        if !self.ledger_fails {
            self.ledger = self.state.clone();
        }
    }

    /// berthd dies, and the next one takes over from the ledger what it finds.
    pub(crate) fn berthd_dies(&mut self) {
        (self.swap, self.waiting) = (None, None);
        self.clients_are_cut_off();
        self.queue.clear();
        self.proofs = Proofs::default();
        self.watch = Watch::Idle;
        self.probes += 1;
        self.state = self.ledger.clone();
        self.facts = self.nature.facts();
        let (boot, now) = (self.boot(), self.nature.now);
        let at = Duration::from_millis(now);
        self.upkeep = Upkeep::adopt(&self.settings, &mut self.state, &self.facts, &boot, at, now);
        self.record();
        self.due(0, Due::Observe);
        self.due(0, Due::Tick);
    }

    fn boot(&self) -> String {
        format!("boot-{}", self.boots)
    }

    /// The power fails and comes back.
    pub(crate) fn power_fails(&mut self) {
        self.nature.power_fails();
        self.boots += 1;
        self.berthd_dies();
    }

    /// Lets so many milliseconds pass.
    pub(crate) fn wait(&mut self, ms: u64) {
        let until = self.nature.now + ms;
        while let Some(((at, _), due)) = self.queue.first_key_value().map(|(key, due)| (*key, due.clone())) {
            if at > until {
                break;
            }
            self.queue.pop_first();
            self.nature.advance(at);
            self.happens(due);
        }
        self.nature.advance(until);
    }

    /// Waits until `when` holds, at most so long: whether it came to hold.
    pub(crate) fn wait_until(&mut self, ms: u64, when: impl Fn(&Self) -> bool) -> bool {
        let until = self.nature.now + ms;
        while !when(self) {
            if self.nature.now >= until {
                return false;
            }
            self.wait(100);
        }
        true
    }

    fn happens(&mut self, due: Due) {
        match due {
            Due::Observe => {
                // An order that changes starts a round at once; then only the newest goes on.
                self.queue.retain(|_, due| !matches!(due, Due::Observe));
                let pause = match self.watch {
                    Watch::Idle => 1000,
                    Watch::Loading => 100,
                    Watch::Release(_) => 20,
                };
                self.due(pause, Due::Observe);
                let facts = self.nature.facts();
                if self.unheard {
                    self.facts.gpus = facts.gpus;
                } else {
                    self.facts = facts;
                }
                self.observed();
            }
            Due::Tick => {
                self.due(if self.swap.is_some() { 100 } else { 1000 }, Due::Tick);
                self.tick();
            }
            Due::Unit(model) if self.unheard => self.due(10, Due::Unit(model)),
            Due::Unit(model) => {
                if let Some(unit) = self.nature.unit(&model) {
                    self.facts.units.insert(model, unit);
                }
                self.observed();
            }
            Due::StartEnded(id, model, result) => self.tell(id, Event::StartEnded(model, result)),
            Due::Stop(id, model) => self.stop(id, &model),
            Due::StopEnded(id, model, result) => self.tell(id, Event::StopEnded(model, result)),
            Due::StopAsked(id, model, deadline) => {
                if self.nature.is_down(&model) {
                    self.unit_changes(&model);
                    self.tell(id, Event::StopEnded(model, Ok(())));
                } else if self.nature.now >= deadline {
                    self.tell(id, Event::StopEnded(model, Err("its job timed out".to_owned())));
                } else {
                    let left = self.nature.ends_at(&model).saturating_sub(self.nature.now);
                    self.due(left.clamp(1, 20), Due::StopAsked(id, model, deadline));
                }
            }
            Due::Probe(id, model, probe) if probe == self.probes => {
                if self.nature.ready(&model) {
                    self.tell(id, Event::Ready(model));
                } else {
                    self.tell(id, Event::NotReady(model.clone(), "it is loading".to_owned()));
                    self.due(50, Due::Probe(id, model, probe));
                }
            }
            Due::Probe(..) => {}
            Due::Ended(model) => {
                let end = if self.nature.stopped_by_hand(&model) {
                    End::ByHand
                } else {
                    End::Failed("it exited with status 1".to_owned())
                };
                let deeds = self.with_upkeep(|upkeep, world| upkeep.diagnosed(world, &model, end));
                self.fulfil(deeds);
                self.restore();
            }
            Due::Looked(model) => {
                let missing = self
                    .nature
                    .unmounted(&model)
                    .then(|| ("/models/x".into(), "it does not exist".to_owned()));
                self.upkeep.looked(&model, missing, Duration::from_millis(self.nature.now));
                self.restore();
            }
            Due::LookedForLoad(model) => self.load(&model),
            Due::Answered(model, run) => self.answered(&model, run),
            Due::HangsUp(model, ticket) => self.hangs_up(&model, ticket),
            Due::Diagnosed(id, model) => {
                let failure =
                    Failure { class: FailureClass::Unclassified, line: "no".to_owned(), exit: None };
                self.tell(id, Event::Diagnosed(model, failure));
            }
        }
    }

    fn tell(&mut self, id: u64, event: Event) {
        if self.swap.as_ref().is_some_and(|swap| swap.id() == id) {
            self.step(event);
        }
    }

    /// Ends every fault, lifts what is quarantined, and waits until all of home serves, and nothing else.
    pub(crate) fn heal_and_settle(&mut self) {
        self.nature.heal();
        self.ledger_fails = false;
        let mut settled = false;
        for _ in 0..2000 {
            self.wait(1000);
            let home: BTreeSet<&ModelName> = self.state.home.models.iter().collect();
            let serving: BTreeSet<&ModelName> = self.state.claims.keys().collect();
            settled = !self.busy() && home == serving && home.iter().all(|model| self.nature.ready(model));
            let quarantined =
                home.iter().find(|model| self.state.quarantine(model).is_some()).copied().cloned();
            if settled {
                break;
            }
            if let Some(model) = quarantined.filter(|_| !self.busy()) {
                _ = self.ask(Verb::Retry, Some(model.as_str()));
            }
        }
        assert!(
            settled,
            "home does not serve again: home {:?}, claims {:?}, last {:#?}",
            self.state.home.models,
            self.state.claims,
            self.ended.last()
        );
    }
}

/// The models above, read once.
fn declared() -> Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    let read = || {
        let files: Vec<(&str, String)> =
            MODELS.iter().map(|(model, text)| (*model, format!("{text}{DEADLINES}"))).collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        settings(&files)
    };
    SETTINGS.get_or_init(read).clone()
}

fn world<'a>(
    settings: &'a Settings,
    facts: &'a Facts,
    state: &'a mut State,
    proofs: &'a mut Proofs,
    clients: &'a Clients,
    now: u64,
) -> swap::World<'a> {
    swap::World { settings, facts, state, proofs, clients, now: Duration::from_millis(now), now_ms: now }
}
