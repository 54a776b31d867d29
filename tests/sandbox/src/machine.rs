//! A sandbox as a whole: made, entered, cut from power, booted again, taken down.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::boot::{self, Booted, halt, last_words};
use crate::cgroup::Cgroups;
use crate::folder::{Bind, Folder, Record, no_sandbox};
use crate::guest::{Guest, Output, on_terminal, run};
use crate::host::Host;
use crate::owner::Caretaker;
use crate::wait::{Interrupt, wait_until};

/// Two cards as the story's tower has them.
pub const DEFAULT_GPUS: &str = "2x16311";

/// How long [`Sandbox::exec`] waits for a command to end.
pub const EXEC_DEADLINE: Duration = Duration::from_secs(60);

/// From the order to power off to the guest's end; then it is killed.
const POWEROFF_DEADLINE: Duration = Duration::from_secs(20);

/// What a sandbox is to be made of.
#[derive(Debug, Clone)]
pub struct Builder {
    dir: Option<PathBuf>,
    name: String,
    gpus: String,
    seed: u64,
    tree: Option<PathBuf>,
    binds: Vec<Bind>,
    wants: Vec<String>,
    interrupt: Interrupt,
}

impl Builder {
    /// The sandbox's folder; empty or missing, or one of a sandbox that is down, which is replaced.
    /// Without it, a new one among the host's temporary files.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.dir = Some(dir.into());
        self
    }

    /// The guest's host name; `sandbox` without it.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = name.into();
        self
    }

    /// The simulated cards, as gpusim takes them: `2x16311`, `1x16GiB,1x24GiB`.
    #[must_use]
    pub fn gpus(mut self, gpus: impl Into<String>) -> Builder {
        self.gpus = gpus.into();
        self
    }

    /// Guests with different seeds have cards with different UUIDs.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Builder {
        self.seed = seed;
        self
    }

    /// An install tree (`usr/bin/berthd`, …), copied over the guest's root; it belongs to root there.
    #[must_use]
    pub fn tree(mut self, tree: impl Into<PathBuf>) -> Builder {
        self.tree = Some(tree.into());
        self
    }

    /// Shows a file or folder of the host in the guest.
    #[must_use]
    pub fn bind(mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Builder {
        self.binds.push(Bind { from: from.into(), to: to.into(), read_only: false });
        self
    }

    /// The same, and the guest can't write to it.
    #[must_use]
    pub fn bind_read_only(mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Builder {
        self.binds.push(Bind { from: from.into(), to: to.into(), read_only: true });
        self
    }

    /// One more unit to start at boot.
    #[must_use]
    pub fn want(mut self, unit: impl Into<String>) -> Builder {
        self.wants.push(unit.into());
        self
    }

    /// Gives up and cleans up once this is set.
    #[must_use]
    pub fn interrupt(mut self, interrupt: Interrupt) -> Builder {
        self.interrupt = interrupt;
        self
    }

    /// Makes the disk and boots it. The sandbox belongs to this process: it is taken down and wiped when the
    /// result is dropped, or when the process ends in any way.
    ///
    /// # Errors
    /// The host lacks something, a setting is wrong, or the guest is not up within 30 s; nothing is left then.
    pub fn up(self) -> Result<Sandbox> {
        self.make(true)
    }

    /// The same, but it stays until [`Sandbox::down`], whoever calls that.
    ///
    /// # Errors
    /// As [`Builder::up`].
    pub fn up_to_stay(self) -> Result<Sandbox> {
        self.make(false)
    }

    fn make(mut self, owned: bool) -> Result<Sandbox> {
        let host = Host::check()?;
        self.check()?;
        let id = new_id()?;
        let dir = self.dir.unwrap_or_else(|| std::env::temp_dir().join(format!("berth-sandbox-{id}")));
        let folder = Folder::create(&dir)?;
        let lock = folder.lock()?;
        remove_leftovers(&folder)?;

        let gpusim = Bind { from: folder.file("gpusim"), to: "/var/lib/gpusim".into(), read_only: false };
        self.binds.push(gpusim);
        let cgroup = host.cgroup(&id);
        let record = Record {
            id,
            name: self.name,
            gpus: self.gpus,
            seed: self.seed,
            tree: self.tree,
            binds: self.binds,
            wants: self.wants,
            cgroup,
            boots: 0,
            ready: false,
        };
        let caretaker = if owned { Some(Caretaker::post(&record.cgroup, folder.path())?) } else { None };
        let mut sandbox =
            Sandbox { folder, record, guest: None, holder: None, caretaker, interrupt: self.interrupt };
        let made = sandbox.folder.make_disk(&sandbox.record).and_then(|()| sandbox.start(&host));
        if let Err(error) = made {
            sandbox.folder.wipe().context("could not clean up")?;
            if let Some(caretaker) = sandbox.caretaker.take() {
                caretaker.dismiss();
            }
            return Err(error);
        }
        drop(lock);
        Ok(sandbox)
    }

    /// Refuses what could only fail later, with a worse message; makes paths absolute.
    fn check(&mut self) -> Result<()> {
        let name_is_fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if self.name.is_empty() || self.name.len() > 63 || !self.name.bytes().all(name_is_fine) {
            bail!("{:?} can't be a host name: letters, digits and hyphens only, at most 63", self.name);
        }
        if !self.gpus.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"x,.".contains(&byte)) {
            bail!("{:?} are no cards: write them as 2x16311 or 1x16GiB,1x24GiB", self.gpus);
        }
        if let Some(tree) = &mut self.tree {
            *tree = tree.canonicalize().with_context(|| {
                format!("no install tree at {}: make it with `make stage`", tree.display())
            })?;
        }
        for Bind { from, to, .. } in &mut self.binds {
            *from = from.canonicalize().with_context(|| format!("can't bind {}", from.display()))?;
            if !to.is_absolute() {
                bail!("can't bind {} to {}: a path in the guest starts with /", from.display(), to.display());
            }
            for path in [&*from, &*to] {
                if path.to_string_lossy().contains(':') {
                    bail!("can't bind {}: its path has a colon", path.display());
                }
            }
        }
        for want in &self.wants {
            if want.is_empty() || want.contains(char::is_whitespace) {
                bail!("{want:?} is no unit");
            }
        }
        Ok(())
    }
}

