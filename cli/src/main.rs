//! berthctl: the command line of Berth.
//!
//! [`args`] is what can be typed, [`verbs`] asks berthd through [`client`], [`follow`] watches a swap, and
//! [`render`] turns reports into text. What berthd is and decides is not known here: only its reports are.

mod access;
mod add;
mod args;
mod changes;
mod check;
mod client;
mod complaint;
mod doctor;
mod events;
mod exit;
mod fit;
mod follow;
mod generate;
mod history;
mod out;
mod progress;
mod remove;
mod render;
mod secret;
mod setup;
mod standalone;
mod systemd;
mod unit;
mod verbs;
mod watch;

use berth_core::report::Verb;
use berth_observe::scope::Scope;
use clap::Parser as _;

use crate::add::Consent;
use crate::args::{Cli, Command, DeviceVerb, bare, request};
use crate::client::Client;
use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;
use crate::verbs::Context;

fn main() -> Exit {
    let cli = Cli::parse();
    let out = Out::new(cli.json, cli.color);
    let scope = if cli.user { Scope::User } else { Scope::found() };
    scope.enter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(run(cli, out)),
        Err(e) => Err(e.into()),
    };
    match ended {
        Ok(Ok(exit)) => exit,
        Ok(Err(complaint)) => complaint.tell(out),
        Err(e) => Complaint::new(Exit::Unreachable, "internal", format!("{e:#}"), &[]).tell(out),
    }
}

async fn run(cli: Cli, out: Out) -> verbs::Ended {
    let berth = Context { client: Client::new(cli.socket, cli.user), out };
    Ok(match cli.verb.unwrap_or(Command::Status { watch: false, markdown: false }) {
        Command::Status { markdown: true, .. } => berth.page().await,
        Command::Status { watch: true, .. } => until_interrupted(true, berth.watch()).await,
        Command::Status { .. } => berth.status().await,
        Command::Plan { verb } => berth.plan(&verb.request()).await,
        Command::Repair => berth.repair().await,
        Command::Device { verb: DeviceVerb::Clear { gpu } } => berth.clear(gpu).await,
        Command::Logs { model, follow, lines } => {
            until_interrupted(follow, berth.logs(&model.name, lines, follow)).await
        }
        Command::Events { follow, last } => until_interrupted(follow, berth.events(last, follow)).await,
        Command::History { swap: Some(id), .. } => berth.past_swap(id).await,
        Command::History { problems: true, last, .. } => berth.past_problems(last).await,
        Command::History { last, .. } => berth.past_swaps(last).await,
        Command::Fit { what, options } => fit::fit(&what, &options, out).await,
        Command::Key { name } => secret::key(&name, out),
        Command::Token { name, rights } => secret::token(&name, rights, out),
        Command::Reload { check } => berth.reload(check).await,
        Command::Add { .. } | Command::Remove { .. } | Command::Setup(_) if Scope::this() == Scope::User => {
            Err(complaint::of_the_machine())
        }
        Command::Add { what, options } => add::add(&what, &options, &berth).await,
        Command::Remove { model, unit, yes, dry_run } => {
            remove::remove(&model, unit, Consent { yes, dry_run }, &berth).await
        }
        Command::Setup(options) => setup::setup(&options, &berth).await,
        Command::Dashboard => berth.dashboard().await,
        Command::Doctor { units, config } => {
            doctor::doctor(&units, &config.folder(), &berth.client, out).await
        }
        Command::Check { config } => check::check(&config.folder(), out),
        Command::Generate { folder } => generate::generate(&folder),
        Command::Switch { which, wait } => return berth.change(&which.request(Verb::Switch), &wait).await,
        Command::Start { which, wait } => return berth.change(&which.request(Verb::Start), &wait).await,
        Command::Stop { which, wait } => return berth.change(&which.request(), &wait).await,
        Command::Restart { model, wait } => return berth.change(&request(Verb::Restart, model), &wait).await,
        Command::Retry { model, wait } => return berth.change(&request(Verb::Retry, model), &wait).await,
        Command::Back { wait } => return berth.change(&bare(Verb::Back), &wait).await,
        Command::Cancel { swap, wait } => return berth.cancel(swap, &wait).await,
    })
}

/// Ends what would go on for ever at Ctrl-C; the rest is left to the signal itself.
async fn until_interrupted(
    endless: bool,
    work: impl Future<Output = Result<Exit, Complaint>>,
) -> Result<Exit, Complaint> {
    if !endless {
        return work.await;
    }
    tokio::select! {
        ended = work => ended,
        _ = tokio::signal::ctrl_c() => Ok(Exit::Stopped),
    }
}
