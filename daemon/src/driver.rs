//! The driver: the one task that owns the state. Everybody else sends it messages.
//!
//! It lets core decide, for an operator (`decide`), for clients (`load`) and by itself (`upkeep`), tells people
//! (`show`), and lets `act` perform what comes of it. It waits for nothing but messages and the ledger's fsync.

mod decide;
mod device;
mod health;
mod load;
mod reload;
mod repair;
mod show;
mod unnamed;
mod upkeep;

pub use decide::{refusal, unknown};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_core::config::Settings;
use berth_core::facts::{Cpu, Facts, FileFacts, Gpu, Known, Listening, Moment, Unit};
use berth_core::health::Verdict;
use berth_core::metrics::{Measured, Swaps};
use berth_core::name::ModelName;
use berth_core::plan::Plan;
use berth_core::proxy::{Directory, Turns};
use berth_core::release::Proofs;
use berth_core::report::{
    Accepted, Actor, Changed, Cleared, Health, Outcome, PlanReport, Problem, Readiness, Refusal, Repaired,
    Request, Status, SwapSummary, What,
};
use berth_core::rivals::{Rivals, Service};
use berth_core::soundness::Soundness;
use berth_core::state::State;
use berth_core::status;
use berth_core::swap::{Action, Event, Swap, Watch, World};
use berth_core::upkeep::{End, Upkeep};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::act::{Hands, Probes};
use crate::events::Events;
use crate::fault;
use crate::health::Checking;
use crate::ledger::{Ledger, LedgerError};
use crate::nvml::Xid;
use crate::observe::Order;
use crate::preflight::Looked;
use crate::proc::{host_memory, monotonic_now};
use crate::proxy::{Names, Traffic};
use crate::scope::Scope;

/// Between two looks at deadlines while a swap is under way, and otherwise.
const TICK: Duration = Duration::from_millis(100);
const IDLE_TICK: Duration = Duration::from_secs(1);
/// Between two looks at what clients do: with many requests in a second each ends some model's last answer.
const NEWS: Duration = Duration::from_millis(5);
/// Between two signs of life to systemd, unless its watchdog is set so short that it needs more.
const WATCHDOG: Duration = Duration::from_secs(5);
/// A unit is told to stop, again where the bus was away, and its job waited for, this much longer than it has to end by
/// itself: for as long as the machine waits for systemd, and then for SIGKILL.
const BEYOND: Duration = Duration::from_secs(40);
/// Between two attempts to write to a ledger that could not be written to.
const RECORD_AGAIN: Duration = Duration::from_secs(5);

/// What the driver is told.
pub enum Message {
    /// A full reading of the GPUs.
    Gpus(Known<Vec<Gpu>>),
    /// All units that systemd knows, read while models replaced the units of this generation.
    Units(u64, BTreeMap<ModelName, Unit>),
    /// One unit changed; None when systemd no longer knows it. Likewise.
    Unit(u64, ModelName, Option<Unit>),
    /// What came of an action of this swap.
    Swap(u64, Event),
    /// The processors of the host that are online.
    Cpus(Known<Vec<Cpu>>),
    /// What is known of the files that declarations name.
    Files(BTreeMap<PathBuf, FileFacts>),
    /// The services that are enabled for boot.
    Enabled(Vec<Service>),
    /// Where the processes of models listen.
    Listening(BTreeMap<ModelName, Vec<Listening>>),
    /// How a model that served has ended.
    Ended(ModelName, End),
    /// What of a model's files is missing, and why.
    Looked(ModelName, Option<(PathBuf, String)>),
    /// What the checks of one run (an InvocationID) of a model in service come to.
    Health {
        /// The model.
        model: ModelName,
        /// The run.
        run: String,
        /// The verdict.
        verdict: Verdict,
    },
    /// An operator asks, with what was looked up for it.
    Decide(Box<Decide>),
    /// What was looked up for a model that clients wait for.
    Load(ModelName, Box<Looked>),
    /// An operator cancels the swap of this number.
    Cancel(u64, Actor, oneshot::Sender<Result<SwapSummary, Box<Refusal>>>),
    /// The driver of the GPUs reported an Xid.
    Xid(Xid),
    /// An operator takes this GPU as it is.
    Clear(String, oneshot::Sender<Result<Cleared, Box<Refusal>>>),
    /// Why the proxy can't listen at this address; None once it does.
    Unheard(SocketAddr, Option<String>),
    /// What is wrong with the history, now.
    History(Vec<Refusal>),
    /// The state of the node.
    Status(oneshot::Sender<Status>),
    /// An operator declared something anew: this holds from now on, unless a swap is under way.
    Reload(Box<Settings>, oneshot::Sender<Result<Vec<Changed>, Refusal>>),
    /// Whether all is well, and whether clients are answered.
    Watch(oneshot::Sender<(Health, Readiness)>),
    /// All that is measured.
    Metrics(oneshot::Sender<Measured>),
    /// An operator wants a damaged ledger mended.
    Repair(oneshot::Sender<Result<Repaired, Refusal>>),
    /// One swap.
    SwapById(u64, oneshot::Sender<Option<SwapSummary>>),
    /// berthd is to end.
    Quit,
}

