//! The program: `gpusim serve` simulates, `gpusim run` claims and execs, `gpusim ctl` turns knobs.

#![allow(clippy::doc_markdown, reason = "clap shows these comments to people as they are")]

mod ctl;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use gpusim::cards::parse_cards;
use gpusim::units::{parse_duration, parse_size};
use gpusim::visible::{Claims, parse_claim};
use gpusim::{Client, client, server};

/// Simulated GPU memory, below NVML.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Simulate cards until killed.
    Serve {
        /// Cards: COUNTxMIB, or several such with commas (2x16311, 1x16GiB,1x24GiB).
        #[arg(long, default_value = "2x16311", value_parser = totals)]
        gpus: Totals,
        /// Where to listen [default: $GPUSIM_SOCKET or /run/gpusim/gpusim.sock].
        #[arg(long)]
        socket: Option<PathBuf>,
        /// Keep counters over restarts in this file.
        #[arg(long)]
        stats: Option<PathBuf>,
        /// Keep cards and knobs over restarts in this file, which then wins over --gpus.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Machines with different seeds have cards with different UUIDs.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Claim memory, then become PROGRAM, which holds it until it dies.
    Run {
        /// DEVICE=SIZE, by place among the visible devices; may be repeated.
        #[arg(long, value_parser = parse_claim)]
        claim: Vec<(u32, u64)>,
        /// This much on each visible device.
        #[arg(long, value_parser = parse_size)]
        claim_each: Option<u64>,
        /// Claim in ten steps over this time.
        #[arg(long, value_parser = parse_duration, default_value = "0s")]
        after: Duration,
        /// What to become.
        #[arg(last = true, required = true)]
        program: Vec<std::ffi::OsString>,
    },
    /// Turn knobs and read counters.
    Ctl {
        #[command(subcommand)]
        verb: ctl::Verb,
    },
    /// Be a foreign process; the server starts these.
    #[command(hide = true)]
    Hold { name: String },
}

/// Totals of the cards in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Totals(Vec<u64>);

pub(crate) fn totals(text: &str) -> Result<Totals, String> {
    parse_cards(text).map(Totals)
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gpusim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Serve { gpus: Totals(cards), socket, stats, config, seed } => {
            let socket = socket.unwrap_or_else(client::default_socket);
            let where_to = socket.display().to_string();
            let ready = || {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                eprintln!("gpusim: serving at {where_to}");
            };
            server::serve(server::Options { cards, seed, socket, stats, config }, ready)
                .with_context(|| format!("can't serve at {where_to}"))?;
        }
        Verb::Run { claim, claim_each, after, program } => {
            return exec(&Claims { on: claim, each: claim_each }, after, &program);
        }
        Verb::Ctl { verb } => ctl::run(verb)?,
        Verb::Hold { name } => gpusim::foreign::hold(&name)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn exec(claims: &Claims, after: Duration, program: &[std::ffi::OsString]) -> Result<ExitCode> {
    if !claims.is_empty() {
        let mut client = Client::connect(Duration::from_secs(2))?;
        if let Err(denied) = claims.take(&mut client, after) {
            if !denied.out_of_memory() {
                return Err(denied.error.into());
            }
            eprintln!("{}", denied.llama_text());
            return Ok(ExitCode::FAILURE);
        }
    }
    let [program, arguments @ ..] = program else { bail!("no program to run") };
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("can't run {}", program.display()))
}
