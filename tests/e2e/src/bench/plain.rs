//! What people do without Berth, as well as it can be done: ordinary units, started over D-Bus by one who asks
//! no polkit and starts no process for it. Then either a look at the cards' free memory every 250 ms, or a
//! fixed sleep of two seconds.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gpusim::Client;
use gpusim::sys::now_ns;
use gpusim::units::parse_size;

use super::bus::Bus;
use super::switches::released;
use crate::Berth;
use crate::soak::EACH;

/// How long memory may take to come back.
const DEADLINE: Duration = Duration::from_secs(30);

/// A way to know that the memory is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// Free memory, looked at every 250 ms.
    Poll250,
    /// Two seconds, and hope.
    Sleep2000,
}

/// What one such switch took, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// From the instant at which memory was free to the replacement's start.
    pub lag: u64,
    /// From the call of StartUnit to that start: systemd's and the kernel's part of the lag, whoever calls.
    pub start: u64,
}

/// A guest with two ordinary units.
pub(super) struct Plain<'a> {
    berth: &'a Berth,
    bus: Bus,
    gpus: Client,
    serving: &'static str,
    releases: usize,
}

impl<'a> Plain<'a> {
    pub(super) fn new(berth: &'a Berth) -> Result<Self> {
        _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
        for (name, port) in [("aeon", 8031), ("genesis", 8032)] {
            let text = format!(
                "[Service]\nType=exec\nUser=berth-model\nKillMode=mixed\n\
                 ExecStart=/usr/bin/fakellm --port {port} --vram-each {EACH} --load-time 20ms\n"
            );
            berth.sandbox().write_file(&format!("/etc/systemd/system/{}", unit(name)), text)?;
        }
        _ = berth.systemctl(&["daemon-reload"]).with_code(0);
        let bus = Bus::connect(berth)?;
        let gpus = Client::connect_to(&berth.sandbox().gpusim_socket(), Duration::from_secs(2))?;
        let plain = Plain { berth, bus, gpus, serving: "aeon", releases: berth.stats().releases.len() };
        plain.bus.start(&unit("aeon"))?;
        plain.wait_loaded()?;
        Ok(plain)
    }

    /// One switch.
    pub(super) fn switch(&mut self, way: Way) -> Result<Cost> {
        let (old, new) = (self.serving, if self.serving == "aeon" { "genesis" } else { "aeon" });
        self.bus.stop(&unit(old))?;
        match way {
            Way::Poll250 => {
                let start = Instant::now();
                while !self.is_free()? {
                    if start.elapsed() >= DEADLINE {
                        bail!("{old}'s memory is not back after {DEADLINE:?}");
                    }
                    std::thread::sleep(Duration::from_millis(250));
                }
            }
            Way::Sleep2000 => std::thread::sleep(Duration::from_secs(2)),
        }
        let asked = now_ns();
        self.bus.start(&unit(new))?;
        self.serving = new;
        self.bus.wait_active(&unit(new))?;
        let started = self.bus.started(&unit(new))?;
        let (_, freed) = released(self.berth, &mut self.releases)?;
        self.wait_loaded()?;
        let lag = started.checked_sub(freed);
        let lag = lag.with_context(|| format!("{new} was started before the memory was free"))?;
        Ok(Cost { lag, start: started.saturating_sub(asked) })
    }

    /// The same number that NVML gives, without NVML's own cost.
    fn is_free(&mut self) -> Result<bool> {
        let needed = parse_size(EACH).map_err(anyhow::Error::msg)?;
        for card in 0..2 {
            if self.gpus.memory(card)?.free < needed {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the server holds all its memory.
    fn wait_loaded(&self) -> Result<()> {
        let needed = parse_size(EACH).map_err(anyhow::Error::msg)?;
        let start = Instant::now();
        loop {
            let cards = self.berth.stats().devices;
            if cards.iter().all(|card| card.held.iter().map(|held| held.bytes).sum::<u64>() >= needed) {
                return Ok(());
            }
            if start.elapsed() >= DEADLINE {
                bail!("{} does not load within {DEADLINE:?}", self.serving);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn unit(model: &str) -> String {
    format!("plain-{model}.service")
}
