//! What aeon and genesis are: the real llama-server with real weights, or fakellm where it can't be had.

use anyhow::{Result, bail};
use berth_tests::{Assets, fake, real, real_command};

/// What each holds on each GPU: of two of them, only one fits.
const EACH: &str = "14300MiB";
const GPUS: usize = 2;

/// A fakellm that takes about as long as the real one.
const PRETENDED: &[&str] = &["--load-time", "2s"];

/// Which server both models are.
pub(crate) struct Servers {
    real: bool,
}

impl Servers {
    /// The real one, unless the reader wants none or pip can't get it.
    pub(crate) fn choose(pretend: bool) -> Result<Servers> {
        if pretend {
            return Ok(Servers { real: false });
        }
        match Assets::get() {
            Ok(_) => Ok(Servers { real: true }),
            Err(missing) if missing.unreachable => {
                println!("{}", missing.said);
                Ok(Servers { real: false })
            }
            Err(missing) => bail!("{missing}"),
        }
    }

    pub(crate) fn are_real(&self) -> bool {
        self.real
    }

    /// The model's file for Berth.
    pub(crate) fn declaration(&self) -> String {
        if self.real { real(GPUS, EACH) } else { fake(GPUS, EACH, PRETENDED) }
    }

    /// The same as a unit that someone writes by hand.
    pub(crate) fn unit(&self, port: u16) -> String {
        let command = if self.real {
            format!("/usr/bin/env {}", real_command(EACH))
        } else {
            format!("/usr/bin/fakellm --vram-each {EACH} {}", PRETENDED.join(" "))
        };
        format!("[Service]\nType=exec\nExecStart={command} --host 127.0.0.1 --port {port}\n")
    }
}
