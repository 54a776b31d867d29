//! `gpusim ctl`: a verb for each knob, and the counters.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use gpusim::Client;
use gpusim::linger::{Linger, Shape};
use gpusim::protocol::{Calls, Foreign, Hang, Kind, Knob, Request, SensorKnobs, Stats};
use gpusim::server::parse_kind;
use gpusim::units::{mib, nanos, parse_duration, parse_size};

use crate::{Totals, totals};

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// Which device; all without it.
#[derive(Debug, Args)]
pub(crate) struct On {
    /// Only this device.
    #[arg(long)]
    device: Option<u32>,
}

/// Whose memory lingers.
#[derive(Debug, Args)]
pub(crate) struct Whose {
    #[command(flatten)]
    on: On,
    /// Only after a death by a signal.
    #[arg(long)]
    on_signal: bool,
    /// Only what is larger than this.
    #[arg(long, value_parser = parse_size, default_value = "0")]
    above: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Memory of the dead comes back all at once after TIME (0: immediately).
    Linger {
        #[arg(value_parser = parse_duration)]
        time: Duration,
        #[command(flatten)]
        whose: Whose,
    },
    /// Memory of the dead comes back evenly over TIME.
    LingerRamp {
        #[arg(value_parser = parse_duration)]
        time: Duration,
        #[command(flatten)]
        whose: Whose,
    },
    /// Memory of the dead comes back after a random time of at most MAX, drawn for each process and card.
    LingerRandom {
        #[arg(value_parser = parse_duration)]
        max: Duration,
        #[arg(default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        whose: Whose,
    },
    /// Are the dead listed while their memory lingers?
    LingerListed {
        switch: Switch,
        #[command(flatten)]
        on: On,
    },
    /// Start a foreign process that holds memory, or let one of that name take more.
    Foreign {
        name: String,
        #[arg(long, default_value_t = 0)]
        device: u32,
        #[arg(long, value_parser = parse_size)]
        bytes: u64,
        /// Which list it is in: graphics or compute.
        #[arg(long, value_parser = parse_kind, default_value = "graphics")]
        kind: Kind,
        /// Take this much more after --after (or what is free then).
        #[arg(long, value_parser = parse_size, default_value = "0")]
        grow_by: u64,
        #[arg(long, value_parser = parse_duration, default_value = "0s")]
        after: Duration,
        /// Take the memory at the instant that a release makes room for it.
        #[arg(long)]
        at_release: bool,
        /// With --at-release: take it (or what is free then) this long after that instant.
        #[arg(long, value_parser = parse_duration, default_value = "0s", requires = "at_release")]
        release_delay: Duration,
    },
    /// End a foreign process.
    ForeignStop { name: String },
    /// BYTES are used and belong to nobody.
    Residue {
        #[arg(value_parser = parse_size)]
        bytes: u64,
        #[command(flatten)]
        on: On,
    },
    /// Does the card give process lists?
    Lists {
        switch: Switch,
        #[command(flatten)]
        on: On,
    },
    /// Do process lists give bytes?
    Usage {
        switch: Switch,
        #[command(flatten)]
        on: On,
    },
    /// A card falls off the bus.
    Lose { device: u32 },
    /// A lost card is back.
    Restore { device: u32 },
    /// Calls don't return until TIME from now has passed (0: let go).
    Hang {
        #[arg(value_parser = parse_duration)]
        time: Duration,
        /// Which calls: memory, processes or all.
        #[arg(long, value_parser = parse_calls, default_value = "all")]
        call: Calls,
        /// Each call takes TIME, until `hang 0`.
        #[arg(long)]
        each: bool,
        #[command(flatten)]
        on: On,
    },
    /// Memory readings stop changing.
    Stale {
        switch: Switch,
        #[command(flatten)]
        on: On,
    },
    /// The next memory reading says that BYTES less are used, and the one after it is right again.
    Jump {
        #[arg(value_parser = parse_size)]
        bytes: u64,
        #[command(flatten)]
        on: On,
    },
    /// Does the card report events (Xids)?
    Events {
        switch: Switch,
        #[command(flatten)]
        on: On,
    },
    /// The card gives no memory readings.
    MemoryNa {
        #[arg(default_value = "on")]
        switch: Switch,
        #[command(flatten)]
        on: On,
    },
    /// The driver reports this Xid.
    Xid {
        xid: u64,
        #[arg(long, default_value_t = 0)]
        device: u32,
    },
    /// Fix sensor values; what isn't named follows the load again.
    Sensors {
        /// °C.
        #[arg(long)]
        temperature: Option<u32>,
        /// Milliwatts.
        #[arg(long)]
        power: Option<u32>,
        /// Percent.
        #[arg(long)]
        utilization: Option<u32>,
        #[command(flatten)]
        on: On,
    },
    /// nvmlInit fails since library and driver differ.
    VersionMismatch { switch: Switch },
    /// Other cards: 0, 1, 2x16311, 1x16GiB,1x24GiB.
    Gpus {
        #[arg(value_parser = totals)]
        cards: Totals,
    },
    /// Counters, failed allocations and releases.
    Stats {
        #[arg(long)]
        json: bool,
    },
    /// Forget counters and lists.
    ResetStats,
    /// Healthy cards that free memory at once, no foreign processes, no counters.
    Reset,
    /// Who holds the cards.
    Show,
}

