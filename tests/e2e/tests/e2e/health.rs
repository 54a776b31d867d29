//! Models that run and do not serve any more: found by their checks, restarted by berthd itself. And models that are
//! only busy, or slow to load: left alone.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use berth_core::report::{Event, ModelState, Outcome, Problem, What};
use berth_tests::{Berth, declaration};
use nix::sched::{CloneFlags, setns};

/// Two of them share the cards.
const EACH: &str = "7000MiB";
const BY_ITSELF: Duration = Duration::from_secs(40);

/// Checks as often as a test can wait for; 3 s to stop.
const MAIN: &str = "node = \"tower\"\n[deadlines]\nstop = \"3s\"\nrelease = \"12s\"\nstart = \"10s\"\n\
                    [health]\nevery = \"1s\"\nbusy = \"2 min\"\n";

fn model(flags: &str, health: &str) -> String {
    let command = format!("/usr/bin/fakellm --vram-each {EACH} {flags}");
    format!("{}health = {{ {health} }}\n", declaration(&command, 2, EACH))
}

/// Makes a fakellm hang: its health from `USR1` on, its generating from `USR2` on.
fn hang(berth: &Berth, model: &str, signal: &str) {
    let unit = format!("berth-model@{model}.service");
    _ = berth.systemctl(&["kill", "--kill-whom=main", "--signal", signal, &unit]).with_code(0);
}

/// What happened to this model since berthd came up: its states with what was said of them.
fn states_of(berth: &Berth, model: &str) -> Vec<(ModelState, String)> {
    let events = events(berth).into_iter().filter_map(|event| match event.what {
        What::Model { model: of, state, text } if of.as_str() == model => Some((state, text)),
        _ => None,
    });
    events.collect()
}

fn events(berth: &Berth) -> Vec<Event> {
    let output = berth.ctl(&["events", "--json", "-n", "2000"]).with_code(0);
    serde_json::Deserializer::from_str(&output.stdout).into_iter().map(Result::unwrap).collect()
}

/// Every `unhealthy` that people were told of.
fn unhealthy(berth: &Berth) -> Vec<Problem> {
    let began = events(berth).into_iter().filter_map(|event| match event.what {
        What::ProblemBegan { problem } if problem.code == "unhealthy" => Some(problem),
        _ => None,
    });
    began.collect()
}

/// Waits until another run of the model serves.
#[track_caller]
fn restarted(berth: &Berth, model: &str, before: &berth_tests::Run) {
    berth.wait_for(&format!("{model} is restarted"), BY_ITSELF, |berth| {
        (berth.run_of(model) != *before && berth.state_of(model) == ModelState::Serving).then_some(())
    });
    assert!(!berth.ask(model).is_empty());
}

/// A connection to a model's port in the guest, from outside.
fn connect(berth: &Berth, model: &str) -> TcpStream {
    let network = std::fs::File::open(format!("/proc/{}/ns/net", berth.pid1().unwrap())).unwrap();
    let port = berth.port(model).unwrap();
    // The network is a thread's own.
    let connecting = thread::spawn(move || {
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
        TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap()
    });
    connecting.join().unwrap()
}