/// A sandbox. Dropped, it is killed and wiped, if [`Builder::up`] made it in this process.
#[derive(Debug)]
pub struct Sandbox {
    folder: Folder,
    record: Record,
    guest: Option<Guest>,
    holder: Option<Child>,
    caretaker: Option<Caretaker>,
    interrupt: Interrupt,
}

impl Sandbox {
    /// Starts to describe a new one.
    pub fn builder() -> Builder {
        Builder {
            dir: None,
            name: "sandbox".to_owned(),
            gpus: DEFAULT_GPUS.to_owned(),
            seed: 0,
            tree: None,
            binds: Vec::new(),
            wants: Vec::new(),
            interrupt: Interrupt::default(),
        }
    }

    /// The sandbox in this folder, running or not, made by whomever. Dropping it changes nothing.
    ///
    /// # Errors
    /// There is none.
    pub fn attach(dir: impl AsRef<Path>) -> Result<Sandbox> {
        let dir = dir.as_ref();
        let folder = Folder::open(dir)?;
        let record = folder.record()?.ok_or_else(|| no_sandbox(dir))?;
        let cgroups = Cgroups::at(&record.cgroup);
        let guest = cgroups
            .pid1()
            .filter(|_| record.ready && cgroups.populated())
            .map(|pid1| Guest::new(pid1, &cgroups.exec()));
        Ok(Sandbox { folder, record, guest, holder: None, caretaker: None, interrupt: Interrupt::default() })
    }

    /// Gives up and cleans up once this is set; for [`Sandbox::boot`] after [`Sandbox::attach`].
    pub fn set_interrupt(&mut self, interrupt: Interrupt) {
        self.interrupt = interrupt;
    }

    /// The sandbox's folder on the host.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// The cgroup on the host that holds all of its processes, while it is up.
    pub fn cgroup(&self) -> &Path {
        &self.record.cgroup
    }

    /// The cards it was made with.
    pub fn gpus(&self) -> &str {
        &self.record.gpus
    }

    /// The install tree it was made with.
    pub fn tree(&self) -> Option<&Path> {
        self.record.tree.as_deref()
    }

    /// How often this disk was booted.
    pub fn boots(&self) -> u32 {
        self.record.boots
    }

    /// The host's number of the guest's PID 1, while it is up.
    pub fn pid1(&self) -> Option<u32> {
        self.guest.as_ref().map(|guest| guest.pid1)
    }

    /// The guest's root as the host sees it. An absolute link in it leads to the host's files: go through
    /// [`Sandbox::read_file`] where one may be in the way. An empty folder while the guest is down.
    pub fn root(&self) -> PathBuf {
        self.pid1().map_or_else(|| self.folder.file("root"), |pid1| format!("/proc/{pid1}/root").into())
    }

    /// gpusim's socket as the host sees it: what speaks to it there speaks from outside the guest.
    pub fn gpusim_socket(&self) -> PathBuf {
        self.root().join("run/gpusim/gpusim.sock")
    }

    /// The running guest.
    fn guest(&self) -> Result<&Guest> {
        self.guest.as_ref().ok_or_else(|| {
            anyhow!("the sandbox in {} is down: start it with `sandbox boot`", self.dir().display())
        })
    }

