//! The verbs as an operator types them: what each does, what it says and how it exits.

use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::name::ModelName;
use berth_core::report::{Event, ModelState, Outcome, PlanReport, Verdict, What};
use berth_tests::{Berth, fake};
use sandbox::{exit_code, signal};
use serde_json::Value;

/// More than half of a card.
const EACH: &str = "14300MiB";
/// Nothing here takes longer.
const SOON: Duration = Duration::from_secs(20);

/// The end of what was spawned: its exit code, standard output and standard error.
fn end(mut child: Child) -> (i32, String, String) {
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reading = std::thread::spawn(move || stderr.read_to_string(&mut err).map(|_| err));
    stdout.read_to_string(&mut out).unwrap();
    (exit_code(child.wait().unwrap()), out, reading.join().unwrap().unwrap())
}

fn home(berth: &Berth) -> (Vec<String>, Option<String>) {
    let status = berth.status();
    let text = |name: &ModelName| name.as_str().to_owned();
    (status.home.iter().map(text).collect(), status.default.as_ref().map(text))
}

fn used(berth: &Berth) -> Vec<u64> {
    berth.stats().devices.iter().map(|device| device.memory.used).collect()
}

/// `start` adds and never evicts, `stop` frees and what was stopped stays so (S3), `restart` is the same again.
#[test]
fn start_stop_and_restart() {
    let berth = Berth::builder()
        .fake("aeon", "6000MiB", &[])
        .fake("embed", "4000MiB", &[])
        .fake("genesis", EACH, &[])
        .boot();
    let empty = used(&berth);
    _ = berth.ctl(&["start", "aeon"]).with_code(0);
    let aeon = berth.run_of("aeon");
    let started = berth.change(&["start", "embed"]).with_code(0);
    assert_eq!(started.swap().stops, []);
    assert_eq!(berth.serving(), ["aeon", "embed"]);
    assert!(!berth.ask("aeon").is_empty() && !berth.ask("embed").is_empty());
    assert_eq!(home(&berth), (vec!["aeon".into(), "embed".into()], Some("aeon".into())));
    assert_eq!(berth.run_of("aeon"), aeon);

    // What does not fit beside them is refused, with what is short where, who holds it and what would do it.
    let embed = berth.run_of("embed");
    let refused = berth.ctl(&["start", "genesis"]).with_code(3);
    assert!(refused.stderr.contains("berthctl switch genesis"), "{refused}");
    let refused = berth.change(&["start", "genesis"]).with_code(3);
    let problem = &refused.last["problem"];
    assert_eq!(problem["code"], "does_not_fit", "{problem:#}");
    let title = problem["title"].as_str().unwrap();
    assert!(title.contains("short on GPU 0") && title.contains("short on GPU 1"), "{title}");
    assert!(title.contains("aeon 5.9 GiB") && title.contains("embed 3.9 GiB"), "{title}");
    assert_eq!(problem["hints"][0], "berthctl switch genesis");
    assert_eq!((berth.run_of("aeon"), berth.run_of("embed")), (aeon.clone(), embed.clone()));

    // One is stopped; the other does not notice. Stopped again there is nothing to do.
    _ = berth.ctl(&["stop", "embed"]).with_code(0);
    assert!(berth.try_ask("embed", "x").is_err());
    assert_eq!(berth.state_of("embed"), ModelState::Off);
    let again = berth.ctl(&["stop", "embed"]).with_code(0);
    assert!(again.stdout.contains("embed is off already"), "{again}");
    assert_eq!(berth.run_of("aeon"), aeon);

    // A restart is another run of the same, and changes nothing of what is desired.
    let before = home(&berth);
    let restarted = berth.change(&["restart", "aeon"]).with_code(0);
    let (stops, starts) = (&restarted.swap().stops, &restarted.swap().starts);
    assert_eq!((stops.len(), starts.len()), (1, 1), "{restarted:?}");
    assert_ne!(berth.run_of("aeon"), aeon);
    assert!(!berth.ask("aeon").is_empty());
    assert_eq!(home(&berth), before);

    // All of it goes, and its memory is back when that is said; a berthd that is started anew leaves it so.
    _ = berth.ctl(&["start", "embed"]).with_code(0);
    let stopped = berth.change(&["stop", "--all"]).with_code(0);
    assert_eq!(used(&berth), empty);
    assert_eq!((stopped.swap().serving.len(), stopped.swap().stops.len()), (0, 2), "{stopped:?}");
    assert_eq!(home(&berth), (vec![], None));
    let again = berth.ctl(&["stop", "--all"]).with_code(0);
    assert!(again.stdout.contains("Nothing runs"), "{again}");
    berth.restart_berthd();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(berth.serving(), [""; 0]);
    assert_eq!((berth.run_of("aeon").main_pid, berth.run_of("embed").main_pid), (0, 0));
    assert_eq!(berth.stats().failed, 0);
}

