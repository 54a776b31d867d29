//! The GPUs as NVML tells them.
//!
//! NVML's calls can block for a minute or for ever, so they are made on a thread of their own and every question
//! has a deadline. While the thread is stuck, each further question is answered at once with how long NVML has
//! been silent; nothing queues up, and readings resume by themselves once the call returns.
//!
//! Knows NVML and /proc, and no other part of the daemon: a command line tool can use it alone.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use berth_core::facts::{DeviceId, Gpu, GpuMemory, GpuProcess, Known, Moment};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

mod card;
mod progress;
mod reader;
mod reason;
mod xids;

use progress::Progress;
use reader::Reader;
use xids::Gate;

pub use xids::Xid;

/// Values per device, each with the moment at which the call for it was begun: it is at least that new.
pub type PerDevice<T> = BTreeMap<DeviceId, (Moment, Known<T>)>;

/// The way to NVML's thread. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Nvml {
    questions: mpsc::Sender<Question>,
    progress: Arc<Progress>,
    gate: Arc<Gate>,
}

/// The driver, and how it keeps each GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// Its version, as the library has it from the kernel.
    pub version: Known<String>,
    /// By a GPU's index: whether it stays initialised while nobody uses it.
    pub persistence: BTreeMap<u32, Known<bool>>,
}

#[derive(Debug)]
enum Question {
    Driver(oneshot::Sender<Known<Driver>>),
    All(oneshot::Sender<Known<Vec<Gpu>>>),
    Memory(Vec<DeviceId>, oneshot::Sender<PerDevice<GpuMemory>>),
    Processes(Vec<DeviceId>, oneshot::Sender<PerDevice<Vec<GpuProcess>>>),
}

impl Nvml {
    /// Starts NVML's thread. The library is loaded at the first reading, and again as long as that fails.
    pub fn spawn() -> Self {
        let (questions, asked) = mpsc::channel();
        let progress = Arc::new(Progress::default());
        let gate = Arc::new(Gate::default());
        let mut reader = Reader::new(Arc::clone(&progress), Arc::clone(&gate));
        let thread = std::thread::Builder::new().name("nvml".to_owned());
        if let Err(error) = thread.spawn(move || reader.serve(&asked)) {
            // Its end of the channel is gone, which every question will be told.
            tracing::error!("NVML's thread can't be started: {error}");
        }
        Self { questions, progress, gate }
    }

    /// The Xids that the driver reports from now on, where it lets them be watched. They are waited for on a thread of
    /// their own, which ends with the receiver.
    pub fn xids(&self) -> UnboundedReceiver<Xid> {
        let (send, receive) = unbounded_channel();
        let gate = Arc::clone(&self.gate);
        let thread = std::thread::Builder::new().name("xids".to_owned());
        if let Err(error) = thread.spawn(move || xids::watch(&gate, &send)) {
            tracing::error!("the thread that waits for Xids can't be started: {error}");
        }
        receive
    }

    /// Everything that is known of every GPU, in NVML's order; those that were lost since come last.
    ///
    /// Unknown where no GPU can be seen at all: no library, no driver, or no answer within `deadline`.
    pub async fn read_all(&self, deadline: Duration) -> Known<Vec<Gpu>> {
        self.ask(deadline, Question::All).await.unwrap_or_else(Known::Unknown)
    }

    /// The driver; unknown as [`Nvml::read_all`]. For a look, not for a poll.
    pub async fn read_driver(&self, deadline: Duration) -> Known<Driver> {
        self.ask(deadline, Question::Driver).await.unwrap_or_else(Known::Unknown)
    }

    /// The memory of these devices and nothing else: the fast poll, some tens of microseconds.
    pub async fn read_memory(&self, devices: &[DeviceId], deadline: Duration) -> PerDevice<GpuMemory> {
        let question = |answer| Question::Memory(devices.to_vec(), answer);
        self.ask(deadline, question).await.unwrap_or_else(|why| unknown(devices, &why))
    }

    /// The processes that hold memory on these devices.
    pub async fn read_processes(
        &self,
        devices: &[DeviceId],
        deadline: Duration,
    ) -> PerDevice<Vec<GpuProcess>> {
        let question = |answer| Question::Processes(devices.to_vec(), answer);
        self.ask(deadline, question).await.unwrap_or_else(|why| unknown(devices, &why))
    }

    async fn ask<T>(
        &self,
        deadline: Duration,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Result<T, String> {
        if let Some(silence) = self.progress.overdue() {
            return Err(silence);
        }
        let ended = || "the thread that asks NVML has ended; restart berthd".to_owned();
        let (answer, answered) = oneshot::channel();
        self.questions.send(question(answer)).map_err(|_| ended())?;
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err(ended()),
            Err(_) => Err(self.progress.missed(deadline)),
        }
    }
}

fn unknown<T>(devices: &[DeviceId], why: &str) -> PerDevice<T> {
    let now = crate::proc::monotonic_now();
    devices.iter().map(|id| (id.clone(), (now, Known::Unknown(why.to_owned())))).collect()
}
