//! Performs one action of the swap machine; decides nothing. What comes of it goes to the driver as an event.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_core::backend::{self, Failure};
use berth_core::config::{BackendKind, Model};
use berth_core::facts::Moment;
use berth_core::name::ModelName;
use berth_core::plan::Start;
use berth_core::release;
use berth_core::report::{Request, Verb};
use berth_core::swap::Event;
use berth_core::upkeep::End;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::declared::Declared;
use crate::driver::Message;
use crate::fault;
use crate::journal::{self, Tail};
use crate::preflight::{self, Looker};
use crate::probe::{self, Probe, ProbeTarget};
use crate::proc::Groups;
use crate::systemd::{Job, Property, Systemd, SystemdError};
use crate::ticket::Tickets;

/// How long a ticket may lie unused: systemd fetches it within milliseconds of StartUnit.
const TICKET_LIFE: Duration = Duration::from_secs(30);
/// How long a job of systemd may take before it counts as failed; the machine's own deadlines are for the rest.
const JOB: Duration = Duration::from_secs(25);
/// Between two attempts to start or stop a unit while the bus or systemd is away.
const BUS_PAUSE: Duration = Duration::from_millis(300);
/// Between two probes of a server that is not ready: a part of the time that it has been loading, within these.
const PROBE_PAUSE: Duration = Duration::from_millis(5);
const PROBE_PAUSE_LATER: Duration = Duration::from_millis(50);
const PROBE_PART: u32 = 16;
/// How long one probe may take: generating a first token can take a while on a CPU.
const PROBE_DEADLINE: Duration = Duration::from_secs(30);
/// Of a probe that takes longer than this people are told what it waits for.
const SILENT: Duration = Duration::from_millis(300);
/// How long docker's program may take to end, after its container.
const CLIENT: Duration = Duration::from_secs(5);
const CLIENT_PAUSE: Duration = Duration::from_millis(20);
/// How much of a failed server's log is read.
const LOG_LINES: usize = 200;

/// What actions are performed with.
#[derive(Clone)]
pub struct Hands {
    /// The units.
    pub systemd: Systemd,
    /// Permissions to start.
    pub tickets: Arc<Tickets>,
    /// What was declared.
    pub declared: Declared,
    looker: Looker,
    /// Where events go.
    pub driver: mpsc::Sender<Message>,
    /// Starts and stops, which reach systemd in the order in which they were asked for.
    units: mpsc::UnboundedSender<UnitJob>,
}

enum UnitJob {
    Start { id: u64, start: Start },
    Stop { id: u64, model: ModelName, end: Instant },
}

impl Hands {
    /// Hands that are ready to act.
    pub fn new(looker: Looker, tickets: Tickets, driver: mpsc::Sender<Message>) -> Self {
        let (units, mut jobs) = mpsc::unbounded_channel();
        let (systemd, declared) = (looker.systemd.clone(), looker.declared.clone());
        let hands = Self { systemd, tickets: Arc::new(tickets), declared, looker, driver, units };
        let queueing = hands.clone();
        tokio::spawn(async move {
            while let Some(job) = jobs.recv().await {
                match job {
                    UnitJob::Start { id, start } => queueing.queue_start(id, start).await,
                    UnitJob::Stop { id, model, end } => queueing.queue_stop(id, model, end).await,
                }
            }
        });
        hands
    }

    /// Makes systemd keep what it knows of this unit until its outcome is in the ledger.
    pub fn reference(&self, model: &ModelName) {
        let (hands, model) = (self.clone(), model.clone());
        tokio::spawn(async move {
            if let Err(error) = hands.systemd.reference(&model).await {
                tracing::warn!(%model, %error, "systemd may forget how this unit ends");
            }
        });
    }

    /// StopUnit; the job's end is an event of swap `id`.
    pub fn stop(&self, id: u64, model: &ModelName, deadline: Duration) {
        self.order(UnitJob::Stop { id, model: model.clone(), end: Instant::now() + deadline });
    }

