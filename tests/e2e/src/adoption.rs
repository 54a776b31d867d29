//! berthd is killed again and again while a model answers: whether each next one takes over what runs without
//! touching it, how soon, and whether the answer goes on all the while.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use berth_core::report::{ModelState, Status};
use gpusim::sys::now_ns;

use crate::Berth;
use crate::bench::bus::Bus;
use crate::bench::client::Client;
use crate::stream::Streamed;

const BERTHD: &str = "berthd.service";

/// Between two looks at whether it has taken over.
const LOOK: Duration = Duration::from_millis(2);

/// How long the next berthd may take: so long that only one that never comes passes it.
const DEADLINE: Duration = Duration::from_secs(20);

/// How soon each next berthd had taken over, in nanoseconds, and what the stream came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adoption {
    /// From systemd's start of berthd to its first status that shows the model serving.
    pub from_start: Vec<u64>,
    /// From the kill to that status.
    pub from_kill: Vec<u64>,
    /// Streams that did not run through.
    pub streams_cut: u32,
    /// Tokens that came meanwhile.
    pub tokens: u64,
}

/// Kills berthd so many times under a long answer of this model, which serves. `progress` is told after each how many
/// are done.
///
/// # Errors
/// A next berthd did not take over, or the model was touched.
pub fn under_a_stream(
    berth: &Berth,
    model: &str,
    kills: u32,
    mut progress: impl FnMut(u32),
) -> Result<Adoption> {
    let (client, bus) = (Client::new(berth), Bus::connect(berth)?);
    let unit = format!("berth-model@{model}.service");
    let run = bus.run_of(&unit)?;
    let port = berth.port(model)?;
    let mut adoption = Adoption::default();
    let mut stream = Streamed::open(berth.pid1()?, port)?;
    for done in 1..=kills {
        let killed = now_ns();
        bus.kill(BERTHD)?;
        let (started, shown) = taken_over(&client, &bus, model, killed)?;
        adoption.from_start.push(shown - started);
        adoption.from_kill.push(shown - killed);
        let now = bus.run_of(&unit)?;
        ensure!(now == run, "after {done} kills of berthd {model} was {run:?} and is {now:?}");
        if let Err(error) = stream.goes_on() {
            eprintln!("adoption: after {done} kills: {error:#}");
            adoption.streams_cut += 1;
            adoption.tokens += stream.tokens();
            stream = Streamed::open(berth.pid1()?, port)?;
        }
        progress(done);
    }
    adoption.tokens += stream.tokens();
    Ok(adoption)
}

/// Waits until another berthd than the one that was killed shows the model serving; when that one was started, and
/// when its answer was here.
fn taken_over(client: &Client, bus: &Bus, model: &str, killed: u64) -> Result<(u64, u64)> {
    let begin = Instant::now();
    let serves = |status: &Status| {
        let mut models = status.models.iter();
        models.any(|known| known.name.as_str() == model && known.state == ModelState::Serving)
    };
    loop {
        // Nobody listens until the next one is up.
        if let Ok(status) = client.status()
            && serves(&status)
        {
            let shown = now_ns();
            let started = bus.started(BERTHD)?;
            if started > killed {
                return Ok((started, shown));
            }
        }
        if begin.elapsed() >= DEADLINE {
            bail!("no berthd shows {model} serving {DEADLINE:?} after the last one was killed");
        }
        thread::sleep(LOOK);
    }
}
