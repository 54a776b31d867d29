//! `make crash`: berthd killed, its power cut and its calls failed at every point of two switches, then all of it at
//! random. The last line is the verdict; the exit status is 1 where something was violated.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_tests::crash::{self, Case, Outcome, Switch, random};

const USAGE: &str = "usage: crash [--only TEXT] [--sandboxes N] [--random SECONDS] [--seed NUMBER] [--list]";

struct Args {
    /// Only cases whose name has this in it.
    only: String,
    sandboxes: usize,
    random: Duration,
    seed: u64,
    list: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("crash: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn args() -> Result<Args> {
    let mut args =
        Args { only: String::new(), sandboxes: 3, random: Duration::from_mins(3), seed: 1, list: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--list" {
            args.list = true;
            continue;
        }
        let value = words.next().with_context(|| format!("{word} needs a value; {USAGE}"))?;
        let number = || value.parse::<u64>().with_context(|| format!("{value} is no number; {USAGE}"));
        match word.as_str() {
            "--only" => args.only = value,
            "--sandboxes" => args.sandboxes = usize::try_from(number()?)?.max(1),
            "--random" => args.random = Duration::from_secs(number()?),
            "--seed" => args.seed = number()?,
            _ => bail!("{word}? {USAGE}"),
        }
    }
    Ok(args)
}

fn run() -> Result<ExitCode> {
    let args = args()?;
    let start = Instant::now();
    let mut violations = Vec::new();
    let mut berth = crash::machine()?;
    let mut cases = crash::scout(&mut berth, Switch::Done)?;
    cases.extend(crash::scout(&mut berth, Switch::GoesBack)?);
    cases.retain(|case| case.to_string().contains(&args.only));
    if args.list {
        for case in &cases {
            println!("{case}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    println!("crash: {} cases in {} sandboxes", cases.len(), args.sandboxes);
    match crash::finds_an_unsynced_ledger(&mut berth) {
        Ok(found) => {
            println!("crash: with a ledger that is not synced a violation is found, as it must: {found}");
        }
        Err(error) => violations.push(format!("the test of the test: {error:#}")),
    }
    drop(berth);

    let mut ended = 0;
    let all = cases.len();
    let sum = crash::run(cases, args.sandboxes, |case: &Case, outcome: &Outcome, took: Duration| {
        ended += usize::from(!matches!(outcome, Outcome::NotReached));
        let at = start.elapsed().as_secs();
        match outcome {
            Outcome::Converged => {
                println!("crash: {ended}/{all} {at} s  {case}: {:.1} s", took.as_secs_f64());
            }
            Outcome::NotReached => println!("crash: {ended}/{all} {at} s  {case}: not reached this time"),
            Outcome::Violation(evidence) => println!("crash: VIOLATION  {case}: {evidence}"),
        }
    })?;
    violations.extend(sum.violations);
    if !args.random.is_zero() {
        println!("crash: at random for {} s, seed {}", args.random.as_secs(), args.seed);
        let walk =
            random::walk(args.seed, args.random, |step, what| println!("crash: random {step}  {what}"))?;
        println!("crash: {walk}");
        violations.extend(walk.violation);
    }
    for violation in &violations {
        println!("crash: violation: {}", violation.lines().next().unwrap_or_default());
    }
    println!("crash: {:.0} s, {} cases were tried again", start.elapsed().as_secs_f64(), sum.tried_again);
    println!("crash: {} points, {} converged, {} violations", sum.points, sum.converged, violations.len());
    let good = violations.is_empty() && sum.converged == sum.points;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
