//! A GPU that misbehaves and answers nevertheless: nothing is placed there, what runs goes on, and it is used again when
//! it has been sound for a while or an operator says so.

use std::time::{Duration, Instant};

use berth_core::bytes::Bytes;
use berth_core::report::{Cleared, GivenUp, ModelState, Outcome, Status, Step};
use berth_tests::{Berth, declaration, step_ms};

const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(20);

/// On one GPU.
fn one(port: u16) -> String {
    declaration(&format!("/usr/bin/fakellm --vram 0={EACH} --port {port}"), 1, EACH)
}

fn suspect(status: &Status) -> Vec<u32> {
    let gpus = status.gpus.value().into_iter().flatten();
    gpus.filter(|gpu| gpu.suspect.is_some()).map(|gpu| gpu.index).collect()
}

fn codes(status: &Status) -> Vec<&str> {
    status.problems.iter().map(|problem| problem.code.as_str()).collect()
}

/// Waits until exactly these GPUs are suspect.
#[track_caller]
fn are_suspect(berth: &Berth, which: &[u32]) -> Status {
    berth.wait_for(&format!("{which:?} are suspect"), SOON, |berth| {
        Some(berth.status()).filter(|status| suspect(status) == which)
    })
}

/// Lets a GPU report an Xid. What it reported before berthd watched for it is not news, so perhaps again.
#[track_caller]
fn report_xid(berth: &Berth, xid: &str, gpu: u32) -> Status {
    let device = gpu.to_string();
    let mut said = None;
    berth.wait_for("the Xid is known", SOON, |berth| {
        if said.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(2)) {
            berth.gpu(&["xid", xid, "--device", &device]);
            said = Some(Instant::now());
        }
        Some(berth.status()).filter(|status| suspect(status).contains(&gpu))
    })
}

