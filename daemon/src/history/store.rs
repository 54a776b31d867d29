//! Writes what happened and what was seen into the file, and drops what is too old or too much.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_core::history::{self, Change, DROP_MS, Device, ENTRY, Limits, Rollup, Tier};
use berth_core::name::ModelName;
use berth_core::report::{DeviceSample, Event, Problem, Status, SwapSummary, What};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, named_params, params};
use serde::Serialize;

use super::file::{self, HistoryError, table};
use super::read::{devices, each_sample};

/// Between two writes that are synced, where nothing happens: what a power cut takes is at most so much of the samples.
const SYNC_MS: u64 = 60_000;
/// What is kept of each kind, in hundredths, where the file is full before its limits are reached: its entries take more
/// than they should.
const MAKE_ROOM: u64 = 75;
/// So many rows are dropped in one transaction: the log holds what one changes.
const CHUNK: u64 = 2_000;

/// Why a swap has no end.
const CUT_OFF: &str = "it was cut off by the end of berthd; the next one went on from there by looking";

/// The file, open to write.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    connection: Connection,
    limits: Limits,
    /// Numbers of devices as they are in the file, with what was last written of each.
    devices: HashMap<String, (i64, Device)>,
    rollup: Rollup,
    /// The last swap of the ledger that is known to be in the file.
    last_swap: Option<(u64, u64)>,
    synced_ms: u64,
    dropped_ms: u64,
}

/// What is to be written at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Events, oldest first.
    pub(super) events: Vec<Arc<Event>>,
    /// How things are.
    pub(super) status: Option<Status>,
    /// Whether what it says of the devices is to be kept.
    pub(super) sample: bool,
}

impl Store {
    /// Opens or makes the file. `now_ms`: swaps that have no end by then never will.
    pub(super) fn open(path: &Path, limits: Limits, now_ms: u64) -> Result<Self, HistoryError> {
        let connection = file::open(path, &limits)?;
        let mut store = Self {
            path: path.to_owned(),
            connection,
            limits,
            devices: HashMap::new(),
            rollup: Rollup::default(),
            last_swap: None,
            synced_ms: 0,
            dropped_ms: 0,
        };
        let taken = store.take_over(now_ms).and_then(|()| store.drop_old(now_ms));
        // These statements are right for tables that are: one that SQLite does not understand, or what is of another type,
        // is damage that its own check does not see.
        taken.map_err(|source| match source.sqlite_error_code() {
            Some(ErrorCode::Unknown) | None => {
                HistoryError::Damaged { path: path.to_owned(), why: format!("it is damaged ({source})") }
            }
            Some(_) => store.sqlite(source),
        })?;
        Ok(store)
    }

    fn sqlite(&self, source: rusqlite::Error) -> HistoryError {
        HistoryError::Sqlite { path: self.path.clone(), source }
    }