/// A request with what was looked up for it just now.
pub struct Decide {
    /// What is asked.
    pub request: Request,
    /// Who asks; None for a dry run.
    pub by: Option<Actor>,
    /// What was looked up.
    pub looked: Looked,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answer>,
}

/// What a request comes to.
pub enum Answer {
    /// A dry run, or a refusal of a real one.
    Plan(PlanReport),
    /// It is under way (or there was nothing to do).
    Accepted(Accepted),
}

/// The driver's state. `run` is its life.
pub struct Driver {
    settings: Arc<Settings>,
    hands: Hands,
    ledger: Ledger,
    events: Events,
    order: watch::Sender<Order>,
    state: State,
    facts: Facts,
    /// When the GPUs, and when something about units, was observed last.
    gpus_at: Moment,
    units_at: Moment,
    /// Whether other units count as models' since a reload, and have not been read yet.
    units_awaited: bool,
    /// When the ledger was written to last, or was tried to.
    recorded_at: Moment,
    proofs: Proofs,
    soundness: Soundness,
    memory: status::Memory,
    swap: Option<Swap>,
    probes: Probes,
    upkeep: Upkeep,
    /// What is loaded next for clients, and whether that is being looked up.
    turns: Turns,
    looking: bool,
    checking: watch::Sender<Checking>,
    /// A request that waits for berthd's own swap to give way.
    waiting: Option<Decide>,
    /// Who answers to which name, for the proxy, and how much goes on there.
    names: watch::Sender<Option<Arc<Directory>>>,
    traffic: Traffic,
    /// What is wrong, for those who push it.
    problems: watch::Sender<Vec<Problem>>,
    swaps: Swaps,
    /// Who holds which GPU, in words: told to those who start a unit by hand.
    held: Arc<Mutex<String>>,
    began: Moment,
}

