//! The clients' one address.

mod deadlines;
mod telemetry;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use berth_core::config::PROXY_PORT;
use berth_core::proxy::KeyHash;
use berth_core::report::{Outcome, Step, StepState};

use berth_tests::{
    Answer, Berth, GUEST_ASSETS, Streamed, connect, declaration, fake, post, real_command, say,
};
use serde_json::{Value, json};

const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(30);

trait Client {
    /// What the proxy answers to these bytes.
    fn says(&self, request: &str) -> Answer;
    /// What it answers to a short completion of this model.
    fn completes(&self, model: &str) -> Answer;
}

impl Client for Berth {
    fn says(&self, request: &str) -> Answer {
        say(self.pid1().unwrap(), PROXY_PORT, request.as_bytes(), SOON).unwrap()
    }

    fn completes(&self, model: &str) -> Answer {
        let body = json!({ "model": model, "prompt": "Monday", "max_tokens": 4 });
        post(self.pid1().unwrap(), PROXY_PORT, "/v1/completions", &body, SOON).unwrap()
    }
}

fn error(answer: &Answer) -> (u16, String, String) {
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"));
    let text = |key: &str| body["error"][key].as_str().unwrap_or_default().to_owned();
    (answer.status, text("code"), text("message"))
}

fn answered_by(answer: &Answer) -> &str {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.head.lines().find_map(|line| line.strip_prefix("x-berth-model: ")).unwrap()
}

/// Names, and what is refused.
#[test]
fn one_address_for_every_client() {
    let berth = Berth::builder()
        .model("aeon", &(fake(2, EACH, &["--alias", "aeon"]) + "aliases = [\"production\"]\n"))
        .model("genesis", &(fake(2, EACH, &[]) + "fallback = \"aeon\"\n"))
        .model("old", &(fake(2, EACH, &[]) + "retired = true\n"))
        .model("lone", &(fake(2, EACH, &[]) + "on_demand = \"never\"\n"))
        .boot();
    let (status, code, text) = error(&berth.completes("default"));
    assert_eq!((status, code.as_str()), (503, "nothing_serves"), "{text}");
    berth.switch("aeon");
    for name in ["aeon", "production", "default"] {
        assert_eq!(answered_by(&berth.completes(name)), "aeon");
    }
    let (status, code, text) = error(&berth.completes("lone"));
    assert_eq!((status, code.as_str()), (409, "model_not_loaded"));
    assert_eq!(text, "lone is not loaded; aeon serves. An operator can: berthctl switch lone");
    for name in ["nobody", "old"] {
        let (status, code, text) = error(&berth.completes(name));
        assert_eq!((status, code.as_str()), (404, "model_not_found"));
        assert!(text.contains("There are: aeon, genesis, lone, production"), "{text}");
    }
    // Declared so, another one answers, and says so.
    let instead = berth.completes("genesis");
    assert_eq!(answered_by(&instead), "aeon");
    assert!(instead.head.contains("x-berth-instead-of: genesis"), "{instead:?}");
    assert!(instead.body.contains("\"model\":\"aeon\""), "{instead:?}");

    let models: Value = serde_json::from_str(&berth.says("GET /v1/models HTTP/1.0\r\n\r\n").body).unwrap();
    let ids: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["default", "aeon", "genesis", "lone"]);
    assert_eq!(models["data"][1]["state"], "serving");
    let one = berth.says("GET /v1/models/production HTTP/1.0\r\n\r\n");
    assert!(one.status == 200 && one.body.contains("\"model\":\"aeon\""), "{one:?}");
    assert_eq!(error(&berth.says("GET /v1/models/nobody HTTP/1.0\r\n\r\n")).0, 404);

    // A request without a JSON type, or without a body; and any path of a server.
    let body = json!({ "prompt": "x", "max_tokens": 1, "model": "production" }).to_string();
    let curl = format!(
        "POST /v1/completions HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(answered_by(&berth.says(&curl)), "aeon");
    assert_eq!(answered_by(&berth.says("GET /upstream/production/health HTTP/1.0\r\n\r\n")), "aeon");
    assert_eq!(answered_by(&berth.says("GET /upstream/aeon/v1/models?x=1 HTTP/1.0\r\n\r\n")), "aeon");
    let (status, code, text) = error(&berth.says("GET /metricsx HTTP/1.0\r\n\r\n"));
    assert_eq!((status, code.as_str()), (404, "unknown_path"), "{text}");
    let twice = "POST /v1/completions HTTP/1.0\r\nContent-Length: 33\r\n\r\n{\"model\":\"aeon\",\"model\":\"lone\"}  ";
    assert_eq!(error(&berth.says(twice)).1, "bad_body");
    let anthropic =
        berth.says("POST /v1/messages HTTP/1.0\r\nContent-Length: 17\r\n\r\n{\"model\":\"nobody\"}");
    assert!(
        anthropic.body.starts_with("{\"error\":{") && anthropic.body.contains("\"type\":\"not_found_error\"")
    );
    berth.assert_no_failed_allocation();
}

