//! What those see who don't look at berthctl: watchdogs, Prometheus, and people who are told of problems.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use berth_core::config::PROXY_PORT;
use berth_core::notify::{Push, PushEvent};
use berth_core::report::{Health, HealthStatus, Severity};
use berth_tests::{Berth, Page, fake, get, listen, post};
use serde_json::json;

const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(30);
const WEBHOOK: u16 = 2586;
/// What the command was told, a line each.
const TOLD: &str = "/run/berth/told";
/// berthd does not start a model again by itself while this goes on.
const MAIN: &str = "node = \"tower\"\n[deadlines]\nstop = \"3s\"\nrelease = \"12s\"\nstart = \"10s\"\n\
                    [restart]\nfirst = \"10 min\"\nlongest = \"10 min\"\n\
                    [notify.mail]\nsettle = \"2s\"\n\
                    command = [\"/bin/sh\", \"-c\", \"cat >>/run/berth/told; echo >>/run/berth/told\"]\n\
                    [notify.phone]\nsettle = \"2s\"\nurl = \"http://127.0.0.1:2586/berth\"\nformat = \"ntfy\"\n";

/// Asks `/health`, and checks that status and answer agree.
fn health(berth: &Berth) -> Health {
    let answer = get(berth.pid1().unwrap(), "/health", SOON).unwrap();
    let health: Health = serde_json::from_str(&answer.body).unwrap();
    let wanted = if health.status == HealthStatus::Ok { 200 } else { 503 };
    assert_eq!(answer.status, wanted, "{answer:?}");
    health
}

fn status_of(berth: &Berth, path: &str) -> u16 {
    get(berth.pid1().unwrap(), path, SOON).unwrap().status
}

fn metrics(berth: &Berth) -> Page {
    let answer = get(berth.pid1().unwrap(), "/metrics", SOON).unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    Page::check(&answer.body).unwrap()
}

/// What the command was told so far.
fn told(berth: &Berth) -> Vec<Push> {
    let text = berth.run(None, &["cat", TOLD]);
    let lines = text.stdout.lines().filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A webhook: what was posted to it, head and body. The first one is refused.
fn webhook(listener: TcpListener) -> Arc<Mutex<Vec<String>>> {
    let posted = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&posted);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut text) = (stream.unwrap(), String::new());
            let mut part = [0; 4096];
            let whole = |text: &str| {
                let (head, body) = text.split_once("\r\n\r\n")?;
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
                (body.len() >= length.parse().ok()?).then_some(())
            };
            while whole(&text).is_none() {
                let read = stream.read(&mut part).unwrap();
                assert!(read > 0, "{text}");
                text.push_str(std::str::from_utf8(&part[..read]).unwrap());
            }
            let mut all = all.lock().unwrap();
            let status = if all.is_empty() { "503 Not Yet" } else { "200 OK" };
            all.push(text);
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    posted
}

