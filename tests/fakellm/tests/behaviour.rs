//! Every behaviour that other tests rely on, with the real program and, for memory, a real gpusim server.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use gpusim::units::MIB;
use gpusim::{Client, server};

const FAKELLM: &str = env!("CARGO_BIN_EXE_fakellm");
const PATIENCE: Duration = Duration::from_secs(10);

/// Two cards of 1,000 MiB, served by a thread of this process.
fn cards() -> (tempfile::TempDir, Client) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let options =
        server::Options { cards: vec![1000 * MIB; 2], socket: socket.clone(), ..server::Options::default() };
    std::thread::spawn(|| server::serve(options, || ()).unwrap());
    let client = Client::connect_to(&socket, PATIENCE).unwrap().limit(PATIENCE).unwrap();
    (folder, client)
}

fn command(line: &str, folder: Option<&tempfile::TempDir>) -> Command {
    let mut command = Command::new(FAKELLM);
    command.args(line.split_whitespace()).env_remove("CUDA_VISIBLE_DEVICES").env_remove("FAKELLM_FLAGS");
    let socket = folder.map_or("/nowhere".into(), |folder| folder.path().join("sock"));
    command.env("GPUSIM_SOCKET", socket);
    command
}

/// A server on a port of its own; killed at the end.
struct Fake {
    child: Child,
    port: u16,
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Fake {
    fn start(flags: &str) -> Self {
        Fake::start_on(flags, None)
    }

    fn start_on(flags: &str, folder: Option<&tempfile::TempDir>) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let line = format!("--port {port} --model-name genesis {flags}");
        let child = command(&line, folder).stderr(Stdio::null()).spawn().unwrap();
        Fake { child, port }
    }

