//! `make soak`: long runs in real time. The last line is the verdict; the exit status is 1 where something
//! grew, stayed behind or failed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_tests::soak::{self, Soak};

const USAGE: &str = "usage: soak [SWITCHES] [MAX_LINGER_MS]   (200 and 3000 without)";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut numbers = Vec::new();
    for word in std::env::args().skip(1) {
        numbers.push(word.parse::<u32>().with_context(|| format!("{word} is no number; {USAGE}"))?);
    }
    if numbers.len() > 2 {
        bail!("{USAGE}");
    }
    let switches = numbers.first().copied().unwrap_or(200);
    let linger = Duration::from_millis(numbers.get(1).copied().unwrap_or(3000).into());
    let plan = Soak { switches, warm_up: 20.min(switches / 2), linger, seed: 1 };

    let start = Instant::now();
    println!("soak: {switches} switches back and forth, memory lingers up to {} ms", linger.as_millis());
    let berth = soak::machine()?;
    let traces = soak::soak(&berth, &plan, |done| {
        if done % 10 == 0 {
            println!("soak: {done} of {switches} after {:.0} s", start.elapsed().as_secs_f64());
        }
    })?;
    for violation in &traces.violations {
        println!("soak: {violation}");
    }
    println!("soak: {traces}");
    Ok(if traces.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