/// `switch` by name, by alias and by `default`; to what serves already; `back`, twice; `plan`, which touches
/// nothing.
#[test]
fn switch_back_and_plan() {
    let aliased = fake(2, EACH, &[]) + "aliases = [\"production\"]\n";
    let berth = Berth::builder().fake("aeon", EACH, &[]).model("genesis", &aliased).boot();
    for verb in [&["back"][..], &["switch", "default"], &["restart", "default"]] {
        let nothing = berth.change(verb).with_code(3);
        assert!(!nothing.last["problem"]["title"].as_str().unwrap().is_empty(), "{:#}", nothing.last);
    }
    berth.switch("aeon");
    let aeon = berth.run_of("aeon");
    for model in ["aeon", "default"] {
        let nothing = berth.ctl(&["switch", model]).with_code(0);
        assert!(nothing.stdout.contains("aeon serves as `default` already"), "{nothing}");
        let nothing = berth.change(&["switch", model]).with_code(0);
        assert!(nothing.swap.is_none() && nothing.last["accepted"]["swap"].is_null(), "{:#}", nothing.last);
    }
    assert_eq!(berth.run_of("aeon"), aeon);

    // A plan says before and after for each GPU, and the one thing to type; nothing happens.
    let (number, releases) = (berth.status().last_swap.unwrap().id, berth.stats().releases.len());
    let text = berth.ctl(&["plan", "switch", "production"]).with_code(0).stdout;
    for part in ["aeon -> genesis", "now", "then", "GPU 0", "GPU 1", "aeon 14.0", "genesis 14.0"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    assert!(text.contains("Nothing was touched") && text.contains("berthctl switch"), "{text}");
    let plan: PlanReport = serde_json::from_value(berth.ctl_json(&["plan", "switch", "production"])).unwrap();
    assert_eq!(plan.verdict, Verdict::Go);
    let held = |list: &[(ModelName, Bytes)]| list[0].0.as_str().to_owned();
    let changes: Vec<_> = plan.gpus.iter().map(|gpu| (held(&gpu.before), held(&gpu.after))).collect();
    assert_eq!(changes, vec![("aeon".to_owned(), "genesis".to_owned()); 2]);
    for verb in [&["plan", "stop", "--all"][..], &["plan", "restart", "aeon"]] {
        _ = berth.ctl(verb).with_code(0);
    }
    _ = berth.ctl(&["plan", "switch", "nobody"]).with_code(3);
    _ = berth.ctl(&["plan", "back"]).with_code(3);
    let status = berth.status();
    assert_eq!((status.last_swap.unwrap().id, status.swap), (number, None));
    assert_eq!((berth.run_of("aeon"), berth.stats().releases.len()), (aeon, releases));

    let swap = berth.switch("production");
    assert_eq!(swap.undo.as_deref(), Some("berthctl back"));
    assert_eq!(home(&berth), (vec!["genesis".into()], Some("genesis".into())));
    for expected in ["aeon", "genesis"] {
        let swap = berth.change(&["back"]).with_code(0).swap().clone();
        assert_eq!(swap.outcome, Some(Outcome::Done));
        assert_eq!(berth.serving(), [expected]);
        assert_eq!(home(&berth).1.as_deref(), Some(expected));
        assert!(!berth.ask(expected).is_empty());
    }
    assert_eq!(berth.stats().failed, 0);
}

/// One swap at a time: a second is refused and names the first. Who watches may leave, by Ctrl-C, `--timeout` or
/// `--no-wait`; the switch goes on (S12).
#[test]
fn watching_and_leaving() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    berth.gpu(&["linger", "1500ms"]);
    let under_way = |berth: &Berth| {
        berth.wait_for("the swap begins", SOON, |berth| berth.status().swap.map(|_| ()));
    };
    let ended = |berth: &Berth, serves: &str| {
        berth.wait_serving(serves, SOON);
        let last = berth.wait_for("the swap ends", SOON, |berth| {
            let status = berth.status();
            status.swap.is_none().then_some(status.last_swap.unwrap())
        });
        assert_eq!(last.outcome, Some(Outcome::Done), "{last:?}");
        assert!(!berth.ask(serves).is_empty());
    };

    let first = berth.ctl_spawn(None, &["switch", "genesis"]);
    under_way(&berth);
    let second = berth.ctl_as("frank", &["switch", "aeon"]).with_code(3);
    assert!(second.stderr.contains("genesis") && second.stderr.contains("root"), "{second}");
    let second = berth.change(&["stop", "--all"]).with_code(3);
    assert_eq!(second.last["problem"]["code"], "busy", "{:#}", second.last);
    signal(&first, nix::sys::signal::Signal::SIGINT).unwrap();
    let (code, stdout, stderr) = end(first);
    assert_eq!(code, 130, "{stdout}{stderr}");
    assert!(stderr.contains("aeon -> genesis") && stderr.contains("goes on"), "{stdout}{stderr}");
    assert!(stderr.contains("berthctl status --watch"), "{stdout}{stderr}");
    assert!(berth.status().swap.is_some(), "the switch ended before Ctrl-C was tried");
    ended(&berth, "genesis");

    let late = berth.ctl(&["switch", "aeon", "--timeout", "300ms"]).with_code(7);
    assert!(late.stderr.contains("goes on"), "{late}");
    assert!(berth.status().swap.is_some(), "the switch ended before its time was up");
    ended(&berth, "aeon");

    let at_once = berth.change(&["switch", "genesis", "--no-wait"]).with_code(0);
    assert_eq!(at_once.last["schema"], 1, "{:#}", at_once.last);
    let id = at_once.last["accepted"]["swap"].as_u64().unwrap();
    assert_eq!(berth.status().swap.map(|swap| swap.id), Some(id));
    ended(&berth, "genesis");
    assert_eq!(berth.stats().failed, 0);
}