    /// SIGKILL to everything in the unit, and before it to its container.
    pub fn kill(&self, model: &ModelName) {
        let (hands, model) = (self.clone(), model.clone());
        tokio::spawn(async move {
            // Another run may have begun by the time that this one's client has been waited for.
            let run = hands.systemd.unit(&model).await.ok().flatten().map(|reading| reading.unit.invocation);
            let had_container =
                hands.systemd.signal_container(&model, nix::libc::SIGKILL).await.unwrap_or_else(|error| {
                    tracing::warn!(%model, %error, "its container can't be killed");
                    false
                });
            if had_container && hands.ends_within(&model, run.as_deref(), CLIENT).await {
                return;
            }
            if let Err(error) = hands.systemd.kill(&model, nix::libc::SIGKILL).await {
                tracing::warn!(%model, %error, "the unit can't be killed");
            }
        });
    }

    /// Waits until the unit is down and its container gone, or another `run` of it has begun, for at most so long. docker's
    /// program ends by itself, once the container is removed and the next one can have its name.
    async fn ends_within(&self, model: &ModelName, run: Option<&str>, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            match self.systemd.unit(model).await {
                Ok(reading) if release::processes_gone(reading.as_ref().map(|reading| &reading.unit)) => {
                    return true;
                }
                Ok(Some(reading)) if run.is_some_and(|run| run != reading.unit.invocation) => return true,
                _ if Instant::now() >= end => return false,
                _ => tokio::time::sleep(CLIENT_PAUSE).await,
            }
        }
    }

    /// Looks up what decides whether this model can be loaded; the driver is told.
    pub fn look_for_load(&self, model: &ModelName) {
        let (hands, model) = (self.clone(), model.clone());
        tokio::spawn(async move {
            let name = Some(model.to_string());
            let request = Request { verb: Verb::Load, model: name, set: BTreeMap::new() };
            let looked = hands.looker.look(&request).await;
            // The driver ends last.
            _ = hands.driver.send(Message::Load(model, Box::new(looked))).await;
        });
    }

    /// Grants a ticket and starts the unit; the job's end is an event of swap `id`.
    pub fn start(&self, id: u64, start: &Start) {
        self.order(UnitJob::Start { id, start: start.clone() });
    }

    fn order(&self, job: UnitJob) {
        // Its receiver lives as long as the process.
        _ = self.units.send(job);
    }

    async fn queue_start(&self, id: u64, start: Start) {
        let job = self.granted(&start).await;
        let hands = self.clone();
        tokio::spawn(async move {
            let result = match job {
                Ok(job) => job.wait().await.map_err(|error| error.to_string()),
                Err(why) => Err(why),
            };
            hands.tickets.revoke(&start.model);
            hands.tell(id, Event::StartEnded(start.model, result)).await;
        });
    }

    async fn granted(&self, start: &Start) -> Result<Job, String> {
        let model = self.model(&start.model)?;
        self.cleared(&start.model).await?;
        let launch = backend::launch(&model, &start.gpus, &start.layout);
        let expires = std::time::Instant::now() + TICKET_LIFE;
        {
            let _effect = fault::effect("ticket");
            self.tickets.grant(&start.model, &launch, expires).map_err(|error| error.to_string())?;
        }
        let end = Instant::now() + JOB;
        loop {
            match self.started(start, end).await {
                // Whether systemd heard it is not known. The ticket is good for one start all the same.
                Err(SystemdError::Unreachable { .. }) if Instant::now() < end => {
                    tokio::time::sleep(BUS_PAUSE).await;
                }
                job => return job.map_err(|error| error.to_string()),
            }
        }
    }

    /// Makes sure that no container of an earlier run is left, which may be where nobody remembers that run.
    async fn cleared(&self, model: &ModelName) -> Result<(), String> {
        let left = self.systemd.signal_container(model, nix::libc::SIGKILL).await;
        let left =
            left.map_err(|error| format!("whether its container from before is gone is unknown: {error}"))?;
        if !left || self.ends_within(model, None, CLIENT).await {
            return Ok(());
        }
        let slice = model.slice();
        Err(format!(
            "its container from before is still there after {} s: `systemctl status '{slice}'`",
            CLIENT.as_secs()
        ))
    }

    async fn started(&self, start: &Start, end: Instant) -> Result<Job, SystemdError> {
        // A unit keeps its properties over its end: those of an earlier start would bound this one. What it has is not set
        // again: polkit is asked each time, and files are written.
        let wanted = Property::of(&start.layout);
        if !self.systemd.has_properties(&start.model, &wanted).await? {
            self.systemd.set_properties(&start.model, &wanted).await?;
        }
        self.systemd.start(&start.model, end.into()).await
    }

    async fn queue_stop(&self, id: u64, model: ModelName, end: Instant) {
        self.tickets.revoke(&model);
        let job = self.systemd.stop(&model, end.into()).await;
        let hands = self.clone();
        tokio::spawn(async move {
            let result = match job {
                Ok(job) => job.wait().await,
                Err(error) => Err(error),
            };
            // Of a client that was killed the container knows nothing.
            if let Err(error) = hands.systemd.signal_container(&model, nix::libc::SIGTERM).await {
                tracing::warn!(%model, %error, "its container can't be told to end");
            }
            if let Err(SystemdError::Unreachable { .. } | SystemdError::NoAnswer { .. }) = result
                && Instant::now() < end
            {
                // The bus comes back, and a unit that was not told to stop runs on. Where only the answer was lost, it
                // would be taken for one that was stopped by hand.
                tokio::time::sleep(BUS_PAUSE).await;
                return hands.order(UnitJob::Stop { id, model, end });
            }
            let result = result.map_err(|error| error.to_string());
            hands.tell(id, Event::StopEnded(model, result)).await;
        });
    }

    /// Asks the model again and again until it is ready. Ends when the handle is aborted.
    pub fn probe(&self, id: u64, name: &ModelName) -> JoinHandle<()> {
        let (hands, name) = (self.clone(), name.clone());
        tokio::spawn(async move {
            let Ok(model) = hands.model(&name) else { return };
            let mut said = String::new();
            let mut control_groups = Groups::default();
            let began = Instant::now();
            loop {
                // They do not change while the unit runs, and systemd has a start to carry out.
                if control_groups.paths.is_empty()
                    && let Ok(Some(reading)) = hands.systemd.unit(&name).await
                    && !reading.unit.active.is_down()
                {
                    control_groups = reading.control_groups;
                }
                let healthy = AtomicBool::new(false);
                let asked = hands.probed(&model, &control_groups, &healthy);
                tokio::pin!(asked);
                let (ready, text) = tokio::select! {
                    probe = &mut asked => (probe == Probe::Ready, probe.to_string()),
                    // A first token can take long, and a server may never answer.
                    () = tokio::time::sleep(SILENT) => {
                        let text = if healthy.load(Ordering::Relaxed) { "it is up and has not answered a request for one token yet" } else { "its health check has not been answered yet" }.to_owned();
                        hands.tell(id, Event::Silent(name.clone(), text)).await;
                        let probe = asked.await;
                        (probe == Probe::Ready, probe.to_string())
                    }
                };
                if ready {
                    return hands.tell(id, Event::Ready(name)).await;
                }
                if text != said {
                    said.clone_from(&text);
                    hands.tell(id, Event::NotReady(name.clone(), text)).await;
                }
                let pause = (began.elapsed() / PROBE_PART).clamp(PROBE_PAUSE, PROBE_PAUSE_LATER);
                tokio::time::sleep(pause).await;
            }
        })
    }

    async fn probed(&self, model: &Model, control_groups: &Groups, healthy: &AtomicBool) -> Probe {
        let readiness = backend::of(model.backend).readiness(model);
        let target = ProbeTarget {
            address: SocketAddr::new(model.host, model.port),
            health_path: readiness.health,
            generate: readiness.generate,
            control_groups: control_groups.clone(),
        };
        probe::probe_noting(&target, PROBE_DEADLINE, healthy).await
    }

    /// Reads why a model failed and sends it as an event of swap `id`, or as the driver's own news without one.
    ///
    /// `run` and `earlier` are the InvocationIDs of the run that failed (empty where it was not seen) and of the one
    /// before it.
    pub fn diagnose(&self, id: Option<u64>, name: &ModelName, run: String, earlier: String) {
        let (hands, name) = (self.clone(), name.clone());
        tokio::spawn(async move {
            let (failure, told_to_stop) = hands.diagnosed(&name, run, &earlier).await;
            let end = match told_to_stop {
                None => End::Failed(failure.sentence()),
                Some(at) => hands.systemd.why_stopped(at).await.unwrap_or(End::ByHand),
            };
            match id {
                Some(id) => hands.tell(id, Event::Diagnosed(name, failure)).await,
                None => _ = hands.driver.send(Message::Ended(name, end)).await,
            }
        });
    }

    /// Why it failed, and when systemd was told to stop it.
    async fn diagnosed(&self, name: &ModelName, run: String, earlier: &str) -> (Failure, Option<Moment>) {
        let unit = match self.systemd.unit(name).await {
            Ok(reading) => reading.map(|reading| reading.unit).filter(|unit| unit.invocation != earlier),
            Err(error) => {
                tracing::warn!(model = %name, %error, "how it ended can't be read");
                None
            }
        };
        let invocation =
            unit.as_ref().map(|unit| unit.invocation.clone()).filter(|_| run.is_empty()).unwrap_or(run);
        let started_at =
            unit.as_ref().filter(|unit| unit.invocation == invocation).and_then(|u| u.started_at);
        let run = journal::Run { units: self.systemd.units_of(name), invocation, started_at };
        let tail = journal::tail(&run, LOG_LINES).await.unwrap_or_else(|error| {
            tracing::warn!(model = %name, %error, "its log can't be read");
            Tail::default()
        });
        let kind = self.declared.now().model(name).map_or(BackendKind::Command, |model| model.backend);
        (backend::of(kind).classify(&tail.lines, unit.and_then(|unit| unit.exit)), tail.told_to_stop)
    }

    /// Looks up a model's files and tells the driver what is missing.
    pub fn look(&self, name: &ModelName) {
        let (hands, name) = (self.clone(), name.clone());
        tokio::spawn(async move {
            let missing = match hands.model(&name) {
                Ok(model) => preflight::missing(model).await,
                Err(why) => Some((PathBuf::from(name.as_str()), why)),
            };
            // The driver ends last.
            _ = hands.driver.send(Message::Looked(name, missing)).await;
        });
    }

    fn model(&self, name: &ModelName) -> Result<Model, String> {
        self.declared
            .now()
            .model(name)
            .map(Cow::into_owned)
            .ok_or_else(|| format!("{name} is not declared any more"))
    }

    async fn tell(&self, id: u64, event: Event) {
        let _effect = fault::event(&event);
        // The driver ends last; without it there is nobody to tell.
        _ = self.driver.send(Message::Swap(id, event)).await;
    }
}

/// The tasks that ask models whether they are ready.
#[derive(Default)]
pub struct Probes(BTreeMap<ModelName, JoinHandle<()>>);

impl Probes {
    /// Keeps a probe; one that runs for the same model ends.
    pub fn keep(&mut self, model: ModelName, probe: JoinHandle<()>) {
        if let Some(old) = self.0.insert(model, probe) {
            old.abort();
        }
    }

    /// Ends all.
    pub fn end(&mut self) {
        for (_, probe) in std::mem::take(&mut self.0) {
            probe.abort();
        }
    }
}