fn parse_calls(word: &str) -> Result<Calls, String> {
    match word {
        "memory" => Ok(Calls::Memory),
        "processes" => Ok(Calls::Processes),
        "all" => Ok(Calls::All),
        _ => Err(format!("`{word}` are no calls; there are memory, processes and all")),
    }
}

fn linger(shape: Shape, whose: &Whose) -> (Option<u32>, Knob) {
    (whose.on.device, Knob::Linger(Linger { shape, only_signal: whose.on_signal, above: whose.above }))
}

/// The knob that a verb turns, and where; the verbs that turn none come back.
fn knob(verb: Verb) -> Result<(Option<u32>, Knob), Verb> {
    let yes = |switch| switch == Switch::On;
    Ok(match verb {
        Verb::Linger { time, whose } => linger(Shape::Step { ns: nanos(time) }, &whose),
        Verb::LingerRamp { time, whose } => linger(Shape::Ramp { ns: nanos(time) }, &whose),
        Verb::LingerRandom { max, seed, whose } => linger(Shape::Random { max_ns: nanos(max), seed }, &whose),
        Verb::LingerListed { switch, on } => (on.device, Knob::LingerListed(yes(switch))),
        Verb::Residue { bytes, on } => (on.device, Knob::Residue(bytes)),
        Verb::Lists { switch, on } => (on.device, Knob::Lists(yes(switch))),
        Verb::Usage { switch, on } => (on.device, Knob::Usage(yes(switch))),
        Verb::Lose { device } => (Some(device), Knob::Lost(true)),
        Verb::Restore { device } => (Some(device), Knob::Lost(false)),
        Verb::Hang { time, call, each, on } => {
            (on.device, Knob::Hang(Hang { ns: nanos(time), each, calls: call }))
        }
        Verb::Stale { switch, on } => (on.device, Knob::Stale(yes(switch))),
        Verb::Jump { bytes, on } => (on.device, Knob::Jump(bytes)),
        Verb::Events { switch, on } => (on.device, Knob::Events(yes(switch))),
        Verb::MemoryNa { switch, on } => (on.device, Knob::MemoryNa(yes(switch))),
        Verb::Xid { xid, device } => (Some(device), Knob::Xid(xid)),
        Verb::Sensors { temperature, power, utilization, on } => {
            let knobs =
                SensorKnobs { temperature_c: temperature, power_mw: power, utilization_percent: utilization };
            (on.device, Knob::Sensors(knobs))
        }
        Verb::VersionMismatch { switch } => (None, Knob::VersionMismatch(yes(switch))),
        Verb::Gpus { cards: Totals(totals) } => (None, Knob::Cards(totals)),
        other => return Err(other),
    })
}

