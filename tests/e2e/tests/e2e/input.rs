//! Bad input: a clear error each, and nothing changed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use berth_core::report::ApiProblem;
use berth_tests::{Answer, Berth, fake};
use serde_json::Value;

const EACH: &str = "6000MiB";

/// A file that is wrong: which, what is in it, and what has to be said of it.
struct Bad {
    path: &'static str,
    text: &'static str,
    said: &'static [&'static str],
}

const BAD: &[Bad] = &[
    Bad {
        path: "berth.toml",
        text: "",
        said: &["berth.toml:1:1", "the file is empty", "restore its content, or remove the file"],
    },
    Bad {
        path: "berth.toml",
        text: "node = \"tower\"\n[deadlines]\nrelese = \"12s\"\n",
        said: &["berth.toml:3:1", "relese", "did you mean `release`?"],
    },
    Bad {
        path: "models.d/new.toml",
        text: "",
        said: &["models.d/new.toml:1:1", "the file declares nothing", "cmd = "],
    },
    Bad {
        path: "models.d/new.toml",
        text: "cmd = \"/usr/bin/fakellm\"\nprot = 8022\n",
        said: &["models.d/new.toml:2:1", "prot", "did you mean `port`?"],
    },
    Bad {
        path: "models.d/new.toml",
        text: "cmd = \"/usr/bin/fakellm\"\nport = \"many\"\n",
        said: &["models.d/new.toml:2:8", "port number, for example 8022"],
    },
    Bad {
        path: "models.d/new.toml",
        text: "cmd = \"/usr/bin/fakellm\nport = 8022\n",
        said: &["models.d/new.toml:1:"],
    },
    Bad {
        path: "models.d/new.toml",
        text: "name = \"aeon\"\ncmd = \"/usr/bin/fakellm\"\n",
        said: &["models.d/new.toml:1:8", "two models are called `aeon`", "models.d/aeon.toml"],
    },
    Bad {
        path: "models.d/new.toml",
        text: "cmd = \"/usr/bin/fakellm --port 8150\"\n",
        said: &["models.d/new.toml:1:7", "two models have port 8150", "models.d/genesis.toml", "shares_port"],
    },
    Bad {
        path: "models.d/new.toml",
        text: "cmd = \"/usr/bin/fakellm\"\nname = \"../../etc/passwd\"\n",
        said: &["models.d/new.toml:2:8", "is not a name for a model", "letters, digits"],
    },
    Bad {
        path: "models.d/new.toml",
        text: "cmd = \"/usr/bin/fakellm\"\nname = \"qwen3:32b\"\n",
        said: &["models.d/new.toml:2:8", "can't be a model's own name", "[variants."],
    },
    Bad {
        path: "models.d/new one.toml",
        text: "cmd = \"/usr/bin/fakellm\"\n",
        said: &["models.d/new one.toml:1:1", "new one", "is not a name for a model"],
    },
    Bad {
        path: "models.d/new.toml",
        text: "cmd = \"/usr/bin/fakellm\"\nmodel = \"/models/a\\u0000b.gguf\"\n",
        said: &["models.d/new.toml:2:9", "NUL"],
    },
    Bad {
        path: "models.d/new.toml",
        text: "cmd = \"/usr/bin/fakellm\"\nport = 8022\nport = 8023\nprot = 1\n",
        said: &["models.d/new.toml:3:1", "duplicate key"],
    },
];

/// A configuration that is wrong: `berthctl check` says what, where and what was meant; a berthd started with it
/// does not come up and says the same in the journal. What serves goes on, and once the file is mended the next
/// berthd takes it over as it is.
#[test]
fn a_bad_configuration_stops_nothing() {
    let fixed_port = fake(2, EACH, &[]) + "port = 8150\n";
    let berth = Berth::builder().fake("aeon", EACH, &[]).model("genesis", &fixed_port).boot();
    berth.switch("aeon");
    let aeon = berth.run_of("aeon");
    let good = berth.run(None, &["cat", "/etc/berth/berth.toml"]).with_code(0).stdout;
    _ = berth.ctl(&["check"]).with_code(0);

    for Bad { path, text, said } in BAD {
        berth.configure(path, text.as_bytes());
        let check = berth.ctl(&["check"]).with_code(2);
        for part in *said {
            assert!(check.stderr.contains(part), "{text:?}: {part:?} is not in: {check}");
        }
        let document: Value =
            serde_json::from_str(&berth.ctl(&["check", "--json"]).with_code(2).stdout).unwrap();
        assert_eq!((&document["valid"], &document["exit"]), (&Value::from(false), &Value::from(2)));
        // The marker tells this berthd's words from those of the ones before.
        let marker = berth.run(None, &["date", "+%s.%N"]).stdout;
        assert_ne!(berth.systemctl(&["restart", "berthd.service"]).code, 0, "{text:?}");
        let since = format!("--since=@{}", marker.trim());
        let argv = ["journalctl", "--no-pager", "--output=cat", "--unit=berthd.service", &since];
        let journal = berth.run(None, &argv).with_code(0).stdout;
        assert!(journal.contains("the configuration is not valid"), "{text:?}: {journal}");
        for part in *said {
            assert!(journal.contains(part), "{text:?}: {part:?} is not in the journal: {journal}");
        }
        // It would say the same again and again.
        assert_eq!(berth.property("berthd.service", "ActiveState"), "failed", "{text:?}");
        assert_eq!(berth.run_of("aeon"), aeon, "{text:?}");
        if *path == "berth.toml" { berth.configure(path, good.as_bytes()) } else { berth.unconfigure(path) }
    }
    assert!(!berth.try_ask(8100, "x").unwrap().is_empty());
    _ = berth.ctl(&["status"]).with_code(6);

    berth.restart_berthd();
    assert_eq!((berth.run_of("aeon"), berth.serving()), (aeon, vec!["aeon".to_owned()]));
    assert_eq!(berth.status().problems, []);
    berth.switch("genesis");
    assert!(!berth.ask("genesis").is_empty());
    assert_eq!(berth.stats().failed, 0);
}

