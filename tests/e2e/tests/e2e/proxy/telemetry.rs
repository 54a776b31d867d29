//! What is known of requests afterwards.

use super::*;
use berth_core::report::Requests;

/// A word that stands in a prompt, and one in a key: neither may be told.
const SECRETS: [&str; 2] = ["tell-nobody", "key-of-frank"];
/// From where browsers may ask.
const PAGE: &str = "https://chat.example";

fn requests(berth: &Berth, model: &str) -> Requests {
    let status = berth.status();
    status.models.into_iter().find(|status| status.name.as_str() == model).unwrap().requests
}

/// Waits until so many requests came to this.
pub(super) fn came(berth: &Berth, model: &str, outcome: &str, times: u64) -> Requests {
    berth.wait_for(outcome, SOON, |berth| {
        Some(requests(berth, model)).filter(|requests| requests.outcomes.get(outcome) == Some(&times))
    })
}

/// A line for each request that the log has, as fields.
fn logged(berth: &Berth) -> Vec<Value> {
    let journal = ["journalctl", "-u", "berthd", "-o", "json", "-g", "^request$"];
    let all = berth.run(None, &journal).with_code(0).stdout;
    all.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_is_known_of_requests() {
    let keys = format!(
        "[proxy]\ncors = [\"{PAGE}\"]\n[proxy.keys.frank]\nsha256 = \"{}\"\n",
        KeyHash::of(SECRETS[1].as_bytes())
    );
    let berth = Berth::builder()
        .main(&keys)
        .fake("aeon", EACH, &["--token-delay", "20ms", "--load-time", "2s"])
        .fake("lone", EACH, &[])
        .boot();
    let drop_in = "/run/systemd/system/berthd.service.d/debug.conf";
    berth
        .sandbox()
        .write_file(drop_in, b"[Service]\nEnvironment=BERTH_LOG=info,berthd::proxy=debug\n")
        .unwrap();
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    berth.restart_berthd();
    berth.switch("aeon");
    let ask = |path: &str, mut body: Value| {
        body["prompt"] = format!("{} Monday", SECRETS[0]).into();
        let body = body.to_string();
        berth.says(&format!(
            "POST {path} HTTP/1.0\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
            SECRETS[1],
            body.len()
        ))
    };

    assert_eq!(requests(&berth, "aeon"), Requests::default());
    assert!(berth.ctl(&["status"]).with_code(0).stdout.contains("-          -"));
    // At once: its tokens are counted, and it is unknown how fast they came.
    assert_eq!(answered_by(&ask("/v1/completions", json!({ "model": "aeon", "max_tokens": 10 }))), "aeon");
    let known = came(&berth, "aeon", "2xx", 1);
    assert_eq!((known.total, known.prompt_tokens, known.completion_tokens), (1, 2, 10), "{known:?}");
    assert!(known.first_byte_ms.unwrap() >= 200 && known.queued_ms.is_some(), "{known:?}");
    assert_eq!((known.first_token_ms, known.tokens_per_second), (None, None));
    // As a stream: one token in 20 ms. That is less than 50 in a second.
    let stream = json!({
        "model": "default", "max_tokens": 20, "stream": true, "stream_options": { "include_usage": true }
    });
    for path in ["/v1/completions", "/upstream/aeon/v1/chat/completions"] {
        assert_eq!(answered_by(&ask(path, stream.clone())), "aeon");
    }
    let known = came(&berth, "aeon", "2xx", 3);
    assert_eq!((known.prompt_tokens, known.completion_tokens), (6, 50), "{known:?}");
    let speed = known.tokens_per_second.unwrap();
    assert!((1.0..51.0).contains(&speed) && known.first_token_ms.unwrap() >= 20, "{known:?}");
    let table = berth.ctl(&["status"]).with_code(0).stdout;
    assert!(table.contains(" tok/s  0 s ago"), "{table}");

    // What came of others: the server's own errors, and the proxy's.
    assert_eq!(ask("/upstream/aeon/nothing", json!({})).status, 404);
    assert_eq!(error(&ask("/v1/completions", json!({ "model": "lone" }))).1, "no_room");
    assert_eq!(error(&ask("/v1/completions", json!({ "model": "nobody" }))).1, "model_not_found");
    assert_eq!(error(&berth.completes("aeon")).1, "missing_api_key");
    came(&berth, "aeon", "4xx", 1);
    let known = came(&berth, "lone", "no_room", 1);
    assert_eq!((known.total, known.last_used_ms), (1, None), "{known:?}");

    // A page may read all of that, and ask before it shows a key, which is no request of the model.
    let preflight = |origin: &str| {
        berth.says(&format!(
            "OPTIONS /v1/completions HTTP/1.0\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
        ))
    };
    let reads = |answer: &Answer| answer.head.contains(&format!("access-control-allow-origin: {PAGE}\r\n"));
    let asked = preflight(PAGE);
    assert!(asked.status == 204 && reads(&asked), "{asked:?}");
    assert_eq!(error(&preflight("https://other.example")).1, "origin_not_allowed");
    let other = "GET /v1/models HTTP/1.0\r\nOrigin: https://other.example\r\n\r\n";
    assert_eq!(error(&berth.says(other)).1, "origin_not_allowed");
    let refused = berth.says(&format!("GET /v1/models HTTP/1.0\r\nOrigin: {PAGE}\r\n\r\n"));
    assert!(refused.status == 401 && reads(&refused), "{refused:?}");

    // One that goes on, until its client hangs up, and one that is cut off.
    let asks = || {
        let body = json!({ "model": "aeon", "prompt": "x", "max_tokens": 100_000, "stream": true });
        let body = body.to_string();
        let mut stream = connect(berth.pid1().unwrap(), PROXY_PORT, SOON).unwrap();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-api-key: {}\r\nContent-Length: {}\r\n\r\n{body}",
            SECRETS[1],
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let mut stream = asks();
    stream.read_exact(&mut [0; 1000]).unwrap();
    let known = requests(&berth, "aeon");
    assert_eq!((known.total, known.under_way), (4, 1), "{known:?}");
    assert!(berth.ctl(&["status"]).with_code(0).stdout.contains(" tok/s  now "));
    drop(stream);
    assert_eq!(came(&berth, "aeon", "client_gone", 1).under_way, 0);
    let mut stream = asks();
    stream.read_exact(&mut [0; 1000]).unwrap();
    _ = berth.systemctl(&["kill", "--signal=KILL", "berth-model@aeon.service"]).with_code(0);
    came(&berth, "aeon", "answer_cut", 1);
    drop(stream);
    // While it comes back, one waits, and leaves.
    let stream = asks();
    berth.wait_for("it waits", SOON, |berth| (requests(berth, "aeon").waiting == 1).then_some(()));
    drop(stream);
    assert_eq!(came(&berth, "aeon", "client_gone", 2).waiting, 0);

    // The log has them all, and nothing that is nobody's business.
    let lines = logged(&berth);
    let outcomes: Vec<&str> = lines.iter().map(|line| line["BERTH_CODE"].as_str().unwrap()).collect();
    let [a, b, c, gone] = ["no_room", "model_not_found", "missing_api_key", "client_gone"];
    let page = "origin_not_allowed";
    assert_eq!(
        outcomes,
        ["2xx", "2xx", "2xx", "4xx", a, b, c, page, c, gone, "answer_cut", gone],
        "{lines:#?}"
    );
    for (field, value) in [
        ("MODEL", "aeon"),
        ("ASKED", "\"default\""),
        ("KEY", "frank"),
        ("METHOD", "POST"),
        ("PATH", "\"/v1/completions\""),
        ("STATUS", "200"),
        ("PROMPT_TOKENS", "2"),
        ("COMPLETION_TOKENS", "20"),
    ] {
        assert_eq!(lines[1][format!("BERTH_{field}")], value, "{:#?}", lines[1]);
    }
    for field in ["QUEUED_MS", "FIRST_BYTE_MS", "FIRST_TOKEN_MS", "MS", "TOKENS_PER_SECOND"] {
        let value = &lines[1][format!("BERTH_{field}")];
        assert!(value.as_str().unwrap().parse::<f64>().is_ok(), "{field}: {value}");
    }
    let bytes = |field: &str| lines[1][field].as_str().unwrap().parse::<u64>().unwrap();
    assert!(bytes("BERTH_BYTES_IN") > 100 && bytes("BERTH_BYTES_OUT") > 1000, "{:#?}", lines[1]);
    let journal = berth.run(None, &["journalctl", "--quiet", "--output=export"]).with_code(0).stdout;
    for secret in SECRETS {
        assert!(!journal.contains(secret));
    }
}
