//! A server's life: what it says, binds, loads, serves, and how it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gpusim::sys::now_ns;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{Server, router};
use crate::args::{Arguments, Style};
use crate::{children, gpu};

/// Lives it; returns the exit code.
pub(crate) fn live(arguments: &Arguments) -> Result<u8> {
    for text in &arguments.print {
        eprintln!("{text}");
    }
    if let Some(code) = arguments.exit_at_once {
        return Ok(code);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("can't start threads")?;
    let ended = runtime.block_on(async {
        // From here on SIGTERM does what the flags say, also while loading.
        let stop = stop(arguments)?;
        tokio::spawn(doom(arguments.clone()));
        let serving = tokio::spawn(serve(arguments.clone()));
        tokio::select! {
            () = stop => Ok(0),
            served = serving => served?.map(|()| 0),
        }
    });
    // What still loads is not waited for.
    runtime.shutdown_background();
    ended
}

/// Says the last words and ends the process.
pub(crate) fn end(words: &str, code: i32) -> ! {
    eprintln!("{words}");
    std::process::exit(code)
}

/// Returns when it is time to end after SIGTERM or SIGINT.
fn stop(arguments: &Arguments) -> Result<impl Future<Output = ()> + use<>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (ignore, slow) = (arguments.ignore_sigterm, arguments.slow_stop);
    Ok(async move {
        loop {
            tokio::select! {
                _ = int.recv() => break,
                _ = term.recv() => {}
            }
            if !ignore {
                break;
            }
            eprintln!("fakellm: ignoring SIGTERM");
        }
        tokio::time::sleep(slow).await;
    })
}

/// The ends that are set for a time after the start.
async fn doom(arguments: Arguments) {
    let Some(after) = arguments.die_after else { return };
    tokio::time::sleep(after).await;
    let Some(number) = arguments.die_signal else { end("fakellm: dying as told", 1) };
    match nix::sys::signal::Signal::try_from(number) {
        // Rust's own handler lets the first SIGSEGV or SIGBUS pass, and the next one through.
        Ok(signal) => loop {
            let _ = nix::sys::signal::raise(signal);
        },
        Err(error) => end(&format!("fakellm: {number} is no signal: {error}"), 1),
    }
}

/// Hangs from a signal on.
async fn hang(server: Arc<Server>) {
    let signals = (signal(SignalKind::user_defined1()), signal(SignalKind::user_defined2()));
    let (Ok(mut health), Ok(mut tokens)) = signals else { return };
    loop {
        tokio::select! {
            _ = health.recv() => server.mute.store(true, Ordering::SeqCst),
            _ = tokens.recv() => server.numb.store(true, Ordering::SeqCst),
        }
    }
}

async fn serve(arguments: Arguments) -> Result<()> {
    let server = Server::new(&arguments);
    tokio::spawn(hang(Arc::clone(&server)));
    let late = arguments.bind_late || arguments.style == Style::Vllm;
    let (began, began_ns) = (Instant::now(), now_ns());
    eprintln!("fakellm: {} loads: {}", server.name, gpu::summary(&arguments));
    let mut early = None;
    if !late {
        early = Some(tokio::spawn(listen(bind(&arguments).await?, Arc::clone(&server))));
    }
    load(&arguments).await?;
    let ready_ns = now_ns();
    server.ready.store(true, Ordering::SeqCst);
    // The stamps are for benchmarks, which hold them against those of systemd and gpusim.
    eprintln!(
        "fakellm: {} loaded in {:.1} s, began_ns={began_ns} ready_ns={ready_ns}",
        server.name,
        began.elapsed().as_secs_f64()
    );
    match early {
        Some(listening) => listening.await?,
        None => listen(bind(&arguments).await?, server).await,
    }
}

async fn bind(arguments: &Arguments) -> Result<TcpListener> {
    let (host, port) = arguments.address();
    match TcpListener::bind((host.as_str(), port)).await {
        Ok(listener) => Ok(listener),
        Err(error) => match arguments.style {
            Style::Llama => {
                end(&format!("start: couldn't bind HTTP server socket, hostname: {host}, port: {port}"), 1)
            }
            Style::Vllm => end(&format!("OSError: {error}: ('{host}', {port})"), 1),
        },
    }
}

async fn listen(listener: TcpListener, server: Arc<Server>) -> Result<()> {
    let address = listener.local_addr()?;
    eprintln!("fakellm: {} is listening on http://{address}", server.name);
    axum::serve(listener, router(server)).await.context("can't serve")
}

/// Loads: children first, then memory, or whatever goes wrong instead.
async fn load(arguments: &Arguments) -> Result<()> {
    let loading = {
        let arguments = arguments.clone();
        tokio::task::spawn_blocking(move || {
            children::start(&arguments)?;
            gpu::load(&arguments)
        })
    };
    let never = arguments.never_ready;
    let style = arguments.style;
    tokio::select! {
        loaded = async {
            let loaded = loading.await;
            if never && matches!(loaded, Ok(Ok(()))) {
                std::future::pending::<()>().await;
            }
            loaded
        } => match loaded? {
            Ok(()) => Ok(()),
            Err(error) => match error.downcast::<gpu::NoMemory>() {
                Ok(no_memory) => end(&no_memory.0, 1),
                Err(error) => Err(error),
            },
        },
        () = sleep(arguments.oom_after) => end(&gpu::pretended(style), 1),
    }
}

/// Sleeps, for ever without a time.
async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