/// Answers end before their model is stopped, as far as its deadline lets them, and who asks meanwhile gets the next one.
#[test]
fn a_switch_lets_answers_end() {
    let drain = "deadlines = { drain = \"4s\" }\n";
    let berth = Berth::builder()
        .model("aeon", &(fake(2, EACH, &["--token-delay", "100ms"]) + drain))
        .model("genesis", &fake(2, EACH, &["--load-time", "500ms"]))
        .boot();
    berth.switch("aeon");
    let pid1 = berth.pid1().unwrap();
    let answer = |model: &'static str, tokens: u32| {
        thread::spawn(move || {
            let body = json!({ "model": model, "prompt": "x", "max_tokens": tokens });
            post(pid1, PROXY_PORT, "/v1/completions", &body, SOON).unwrap()
        })
    };
    let drained = |id: u64| {
        let swap = berth
            .wait_for("the switch ends", SOON, |berth| berth.status().last_swap.filter(|swap| swap.id >= id));
        assert_eq!(swap.outcome, Some(Outcome::Done), "{swap:#?}");
        swap.steps.into_iter().find(|step| step.step == Step::Drained).unwrap()
    };
    let switch = |model: &str| {
        berth.change(&["switch", model, "--no-wait"]).with_code(0).last["accepted"]["swap"].as_u64().unwrap()
    };

    // An answer of 2 s, and one that is asked for while that is waited for.
    let first = answer("default", 20);
    thread::sleep(Duration::from_millis(300));
    let id = switch("genesis");
    berth.wait_for("it is waited for", SOON, |berth| {
        berth.status().swap?.steps.last().filter(|step| step.step == Step::Drained).map(|_| ())
    });
    let second = answer("default", 1);
    assert_eq!(answered_by(&first.join().unwrap()), "aeon");
    assert_eq!(answered_by(&second.join().unwrap()), "genesis");
    let step = drained(id);
    assert!(step.state == StepState::Done && (500..3500).contains(&step.elapsed_ms), "{step:?}");

    // Nothing is under way: nothing is waited for.
    let step = drained(switch("aeon"));
    assert_eq!((step.state, step.elapsed_ms), (StepState::Skipped, 0));

    // One without an end is cut off at the deadline; who asks for its model by name waits and is told in the end.
    let endless = Streamed::of(pid1, PROXY_PORT, "aeon").unwrap();
    endless.goes_on().unwrap();
    let began = Instant::now();
    let id = switch("genesis");
    berth.wait_for("it is waited for", SOON, |berth| {
        berth.status().swap?.steps.last().filter(|step| step.step == Step::Drained).map(|_| ())
    });
    let third = answer("aeon", 1);
    thread::sleep(Duration::from_secs(2));
    endless.goes_on().unwrap();
    let step = drained(id);
    assert!(began.elapsed() >= Duration::from_secs(4));
    assert!(step.detail.contains("1 answer still under way after 4."), "{step:?}");
    assert_eq!(error(&third.join().unwrap()).1, "no_room");
    berth.assert_no_failed_allocation();
}

