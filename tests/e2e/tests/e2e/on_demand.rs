//! What clients ask for is loaded for them: as a guest, in turn, at nobody's expense unless that is declared.

use std::io::Write;
use std::thread;
use std::time::Duration;

use berth_core::config::PROXY_PORT;
use berth_core::name::ModelName;
use berth_core::proxy::KeyHash;
use berth_core::report::{ModelState, Outcome, Step, SwapSummary, Verb};
use berth_tests::crowd::{self, Crowd};
use berth_tests::{Answer, Berth, connect, fake, say};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// A short completion of this model, asked for with a key.
fn completes(berth: &Berth, key: &str, model: &str) -> Answer {
    say(berth.pid1().unwrap(), PROXY_PORT, request(key, model, 4).as_bytes(), SOON).unwrap()
}

fn request(key: &str, model: &str, tokens: u32) -> String {
    let body = json!({ "model": model, "prompt": "x", "max_tokens": tokens }).to_string();
    format!(
        "POST /v1/completions HTTP/1.0\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Status, code, text, and after how many seconds to come again.
fn refused(answer: &Answer) -> (u16, String, String, u64) {
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"));
    let text = |key: &str| body["error"][key].as_str().unwrap_or_default().to_owned();
    let after = answer.head.lines().find_map(|line| line.strip_prefix("retry-after: "));
    (answer.status, text("code"), text("message"), after.and_then(|after| after.parse().ok()).unwrap_or(0))
}

#[track_caller]
fn answered(answer: &Answer, model: &str) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.lines().any(|line| line == format!("x-berth-model: {model}")), "{answer:?}");
}

fn last(berth: &Berth) -> SwapSummary {
    berth.status().last_swap.unwrap()
}

fn home(berth: &Berth) -> Vec<String> {
    berth.status().home.iter().map(ToString::to_string).collect()
}