/// Asks for so many tokens as a stream; its whole text in the end, and how long it took.
fn stream(berth: &Berth, model: &str, tokens: u32) -> JoinHandle<(String, Duration)> {
    let mut stream = connect(berth, model);
    thread::spawn(move || {
        let began = Instant::now();
        let body = format!("{{\"prompt\":\"x\",\"max_tokens\":{tokens},\"stream\":true}}");
        let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length";
        write!(stream, "{head}: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        (text, began.elapsed())
    })
}

/// A model whose health hangs and that ignores SIGTERM, beside one that is healthy and no longer generates: both are
/// found, people are told before and after, and both serve again. What serves well is not touched.
#[test]
fn models_that_hang_are_restarted() {
    let berth = Berth::builder()
        .main(MAIN)
        .model("mute", &model("--ignore-sigterm", "token = \"off\""))
        .model("numb", &model("", "token = \"1s\""))
        .boot();
    berth.switch("mute");
    _ = berth.change(&["start", "numb"]).with_code(0);
    let (mute, numb) = (berth.run_of("mute"), berth.run_of("numb"));

    hang(&berth, "mute", "USR1");
    let warned = berth.wait_for("it is said to be unhealthy", BY_ITSELF, |berth| {
        let status = berth.status();
        let problem = status.problems.into_iter().find(|problem| problem.code == "unhealthy")?;
        let model = status.models.into_iter().find(|model| model.name.as_str() == "mute")?;
        assert_eq!((model.state, model.last_error.as_ref()), (ModelState::Serving, Some(&problem.text)));
        Some(problem)
    });
    assert!(warned.text.starts_with("mute has not answered its health check"), "{warned:?}");
    assert!(warned.text.ends_with("it is restarted"), "{warned:?}");
    assert_eq!(warned.next, "berthctl logs mute");
    restarted(&berth, "mute", &mute);
    let why = "mute failed: it hung: it has not answered its health check 3 times in a row";
    assert!(
        states_of(&berth, "mute").contains(&(ModelState::Stopping, why.to_owned())),
        "{:?}",
        states_of(&berth, "mute")
    );
    // It had 3 s to end, and did not.
    assert!(berth.journal("berth-model@mute.service").contains("ignoring SIGTERM"));
    assert!(berth.journal("berthd.service").contains("killing it"));
    assert_eq!(berth.run_of("numb"), numb, "the other one was touched");

    let mute = berth.run_of("mute");
    hang(&berth, "numb", "USR2");
    restarted(&berth, "numb", &numb);
    let states = states_of(&berth, "numb");
    let told = states.iter().find(|(state, _)| *state == ModelState::Stopping).unwrap();
    let why = "numb failed: it hung: it answered its health check and did not generate (POST /completion was not answered for";
    assert!(told.1.starts_with(why) && told.1.ends_with("3 times in a row"), "{told:?}");
    assert_eq!(berth.run_of("mute"), mute, "the other one was touched");

    berth.wait_for("all is well", BY_ITSELF, |berth| berth.status().problems.is_empty().then_some(()));
    assert_eq!(berth.serving(), ["mute", "numb"]);
    berth.assert_no_failed_allocation();
}

/// A server that answers nothing while it generates is only busy: not restarted, its stream not cut. A client that is
/// connected and waits for nothing keeps an idle model from being asked for a token. And with checks off nothing is
/// asked, whatever hangs.
#[test]
fn models_that_are_busy_are_left_alone() {
    let berth = Berth::builder()
        .main(MAIN)
        .model("busy", &model("--busy --token-delay 500ms", "token = \"1s\", failures = 2"))
        .model("unasked", &model("", "every = \"off\""))
        .boot();
    berth.switch("busy");
    _ = berth.change(&["start", "unasked"]).with_code(0);
    let (busy, unasked) = (berth.run_of("busy"), berth.run_of("unasked"));

    hang(&berth, "unasked", "USR1");
    hang(&berth, "unasked", "USR2");
    // Far longer than two checks and two answers may take together.
    let (text, took) = stream(&berth, "busy", 16).join().unwrap();
    assert!(took >= Duration::from_secs(8), "{took:?}");
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("[DONE]"), "the stream was cut: {text}");
    assert_eq!(text.matches("\"index\":0").count(), 17, "{text}");
    assert_eq!(unhealthy(&berth), [], "busy was taken for ill");

    // Its token would never come, but somebody is there who may be waiting.
    let client = connect(&berth, "busy");
    thread::sleep(Duration::from_secs(2));
    hang(&berth, "busy", "USR2");
    thread::sleep(Duration::from_secs(6));
    assert_eq!((unhealthy(&berth), berth.run_of("busy")), (vec![], busy.clone()));
    drop(client);
    restarted(&berth, "busy", &busy);

    assert_eq!(berth.run_of("unasked"), unasked);
    let asked = unhealthy(&berth);
    assert!(asked.iter().all(|problem| problem.subject == "busy"), "{asked:?}");
    assert_eq!(berth.state_of("unasked"), ModelState::Serving);
    berth.assert_no_failed_allocation();
}

/// A cold load from a slow disk is no hang: its memory on the GPUs is there at once, its deadline passes, and it is
/// waited for as long as it reads. One that holds as much and reads nothing is not.
#[test]
fn a_slow_load_is_waited_for() {
    let deadline = "deadlines = { start = \"4s\" }\n";
    let loads = |flags: &str| model(&format!("--load-time 6s {flags}"), "every = \"off\"") + deadline;
    let berth = Berth::builder()
        .main(MAIN)
        .model("reads", &loads("--load-rss 200MiB"))
        .model("idles", &loads("--load-rss 0MiB"))
        .boot();
    let swap = berth.switch("reads");
    assert_eq!(swap.outcome, Some(Outcome::Done));
    assert!(swap.elapsed_ms > 5000, "it was ready before its deadline: {swap:?}");
    let failed = berth.change(&["start", "idles"]).with_code(4);
    let reason = failed.swap().reason.clone().unwrap();
    assert!(reason.contains("idles did not start: it was not ready after 4."), "{reason}");
    assert_eq!(berth.serving(), ["reads"]);
    berth.assert_no_failed_allocation();
}