/// `cancel` gives up a switch whose memory is still held, and what served serves again once that is proved free. The one
/// who watches is told, a stop that began goes on, and there is nothing to cancel afterwards.
#[test]
fn a_change_is_cancelled() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let run = berth.run_of("aeon");
    berth.gpu(&["linger", "1500ms"]);
    let nothing = berth.change(&["cancel"]).with_code(3);
    assert_eq!(nothing.last["problem"]["code"], "no_swap", "{:#}", nothing.last);

    let watching = berth.ctl_spawn(None, &["switch", "genesis"]);
    let id = berth.wait_for("aeon is gone", SOON, |berth| {
        (berth.run_of("aeon").main_pid == 0).then(|| berth.status().swap.map(|swap| swap.id))?
    });
    let other = berth.ctl(&["cancel", &(id + 1).to_string()]).with_code(3);
    assert!(other.stderr.contains(&format!("swap {} is not known", id + 1)), "{other}");
    let cancelled = berth.change(&["cancel", &id.to_string()]).with_code(0);
    let swap = cancelled.swap();
    assert_eq!((swap.outcome, swap.cancelled), (Some(Outcome::Restored), true), "{swap:?}");
    assert_eq!(
        (swap.reason.as_deref(), &cancelled.last["exit"]),
        (Some("root cancelled it"), &Value::from(0))
    );
    let (code, stdout, stderr) = end(watching);
    assert_eq!(code, 4, "{stdout}{stderr}");
    assert!(stdout.contains("CANCELLED: root cancelled it"), "{stdout}{stderr}");
    assert!(stdout.contains("aeon serves again"), "{stdout}{stderr}");
    assert!(!berth.ask("aeon").is_empty());
    assert_eq!((home(&berth).1.as_deref(), berth.state_of("genesis")), (Some("aeon"), ModelState::Off));
    assert_ne!(berth.run_of("aeon"), run, "it was stopped before, and is started again");

    let stopping = berth.ctl_spawn(None, &["stop", "aeon"]);
    berth.wait_for("aeon is gone", SOON, |berth| (berth.run_of("aeon").main_pid == 0).then_some(()));
    let late = berth.change(&["cancel"]).with_code(3);
    assert_eq!(late.last["problem"]["code"], "stop_begun", "{:#}", late.last);
    assert_eq!(end(stopping).0, 0);
    assert_eq!((berth.serving(), berth.stats().failed), (vec![], 0));
}

