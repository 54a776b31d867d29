//! Models on the host alone: their processors, what they lock in memory, their priority.

use std::time::Duration;

use berth_tests::{Berth, GUEST_ASSETS};

/// Where a test may run in a container whose root can raise no limit, the capability stands in for LimitMEMLOCK=.
const MAY_LOCK: &str = "[Service]\nCapabilityBoundingSet=CAP_IPC_LOCK\nAmbientCapabilities=CAP_IPC_LOCK\n";

/// What the kernel says of a model's process.
#[derive(Debug, PartialEq, Eq)]
struct Bounds {
    cpus: String,
    /// Soft and hard limit, in bytes or `unlimited`.
    may_lock: [String; 2],
    nice: String,
}

/// S9: real llama.cpp on one processor, its memory locked; the next start of the same unit is bound by nothing of it.
#[test]
fn a_model_on_the_host_runs_as_its_policy_says() {
    let berth = Berth::builder()
        .assets()
        .policy(
            "quiet",
            "devices = \"host\"\n[host]\ncores = \"0\"\nthreads = 1\nlock = true\nnice = 5\nheadroom = \"64 MiB\"\n",
        )
        .policy("free", "devices = \"host\"\n[host]\ncores = \"all\"\nlock = false\nheadroom = \"64 MiB\"\n")
        .model("gemma", &gemma("free"))
        .boot();
    berth.sandbox().write_file("/run/systemd/system/berth-model@.service.d/lock.conf", MAY_LOCK).unwrap();
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    let unit = "berth-model@gemma.service";
    let show = |berth: &Berth| [berth.property(unit, "AllowedCPUs"), berth.property(unit, "MemoryMin")];

    _ = berth.switch("gemma");
    let free = bounds(&berth);
    assert!(free.cpus != "0" && free.nice == "0", "{free:?}");
    assert_eq!(show(&berth), ["", "0"]);
    assert_eq!(status(&berth, "VmLck"), 0);

    again_with(&berth, "quiet");
    let quiet = bounds(&berth);
    assert_eq!((quiet.cpus.as_str(), quiet.nice.as_str()), ("0", "5"));
    let [cpus, kept] = show(&berth);
    assert_eq!(cpus, "0");
    // What it takes: its weights are 241 MiB.
    let kept: u64 = kept.parse().unwrap();
    assert!(kept > 241 << 20, "{kept}");
    let limit = kept + (64 << 20);
    let raisable = free.may_lock[1].parse::<u64>().map_or(true, |most| most >= limit);
    let limits = if raisable { [limit.to_string(), limit.to_string()] } else { free.may_lock.clone() };
    assert_eq!(quiet.may_lock, limits);
    assert!(status(&berth, "VmLck") > 200 << 10, "its weights are locked");
    let args = berth.run(None, &["sh", "-c", &format!("tr '\\0' ' ' < /proc/{}/cmdline", pid(&berth))]);
    let args = args.with_code(0).stdout;
    assert!(["-t 1 ", "--threads 1 "].iter().any(|threads| args.contains(threads)), "{args}");
    assert!(args.contains("--mlock"), "{args}");
    assert!(berth.ask("gemma").contains("Thursday, Friday"), "on one processor it says the same");

    again_with(&berth, "free");
    assert_eq!((bounds(&berth), show(&berth)), (free, [String::new(), "0".to_owned()]));

    // A processor that isn't there is said while what serves goes on.
    berth.configure("policies.d/quiet.toml", b"devices = \"host\"\n[host]\ncores = \"0,1023\"\n");
    berth.declare("gemma", &gemma("quiet"));
    berth.restart_berthd();
    let refused = berth.ctl(&["restart", "gemma"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("processor 1023 is not online here"), "{refused:?}");
    assert!(!berth.ask("gemma").is_empty());
}

/// The real server under this policy, with no flag of its own for what the policy says.
fn gemma(policy: &str) -> String {
    format!(
        "cmd = \"LD_LIBRARY_PATH={GUEST_ASSETS}/llama.cpp {GUEST_ASSETS}/llama.cpp/llama-server \
         -m {GUEST_ASSETS}/gemma-3-270m.gguf -c 2048\"\npolicy = \"{policy}\"\n"
    )
}

/// Starts it again under another policy.
fn again_with(berth: &Berth, policy: &str) {
    berth.declare("gemma", &gemma(policy));
    berth.restart_berthd();
    _ = berth.change(&["restart", "gemma"]);
    berth.wait_serving("gemma", Duration::from_secs(15));
}

fn pid(berth: &Berth) -> u32 {
    berth.run_of("gemma").main_pid
}

fn bounds(berth: &Berth) -> Bounds {
    let pid = pid(berth);
    let script = format!(
        "sed -n 's/^Cpus_allowed_list:.//p' /proc/{pid}/status; \
         sed -n 's/^Max locked memory *//p' /proc/{pid}/limits; cut -d' ' -f19 /proc/{pid}/stat"
    );
    let text = berth.run(None, &["sh", "-c", &script]).with_code(0).stdout;
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let [cpus, soft, hard, _bytes, nice] = <[String; 5]>::try_from(words).unwrap();
    Bounds { cpus, may_lock: [soft, hard], nice }
}

/// A value of the server's /proc/PID/status, in KiB.
fn status(berth: &Berth, key: &str) -> u64 {
    let script = format!("sed -n 's/^{key}:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/{}/status", pid(berth));
    berth.run(None, &["sh", "-c", &script]).with_code(0).stdout.trim().parse().unwrap()
}
