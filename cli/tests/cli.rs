//! The real program against a socket that plays recorded answers: exit codes, text, JSON, signals.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use berth_core::proxy::KeyHash;
use berth_core::report::{
    Accepted, ApiProblem, LogLine, PlanReport, Refusal, Repaired, Request, Status, StepReport, StepState,
    SwapSummary, Verb, Verdict, What,
};
use common::examples::{NOW, degraded, name, restored, switched, tower, under_way};
use common::{Berthd, Ran, Say, Script, berthctl, events, folder, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn plan(verdict: Verdict) -> PlanReport {
    PlanReport {
        schema: 1,
        request: Request { verb: Verb::Switch, model: Some("genesis".into()), set: BTreeMap::new() },
        verdict,
        stops: vec![name("aeon")],
        starts: vec![name("genesis")],
        gpus: Vec::new(),
        tried: Vec::new(),
        steps: Vec::new(),
    }
}

fn refusal() -> PlanReport {
    plan(Verdict::Refused(Refusal {
        code: "does_not_fit".into(),
        text: "1.2 GiB short on GPU 1. aeon keeps serving.".into(),
        hints: vec!["berthctl plan switch supergemma".into()],
    }))
}

fn problem(status: u16, code: &str) -> ApiProblem {
    ApiProblem {
        status,
        code: code.into(),
        title: format!("{code} it is."),
        hints: vec!["this".into()],
        plan: None,
    }
}

fn accepting() -> Script {
    let accepted = Accepted { schema: 1, swap: Some(12), after: 100, plan: plan(Verdict::Go) };
    Script::default().answer("POST /api/v1/swaps", 202, accepted)
}

/// The events of a swap from its begin to its end.
fn story(swap: &SwapSummary) -> Vec<What> {
    let began = SwapSummary { steps: Vec::new(), outcome: None, ..swap.clone() };
    let step = |step: &StepReport| What::SwapStep { swap: swap.id, step: step.clone() };
    let mut whats = vec![What::SwapBegan { swap: began }];
    whats.extend(swap.steps.iter().map(step));
    whats.push(What::SwapEnded { swap: swap.clone() });
    whats
}

/// Runs a switch that goes as told.
fn switch(swap: &SwapSummary, more: &[&str]) -> Ran {
    let folder = folder();
    let berthd = Berthd::start(&folder.path().join("s"), accepting().stream(events(story(swap))));
    let ran = run(&berthd.socket, &[&["switch", "genesis"], more].concat());
    let asked = r#"POST /api/v1/swaps {"verb":"switch","model":"genesis"}"#;
    assert_eq!(berthd.requests(), [asked, "GET /api/v1/events?after=100&swap=12"]);
    ran
}

/// A swap that has begun and goes on.
fn going_on() -> Vec<Say> {
    let mut says = events(story(&under_way()));
    says.pop();
    says.push(Say::Silence);
    says
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
}

/// Starts it, interrupts it after so many lines, and gives all that it said.
fn interrupted_after(lines: usize, socket: &Path, args: &[&str]) -> Ran {
    let mut child = berthctl(socket, args).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut seen = String::new();
    for _ in 0..lines {
        stdout.read_line(&mut seen).unwrap();
    }
    interrupt(&child);
    stdout.read_to_string(&mut seen).unwrap();
    Ran { stdout: seen, ..child.wait_with_output().unwrap().into() }
}

#[test]
fn a_switch_that_is_done_exits_0_and_says_what_it_cost() {
    let ran = switch(&switched(), &[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(ran.stdout);
}

#[test]
fn failures_exit_4_and_5() {
    let ran = switch(&restored(), &[]);
    assert_eq!(ran.code, Some(4));
    assert!(ran.stdout.contains("genesis serves again."), "{}", ran.stdout);
    let ran = switch(&degraded(), &[]);
    assert_eq!(ran.code, Some(5));
    assert!(ran.stdout.contains("berthd goes on trying"), "{}", ran.stdout);
}

#[test]
fn followed_json_is_an_event_a_line_and_then_how_it_ended() {
    for (swap, exit, outcome) in
        [(switched(), 0, "done"), (restored(), 4, "restored"), (degraded(), 5, "degraded")]
    {
        let ran = switch(&swap, &["--json"]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(exit), ""));
        let documents = ran.documents();
        assert_eq!(documents.len(), swap.steps.len() + 3);
        assert_eq!(documents[0]["event"], "swap_began");
        assert_eq!(documents[1]["event"], "swap_step");
        let last = documents.last().unwrap();
        assert_eq!((&last["exit"], &last["swap"]["outcome"]), (&exit.into(), &outcome.into()));
    }
}

#[test]
fn a_refusal_exits_3_and_says_why() {
    let folder = folder();
    let refused = ApiProblem { plan: Some(refusal()), ..problem(409, "does_not_fit") };
    let berthd =
        Berthd::start(&folder.path().join("s"), Script::default().answer("POST /api/v1/swaps", 409, refused));
    let ran = run(&berthd.socket, &["switch", "genesis"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""));
    assert!(ran.told().starts_with("REFUSED: 1.2 GiB short on GPU 1."), "{}", ran.stderr);
    assert!(ran.told().contains("Try: berthctl plan switch supergemma"), "{}", ran.stderr);

    let ran = run(&berthd.socket, &["switch", "genesis", "--json"]);
    let documents = ran.documents();
    assert_eq!((ran.code, documents.len()), (Some(3), 1));
    assert_eq!(documents[0]["exit"], 3);
    assert_eq!(documents[0]["problem"]["code"], "does_not_fit");
    assert_eq!(documents[0]["problem"]["plan"]["verdict"]["verdict"], "refused");
}

#[test]
fn answers_that_are_no_have_the_exit_code_of_their_kind() {
    for (status, exit) in [(400, 2), (403, 3), (404, 3), (409, 3), (500, 6), (503, 6)] {
        let folder = folder();
        let script = Script::default().answer("POST /api/v1/swaps", status, problem(status, "so"));
        let berthd = Berthd::start(&folder.path().join("s"), script);
        let ran = run(&berthd.socket, &["stop", "--all"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(exit), ""), "{status}");
        assert!(ran.told().contains("so it is. Try: this"), "{}", ran.stderr);
        assert_eq!(berthd.requests(), [r#"POST /api/v1/swaps {"verb":"stop_all","model":null}"#]);
    }
}

#[test]
fn an_answer_that_is_none_of_berthds_is_said_to_be_so() {
    let folder = folder();
    let berthd =
        Berthd::start(&folder.path().join("s"), Script::default().answer("GET /api/v1/status", 200, "hello"));
    let ran = run(&berthd.socket, &["back"]);
    assert_eq!(ran.code, Some(6));
    assert!(ran.told().contains("with status 503 Service Unavailable and no reason"), "{}", ran.stderr);
    let ran = run(&berthd.socket, &["status", "--json"]);
    assert_eq!(ran.code, Some(6));
    let text = ran.documents()[0]["problems"][0]["text"].to_string();
    assert!(text.contains("is it another version?"), "{text}");
}

#[test]
fn nothing_to_do_and_no_wait_exit_0_at_once() {
    let folder = folder();
    let nothing = Accepted {
        schema: 1,
        swap: None,
        after: 7,
        plan: plan(Verdict::Nothing { text: "genesis serves as `default` already.".into() }),
    };
    let berthd =
        Berthd::start(&folder.path().join("a"), Script::default().answer("POST /api/v1/swaps", 202, nothing));
    let ran = run(&berthd.socket, &["switch", "genesis"]);
    assert_eq!(ran.code, Some(0));
    assert_eq!(ran.stdout, "Nothing to do: genesis serves as `default` already.\n");

    let berthd = Berthd::start(&folder.path().join("b"), accepting());
    let ran = run(&berthd.socket, &["switch", "genesis", "--no-wait"]);
    assert_eq!(ran.code, Some(0));
    assert_eq!(ran.stdout, "Accepted: aeon -> genesis (number 12). Follow: berthctl status --watch\n");
    let ran = run(&berthd.socket, &["switch", "genesis", "--no-wait", "--json"]);
    assert_eq!(ran.documents()[0]["accepted"]["swap"], 12);
    assert_eq!(berthd.requests().len(), 2, "it must not follow");
}

#[test]
fn on_a_terminal_the_step_under_way_is_drawn_until_it_ends() {
    let folder = folder();
    let mut whats = story(&switched());
    let began = StepReport { state: StepState::Began, elapsed_ms: 0, ..switched().steps[4].clone() };
    whats.insert(5, What::SwapStep { swap: 12, step: began });
    let mut says = events(whats);
    says.insert(6, Say::Pause(Duration::from_millis(500)));
    let script = accepting().answer("GET /api/v1/swaps/12", 200, under_way()).stream(says);
    let berthd = Berthd::start(&folder.path().join("s"), script);
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = berthctl(&berthd.socket, &["switch", "genesis"]);
    let mut child = command.stdout(terminal.slave).env("TERM", "xterm").spawn().unwrap();
    // The command keeps the terminal open here, too: without it the end is seen.
    drop(command);
    let mut drawn = Vec::new();
    // A terminal whose other side is gone ends with an error.
    _ = std::fs::File::from(terminal.master).read_to_end(&mut drawn);
    let drawn = String::from_utf8(drawn).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{drawn}");
    for part in
        ["\x1b[33m⠹\x1b[0m releasing ", "of about 2.5 s", "\x1b[1A\r\x1b[J", "\x1b[1maeon -> genesis\x1b[0m"]
    {
        assert!(drawn.contains(part), "{part:?}: {drawn:?}");
    }
    // What is on the screen in the end: nothing that was drawn over.
    let last = drawn.rsplit("\x1b[1A\r\x1b[J").next().unwrap();
    assert!(last.contains("released") && !last.contains("releasing"), "{last:?}");
}

#[test]
fn a_timeout_exits_7_and_leaves_the_switch_alone() {
    let folder = folder();
    let berthd = Berthd::start(&folder.path().join("s"), accepting().stream(going_on()).stream(going_on()));
    let began = Instant::now();
    let ran = run(&berthd.socket, &["switch", "genesis", "--timeout", "1s"]);
    assert_eq!(ran.code, Some(7));
    assert!((1..5).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert!(ran.stdout.contains("✓ stopped   aeon"), "{}", ran.stdout);
    assert!(ran.told().contains("aeon -> genesis (number 12) goes on"), "{}", ran.stderr);
    assert!(berthd.requests().iter().all(|request| !request.starts_with("DELETE")));

    let ran = run(&berthd.socket, &["switch", "genesis", "--timeout", "1s", "--json"]);
    let documents = ran.documents();
    assert_eq!((ran.code, &documents.last().unwrap()["problem"]["code"]), (Some(7), &"timeout".into()));
}

#[test]
fn ctrl_c_stops_watching_and_not_the_switch() {
    let folder = folder();
    let berthd = Berthd::start(&folder.path().join("s"), accepting().stream(going_on()));
    let ran = interrupted_after(3, &berthd.socket, &["switch", "genesis"]);
    assert_eq!(ran.code, Some(130));
    insta::assert_snapshot!(ran.stderr);
    assert_eq!(berthd.requests().len(), 2, "{:?}", berthd.requests());
}

#[test]
fn a_restart_of_berthd_in_mid_swap_is_survived() {
    let folder = folder();
    let socket = folder.path().join("s");
    let mut first = Berthd::start(&socket, accepting().stream(going_on()));
    let child = berthctl(&socket, &["switch", "genesis"]).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while first.requests().len() < 2 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    first.die();
    std::thread::sleep(Duration::from_millis(1_200));
    // It is back, and counts its events anew.
    let whats = story(&switched());
    let rest = events(whats[whats.len() - 4..].to_vec());
    let second = Berthd::start(
        &socket,
        Script::default().answer("GET /api/v1/swaps/12", 200, under_way()).stream(rest),
    );
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    insta::assert_snapshot!(ran.stdout);
    assert_eq!(second.requests(), ["GET /api/v1/events?swap=12", "GET /api/v1/swaps/12"]);
}

#[test]
fn a_swap_that_ended_while_berthd_was_away_is_told() {
    let folder = folder();
    let mut cut = going_on();
    cut.pop();
    let script =
        accepting().answer("GET /api/v1/swaps/12", 200, restored()).stream(cut).stream(vec![Say::Silence]);
    let berthd = Berthd::start(&folder.path().join("s"), script);
    let ran = run(&berthd.socket, &["switch", "genesis"]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.stdout.contains("genesis serves again."), "{}", ran.stdout);
}

#[test]
fn an_end_whose_event_was_lost_is_found_by_looking() {
    let folder = folder();
    let mut quiet = going_on();
    quiet.insert(2, Say::Raw(": alive\n\n".into()));
    let script = accepting().answer("GET /api/v1/swaps/12", 200, switched()).stream(quiet);
    let berthd = Berthd::start(&folder.path().join("s"), script);
    let ran = run(&berthd.socket, &["switch", "genesis"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.stdout.matches("✓ ready").count(), 1, "{}", ran.stdout);
}

#[test]
fn a_swap_that_berthd_no_longer_knows_is_not_waited_for() {
    let folder = folder();
    let script = accepting()
        .answer("GET /api/v1/swaps/12", 404, problem(404, "unknown_swap"))
        .stream(Vec::new())
        .stream(vec![Say::Silence]);
    let berthd = Berthd::start(&folder.path().join("s"), script);
    let ran = run(&berthd.socket, &["switch", "genesis"]);
    assert_eq!(ran.code, Some(6));
    assert!(
        ran.told().contains("lost sight of aeon -> genesis (number 12): unknown_swap it is."),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_berthd_that_does_not_come_back_is_given_up_after_15_s() {
    let folder = folder();
    let socket = folder.path().join("s");
    let mut berthd = Berthd::start(&socket, accepting().stream(going_on()));
    let child = berthctl(&socket, &["switch", "genesis"]).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while berthd.requests().len() < 2 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    let began = Instant::now();
    berthd.die();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(6));
    assert!((14..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert!(ran.told().contains("lost sight of aeon -> genesis"), "{}", ran.stderr);
    assert!(ran.told().contains("systemctl status berthd"), "{}", ran.stderr);
}

#[test]
fn a_plan_exits_0_or_3() {
    let folder = folder();
    for (name, verdict, exit) in [("a", plan(Verdict::Go), 0), ("b", refusal(), 3)] {
        let script = Script::default().answer("POST /api/v1/plan", 200, verdict.clone());
        let berthd = Berthd::start(&folder.path().join(name), script);
        let ran = run(&berthd.socket, &["plan", "switch", "genesis"]);
        assert_eq!(
            (ran.code, ran.stdout.starts_with("REFUSED: ")),
            (Some(exit), exit == 3),
            "{}",
            ran.stdout
        );
        let ran = run(&berthd.socket, &["--json", "plan", "switch", "genesis"]);
        assert_eq!(ran.code, Some(exit));
        let read: PlanReport = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(read, verdict);
    }
}

#[test]
fn a_repair_exits_0_with_what_counts_now_and_3_where_it_could_not_be_made() {
    let repaired = Repaired {
        schema: 1,
        damage: Some("line 2 is damaged".into()),
        kept: Some("/var/lib/berth/ledger.damaged-1".into()),
        line: Some(3),
        home: vec![name("genesis")],
        default: Some(name("genesis")),
        serving: vec![name("genesis")],
    };
    let folder = folder();
    let berthd = Berthd::start(
        &folder.path().join("s"),
        Script::default().answer("POST /api/v1/repair", 200, &repaired),
    );
    let ran = run(&berthd.socket, &["repair"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.contains("counts   line 3"), "{}", ran.stdout);
    let ran = run(&berthd.socket, &["repair", "--json"]);
    assert_eq!((ran.code, &ran.documents()[0]["line"]), (Some(0), &serde_json::json!(3)));

    berthd.change(|script| {
        script.answers[0] =
            ("POST /api/v1/repair".into(), 409, serde_json::to_value(problem(409, "ledger")).unwrap());
    });
    let ran = run(&berthd.socket, &["repair"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""));
    assert!(ran.told().contains("REFUSED: ledger it is. Try: this"), "{}", ran.stderr);
}

#[test]
fn status_is_shown_with_and_without_the_word() {
    let folder = folder();
    let berthd =
        Berthd::start(&folder.path().join("s"), Script::default().answer("GET /api/v1/status", 200, tower()));
    let ran = run(&berthd.socket, &[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.starts_with("tower   genesis serves `default`"), "{}", ran.stdout);
    assert_eq!(run(&berthd.socket, &["status"]).stdout, ran.stdout);
    let json = run(&berthd.socket, &["status", "--json"]);
    assert_eq!(serde_json::from_str::<Status>(&json.stdout).unwrap(), tower());

    let coloured = run(&berthd.socket, &["--color", "always"]).stdout;
    assert!(coloured.contains("\x1b[32mserving\x1b[0m"), "{coloured}");
    let by_word = berthctl(&berthd.socket, &["--color", "always"]).env("NO_COLOR", "1").output().unwrap();
    assert!(String::from_utf8(by_word.stdout).unwrap().contains('\x1b'), "what is typed outweighs NO_COLOR");
}

#[test]
fn watching_the_status_goes_on_until_ctrl_c() {
    let folder = folder();
    let berthd =
        Berthd::start(&folder.path().join("s"), Script::default().answer("GET /api/v1/status", 200, tower()));
    let ran = interrupted_after(2, &berthd.socket, &["status", "--watch", "--json"]);
    assert_eq!(ran.code, Some(130));
    assert!(ran.documents().len() >= 2);
}

#[test]
fn without_a_daemon_verbs_exit_6_and_status_shows_what_can_be_seen() {
    let folder = folder();
    let socket = folder.path().join("none");
    for verb in [
        &["switch", "a"][..],
        &["start", "a"],
        &["stop", "a"],
        &["restart", "a"],
        &["back"],
        &["plan", "back"],
        &["logs", "a"],
        &["events"],
    ] {
        let ran = run(&socket, verb);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(6), ""), "{verb:?}");
        assert!(ran.told().starts_with("error: berthd is not running: there is no socket"), "{}", ran.stderr);
        assert!(ran.told().contains("systemctl status berthd"), "{}", ran.stderr);
    }
    let ran = run(&socket, &[]);
    assert_eq!(ran.code, Some(6));
    for part in ["berthd does not answer", " GPU", " RAM ", " ! berthd is not running"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    let ran = run(&socket, &["--json"]);
    assert_eq!(ran.code, Some(6));
    let status: Status = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(status.problems[0].code, "berthd_not_running");
    assert_eq!(
        run(&socket, &["switch", "a", "--json"]).documents()[0]["problem"]["code"],
        "berthd_not_running"
    );
}

#[test]
fn a_socket_that_nobody_listens_on_is_told_from_one_that_is_not_there() {
    let folder = folder();
    let socket = folder.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let ran = run(&socket, &["back"]);
    assert_eq!(ran.code, Some(6));
    assert!(ran.told().contains("berthd is not running: nobody listens on"), "{}", ran.stderr);
}

#[test]
fn one_who_may_not_is_told_how_to_be_let_in() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    let folder = folder();
    let berthd = Berthd::start(&folder.path().join("s"), accepting());
    std::fs::set_permissions(&berthd.socket, std::fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = berthctl(&berthd.socket, &["switch", "genesis"]);
    // root may open everything, so the program runs as somebody else, from a place that they may look into.
    if nix::unistd::geteuid().is_root() {
        let program = folder.path().join("berthctl");
        std::fs::copy(env!("CARGO_BIN_EXE_berthctl"), &program).unwrap();
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = std::process::Command::new(program);
        command.args(arguments).env("BERTH_SOCKET", &berthd.socket).uid(65534).gid(65534).current_dir("/");
    }
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, Some(6));
    assert!(ran.told().contains("may not open"), "{}", ran.stderr);
    assert!(ran.told().contains("(uid "), "{}", ran.stderr);
    assert!(ran.told().contains("berth"), "{}", ran.stderr);
    assert!(berthd.requests().is_empty());
}

#[test]
fn logs_are_shown_with_their_time_and_end() {
    let folder = folder();
    let line = |text: &str| {
        Say::Raw(serde_json::to_string(&LogLine { at_ms: NOW, text: text.into() }).unwrap() + "\n")
    };
    let script = Script { logs: vec![line("loading"), line("\x1b[31mready\x1b[0m")], ..Script::default() };
    let berthd = Berthd::start(&folder.path().join("s"), script);
    let ran = run(&berthd.socket, &["logs", "genesis", "-n", "5"]);
    assert_eq!(ran.code, Some(0));
    assert_eq!(ran.stdout, "11-13 02:13:20 loading\n11-13 02:13:20 ready\n");
    let ran = run(&berthd.socket, &["logs", "a/b c", "--json"]);
    assert_eq!(ran.documents()[1]["text"], "\x1b[31mready\x1b[0m");
    let paths = [
        "GET /api/v1/models/genesis/logs?follow=false&lines=5",
        "GET /api/v1/models/a%2Fb%20c/logs?follow=false&lines=100",
    ];
    assert_eq!(berthd.requests(), paths);
    berthd.change(|script| script.logs = vec![line("loading"), Say::Silence]);
    assert_eq!(interrupted_after(1, &berthd.socket, &["logs", "genesis", "-f"]).code, Some(130));
}

#[test]
fn events_are_shown_and_followed() {
    let folder = folder();
    let berthd =
        Berthd::start(&folder.path().join("s"), Script::default().stream(events(story(&switched()))));
    let ran = run(&berthd.socket, &["events", "-n", "50"]);
    assert_eq!(ran.code, Some(0));
    insta::assert_snapshot!(ran.stdout);
    berthd.change(|script| script.streams.push_back(events(story(&switched()))));
    assert_eq!(run(&berthd.socket, &["events", "--json"]).documents().len(), 9);
    // A stream that ends is taken up again where it broke off.
    let (first, rest) = (going_on()[..2].to_vec(), going_on()[2..].to_vec());
    berthd.change(|script| script.streams.extend([first, rest]));
    let ran = interrupted_after(3, &berthd.socket, &["events", "-f"]);
    assert_eq!((ran.code, ran.stdout.lines().count()), (Some(130), 3), "{}", ran.stdout);
    assert_eq!(berthd.requests()[3], "GET /api/v1/events?after=102&follow=true");
    assert_eq!(berthd.requests()[0], "GET /api/v1/events?last=50&follow=false");
    assert_eq!(berthd.requests()[2], "GET /api/v1/events?last=20&follow=true");
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let folder = folder();
    let line = Say::Raw(serde_json::to_string(&LogLine { at_ms: NOW, text: "x".into() }).unwrap() + "\n");
    let berthd =
        Berthd::start(&folder.path().join("s"), Script { logs: vec![line; 20_000], ..Script::default() });
    let mut child = berthctl(&berthd.socket, &["logs", "genesis"]).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(130), ""));
}

#[test]
fn what_is_typed_wrong_exits_2() {
    let folder = folder();
    for wrong in
        [&["swtich", "a"][..], &["stop"], &["switch"], &["switch", "a", "--timeout", "soon"], &["plan"]]
    {
        let ran = run(&folder.path().join("none"), wrong);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{wrong:?}");
    }
}

#[test]
fn check_explains_a_configuration_or_says_what_is_wrong_and_where() {
    let folder = folder();
    let none = folder.path().join("no daemon is needed");
    let models = folder.path().join("models.d");
    std::fs::create_dir(&models).unwrap();
    let config = folder.path().to_str().unwrap();
    std::fs::write(models.join("aeon.toml"), "cmd = \"/bin/sh -c true\"\nport = 8022\n").unwrap();
    std::fs::write(models.join(".#aeon.toml"), "an editor's").unwrap();
    let ran = run(&none, &["check", "--config", config]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{}", ran.stdout);
    assert!(ran.stdout.contains("valid: 1 model in"), "{}", ran.stdout);
    let document = run(&none, &["check", "--json", "--config", config]).documents().remove(0);
    assert_eq!(
        (&document["valid"], &document["explanation"]["models"][0]["name"]),
        (&true.into(), &"aeon".into())
    );

    // What is allowed and hurts is said, and is no error.
    let policies = folder.path().join("policies.d");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("fast.toml"), "[host]\nnice = -5\n").unwrap();
    let ran = run(&none, &["check", "--config", config]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{}", ran.stdout);
    for said in [
        "warning: a `nice` below 0 can starve",
        "fast.toml:2:8",
        "valid: 1 model, 1 warning in",
        "policy fast",
    ] {
        assert!(ran.stdout.contains(said), "{said}: {}", ran.stdout);
    }
    let document = run(&none, &["check", "--json", "--config", config]).documents().remove(0);
    assert_eq!(
        (&document["valid"], &document["warnings"][0]["places"][0]["line"]),
        (&true.into(), &2.into())
    );

    std::fs::write(models.join("genesis.toml"), "cmd = \"/bin/sh -c true\"\nprot = 8023\n").unwrap();
    let ran = run(&none, &["check", "--config", config]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    assert!(ran.told().contains("genesis.toml:2"), "{}", ran.stderr);
    assert!(ran.told().contains("port"), "{}", ran.stderr);
    assert!(ran.told().contains("not valid: 1 error in"), "{}", ran.stderr);
    let ran = run(&none, &["check", "--json", "--config", config]);
    assert_eq!((ran.code, &ran.documents()[0]["errors"][0]["places"][0]["line"]), (Some(2), &2.into()));

    std::fs::write(models.join("genesis.toml"), b"\xff\xfe").unwrap();
    let ran = run(&none, &["check", "--config", config]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.told().contains("genesis.toml: it is not UTF-8 text"), "{}", ran.stderr);
    let ran = run(&none, &["check", "--config", "/nowhere"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.told().contains("/nowhere is not a folder"), "{}", ran.stderr);
}

/// A key is shown once, with the hash of it that goes into the configuration.
#[test]
fn a_key_is_made_for_a_client() {
    let nobody = Path::new("/nonexistent/berth.sock");
    let ran = run(nobody, &["key", "frank"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let key = ran.stdout.lines().next().unwrap();
    assert!(key.starts_with("berth-") && key.len() > 60, "{key}");
    let hash = KeyHash::of(key.as_bytes());
    assert!(ran.stdout.contains(&format!("[proxy.keys.frank]\nsha256 = \"{hash}\"\n")), "{}", ran.stdout);
    assert_ne!(run(nobody, &["key", "frank"]).stdout, ran.stdout, "the same key twice");
    let json: serde_json::Value =
        serde_json::from_str(&run(nobody, &["key", "a_b-1", "--json"]).stdout).unwrap();
    let key = json["key"].as_str().unwrap();
    assert_eq!(json["sha256"], KeyHash::of(key.as_bytes()).to_string());
    for name in ["", "a b", "a.b", "é"] {
        let ran = run(nobody, &["key", name]);
        assert_eq!(ran.code, Some(2), "{name:?}");
        assert!(ran.stderr.contains("can't be the name of a key"), "{}", ran.stderr);
    }
}
