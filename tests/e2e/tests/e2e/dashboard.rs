//! The dashboard in a real browser. `make deps` installs Chromium; Node and the page itself are there where `make stage` found
//! Node 20.19 or newer.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use berth_core::config::PROXY_PORT;
use berth_tests::{Berth, declaration, fake, post};
use serde_json::{Value, json};

const EACH: &str = "13600MiB";
const SOON: Duration = Duration::from_secs(30);
/// All of it; what the script itself waits for has shorter deadlines.
const LONG: Duration = Duration::from_secs(150);

/// One story in one browser: what is seen, a refusal, a switch by the keyboard that is followed to its end, its log, a lost
/// GPU, a lost connection, dark, narrow, and without a script. What the script asks for is done here.
#[test]
fn a_browser_shows_and_switches() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let driver = root.join("dashboard");
    assert!(
        driver.join("node_modules/playwright-core").exists() && driver.join("dist/index.html").exists(),
        "the dashboard is not built: this test needs Node 20.19 or newer, then `make stage`"
    );
    let short =
        declaration("/usr/bin/fakellm --vram-each 12000MiB --load-time 2s --oom-after 300ms", 2, "12000MiB");
    let berth = Berth::builder()
        .main("node = \"tower\"\n[gpu]\nsound = \"1s\"\n[deadlines]\nstop = \"3s\"\nrelease = \"12s\"\nstart = \"10s\"\n")
        .model("genesis", &(fake(2, "14300MiB", &["--load-time", "3s"]) + "aliases = [\"production\"]\n"))
        .fake("aeon", EACH, &["--load-time", "1s", "--token-delay", "14ms"])
        .model("embedder", &declaration("/usr/bin/fakellm --vram 0=600MiB", 1, "600MiB"))
        .fake("llama70b", "16900MiB", &[])
        .model("qwen32b", &short)
        .boot();
    berth.gpu(&["foreign", "Xorg", "--bytes", "420MiB", "--device", "0"]);
    berth.gpu(&["foreign", "<img src=x>", "--bytes", "200MiB", "--device", "1"]);
    berth.gpu(&["linger", "2500ms"]);
    // Times of both, so that something is expected.
    berth.switch("genesis");
    berth.switch("aeon");
    _ = berth.change(&["switch", "qwen32b"]).with_code(4);
    for model in ["aeon", "default"] {
        // As a stream that says how many tokens it had: so its speed is known.
        let counted = json!({ "include_usage": true });
        let body = json!({ "model": model, "prompt": "x", "max_tokens": 24, "stream": true, "stream_options": counted });
        let answer = post(berth.pid1().unwrap(), PROXY_PORT, "/v1/completions", &body, SOON).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    let signed_in = berth.ctl_as("frank", &["dashboard", "--json"]).with_code(0).stdout;
    let signed_in: Value = serde_json::from_str(&signed_in).unwrap();
    let login = signed_in["url"].as_str().unwrap();
    // In the guest's network, with the host's files.
    let mut script = Command::new("nsenter")
        .arg(format!("--net=/proc/{}/ns/net", berth.pid1().unwrap()))
        .arg("node")
        .arg(root.join("tests/e2e/clients/dashboard.mjs"))
        .args([login.as_ref(), root.join("target/dashboard").as_os_str(), driver.as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = script.stdin.take().unwrap();
    let said = BufReader::new(script.stdout.take().unwrap());
    let (tell, lines) = mpsc::channel();
    std::thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));

    let began = Instant::now();
    let mut all = String::new();
    while let Ok(line) = lines.recv_timeout(LONG.saturating_sub(began.elapsed())) {
        match line.strip_prefix("do: ") {
            Some(what) => {
                outside(&berth, what);
                writeln!(answers, "done").unwrap();
            }
            None => all += &(line + "\n"),
        }
    }
    script.kill().unwrap();
    script.wait().unwrap();
    assert!(all.ends_with("passed\n"), "{all}");
    berth.assert_no_failed_allocation();
}

/// What the page can't do.
fn outside(berth: &Berth, what: &str) {
    match what.split(' ').collect::<Vec<_>>()[..] {
        ["lose" | "restore", _] => _ = berth.gpu(&what.split(' ').collect::<Vec<_>>()),
        ["stop" | "start", unit] => {
            _ = berth.systemctl(&[what.split(' ').next().unwrap(), unit]).with_code(0);
        }
        ["ask", model] => _ = berth.ask(model),
        _ => panic!("the script asks for `{what}`"),
    }
}