/// Does what the verb says.
pub(crate) fn run(verb: Verb) -> Result<()> {
    let mut client = Client::connect(Duration::from_secs(2))?.limit(Duration::from_secs(10))?;
    let other = match knob(verb) {
        Ok((device, knob)) => return Ok(client.set(device, knob)?),
        Err(other) => other,
    };
    match other {
        Verb::Foreign { name, device, bytes, kind, grow_by, after, at_release, release_delay } => {
            let (grow_after_ns, release_delay_ns) = (nanos(after), nanos(release_delay));
            let foreign =
                Foreign { name, device, bytes, kind, grow_by, grow_after_ns, at_release, release_delay_ns };
            let pid: u32 = client.call(&Request::Foreign(foreign))?;
            println!("{pid}");
        }
        Verb::ForeignStop { name } => client.call(&Request::ForeignStop { name })?,
        Verb::Stats { json: true } => println!("{}", serde_json::to_string_pretty(&client.stats()?)?),
        Verb::Stats { json: false } => {
            let stats = client.stats()?;
            print!("{}{}", cards(&stats), counters(&stats));
        }
        Verb::Reset => client.call(&Request::Reset)?,
        Verb::ResetStats => client.call(&Request::ResetStats)?,
        _ => print!("{}", cards(&client.stats()?)),
    }
    Ok(())
}

/// Who holds the cards.
fn cards(stats: &Stats) -> String {
    let mut text = String::new();
    for device in &stats.devices {
        let memory = device.memory;
        let _ = writeln!(
            text,
            "{}  {}  {}  used {} of {} ({} free, {} reserved)",
            device.index,
            device.name,
            device.uuid,
            mib(memory.used),
            mib(memory.total),
            mib(memory.free),
            mib(memory.reserved)
        );
        for held in &device.held {
            let foreign = if held.foreign { ", foreign" } else { "" };
            let kind = if held.kind == Kind::Compute { "compute" } else { "graphics" };
            let _ = writeln!(
                text,
                "   {:>14}  {:>7}  {} ({kind}{foreign})",
                mib(held.bytes),
                held.pid,
                held.comm
            );
        }
        for dead in &device.lingering {
            let left = dead.freed_ns.saturating_sub(stats.now_ns) / 1_000_000;
            let _ = writeln!(
                text,
                "   {:>14}  {:>7}  {} (dead, free in {left} ms)",
                mib(dead.bytes),
                dead.pid,
                dead.comm
            );
        }
        if device.residue > 0 {
            let _ = writeln!(text, "   {:>14}  {:>7}  of nobody", mib(device.residue), "-");
        }
        for knob in &device.knobs {
            let _ = writeln!(text, "   {knob}");
        }
    }
    if stats.devices.is_empty() {
        text.push_str("no cards\n");
    }
    text
}

/// What was counted, with the last few failures and releases.
fn counters(stats: &Stats) -> String {
    let ago = |ns: u64| stats.now_ns.saturating_sub(ns) as f64 / 1e9;
    let mut text =
        format!("\n{} allocations granted, {} failed for lack of memory\n", stats.allocations, stats.failed);
    for failure in stats.failures.iter().rev().take(10).rev() {
        let _ = writeln!(
            text,
            "   {:.1} s ago: {} ({}) wanted {} on device {}, {} were free",
            ago(failure.time_ns),
            failure.comm,
            failure.pid,
            mib(failure.wanted),
            failure.device,
            mib(failure.free)
        );
    }
    let _ = writeln!(text, "{} releases", stats.releases.len());
    for release in stats.releases.iter().rev().take(10).rev() {
        let _ = writeln!(
            text,
            "   {:.1} s ago: {} ({}) gave {} on device {} back after {:.3} ms",
            ago(release.died_ns),
            release.comm,
            release.pid,
            mib(release.bytes),
            release.device,
            (release.freed_ns - release.died_ns) as f64 / 1e6
        );
    }
    text
}
