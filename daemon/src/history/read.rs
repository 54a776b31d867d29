//! Reads from the file, on connections of its own: neither the writer nor the driver waits for a reader.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::history::{Device, Limits, Thinned, Tier, Window};
use berth_core::report::{
    DeviceHistory, DeviceSample, DevicesHistory, Event, PastProblem, SCHEMA, SwapSummary,
};
use rusqlite::{Connection, Params, Row, params};
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::file::{self, HistoryError, table};

/// How long an answer may take: the largest takes well below a second.
const ANSWER: Duration = Duration::from_secs(10);
/// How many read at a time; others wait for their turn.
const READERS: usize = 4;

/// Reads the history. Clones share what they wait for.
#[derive(Debug, Clone)]
pub struct Reader {
    path: PathBuf,
    limits: Limits,
    turns: Arc<Semaphore>,
    /// Set where a reader met damage: the writer looks then.
    suspect: Arc<AtomicBool>,
}

/// A page of a list, newest first.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// How many.
    pub last: u32,
    /// Only those from before this: of events their id, else the moment they began in milliseconds.
    pub before: Option<u64>,
}

impl Reader {
    pub(super) fn new(path: PathBuf, limits: Limits, suspect: Arc<AtomicBool>) -> Self {
        Self { path, limits, turns: Arc::new(Semaphore::new(READERS)), suspect }
    }

    /// What was seen of the devices.
    pub async fn devices(&self, window: Window, now_ms: u64) -> Result<DevicesHistory, HistoryError> {
        let limits = self.limits;
        self.read(move |connection| in_window(connection, window, &limits, now_ms)).await
    }

    /// Swaps.
    pub async fn swaps(&self, page: Page) -> Result<Vec<SwapSummary>, HistoryError> {
        self.read(move |connection| {
            let of = "SELECT json FROM swap WHERE began_ms < ?1 ORDER BY n DESC LIMIT ?2";
            list(connection, of, params![page.before(), page.last])
        })
        .await
    }

    /// One swap; None where it is not known, or no longer. Of several with this id, after a ledger was begun anew, the
    /// newest.
    pub async fn swap(&self, id: u64) -> Result<Option<SwapSummary>, HistoryError> {
        // SQLite's numbers have a sign; no swap has such a number.
        let Ok(id) = i64::try_from(id) else { return Ok(None) };
        self.read(move |connection| {
            let of = "SELECT json FROM swap WHERE id = ?1 ORDER BY n DESC LIMIT 1";
            Ok(list(connection, of, [id])?.into_iter().next())
        })
        .await
    }

    /// Events; of one kind where that is given.
    pub async fn events(&self, page: Page, kind: Option<String>) -> Result<Vec<Event>, HistoryError> {
        self.read(move |connection| {
            let of =
                "SELECT json FROM event WHERE id < ?1 AND kind = ifnull(?3, kind) ORDER BY id DESC LIMIT ?2";
            list(connection, of, params![page.before(), page.last, kind])
        })
        .await
    }

    /// Problems.
    pub async fn problems(&self, page: Page) -> Result<Vec<PastProblem>, HistoryError> {
        self.read(move |connection| {
            let of = "SELECT json, ended_ms FROM problem WHERE since_ms < ?1 ORDER BY n DESC LIMIT ?2";
            let mut rows = connection.prepare(of)?;
            let found = rows.query_map(params![page.before(), page.last], |row| {
                let ended_ms = row.get(1)?;
                Ok(document(row)?.map(|problem| PastProblem { problem, ended_ms }))
            })?;
            found.filter_map(Result::transpose).collect()
        })
        .await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let silent = || HistoryError::Silent { path: self.path.clone(), after: ANSWER };
        let turn = timeout(ANSWER, Arc::clone(&self.turns).acquire_owned()).await.map_err(|_| silent())?;
        let path = self.path.clone();
        let (handle, stop) = oneshot::channel();
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let connection = file::open_to_read(&path)?;
            // Whoever waits may have gone.
            _ = handle.send(connection.get_interrupt_handle());
            work(&connection).map_err(|source| HistoryError::Sqlite { path, source })
        });
        let read = if let Ok(read) = timeout(ANSWER, reading).await {
            read.unwrap_or_else(|_| Err(silent()))
        } else {
            // It may still wait for the disk to open it.
            if let Ok(Ok(handle)) = timeout(Duration::ZERO, stop).await {
                handle.interrupt();
            }
            Err(silent())
        };
        if read.as_ref().is_err_and(HistoryError::is_damage) {
            self.suspect.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl Page {
    /// For SQLite, whose numbers have a sign.
    fn before(self) -> i64 {
        self.before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX)
    }
}

