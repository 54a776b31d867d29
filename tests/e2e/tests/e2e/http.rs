//! The control API over TCP: who may do what there, and what other sites' pages may not (S23).

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use berth_core::proxy::KeyHash;
use berth_core::report::Status;
use berth_tests::{Answer, Berth, GUEST_ASSETS, connect, say};
use serde_json::{Value, json};

const EACH: &str = "6000MiB";
const SOON: Duration = Duration::from_secs(20);
const PORT: u16 = 8009;
const TOKENS: [(&str, &str); 3] = [("eye", "read"), ("agent", "plan"), ("ci", "operate")];

fn secret(name: &str) -> String {
    format!("berth-secret-of-{name}")
}

fn tokens() -> String {
    let token = |(name, rights): (&str, &str)| {
        let hash = KeyHash::of(secret(name).as_bytes());
        format!("[http.tokens.{name}]\nsha256 = \"{hash}\"\nrights = \"{rights}\"\n")
    };
    TOKENS.map(token).concat()
}

fn bearer(name: &str) -> String {
    format!("Authorization: Bearer {}\r\n", secret(name))
}

/// Asks with these lines in the head; `Host:` is what it should be unless they say otherwise.
fn ask(berth: &Berth, method: &str, path: &str, head: &str, body: Option<&Value>) -> Answer {
    let host = if head.contains("Host:") { String::new() } else { format!("Host: 127.0.0.1:{PORT}\r\n") };
    let body = body.map(ToString::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\n{host}{head}Content-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    say(berth.pid1().unwrap(), PORT, request.as_bytes(), SOON).unwrap()
}

/// What became of it: the status, and a problem's code.
fn came(answer: &Answer) -> (u16, String) {
    let problem: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    (answer.status, problem["code"].as_str().unwrap_or_default().to_owned())
}

fn switch(model: &str) -> Value {
    json!({ "verb": "switch", "model": model })
}

#[test]
fn rights_are_given_apart() {
    let berth = Berth::builder()
        .main(&format!(
            "node = \"tower\"\n{}[rights]\noperate = [\"frank\"]\nread = [\"@users\"]\n",
            tokens()
        ))
        .fake("aeon", EACH, &[])
        .fake("genesis", EACH, &[])
        .boot();
    let get = |path: &str, head: &str| came(&ask(&berth, "GET", path, head, None));
    let post = |path: &str, head: &str, body: &Value| came(&ask(&berth, "POST", path, head, Some(body)));
    let ok = |status| (status, String::new());

    // Without a token one may look, on this machine.
    let status: Status = serde_json::from_str(&ask(&berth, "GET", "/api/v1/status", "", None).body).unwrap();
    assert_eq!((status.node.as_str(), status.models.len()), ("tower", 2));
    for path in ["/api/v1/plan", "/api/v1/swaps", "/api/v1/repair", "/api/v1/devices/clear"] {
        assert_eq!(post(path, "", &switch("aeon")), (401, "not_signed_in".to_owned()), "{path}");
        assert_eq!(post(path, &bearer("eye"), &switch("aeon")), (403, "not_allowed".to_owned()), "{path}");
        assert_eq!(
            post(path, &bearer("nobody"), &switch("aeon")),
            (401, "invalid_token".to_owned()),
            "{path}"
        );
    }
    assert_eq!(get("/api/v1/status", &bearer("nobody")), (401, "invalid_token".to_owned()), "it was shown");
    assert_eq!(post("/api/v1/plan", &bearer("agent"), &switch("aeon")), ok(200));
    assert_eq!(post("/api/v1/swaps", &bearer("agent"), &switch("aeon")), (403, "not_allowed".to_owned()));
    assert!(berth.serving().is_empty());
    assert_eq!(post("/api/v1/swaps", &bearer("ci"), &switch("aeon")), ok(202));
    berth.wait_serving("aeon", SOON);
    let swap = berth.status().last_swap.unwrap();
    assert_eq!(swap.by.map(|by| (by.user, by.uid, by.pid)), Some(("token ci".to_owned(), None, None)));

    // Over the socket by user and group.
    let seen = berth.ctl_as("mallory", &["switch", "genesis"]).with_code(3);
    assert!(seen.stderr.contains("this needs the right `operate`; mallory has `none`"), "{seen}");
    let id = berth.run(None, &["usermod", "-aG", "users", "mallory"]);
    assert_eq!(id.code, 0, "{id}");
    assert!(berth.ctl_as("mallory", &["status"]).with_code(0).stdout.contains("aeon"));
    _ = berth.ctl_as("mallory", &["plan", "switch", "genesis"]).with_code(3);
    _ = berth.ctl_as("frank", &["switch", "genesis"]).with_code(0);

    // A browser is signed in once, as who asked for it.
    let url = berth.ctl_as("frank", &["dashboard", "--json"]).with_code(0).stdout;
    let url = serde_json::from_str::<Value>(&url).unwrap()["url"].as_str().unwrap().to_owned();
    let path = url.strip_prefix("http://127.0.0.1:8009").unwrap();
    let signed = ask(&berth, "GET", path, "", None);
    let cookie = signed.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert_eq!((signed.status, signed.head.contains("location: /\r\n")), (303, true), "{}", signed.head);
    assert_eq!(ask(&berth, "GET", path, "", None).status, 403, "it works once");
    let cookie = format!("Cookie: theme=dark; {}\r\n", cookie.split(';').next().unwrap());
    let session: Value =
        serde_json::from_str(&ask(&berth, "GET", "/api/v1/session", &cookie, None).body).unwrap();
    assert_eq!(session, json!({ "schema": 1, "user": "frank", "rights": "operate" }));

    // Pages of other sites, also through that browser.
    let stop = json!({ "verb": "stop_all" });
    let cross = "Sec-Fetch-Site: cross-site\r\n";
    let framed = format!("{cross}Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n");
    let followed = format!("{cross}Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n");
    for head in [
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
        "Origin: http://127.0.0.1:3000\r\n",
        cross,
        &framed,
    ] {
        let refused = (403, "origin_not_allowed".to_owned());
        assert_eq!(post("/api/v1/swaps", &format!("{cookie}{head}"), &stop), refused, "{head}");
        assert_eq!(get("/api/v1/status", &format!("{cookie}{head}")), refused, "{head}");
    }
    assert_eq!(post("/api/v1/swaps", &format!("{cookie}{followed}"), &stop).0, 403);
    assert_eq!(get("/api/v1/status", &followed), ok(200));
    for host in ["evil.example:8009", "127.0.0.1.evil.example", "tower.evil.example", ""] {
        let head = format!("{cookie}Host: {host}\r\n");
        assert_eq!(post("/api/v1/swaps", &head, &stop), (421, "unknown_host".to_owned()), "{host}");
        assert_eq!(get("/api/v1/status", &head).0, 421, "{host}");
    }
    for host in ["localhost:8009", "tower", "[::1]:8009", "10.1.2.3"] {
        assert_eq!(get("/api/v1/status", &format!("Host: {host}\r\n")), ok(200), "{host}");
    }
    let answer = ask(&berth, "GET", "/api/v1/status", &cookie, None);
    for told in [
        "frame-ancestors 'none'",
        "x-frame-options: DENY",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
    ] {
        assert!(answer.head.contains(told), "{told}: {}", answer.head);
    }
    let own = format!("{cookie}Origin: http://127.0.0.1:8009\r\nSec-Fetch-Site: same-origin\r\n");
    assert_eq!(post("/api/v1/swaps", &own, &json!({ "verb": "stop_all" })), ok(202));
    let gone = ask(&berth, "DELETE", "/api/v1/session", &own, None);
    assert_eq!(gone.status, 204);
    assert_eq!(post("/api/v1/swaps", &own, &switch("aeon")), (401, "not_signed_in".to_owned()));

    // Everybody may connect until berthd is started anew, so `[rights]` hold until then, though they are gone.
    berth.wait_for("the stop", SOON, |berth| berth.status().swap.is_none().then_some(()));
    berth.configure("berth.toml", format!("node = \"tower\"\n{}", tokens()).as_bytes());
    _ = berth.ctl(&["reload"]).with_code(0);
    let refused = berth.ctl_as("mallory", &["switch", "aeon"]).with_code(3);
    assert!(refused.stderr.contains("this needs the right `operate`; mallory has `read`"), "{refused}");

    // Who asked is written down; what opened it is not.
    let journal = berth.journal("berthd.service");
    assert!(journal.contains("audit: token ci from 127.0.0.1:"), "{journal}");
    let code = path.split_once('=').unwrap().1;
    for kept in [secret("ci"), secret("nobody"), code.to_owned(), cookie[20..60].to_owned()] {
        assert!(!journal.contains(&kept), "{kept} is in the journal");
    }
}

/// All that the description of the control API allows is asked for, and much that it doesn't: nothing breaks, and every
/// answer is as described.
#[test]
fn answers_are_as_described() {
    let berth =
        Berth::builder().assets().main(&tokens()).fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    let folder = format!("{GUEST_ASSETS}/schemathesis");
    let path = format!("PYTHONPATH={folder}");
    let token = format!("Authorization: Bearer {}", secret("ci"));
    let argv = [
        "env",
        &path,
        "python3",
        &format!("{folder}/bin/schemathesis"),
        "run",
        "http://127.0.0.1:8009/api/v1/openapi.json",
        "--header",
        &token,
        "--checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--phases=examples,coverage,fuzzing",
        "--max-examples=15",
        "--generation-deterministic",
        "--request-timeout=20",
        "--no-color",
        // These go on for as long as one listens.
        "--exclude-path-regex=/(events|logs)$",
    ];
    let output = berth.run_within(Duration::from_mins(3), None, &argv);
    assert_eq!(output.code, 0, "{output}");
    // It was in earnest: something was switched.
    assert!(berth.status().last_swap.is_some(), "{output}");
    berth.assert_no_failed_allocation();
}

/// Two hundred listen, some of whom never read: switches go on, and who lags comes back where he was.
#[test]
fn many_listen_and_some_do_not_read() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let resident = || {
        let pid = berth.property("berthd.service", "MainPID");
        let status = berth.run(None, &["cat", &format!("/proc/{pid}/status")]).with_code(0).stdout;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().to_owned();
        line.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let before = resident();
    let pid1 = berth.pid1().unwrap();
    let mut listeners: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = connect(pid1, PORT, SOON).unwrap();
            write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            stream
        })
        .collect();
    let begin = Instant::now();
    for model in ["genesis", "aeon", "genesis", "aeon"] {
        berth.switch(model);
    }
    assert!(begin.elapsed() < Duration::from_secs(60));
    assert!(resident() < before + 40 * 1024, "{} KiB were {before}", resident());
    let seen = |stream: &mut std::net::TcpStream| {
        let (mut text, mut part) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&text).contains("swap_ended") {
            let read = stream.read(&mut part).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&text));
            text.extend(&part[..read]);
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    let told = seen(&mut listeners[0]);
    assert!(told.contains("text/event-stream"), "{told}");
    drop(listeners);
    // From an id on nothing is missed.
    let id = told.split("id: ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
    let mut back = connect(pid1, PORT, SOON).unwrap();
    write!(back, "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {id}\r\n\r\n").unwrap();
    let again = seen(&mut back);
    assert!(!again.contains(&format!("id: {id}\r")) && again.contains("swap_step"), "{again}");
}
