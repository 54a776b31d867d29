//! With Berth: the same change, by one command of an ordinary member of group berth.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_core::report::{Status, SwapSummary};
use berth_tests::PROMPT;
use sandbox::exit_code;

use crate::{Demo, show};

/// Frank is in group berth, and root nowhere.
const USER: &str = "frank";

/// What berthctl ends with when Ctrl-C stopped it.
const STOPPED_WATCHING: i32 = 130;

/// The change from aeon to genesis.
pub(crate) struct Switched {
    pub(crate) swap: SwapSummary,
    /// Allocations that failed since Berth began.
    pub(crate) failed: u64,
}

impl Demo {
    pub(crate) fn with_berth(&self) -> Result<Switched> {
        let before = self.berth.stats().failed;
        show::heading("With Berth: the same, as an ordinary member of group berth");
        for model in ["aeon", "genesis"] {
            self.live(&["berthctl", "switch", model])?;
            let answer =
                self.berth.try_ask(model, PROMPT).with_context(|| format!("{model} does not answer"))?;
            show::answer(model, &answer);
        }
        let status = self.guest(&["berthctl", "status", "--json"])?;
        let status: Status = serde_json::from_str(&status).context("a status that can't be understood")?;
        let swap = status.last_swap.context("berthd knows of no switch")?;
        let failed = self.berth.stats().failed - before;
        if failed > 0 {
            bail!("{failed} allocations failed with Berth");
        }
        Ok(Switched { swap, failed })
    }

    /// Runs a command in the guest for the reader to see.
    fn live(&self, argv: &[&str]) -> Result<()> {
        use std::io::IsTerminal;
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        show::typed(USER, &argv.join(" "));
        let mut command = self.berth.sandbox().foreground(Some(USER), terminal, argv)?;
        if !terminal {
            command.stdin(Stdio::null());
        }
        let mut child = command.spawn().context("can't run sh")?;
        let code = loop {
            if let Some(status) = child.try_wait()? {
                break exit_code(status);
            }
            if let Err(interrupted) = self.go_on() {
                child.kill()?;
                child.wait()?;
                return Err(interrupted);
            }
            thread::sleep(Duration::from_millis(10));
        };
        match code {
            0 => Ok(()),
            STOPPED_WATCHING => {
                // On a terminal of the guest's own, Ctrl-C went to berthctl alone; the reader meant us.
                self.interrupt.set();
                self.go_on()
            }
            code => bail!("`{}` ended with {code}", argv.join(" ")),
        }
    }
}