/// A name that units have to escape is a name like any other.
#[test]
fn names_are_escaped_as_systemd_does() {
    let berth = Berth::builder().fake("qwen3-32b_v1.5", EACH, &[]).boot();
    berth.switch("qwen3-32b_v1.5");
    let escaped = berth.run(None, &["systemd-escape", "qwen3-32b_v1.5"]).with_code(0).stdout;
    let unit = format!("berth-model@{}.service", escaped.trim());
    assert_eq!(berth.property(&unit, "ActiveState"), "active", "{unit}");
    assert!(!berth.ask("qwen3-32b_v1.5").is_empty());
    _ = berth.ctl(&["stop", "qwen3-32b_v1.5"]).with_code(0);
    assert_eq!(berth.property(&unit, "ActiveState"), "inactive");
}

/// Sends these bytes to the control socket, as root from outside of the guest.
fn send(berth: &Berth, request: &[u8]) -> (Answer, String) {
    let path = berth.sandbox().root().join("run/berth/berth.sock");
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // One who is refused early need not read all.
    _ = stream.write_all(request);
    let mut answer = Vec::new();
    _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (Answer { status, head: String::new(), body: body.to_owned() }, head.to_ascii_lowercase())
}

fn http(method: &str, path: &str, kind: &str, body: &str) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: berth\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// What is no request of the API gets a 4xx with a reason, and harms nobody.
#[test]
fn requests_that_make_no_sense() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).boot();
    berth.switch("aeon");
    let (aeon, berthd) = (berth.run_of("aeon"), berth.property("berthd.service", "MainPID"));
    let json = "application/json";
    let huge = format!(r#"{{"verb":"switch","model":"{}"}}"#, "a".repeat(8 << 20));
    let long = format!(r#"{{"verb":"switch","model":"{}"}}"#, "a".repeat(1 << 15));
    let deep = format!(r#"{{"verb":"switch","model":{}}}"#, "[".repeat(50_000));
    let swaps = "/api/v1/swaps";
    for (method, path, kind, body, status) in [
        ("POST", swaps, json, "", 400),
        ("POST", swaps, json, "{", 400),
        ("POST", swaps, json, "\u{0}\u{1}", 400),
        ("POST", swaps, json, "[1, 2]", 400),
        ("POST", swaps, json, r#"{"verb":"explode","model":"aeon"}"#, 422),
        ("POST", swaps, json, r#"{"verb":"stop_all","force":true}"#, 422),
        ("POST", swaps, json, r#"{"verb":"switch"}"#, 409),
        ("POST", swaps, json, r#"{"verb":"stop_all","model":"aeon"}"#, 409),
        ("POST", swaps, json, r#"{"verb":"restore"}"#, 409),
        ("POST", swaps, json, r#"{"verb":"switch","model":7}"#, 422),
        ("POST", swaps, json, r#"{"verb":"switch","model":""}"#, 409),
        ("POST", swaps, json, r#"{"verb":"switch","model":"a\u0000\u001b[31m/../b"}"#, 409),
        ("POST", swaps, "text/plain", r#"{"verb":"stop_all"}"#, 415),
        ("POST", swaps, json, &long, 400),
        ("POST", swaps, json, &huge, 413),
        ("POST", swaps, json, &deep, 422),
        ("POST", "/api/v1/plan", json, "{", 400),
        ("GET", swaps, json, "", 405),
        ("GET", "/api/v1/plan", json, "", 405),
        ("POST", "/api/v1/status", json, "{}", 405),
        ("DELETE", "/api/v1/swaps/1", json, "", 409),
        ("DELETE", "/api/v1/swaps/999999", json, "", 404),
        ("DELETE", "/api/v1/swaps/-1", json, "", 400),
        ("GET", "/nowhere", json, "", 404),
        ("GET", "/api/v2/status", json, "", 404),
        ("GET", "/api/v1/swaps/999999", json, "", 404),
        ("GET", "/api/v1/swaps/one", json, "", 400),
        ("GET", "/api/v1/events?after=x", json, "", 400),
        ("GET", "/api/v1/events?since=1", json, "", 400),
        ("GET", "/api/v1/models/aeon/logs?lines=-1", json, "", 400),
        ("GET", "/api/v1/models/nobody/logs", json, "", 404),
        ("GET", "/api/v1/models/%00%2f..%2f/logs", json, "", 404),
        ("GET", "/api/v1/models/%ff/logs", json, "", 400),
    ] {
        let what = format!("{method} {path} {}", body.chars().take(60).collect::<String>());
        let (answer, head) = send(&berth, &http(method, path, kind, body));
        assert_eq!(answer.status, status, "{what}: {}", answer.body.chars().take(500).collect::<String>());
        assert!(head.contains("application/problem+json"), "{what}: {head}\n{}", answer.body);
        let problem: ApiProblem =
            serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(problem.status, status, "{what}");
        assert!(!problem.title.is_empty() && !problem.code.is_empty(), "{what}: {problem:?}");
        assert!(problem.title.len() < 2000, "{what}: the reason repeats all of the request");
    }
    let (answer, _) = send(&berth, b"no HTTP at all\r\n\r\n");
    assert_eq!(answer.status, 400);

    assert_eq!(berth.property("berthd.service", "MainPID"), berthd);
    assert_eq!(berth.run_of("aeon"), aeon);
    assert_eq!(berth.status().last_swap.unwrap().id, 1);
    assert!(!berth.ask("aeon").is_empty());
}

/// What can be known beforehand is refused before anything is stopped (S5 and the main job): a model that is
/// unknown, retired, lacks its program or file, whose port someone else has, or that does not fit.
#[test]
fn refusals_stop_nothing() {
    let file = |text: &str| format!("{text}backend = \"llama.cpp\"\nmemory = {{ gpu = \"6 GiB\" }}\n");
    let berth = Berth::builder()
        .fake("aeon", EACH, &[])
        .model("gone", &(fake(2, EACH, &[]) + "retired = true\n"))
        .model("no-program", &file("cmd = \"/opt/llama/llama-server\"\n"))
        .model("no-file", &file("cmd = \"/usr/bin/fakellm -m /models/qwen.gguf\"\n"))
        .model("port", &(fake(2, EACH, &[]) + "port = 8177\n"))
        .fake("huge", "15800MiB", &[])
        .boot();
    berth.switch("aeon");
    let aeon = berth.run_of("aeon");
    let mut foreign = berth.sandbox().command(None, &["/usr/bin/fakellm", "--port", "8177"]).unwrap();
    let mut foreign = foreign.stderr(std::process::Stdio::null()).spawn().unwrap();
    berth.wait_for("the foreign server answers", Duration::from_secs(10), |berth| {
        berth.try_ask(8177, "x").ok()
    });

    for (model, code, said) in [
        (
            "aeom",
            "unknown_model",
            &["no model is called `aeom`", "did you mean `aeon`?", "berthctl switch aeon"][..],
        ),
        ("xxxxxxxxxx", "unknown_model", &["there are aeon, gone, huge"]),
        ("gone", "retired", &["gone is retired", "models.d/gone.toml"]),
        (
            "no-program",
            "file_missing",
            &["/opt/llama/llama-server", "does not exist", "models.d/no-program.toml"],
        ),
        ("no-file", "file_missing", &["/models/qwen.gguf", "does not exist"]),
        ("port", "port_taken", &["8177", "ss -ltnp"]),
        ("huge", "does_not_fit", &["short on GPU 0", "short on GPU 1", "15.4 GiB"]),
    ] {
        let change = berth.change(&["switch", model]).with_code(3);
        let problem = &change.last["problem"];
        assert_eq!(problem["code"], code, "{problem:#}");
        let text = format!("{} {}", problem["title"], problem["hints"]);
        for part in said {
            assert!(text.contains(part), "{model}: `{part}` is not in: {problem:#}");
        }
        assert!(!problem["title"].as_str().unwrap().contains('\n'), "one sentence: {problem:#}");
        let text = berth.ctl(&["switch", model]).with_code(3);
        assert!(text.stderr.contains("REFUSED") && text.stdout.is_empty(), "{text}");
        _ = berth.ctl(&["plan", "switch", model]).with_code(3);
        assert_eq!(berth.run_of("aeon"), aeon, "{model}");
    }
    // S5: by how much, on which GPU, and what would help.
    let huge = berth.ctl(&["switch", "huge"]).with_code(3);
    for part in ["short on GPU 0", "short on GPU 1", "15.4", "15.3", "Try:"] {
        assert!(huge.stderr.contains(part), "`{part}` is not in: {huge}");
    }
    assert!(berth.status().swap.is_none() && berth.stats().releases.is_empty());
    assert!(!berth.ask("aeon").is_empty());
    sandbox::signal(&foreign, nix::sys::signal::Signal::SIGKILL).unwrap();
    foreign.wait().unwrap();
    berth.switch("port");
    assert_eq!(berth.stats().failed, 0);
}
