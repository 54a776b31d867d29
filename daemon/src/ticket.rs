//! The ticket socket: the only place where a model's server gets permission to start.
//!
//! systemd connects to it while it starts `berth-model@….service` (`LoadCredential=`), and what it reads here
//! is what `berth-launch` finds. It says by its own address for which unit it asks, and asks from within that unit's
//! cgroup, where it is about to become one of its commands. Anyone else gets nothing.
//! Who may start is decided elsewhere; this keeps the decision until it is fetched, once, or runs out.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_core::backend::{Clear, Launch};
use berth_core::name::ModelName;
use berth_launch::Ticket;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::{SocketAddr, UCred};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::proc;
use crate::scope::Scope;

/// How long systemd may take to read a ticket.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// The most that systemd takes for all credentials of a unit.
const LONGEST_TICKET: usize = 1 << 20;

/// Why tickets can't be served or given.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// The socket could not be made.
    #[error("the ticket socket {} can't be made: {source}", .path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody serves there already.
    #[error("another berthd answers on {}: stop it first", .0.display())]
    Busy(PathBuf),
    /// The command line and the environment are too long.
    #[error(
        "the command line and environment of {model} take {size} bytes; at most {LONGEST_TICKET} can be handed over"
    )]
    TooLarge {
        /// The model.
        model: ModelName,
        /// The ticket's size in bytes.
        size: usize,
    },
}

/// A ticket was fetched by systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Whose.
    pub model: ModelName,
}

/// What is said to one who starts a unit without a ticket.
type Reason = dyn Fn(&ModelName) -> String + Send + Sync;

/// The served tickets. Dropping it ends the service and removes the socket.
pub struct Tickets {
    shared: Arc<Shared>,
    path: PathBuf,
    task: JoinHandle<()>,
}

struct Shared {
    book: Mutex<Book>,
    taken: mpsc::UnboundedSender<Taken>,
    /// The only user that may ask: the one as which systemd runs, root for PID 1.
    asker: u32,
    whose: Box<Whose>,
}

/// The run of this model's unit that a process is in.
type Whose = dyn Fn(u32, &ModelName) -> Option<Run> + Send + Sync;

/// One run of a unit: the kernel's id of its cgroup, which is made anew for each.
type Run = u64;

struct Book {
    tickets: HashMap<ModelName, State>,
    reason: Arc<Reason>,
}

enum State {
    Granted {
        ticket: String,
        expires: Instant,
    },
    /// systemd 252 asks anew for each command of a start (`ExecStartPre=` in a drop-in is one), so the run that has
    /// it may have it again.
    Taken {
        ticket: String,
        expires: Instant,
        by: Run,
    },
}

impl Tickets {
    /// Listens on `path`, mode 0600. The receiver tells of each ticket as it is fetched.
    pub fn serve(path: &Path) -> Result<(Self, mpsc::UnboundedReceiver<Taken>), TicketError> {
        Self::serve_to(path, Scope::this().user().unwrap_or(0), Box::new(run_of))
    }