#[test]
fn a_suspect_gpu_is_left_alone() {
    let main = "node = \"tower\"\n[gpu]\nsound = \"3s\"\n[deadlines]\nstop = \"3s\"\nrelease = \"12s\"\nstart = \"10s\"\n";
    let berth = Berth::builder()
        .main(main)
        .model("small", &one(8110))
        .model("other", &one(8111))
        .fake("aeon", EACH, &[])
        .fake("genesis", EACH, &[])
        .boot();
    berth.switch("small");
    let small = berth.run_of("small");
    let serves_on = || {
        assert_eq!(berth.run_of("small"), small);
        assert!(!berth.ask("small").is_empty());
    };

    // An Xid of the other card.
    let status = report_xid(&berth, "79", 1);
    let since = Instant::now();
    assert_eq!((suspect(&status), codes(&status)), (vec![1], vec!["gpu_suspect"]));
    let problem = &status.problems[0];
    assert!(problem.text.contains("GPU 1 is suspect") && problem.text.contains("Xid 79"), "{problem:?}");
    assert!(problem.next.contains("berthctl device clear 1"), "{problem:?}");
    let text = berth.ctl(&[]).with_code(0).stdout;
    assert!(text.contains("GPU 1 suspect"), "{text}");
    for verb in [["start", "other"], ["switch", "aeon"]] {
        let refused = berth.change(&verb).with_code(3);
        let problem = &refused.last["problem"];
        assert!(problem["title"].as_str().unwrap().contains("GPU 1 is suspect"), "{problem:#}");
        let hints = problem["hints"].as_array().unwrap();
        assert!(hints.iter().any(|hint| hint == "berthctl device clear 1"), "{problem:#}");
    }
    serves_on();
    // It comes back by itself.
    let status = are_suspect(&berth, &[]);
    assert!(since.elapsed() > Duration::from_millis(1500), "after {:?}", since.elapsed());
    assert_eq!(codes(&status), [""; 0]);
    serves_on();

    // An operator takes it as it is: by its index, by its UUID, and one that is well.
    _ = report_xid(&berth, "48", 0);
    let cleared = berth.ctl_as("frank", &["device", "clear", "0"]).with_code(0).stdout;
    assert!(
        cleared.starts_with("GPU 0 is used again. It was suspect: the driver reported Xid 48"),
        "{cleared}"
    );
    let status = berth.status();
    assert_eq!((suspect(&status), codes(&status)), (vec![], vec![]));
    let id = status.gpus.value().unwrap()[0].id.clone();
    let cleared: Cleared = serde_json::from_value(berth.ctl_json(&["device", "clear", &id])).unwrap();
    assert_eq!((cleared.index, cleared.suspect, cleared.unusable), (0, None, None));
    let refused = berth.change(&["device", "clear", "7"]).with_code(3);
    let title = refused.last["problem"]["title"].as_str().unwrap();
    assert!(title.contains("no GPU is called `7`") && title.contains(&id), "{title}");
    _ = berth.ctl_as("mallory", &["device", "clear", "0"]).with_code(6);
    let journal = berth.journal("berthd.service");
    assert!(journal.contains("asked: device clear 0: it was: the driver reported Xid 48"), "{journal}");
    assert!(journal.contains("audit: frank"), "{journal}");
    // What programs cause is worth a line and no more.
    berth.gpu(&["xid", "31", "--device", "0"]);
    berth.wait_for("the Xid is in the log", SOON, |berth| {
        berth.journal("berthd.service").contains("an Xid that programs cause").then_some(())
    });
    assert_eq!(suspect(&berth.status()), [0; 0]);

    // A reading that jumps below what small is listed with, once: one that is off a little is none.
    berth.gpu(&["jump", "60MiB", "--device", "0"]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(suspect(&berth.status()), [0; 0]);
    berth.gpu(&["jump", "5GiB", "--device", "0"]);
    let status = are_suspect(&berth, &[0]);
    assert!(status.problems[0].text.contains("are used, and its processes are listed with"), "{status:?}");
    serves_on();
    _ = are_suspect(&berth, &[]);
    serves_on();

    // While its memory is awaited: the swap waits until the device is sound again, and goes through.
    berth.switch("aeon");
    berth.gpu(&["linger", "1500ms"]);
    let swap = berth.ctl_spawn(None, &["switch", "genesis", "--json"]);
    berth.wait_for("memory is awaited", SOON, |berth| (berth.run_of("aeon").main_pid == 0).then_some(()));
    _ = report_xid(&berth, "79", 1);
    assert_eq!(berth.run_of("genesis").main_pid, 0);
    let output = swap.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    let last = berth.status().last_swap.unwrap();
    assert!(step_ms(&last, Step::Released).unwrap() >= 3000, "{last:?}");
    berth.gpu(&["linger", "0"]);

    // Readings that stay what they are: too low is a contradiction as soon as a model is there …
    _ = berth.ctl(&["stop", "--all"]).with_code(0);
    berth.gpu(&["stale", "on", "--device", "0"]);
    _ = berth.ctl(&["start", "small"]).with_code(0);
    _ = are_suspect(&berth, &[0]);
    assert_eq!(berth.change(&["switch", "aeon"]).with_code(3).last["problem"]["code"], "gpu_suspect");
    berth.gpu(&["stale", "off", "--device", "0"]);
    _ = are_suspect(&berth, &[]);
    // … and too high is never a proof that the memory is back.
    berth.gpu(&["stale", "on", "--device", "0"]);
    let stopped = berth.change(&["stop", "small"]).with_code(5);
    let reason = stopped.swap().reason.clone().unwrap();
    assert!(reason.contains("GPU 0: 14.0 GiB of small's memory are still held"), "{reason}");
    assert_eq!(stopped.swap().outcome, Some(Outcome::Degraded));
    assert_eq!(berth.state_of("small"), ModelState::Stopping);
    berth.gpu(&["stale", "off", "--device", "0"]);
    berth.wait_for("it is proved late", SOON, |berth| {
        (berth.state_of("small") == ModelState::Off).then_some(())
    });
    assert_eq!(berth.stats().failed, 0);
}

/// Memory that never comes back: an operator gives it up where nobody can be named for it, and only there. It counts
/// as foreign use from then on.
#[test]
fn memory_is_given_up_as_an_operator_says() {
    let main = "node = \"tower\"\n[deadlines]\nstop = \"3s\"\nrelease = \"1s\"\nstart = \"10s\"\n";
    let berth = Berth::builder().main(main).model("small", &one(8110)).model("other", &one(8111)).boot();
    berth.switch("small");
    berth.gpu(&["linger", "60m"]);
    berth.gpu(&["linger-listed", "on"]);
    let clear = || -> Cleared { serde_json::from_value(berth.ctl_json(&["device", "clear", "0"])).unwrap() };
    let cleared = clear();
    assert_eq!((cleared.given_up, cleared.kept), (vec![], vec![]), "of what serves nothing is given up");
    _ = berth.change(&["stop", "small"]).with_code(5);
    let cleared = clear();
    assert_eq!(cleared.given_up, []);
    assert!(cleared.kept[0].contains("14.0 GiB of small's memory are still held: pid "), "{cleared:?}");
    assert_eq!(berth.state_of("small"), ModelState::Stopping);

    berth.gpu(&["linger-listed", "off"]);
    let status = berth.wait_for("nobody is listed", SOON, |berth| {
        Some(berth.status()).filter(|status| status.problems.iter().any(|p| p.text.contains("are gone")))
    });
    assert!(status.problems[0].next.contains("berthctl device clear 0"), "{status:?}");
    let refused = berth.change(&["start", "small"]).with_code(3);
    assert_eq!(refused.last["problem"]["code"], "memory_held", "{:#}", refused.last);
    let cleared = clear();
    let given_up = GivenUp { model: "small".parse().unwrap(), bytes: Bytes::mib(14_300) };
    assert_eq!((cleared.given_up, cleared.kept), (vec![given_up], vec![]));
    let status = berth.status();
    assert_eq!((berth.state_of("small"), codes(&status)), (ModelState::Off, vec![]));
    let foreign: Vec<u64> =
        status.gpus.value().unwrap().iter().map(|gpu| gpu.memory.value().unwrap().foreign.0 >> 20).collect();
    assert_eq!(foreign, [14_300, 0]);
    // Beside it there is no room; on the other card there is.
    _ = berth.ctl(&["start", "small"]).with_code(0);
    let refused = berth.change(&["start", "other"]).with_code(3);
    assert_eq!(refused.last["problem"]["code"], "does_not_fit", "{:#}", refused.last);
    assert_eq!(berth.stats().failed, 0);
}