/// No connection is refused while berthd is away. Where it is killed, answers that were under way are cut off, each seen as
/// that; told to end, it lets them end first, within its deadline.
#[test]
fn clients_connect_while_berthd_restarts() {
    let main = "[deadlines]\ndrain = \"3s\"\n";
    let berth = Berth::builder().main(main).fake("aeon", EACH, &["--token-delay", "20ms"]).boot();
    berth.switch("aeon");
    let pid1 = berth.pid1().unwrap();
    let run = berth.run_of("aeon");
    for round in 0..3 {
        let streams: Vec<_> = (0..32).map(|_| Streamed::of(pid1, PROXY_PORT, "default").unwrap()).collect();
        for stream in &streams {
            stream.goes_on().unwrap();
        }
        _ = berth.systemctl(&["kill", "--signal=KILL", "berthd.service"]).with_code(0);
        let asked: Vec<_> = (0..32)
            .map(|_| {
                thread::spawn(move || {
                    let body = json!({ "model": "default", "prompt": "x", "max_tokens": 1 });
                    post(pid1, PROXY_PORT, "/v1/completions", &body, SOON)
                })
            })
            .collect();
        for answer in asked {
            let answer = answer.join().unwrap().unwrap();
            assert_eq!(answered_by(&answer), "aeon", "round {round}");
        }
        for stream in streams {
            let end = stream.goes_on().and_then(|()| stream.goes_on()).unwrap_err().to_string();
            assert!(end.contains("ended after") || end.contains("cut after"), "round {round}: {end}");
        }
        assert_eq!(berth.run_of("aeon"), run, "round {round}");
    }

    let ask = |tokens: u32| {
        let body = json!({ "model": "default", "prompt": "x", "max_tokens": tokens, "stream": true });
        thread::spawn(move || post(pid1, PROXY_PORT, "/v1/completions", &body, SOON).unwrap())
    };
    let whole = |answer: &Answer| answer.body.trim_end().ends_with("data: [DONE]");
    // Who says nothing is waited for no longer than a moment.
    let silent = connect(pid1, PROXY_PORT, SOON).unwrap();
    let answers: Vec<_> = (0..32).map(|_| ask(100)).collect();
    thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    berth.restart_berthd();
    assert!(began.elapsed() > Duration::from_secs(1), "it did not wait");
    for answer in answers {
        let answer = answer.join().unwrap();
        assert!(whole(&answer), "cut off: {}", answer.body);
    }
    drop(silent);
    let stream = Streamed::of(pid1, PROXY_PORT, "default").unwrap();
    let (began, late) = (Instant::now(), ask(1));
    assert!(whole(&late.join().unwrap()));
    berth.restart_berthd();
    assert!((3..6).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let end = stream.goes_on().and_then(|()| stream.goes_on()).unwrap_err().to_string();
    assert!(end.contains("ended after") || end.contains("cut after"), "{end}");
    assert_eq!(berth.run_of("aeon"), run);
}

/// An address of a network that comes up later.
#[test]
fn an_address_may_appear_later() {
    let main = "[proxy]\nlisten = [\"127.0.0.1:8010\", \"10.99.0.1:8010\", \"[fd00:99::1]:8010\"]\n";
    let berth = Berth::builder().main(main).fake("aeon", EACH, &[]).boot();
    let asks = |address: &str| {
        let script = format!(
            "import urllib.request as r; print(r.urlopen('http://{address}/v1/models', timeout=5).status)"
        );
        berth.run(None, &["python3", "-c", &script])
    };
    assert_eq!(asks("127.0.0.1:8010").with_code(0).stdout.trim(), "200");
    for (address, network) in [("10.99.0.1:8010", "10.99.0.1/32"), ("[fd00:99::1]:8010", "fd00:99::1/128")] {
        assert_eq!(asks(address).code, 1, "{address} is there already");
        _ = berth.run(None, &["ip", "addr", "add", network, "dev", "lo"]).with_code(0);
        assert_eq!(asks(address).with_code(0).stdout.trim(), "200");
    }
    assert!(berth.status().problems.is_empty());
}

/// The libraries that clients use, against the real server behind the proxy.
#[test]
fn the_usual_clients_are_served() {
    let template = "/etc/berth/chat.jinja";
    let gemma = real_command("2000MiB");
    let gemma = format!("{gemma} --jinja --chat-template-file {template} --embeddings --pooling mean");
    let berth = Berth::builder()
        .assets()
        .model("gemma", &declaration(&gemma, 1, "2000MiB"))
        .model("absent", &(fake(2, EACH, &[]) + "on_demand = \"never\"\n"))
        .boot();
    // The weights' own template knows no tools.
    berth.configure("chat.jinja", include_bytes!("../../clients/chat.jinja"));
    berth.switch("gemma");
    for (script, checks) in [
        (include_str!("../../clients/openai_client.py"), 6),
        (include_str!("../../clients/litellm_client.py"), 3),
    ] {
        let path = format!("PYTHONPATH={GUEST_ASSETS}/clients");
        let argv = ["env", &path, "LITELLM_LOCAL_MODEL_COST_MAP=True", "python3", "-c", script];
        let output = berth.run_within(Duration::from_mins(3), None, &argv).with_code(0);
        assert_eq!(output.stdout.lines().count(), checks, "{output}");
    }
    // What the real server says of its answers is understood.
    let status = berth.status();
    let gemma = &status.models.iter().find(|model| model.name.as_str() == "gemma").unwrap().requests;
    assert!(gemma.tokens_per_second.is_some() && gemma.first_token_ms.is_some(), "{gemma:?}");
    assert!(gemma.prompt_tokens > 0 && gemma.completion_tokens > 0, "{gemma:?}");
}

/// Two readers of the same bytes must see the same requests (RFC 9112, 11.2), and nobody may hold the proxy up.
#[test]
fn what_could_be_read_in_two_ways_is_not_passed_on() {
    let small = "[proxy]\nbody = \"1 MiB\"\nidle = \"2s\"\n";
    let berth = Berth::builder().main(small).fake("aeon", EACH, &[]).boot();
    berth.switch("aeon");
    let body = r#"{"model":"aeon","prompt":"x","max_tokens":1}"#;
    let length = body.len();
    let hidden = "GET /upstream/aeon/health HTTP/1.1\r\nHost: x\r\n\r\n";
    let post = |headers: &str, body: &str| {
        format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n{body}")
    };
    let answers = |request: &str| {
        let answer = berth.says(request);
        assert!(!answer.body.contains("HTTP/1."), "two answers to one request: {answer:?}");
        answer.status
    };
    let chunked = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
    // Sound ones.
    assert_eq!(answers(&post(&format!("Content-Length: {length}\r\n"), body)), 200);
    assert_eq!(answers(&post("Transfer-Encoding: chunked\r\n", &chunked)), 200);
    // What is chunked ends with its chunks, whatever length is given too; what follows is no request of anybody's.
    let both = post(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), &chunked);
    assert!([200, 400].contains(&answers(&both)));
    let both = post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", &(chunked.clone() + hidden));
    assert!([200, 400].contains(&answers(&both)));
    for wrong in [
        post(&format!("Content-Length: {length}\r\nContent-Length: 0\r\n"), body),
        post("Content-Length: +5\r\n", body),
        post("Content-Length: 5, 6\r\n", body),
        post("Content-Length: -1\r\n", body),
        post("Transfer-Encoding: chunked, identity\r\n", &chunked),
        post("Transfer-Encoding: xchunked\r\n", &chunked),
        post("Transfer-Encoding: chunked\r\n", &format!("{length:x};x=\n\r\n{body}\r\n0\r\n\r\n")),
        post("Transfer-Encoding : chunked\r\n", &chunked),
        post("X: y\r\n folded: z\r\nContent-Length: 0\r\n", ""),
        "POST /v1/completions HTTP/1.1\nContent-Length: 0\r\n\0\r\n\r\n".to_owned(),
        format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000)),
    ] {
        let status = answers(&wrong);
        assert!((400..500).contains(&status), "{status} for {:?}", &wrong[..wrong.len().min(200)]);
    }
    // A longer body than allowed, told beforehand or not.
    let long = "x".repeat(2 << 20);
    let told = post(&format!("Content-Length: {}\r\n", long.len()), "");
    let (status, code, text) = error(&berth.says(&told));
    assert_eq!((status, code.as_str()), (413, "body_too_large"), "{text}");
    let json = format!("{{\"model\":\"aeon\",\"prompt\":\"{long}\"}}");
    let untold = post("Transfer-Encoding: chunked\r\n", &format!("{:x}\r\n{json}\r\n0\r\n\r\n", json.len()));
    assert_eq!(error(&berth.says(&untold)).1, "body_too_large");
    // A body that stops coming, before its model is known and after.
    for half in ["{\"mod", "{\"model\":\"aeon\","] {
        let (status, code, text) = error(&berth.says(&post("Content-Length: 100\r\n", half)));
        assert_eq!((status, code.as_str()), (408, "body_too_slow"), "{text}");
    }
    assert_eq!(answered_by(&berth.completes("aeon")), "aeon");
}

