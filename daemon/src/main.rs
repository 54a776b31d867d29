//! Puts berthd together: settings, ledger, first look, then the driver and those who talk to it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use berth_core::facts::{Facts, Host};
use berthd::act::Hands;
use berthd::cpus;
use berthd::declared::Declared;
use berthd::driver::{Driver, Message, now_ms};
use berthd::events::Events;
use berthd::files::{self, Files};
use berthd::history;
use berthd::http::{self, Api, Sessions};
use berthd::ledger::Ledger;
use berthd::listen::Kept;
use berthd::notify;
use berthd::nvml::Nvml;
use berthd::observe::{self, Order};
use berthd::preflight::Looker;
use berthd::proc::{host_memory, monotonic_now};
use berthd::proxy;
use berthd::rivals;
use berthd::scope::Scope;
use berthd::systemd::Systemd;
use berthd::ticket::Tickets;
use clap::{CommandFactory, Parser};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// sysexits' EX_CONFIG: the unit does not start berthd again after it, since nothing would change.
const BAD_CONFIGURATION: u8 = 78;
/// For at most so long berthd goes on with answers that are under way when it is told to end; less than the unit's
/// `TimeoutStopSec=`.
const LAST_ANSWERS: Duration = Duration::from_secs(60);
/// How long systemd's list of units may fail before berthd gives up and is started again.
const FIRST_LOOK: Duration = Duration::from_secs(30);

/// The Berth daemon. It is started by systemd (berthd.service); talk to it with berthctl.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Run for one user, without root: under that user's own systemd, with that user's folders
    #[arg(long)]
    user: bool,
    /// Folder of berth.toml, models.d and policies.d: /etc/berth, with --user ~/.config/berth
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Folder of the ledger and the history: /var/lib/berth, with --user ~/.local/state/berth
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Folder of the control socket and the ticket socket: /run/berth, with --user $XDG_RUNTIME_DIR/berth
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Print the description of the control API (OpenAPI 3.1, docs/openapi.json)
    #[arg(long, hide = true)]
    openapi: bool,
    /// Print the man page
    #[arg(long, hide = true)]
    man: bool,
}

/// Where what of berthd is.
struct Folders {
    config: PathBuf,
    state: PathBuf,
    run: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.openapi {
        println!("{}", http::openapi_json());
        return ExitCode::SUCCESS;
    }
    if args.man {
        let page = clap_mangen::Man::new(Args::command()).section("8").render(&mut std::io::stdout());
        return if page.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    log();
    let scope = if args.user { Scope::User } else { Scope::System };
    scope.enter();
    let folders = Folders {
        config: args.config.unwrap_or_else(|| scope.config()),
        state: args.state.unwrap_or_else(|| scope.state()),
        run: args.run.unwrap_or_else(|| scope.run()),
    };
    let declared = match Declared::read(&folders.config) {
        Ok(declared) => declared,
        Err(error) => {
            last_words(&error.into());
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&folders, declared)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            last_words(&error);
            ExitCode::FAILURE
        }
    }
}

/// To the journal with its fields where systemd started us, else readable to stderr.
fn log() {
    let asked = std::env::var("BERTH_LOG").ok().map(|asked| asked.parse::<Targets>());
    let (filter, wrong) = match asked {
        Some(Ok(filter)) => (filter, None),
        other => (Targets::new().with_default(LevelFilter::INFO), other.and_then(Result::err)),
    };
    let registry = tracing_subscriber::registry().with(filter);
    match std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok()) {
        Some(journal) => registry.with(journal.with_field_prefix(Some("BERTH".to_owned()))).init(),
        None => registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).init(),
    }
    if let Some(wrong) = wrong {
        tracing::warn!("BERTH_LOG is not understood ({wrong}): write for example info,berthd::proxy=debug");
    }
}

/// Says why berthd ends. On stderr, which systemd knows to be its: whose a record of a process is that has ended by
/// the time it is read, the journal can't tell.
fn last_words(error: &anyhow::Error) {
    // The level, as sd-daemon(3) has it.
    let level = if std::env::var_os("JOURNAL_STREAM").is_some() { "<3>" } else { "" };
    for line in format!("{error:#}").lines() {
        eprintln!("{level}{line}");
    }
}

