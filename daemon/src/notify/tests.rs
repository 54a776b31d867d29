#![allow(clippy::unwrap_used)]
use std::time::Instant;

use berth_core::notify::Notifier;
use berth_core::report::Problem;
use tokio::net::TcpListener;

use super::*;

const SOON: Duration = Duration::from_secs(20);

fn push(event: PushEvent) -> Push {
    let problem = Problem {
        code: "degraded".to_owned(),
        subject: "genesis".to_owned(),
        since_ms: 1000,
        text: "genesis should serve and does not".to_owned(),
        next: "berthctl logs genesis".to_owned(),
    };
    Notifier::push("tower", event, problem, 61_000)
}

fn shell(script: &str) -> Target {
    Target::Command(["/bin/sh", "-c", script].map(str::to_owned).to_vec())
}

/// Answers one request with this status line; gives the request's text.
async fn asked(listener: TcpListener, status: &str, until: &str) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (mut text, mut part) = (String::new(), [0; 4096]);
    while !text.contains(until) {
        let read = stream.read(&mut part).await.unwrap();
        assert!(read > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&part[..read]));
    }
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 7\r\n\r\nsee it\n");
    stream.write_all(answer.as_bytes()).await.unwrap();
    text
}

async fn posts(format: Format, event: PushEvent, status: &str, until: &str) -> (Result<(), String>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/berth?up=1", listener.local_addr().unwrap());
    let (target, push) = (Target::Post { url, format }, push(event));
    tokio::join!(send(&target, &push, SOON), asked(listener, status, until))
}

#[tokio::test]
async fn a_webhook_is_posted_json_and_ntfy_what_it_takes() {
    let (result, text) = posts(Format::Json, PushEvent::Began, "200 OK", "}").await;
    assert_eq!(result, Ok(()));
    assert!(text.starts_with("POST /berth?up=1 HTTP/1.1\r\nhost: 127.0.0.1:"), "{text}");
    let body: Push = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body, push(PushEvent::Began));

    let (result, text) = posts(Format::Ntfy, PushEvent::Ended, "200 OK", "does not").await;
    assert_eq!(result, Ok(()));
    for line in ["title: tower: over: degraded genesis", "priority: 2", "tags: white_check_mark"] {
        assert!(text.contains(&format!("\r\n{line}\r\n")), "{line}: {text}");
    }
    assert!(text.ends_with("\r\n\r\nOver after 1m: genesis should serve and does not"), "{text}");

    let (result, _) = posts(Format::Json, PushEvent::Began, "403 Forbidden", "}").await;
    let why = result.unwrap_err();
    assert!(why.ends_with("/berth?up=1: it answered 403 Forbidden: see it"), "{why}");
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let target = Target::Post { url, format: Format::Json };
    let why = send(&target, &push(PushEvent::Began), Duration::from_millis(200)).await.unwrap_err();
    assert!(why.ends_with("/ did not answer within 0.2 s"), "{why}");
    drop(listener);
    let why = send(&target, &push(PushEvent::Began), SOON).await.unwrap_err();
    assert!(why.contains("refused"), "{why}");
}

#[tokio::test]
async fn a_command_is_given_the_problem_and_may_fail() {
    let dir = tempfile::tempdir().unwrap();
    let (json, text) = (dir.path().join("json"), dir.path().join("text"));
    let script = format!(
        "cat >{}; printf '%s|%s|%s' \"$BERTH_EVENT\" \"$BERTH_TITLE\" \"$BERTH_TEXT\" >{}",
        json.display(),
        text.display()
    );
    assert_eq!(send(&shell(&script), &push(PushEvent::Began), SOON).await, Ok(()));
    let given: Push = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(given, push(PushEvent::Began));
    let text = std::fs::read_to_string(text).unwrap();
    let wanted = "began|tower: degraded genesis|genesis should serve and does not\nberthctl logs genesis";
    assert_eq!(text, wanted);

    // More than a pipe holds, on both.
    let loud = "head -c 300000 /dev/zero | tr '\\0' x; echo no >&2; exit 3";
    let why = send(&shell(loud), &push(PushEvent::Began), SOON).await.unwrap_err();
    assert!(why.starts_with("/bin/sh ended with exit status: 3: xxx"), "{why}");
    let why = send(&shell("echo no such user >&2; exit 4"), &push(PushEvent::Began), SOON).await.unwrap_err();
    assert_eq!(why, "/bin/sh ended with exit status: 4: no such user");
    let nobody = Target::Command(vec!["/nowhere/tell".to_owned()]);
    let why = send(&nobody, &push(PushEvent::Began), SOON).await.unwrap_err();
    assert!(why.starts_with("/nowhere/tell can't be run: "), "{why}");
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_its_children() {
    let began = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let script = format!("sleep 600 & echo $! >{}; wait", pid.display());
    let why = send(&shell(&script), &push(PushEvent::Began), Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(why, "/bin/sh did not end within 1 s and was killed");
    assert!(began.elapsed() < Duration::from_secs(60));
    let child: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    let gone = || {
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    };
    while !gone() {
        assert!(began.elapsed() < SOON, "its child lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