/// A client that hangs up ends the work for it.
#[test]
fn a_client_that_hangs_up_stops_the_generation() {
    let berth = Berth::builder().fake("aeon", EACH, &["--token-delay", "20ms"]).boot();
    berth.switch("aeon");
    let pid1 = berth.pid1().unwrap();
    let stream = Streamed::of(pid1, PROXY_PORT, "aeon").unwrap();
    stream.goes_on().unwrap();
    drop(stream);
    // Nothing is under way any more, so that nothing is waited for.
    thread::sleep(Duration::from_millis(300));
    let stopped = berth.change(&["stop", "aeon"]).with_code(0);
    let drained = stopped.swap().steps.iter().find(|step| step.step == Step::Drained).unwrap();
    assert_eq!(drained.state, StepState::Skipped, "{drained:?}");
}

/// Another program has the proxy's port, as an old proxy does: models serve all the same, and it is said.
#[test]
fn a_port_that_somebody_else_has_is_waited_for() {
    let at = |port: u16| format!("[proxy]\nlisten = [\"127.0.0.1:{port}\"]\n");
    let berth = Berth::builder().main(&at(8077)).fake("aeon", EACH, &[]).boot();
    let other = ["systemd-run", "--quiet", "--collect", "--unit=other", "/usr/bin/fakellm", "--port", "8078"];
    _ = berth.run(None, &other).with_code(0);
    berth.wait_for("the other listens", SOON, |berth| berth.try_ask(8078, "x").ok());
    berth.configure("berth.toml", at(8078).as_bytes());
    berth.restart_berthd();
    berth.switch("aeon");
    let problem = berth.wait_for("it is said", SOON, |berth| {
        berth.status().problems.into_iter().find(|problem| problem.code == "proxy_unheard")
    });
    let text = "clients can't reach models at 127.0.0.1:8078: Address already in use";
    assert!(problem.text.starts_with(text), "{problem:?}");
    _ = berth.systemctl(&["stop", "other.service"]).with_code(0);
    let body = json!({ "model": "default", "prompt": "x", "max_tokens": 1 });
    let ask = |berth: &Berth, port| post(berth.pid1().unwrap(), port, "/v1/completions", &body, SOON);
    let answer = berth.wait_for("it listens", SOON, |berth| ask(berth, 8078).ok());
    assert_eq!(answered_by(&answer), "aeon");
    berth.wait_for("all is well", SOON, |berth| berth.status().problems.is_empty().then_some(()));
    assert!(ask(&berth, 8077).is_err(), "the old address is still listened at");
}