    /// Runs a command in the guest as root, at most [`EXEC_DEADLINE`].
    ///
    /// # Errors
    /// The guest is down, or the deadline passed. A command that fails is no error: see [`Output::check`].
    pub fn exec<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output> {
        self.exec_within(EXEC_DEADLINE, None, argv)
    }

    /// The same as one of the guest's users: `frank` is in group berth, `mallory` is not.
    ///
    /// # Errors
    /// As [`Sandbox::exec`], or there is no such user.
    pub fn exec_as<S: AsRef<OsStr>>(&self, user: &str, argv: &[S]) -> Result<Output> {
        self.exec_within(EXEC_DEADLINE, Some(user), argv)
    }

    /// The same with another deadline.
    ///
    /// # Errors
    /// As [`Sandbox::exec_as`].
    pub fn exec_within<S: AsRef<OsStr>>(
        &self,
        deadline: Duration,
        user: Option<&str>,
        argv: &[S],
    ) -> Result<Output> {
        let command = self.guest()?.command(user, argv)?;
        run(command, &[], deadline).with_context(|| self.running(argv))
    }

    fn running<S: AsRef<OsStr>>(&self, argv: &[S]) -> String {
        let words: Vec<_> = argv.iter().map(|word| word.as_ref().to_string_lossy()).collect();
        format!("`{}` in the sandbox {}", words.join(" "), self.dir().display())
    }

    /// A command to be started in the guest by the caller, with pipes of his choice. It gets a process group
    /// of its own; [`crate::signal`] reaches it.
    ///
    /// # Errors
    /// The guest is down, or has no such user.
    pub fn command<S: AsRef<OsStr>>(&self, user: Option<&str>, argv: &[S]) -> Result<Command> {
        use std::os::unix::process::CommandExt;
        let mut command = self.guest()?.command(user, argv)?;
        command.process_group(0);
        Ok(command)
    }

    /// The same in the caller's process group, so that a terminal's Ctrl-C reaches it, and if wanted on a
    /// terminal of the guest's own.
    ///
    /// # Errors
    /// As [`Sandbox::command`].
    pub fn foreground<S: AsRef<OsStr>>(
        &self,
        user: Option<&str>,
        terminal: bool,
        argv: &[S],
    ) -> Result<Command> {
        if terminal {
            self.guest()?.command(user, &on_terminal(argv))
        } else {
            self.guest()?.command(user, argv)
        }
    }

    /// Writes a file in the guest as root, with the folders above it; mode 644 for a new one.
    ///
    /// # Errors
    /// The guest is down or says why not.
    pub fn write_file(&self, path: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        let argv = ["sh", "-c", "mkdir -p -- \"${0%/*}/\" && cat >\"$0\"", path];
        let written = run(self.guest()?.command(None, &argv)?, contents.as_ref(), EXEC_DEADLINE);
        written.and_then(Output::check).map(drop).with_context(|| format!("can't write the sandbox's {path}"))
    }

    /// Reads a text file of the guest.
    ///
    /// # Errors
    /// The guest is down or says why not.
    pub fn read_file(&self, path: &str) -> Result<String> {
        let read = self.exec(&["cat", "--", path]).and_then(Output::check);
        Ok(read.with_context(|| format!("can't read the sandbox's {path}"))?.stdout)
    }

    /// What `systemctl is-system-running` says, and the units that failed.
    ///
    /// # Errors
    /// The guest is down or doesn't answer.
    pub fn health(&self) -> Result<(String, Vec<String>)> {
        let state = self.exec(&["systemctl", "is-system-running"])?.stdout.trim().to_owned();
        let list = ["systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager"];
        let failed = self.exec(&list)?.stdout;
        let names = failed.lines().filter_map(|line| line.split_whitespace().next());
        Ok((state, names.map(str::to_owned).collect()))
    }

    /// Cuts the guest's power: what is in `/var/lib/berth` and was not synced is lost, and no process has a
    /// word to say about it.
    ///
    /// # Errors
    /// The guest is down already, or a process survives SIGKILL.
    pub fn cut(&mut self) -> Result<()> {
        let _lock = self.folder.lock()?;
        let guest = self.guest()?;
        let cgroups = Cgroups::at(&self.record.cgroup);
        // Nobody shall see the disk fail: in a real power cut nobody does.
        cgroups.freeze()?;
        let disk = PathBuf::from(format!("/proc/{}/root/var/lib/berth", guest.pid1));
        if let Err(error) = shut_down_disk(&disk) {
            cgroups.thaw().ok();
            return Err(error);
        }
        self.guest = None;
        halt(&self.folder, &cgroups, self.holder.take())
    }

