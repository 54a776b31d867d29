//! What a proxy adds to the way to a model server: Berth's and nginx, beside no proxy at all.
//!
//! ```text
//!            ┌─────────────── direct ───────────────┐
//!  Load ─────┼─── Berth's proxy in berthd ──────────┼───► the trivial upstream, a model of Berth's
//!            └─── nginx, two workers ───────────────┘
//! ```
//!
//! All of it is in one guest's network. The ways take turns within each round, so that whatever else this machine does
//! falls on all of them alike; each time the connections are new, warm, and then kept.

mod load;
mod nginx;
mod upstream;

use std::collections::BTreeMap;
use std::env;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::client::Client;
use super::figures::percentile;
use crate::{Berth, http};
use load::{Load, Taken};
use upstream::{Kind, MODEL};

pub use upstream::serve;

/// Where Berth's proxy listens unless it is told otherwise.
const BERTH: u16 = 8010;

/// Where the guest has the upstream's program, which is this one.
const PROGRAM: &str = "/usr/bin/berth-bench";

/// How often all of it is measured: twice with the ways in each of their orders.
const ROUNDS: usize = 12;

/// How many are asked for at once.
const CONNECTIONS: [usize; 3] = [1, 16, 64];

/// A stream takes as long as so many answers in one piece, roughly, and there are fewer for it.
const ANSWERS_PER_STREAM: u32 = 200;

/// From the start of a server until it must answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// How a request gets to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Direct,
    Berth,
    Nginx,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Direct => "direct",
            Way::Berth => "berth",
            Way::Nginx => "nginx",
        }
    }

    fn port(self, kind: Kind, upstream: u16) -> u16 {
        match self {
            Way::Direct => upstream,
            Way::Berth => BERTH,
            Way::Nginx => nginx::port(kind),
        }
    }
}

/// All that one way took with so many connections, and answers per second in each round.
#[derive(Debug, Default)]
struct Cell {
    taken: Taken,
    rates: Vec<f64>,
}

/// All figures.
#[derive(Debug, Default)]
struct Figures(BTreeMap<(Kind, usize, Way), Cell>);

/// Measures with so many answers in each round, way and number of connections, and prints the figures. `progress` is
/// told after each round how many are done, and of how many.
///
/// # Errors
/// nginx is missing, an answer was not the upstream's, or Berth's proxy does not answer. The others' figures are printed
/// then nonetheless, and nothing is compared.
pub(super) fn measure(answers: u32, mut progress: impl FnMut(usize, usize)) -> Result<()> {
    let myself = env::current_exe().context("where is this program?")?;
    let declaration = format!(
        "cmd = \"{PROGRAM} upstream {{host}}:{{port}}\"\nbackend = \"command\"\nmemory = {{ gpu = \"64 MiB\" }}\n\
         ready = {{ health = \"/health\", generate = false }}\n"
    );
    let builder = Berth::builder().main("node = \"tower\"\n").program(myself, PROGRAM);
    let berth = builder.model(MODEL, &declaration).try_boot()?;
    let upstream = berth.port(MODEL)?;
    Client::new(&berth).change("switch", MODEL)?.ended()?;
    nginx::start(&berth, upstream)?;

    let pid1 = berth.pid1()?;
    let ask = |way: Way, kind, connections, answers| {
        let load = Load { port: way.port(kind, upstream), kind, connections, answers };
        http::inside(pid1, || load.run())
    };
    let answers_to = |way| {
        let begin = Instant::now();
        loop {
            let answered =
                [Kind::Whole, Kind::Streamed].iter().try_for_each(|kind| ask(way, *kind, 1, 1).map(drop));
            if answered.is_ok() || begin.elapsed() >= DEADLINE {
                return answered.with_context(|| format!("{} does not answer", way.name()));
            }
            thread::sleep(Duration::from_millis(50));
        }
    };
    answers_to(Way::Direct)?;
    answers_to(Way::Nginx)?;
    let missing = answers_to(Way::Berth).err();
    let ways = if let Some(error) = &missing {
        eprintln!("bench: Berth's proxy at port {BERTH} is left out: {error:#}");
        vec![Way::Direct, Way::Nginx]
    } else {
        vec![Way::Direct, Way::Berth, Way::Nginx]
    };

    let mut figures = Figures::default();
    for round in 0..ROUNDS {
        for (kind, connections) in
            [Kind::Whole, Kind::Streamed].into_iter().flat_map(|kind| CONNECTIONS.map(|many| (kind, many)))
        {
            let answers = match kind {
                Kind::Whole => answers as usize,
                Kind::Streamed => (answers / ANSWERS_PER_STREAM).max(1) as usize * connections,
            };
            let mut order = ways.clone();
            order.rotate_left(round % ways.len());
            if round / ways.len() % 2 == 1 {
                order.reverse();
            }
            for way in order {
                let taken = ask(way, kind, connections, answers).with_context(|| {
                    format!("{} with {connections} connections failed in round {}", way.name(), round + 1)
                })?;
                figures.0.entry((kind, connections, way)).or_default().take(taken);
            }
        }
        progress(round + 1, ROUNDS);
    }
    figures.say(&ways)?;
    match missing {
        Some(error) => Err(error.context(format!(
            "Berth's proxy was not measured, at port {BERTH} of the guest, and so it is compared with nothing"
        ))),
        None => figures.compare(),
    }
}

