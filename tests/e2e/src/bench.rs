//! What Berth costs and what it saves, measured from outside and beside what others do, in one run.
//!
//! ```text
//!  request          ActiveExit     died        freed         ExecMainStart   began        ready      SwapEnded
//!  (our clock)      (systemd)    (gpusim)    (gpusim)          (systemd)   (fakellm)    (fakellm)  (our clock)
//!     │──── asked ─────│── stopping ─│─ releasing ─│──── lag ──────│── exec ────│─ loading ─│─ noticed ─│
//!     └─ overhead ─────┘                           └─ overhead ─────────────────┘           └─ overhead ┘
//! ```
//!
//! All stamps are of `CLOCK_MONOTONIC`, which the guest shares with us. Stopping, releasing and loading take
//! the time they take whoever switches; all else is Berth's, systemd's and the bus's, and is counted as
//! overhead: asking and checking, polkit, both fsyncs, the lag, systemd's fork and the ticket, the exec, and
//! what passes between ready and the client's knowing it.

pub(crate) mod bus;
pub(crate) mod client;
mod edge;
mod figures;
mod listeners;
mod plain;
mod planner;
mod proxy;
mod recovery;
mod switches;
mod waiting;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::soak::EACH;
use crate::{Berth, adoption, stage};
use client::Client;
use figures::{millis, percentile};
use plain::{Plain, Way};
use switches::{Stamps, Switcher};

pub use proxy::serve;

/// How much is measured. Zero leaves a part out.
#[derive(Debug, Clone, Copy)]
pub struct Bench {
    /// Switches by Berth.
    pub switches: u32,
    /// Switches each other way, spread over the run.
    pub others: u32,
    /// In those switches memory comes back after a random time of at most this, on each card another.
    pub linger: Duration,
    /// How long memory lingers while berthd's CPU time is taken.
    pub wait: Duration,
    /// Kills of berthd under a running stream.
    pub kills: u32,
    /// Power cuts.
    pub boots: u32,
    /// Restarts of a model that takes nearly all of both cards.
    pub restarts: u32,
    /// Whether the planner is timed.
    pub plan: bool,
    /// Answers in each round through each proxy.
    pub proxied: u32,
    /// Switches under many listeners, and as many without.
    pub listened: u32,
}

