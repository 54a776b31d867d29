//! Units, tickets and the journal against a real systemd: in a sandbox, as the user that berthd runs as.
//!
//! The outer test boots a sandbox with the installed files but without berthd, and runs this program again in it;
//! the inner one is in berthd's place. It needs root; see the sandbox for what else.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_core::backend::Launch;
use berth_core::bytes::Bytes;
use berth_core::facts::{Active, Exit, Moment, Unit};
use berth_core::layout::Layout;
use berth_core::name::ModelName;
use berth_core::upkeep::End;
use berthd::journal;
use berthd::systemd::{Change, JobResult, Property, Systemd, SystemdError, UnitReading};
use berthd::ticket::{Taken, Tickets};
use futures_util::{StreamExt as _, pin_mut};
use sandbox::Sandbox;
use tokio::sync::{broadcast, mpsc};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

/// Where this program is in the guest.
const INSIDE: &str = "/usr/lib/berth/units-test";

#[test]
fn units_are_handled_as_berthd_does() {
    let tree = tempfile::tempdir().unwrap();
    install(tree.path());
    let sandbox = Sandbox::builder()
        .tree(tree.path())
        .bind_read_only(std::env::current_exe().unwrap(), INSIDE)
        .up()
        .unwrap_or_else(|error| panic!("{error:#}"));
    let without = sandbox.exec(&["systemctl", "start", "berth-model@early"]).unwrap();
    assert!(!without.status.success());
    let status = sandbox.exec(&["systemctl", "status", "--no-pager", "berth-model@early"]).unwrap().stdout;
    assert!(status.contains("Status: \"berthd is not running, and only it starts model servers"), "{status}");

    // Some of what is tried below only root can do; this does it when asked.
    let script = format!(
        "install -d -o berth -g berth /run/berth; mkfifo -m 666 /run/berth/ask /run/berth/told
         (while read -r command < /run/berth/ask; do sh -c \"$command\" > /run/berth/told 2>&1; done) & helper=$!
         setpriv --reuid=berth --regid=berth --groups=$(getent group systemd-journal | cut -d: -f3) \
             env RUST_BACKTRACE=0 {INSIDE} --ignored --exact --nocapture in_the_guest; ended=$?
         kill $helper; exit $ended"
    );
    let inside = sandbox.exec_within(Duration::from_secs(120), None, &["sh", "-c", &script]).unwrap();
    assert!(inside.status.success(), "{}\n{}", inside.stdout, inside.stderr);
    println!("{}{}", inside.stdout, inside.stderr);
}

/// Puts what an installation has into the tree, but for berthd.
fn install(tree: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    // The test programs are in the folder below the one for programs.
    let programs = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let launch = programs.join("berth-launch");
    assert!(launch.exists(), "there is no {}: run `cargo build -p berth-launch`", launch.display());
    let files = [
        (launch, "usr/lib/berth/berth-launch"),
        (root.join("units/systemd/berth-model@.service"), "usr/lib/systemd/system/berth-model@.service"),
        (root.join("units/polkit/60-berth.rules"), "usr/share/polkit-1/rules.d/60-berth.rules"),
        (root.join("units/sysusers/berth.conf"), "usr/lib/sysusers.d/berth.conf"),
        (root.join("units/tmpfiles/berth.conf"), "usr/lib/tmpfiles.d/berth.conf"),
    ];
    for (from, to) in files {
        let to = tree.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }
}

/// What stands in berthd's place.
struct Daemon {
    systemd: Systemd,
    tickets: Tickets,
    taken: mpsc::UnboundedReceiver<Taken>,
    changes: broadcast::Receiver<Change>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run in the sandbox by the test above"]
async fn in_the_guest() {
    let systemd = Systemd::connect().await.unwrap();
    let (tickets, taken) = Tickets::serve(Path::new("/run/berth/ticket.sock")).unwrap();
    let changes = systemd.changes();
    let mut daemon = Daemon { systemd, tickets, taken, changes };
    daemon.starts_only_with_a_ticket().await;
    daemon.sees_a_death_at_once().await;
    daemon.reads_the_last_words_of_one_that_died_at_once().await;
    daemon.stops().await;
    daemon.remembers_what_it_refers_to().await;
    daemon.sets_properties().await;
    daemon.starts_within_bounds().await;
    daemon.ends_what_is_left_in_a_slice().await;
    daemon.may_do_nothing_else().await;
    daemon.follows_a_log().await;
    daemon.survives_a_reload().await;
    daemon.survives_systemd_executing_itself().await;
    daemon.survives_the_death_of_the_bus().await;
}

fn name(name: &str) -> ModelName {
    name.parse().unwrap()
}

/// A server that runs this script.
fn sh(script: &str) -> Launch {
    Launch {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: BTreeMap::from([("GREETING".to_owned(), "hello there".to_owned())]),
        secrets: Vec::new(),
        cwd: Some(PathBuf::from("/usr/share")),
        cpus: Vec::new(),
        memlock: None,
        nice: None,
        clear: None,
    }
}

/// Has root run a command; what it writes.
fn root(command: &str) -> String {
    fs::write("/run/berth/ask", format!("{command}\n")).unwrap();
    fs::read_to_string("/run/berth/told").unwrap()
}

fn run(model: &ModelName, unit: &Unit) -> journal::Run {
    journal::Run {
        units: vec![model.unit()],
        invocation: unit.invocation.clone(),
        started_at: unit.started_at,
    }
}

fn signal(pid: u32, name: &str) {
    root(&format!("kill -{name} {pid}"));
}

impl Daemon {
    async fn start(&self, model: &ModelName, script: &str) -> Result<(), SystemdError> {
        self.start_as(model, &sh(script)).await
    }

    async fn start_as(&self, model: &ModelName, launch: &Launch) -> Result<(), SystemdError> {
        self.tickets.grant(model, launch, Instant::now() + SOON).unwrap();
        self.systemd.start(model, Instant::now() + SOON).await?.wait().await
    }

    async fn stop(&self, model: &ModelName) {
        self.systemd.stop(model, Instant::now() + SOON).await.unwrap().wait().await.unwrap();
    }

    async fn unit(&self, model: &ModelName) -> UnitReading {
        self.systemd.unit(model).await.unwrap().unwrap()
    }

    /// The unit is as it was, but for what it has brought into memory: at first it still becomes the server.
    async fn is_still(&self, model: &ModelName, before: &UnitReading) {
        let mut now = self.unit(model).await;
        now.unit.brought.clone_from(&before.unit.brought);
        assert_eq!(now, *before);
    }

    /// The next change that matters to the test.
    async fn next(&mut self, mut matters: impl FnMut(&Change) -> bool) -> Change {
        timeout(SOON, async {
            loop {
                let change = self.changes.recv().await.unwrap();
                if matters(&change) {
                    return change;
                }
            }
        })
        .await
        .expect("the change is told within 10 s")
    }

    /// Waits until the signals say that the unit is in this state.
    async fn until(&mut self, model: &ModelName, state: Active) {
        self.next(|change| matches!(change, Change::Unit(unit) if unit.model == *model && unit.active == Some(state)))
            .await;
    }

    /// Forgets what was told so far.
    fn forget(&mut self) {
        self.changes = self.changes.resubscribe();
    }

    async fn starts_only_with_a_ticket(&mut self) {
        let model = name("qwen3-32b.int4");
        assert_eq!(self.systemd.unit(&model).await.unwrap(), None);
        self.tickets.set_reason(|model| format!("{model} is off: GPU 0 is held by aeon (14.3 GiB)"));
        self.systemd.reference(&model).await.unwrap();
        let refused =
            self.systemd.start(&model, Instant::now() + SOON).await.unwrap().wait().await.unwrap_err();
        assert!(matches!(&refused, SystemdError::Job { result: JobResult::Failed, .. }), "{refused}");
        let unit = self.unit(&model).await.unit;
        assert_eq!((unit.active, unit.exit, unit.main_pid), (Active::Failed, Some(Exit::Status(78)), None));
        let lines = journal::tail(&run(&model, &unit), 10).await.unwrap().lines;
        assert_eq!(lines, ["berth-launch: qwen3-32b.int4 is off: GPU 0 is held by aeon (14.3 GiB)"]);

        self.systemd.reset_failed(&model).await.unwrap();
        assert_eq!(self.unit(&model).await.unit.active, Active::Inactive);

        let began = Instant::now();
        self.start(&model, "echo \"$GREETING from $(pwd) as $(id -un)\"; sleep 1000 & exec sleep 1000")
            .await
            .unwrap();
        println!("units: start_ms={}", began.elapsed().as_millis());
        assert_eq!(self.taken.try_recv().unwrap(), Taken { model: model.clone() });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let UnitReading { unit, control_groups } = self.unit(&model).await;
        assert_eq!((unit.active, unit.sub.as_str(), unit.exit), (Active::Active, "running", None));
        assert!(control_groups.paths[0].ends_with(&model.unit()), "{control_groups:?}");
        let processes = unit.processes.value().unwrap();
        assert_eq!(processes.len(), 2, "the server and its child: {processes:?}");
        assert!(processes.contains_key(&unit.main_pid.unwrap()));
        let age = berthd::proc::monotonic_now().saturating_sub(unit.started_at.unwrap());
        assert!(age < SOON, "it started {age:?} ago");
        let tail = journal::tail(&run(&model, &unit), 10).await.unwrap();
        assert_eq!(tail.lines, ["hello there from /usr/share as berth-model"]);
        assert_eq!(tail.told_to_stop, None);
        assert!(self.systemd.units().await.unwrap().contains_key(&model));
        self.stop(&model).await;
        let tail = journal::tail(&run(&model, &unit), 10).await.unwrap();
        let told = tail.told_to_stop.expect("a stop is told apart from an end by itself");
        assert_eq!(self.systemd.why_stopped(told).await, Ok(End::ByHand));
        assert_eq!(self.systemd.why_stopped(Moment::ZERO).await, Ok(End::WithSystemd));
        self.systemd.unreference(&model).await.unwrap();
    }

    async fn sees_a_death_at_once(&mut self) {
        let model = name("mortal");
        self.start(&model, "exec sleep 1000").await.unwrap();
        let pid = self.unit(&model).await.unit.main_pid.unwrap();
        self.forget();
        // Not by systemd: this is how a server dies.
        let killer = std::thread::spawn(move || signal(pid, "KILL"));
        self.until(&model, Active::Failed).await;
        killer.join().unwrap();
        let unit = self.unit(&model).await.unit;
        assert_eq!((unit.exit, unit.result.as_str()), (Some(Exit::Signal(9)), "signal"));

        // The way of the signal alone, from a process that notes the moment of its end.
        self.start(&model, "sleep 0.3; umask 022; date +%s%N > /tmp/died; exit 3").await.unwrap();
        self.forget();
        self.until(&model, Active::Failed).await;
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let died: u128 = fs::read_to_string("/tmp/died").unwrap().trim().parse().unwrap();
        let lag = Duration::from_nanos(u64::try_from(now - died).unwrap());
        println!("units: death_seen_after_ms={:.1}", lag.as_secs_f64() * 1e3);
        assert!(lag < Duration::from_millis(500), "{lag:?}");
        let unit = self.unit(&model).await.unit;
        assert_eq!(unit.exit, Some(Exit::Status(3)));
        assert_eq!(journal::tail(&run(&model, &unit), 10).await.unwrap().told_to_stop, None);
        self.systemd.reset_failed(&model).await.unwrap();
    }

    /// Of a server that ended before journald came to its line nobody knows the invocation any more.
    async fn reads_the_last_words_of_one_that_died_at_once(&mut self) {
        let model = name("hasty");
        self.start(&model, "echo earlier; exec sleep 1000").await.unwrap();
        self.stop(&model).await;
        let journald = root("systemctl show --value --property MainPID systemd-journald.service");
        let journald: u32 = journald.trim().parse().unwrap();
        signal(journald, "STOP");
        let started = self.start(&model, "echo 'last words'; exit 3").await;
        self.until(&model, Active::Failed).await;
        signal(journald, "CONT");
        started.unwrap();
        let unit = self.unit(&model).await.unit;
        let tail = journal::tail(&run(&model, &unit), 10).await.unwrap();
        assert_eq!((tail.lines, tail.told_to_stop), (vec!["last words".to_owned()], None));
        self.systemd.reset_failed(&model).await.unwrap();
    }

    async fn stops(&mut self) {
        let model = name("stubborn");
        // A child that ignores SIGTERM costs nothing …
        self.start(&model, "(trap '' TERM; sleep 1000) & exec sleep 1000").await.unwrap();
        let began = Instant::now();
        self.stop(&model).await;
        println!("units: stop_with_stubborn_child_ms={}", began.elapsed().as_millis());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        // … a server that does, the deadline; then the job goes on, and SIGKILL ends it.
        self.start(&model, "trap '' TERM; echo deaf; while :; do sleep 1; done").await.unwrap();
        self.systemd.reference(&model).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let deadline = Instant::now() + Duration::from_millis(300);
        let late = self.systemd.stop(&model, deadline).await.unwrap().wait().await.unwrap_err();
        assert_eq!(late.to_string(), "systemd did not stop berth-model@stubborn.service within 0.3 s");
        assert_eq!(self.unit(&model).await.unit.active, Active::Deactivating);
        let refused = self.start(&model, "exec sleep 1000").await.unwrap_err();
        assert!(matches!(&refused, SystemdError::Refused { .. }), "a stop is not overruled: {refused}");
        self.forget();
        self.systemd.kill(&model, 9).await.unwrap();
        self.next(|change| matches!(change, Change::Job { model: of, .. } if *of == model)).await;
        let UnitReading { unit, control_groups } = self.unit(&model).await;
        assert_eq!(
            (unit.active, unit.exit, unit.processes.value().unwrap().len()),
            (Active::Failed, Some(Exit::Signal(9)), 0)
        );
        // Its own is gone; docker's place for it stays to be looked at.
        assert_eq!(control_groups.paths, ["/berth.slice/berth-model.slice/berth-model-stubborn.slice"]);
        self.systemd.unreference(&model).await.unwrap();
        self.systemd.reset_failed(&model).await.unwrap();
        // What is down already is stopped at once.
        self.stop(&name("never-started")).await;
    }

    async fn remembers_what_it_refers_to(&mut self) {
        let model = name("brief");
        self.systemd.reference(&model).await.unwrap();
        self.systemd.reference(&model).await.unwrap();
        self.start(&model, "sleep 0.3; exit 0").await.unwrap();
        self.forget();
        self.until(&model, Active::Inactive).await;
        let unit = self.unit(&model).await.unit;
        assert_eq!((unit.exit, unit.invocation.len()), (Some(Exit::Status(0)), 32));
        self.systemd.unreference(&model).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(self.systemd.unit(&model).await.unwrap(), None, "without the reference it is forgotten");
    }

    async fn sets_properties(&mut self) {
        let model = name("pinned");
        self.start(&model, "exec sleep 1000").await.unwrap();
        let show = || root(&format!("systemctl show -p AllowedCPUs -p MemoryMin {}", model.unit()));
        let set = [Property::AllowedCpus(BTreeSet::from([0, 1])), Property::MemoryMin(1 << 30)];
        assert!(!self.systemd.has_properties(&model, &set).await.unwrap());
        self.systemd.set_properties(&model, &set).await.unwrap();
        assert!(self.systemd.has_properties(&model, &set).await.unwrap());
        assert_eq!(show(), "AllowedCPUs=0-1\nMemoryMin=1073741824\n");
        let reset = [Property::AllowedCpus(BTreeSet::new()), Property::MemoryMin(0)];
        assert!(!self.systemd.has_properties(&model, &reset).await.unwrap());
        self.systemd.set_properties(&model, &reset).await.unwrap();
        assert!(self.systemd.has_properties(&model, &reset).await.unwrap());
        assert_eq!(show(), "AllowedCPUs=\nMemoryMin=0\n");
        self.stop(&model).await;
    }

    /// As berthd does it: set before the start, on a unit that systemd does not even know.
    async fn starts_within_bounds(&mut self) {
        let model = name("bounded");
        let bounds = |unit: &Unit| {
            let pid = unit.main_pid.unwrap();
            let shown = format!(
                "sed -n s/^Cpus_allowed_list:.//p /proc/{pid}/status; cut -d' ' -f19 /proc/{pid}/stat; \
                 sed -n 's/^Max locked memory *//p' /proc/{pid}/limits"
            );
            root(&shown).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let show = || root(&format!("systemctl show -p AllowedCPUs -p MemoryMin {}", model.unit()));
        self.start(&model, "exec sleep 1000").await.unwrap();
        let unbounded = bounds(&self.unit(&model).await.unit);
        assert!(unbounded[0] != "0" && unbounded[1] == "0", "{unbounded:?}");
        assert_ne!(unbounded[2], "4194304");
        self.stop(&model).await;

        let layout = Layout { cores: vec![0], lock: true, host: Bytes::mib(4), ..Layout::default() };
        let mut launch = sh("exec sleep 1000");
        (launch.cpus, launch.memlock, launch.nice) = (vec![0], Some(Bytes::mib(4)), Some(5));
        self.systemd.set_properties(&model, &Property::of(&layout)).await.unwrap();
        self.start_as(&model, &launch).await.unwrap();
        assert_eq!(bounds(&self.unit(&model).await.unit), ["0", "5", "4194304", "4194304", "bytes"]);
        assert_eq!(show(), "AllowedCPUs=0\nMemoryMin=4194304\n");
        self.stop(&model).await;

        // The next start is another one.
        self.systemd.set_properties(&model, &Property::of(&Layout::default())).await.unwrap();
        self.start(&model, "exec sleep 1000").await.unwrap();
        assert_eq!(bounds(&self.unit(&model).await.unit), unbounded);
        assert_eq!(show(), "AllowedCPUs=\nMemoryMin=0\n");
        self.stop(&model).await;

        launch.cpus = vec![0, 1023];
        let failed = self.start_as(&model, &launch).await.unwrap_err().to_string();
        assert!(failed.contains("`failed`"), "{failed}");
        let status = root(&format!("systemctl status --no-pager {}", model.unit()));
        assert!(status.contains("1023 can't be had: offline, or not allowed for the unit"), "{status}");
        self.systemd.reset_failed(&model).await.unwrap();
    }

    /// A container outlives the unit that waited for it, and systemd has forgotten that unit.
    async fn ends_what_is_left_in_a_slice(&mut self) {
        let model = name("gemma-4");
        root(r"systemd-run --quiet --slice='berth-model-gemma\x2d4.slice' --unit=boxed sleep 1000");
        let all = self.systemd.units().await.unwrap();
        let left = all.get(&model).expect("its processes are seen");
        assert_eq!((left.unit.active, left.unit.processes.value().unwrap().len()), (Active::Inactive, 1));
        assert_eq!(self.unit(&model).await.control_groups, left.control_groups);
        assert!(self.systemd.signal_container(&model, 15).await.unwrap());
        timeout(SOON, async {
            while self.systemd.unit(&model).await.unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("it has ended");
        assert!(!self.systemd.signal_container(&model, 15).await.unwrap(), "nothing is left");
        assert!(!self.systemd.units().await.unwrap().contains_key(&model));
    }

    async fn may_do_nothing_else(&mut self) {
        let shown = |verb: &str, unit: &str| {
            let output = Command::new("systemctl").args(["--no-ask-password", verb, unit]).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        for (verb, unit) in [
            ("start", "systemd-tmpfiles-clean.service"),
            ("stop", "dbus.service"),
            ("restart", "berth-model@allowed.service"),
            ("start", "berth-models@allowed.service"),
            ("mask", "berth-model@allowed.service"),
            ("stop", r"berth-model-gemma\x2d4.slice"),
            ("kill", "berth-model.slice"),
            ("kill", "system.slice"),
        ] {
            let (done, said) = shown(verb, unit);
            assert!(!done, "{verb} {unit} is not for berthd");
            assert!(
                said.contains("authentication required") || said.contains("Access denied"),
                "{verb} {unit}: {said}"
            );
        }
        assert!(shown("stop", "berth-model@allowed.service").0);
        root("systemctl mask --runtime berth-model@masked.service");
        let masked =
            self.systemd.start(&name("masked"), Instant::now() + SOON).await.unwrap_err().to_string();
        assert!(masked.contains("is masked"), "{masked}");

        let others = Command::new("systemctl").args(["kill", "berth-model@none.service"]).output().unwrap();
        assert!(!others.status.success(), "what isn't loaded can't be killed");
    }

    async fn follows_a_log(&mut self) {
        let model = name("talker-1");
        let script = r"printf 'first\n\033[31mred\033[0m\nb\377d\n'; sleep 0.5; echo late; exec sleep 1000";
        self.start(&model, script).await.unwrap();
        let lines = journal::follow(&[model.unit()], 100, true).unwrap();
        pin_mut!(lines);
        let mut seen = Vec::new();
        while seen.last().map(String::as_str) != Some("late") {
            let line = timeout(SOON, lines.next())
                .await
                .expect("the line comes while it is followed")
                .unwrap()
                .unwrap();
            seen.push(line.text);
        }
        for line in ["first", "red", "b\u{fffd}d"] {
            assert!(seen.iter().any(|text| text == line), "{seen:?}");
        }
        assert!(
            seen.iter().any(|text| text.starts_with("Started")),
            "what systemd says is there too: {seen:?}"
        );
        let ended: Vec<_> = journal::follow(&[model.unit()], 1, false).unwrap().collect().await;
        assert_eq!(ended.into_iter().map(|line| line.unwrap().text).collect::<Vec<_>>(), ["late"]);

        // A log that never becomes quiet is given up after 2 s.
        self.stop(&model).await;
        self.start(&model, "while :; do echo tick; sleep 0.05; done").await.unwrap();
        let unit = self.unit(&model).await.unit;
        let began = Instant::now();
        let lines = journal::tail(&run(&model, &unit), 5).await.unwrap().lines;
        assert_eq!(lines, ["tick"; 5]);
        assert!((1..3).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        self.stop(&model).await;
    }

    async fn survives_a_reload(&mut self) {
        let model = name("steady");
        self.start(&model, "exec sleep 1000").await.unwrap();
        let before = self.unit(&model).await;
        self.forget();
        root("systemctl daemon-reload");
        self.next(|change| *change == Change::Reloading(true)).await;
        self.next(|change| *change == Change::Reloading(false)).await;
        self.is_still(&model, &before).await;
        self.stop(&model).await;
    }

    async fn survives_systemd_executing_itself(&mut self) {
        let (model, gone, slow) = (name("steady"), name("gone"), name("slow"));
        self.systemd.reference(&gone).await.unwrap();
        self.start(&gone, "sleep 0.3; exit 0").await.unwrap();
        self.forget();
        self.until(&gone, Active::Inactive).await;
        let gone_before = self.unit(&gone).await;
        self.start(&model, "exec sleep 1000").await.unwrap();
        let before = self.unit(&model).await;
        self.start(&slow, "trap 'sleep 2; exit 0' TERM; while :; do sleep 0.1; done").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let stopping = self.systemd.stop(&slow, Instant::now() + SOON).await.unwrap();
        self.forget();
        let began = Instant::now();
        root("systemctl daemon-reexec");
        self.next(|change| *change == Change::Back).await;
        println!("units: reexec_ms={}", began.elapsed().as_millis());
        self.is_still(&model, &before).await;
        assert_eq!(self.unit(&gone).await, gone_before, "what is referred to is still known");
        stopping.wait().await.unwrap();
        self.systemd.unreference(&gone).await.unwrap();
        self.forget();
        self.systemd.kill(&model, 9).await.unwrap();
        self.until(&model, Active::Failed).await;
        self.systemd.reset_failed(&model).await.unwrap();
    }

    async fn survives_the_death_of_the_bus(&mut self) {
        let (model, slow) = (name("steady"), name("slow"));
        self.systemd.reference(&model).await.unwrap();
        self.systemd.reference(&slow).await.unwrap();
        self.start(&model, "exec sleep 1000").await.unwrap();
        let before = self.unit(&model).await;
        self.start(&slow, "trap 'sleep 2; exit 0' TERM; while :; do sleep 0.1; done").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let stopping = self.systemd.stop(&slow, Instant::now() + SOON).await.unwrap();
        self.forget();
        root("kill -9 $(systemctl show -p MainPID --value dbus.service)");
        let lost = self.next(|change| matches!(change, Change::Lost(_))).await;
        println!("units: {lost:?}");
        let meanwhile = self.systemd.units().await;
        assert!(matches!(&meanwhile, Ok(_) | Err(SystemdError::Unreachable { .. })), "{meanwhile:?}");
        root("systemctl start dbus.service");
        let began = Instant::now();
        self.next(|change| *change == Change::Back).await;
        println!("units: bus_back_after_ms={}", began.elapsed().as_millis());
        // Who waits for a job learns its end by looking.
        stopping.wait().await.unwrap();
        assert_eq!(self.unit(&slow).await.unit.active, Active::Inactive);
        self.is_still(&model, &before).await;
        self.forget();
        self.stop(&model).await;
        self.until(&model, Active::Inactive).await;
        assert_eq!(
            self.unit(&model).await.unit.invocation,
            before.unit.invocation,
            "it is referred to again"
        );
        self.start(&model, "exec sleep 1000").await.unwrap();
        self.stop(&model).await;
    }
}
