//! The history outlives berthd and the machine: swaps with their steps, what was seen of the devices, and problems.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::report::{
    DevicesHistory, Outcome, ProblemsHistory, StepReport, SwapHistory, SwapSummary, SwapsHistory,
};
use berth_tests::{Berth, fake};
use serde::de::DeserializeOwned;

const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(30);
const FILE: &str = "/var/lib/berth/history.db";
const MAIN: &str = "node = \"tower\"\n\
    [deadlines]\nstop = \"3s\"\nrelease = \"12s\"\nstart = \"10s\"\n\
    [history]\nevery = \"1 s\"\n";

/// What the control API answers, whole: head and body.
#[track_caller]
fn ask(berth: &Berth, path: &str) -> String {
    let mut stream = UnixStream::connect(berth.sandbox().root().join("run/berth/berth.sock")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let request = format!("GET /api/v1/history/{path} HTTP/1.0\r\nHost: berth\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[track_caller]
fn get<T: DeserializeOwned>(berth: &Berth, path: &str) -> T {
    let answer = ask(berth, path);
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"))
}

#[track_caller]
fn swaps(berth: &Berth) -> Vec<SwapSummary> {
    get::<SwapsHistory>(berth, "swaps").swaps
}

/// The moments of the problems of a code, and until when each stood.
#[track_caller]
fn problems(berth: &Berth, code: &str) -> Vec<(u64, Option<u64>)> {
    let problems = get::<ProblemsHistory>(berth, "problems").problems.into_iter();
    let of_code = problems.filter(|past| past.problem.code == code);
    of_code.map(|past| (past.problem.since_ms, past.ended_ms)).collect()
}

/// What was used of GPU `index` in the last quarter of an hour, sample by sample.
#[track_caller]
fn used(berth: &Berth, index: u32) -> Vec<Option<Bytes>> {
    let since_ms = berth.status().at_ms - 900_000;
    let devices = get::<DevicesHistory>(berth, &format!("devices?since_ms={since_ms}&points=2000")).devices;
    let device = devices.into_iter().find(|device| device.index == Some(index));
    device.map_or_else(Vec::new, |device| device.samples.into_iter().map(|sample| sample.used).collect())
}

fn steps(swap: &SwapSummary) -> Vec<StepReport> {
    swap.steps.clone()
}

#[test]
fn the_past_outlives_berthd_and_the_power() {
    let slow = fake(2, EACH, &["--load-time", "60s"]);
    let mut berth = Berth::builder()
        .main(MAIN)
        .fake("aeon", EACH, &[])
        .fake("genesis", EACH, &[])
        .model("slow", &slow)
        .boot();
    let first = berth.switch("aeon");
    let second = berth.switch("genesis");
    assert!(second.steps.len() > 4, "{second:?}");
    berth.gpu(&["lose", "1"]);
    let lost = |berth: &Berth| problems(berth, "gpu_unknown");
    berth.wait_for("the problem is in the history", SOON, |berth| (!lost(berth).is_empty()).then_some(()));
    assert_eq!(lost(&berth)[0].1, None, "it stands");
    berth.wait_for("it is unknown, not nothing", SOON, |berth| {
        (used(berth, 1).last() == Some(&None) && used(berth, 0).last() != Some(&None)).then_some(())
    });

    // Killed: all that was written is there, and the problem goes on.
    let pid = berth.property("berthd.service", "MainPID");
    _ = berth.run(None, &["kill", "-KILL", &pid]).with_code(0);
    berth.wait_for("another berthd", SOON, |berth| {
        let now = berth.property("berthd.service", "MainPID");
        (now != pid && now != "0").then_some(())
    });
    berth.wait_for_berthd(SOON).unwrap();
    berth.wait_for("it is in service again", SOON, |berth| (berth.serving() == ["genesis"]).then_some(()));
    let kept = berth.wait_for("the history is read", SOON, |berth| Some(swaps(berth)));
    let of = |kept: &[SwapSummary], id: u64| kept.iter().find(|swap| swap.id == id).map(steps);
    assert_eq!(of(&kept, first.id), Some(steps(&first)));
    assert_eq!(of(&kept, second.id), Some(steps(&second)));
    let since = lost(&berth);
    assert_eq!(since.len(), 1, "it is the same problem still");
    berth.gpu(&["restore", "1"]);
    berth.wait_for("it is over", SOON, |berth| lost(berth)[0].1.map(|_| ()));
    assert_eq!((lost(&berth).len(), lost(&berth)[0].0), (1, since[0].0));
    let text = berth.ctl(&["history", "--problems"]).with_code(0).stdout;
    assert!(text.contains("  gpu_unknown\n  GPU 1 is unknown, nothing is placed there"), "{text}");

    // The power is cut in the middle of a switch, right after another one was reported as done.
    berth.wait_for("both GPUs are sound", SOON, |berth| {
        let change = berth.change(&["switch", "aeon"]);
        (change.code == 0).then_some(())
    });
    let third = berth.switch("genesis");
    let samples = used(&berth, 0).len();
    _ = berth.ctl(&["switch", "slow", "--no-wait"]).with_code(0);
    let cut = berth.wait_for("it is under way, and the history knows", SOON, |berth| {
        swaps(berth).into_iter().find(|swap| swap.outcome.is_none() && swap.steps.len() > 4)
    });
    // What was said of a problem is on the disk at once, and all before it.
    berth.gpu(&["lose", "1"]);
    berth.wait_for("the problem is in the history", SOON, |berth| (lost(berth).len() == 2).then_some(()));
    berth.cut();
    berth.boot();
    berth.wait_for_berthd(SOON).unwrap();
    let kept = berth.wait_for("the swap counts as cut off", SOON, |berth| {
        let kept = swaps(berth);
        kept.iter().find(|swap| swap.id == cut.id)?.reason.is_some().then_some(kept)
    });
    for swap in [&first, &second, &third] {
        let found = kept.iter().find(|kept| kept.id == swap.id).unwrap_or_else(|| panic!("{kept:?}"));
        assert_eq!((found.outcome, steps(found)), (Some(Outcome::Done), steps(swap)));
    }
    let found: SwapHistory = get(&berth, &format!("swaps/{}", cut.id));
    assert_eq!((found.swap.outcome, found.swap.steps.len() >= cut.steps.len()), (None, true), "{found:?}");
    assert!(used(&berth, 0).len() >= samples, "{} samples of {samples}", used(&berth, 0).len());
    assert!(used(&berth, 0).iter().flatten().any(|used| *used >= Bytes::mib(14_300)));
    berth.gpu(&["restore", "1"]);
    berth.wait_serving("genesis", SOON);

    let text = berth.ctl_as("frank", &["history"]).with_code(0).stdout;
    assert!(text.contains("genesis -> slow") && text.contains("cut off"), "{text}");
    let one = berth.ctl(&["history", &third.id.to_string()]).with_code(0).stdout;
    assert!(one.contains("aeon -> genesis") && one.contains("✓ released  GPU 0 after"), "{one}");
    let none = berth.ctl(&["history", "4711"]).with_code(3);
    assert!(none.stderr.contains("swap 4711 is not in the history"), "{none}");
    let page: SwapsHistory = get(&berth, &format!("swaps?last=1&before={}", third.began_ms));
    assert!(page.swaps.len() == 1 && page.swaps[0].began_ms < third.began_ms, "{page:?}");
    for bad in
        ["swaps?last=0", "swaps?kind=x", "devices?points=9999", "devices?since_ms=5&until_ms=5", "swaps/x"]
    {
        let answer = ask(&berth, bad);
        assert!(
            answer.starts_with("HTTP/1.0 400 ") && answer.contains("application/problem+json"),
            "{bad}: {answer}"
        );
    }

    // Damaged while berthd is away: set aside and said, and all else goes on.
    _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
    let damage = format!("dd if=/dev/urandom of={FILE} bs=4096 count=20 conv=notrunc && rm -f {FILE}-wal");
    _ = berth.run(None, &["sh", "-c", &damage]).with_code(0);
    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    berth.wait_for_berthd(SOON).unwrap();
    let said = berth.wait_for("the damage is a problem", SOON, |berth| {
        berth.status().problems.into_iter().find(|problem| problem.code == "history_damaged")
    });
    assert!(said.text.contains("It is kept as /var/lib/berth/history.db.damaged-"), "{said:?}");
    assert_eq!(berth.serving(), ["genesis"]);
    let fourth = berth.switch("aeon");
    berth.wait_for("a new one is kept", SOON, |berth| {
        (of(&swaps(berth), fourth.id)? == fourth.steps).then_some(())
    });
    let command = said.next.rsplit(": ").next().unwrap();
    _ = berth.run(None, &["sh", "-c", command.trim_start_matches("sudo ")]).with_code(0);
    berth.wait_for("nothing is left of it", SOON, |berth| berth.status().problems.is_empty().then_some(()));

    // A disk that takes nothing more is a problem of the history's, not of those who switch.
    let limit = format!("rm -f {FILE}* && mkdir {FILE}");
    _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
    _ = berth.run(None, &["sh", "-c", &limit]).with_code(0);
    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    berth.wait_for_berthd(SOON).unwrap();
    let said = berth.wait_for("it is a problem", SOON, |berth| {
        berth.status().problems.into_iter().find(|problem| problem.code == "history_error")
    });
    assert!(
        said.text.starts_with("what happens is not kept: history /var/lib/berth/history.db: "),
        "{said:?}"
    );
    let refused = berth.ctl(&["history"]).with_code(6);
    assert!(refused.stderr.contains("history /var/lib/berth/history.db"), "{refused}");
    let fifth = berth.switch("genesis");
    _ = berth.run(None, &["rmdir", FILE]).with_code(0);
    berth.wait_for("what happened meanwhile is kept", SOON, |berth| {
        let found = berth.status().problems.is_empty().then(|| swaps(berth))?;
        (of(&found, fifth.id)? == fifth.steps).then_some(())
    });
}