async fn run(folders: &Folders, declared: Declared) -> anyhow::Result<()> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("the boot id can't be read")?;
    // The machine's comes with its unit.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folders.state)
        .with_context(|| format!("the folder {} can't be made", folders.state.display()))?;
    let (ledger, state, note) = Ledger::open(&folders.state)?;
    if let Some(note) = note {
        tracing::warn!("{note}");
    }
    declared.keep_ports(&state);
    let settings = declared.now();
    let nvml = Nvml::spawn();
    let systemd = Systemd::connect().await.context("systemd can't be asked")?;
    systemd.set_predecessors(settings.predecessors());
    let (tickets, mut taken) = Tickets::serve(&folders.run.join("ticket.sock"))?;
    tokio::spawn(async move {
        while let Some(taken) = taken.recv().await {
            tracing::debug!(model = %taken.model, "ticket taken");
        }
    });
    let files = Files::default();
    let mut facts = first_look(&nvml, &systemd).await?;
    facts.files = files.look(settings.models.values().cloned().collect()).await;

    let (to_driver, messages) = mpsc::channel(256);
    let (order, orders) = watch::channel(Order::Idle);
    let events = Events::new(now_ms());
    let looker = Looker {
        nvml: nvml.clone(),
        systemd: systemd.clone(),
        files: files.clone(),
        declared: declared.clone(),
    };
    let hands = Hands::new(looker.clone(), tickets, to_driver.clone());
    let socket = http::bind(&folders.run.join("berth.sock"), &settings.access)
        .context("the control socket can't be made")?;
    let driver = Driver::new(hands, ledger, events.clone(), order, state, facts, boot.trim());
    observe::spawn(nvml, systemd.clone(), orders, to_driver.clone());
    rivals::spawn(systemd, to_driver.clone());
    files::spawn(files, declared.clone(), to_driver.clone());
    notify::spawn(&settings, &folders.state, &driver.problems());
    let history = history::spawn(&folders.state, &settings.history, events.clone(), to_driver.clone());
    let mut kept = Kept::take(&[settings.http.listen.as_slice(), &settings.proxy.listen].concat());
    let api = Api {
        driver: to_driver.clone(),
        events,
        history,
        looker,
        declared: declared.clone(),
        access: settings.access.clone(),
        sessions: Sessions::default(),
    };
    let reloading = api.clone();
    let server = tokio::spawn(http::serve(socket, kept.listeners(&settings.http.listen), api));
    let (names, traffic) = driver.for_proxy();
    let listeners = kept.listeners(&settings.proxy.listen);
    let (leave, leaving) = watch::channel(false);
    let proxying = proxy::serve(declared.clone(), names, traffic, to_driver.clone(), listeners, leaving);
    tokio::spawn(async move {
        // Models serve without it.
        if let Err(error) = proxying.await {
            tracing::error!(%error, "clients can't be served: {error}");
        }
    });
    let driving = tokio::spawn(driver.run(messages));
    tracing::info!(node = settings.node, models = settings.models.len(), "berthd is up");
    // Started by hand there is no service manager to tell.
    _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("deciding who holds the GPUs")]);

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match reloading.reload().await {
                Ok(_) => tracing::info!("reloaded at a signal"),
                Err(refusal) => tracing::error!(code = refusal.code, "not reloaded: {}", refusal.text),
            }
        }
    });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = server => bail!("the control API ended: {ended:?}"),
        ended = driving => bail!("the driver ended: {ended:?}"),
    }
    _ = sd_notify::notify(&[
        NotifyState::Stopping,
        NotifyState::Status("clients get the end of their answers"),
    ]);
    let last_answers = declared.now().deadlines.drain.min(LAST_ANSWERS);
    _ = leave.send(true);
    if tokio::time::timeout(last_answers, leave.closed()).await.is_err() {
        tracing::warn!("answers that were under way after {} s are cut off", last_answers.as_secs());
    }
    // The state is in the ledger; models go on serving.
    _ = to_driver.send(Message::Quit).await;
    Ok(())
}

/// The first facts. Without systemd's list of units nothing can be taken over; without GPUs it can.
async fn first_look(nvml: &Nvml, systemd: &Systemd) -> anyhow::Result<Facts> {
    let deadline = tokio::time::Instant::now() + FIRST_LOOK;
    loop {
        let fresh = observe::fresh(nvml, systemd).await;
        if let Some(units) = fresh.units {
            let host = Host { memory: host_memory(), cpus: cpus::online() };
            return Ok(Facts { at: monotonic_now(), gpus: fresh.gpus, units, host, ..Facts::none_yet() });
        }
        if tokio::time::Instant::now() >= deadline {
            bail!("systemd did not list its units within {} s", FIRST_LOOK.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