/// The documents in the first column; what can't be understood, since another version wrote it or a byte of it is wrong,
/// is left out.
fn list<T: DeserializeOwned>(
    connection: &Connection,
    of: &str,
    with: impl Params,
) -> Result<Vec<T>, rusqlite::Error> {
    let mut rows = connection.prepare(of)?;
    let found = rows.query_map(with, |row| document(row))?;
    found.filter_map(Result::transpose).collect()
}

fn document<T: DeserializeOwned>(row: &Row) -> Result<Option<T>, rusqlite::Error> {
    let text = row.get_ref(0)?.as_bytes()?;
    Ok(serde_json::from_slice(text)
        .inspect_err(|error| tracing::debug!(%error, "left out of the history"))
        .ok())
}

/// The devices with their numbers: GPUs by index, then the host.
pub(super) fn devices(connection: &Connection) -> Result<Vec<(i64, Device)>, rusqlite::Error> {
    let of = "SELECT n, id, position, total FROM device ORDER BY position IS NULL, position, n";
    let mut rows = connection.prepare(of)?;
    let rows = rows.query_map([], |row| {
        let total = row.get::<_, Option<u64>>(3)?.map(Bytes);
        Ok((row.get(0)?, Device { id: row.get(1)?, index: row.get(2)?, total }))
    })?;
    rows.collect()
}

/// Gives each row of a tier from a time to `take`, with its device's number; and the moments of the first and the last.
pub(super) fn each_sample(
    connection: &Connection,
    tier: Tier,
    (since_ms, until_ms): (u64, u64),
    mut take: impl FnMut(i64, &DeviceSample),
) -> Result<Option<(u64, u64)>, rusqlite::Error> {
    let until_ms = i64::try_from(until_ms).unwrap_or(i64::MAX);
    let mut rows = connection.prepare(&format!(
        "SELECT device, at_ms, used, used_max, kept, foreign_use, free, temperature_c, power_w, utilization_percent \
         FROM {} WHERE at_ms >= ?1 AND at_ms < ?2 ORDER BY at_ms",
        table(tier)
    ))?;
    let mut rows = rows.query(params![since_ms, until_ms])?;
    let mut span = None;
    while let Some(row) = rows.next()? {
        let bytes = |n: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<u64>>(n)?.map(Bytes));
        let sample = DeviceSample {
            at_ms: row.get(1)?,
            used: bytes(2)?,
            used_max: bytes(3)?,
            kept: bytes(4)?,
            foreign: bytes(5)?,
            free: bytes(6)?,
            temperature_c: row.get(7)?,
            power_w: row.get(8)?,
            utilization_percent: row.get(9)?,
        };
        take(row.get(0)?, &sample);
        span = Some((span.map_or(sample.at_ms, |(first, _)| first), sample.at_ms));
    }
    Ok(span)
}

fn in_window(
    connection: &Connection,
    window: Window,
    limits: &Limits,
    now_ms: u64,
) -> Result<DevicesHistory, rusqlite::Error> {
    let Window { since_ms, until_ms, .. } = window;
    // One picture, though the writer goes on meanwhile.
    let transaction = connection.unchecked_transaction()?;
    let mut thinned = Thinned::new(window);
    let mut take = |tier: Tier, since_ms: u64, until_ms: u64| {
        each_sample(&transaction, tier, (since_ms, until_ms), |n, sample| thinned.take(n, sample))
    };
    let tier = window.tier(limits, now_ms);
    let mut next_ms = since_ms;
    if let Some((oldest, newest)) = take(tier, since_ms, until_ms)? {
        next_ms = newest + tier.span_ms().unwrap_or(1);
        // What is older than this tier reaches is in the coarser ones.
        let (mut coarser, mut oldest) = (tier.coarser(), oldest);
        while let Some(tier) = coarser.filter(|_| oldest > since_ms) {
            oldest = take(tier, since_ms, oldest)?.map_or(oldest, |(first, _)| first);
            coarser = tier.coarser();
        }
    }
    // What is newer than its last mean is in the finer ones.
    let mut finer = tier.finer();
    while let Some(tier) = finer.filter(|_| next_ms < until_ms) {
        next_ms =
            take(tier, next_ms, until_ms)?.map_or(next_ms, |(_, last)| last + tier.span_ms().unwrap_or(1));
        finer = tier.finer();
    }
    let mut samples = thinned.finish();
    let devices = devices(&transaction)?.into_iter().filter_map(|(n, device)| {
        let samples = samples.remove(&n)?;
        Some(DeviceHistory { id: device.id, index: device.index, total: device.total, samples })
    });
    Ok(DevicesHistory { schema: SCHEMA, since_ms, until_ms, devices: devices.collect() })
}