    /// Goes on where the file ends: names of devices, means that had not ended, swaps that were cut off.
    fn take_over(&mut self, now_ms: u64) -> Result<(), rusqlite::Error> {
        for (n, device) in devices(&self.connection)? {
            self.devices.insert(device.id.clone(), (n, device));
        }
        // From where the coarsest tier ends. The finer one ends later: its rows are made again as they are.
        let newest = format!("SELECT ifnull(max(at_ms), 0) FROM {}", table(Tier::Quarter));
        let newest: u64 = self.connection.query_row(&newest, [], |row| row.get(0))?;
        let since_ms = newest.max(now_ms.saturating_sub(self.limits.keep_ms(Tier::Each)));
        let since_ms = since_ms - since_ms % Tier::Quarter.span_ms().unwrap_or(1);
        let mut ended = Vec::new();
        let rollup = &mut self.rollup;
        each_sample(&self.connection, Tier::Each, (since_ms, u64::MAX), |n, sample| {
            ended.extend(
                rollup.take(usize::try_from(n).unwrap_or_default(), sample).into_iter().map(|mean| (n, mean)),
            );
        })?;
        let cut_off: Vec<(i64, String)> = {
            let mut rows = self.connection.prepare("SELECT n, json FROM swap WHERE outcome IS NULL")?;
            let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        let transaction = self.connection.transaction()?;
        for (device, (tier, mean)) in ended {
            insert_sample(&transaction, tier, device, &mean)?;
        }
        for (n, text) in cut_off {
            let Ok(mut swap) = serde_json::from_str::<SwapSummary>(&text) else { continue };
            if swap.reason.is_none() {
                swap.reason = Some(CUT_OFF.to_owned());
                transaction.execute("UPDATE swap SET json = ?2 WHERE n = ?1", params![n, json(&swap)])?;
            }
        }
        transaction.commit()
    }

    /// Writes a batch. After an error nothing of it is in the file.
    pub(super) fn write(&mut self, batch: &Batch, now_ms: u64) -> Result<(), HistoryError> {
        let mut written = self.try_write(batch, now_ms);
        let full = |error: &rusqlite::Error| error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        // On a full disk nothing is dropped: all would be lost, bit by bit, while nothing is written.
        if written.as_ref().is_err_and(full)
            && file::is_at_limit(&self.connection, &self.limits).unwrap_or(false)
        {
            written = self.drop_beyond(MAKE_ROOM, now_ms).and_then(|()| self.try_write(batch, now_ms));
        }
        if written.is_ok() && now_ms.abs_diff(self.dropped_ms) >= DROP_MS {
            written = self.drop_old(now_ms);
        }
        written.map_err(|source| self.sqlite(source))
    }

    fn try_write(&mut self, batch: &Batch, now_ms: u64) -> Result<(), rusqlite::Error> {
        let matters = batch.events.iter().any(|event| {
            matches!(
                event.what,
                What::SwapEnded { .. } | What::ProblemBegan { .. } | What::ProblemEnded { .. }
            )
        });
        let synced = matters || now_ms.abs_diff(self.synced_ms) >= SYNC_MS;
        self.connection.pragma_update(None, "synchronous", if synced { "FULL" } else { "NORMAL" })?;
        let transaction = self.connection.transaction()?;
        for event in &batch.events {
            insert_event(&transaction, event)?;
        }
        // Only what is committed counts: what these would become.
        let (mut devices, mut rollup, mut last_swap) =
            (self.devices.clone(), self.rollup.clone(), self.last_swap);
        if let Some(status) = &batch.status {
            reconcile(&transaction, &status.problems, status.at_ms)?;
            let last = status.last_swap.as_ref();
            if let Some(last) = last.filter(|last| last_swap != Some((last.id, last.began_ms))) {
                // One that ended just before berthd did was not told of here.
                upsert_swap(&transaction, last)?;
                last_swap = Some((last.id, last.began_ms));
            }
            for (device, sample) in history::samples(status).iter().filter(|_| batch.sample) {
                let n = number(&transaction, &mut devices, device)?;
                insert_sample(&transaction, Tier::Each, n, sample)?;
                for (tier, mean) in rollup.take(usize::try_from(n).unwrap_or_default(), sample) {
                    insert_sample(&transaction, tier, n, &mean)?;
                }
            }
        }
        transaction.commit()?;
        (self.devices, self.rollup, self.last_swap) = (devices, rollup, last_swap);
        if synced {
            self.synced_ms = now_ms;
        }
        Ok(())
    }

    fn drop_old(&mut self, now_ms: u64) -> Result<(), rusqlite::Error> {
        self.dropped_ms = now_ms;
        self.drop_beyond(100, now_ms)?;
        file::fit(&self.connection, &self.limits)
    }

    /// Drops what is too old or too much, or beyond `percent` of what there is.
    fn drop_beyond(&self, percent: u64, now_ms: u64) -> Result<(), rusqlite::Error> {
        let Self { connection, limits, .. } = self;
        let part = |of: String| {
            let all: u64 = connection.query_row(&of, [], |row| row.get(0))?;
            Ok::<_, rusqlite::Error>(all * percent / 100)
        };
        for tier in Tier::ALL {
            let table = table(tier);
            let most = part(format!("SELECT count(*) FROM {table}"))?.min(limits.rows);
            let beyond = format!("SELECT at_ms FROM {table} ORDER BY at_ms DESC LIMIT 1 OFFSET ?1");
            let beyond: Option<u64> = connection.query_row(&beyond, [most], |row| row.get(0)).optional()?;
            let old = now_ms.saturating_sub(limits.keep_ms(tier));
            // A row at the same moment as the first that is too many goes with it.
            let before = beyond.map_or(old, |at_ms| old.max(at_ms + 1));
            let chunk = format!(
                "DELETE FROM {table} WHERE at_ms < min(?1, \
                 ifnull((SELECT at_ms FROM {table} ORDER BY at_ms LIMIT 1 OFFSET {CHUNK}), ?1))"
            );
            self.in_chunks(&chunk, before)?;
        }
        let old = now_ms.saturating_sub(limits.lists_ms);
        let size = format!("octet_length(json) * 4 / 3 + {ENTRY}");
        for (table, n, at, most) in [
            ("event", "id", "at_ms", limits.events),
            ("swap", "n", "began_ms", limits.swaps),
            ("problem", "n", "since_ms", limits.problems),
        ] {
            let most = part(format!("SELECT ifnull(sum({size}), 0) FROM {table}"))?.min(most.0);
            // The first that is not too old, or follows the newest with which there is too much.
            let before = format!(
                "SELECT max(ifnull((SELECT {n} FROM {table} WHERE {at} >= ?1 ORDER BY {n} LIMIT 1), \
                 (SELECT max({n}) + 1 FROM {table})), \
                 ifnull((SELECT {n} + 1 FROM (SELECT {n}, sum({size}) OVER (ORDER BY {n} DESC) AS size \
                 FROM {table}) WHERE size > ?2 ORDER BY {n} DESC LIMIT 1), 0))"
            );
            let before: Option<u64> = connection.query_row(&before, params![old, most], |row| row.get(0))?;
            // Problems that stand stay, however long they do.
            let over = if table == "problem" { "AND ended_ms IS NOT NULL" } else { "" };
            let chunk = format!(
                "DELETE FROM {table} WHERE {n} IN (SELECT {n} FROM {table} WHERE {n} < ?1 {over} \
                 ORDER BY {n} LIMIT {CHUNK})"
            );
            self.in_chunks(&chunk, before.unwrap_or(0))?;
        }
        Ok(())
    }

    fn in_chunks(&self, delete: &str, before: u64) -> Result<(), rusqlite::Error> {
        while self.connection.execute(delete, [before])? > 0 {}
        Ok(())
    }
}

fn json(of: &impl Serialize) -> String {
    serde_json::to_string(of).unwrap_or_else(|error| unreachable!("a report is always JSON: {error}"))
}

/// The word that a unit-like value is in JSON.
fn word(of: &impl Serialize) -> Option<String> {
    serde_json::to_value(of).ok().and_then(|value| value.as_str().map(str::to_owned))
}

fn insert_event(transaction: &Transaction, event: &Event) -> Result<(), rusqlite::Error> {
    let (kind, swap) = match &event.what {
        What::SwapBegan { swap } => ("swap_began", Some(swap.id)),
        What::SwapStep { swap, .. } => ("swap_step", Some(*swap)),
        What::SwapEnded { swap } => ("swap_ended", Some(swap.id)),
        What::Model { .. } => ("model", None),
        What::ProblemBegan { .. } => ("problem_began", None),
        What::ProblemEnded { .. } => ("problem_ended", None),
    };
    transaction.execute(
        "INSERT OR REPLACE INTO event (id, at_ms, kind, swap, json) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![event.id, event.at_ms, kind, swap, json(event)],
    )?;
    match &event.what {
        What::SwapBegan { swap } | What::SwapEnded { swap } => upsert_swap(transaction, swap),
        What::SwapStep { swap, step } => {
            let newest = "SELECT json FROM swap WHERE id = ?1 ORDER BY n DESC LIMIT 1";
            let text: Option<String> = transaction.query_row(newest, [swap], |row| row.get(0)).optional()?;
            let Some(mut swap) = text.and_then(|text| serde_json::from_str::<SwapSummary>(&text).ok()) else {
                return Ok(());
            };
            history::add_step(&mut swap, step);
            swap.elapsed_ms = event.at_ms.saturating_sub(swap.began_ms);
            upsert_swap(transaction, &swap)
        }
        What::ProblemBegan { problem } => begin(transaction, problem),
        // Which one is over the picture of the node says, that is looked at with this.
        What::ProblemEnded { .. } | What::Model { .. } => Ok(()),
    }
}

fn upsert_swap(transaction: &Transaction, swap: &SwapSummary) -> Result<(), rusqlite::Error> {
    transaction.execute(
        "INSERT INTO swap (id, began_ms, verb, model, who, outcome, elapsed_ms, json) \
         VALUES (:id, :began_ms, :verb, :model, :who, :outcome, :elapsed_ms, :json) \
         ON CONFLICT (id, began_ms) DO UPDATE \
         SET outcome = excluded.outcome, elapsed_ms = excluded.elapsed_ms, json = excluded.json",
        named_params! {
            ":id": swap.id,
            ":began_ms": swap.began_ms,
            ":verb": word(&swap.verb),
            ":model": swap.model.as_ref().map(ModelName::as_str),
            ":who": swap.by.as_ref().map(|by| &by.user),
            ":outcome": swap.outcome.as_ref().and_then(word),
            ":elapsed_ms": swap.elapsed_ms,
            ":json": json(swap),
        },
    )?;
    Ok(())
}

/// Writes down which problems began and which are over.
fn reconcile(transaction: &Transaction, standing: &[Problem], at_ms: u64) -> Result<(), rusqlite::Error> {
    let open: Vec<String> = {
        let mut rows = transaction.prepare("SELECT key FROM problem WHERE ended_ms IS NULL")?;
        rows.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?
    };
    for change in history::changes(&open, standing) {
        match change {
            Change::Began(problem) => begin(transaction, problem)?,
            Change::Ended(key) => {
                let ended = "UPDATE problem SET ended_ms = ?2 WHERE key = ?1 AND ended_ms IS NULL";
                transaction.execute(ended, params![key, at_ms])?;
            }
        }
    }
    Ok(())
}

/// Writes down that a problem began, unless that is known.
fn begin(transaction: &Transaction, problem: &Problem) -> Result<(), rusqlite::Error> {
    transaction.execute(
        "INSERT INTO problem (key, code, since_ms, json) SELECT ?1, ?2, ?3, ?4 \
         WHERE NOT EXISTS (SELECT 1 FROM problem WHERE key = ?1 AND ended_ms IS NULL)",
        params![problem.key(), problem.code, problem.since_ms, json(problem)],
    )?;
    Ok(())
}

/// A device's number in the file; it gets one where it has none yet.
fn number(
    transaction: &Transaction,
    devices: &mut HashMap<String, (i64, Device)>,
    device: &Device,
) -> Result<i64, rusqlite::Error> {
    if let Some((n, known)) = devices.get(&device.id)
        // A total that is not known now was known before.
        && known.index == device.index
        && (device.total.is_none() || known.total == device.total)
    {
        return Ok(*n);
    }
    let n = transaction.query_row(
        "INSERT INTO device (id, position, total) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE \
         SET position = excluded.position, total = ifnull(excluded.total, total) RETURNING n",
        params![device.id, device.index, device.total.map(|total| total.0)],
        |row| row.get(0),
    )?;
    devices.insert(device.id.clone(), (n, device.clone()));
    Ok(n)
}

fn insert_sample(
    transaction: &Transaction,
    tier: Tier,
    device: i64,
    sample: &DeviceSample,
) -> Result<(), rusqlite::Error> {
    let bytes = |value: Option<berth_core::bytes::Bytes>| value.map(|bytes| bytes.0);
    transaction.execute(
        &format!("INSERT OR REPLACE INTO {} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)", table(tier)),
        params![
            sample.at_ms,
            device,
            bytes(sample.used),
            bytes(sample.used_max),
            bytes(sample.kept),
            bytes(sample.foreign),
            bytes(sample.free),
            sample.temperature_c,
            sample.power_w,
            sample.utilization_percent,
        ],
    )?;
    Ok(())
}
