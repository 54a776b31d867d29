//! Without Berth: one unit is stopped, the next one is started at once, and there is no memory for it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_core::bytes::Bytes;
use berth_tests::PROMPT;

use crate::{Demo, show};

const PORTS: [(&str, u16); 2] = [("aeon", 8021), ("genesis", 8022)];

/// How long a server may take to come up, on a slow machine.
const UP: Duration = Duration::from_mins(2);

/// What happened.
pub(crate) struct ByHand {
    /// How long `systemctl stop aeon` took.
    pub(crate) stopped: Duration,
    /// Allocations that failed, as the simulated GPUs count them.
    pub(crate) failed: u64,
}

impl Demo {
    pub(crate) fn by_hand(&self) -> Result<ByHand> {
        for (name, port) in PORTS {
            let path = format!("/etc/systemd/system/{name}.service");
            self.berth.sandbox().write_file(&path, self.servers.unit(port))?;
        }
        self.guest(&["systemctl", "daemon-reload"])?;

        show::heading("By hand: two plain units, no Berth");
        let up = Instant::now();
        self.guest(&["systemctl", "start", "aeon"])?;
        let answer = self.wait("aeon answers", UP, || Ok(self.berth.try_ask(PORTS[0].1, PROMPT).ok()))?;
        show::command("systemctl start aeon", &format!("serves after {}", show::seconds(up.elapsed())));
        show::answer("aeon", &answer);

        let stop = Instant::now();
        self.guest(&["systemctl", "stop", "aeon"])?;
        let stopped = stop.elapsed();
        let devices = self.berth.stats().devices;
        let held = devices.iter().flat_map(|gpu| &gpu.lingering).map(|dead| Bytes(dead.bytes)).sum();
        // At once, as `systemctl stop aeon && systemctl start genesis` does.
        self.guest(&["systemctl", "start", "genesis"])?;
        show::command("systemctl stop aeon", &format!("stopped after {}", show::seconds(stopped)));
        let start = Instant::now();
        self.wait("genesis dies for lack of memory", UP, || {
            let state = self.guest(&["systemctl", "show", "--value", "--property=ActiveState", "genesis"])?;
            if self.berth.try_ask(PORTS[1].1, PROMPT).is_ok() {
                bail!("genesis serves, although aeon's memory was not back: the simulated GPUs are broken");
            }
            Ok((state.trim() == "failed").then_some(()))
        })?;
        let died = start.elapsed();

        let failed = self.berth.stats().failed;
        let reason = self.last_words("genesis")?;
        show::command("systemctl start genesis", &format!("dead after {}", show::seconds(died)));
        show::death(&reason, held);

        // A clean start for Berth.
        self.guest(&["systemctl", "reset-failed", "genesis"])?;
        self.wait("the memory of the dead is back", Duration::from_secs(30), || {
            let devices = self.berth.stats().devices;
            Ok(devices.iter().all(|gpu| gpu.held.is_empty() && gpu.lingering.is_empty()).then_some(()))
        })?;
        Ok(ByHand { stopped, failed })
    }

    /// What a unit's program said about memory before it died.
    fn last_words(&self, unit: &str) -> Result<String> {
        let journal = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--unit", unit];
        self.wait("its last words are in the journal", Duration::from_secs(10), || {
            let said = self.guest(&journal)?;
            Ok(said.lines().find(|line| line.contains("out of memory")).map(str::to_owned))
        })
        .with_context(|| format!("{unit} died, but not for lack of memory"))
    }
}