/// What a model's declaration changes about requests, and the name that its server takes.
#[test]
fn requests_are_changed_as_declared() {
    let changes = "known_as = \"inner\"\nready = { generate = false }\n[request]\ndefault = { max_tokens = 3, temperature = 0.5 }\n\
                   set = { top_k = 7 }\nstrip = [\"logit_bias\"]\n";
    let berth = Berth::builder().model("aeon", &(fake(2, EACH, &["--echo"]) + changes)).boot();
    berth.switch("aeon");
    let body = r#"{ "logit_bias": {"1": 2}, "prompt":"x",  "temperature": 1, "model" : "aeon", "top_k": 1 }"#;
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = berth.says(&request);
    assert_eq!(answered_by(&answer), "aeon");
    let said: Value = serde_json::from_str(&answer.body).unwrap();
    let wanted = r#"{ "prompt":"x",  "temperature": 1, "model" : "inner", "top_k": 7,"max_tokens":3 }"#;
    assert_eq!(said["request"], wanted);
}

/// Another protocol, as WebSockets are, goes both ways until one end has enough.
#[test]
fn another_protocol_is_passed_on() {
    let declared =
        "cmd = \"python3 /etc/berth/upgrade_server.py\"\nbackend = \"command\"\n[memory]\ngpu = \"1 GiB\"\n";
    let berth = Berth::builder().model("mirror", declared).boot();
    berth.configure("upgrade_server.py", include_bytes!("../../clients/upgrade_server.py"));
    berth.switch("mirror");
    let request =
        "GET /upstream/mirror/any HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: mirror\r\n\r\n";
    let pid1 = berth.pid1().unwrap();
    let mut stream = connect(pid1, PROXY_PORT, SOON).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = Vec::new();
    for line in reader.by_ref().lines() {
        match line.unwrap() {
            line if line.is_empty() => break,
            line => head.push(line.to_ascii_lowercase()),
        }
    }
    assert!(head[0].starts_with("http/1.1 101"), "{head:?}");
    assert!(head.contains(&"upgrade: mirror".to_owned()), "{head:?}");
    for said in ["one", "another"] {
        stream.write_all(said.as_bytes()).unwrap();
        let mut heard = vec![0; said.len()];
        reader.read_exact(&mut heard).unwrap();
        assert_eq!(heard, said.as_bytes());
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    // It counts while it lasts, and no longer.
    let stopped = berth.change(&["stop", "mirror"]).with_code(0);
    let drained = stopped.swap().steps.iter().find(|step| step.step == Step::Drained).unwrap();
    assert_eq!(drained.state, StepState::Skipped, "{drained:?}");
}

/// Who has a key is answered, for what it opens.
#[test]
fn keys_open_what_they_name() {
    let (frank, agent) = (KeyHash::of(b"key-of-frank"), KeyHash::of(b"key-of-agent"));
    let keys = format!(
        "[proxy.keys.frank]\nsha256 = \"{frank}\"\n[proxy.keys.agent]\nsha256 = \"{agent}\"\nmodels = [\"lone\"]\n"
    );
    let berth = Berth::builder().main(&keys).fake("aeon", EACH, &[]).fake("lone", EACH, &[]).boot();
    berth.switch("aeon");
    let get = |path: &str, header: &str| berth.says(&format!("GET {path} HTTP/1.0\r\n{header}\r\n"));
    let (status, code, text) = error(&berth.completes("aeon"));
    assert_eq!((status, code.as_str()), (401, "missing_api_key"), "{text}");
    assert_eq!(error(&get("/v1/models", "Authorization: Bearer no\r\n")).1, "invalid_api_key");
    assert_eq!(answered_by(&get("/upstream/aeon/health", "Authorization: Bearer key-of-frank\r\n")), "aeon");
    assert_eq!(answered_by(&get("/upstream/aeon/health", "x-api-key: key-of-frank\r\n")), "aeon");
    let agent = "Authorization: Bearer key-of-agent\r\n";
    let (status, code, text) = error(&get("/upstream/aeon/health", agent));
    assert_eq!((status, code.as_str()), (403, "model_not_allowed"), "{text}");
    assert_eq!(error(&get("/upstream/lone/health", agent)).1, "no_room");
    // It learns of no others either.
    for path in ["/v1/models/nobody", "/v1/models/aeon", "/upstream/nobody/x"] {
        let (status, code, text) = error(&get(path, agent));
        assert_eq!((status, code.as_str()), (403, "model_not_allowed"), "{path}");
        assert_eq!(text, "the key of agent may ask for: lone");
    }
    let models: Value = serde_json::from_str(&get("/v1/models", agent).body).unwrap();
    assert_eq!(models["data"].as_array().unwrap().len(), 1, "{models}");
    for secret in ["key-of-frank", "key-of-agent", "Bearer no"] {
        assert!(!berth.journal("berthd.service").contains(secret));
    }
}
