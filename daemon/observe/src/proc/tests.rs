#![allow(clippy::unwrap_used)]
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

fn processes_in(control_group: &str) -> Known<BTreeMap<u32, u64>> {
    started_of(&cgroup_processes(&Groups::of(control_group.to_owned())))
}

/// A child that sleeps, ended when dropped.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cgroup below the test's own, or None where this user may not make one.
struct Group {
    path: String,
    dir: PathBuf,
}

impl Group {
    fn new(name: &str) -> Option<Self> {
        let own = control_group_of(std::process::id())?;
        let path = format!("{}/{name}-{}", own.trim_end_matches('/'), std::process::id());
        let dir = folder(cgroup2_mount()?, &path);
        std::fs::create_dir(&dir).ok()?;
        Some(Self { path, dir })
    }

    fn below(&self, name: &str) -> Self {
        let dir = self.dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        Self { path: format!("{}/{name}", self.path), dir }
    }

    fn take(&self, child: &Sleeper) {
        std::fs::write(self.dir.join("cgroup.procs"), child.0.id().to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        while std::fs::remove_dir(&self.dir).is_err() && self.dir.exists() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_unit_counts_only_where_pid_1_keeps_it() {
    let of = |path| model_in(path, "").map(|name| name.to_string());
    assert_eq!(
        of(r"/system.slice/system-berth\x2dmodel.slice/berth-model@genesis.service").as_deref(),
        Some("genesis")
    );
    assert_eq!(
        of(r"/berth.slice/berth-model@qwen3\x2d32b.service/workers/0").as_deref(),
        Some("qwen3-32b"),
        "cgroups that the server makes below its unit are its own"
    );
    for foreign in [
        "/",
        "",
        "/system.slice/ssh.service",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/berth-model@genesis.service",
        "/system.slice/docker-0123.scope/system.slice/berth-model@genesis.service",
        "/system.slice/berth-model@.service",
    ] {
        assert_eq!(of(foreign), None, "{foreign}");
    }
    let path = "/lxc/one/system.slice/berth-model@genesis.service";
    assert_eq!(model_in(path, "/lxc/one").unwrap().as_str(), "genesis");
    assert_eq!(model_in(path, "/lxc/two"), None);
    // A user's own Berth has those of that user's systemd, and not the machine's.
    let own = "/user.slice/user-1000.slice/user@1000.service";
    let below = format!(r"{own}/app.slice/app-berth\x2dmodel.slice/berth-model@genesis.service");
    assert_eq!(model_in(&below, own).unwrap().as_str(), "genesis");
    assert_eq!(model_in("/system.slice/berth-model@genesis.service", own), None);
}

#[test]
fn a_foreign_process_is_known_by_its_unit() {
    let of = |path| unit_in(path, "");
    for (path, unit) in [
        ("/system.slice/aeon.service", "aeon.service"),
        ("/system.slice/aeon.service/workers/0", "aeon.service"),
        (r"/system.slice/system-vllm.slice/vllm@genesis.service", "vllm@genesis.service"),
        ("/system.slice/_cpu.service", "cpu.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("/system.slice/docker-0123.scope/system.slice/aeon.service", "docker-0123.scope"),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/aeon.service",
            "user@1000.service/aeon.service",
        ),
        ("/user.slice/user-1000.slice/user@1000.service/payload", "user@1000.service"),
    ] {
        assert_eq!(of(path).as_deref(), Some(unit), "{path}");
    }
    for none in ["", "/", "/docker/0123", "/user.slice", "/lxc.payload.one/system.slice/aeon.service"] {
        assert_eq!(of(none), None, "{none}");
    }
    assert_eq!(unit_in("/lxc/one/system.slice/aeon.service", "/lxc/one").as_deref(), Some("aeon.service"));
}

#[test]
fn describes_a_process_and_not_one_that_is_gone() {
    let child = Sleeper::new();
    let pid = child.0.id();
    // The name is `sleep` only once the child has executed it.
    let end = Instant::now() + Duration::from_secs(5);
    while program_of(pid).as_deref() != Some("sleep") && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    let described = describe(pid).unwrap();
    assert_eq!((described.program.as_str(), described.model), ("sleep", None));
    assert_eq!(Some(described.started), started(pid), "both ways of reading it agree");
    assert!(described.started > started(1).unwrap());
    drop(child);
    assert_eq!((describe(pid), started(pid), program_of(pid), model_of(pid)), (None, None, None, None));
    assert_eq!(describe(u32::MAX), None);
}

#[test]
fn lists_a_cgroup_and_those_below_until_they_are_gone() {
    let Some(group) = Group::new("berth-test-proc") else {
        panic!(
            "this test makes cgroups below its own: run it as root, or under `systemd-run --user -p Delegate=yes`"
        );
    };
    let inner = group.below("inner");
    assert_eq!(processes_in(&group.path), Known::Value(BTreeMap::new()));
    let (outer_child, inner_child) = (Sleeper::new(), Sleeper::new());
    group.take(&outer_child);
    inner.take(&inner_child);
    let expected: BTreeMap<u32, u64> = [outer_child.0.id(), inner_child.0.id()]
        .into_iter()
        .map(|pid| (pid, started(pid).unwrap()))
        .collect();
    assert_eq!(processes_in(&group.path), Known::Value(expected));
    assert_eq!(control_group_of(inner_child.0.id()).as_deref(), Some(inner.path.as_str()));

    let ids_of = |path: &str| cgroup_ids(&Groups::of(path.to_owned()));
    let ids = ids_of(&group.path);
    assert_eq!(ids.len(), 2);
    assert!(ids.is_superset(&ids_of(&inner.path)));

    drop(inner_child);
    drop(outer_child);
    let path = group.path.clone();
    assert_eq!(processes_in(&path), Known::Value(BTreeMap::new()));
    drop(inner);
    drop(group);
    assert_eq!(processes_in(&path), Known::Value(BTreeMap::new()), "gone is empty");
    assert_eq!(ids_of(&path), BTreeSet::new());
    assert_eq!(processes_in(""), Known::Value(BTreeMap::new()));
}

#[test]
fn a_hundred_processes_are_read_in_no_time() {
    let Some(group) = Group::new("berth-test-hundred") else {
        panic!(
            "this test makes cgroups below its own: run it as root, or under `systemd-run --user -p Delegate=yes`"
        );
    };
    let children: Vec<Sleeper> = (0..100).map(|_| Sleeper::new()).collect();
    for child in &children {
        group.take(child);
    }
    // The best of several: other work on the machine is not what is measured.
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let begin = Instant::now();
        let found = processes_in(&group.path);
        best = best.min(begin.elapsed());
        assert_eq!(found.value().unwrap().len(), 100);
    }
    println!("100 processes of a cgroup: {best:?}");
    // 1.4 ms where nothing else runs, nearly all of it the kernel's; the margin is for a busy machine.
    assert!(best < Duration::from_millis(10), "{best:?}");
    drop(children);
}

#[test]
fn the_host_has_memory() {
    let before = monotonic_now();
    let Known::Value(HostMemory { read_at, total, available }) = host_memory() else {
        panic!("no host memory")
    };
    assert!(total > available && available > Bytes::ZERO, "{total} {available}");
    assert!(before <= read_at && read_at <= monotonic_now());
}

#[test]
fn what_a_process_uses_grows() {
    let before = used(std::process::id()).unwrap();
    // So much that no other test of this process can give back as much meanwhile.
    let held = vec![1_u8; 256 << 20];
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        std::hint::black_box(&held);
    }
    let after = used(std::process::id()).unwrap();
    assert_eq!(before.started, after.started);
    assert!(after.cpu >= before.cpu + Duration::from_millis(50), "{before:?} {after:?}");
    assert!(after.resident >= before.resident.plus(Bytes::mib(128)), "{before:?} {after:?}");

    // The crate reads the same fields.
    let stat = Process::myself().unwrap().stat().unwrap();
    let now = used(std::process::id()).unwrap();
    assert!(now.faulted.0 / procfs::page_size() >= stat.majflt, "{now:?} {stat:?}");
    let own = Groups::of(control_group_of(std::process::id()).unwrap());
    let brought = brought_by(&cgroup_processes(&own), &own);
    assert!(brought.value().is_some_and(|brought| brought.resident > Bytes::mib(128)), "{brought:?}");
    drop(held);
}

#[test]
fn what_a_process_pins_is_what_the_kernel_cannot_take_back() {
    let status = "Name:\tllama-server\nGroups:\t0 4 \nVmLck:\t  262144 kB\nVmRSS:\t  900000 kB\n\
                  RssAnon:\t  102400 kB\nRssFile:\t  204800 kB\nRssShmem:\t      2048 kB\nThreads:\t3\n";
    let read = Held {
        anonymous: Bytes::mib(100),
        of_files: Bytes::mib(200),
        shared: Bytes::mib(2),
        locked: Bytes::mib(256),
    };
    assert_eq!(held_by(status), read);
    assert_eq!(held_by("Name:\tkthreadd\nThreads:\t1\n"), Held::default());

    // Processes that share a segment of 2 MiB and lock the same file: what they share is there once.
    let other = Held { anonymous: Bytes::mib(10), ..read };
    assert_eq!(pinned([read, other].into_iter()), Bytes::mib(110 + 2 + 200));
    let partly = Held { locked: Bytes::mib(50), ..read };
    assert_eq!(pinned([partly].into_iter()), Bytes::mib(100 + 2 + 50));

    let pins = |pid: u32| pinned(held(pid).into_iter());
    let me = std::process::id();
    let before = pins(me);
    let own = vec![1_u8; 64 << 20];
    assert!(pins(me) >= before.plus(Bytes::mib(60)), "{before} {}", pins(me));
    drop(own);

    // Of a file that is mapped the kernel takes back what it likes, unless it is locked.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![1_u8; 4 << 20]).unwrap();
    let script = "import mmap,sys,ctypes\n\
                  f=open(sys.argv[1],'r+b'); m=mmap.mmap(f.fileno(),0); sum(m[::4096])\n\
                  print(flush=True); sys.stdin.readline()\n\
                  b=(ctypes.c_char*len(m)).from_buffer(m); c=ctypes.CDLL(None,use_errno=True)\n\
                  print(c.mlock(ctypes.byref(b),ctypes.c_size_t(len(m))),flush=True); sys.stdin.readline()";
    let mut child = Command::new("python3")
        .args(["-c", script, file.path().to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    said.next().unwrap().unwrap();
    let (mapped, of_child) = (held(child.id()).unwrap(), pins(child.id()));
    assert!(mapped.of_files >= Bytes::mib(4) && mapped.locked == Bytes::ZERO, "{mapped:?}");
    assert_eq!(of_child, mapped.anonymous.plus(mapped.shared));
    writeln!(child.stdin.as_mut().unwrap()).unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "0", "it locked them");
    let locked = pins(child.id());
    assert!(locked >= of_child.plus(Bytes::mib(4)), "{of_child} {locked}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(pins(child.id()), Bytes::ZERO, "gone is nothing");
}