    /// Boots the same disk again.
    ///
    /// # Errors
    /// It runs already, or is not up within 30 s; it is down then, and the disk stays.
    pub fn boot(&mut self) -> Result<()> {
        let host = Host::check()?;
        let _lock = self.folder.lock()?;
        if self.guest.is_some() {
            bail!("the sandbox in {} runs already", self.dir().display());
        }
        self.record = self.folder.record()?.ok_or_else(|| no_sandbox(self.dir()))?;
        if Cgroups::at(&self.record.cgroup).populated() && self.record.ready {
            bail!("the sandbox in {} was booted by someone else just now", self.dir().display());
        }
        halt(&self.folder, &Cgroups::at(&self.record.cgroup), None)?;
        self.start(&host)
    }

    /// Boots, and remembers that.
    fn start(&mut self, host: &Host) -> Result<()> {
        self.record.ready = false;
        self.folder.remember(&self.record)?;
        let Booted { guest, holder } = boot::boot(host, &self.folder, &self.record, &self.interrupt)?;
        self.guest = Some(guest);
        self.holder = Some(holder);
        self.record.boots += 1;
        self.record.ready = true;
        self.folder.remember(&self.record)
    }

    /// Shuts the guest down in good order, or kills it after 20 s; the disk stays.
    ///
    /// # Errors
    /// A process survives SIGKILL.
    pub fn poweroff(&mut self) -> Result<()> {
        let _lock = self.folder.lock()?;
        let cgroups = Cgroups::at(&self.record.cgroup);
        if let Some(guest) = self.guest.take() {
            let order =
                ["systemctl", "start", "poweroff.target", "--job-mode=replace-irreversibly", "--no-block"];
            let ordered =
                run(guest.command(None, &order)?, &[], Duration::from_secs(5)).and_then(Output::check);
            if ordered.is_ok() {
                wait_until(POWEROFF_DEADLINE, || {
                    // Reaps it, where it is our child.
                    let ended = self
                        .holder
                        .as_mut()
                        .is_some_and(|holder| holder.try_wait().is_ok_and(|end| end.is_some()));
                    ended || !cgroups.populated()
                });
            }
        }
        halt(&self.folder, &cgroups, self.holder.take())
    }

    /// Shuts the guest down in good order, or kills it after 20 s, and removes its disk and folder.
    ///
    /// # Errors
    /// A process survives SIGKILL, or something can't be removed.
    pub fn down(mut self) -> Result<()> {
        self.poweroff()?;
        self.wipe()
    }

    fn wipe(&mut self) -> Result<()> {
        let lock = self.folder.lock()?;
        self.folder.wipe()?;
        drop(lock);
        if let Some(caretaker) = self.caretaker.take() {
            caretaker.dismiss();
        }
        Ok(())
    }

    /// The last lines of what the guest said: its journal, all boots, also while it is down.
    pub fn last_words(&self) -> String {
        last_words(&self.folder)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.caretaker.is_none() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("sandbox {}{}", self.dir().display(), self.last_words());
        }
        let halted = halt(&self.folder, &Cgroups::at(&self.record.cgroup), self.holder.take());
        if let Err(error) = halted.and_then(|()| self.wipe()) {
            // The caretaker, whose pipe closes now, tries once more.
            eprintln!("sandbox {}: {error:#}", self.folder.path().display());
        }
    }
}

/// Kills what an `up` that did not come to its end left here, and removes an older disk.
fn remove_leftovers(folder: &Folder) -> Result<()> {
    if let Some(record) = folder.record()? {
        let cgroups = Cgroups::at(&record.cgroup);
        if cgroups.populated() && record.ready {
            bail!(
                "a sandbox runs in {} already: enter it with `sandbox exec` or `sandbox shell`, \
                 or remove it with `sandbox down --wipe`",
                folder.path().display()
            );
        }
        halt(folder, &cgroups, None)?;
    }
    folder.clear()
}

/// Shuts the file system down as if its disk had vanished: nothing more is written, not even its log.
fn shut_down_disk(mount_point: &Path) -> Result<()> {
    let disk = File::open(mount_point).with_context(|| format!("can't open {}", mount_point.display()))?;
    // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH. By perl, which every Debian has, because an ioctl
    // takes unsafe code, and this house writes none for a test's convenience.
    let shut = Command::new("perl")
        .args([
            "-e",
            "my $how = pack('L', 2); ioctl(STDIN, 0x8004587d, $how) or die \"EXT4_IOC_SHUTDOWN: $!\\n\"",
        ])
        .stdin(disk)
        .output()
        .context("can't run perl")?;
    if !shut.status.success() {
        bail!("can't cut {}: {}", mount_point.display(), String::from_utf8_lossy(&shut.stderr).trim());
    }
    Ok(())
}

/// Eight random hexadecimal digits.
fn new_id() -> Result<String> {
    let mut uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("can't read a random UUID")?;
    uuid.truncate(8);
    Ok(uuid)
}
