//! Switches by Berth, with a stamp at each place where time passes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use gpusim::protocol::Release;
use gpusim::sys::now_ns;

use super::bus::Bus;
use super::client::Client;
use crate::Berth;

/// One switch, in nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamps {
    /// The client sends its request.
    request: u64,
    /// systemd begins to stop the victim.
    stop: u64,
    /// Its last process that held GPU memory is dead.
    died: u64,
    /// The last byte of it is free, on all cards.
    freed: u64,
    /// systemd has forked what becomes the replacement.
    started: u64,
    /// The replacement's own program runs.
    began: u64,
    /// It can answer.
    ready: u64,
    /// The client knows.
    heard: u64,
}

impl Stamps {
    pub(super) fn asked(&self) -> u64 {
        self.stop - self.request
    }

    pub(super) fn stopping(&self) -> u64 {
        self.died - self.stop
    }

    pub(super) fn releasing(&self) -> u64 {
        self.freed - self.died
    }

    pub(super) fn lag(&self) -> u64 {
        self.started - self.freed
    }

    pub(super) fn exec(&self) -> u64 {
        self.began - self.started
    }

    pub(super) fn loading(&self) -> u64 {
        self.ready - self.began
    }

    pub(super) fn noticed(&self) -> u64 {
        self.heard - self.ready
    }

    /// All that is neither stopping nor releasing nor loading.
    pub(super) fn overhead(&self) -> u64 {
        (self.heard - self.request) - self.stopping() - self.releasing() - self.loading()
    }

    fn in_order(&self) -> bool {
        let Stamps { request, stop, died, freed, started, began, ready, heard } = *self;
        [request, stop, died, freed, started, began, ready, heard].is_sorted()
    }
}

/// Switches back and forth.
pub(super) struct Switcher<'a> {
    berth: &'a Berth,
    client: Client,
    bus: Bus,
    serving: &'static str,
    /// Without what only the servers know.
    done: Vec<(&'static str, Stamps)>,
    releases: usize,
}

impl<'a> Switcher<'a> {
    pub(super) fn new(berth: &'a Berth) -> Result<Self> {
        let (client, bus) = (Client::new(berth), Bus::connect(berth)?);
        client.change("switch", "aeon")?.ended()?;
        let releases = berth.stats().releases.len();
        Ok(Switcher { berth, client, bus, serving: "aeon", done: Vec::new(), releases })
    }

    /// The other of the two models.
    pub(super) fn next(&self) -> &'static str {
        if self.serving == "aeon" { "genesis" } else { "aeon" }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn switch(&mut self) -> Result<()> {
        let (old, new) = (self.serving, self.next());
        let following = self.client.change("switch", new)?;
        let request = following.asked;
        let (heard, _) = following.ended()?;
        self.serving = new;
        let stop = self.bus.stopped(&unit(old))?;
        let started = self.bus.started(&unit(new))?;
        let (died, freed) = released(self.berth, &mut self.releases)?;
        // systemd takes its stamp just after it has sent SIGTERM, and a server may be quicker than that.
        let stop = stop.min(died);
        let stamps = Stamps { request, stop, died, freed, started, began: 0, ready: 0, heard };
        self.done.push((new, stamps));
        Ok(())
    }

    /// All switches, with what the servers wrote into their logs about themselves.
    pub(super) fn stamps(&self) -> Result<Vec<Stamps>> {
        let mut logs: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
        for model in ["aeon", "genesis"] {
            logs.insert(model, loads(self.berth, model)?);
        }
        self.done
            .iter()
            .map(|(model, stamps)| {
                let within = |load: &&(u64, u64)| load.0 >= stamps.started && load.1 <= stamps.heard;
                let load = logs.get(model).and_then(|loads| loads.iter().find(within));
                let (began, ready) =
                    *load.with_context(|| format!("{model} did not log the load of {stamps:?}"))?;
                let stamps = Stamps { began, ready, ..*stamps };
                ensure!(
                    stamps.in_order(),
                    "the stamps are not in order, so one is not what it says: {stamps:?}"
                );
                Ok(stamps)
            })
            .collect()
    }
}

fn unit(model: &str) -> String {
    format!("berth-model@{model}.service")
}

/// When the newest victim died, and when the last byte of it was free; waits for nothing.
pub(super) fn released(berth: &Berth, seen: &mut usize) -> Result<(u64, u64)> {
    let releases = berth.stats().releases;
    let new: &[Release] = releases.get(*seen..).unwrap_or_default();
    ensure!(new.len() == 2, "one model on two cards died, and there are {} releases: {new:?}", new.len());
    *seen = releases.len();
    let last = |stamp: fn(&Release) -> u64| new.iter().map(stamp).max().unwrap_or_else(now_ns);
    Ok((last(|release| release.died_ns), last(|release| release.freed_ns)))
}

/// When a model's servers began and were ready, oldest first.
fn loads(berth: &Berth, model: &str) -> Result<Vec<(u64, u64)>> {
    let unit = unit(model);
    let log = berth.run(None, &["journalctl", "--quiet", "--no-pager", "--output=cat", "--unit", &unit]);
    let number = |line: &str, key: &str| {
        let rest = &line[line.find(key)? + key.len()..];
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    let of_line = |line: &str| Some((number(line, "began_ns=")?, number(line, "ready_ns=")?));
    let loads: Vec<_> = log.with_code(0).stdout.lines().filter_map(of_line).collect();
    ensure!(!loads.is_empty(), "{model}'s log has no stamps: is the staged fakellm older than this bench?");
    Ok(loads)
}
