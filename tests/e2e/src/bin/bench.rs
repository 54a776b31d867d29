//! `make bench`: what a switch costs, beside what others do. Lines of the form `bench: AREA key=value …` on
//! standard output; what is under way on standard error.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_tests::bench::{self, Bench};

const USAGE: &str = "usage: bench [SWITCHES] [OTHERS] [WAIT_SECONDS]   (200, 50 and 20 without)";

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
    let mut numbers = Vec::new();
    for word in std::env::args().skip(1) {
        numbers.push(word.parse::<u32>().with_context(|| format!("{word} is no number; {USAGE}"))?);
    }
    if numbers.len() > 3 || numbers.first() == Some(&0) {
        bail!("{USAGE}");
    }
    let number = |place: usize, default| numbers.get(place).copied().unwrap_or(default);
    let switches = number(0, 200);
    bench::run(&Bench {
        switches,
        others: number(1, 50).min(switches),
        linger: Duration::from_millis(1500),
        wait: Duration::from_secs(number(2, 20).into()),
    })
}