/// A part of a switch: its name and how it is taken from the stamps.
type Part = (&'static str, fn(&Stamps) -> u64);

/// Measures, and prints a line for each area.
///
/// # Errors
/// A switch failed, or an allocation did: the figures would mean nothing.
pub fn run(bench: &Bench) -> Result<()> {
    println!("bench: setup {}", setup()?);
    if bench.plan {
        println!("bench: plan gpus8_models100_us={:.0}", planner::slowest()?.as_secs_f64() * 1e6);
    }
    if bench.switches > 0 || !bench.wait.is_zero() {
        switches(bench)?;
    }
    if bench.kills > 0 {
        adopt(bench.kills)?;
    }
    if bench.boots > 0 {
        let starts = recovery::measure(bench.boots, |done| said(done, bench.boots, "boots"))?;
        println!(
            "bench: recovery boots={} start_p50_ms={} start_max_ms={}",
            bench.boots,
            millis(percentile(&starts, 50)),
            millis(percentile(&starts, 100))
        );
    }
    if bench.restarts > 0 {
        let waits = edge::measure(bench.restarts, |done| said(done, bench.restarts, "restarts"))?;
        println!(
            "bench: edge restarts={} failed_allocations=0 wait_p50_ms={} wait_p99_ms={} scale={}",
            bench.restarts,
            millis(percentile(&waits, 50)),
            millis(percentile(&waits, 99)),
            edge::SCALE
        );
    }
    if bench.listened > 0 {
        let listening = listeners::measure(bench.listened, |done| said(done, bench.listened, "pairs"))?;
        let [alone, listened] = [&listening.alone, &listening.listened].map(|all| percentile(all, 50));
        println!(
            "bench: listeners count={} pairs={} alone_p50_ms={} listened_p50_ms={} ratio={:.2} grown_kib={}",
            listeners::LISTENERS,
            bench.listened,
            millis(alone),
            millis(listened),
            listened as f64 / alone as f64,
            listening.grown_kib
        );
    }
    if bench.proxied > 0 {
        let said = |done, of| eprintln!("bench: {done} of {of} rounds");
        proxy::measure(bench.proxied, said).context("proxy")?;
    }
    Ok(())
}

/// Says now and then how far it is.
fn said(done: u32, of: u32, what: &str) {
    if done.is_multiple_of(20) {
        eprintln!("bench: {done} of {of} {what}");
    }
}

/// How soon the next berthd has taken over, and whether the models' clients notice.
fn adopt(kills: u32) -> Result<()> {
    let berth = Berth::builder().fake("aeon", EACH, &["--token-delay", "5ms"]).try_boot()?;
    Client::new(&berth).change("switch", "aeon")?.ended()?;
    let adoption = adoption::under_a_stream(&berth, "aeon", kills, |done| said(done, kills, "kills"))?;
    println!(
        "bench: adopt kills={kills} p50_ms={} max_ms={} from_kill_p50_ms={} from_kill_max_ms={} streams_cut={}",
        millis(percentile(&adoption.from_start, 50)),
        millis(percentile(&adoption.from_start, 100)),
        millis(percentile(&adoption.from_kill, 50)),
        millis(percentile(&adoption.from_kill, 100)),
        adoption.streams_cut
    );
    Ok(())
}

/// Switches, beside other ways to make them, and what waiting costs.
fn switches(bench: &Bench) -> Result<()> {
    let load = ["--load-time", "20ms"];
    // The deadlines that a new installation has.
    let machine =
        Berth::builder().main("node = \"tower\"\n").fake("aeon", EACH, &load).fake("genesis", EACH, &load);
    let boot = |seed| machine.clone().seed(seed).try_boot();
    // Two guests, so that neither way has the other's models on its cards.
    let (berth, others) = (boot(1)?, boot(2)?);

    let linger = format!("{}ms", bench.linger.as_millis());
    for guest in [&berth, &others] {
        guest.gpu(&["linger-random", &linger, "11"]);
    }
    let mut switcher = Switcher::new(&berth)?;
    let mut plain = Plain::new(&others)?;
    let mut lags: BTreeMap<Way, Vec<u64>> = BTreeMap::new();
    let mut starts = Vec::new();
    for done in 1..=bench.switches {
        switcher.switch()?;
        // Evenly over the run, so that whatever else this machine does falls on all ways alike.
        if done * bench.others / bench.switches > (done - 1) * bench.others / bench.switches {
            for way in [Way::Poll250, Way::Sleep2000] {
                let cost = plain.switch(way)?;
                lags.entry(way).or_default().push(cost.lag);
                starts.push(cost.start);
            }
        }
        said(done, bench.switches, "switches");
    }
    if bench.switches > 0 {
        let failed_otherwise = others.stats().failed;
        say_switches(bench, &berth, &switcher.stamps()?, &lags, &starts, failed_otherwise)?;
    }
    if !bench.wait.is_zero() {
        let waiting = waiting::measure(&berth, &switcher, bench.wait)?;
        println!("bench: wait cpu_percent={:.2} seconds={:.1}", waiting.lingering_percent, waiting.seconds);
        let mib = waiting.idle_kib as f64 / 1024.0;
        println!("bench: idle cpu_percent={:.2} rss_mib={mib:.1}", waiting.idle_percent);
    }
    Ok(())
}

/// What the switches took; `failed_otherwise`: what a fixed sleep costs when it is too short is the demo's to show.
fn say_switches(
    bench: &Bench,
    berth: &Berth,
    stamps: &[Stamps],
    lags: &BTreeMap<Way, Vec<u64>>,
    starts: &[u64],
    failed_otherwise: u64,
) -> Result<()> {
    let failed = berth.stats().failed;
    ensure!(failed == 0, "{failed} allocations failed with Berth: {:?}", berth.stats().failures);

    let by = |part: fn(&Stamps) -> u64| stamps.iter().map(part).collect::<Vec<u64>>();
    let lag = by(Stamps::lag);
    println!(
        "bench: release lag_p50_ms={} lag_p99_ms={} poll250_p50_ms={} sleep2000_p50_ms={} switches={} others={} \
         failed_allocations={failed} failed_allocations_others={failed_otherwise}",
        millis(percentile(&lag, 50)),
        millis(percentile(&lag, 99)),
        millis(percentile(lags.get(&Way::Poll250).map_or(&[], Vec::as_slice), 50)),
        millis(percentile(lags.get(&Way::Sleep2000).map_or(&[], Vec::as_slice), 50)),
        bench.switches,
        bench.others,
    );
    let overhead = by(Stamps::overhead);
    println!(
        "bench: switch overhead_p50_ms={} overhead_p99_ms={}",
        millis(percentile(&overhead, 50)),
        millis(percentile(&overhead, 99))
    );
    let parts: [Part; 7] = [
        ("asked", Stamps::asked),
        ("stopping", Stamps::stopping),
        ("releasing", Stamps::releasing),
        ("lag", Stamps::lag),
        ("exec", Stamps::exec),
        ("loading", Stamps::loading),
        ("noticed", Stamps::noticed),
    ];
    let parts = parts.map(|(name, part)| format!("{name}_p50_ms={}", millis(percentile(&by(part), 50))));
    let start = millis(percentile(starts, 50));
    println!("bench: parts {} plain_start_p50_ms={start}", parts.join(" "));
    Ok(())
}

/// On what this is measured.
fn setup() -> Result<String> {
    let berthd = stage()?.join("usr/bin/berthd");
    let size = std::fs::metadata(&berthd).with_context(|| format!("no {}", berthd.display()))?.len();
    // A guest's programs are the host's.
    let systemd = Command::new("systemctl").arg("--version").output().context("can't run systemctl")?;
    let systemd = String::from_utf8_lossy(&systemd.stdout);
    let systemd = systemd.split_whitespace().nth(1).unwrap_or("unknown");
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown").to_owned();
    Ok(format!(
        "cores={cores} load={load} kernel={} systemd={systemd} berthd_mib={:.1}",
        kernel.trim(),
        size as f64 / f64::from(1 << 20)
    ))
}
