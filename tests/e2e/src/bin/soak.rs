//! `make soak`: long runs in real time. The last line of each is its verdict; the exit status is 1 where something
//! grew, stayed behind or failed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_tests::crowd::{self, Crowd};
use berth_tests::soak::{self, Soak};

const USAGE: &str =
    "usage: soak [SWITCHES [MAX_LINGER_MS [CROWD_SECONDS]]]   (200, 3000 and 600 without; 0: not at all)";

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
    if numbers.len() > 3 {
        bail!("{USAGE}");
    }
    let number = |at: usize, otherwise| numbers.get(at).copied().unwrap_or(otherwise);
    let mut violations = 0;
    if number(0, 200) > 0 {
        violations += switches(number(0, 200), Duration::from_millis(number(1, 3000).into()))?;
    }
    if number(2, 600) > 0 {
        violations += clients(Duration::from_secs(number(2, 600).into()))?;
    }
    Ok(if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Switches back and forth.
fn switches(switches: u32, linger: Duration) -> Result<usize> {
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
    Ok(traces.violations.len())
}

/// Clients who ask for models that can't be resident together.
fn clients(time: Duration) -> Result<usize> {
    let plan = Crowd { clients: 64, time, turn: Duration::from_secs(10), seed: 1 };
    let start = Instant::now();
    println!(
        "soak: {} clients on three models that don't fit together, for {} s",
        plan.clients,
        time.as_secs()
    );
    let berth = crowd::machine(plan.turn)?;
    let mut said = 0;
    let served = crowd::crowd(&berth, &plan, |answers| {
        if start.elapsed().as_secs() / 30 > said {
            said = start.elapsed().as_secs() / 30;
            println!("soak: {answers} answers after {:.0} s", start.elapsed().as_secs_f64());
        }
    })?;
    for violation in &served.violations {
        println!("soak: {violation}");
    }
    println!("soak: crowd {served}");
    Ok(served.violations.len())
}
