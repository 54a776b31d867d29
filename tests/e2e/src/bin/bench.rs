//! `make bench`: what a switch costs, beside what others do, what a restart of berthd, a power cut and the edge
//! of memory do, and what the proxy adds. Lines of the form `bench: AREA key=value …` on standard output; what is under way on standard error.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_tests::bench::{self, Bench};

const USAGE: &str = "usage: bench [PART[=NUMBER]]…, all of these without:
  switch=200   switches by Berth
  others=50    switches each other way, beside those
  wait=20      seconds for which memory lingers while berthd's CPU time is taken
  adopt=50     kills of berthd under a stream
  recovery=10  power cuts
  edge=1000    restarts of a model that takes nearly all memory
  plan         how long a plan takes for 8 GPUs and 100 models
  listeners=50 switches while 200 listen, and as many while nobody does
  proxy=2000   answers in each of twelve rounds through Berth's proxy, nginx and none, with 1, 16 and 64 connections";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // The server behind the proxies: this program, started by Berth in its sandbox.
    if let [word, address] = &words[..]
        && word == "upstream"
    {
        let address = address.parse().with_context(|| format!("{address} is no address"))?;
        return bench::serve(address).map(|never| match never {});
    }
    let parts = [
        ("switch", 200),
        ("others", 50),
        ("wait", 20),
        ("adopt", 50),
        ("recovery", 10),
        ("edge", 1000),
        ("plan", 1),
        ("proxy", 2000),
        ("listeners", 50),
    ];
    let mut numbers = parts.map(|(part, usual)| (part, if words.is_empty() { usual } else { 0 }));
    for word in &words {
        let (part, number) = word.split_once('=').unwrap_or((word, ""));
        let place = parts.iter().position(|(known, _)| *known == part);
        let place = place.with_context(|| format!("there is no part `{part}`\n{USAGE}"))?;
        numbers[place].1 = match number {
            "" => parts[place].1,
            number => number.parse().with_context(|| format!("{number} is no number\n{USAGE}"))?,
        };
    }
    let [switches, others, wait, kills, boots, restarts, plan, proxied, listened] =
        numbers.map(|(_, number)| number);
    if others > switches {
        bail!("{others} switches each other way can't be spread over {switches} by Berth\n{USAGE}");
    }
    bench::run(&Bench {
        switches,
        others,
        linger: Duration::from_millis(1500),
        wait: Duration::from_secs(wait.into()),
        kills,
        boots,
        restarts,
        plan: plan > 0,
        proxied,
        listened,
    })
}