    fn serve_to(
        path: &Path,
        asker: u32,
        whose: Box<Whose>,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Taken>), TicketError> {
        let failed = |source| TicketError::Socket { path: path.to_owned(), source };
        if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
            // A dead berthd leaves its socket behind; a living one must not lose it.
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(TicketError::Busy(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let (taken, taken_from) = mpsc::unbounded_channel();
        let book = Book { tickets: HashMap::new(), reason: Arc::new(default_reason) };
        let shared = Arc::new(Shared { book: Mutex::new(book), taken, asker, whose });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok((Self { shared, path: path.to_owned(), task }, taken_from))
    }

    /// Lets the model's unit start once, until `expires`. Replaces an earlier ticket.
    pub fn grant(&self, model: &ModelName, launch: &Launch, expires: Instant) -> Result<(), TicketError> {
        let ticket = Ticket::Launch(berth_launch::Launch {
            argv: launch.argv.clone(),
            env: launch.env.clone(),
            secrets: launch.secrets.clone(),
            cwd: launch.cwd.as_ref().map(|cwd| cwd.to_string_lossy().into_owned()),
            cpus: launch.cpus.clone(),
            memlock: launch.memlock.map(|bytes| bytes.0),
            nice: launch.nice,
            clear: launch.clear.clone().map(|Clear { find, remove }| berth_launch::Clear { find, remove }),
        })
        .to_json();
        if ticket.len() > LONGEST_TICKET {
            return Err(TicketError::TooLarge { model: model.clone(), size: ticket.len() });
        }
        self.shared.book().tickets.insert(model.clone(), State::Granted { ticket, expires });
        Ok(())
    }

    /// Takes the model's ticket back. Says whether there was one that had not been fetched.
    pub fn revoke(&self, model: &ModelName) -> bool {
        matches!(self.shared.book().tickets.remove(model), Some(State::Granted { .. }))
    }

    /// Sets what is said to one who starts a unit without a ticket: one sentence with the next step.
    pub fn set_reason(&self, reason: impl Fn(&ModelName) -> String + Send + Sync + 'static) {
        self.shared.book().reason = Arc::new(reason);
    }
}

impl Drop for Tickets {
    fn drop(&mut self) {
        self.task.abort();
        // It may be gone with its folder already.
        _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing panics while it holds the lock, and what the book holds is whole at any time.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers this run of the model's unit, which uses the ticket up. Says whether it was given for the first time.
    fn answer(&self, model: &ModelName, run: Run, now: Instant) -> (String, bool) {
        let mut book = self.book();
        let why = match book.tickets.remove(model) {
            Some(State::Granted { ticket, expires }) if now < expires => {
                let taken = State::Taken { ticket: ticket.clone(), expires, by: run };
                book.tickets.insert(model.clone(), taken);
                return (ticket, true);
            }
            Some(State::Taken { ticket, expires, by }) if now < expires && by == run => {
                book.tickets.insert(model.clone(), State::Taken { ticket: ticket.clone(), expires, by });
                return (ticket, false);
            }
            Some(State::Granted { expires, .. }) => {
                let late = now.saturating_duration_since(expires).as_secs_f64();
                format!("the permission for this start ran out {late:.1} s ago; ")
            }
            Some(taken @ State::Taken { .. }) => {
                book.tickets.insert(model.clone(), taken);
                "its last permission to start is used up; ".to_owned()
            }
            None => String::new(),
        };
        let reason = Arc::clone(&book.reason);
        drop(book);
        (Ticket::Refused(format!("{why}{}", reason(model))).to_json(), false)
    }
}

/// What is said until the daemon knows more.
fn default_reason(model: &ModelName) -> String {
    format!("model servers are started by berthd, not by systemctl: run `berthctl start {model}`")
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve_one(stream, Arc::clone(&shared)));
            }
            Err(error) => {
                warn!(%error, "no connection can be accepted on the ticket socket");
                // Out of file descriptors, most likely: accept would fail again at once.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(mut stream: UnixStream, shared: Arc<Shared>) {
    // Not the address that accept gave: it comes without an abstract name.
    let address = stream.peer_addr();
    let name = address.as_ref().ok().and_then(SocketAddr::as_abstract_name).unwrap_or_default();
    let peer = stream.peer_cred();
    let uid = peer.as_ref().map_or(-1, |peer| i64::from(peer.uid()));
    let pid = peer.as_ref().ok().and_then(UCred::pid).unwrap_or(-1);
    let model = asked_for(name).filter(|_| uid == i64::from(shared.asker));
    let run = model.as_ref().zip(u32::try_from(pid).ok()).and_then(|(model, pid)| (shared.whose)(pid, model));
    let Some((model, run)) = model.zip(run) else {
        warn!(uid, pid, name = %name.escape_ascii(), "a ticket was asked for by someone who isn't systemd: nothing given");
        return;
    };
    let (text, granted) = shared.answer(&model, run, Instant::now());
    let written = tokio::time::timeout(WRITE_DEADLINE, async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    })
    .await
    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match written {
        Err(error) => {
            warn!(%model, %error, granted, "systemd did not take the answer to its request for a ticket");
        }
        Ok(()) if granted => {
            info!(%model, "ticket taken");
            // Nobody may be listening for it any more at the daemon's end.
            _ = shared.taken.send(Taken { model });
        }
        Ok(()) => warn!(%model, "a start without permission was refused"),
    }
}

/// The run of the model's unit that this process is in.
fn run_of(pid: u32, model: &ModelName) -> Option<Run> {
    let group = proc::control_group_of(pid).filter(|_| proc::model_of(pid).as_ref() == Some(model))?;
    // Commands beside the main process can have a cgroup below the unit's own.
    let unit = model.unit();
    let end = group.find(&unit)? + unit.len();
    proc::cgroup_id(&group[..end])
}

/// The model for whose unit systemd asks, from the address that it asks from.
fn asked_for(name: &[u8]) -> Option<ModelName> {
    let name = std::str::from_utf8(name).ok()?;
    let (random, unit) = name.strip_suffix("/ticket")?.split_once("/unit/")?;
    if random.is_empty() || random.len() > 16 || !random.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    // Another spelling of the same name is another unit.
    ModelName::from_unit(unit).filter(|model| model.unit() == unit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use berth_core::bytes::Bytes;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn launch() -> Launch {
        Launch {
            argv: vec!["/bin/true".into()],
            env: BTreeMap::new(),
            secrets: Vec::new(),
            cwd: None,
            cpus: vec![0],
            memlock: Some(Bytes::mib(1)),
            nice: Some(5),
            clear: None,
        }
    }

    fn model() -> ModelName {
        "qwen3-32b".parse().unwrap()
    }

    fn me() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    /// Serves this process, which is in whatever run `run` says; in none where that is 0.
    fn serve(path: &Path, run: &Arc<AtomicU32>) -> (Tickets, mpsc::UnboundedReceiver<Taken>) {
        let run = Arc::clone(run);
        let whose = move |pid, _: &ModelName| {
            assert_eq!(pid, std::process::id());
            Some(Run::from(run.load(Relaxed))).filter(|run| *run > 0)
        };
        Tickets::serve_to(path, me(), Box::new(whose)).unwrap()
    }

    fn one() -> Arc<AtomicU32> {
        Arc::new(AtomicU32::new(1))
    }

    /// Asks as systemd does, from an abstract address (none where it is empty), and reads to the end.
    async fn ask(path: &Path, from: &str) -> String {
        let (path, from) = (path.to_owned(), from.to_owned());
        tokio::task::spawn_blocking(move || {
            let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            if !from.is_empty() {
                bind(fd.as_raw_fd(), &UnixAddr::new_abstract(from.as_bytes()).unwrap()).unwrap();
            }
            connect(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
            let mut text = String::new();
            // A peer that is turned away may see its connection reset.
            _ = std::os::unix::net::UnixStream::from(fd).read_to_string(&mut text);
            text
        })
        .await
        .unwrap()
    }

    /// An address as systemd's, unlike any other in this process.
    fn systemds(unit: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Relaxed);
        format!("{:08x}{next:08x}/unit/{unit}/ticket", std::process::id())
    }

    async fn ask_for(path: &Path, unit: &str) -> Ticket {
        let text = ask(path, &systemds(unit)).await;
        Ticket::parse(text.as_bytes()).unwrap()
    }

    fn refused(ticket: Ticket) -> String {
        match ticket {
            Ticket::Refused(reason) => reason,
            Ticket::Launch(launch) => panic!("{launch:?}"),
        }
    }

    #[tokio::test]
    async fn a_ticket_is_given_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ticket.sock");
        let run = one();
        let (tickets, mut taken) = serve(&path, &run);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let unit = model().unit();
        assert!(refused(ask_for(&path, &unit).await).contains("run `berthctl start qwen3-32b`"));

        tickets.grant(&model(), &launch(), Instant::now() + SOON).unwrap();
        tickets.set_reason(|model| format!("{model} is off: GPU 0 is held by aeon (14.3 GiB)"));
        assert!(refused(ask_for(&path, "berth-model@other.service").await).starts_with("other is off"));
        assert!(
            matches!(ask_for(&path, &unit).await, Ticket::Launch(launch) if launch.argv == ["/bin/true"])
        );
        assert_eq!(taken.recv().await.unwrap(), Taken { model: model() });
        // systemd asks again for the next command of the same start; another start is not this one.
        assert!(matches!(ask_for(&path, &unit).await, Ticket::Launch(_)));
        run.store(2, Relaxed);
        let reason = refused(ask_for(&path, &unit).await);
        assert_eq!(
            reason,
            "its last permission to start is used up; qwen3-32b is off: GPU 0 is held by aeon (14.3 GiB)"
        );
        assert!(taken.try_recv().is_err(), "a refusal is no ticket");

        tickets.grant(&model(), &launch(), Instant::now() + SOON).unwrap();
        assert!(matches!(ask_for(&path, &unit).await, Ticket::Launch(_)), "a new grant counts again");
    }

    #[tokio::test]
    async fn a_ticket_runs_out_and_can_be_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ticket.sock");
        let (tickets, mut taken) = serve(&path, &one());
        tickets.grant(&model(), &launch(), Instant::now()).unwrap();
        assert!(
            refused(ask_for(&path, &model().unit()).await)
                .starts_with("the permission for this start ran out 0.")
        );
        tickets.grant(&model(), &launch(), Instant::now() + SOON).unwrap();
        assert!(tickets.revoke(&model()));
        assert!(!tickets.revoke(&model()));
        assert!(
            refused(ask_for(&path, &model().unit()).await).starts_with("model servers are started by berthd")
        );
        assert!(taken.try_recv().is_err());
    }