/// `--json` everywhere carries schema 1; `logs` shows what a server said, `events -f` a switch as it goes; and
/// what is declared arrives in the process: environment, flags, a flag that holds JSON (S15).
#[test]
fn json_logs_events_and_what_a_server_is_given() {
    let speculative = r#"{"method":"mtp","num_speculative_tokens":3}"#;
    let genesis = format!(
        "program = \"/usr/bin/fakellm\"\nbackend = \"llama.cpp\"\ncwd = \"/usr\"\n\
         args = [\"--vram-each\", \"{EACH}\", \"--ctx\", \"32768\", \"--print\", '{speculative}']\n\
         env = {{ VLLM_MARLIN_USE_ATOMIC_ADD = \"1\", A_PATH = \"/a b/c\" }}\n\
         memory = {{ gpu = [\"14300 MiB\", \"14300 MiB\"] }}\n"
    );
    let berth =
        Berth::builder().fake("aeon", EACH, &["--print", "'aeon says so'"]).model("genesis", &genesis).boot();
    berth.switch("aeon");

    let mut events = berth.ctl_spawn(None, &["events", "-f", "-n", "0", "--json"]);
    let stdout = BufReader::new(events.stdout.take().unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    std::thread::sleep(Duration::from_millis(300));
    let change = berth.change(&["switch", "genesis"]).with_code(0);
    assert_eq!((&change.last["schema"], &change.last["exit"]), (&Value::from(1), &Value::from(0)));
    let mut seen: Vec<Event> = Vec::new();
    while !matches!(seen.last(), Some(Event { what: What::SwapEnded { .. }, .. })) {
        let line = told.recv_timeout(SOON).unwrap_or_else(|_| panic!("no end after {seen:#?}"));
        seen.push(serde_json::from_str(&line).unwrap());
    }
    assert!(seen.iter().all(|event| event.schema == 1) && change.events.iter().all(|e| e.schema == 1));
    assert!(matches!(seen[0].what, What::SwapBegan { .. }), "{seen:#?}");
    assert!(change.events.iter().all(|event| seen.contains(event)), "{seen:#?}");
    signal(&events, nix::sys::signal::Signal::SIGINT).unwrap();
    events.wait().unwrap();

    for verb in [&["status"][..], &[], &["plan", "switch", "aeon"], &["plan", "start", "aeon"], &["check"]] {
        let document = berth.ctl_json(verb);
        assert_eq!(document["schema"], 1, "{verb:?}: {document:#}");
    }
    let kept = berth.ctl(&["events", "--json", "-n", "100"]).with_code(0).stdout;
    let kept: Vec<Event> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(seen.iter().all(|event| kept.contains(event)), "{kept:#?}");

    // Also of a server that is gone.
    let log = berth.ctl(&["logs", "aeon"]).with_code(0).stdout;
    assert!(log.contains("aeon says so"), "{log}");
    let log = berth.ctl(&["logs", "genesis", "--json"]).with_code(0).stdout;
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["schema"] == 1) && !lines.is_empty(), "{log}");
    assert!(lines.iter().any(|line| line["text"] == speculative), "{log}");
    let last = berth.ctl(&["logs", "genesis", "--json", "-n", "1"]).with_code(0).stdout;
    assert_eq!(last.lines().collect::<Vec<_>>(), log.lines().rev().take(1).collect::<Vec<_>>());
    let unknown = berth.ctl(&["logs", "genesys"]).with_code(3);
    assert!(unknown.stderr.contains("genesis"), "{unknown}");

    let pid = berth.run_of("genesis").main_pid;
    let file = |name: &str| berth.run(None, &["cat", &format!("/proc/{pid}/{name}")]).with_code(0).stdout;
    let environment = file("environ");
    let variables: Vec<&str> = environment.split('\0').collect();
    for variable in ["VLLM_MARLIN_USE_ATOMIC_ADD=1", "A_PATH=/a b/c"] {
        assert!(variables.contains(&variable), "{variables:?}");
    }
    assert!(!variables.iter().any(|variable| variable.starts_with("NOTIFY_SOCKET=")), "{variables:?}");
    let line = file("cmdline");
    let words: Vec<&str> = line.split('\0').collect();
    assert_eq!(words[0], "/usr/bin/fakellm");
    for pair in [["--ctx", "32768"], ["--print", speculative], ["--vram-each", EACH]] {
        assert!(words.windows(2).any(|words| words == pair), "{words:?}");
    }
    let cwd = berth.run(None, &["readlink", &format!("/proc/{pid}/cwd")]).with_code(0).stdout;
    assert_eq!(cwd.trim(), "/usr");
}
