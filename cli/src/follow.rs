//! Watches one swap to its end. Watching is all it does: a swap goes on without it.

use std::time::Duration;

use anyhow::Context as _;
use berth_core::report::SwapSummary;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, interval, sleep_until};

use crate::client::{Client, Trouble};
use crate::events::{Events, Message};
use crate::progress::Progress;

/// How long berthd may be away in the middle of a swap: a restart of it takes far less.
const AWAY: Duration = Duration::from_secs(15);
/// How often a berthd that is away is asked again.
pub(crate) const RETRY: Duration = Duration::from_millis(250);
/// How often a terminal is drawn again.
const FRAME: Duration = Duration::from_millis(100);

/// How watching ended.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
pub(crate) enum End {
    /// The swap ended.
    Ended(SwapSummary),
    /// `--timeout` passed.
    Timeout,
    /// Ctrl-C.
    Stopped,
    /// berthd went away and did not come back, or no longer knows the swap.
    Lost(Trouble),
}

/// Watches swap `id`, whose first event comes after the event `after`, or from how it stands, until it ends or `until` has
/// come.
pub(crate) async fn follow(
    client: &Client,
    id: u64,
    after: Option<u64>,
    until: Option<Instant>,
    progress: &mut Progress,
) -> anyhow::Result<End> {
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
    let timeout = async {
        match until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        end = watch(client, id, after, progress) => end,
        _ = interrupt.recv() => End::Stopped,
        () = timeout => End::Timeout,
    };
    progress.leave();
    Ok(end)
}

async fn watch(client: &Client, id: u64, after: Option<u64>, progress: &mut Progress) -> End {
    let mut query = after.map_or(String::new(), |after| format!("after={after}&")) + &format!("swap={id}");
    let mut resumed = after.is_none();
    let mut away = Away::default();
    loop {
        let trouble = match stream(client, id, &query, resumed, &mut away, progress).await {
            Ok(swap) => return End::Ended(swap),
            Err(trouble) => trouble,
        };
        match away.again(trouble) {
            Ok(None) => {}
            Ok(Some(note)) => progress.note(&note),
            Err(trouble) => return End::Lost(trouble),
        }
        pause(RETRY, progress).await;
        // A berthd that was restarted counts its events anew: look at the swap itself, and go on from there.
        query = format!("swap={id}");
        resumed = true;
    }
}

/// A berthd that may be away: for how long it has been.
#[derive(Debug, Default)]
pub(crate) struct Away {
    since: Option<Instant>,
}

impl Away {
    /// It said something.
    pub(crate) fn heard(&mut self) {
        self.since = None;
    }

    /// Whether to try again: at first with what to tell the reader; the trouble itself when it is time to give up.
    pub(crate) fn again(&mut self, trouble: Trouble) -> Result<Option<String>, Trouble> {
        if !comes_back(&trouble) {
            return Err(trouble);
        }
        match self.since {
            None => {
                self.since = Some(Instant::now());
                Ok(Some(format!("berthd went away; waiting up to {} s for it", AWAY.as_secs())))
            }
            Some(since) if since.elapsed() > AWAY => Err(trouble),
            Some(_) => Ok(None),
        }
    }
}

/// Whether a restart of berthd explains it.
fn comes_back(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::Unreachable { source, .. } => source.kind() != std::io::ErrorKind::PermissionDenied,
        Trouble::Broken(_) => true,
        Trouble::Answer(problem) => problem.status >= 500,
    }
}

/// Shows one stream of events up to the swap's end; fails where the stream does.
async fn stream(
    client: &Client,
    id: u64,
    query: &str,
    resumed: bool,
    away: &mut Away,
    progress: &mut Progress,
) -> Result<SwapSummary, Trouble> {
    let mut events = Events::open(client, query).await?;
    // After the stream is open, so that nothing falls between the two.
    if resumed && let Some(swap) = ended(client, id, progress).await? {
        return Ok(swap);
    }
    let mut ticks = interval(FRAME);
    loop {
        let message = tokio::select! {
            message = events.next() => message?,
            _ = ticks.tick() => {
                progress.tick();
                continue;
            }
        };
        away.heard();
        match message {
            Message::Event(event) => {
                if let Some(swap) = progress.event(event) {
                    return Ok(swap);
                }
            }
            // Nothing for a while: look instead of trusting that no event was lost.
            Message::Alive => {
                if let Some(swap) = ended(client, id, progress).await? {
                    return Ok(swap);
                }
            }
            Message::End => return Err(Trouble::Broken("berthd closed the event stream".to_owned())),
        }
    }
}

/// Shows the swap as it stands, and gives it when it has ended.
async fn ended(client: &Client, id: u64, progress: &mut Progress) -> Result<Option<SwapSummary>, Trouble> {
    let swap: SwapSummary = client.get(&format!("/api/v1/swaps/{id}")).await?;
    progress.show(&swap);
    Ok(swap.outcome.is_some().then_some(swap))
}

async fn pause(time: Duration, progress: &mut Progress) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        progress.tick();
        tokio::time::sleep(FRAME).await;
    }
}