/// A machine with aeon on half of both cards as home, and what may come beside it, or in its place, or not at all.
#[test]
fn what_is_asked_for_is_loaded() {
    let keys = ["agents", "guest"].map(|key| {
        let loads = if key == "guest" { "loads = false\n" } else { "" };
        format!("[proxy.keys.{key}]\nsha256 = \"{}\"\n{loads}", KeyHash::of(key.as_bytes()))
    });
    let main = format!(
        "node = \"tower\"\nguest_idle = \"4s\"\n[proxy]\nturn = \"2s\"\n{}\
         [deadlines]\ndrain = \"8s\"\nstop = \"3s\"\nrelease = \"12s\"\nstart = \"10s\"\n",
        keys.concat()
    );
    let load = ["--load-time", "300ms"];
    let slow = ["--load-time", "300ms", "--token-delay", "100ms"];
    let evict = "on_demand = \"evict\"\nguest_idle = \"6s\"\n";
    let berth = Berth::builder()
        .main(&main)
        .model("aeon", &fake(2, "8000MiB", &slow))
        .model("small", &fake(1, "4000MiB", &load))
        .model("genesis", &(fake(2, "14300MiB", &["--load-time", "1500ms"]) + evict))
        .model("large", &fake(2, "14300MiB", &load))
        .model("never", &(fake(1, "1000MiB", &load) + "on_demand = \"never\"\n"))
        .model("broken", &(fake(1, "1000MiB", &["--exit-at-once"])))
        .boot();
    berth.switch("aeon");

    // Beside home, and whoever asked is told.
    let (status, code, text, _) = refused(&completes(&berth, "guest", "small"));
    assert_eq!((status, code.as_str()), (403, "load_not_allowed"), "{text}");
    answered(&completes(&berth, "agents", "small"), "small");
    answered(&completes(&berth, "guest", "small"), "small");
    let swap = last(&berth);
    assert_eq!((swap.verb, swap.outcome, swap.by), (Verb::Load, Some(Outcome::Done), None));
    assert_eq!(
        (berth.serving(), home(&berth)),
        (vec!["aeon".to_owned(), "small".into()], vec!["aeon".into()])
    );
    let shown = berth.ctl(&["status"]).with_code(0).stdout;
    assert!(shown.contains("small serves because agents asked for it"), "{shown}");

    // What is refused says why, and what to do.
    let (status, code, text, after) = refused(&completes(&berth, "agents", "large"));
    assert_eq!((status, code.as_str()), (503, "no_room"), "{text}");
    assert!(text.contains("large has no room beside what is to serve: ") && text.contains("short"), "{text}");
    assert!(text.ends_with("An operator can: berthctl switch large"), "{text}");
    assert!(after > 0, "it says when to come again");
    let (status, code, text, _) = refused(&completes(&berth, "agents", "never"));
    assert_eq!((status, code.as_str()), (409, "model_not_loaded"), "{text}");
    let (status, code, text, after) = refused(&completes(&berth, "agents", "broken"));
    assert_eq!((status, code.as_str()), (503, "load_failed"), "{text}");
    assert!(text.contains("broken did not start: ") && after > 0, "{text}");
    // Nobody asked for small meanwhile: it leaves.
    berth.wait_for("it leaves", SOON, |berth| (berth.serving() == ["aeon"]).then_some(()));

    // In home's place, which is loaded again for who asks for it, or by itself.
    answered(&completes(&berth, "agents", "genesis"), "genesis");
    assert_eq!((berth.serving(), home(&berth)), (vec!["genesis".to_owned()], vec!["aeon".into()]));
    let status = berth.status();
    assert_eq!((status.problems, berth.state_of("aeon")), (vec![], ModelState::Off));
    answered(&completes(&berth, "agents", "default"), "aeon");
    assert_eq!(last(&berth).verb, Verb::Load);
    answered(&completes(&berth, "agents", "genesis"), "genesis");
    berth.restart_berthd();
    assert_eq!(berth.serving(), ["genesis"], "a guest outlives berthd");
    berth.wait_for("home is back", SOON, |berth| (berth.serving() == ["aeon"]).then_some(()));
    assert_eq!((home(&berth), berth.status().problems), (vec!["aeon".to_owned()], vec![]));

    // Who hangs up in line, or while another model's answer is waited for, has nothing loaded.
    let pid1 = berth.pid1().unwrap();
    let long =
        thread::spawn(move || say(pid1, PROXY_PORT, request("agents", "aeon", 60).as_bytes(), SOON).unwrap());
    let waits = || {
        let mut stream = connect(pid1, PROXY_PORT, SOON).unwrap();
        stream.write_all(request("agents", "genesis", 4).as_bytes()).unwrap();
        stream
    };
    thread::sleep(Duration::from_millis(300));
    let hangs_up = waits();
    thread::sleep(Duration::from_millis(700));
    drop(hangs_up);
    let hangs_up = waits();
    berth.wait_for("its turn comes", SOON, |berth| {
        berth.status().swap?.steps.iter().any(|step| step.step == Step::Drained).then_some(())
    });
    drop(hangs_up);
    let swap = berth.wait_for("it is called off", SOON, |berth| {
        let swap = last(berth);
        (swap.model == "genesis".parse::<ModelName>().ok() && swap.outcome == Some(Outcome::Restored))
            .then_some(swap)
    });
    assert_eq!(swap.reason.as_deref(), Some("nobody waits for it any more"));
    answered(&long.join().unwrap(), "aeon");
    assert_eq!(berth.serving(), ["aeon"]);

    // Also behind a body that nobody reads meanwhile.
    let waiting = |berth: &Berth| {
        let status = berth.status();
        status.models.iter().find(|model| model.name.as_str() == "genesis").unwrap().requests.waiting
    };
    let long =
        thread::spawn(move || say(pid1, PROXY_PORT, request("agents", "aeon", 30).as_bytes(), SOON).unwrap());
    thread::sleep(Duration::from_millis(300));
    let mut hangs_up = connect(pid1, PROXY_PORT, SOON).unwrap();
    let head = "POST /upstream/genesis/v1/completions HTTP/1.1\r\nHost: x\r\nx-api-key: agents\r\n\
                Content-Length: 9000000\r\n\r\n";
    hangs_up.write_all(head.as_bytes()).unwrap();
    hangs_up.write_all(&vec![b'x'; 100_000]).unwrap();
    berth.wait_for("it waits", SOON, |berth| (waiting(berth) == 1).then_some(()));
    drop(hangs_up);
    berth.wait_for("it leaves the line", Duration::from_millis(1500), |berth| {
        (waiting(berth) == 0).then_some(())
    });
    answered(&long.join().unwrap(), "aeon");

    // Who streams may be told that it waits, also of what is refused in the end.
    let body = json!({ "model": "genesis", "prompt": "x", "max_tokens": 4, "stream": true }).to_string();
    let waits = |body: &str| {
        let request = format!(
            "POST /v1/completions HTTP/1.0\r\nAuthorization: Bearer agents\r\nX-Berth-Wait: comments\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        say(berth.pid1().unwrap(), PROXY_PORT, request.as_bytes(), SOON).unwrap()
    };
    let streamed = waits(&body);
    assert!(
        streamed.status == 200
            && streamed.body.starts_with(": waiting for the model\n\n: from genesis\n\ndata: {"),
        "{streamed:?}"
    );
    assert!(streamed.body.ends_with("data: [DONE]\n\n"), "{streamed:?}");

    // What an operator stopped stays stopped.
    _ = berth.change(&["switch", "aeon"]).with_code(0);
    _ = berth.change(&["start", "small"]).with_code(0);
    _ = berth.change(&["stop", "small"]).with_code(0);
    let (status, code, text, _) = refused(&completes(&berth, "agents", "small"));
    assert_eq!((status, code.as_str()), (409, "model_stopped"), "{text}");
    berth.assert_no_failed_allocation();
}

/// 64 clients on three models of which only one fits at a time.
#[test]
fn a_crowd_takes_turns() {
    let turn = Duration::from_secs(3);
    let berth = crowd::machine(turn).unwrap();
    let plan = Crowd { clients: 64, time: Duration::from_secs(60), turn, seed: 7 };
    let served = crowd::crowd(&berth, &plan, |_| {}).unwrap();
    println!("{served}");
    assert_eq!(served.violations, Vec::<String>::new(), "{served}");
    assert!(served.loads >= 10 && served.answers >= 500, "{served}");
}
