//! The server: a thread for each connection, and one that sees deaths. Everything they know is in one place
//! behind one lock, and everything asked is brought up to the moment of asking first.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::PollTimeout;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;
use serde_json::Value;

use crate::foreign::Foreigners;
use crate::protocol::{Answer, Calls, Code, Failure, Foreign, Kind, Knob, Readings, Request, Stats};
use crate::record::{ConfigFile, Record};
use crate::state::{Config, Gpus, When};
use crate::sys::{PidFd, comm_of, exit_of, now_ns, readable, run_first};

/// What a server is started with.
#[derive(Debug, Default)]
pub struct Options {
    /// Totals of the cards in bytes, unless `config` already holds cards.
    pub cards: Vec<u64>,
    /// Tells the cards of one simulated machine from another's.
    pub seed: u64,
    pub socket: PathBuf,
    pub stats: Option<PathBuf>,
    pub config: Option<PathBuf>,
}

/// All the server knows.
struct Inner {
    gpus: Gpus,
    /// Everyone who ever took memory and is not known to be dead.
    watched: BTreeMap<u32, Arc<PidFd>>,
    foreigners: Foreigners,
    record: Record,
    config: ConfigFile,
    readings: Readings,
}

struct Server {
    inner: Mutex<Inner>,
    /// A knob changed: what hangs may go on, and an Xid may have come.
    changed: Condvar,
    /// Wakes the watcher, for there is one more to watch.
    wake: UnixStream,
}