impl Cell {
    fn take(&mut self, taken: Taken) {
        self.rates.push(taken.first.len() as f64 / taken.time.as_secs_f64());
        self.taken.first.extend(taken.first);
        self.taken.gaps.extend(taken.gaps);
    }

    /// Answers per second, the median of all rounds.
    fn rate(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        let middle = [rates.len().saturating_sub(1) / 2, rates.len() / 2];
        middle.iter().filter_map(|place| rates.get(*place)).sum::<f64>() / 2.0
    }

    /// What a request took, at this percentile, in microseconds.
    fn first(&self, percent: usize) -> f64 {
        percentile(&self.taken.first, percent) as f64 / 1e3
    }

    /// What lay between two tokens, at this percentile, in milliseconds.
    fn gap(&self, percent: usize) -> f64 {
        percentile(&self.taken.gaps, percent) as f64 / 1e6
    }
}

impl Figures {
    fn cell(&self, kind: Kind, connections: usize, way: Way) -> Result<&Cell> {
        self.0.get(&(kind, connections, way)).with_context(|| format!("{} was not measured", way.name()))
    }

    /// What a way adds to a request, in microseconds.
    fn added(&self, kind: Kind, connections: usize, way: Way, percent: usize) -> Result<f64> {
        let direct = self.cell(kind, connections, Way::Direct)?.first(percent);
        Ok(self.cell(kind, connections, way)?.first(percent) - direct)
    }

    /// A line for each way, kind and number of connections.
    fn say(&self, ways: &[Way]) -> Result<()> {
        for connections in CONNECTIONS {
            for way in ways {
                let cell = self.cell(Kind::Whole, connections, *way)?;
                println!(
                    "bench: proxy answer connections={connections} way={} p50_us={:.0} p99_us={:.0} added_p50_us={:.0} \
                     added_p99_us={:.0} per_second={:.0} answers={}",
                    way.name(),
                    cell.first(50),
                    cell.first(99),
                    self.added(Kind::Whole, connections, *way, 50)?,
                    self.added(Kind::Whole, connections, *way, 99)?,
                    cell.rate(),
                    cell.taken.first.len(),
                );
            }
        }
        for connections in CONNECTIONS {
            for way in ways {
                let cell = self.cell(Kind::Streamed, connections, *way)?;
                println!(
                    "bench: proxy stream connections={connections} way={} first_p50_us={:.0} first_p99_us={:.0} \
                     added_p50_us={:.0} added_p99_us={:.0} gap_p50_ms={:.2} gap_p99_ms={:.2} streams={}",
                    way.name(),
                    cell.first(50),
                    cell.first(99),
                    self.added(Kind::Streamed, connections, *way, 50)?,
                    self.added(Kind::Streamed, connections, *way, 99)?,
                    cell.gap(50),
                    cell.gap(99),
                    cell.taken.first.len(),
                );
            }
        }
        Ok(())
    }

    /// The figures by which Berth is judged.
    fn compare(&self) -> Result<()> {
        let added = |way| self.added(Kind::Whole, 1, way, 50);
        let (ours, theirs) = (added(Way::Berth)?, added(Way::Nginx)?);
        if theirs <= 0.0 {
            bail!("nginx took no longer than the direct way: this machine is too busy to measure on");
        }
        let rate = |way| self.cell(Kind::Whole, 64, way).map(Cell::rate);
        let gap = |way| self.cell(Kind::Streamed, 1, way).map(|cell| cell.gap(50));
        println!(
            "bench: proxy added_p50_ratio_nginx={:.2} throughput64_ratio_nginx={:.2} stream_gap_ratio_direct={:.3}",
            ours / theirs,
            rate(Way::Berth)? / rate(Way::Nginx)?,
            gap(Way::Berth)? / gap(Way::Direct)?,
        );
        Ok(())
    }
}