    /// Asks once; `None` if nobody listens or nothing comes within `limit`.
    fn ask(&self, method: &str, path: &str, body: &str, limit: Duration) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(limit)).unwrap();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}");
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        self.ask("GET", path, "", PATIENCE)
    }

    fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.ask("POST", path, body, PATIENCE).unwrap()
    }

    /// Waits for /health to answer with this status; returns the body.
    fn health(&self, status: u16) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.get("/health") {
                Some((found, body)) if found == status => return body,
                other => assert!(Instant::now() < deadline, "{other:?}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn terminate(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

fn output(flags: &str, folder: Option<&tempfile::TempDir>) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command(&format!("--port 0 {flags}"), folder).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn it_loads_answers_and_ends() {
    let mut fake = Fake::start("--load-time 200ms");
    assert!(fake.health(503).contains(r#""message":"Loading model""#));
    assert_eq!(fake.post("/v1/completions", "{}").0, 503);
    assert!(fake.health(200).contains("ok"));
    assert!(fake.get("/v1/models").unwrap().1.contains(r#""id":"genesis""#));
    assert_eq!(fake.get("/props").unwrap().0, 200);
    let (status, body) =
        fake.post("/v1/chat/completions", r#"{"messages":[{"content":"one two"}],"max_tokens":3}"#);
    assert_eq!(status, 200);
    for part in ["\"content\":\"genesis 1 2\"", "\"completion_tokens\":3", "\"prompt_tokens\":2"] {
        assert!(body.contains(part), "{body}");
    }
    assert!(
        fake.post("/v1/completions", r#"{"prompt":"x","max_tokens":1}"#).1.contains(r#""text":"genesis""#)
    );
    assert!(fake.post("/completion", r#"{"prompt":"x","n_predict":1}"#).1.contains(r#""content":"genesis""#));
    assert_eq!(fake.post("/completion", "{").0, 400);
    fake.terminate();
    assert_eq!(fake.child.wait().unwrap().code(), Some(0));
}

#[test]
fn it_streams_with_delays() {
    let fake = Fake::start("--token-delay 30ms");
    fake.health(200);
    let began = Instant::now();
    let request = r#"{"messages":[],"max_tokens":4,"stream":true,"stream_options":{"include_usage":true}}"#;
    let (_, body) = fake.post("/v1/chat/completions", request);
    assert!(began.elapsed() >= Duration::from_millis(120));
    assert_eq!(body.matches("chat.completion.chunk").count(), 6, "{body}");
    assert!(
        body.contains("genesis") && body.contains("\"completion_tokens\":4") && body.contains("data: [DONE]")
    );
}

#[test]
fn vllm_listens_only_when_loaded() {
    let fake = Fake::start("--style vllm --load-time 200ms");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(fake.get("/health"), None);
    assert_eq!(fake.health(200), "");
    assert_eq!(fake.get("/props").unwrap().0, 404);
}

#[test]
fn ill_health_of_all_kinds() {
    let limit = Duration::from_millis(100);
    let fake = Fake::start("--never-ready");
    fake.health(503);
    let dead = Fake::start("--no-generate");
    dead.health(200);
    assert_eq!(dead.ask("POST", "/v1/completions", "{}", limit), None);
    let broken = Fake::start("--generate-error");
    broken.health(200);
    assert_eq!(broken.post("/v1/completions", "{}").0, 500);
    let mute = Fake::start("--hang-health");
    while !matches!(mute.get("/v1/models"), Some((200, _))) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(mute.ask("GET", "/health", "", limit), None);
    assert_eq!(fake.get("/health").unwrap().0, 503);
}

#[test]
fn ill_health_that_comes_later() {
    use nix::sys::signal::Signal::{SIGUSR1, SIGUSR2};
    let limit = Duration::from_millis(100);
    let fake = Fake::start("");
    fake.health(200);
    assert_eq!(fake.post("/v1/completions", "{}").0, 200);
    let until_silent = |method, path, body| {
        let deadline = Instant::now() + PATIENCE;
        while fake.ask(method, path, body, limit).is_some() {
            assert!(Instant::now() < deadline, "{path} goes on");
        }
    };
    fake.signal(SIGUSR2);
    until_silent("POST", "/v1/completions", "{}");
    assert_eq!(fake.get("/health").unwrap().0, 200);
    fake.signal(SIGUSR1);
    until_silent("GET", "/health", "");
    assert_eq!(fake.get("/v1/models").unwrap().0, 200);
}

#[test]
fn one_that_is_busy_answers_nothing_else() {
    let fake = Fake::start("--busy --token-delay 100ms");
    fake.health(200);
    std::thread::scope(|scope| {
        let request = r#"{"prompt":"x","max_tokens":8,"stream":true}"#;
        let answer = scope.spawn(|| fake.post("/v1/completions", request).1);
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(fake.ask("GET", "/health", "", Duration::from_millis(100)), None);
        assert!(answer.join().unwrap().contains("[DONE]"));
    });
    fake.health(200);
}

#[test]
fn memory_of_the_host_fills_while_it_loads() {
    let fake = Fake::start("--load-rss 64MiB --load-time 1s");
    let resident = || {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", fake.child.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    fake.health(503);
    let early = resident();
    fake.health(200);
    assert!(resident() >= early + 32 * MIB, "{early} {}", resident());
}

#[test]
fn untimely_ends() {
    let (code, text) = output("--exit-at-once 7 --print unknown-model-architecture", None);
    assert_eq!((code, text.as_str()), (Some(7), "unknown-model-architecture\n"));
    assert_eq!(output("--exit-at-once", None).0, Some(1));
    let (code, text) = output("--oom-after 10ms --never-ready --bind-late", None);
    assert!(code == Some(1) && text.contains("cudaMalloc failed: out of memory"), "{text}");
    assert_eq!(output("--die-after 10ms --never-ready --bind-late", None).0, Some(1));
    assert_eq!(output("--die-after 10ms --die-signal 9 --never-ready --bind-late", None).0, None);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (code, text) = output(&format!("--port {port}"), None);
    assert!(code == Some(1) && text.contains("couldn't bind HTTP server socket"), "{text}");
    assert!(output(&format!("--port {port} --style vllm"), None).1.contains("Address already in use"));
    assert_eq!(output("--vram 0=1MiB --bind-late", None).0, Some(1));
}

#[test]
fn sigterm_is_ignored_or_answered_slowly() {
    let mut deaf = Fake::start("--ignore-sigterm");
    let mut slow = Fake::start("--slow-stop 300ms");
    deaf.health(200);
    slow.health(200);
    let mut loading = Fake::start("--load-time 60s");
    loading.health(503);
    loading.terminate();
    let began = Instant::now();
    assert_eq!(loading.child.wait().unwrap().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5));
    deaf.terminate();
    slow.terminate();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(slow.child.try_wait().unwrap(), None);
    assert_eq!(slow.child.wait().unwrap().code(), Some(0));
    assert_eq!(deaf.child.try_wait().unwrap(), None);
    deaf.health(200);
}

#[test]
fn memory_is_held_grows_and_runs_out() {
    let (folder, mut client) = cards();
    let fake =
        Fake::start_on("--vram 0=500MiB --grow 1=100MiB --after-tokens 3 --load-time 50ms", Some(&folder));
    fake.health(200);
    let mut used = |device| client.memory(device).unwrap().used / MIB;
    assert_eq!((used(0), used(1)), (500, 0));
    fake.post("/completion", r#"{"prompt":"one two"}"#);
    assert_eq!(used(1), 0);
    fake.post("/completion", r#"{"prompt":"one two three"}"#);
    fake.post("/completion", r#"{"prompt":"one two three"}"#);
    assert_eq!(used(1), 100);

    let (code, text) = output("--vram-each 600MiB", Some(&folder));
    assert!(
        code == Some(1) && text.contains("allocating 600.00 MiB on device 0: cudaMalloc failed"),
        "{text}"
    );
    let (code, text) = output("--style vllm --vram 0=600MiB", Some(&folder));
    assert!(code == Some(1) && text.contains("CUDA out of memory. Tried to allocate 0.59 GiB"), "{text}");
    let (code, text) = output("--style vllm --gpu-memory-utilization 0.7", Some(&folder));
    let words = "on startup is less than desired GPU memory utilization (0.7, 0.68 GiB)";
    assert!(code == Some(1) && text.contains(words), "{text}");
    assert_eq!(client.stats().unwrap().failed, 2);
}

#[test]
fn workers_outlive_their_parent() {
    let (folder, mut client) = cards();
    // A folder stands for the cgroup: what is written there shows who would have moved.
    let cgroup = folder.path().join("cgroup");
    let flags = "--fork-child --escape-child --child-vram 0=200MiB --vram 1=100MiB --escape-to";
    let mut fake = Fake::start_on(&format!("{flags} {}", cgroup.display()), Some(&folder));
    fake.health(200);
    assert_eq!(client.memory(0).unwrap().used, 400 * MIB);
    fake.terminate();
    assert_eq!(fake.child.wait().unwrap().code(), Some(0));
    let held = client.stats().unwrap().devices[0].held.clone();
    assert_eq!(
        held.iter().map(|h| (h.comm.as_str(), h.bytes / MIB)).collect::<Vec<_>>(),
        [("fakellm-worker", 200); 2]
    );
    let parent_of = |pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse::<u32>().unwrap()
    };
    let moved: u32 = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap().parse().unwrap();
    assert_eq!(held.iter().filter(|worker| worker.pid == moved).count(), 1);
    for worker in held {
        assert_ne!(parent_of(worker.pid), fake.child.id());
        let pid = nix::unistd::Pid::from_raw(i32::try_from(worker.pid).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while client.memory(0).unwrap().used > 0 {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn a_child_can_do_the_serving() {
    let (folder, mut client) = cards();
    let mut fake = Fake::start_on("--serve-from-child --vram 0=200MiB", Some(&folder));
    fake.health(200);
    let held = client.stats().unwrap().devices[0].held.clone();
    assert_ne!(held[0].pid, fake.child.id());
    fake.terminate();
    assert_eq!(fake.child.wait().unwrap().code(), Some(0));
    assert_eq!(client.memory(0).unwrap().used, 0);
}

#[test]
fn more_flags_come_by_the_environment() {
    let output = command("-ngl 99", None).env("FAKELLM_FLAGS", "--exit-at-once 9").output().unwrap();
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "fakellm: passing over -ngl 99\n");
}

#[test]
fn a_child_listens_later_and_ends_with_its_parent() {
    let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
    let fake = Fake::start(&format!("--child-listens [::]:{port} --child-listens-after 300ms"));
    let connects = |address: &str| TcpStream::connect((address, port)).is_ok();
    let until = |what: &str, is: &dyn Fn() -> bool| {
        let end = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    assert!(!connects("::1"), "it waits");
    until("it listens", &|| connects("::1"));
    assert!(!connects("127.0.0.1"), "IPv6 alone");
    drop(fake);
    until("it ends", &|| !connects("::1"));
}