impl Driver {
    /// A driver that takes over `state` as it is found on this boot: `facts` are the first ones.
    pub fn new(
        hands: Hands,
        ledger: Ledger,
        events: Events,
        order: watch::Sender<Order>,
        mut state: State,
        facts: Facts,
        boot: &str,
    ) -> Self {
        let settings = Arc::new(unnamed::settings_for(&hands.declared.now(), &state, &facts));
        let upkeep = Upkeep::adopt(&settings, &mut state, &facts, boot, monotonic_now(), now_ms());
        for (model, claim) in &state.claims {
            tracing::info!(%model, phase = ?claim.phase, "taken over from the ledger");
        }
        let ledger_error = ledger.damage().as_ref().map(LedgerError::refusal);
        let held = Arc::new(Mutex::new(String::new()));
        let said = Arc::clone(&held);
        hands.tickets.set_reason(move |model| {
            let held = said.lock().unwrap_or_else(PoisonError::into_inner);
            format!("only berthd starts model servers: run `berthctl switch {model}`{held}")
        });
        Self {
            settings,
            checking: crate::health::spawn(&hands),
            hands,
            ledger,
            events,
            order,
            state,
            facts,
            gpus_at: monotonic_now(),
            units_at: monotonic_now(),
            units_awaited: false,
            recorded_at: monotonic_now(),
            proofs: Proofs::default(),
            soundness: Soundness::default(),
            memory: status::Memory {
                ledger_error,
                rivals: Rivals::of(Scope::this().user()),
                ..status::Memory::default()
            },
            swap: None,
            probes: Probes::default(),
            upkeep,
            turns: Turns::default(),
            looking: false,
            waiting: None,
            names: watch::Sender::new(None),
            traffic: Traffic::default(),
            problems: watch::Sender::new(Vec::new()),
            swaps: Swaps::default(),
            held,
            began: monotonic_now(),
        }
    }

    /// What the proxy looks at and counts in.
    pub fn for_proxy(&self) -> (Names, Traffic) {
        (self.names.subscribe(), self.traffic.clone())
    }

    /// What is wrong, whenever that changes.
    pub fn problems(&self) -> watch::Receiver<Vec<Problem>> {
        self.problems.subscribe()
    }

    /// Serves messages until it is told to quit. Models go on serving after that.
    pub async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        self.record();
        self.name_all();
        for model in self.state.claims.keys() {
            self.hands.reference(model);
        }
        let (mut alive_at, mut heard_at) = (Instant::now(), Instant::now());
        let alive_every = sd_notify::watchdog_enabled().map_or(WATCHDOG, |within| WATCHDOG.min(within / 3));
        loop {
            let pause = if self.swap.is_some() { TICK } else { IDLE_TICK };
            let next = Instant::now() + pause.min(alive_every);
            tokio::select! {
                message = messages.recv() => match message {
                    None | Some(Message::Quit) => return,
                    Some(message) => self.take(message),
                },
                () = news(&self.traffic, heard_at + NEWS) => {
                    heard_at = Instant::now();
                    self.tick();
                }
                () = sleep_until(next) => self.tick(),
            }
            if alive_at.elapsed() >= alive_every {
                alive_at = Instant::now();
                // Without a service manager there is nobody to tell.
                _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Gpus(gpus) => {
                self.gpus_at = monotonic_now();
                self.facts.gpus = gpus;
                self.observed();
                self.restore();
            }
            // Of what models are now it says nothing.
            Message::Units(read, _) | Message::Unit(read, ..)
                if read != self.hands.systemd.predecessors_generation() => {}
            Message::Units(_, units) => {
                self.units_at = monotonic_now();
                self.units_awaited = false;
                self.facts.units = units;
                self.observed();
                self.restore();
            }
            Message::Unit(_, model, unit) => {
                self.units_at = monotonic_now();
                match unit {
                    Some(unit) => self.facts.units.insert(model, unit),
                    None => self.facts.units.remove(&model),
                };
                self.observed();
                self.restore();
            }
            Message::Swap(id, event) => {
                if self.swap.as_ref().is_some_and(|swap| swap.id() == id) {
                    self.step(event);
                }
            }
            Message::Files(files) => self.facts.files = files,
            Message::Cpus(cpus) => self.facts.host.cpus = cpus,
            Message::Enabled(services) => {
                self.memory.rivals.take(services);
                self.notice();
            }
            Message::Listening(sockets) => {
                self.memory.listening = sockets;
                self.notice();
            }
            Message::Ended(model, end) => {
                self.diagnosed(&model, end);
                self.restore();
            }
            Message::Looked(model, missing) => {
                self.upkeep.looked(&model, missing, monotonic_now());
                self.restore();
            }
            Message::Health { model, run, verdict } => self.judged(model, &run, verdict),
            Message::Decide(decide) => {
                self.decide(*decide);
                self.keep_unnamed(None);
            }
            Message::Load(model, looked) => self.load(&model, *looked),
            Message::Reload(settings, reply) => {
                let done = self.reload(*settings);
                // Whether the asker still listens changes nothing.
                _ = reply.send(done);
            }
            Message::Repair(reply) => {
                let done = self.repair();
                // Whether the asker still listens changes nothing.
                _ = reply.send(done);
            }
            Message::Unheard(address, why) => {
                match why {
                    Some(why) => self.memory.unheard.insert(address, why),
                    None => self.memory.unheard.remove(&address),
                };
                self.notice();
            }
            Message::History(wrong) => {
                self.memory.history = wrong;
                self.notice();
            }
            Message::Xid(xid) => self.xid(&xid),
            Message::Clear(device, reply) => {
                // Whether the asker still listens changes nothing.
                _ = reply.send(self.clear(&device));
                self.restore();
            }
            Message::Status(reply) => {
                self.facts.host.memory = host_memory();
                self.memory.weigh_alone(&self.settings, &self.facts, &self.state, monotonic_now());
                // The asker may be gone.
                _ = reply.send(self.with_view(status::status));
            }
            // The askers may be gone, here and below.
            Message::Watch(reply) => {
                _ = reply.send(self.with_view(|view| (status::health(view), status::readiness(view))));
            }
            Message::Metrics(reply) => _ = reply.send(self.measured()),
            Message::SwapById(id, reply) => _ = reply.send(self.swap_by_id(id)),
            Message::Cancel(id, by, reply) => _ = reply.send(self.cancel(id, &by)),
            Message::Quit => {}
        }
    }