#[test]
fn what_is_wrong_is_seen_by_watchdogs_and_told_once() {
    let berth = Berth::builder()
        .main(MAIN)
        .fake("aeon", EACH, &[])
        .fake("off", EACH, &[])
        .model("old", &(fake(2, EACH, &[]) + "retired = true\n"))
        .boot();
    let posted = webhook(listen(berth.pid1().unwrap(), WEBHOOK).unwrap());
    let phone = || posted.lock().unwrap().clone();

    // Nothing is desired, and then one serves: all is well, whatever is off or retired.
    assert_eq!((health(&berth).status, status_of(&berth, "/health/ready")), (HealthStatus::Ok, 200));
    berth.switch("off");
    berth.switch("aeon");
    assert_eq!(health(&berth).problems, []);
    assert_eq!((status_of(&berth, "/health/ready"), status_of(&berth, "/health/live")), (200, 200));
    let body = json!({ "model": "aeon", "prompt": "Monday", "max_tokens": 4 });
    let answer = post(berth.pid1().unwrap(), PROXY_PORT, "/v1/completions", &body, SOON).unwrap();
    assert_eq!(answer.status, 200);

    // What Prometheus is given is what the cards really hold.
    let page = metrics(&berth);
    for card in berth.stats().devices {
        let value = |name: &str| {
            page.value(&format!("berth_gpu_{name}{{gpu=\"{}\",uuid=\"{}\"}}", card.index, card.uuid))
        };
        let held: u64 = card.held.iter().map(|held| held.bytes).sum();
        assert!(held > 0);
        for (name, truth) in [
            ("memory_total_bytes", card.memory.total),
            ("memory_used_bytes", card.memory.used),
            ("memory_free_bytes", card.memory.free),
            ("memory_reserved_bytes", card.memory.reserved),
            ("memory_foreign_bytes", card.memory.used - held),
        ] {
            assert_eq!(value(name), Some(truth as f64), "{name} of {card:?}");
        }
        assert_eq!((value("known"), value("suspect")), (Some(1.0), Some(0.0)));
        assert!(value("reading_age_seconds").unwrap() < 5.0);
    }
    let value = |series: &str| page.value(series);
    assert_eq!(value("berth_healthy"), Some(1.0));
    assert_eq!(value("berth_model_state{model=\"aeon\",state=\"serving\"}"), Some(1.0));
    assert_eq!(value("berth_model_state{model=\"old\",state=\"retired\"}"), Some(1.0));
    assert_eq!(value("berth_model_desired{model=\"off\"}"), Some(0.0));
    assert_eq!(value("berth_model_memory_used_bytes{model=\"aeon\"}"), Some((2 * (14_300_u64 << 20)) as f64));
    assert_eq!(value("berth_swaps_total{verb=\"switch\",outcome=\"done\"}"), Some(2.0));
    assert_eq!(value("berth_swap_step_seconds_count{step=\"ready\"}"), Some(2.0));
    assert_eq!(value("berth_release_seconds_count{model=\"off\"}"), Some(1.0));
    assert_eq!(value("berth_requests_total{model=\"aeon\",outcome=\"2xx\"}"), Some(1.0));
    assert_eq!(value("berth_request_queue_seconds_count{model=\"aeon\"}"), Some(1.0));
    assert_eq!(value("berth_completion_tokens_total{model=\"aeon\"}"), Some(4.0));

    // It dies for good.
    _ = berth.systemctl(&["kill", "--signal=KILL", "berth-model@aeon.service"]).with_code(0);
    let concern = berth.wait_for("a watchdog sees it", SOON, |berth| {
        let health = health(berth);
        let mut errors = health.problems.into_iter().filter(|concern| concern.severity == Severity::Error);
        errors.next().filter(|concern| concern.problem.text.contains("SIGKILL"))
    });
    assert_eq!((&*concern.problem.code, &*concern.problem.subject), ("degraded", "aeon"));
    assert_eq!(concern.problem.next, "berthctl retry aeon");
    assert_eq!((status_of(&berth, "/health/ready"), status_of(&berth, "/health/live")), (503, 200));
    let page = metrics(&berth);
    assert_eq!(page.value("berth_healthy"), Some(0.0));
    assert_eq!(page.value("berth_problems{code=\"degraded\",severity=\"error\"}"), Some(1.0));
    assert_eq!(page.value("berth_model_memory_used_bytes{model=\"aeon\"}"), None);
    berth.wait_for("both are told", SOON, |berth| {
        (told(berth).len() == 1 && phone().len() == 2).then_some(())
    });
    let push = told(&berth).remove(0);
    assert_eq!((push.event, push.node.as_str()), (PushEvent::Began, "tower"));
    assert_eq!(push.problem.key(), "degraded aeon");
    // The phone could not be told at first.
    let wanted = "title: tower: degraded aeon";
    assert!(
        phone().iter().all(|text| text.contains(wanted) && text.contains("priority: 4")),
        "{:?}",
        phone()
    );
    let journal = berth.journal("berthd.service");
    assert!(journal.contains(
        "phone can't be told that degraded aeon began: http://127.0.0.1:2586/berth: it answered 503"
    ));

    // A berthd that is started anew tells nobody again, and one of nothing but the end.
    berth.restart_berthd();
    berth
        .wait_for("it is still seen", SOON, |berth| (health(berth).status != HealthStatus::Ok).then_some(()));
    thread::sleep(Duration::from_secs(4));
    assert_eq!((told(&berth).len(), phone().len()), (1, 2));
    berth.switch("aeon");
    assert_eq!((health(&berth).status, status_of(&berth, "/health/ready")), (HealthStatus::Ok, 200));
    berth.wait_for("both are told of the end", SOON, |berth| {
        (told(berth).len() == 2 && phone().len() == 3).then_some(())
    });
    let push = told(&berth).remove(1);
    assert_eq!((push.event, push.problem.key().as_str()), (PushEvent::Ended, "degraded aeon"));
    assert!(phone()[2].contains("title: tower: over: degraded aeon"), "{:?}", phone());
    thread::sleep(Duration::from_secs(4));
    assert_eq!((told(&berth).len(), phone().len()), (2, 3));
    assert_eq!(health(&berth).problems, []);
}