    #[tokio::test]
    async fn nobody_but_systemd_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ticket.sock");
        let (tickets, mut taken) = serve(&path, &one());
        tickets.grant(&model(), &launch(), Instant::now() + SOON).unwrap();
        let unit = model().unit();
        for from in [
            String::new(),
            "garbage".to_owned(),
            systemds(&unit).replace("/ticket", "/other"),
            systemds(&unit).replace("/unit/", "/units/"),
            format!("not-hex/unit/{unit}/ticket"),
            format!("/unit/{unit}/ticket"),
            systemds("ssh.service"),
            systemds(r"berth-model@qwen3\x2d32\x62.service"),
            systemds("berth-model@qwen3-32b.service"),
            systemds(&format!("x/unit/{unit}")),
        ] {
            assert_eq!(ask(&path, &from).await, "", "{from}");
        }
        assert!(taken.try_recv().is_err());
        assert!(matches!(ask_for(&path, &unit).await, Ticket::Launch(_)), "it is still there for systemd");
    }

    #[tokio::test]
    async fn one_outside_of_the_unit_is_not_answered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ticket.sock");
        let run = Arc::new(AtomicU32::new(0));
        let (tickets, mut taken) = serve(&path, &run);
        tickets.grant(&model(), &launch(), Instant::now() + SOON).unwrap();
        assert_eq!(ask(&path, &systemds(&model().unit())).await, "");
        assert!(taken.try_recv().is_err());
        run.store(1, Relaxed);
        assert!(
            matches!(ask_for(&path, &model().unit()).await, Ticket::Launch(_)),
            "the ticket is untouched"
        );
    }

    #[tokio::test]
    async fn another_user_is_not_answered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ticket.sock");
        let (tickets, _taken) = Tickets::serve_to(&path, me() + 1, Box::new(|_, _| Some(1))).unwrap();
        tickets.grant(&model(), &launch(), Instant::now() + SOON).unwrap();
        assert_eq!(ask(&path, &systemds(&model().unit())).await, "");
        assert!(tickets.revoke(&model()), "the ticket was not touched");
    }

    #[tokio::test]
    async fn a_living_socket_is_not_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ticket.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (first, _taken) = serve(&path, &one());
        assert!(matches!(Tickets::serve(&path), Err(TicketError::Busy(_))));
        drop(first);
        assert!(!path.exists());
        let nowhere = Tickets::serve(Path::new("/nowhere/ticket.sock")).map(drop).unwrap_err();
        assert!(nowhere.to_string().contains("/nowhere/ticket.sock can't be made"), "{nowhere}");
    }

    #[tokio::test]
    async fn what_systemd_cannot_carry_is_refused_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        let (tickets, _taken) = serve(&folder.path().join("ticket.sock"), &one());
        let soon = Instant::now() + SOON;
        let huge = Launch { argv: vec!["x".repeat(LONGEST_TICKET)], ..launch() };
        assert!(matches!(tickets.grant(&model(), &huge, soon), Err(TicketError::TooLarge { .. })));
    }
}