    /// Begins a swap with `first`: `Begin`, or `Resume` where an earlier berthd began it.
    fn begin(&mut self, plan: Plan, by: Option<Actor>, checked_ms: u64, first: Event) -> u64 {
        for start in &plan.starts {
            self.hands.reference(&start.model);
        }
        if by.is_some() {
            self.upkeep.gives_way();
        }
        self.state.last_swap_id += 1;
        let id = self.state.last_swap_id;
        tracing::info!(
            swap = id,
            verb = plan.verb.as_str(),
            model = plan.model.as_ref().map(ModelName::as_str),
            stops = ?plan.stops.iter().map(ModelName::as_str).collect::<Vec<_>>(),
            starts = ?plan.starts.iter().map(|start| start.model.as_str()).collect::<Vec<_>>(),
            "swap begins"
        );
        self.swap = Some(self.with_world(|_, world| Swap::new(plan, id, by, checked_ms, world)));
        self.step(first);
        id
    }

    /// Lets the machine take an event and performs what it asks for.
    fn step(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let Some(mut swap) = self.swap.take() else { return };
            let actions = self.with_world(|_, world| swap.step(world, event));
            self.swap = Some(swap);
            next = self.perform(actions);
        }
        self.name_all();
        if self.swap.is_none()
            && let Some(decide) = self.waiting.take()
            && !decide.reply.is_closed()
        {
            self.decide(decide);
        }
    }

    /// Performs actions in their order; an event where one failed at once.
    fn perform(&mut self, actions: Vec<Action>) -> Option<Event> {
        let id = self.swap.as_ref().map_or(0, Swap::id);
        let ending = actions.contains(&Action::End);
        let mut next = None;
        for action in actions {
            let _effect = fault::action(&action);
            match action {
                Action::HoldBack => {
                    self.name_all();
                    // From now on what is counted can only become less.
                    next = Some(Event::Tick);
                }
                Action::Record { first } => {
                    if let Some(why) = self.record().filter(|_| first && !ending) {
                        return Some(Event::RecordFailed(why));
                    }
                }
                Action::Stop(model) => {
                    let declared =
                        self.settings.models.get(&model).map_or(self.settings.deadlines, |m| m.deadlines);
                    self.hands.stop(id, &model, declared.stop + BEYOND);
                }
                Action::Kill(model) => self.hands.kill(&model),
                Action::Start(start) => {
                    self.probes.end();
                    self.hands.start(id, &start);
                }
                Action::Probe(model) => {
                    let probe = self.hands.probe(id, &model);
                    self.probes.keep(model, probe);
                }
                Action::Diagnose(model) => {
                    self.probes.end();
                    let claim = self.state.claims.get(&model);
                    let (run, earlier) = claim
                        .map(|claim| (claim.invocation.clone(), claim.earlier.clone()))
                        .unwrap_or_default();
                    self.hands.diagnose(Some(id), &model, run, earlier);
                }
                Action::Watch(watch) => self.watch(&watch),
                Action::Say(What::SwapEnded { mut swap }) => {
                    if let Some(why) = &self.memory.ledger_error {
                        swap.outcome = Some(Outcome::Degraded);
                        let also = why.text.clone();
                        swap.reason =
                            Some(swap.reason.map_or(also.clone(), |reason| format!("{reason}; {also}")));
                    }
                    self.ended(&swap);
                    self.events.say(now_ms(), What::SwapEnded { swap });
                }
                Action::Say(what) => self.events.say(now_ms(), what),
                Action::End => {
                    self.probes.end();
                    self.swap = None;
                }
            }
        }
        next
    }

    fn watch(&mut self, watch: &Watch) {
        let order = match watch {
            Watch::Idle => Order::Idle,
            Watch::Loading => Order::Loading,
            Watch::Release(models) => Order::Release(
                models
                    .iter()
                    .filter_map(|model| self.state.claims.get(model))
                    .flat_map(|claim| claim.gpus.iter().cloned())
                    .collect(),
            ),
        };
        self.order.send_replace(order);
    }

    fn ended(&mut self, swap: &SwapSummary) {
        tracing::info!(
            swap = swap.id,
            outcome = ?swap.outcome,
            reason = swap.reason,
            elapsed_ms = swap.elapsed_ms,
            "swap ended"
        );
        let times = &self.state.times;
        self.swaps.add(swap, |model| times.get(model)?.release.back().copied());
        let called_off = self.swap.as_ref().is_some_and(Swap::was_called_off);
        let deeds = self.with_world(|upkeep, world| upkeep.ended(world, swap, called_off));
        self.load_ended(swap, called_off);
        self.fulfil(deeds);
        self.keep_unnamed(None);
    }

    /// Lets core look at the present state of things, and change what is its to change.
    fn with_world<T>(&mut self, decide: impl FnOnce(&mut Upkeep, &mut World) -> T) -> T {
        let clients = self.traffic.clients();
        let mut world = World {
            settings: &self.settings,
            facts: &self.facts,
            state: &mut self.state,
            proofs: &mut self.proofs,
            clients: &clients,
            now: monotonic_now(),
            now_ms: now_ms(),
        };
        decide(&mut self.upkeep, &mut world)
    }

    /// Writes the state to the ledger, or gives why it could not. The error stays in `memory` for as long as it
    /// can't be written.
    fn record(&mut self) -> Option<String> {
        self.recorded_at = monotonic_now();
        let error = tokio::task::block_in_place(|| self.ledger.record(&self.state)).err();
        self.memory.ledger_error = error.as_ref().map(LedgerError::refusal);
        // That it is damaged has been said, and stays so until it is repaired.
        if let Some(error @ LedgerError::Io { .. }) = &error {
            tracing::error!("{error}");
        }
        error.map(|error| error.to_string())
    }
}

/// Comes back at news of clients, not before `at`.
async fn news(traffic: &Traffic, at: Instant) {
    sleep_until(at).await;
    traffic.news().await;
}

/// The wall clock in milliseconds since 1970.
pub fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