/// Serves until the process ends. `ready` is called once clients can connect.
pub fn serve(options: Options, ready: impl FnOnce()) -> io::Result<()> {
    let config_file = ConfigFile(options.config);
    let config = config_file.read()?.unwrap_or_else(|| Config::new(&options.cards, options.seed));
    config_file.write(&config)?;
    let listener = listen(&options.socket)?;
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let server = Arc::new(Server {
        inner: Mutex::new(Inner {
            gpus: Gpus::new(config),
            watched: BTreeMap::new(),
            foreigners: Foreigners::default(),
            record: Record::open(options.stats.as_deref())?,
            config: config_file,
            readings: Readings::default(),
        }),
        changed: Condvar::new(),
        wake,
    });
    let watcher = Arc::clone(&server);
    std::thread::Builder::new().name("watcher".into()).spawn(move || watcher.watch(woken))?;
    ready();
    for stream in listener.incoming() {
        let server = Arc::clone(&server);
        let thread = std::thread::Builder::new().name("client".into()).stack_size(256 << 10);
        let served = stream.and_then(|stream| thread.spawn(move || server.converse(stream)));
        if let Err(error) = served {
            // Too many clients; some of them will end.
            eprintln!("gpusim: can't serve a client: {error}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Listens on a socket that everyone may talk to, in the place of a dead server's.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(socket).is_ok() {
        let message = format!("a gpusim already serves at {}", socket.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    }
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

impl Inner {
    /// Notices deaths and lets everything happen that was due by now; returns the time.
    fn catch_up(&mut self) -> u64 {
        let pids: Vec<u32> = self.watched.keys().copied().collect();
        let fds: Vec<_> = self.watched.values().map(|fd| fd.as_fd()).collect();
        let dead = readable(&fds, PollTimeout::ZERO);
        let now = now_ns();
        for pid in pids.into_iter().zip(dead).filter_map(|(pid, dead)| dead.then_some(pid)) {
            if let Some(fd) = self.watched.remove(&pid) {
                self.gpus.died(pid, Some(&comm_of(pid)), exit_of(pid, &fd), now);
            }
        }
        self.gpus.settle(now);
        self.foreigners.reap();
        let happened = self.gpus.take_happenings();
        self.record.add(happened);
        now
    }
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees deaths at the moment they happen.
    fn watch(&self, mut woken: UnixStream) {
        run_first();
        loop {
            let watched: Vec<Arc<PidFd>> = self.lock().watched.values().cloned().collect();
            let mut fds: Vec<_> = watched.iter().map(|fd| fd.as_fd()).collect();
            fds.push(woken.as_fd());
            readable(&fds, PollTimeout::NONE);
            while matches!(woken.read(&mut [0; 64]), Ok(n) if n > 0) {}
            self.lock().catch_up();
        }
    }

    fn converse(&self, stream: UnixStream) {
        let pid = getsockopt(&stream, PeerCredentials).map_or(0, |peer| peer.pid());
        let Ok(mut writer) = stream.try_clone() else { return };
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let answered = serde_json::from_str(&line)
                .map_err(|error| Failure::new(Code::Invalid, format!("not a request: {error}")))
                .and_then(|request| self.answer(u32::try_from(pid).unwrap_or(0), request));
            let answer = match answered {
                Ok(value) => Answer::Ok(value),
                Err(failure) => Answer::Error(failure),
            };
            let mut line = serde_json::to_string(&answer).unwrap_or_default();
            line.push('\n');
            if writer.write_all(line.as_bytes()).is_err() {
                return;
            }
        }
    }

    /// Returns once no call of this kind hangs any more.
    fn hang(&self, device: Option<u32>, call: Calls) {
        let asked = now_ns();
        let mut inner = self.lock();
        loop {
            let now = now_ns();
            let Some(until) = inner.gpus.hangs(device, call, asked, now) else { return };
            let wait = Duration::from_nanos(until - now);
            inner = self.changed.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns once there are Xids after this one, or the time is over.
    fn await_xids(&self, after: u64, within: Duration) {
        let none = |inner: &mut Inner| inner.gpus.xids(after).is_empty();
        // Poisoned or not, they are looked at next.
        drop(self.changed.wait_timeout_while(self.lock(), within, none));
    }

    fn answer(&self, pid: u32, request: Request) -> Result<Value, Failure> {
        let (device, call) = match &request {
            Request::Memory { device } => (Some(*device), Some(Calls::Memory)),
            Request::Processes { device, .. } => (Some(*device), Some(Calls::Processes)),
            Request::Card { device } | Request::Sensors { device } => (Some(*device), Some(Calls::All)),
            Request::Hello => (None, Some(Calls::All)),
            _ => (None, None),
        };
        if let Some(call) = call {
            self.hang(device, call);
        }
        if let Request::Xids { after, within_ms } = request {
            self.await_xids(after, Duration::from_millis(within_ms));
        }
        let mut inner = self.lock();
        let now = inner.catch_up();
        if call.is_some() {
            let counter = match call {
                Some(Calls::Memory) => &mut inner.readings.memory,
                Some(Calls::Processes) => &mut inner.readings.processes,
                _ => &mut inner.readings.other,
            };
            *counter += 1;
        }
        match request {
            Request::Hello => value(inner.gpus.driver()?),
            Request::Card { device } => value(inner.gpus.identity(device)?),
            Request::Memory { device } => value(inner.gpus.read_memory(device, now)?),
            Request::Processes { device, kind } => value(inner.gpus.processes(device, kind, now)?),
            Request::Sensors { device } => value(inner.gpus.sensors(device, now)?),
            Request::Xids { after, .. } => value(inner.gpus.xids(after)),
            Request::Watch { device } => value(inner.gpus.watch(device)?),
            Request::Alloc { device, bytes, kind } => {
                self.watch_process(&mut inner, pid)?;
                let done = inner.gpus.alloc(now, (pid, &comm_of(pid), false), device, bytes, kind);
                inner.catch_up();
                value(done?)
            }
            Request::Set { device, knob } => {
                inner.gpus.set(device, &knob, now)?;
                self.changed.notify_all();
                inner.config.write(inner.gpus.config()).map_err(internal)?;
                value(())
            }
            Request::Foreign(foreign) => value(self.foreign(&mut inner, now, &foreign)?),
            Request::ForeignStop { name } => {
                if !inner.foreigners.stop(&name).map_err(internal)? {
                    return Err(Failure::new(Code::NotFound, format!("no foreign process is called {name}")));
                }
                inner.catch_up();
                value(())
            }
            Request::Stats => {
                for pid in inner.gpus.holders() {
                    inner.gpus.rename(pid, comm_of(pid));
                }
                let devices = inner.gpus.devices(now);
                let mut stats = Stats { now_ns: now, devices, readings: inner.readings, ..Stats::default() };
                inner.record.fill(&mut stats);
                value(stats)
            }
            Request::Reset => {
                inner.foreigners.stop_all().map_err(internal)?;
                let now = inner.catch_up();
                inner.gpus.set(None, &Knob::Healthy, now)?;
                inner.gpus.set(None, &Knob::VersionMismatch(false), now)?;
                self.changed.notify_all();
                inner.config.write(inner.gpus.config()).map_err(internal)?;
                inner.readings = Readings::default();
                value(inner.record.reset().map_err(internal)?)
            }
            Request::ResetStats => {
                inner.readings = Readings::default();
                value(inner.record.reset().map_err(internal)?)
            }
        }
    }

    fn watch_process(&self, inner: &mut Inner, pid: u32) -> Result<(), Failure> {
        if let std::collections::btree_map::Entry::Vacant(entry) = inner.watched.entry(pid) {
            let held = PidFd::open(pid);
            entry.insert(Arc::new(held.map_err(|error| {
                Failure::new(Code::Invalid, format!("process {pid} can't be held: {error}"))
            })?));
            // Full means that it is awake already.
            let _ = (&self.wake).write(&[0]);
        }
        Ok(())
    }

    fn foreign(&self, inner: &mut Inner, now: u64, foreign: &Foreign) -> Result<u32, Failure> {
        let pid = inner.foreigners.pid_of(&foreign.name).map_err(internal)?;
        self.watch_process(inner, pid)?;
        let comm = comm_of(pid);
        let Foreign { device, bytes, kind, .. } = *foreign;
        if foreign.at_release {
            let when = When::AtRelease { delay: foreign.release_delay_ns };
            inner.gpus.wish((pid, &comm), device, bytes, kind, when);
        } else if let Err(failure) = inner.gpus.alloc(now, (pid, &comm, true), device, bytes, kind) {
            // One that holds nothing has no reason to live.
            if !inner.gpus.devices(now).iter().any(|d| d.held.iter().any(|held| held.pid == pid)) {
                inner.foreigners.stop(&foreign.name).map_err(internal)?;
            }
            return Err(failure);
        }
        if foreign.grow_by > 0 {
            let when = When::At(now.saturating_add(foreign.grow_after_ns));
            inner.gpus.wish((pid, &comm), device, foreign.grow_by, kind, when);
        }
        Ok(pid)
    }
}

fn value(answer: impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(answer).map_err(internal)
}

#[allow(clippy::needless_pass_by_value)]
fn internal(error: impl ToString) -> Failure {
    Failure::new(Code::Internal, error.to_string())
}

/// Which list a foreign process is in, from a word.
pub fn parse_kind(word: &str) -> Result<Kind, String> {
    match word {
        "compute" => Ok(Kind::Compute),
        "graphics" => Ok(Kind::Graphics),
        _ => Err(format!("`{word}` is no process list; there are compute and graphics")),
    }
}
