//! The history in real files: damaged, full, newer, of a year.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::facts::Known;
use berth_core::history::{DROP_MS, ROW, Window};
use berth_core::report::{
    Event, GpuBalance, GpuStatus, HostStatus, ModelState, Outcome, Problem, SCHEMA, Step, StepReport,
    StepState, SwapSummary, Verb,
};
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;

/// A quarter of an hour begins.
const NOW: u64 = 1_795_500_000_000;
const DAY_MS: u64 = 24 * 3_600_000;

/// A folder with a history in it, and those who write and read it.
struct Kept {
    folder: TempDir,
    limits: Limits,
    suspect: Arc<AtomicBool>,
    writer: Writer,
}

fn limits(size: Bytes) -> Limits {
    Limits::new(&config::History {
        every: Duration::from_secs(1),
        samples: Duration::from_secs(14 * 86_400),
        keep: Duration::from_secs(730 * 86_400),
        size,
    })
}

impl Kept {
    fn new(limits: Limits) -> Self {
        Self::within(tempfile::tempdir().unwrap(), limits)
    }

    fn within(folder: TempDir, limits: Limits) -> Self {
        let suspect = Arc::new(AtomicBool::new(false));
        let path = folder.path().join(file::NAME);
        let writer = Writer { path, limits, suspect: Arc::clone(&suspect), store: None, aside: None };
        Self { folder, limits, suspect, writer }
    }

    /// berthd ends and comes back.
    fn restart(self) -> Self {
        drop(self.writer);
        Self::within(self.folder, self.limits)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(file::NAME)
    }

    fn reader(&self) -> Reader {
        Reader::new(self.path(), self.limits, Arc::clone(&self.suspect))
    }

    fn store(&self) -> Store {
        Store::open(&self.path(), self.limits, NOW).unwrap()
    }

    /// What the file and all that belongs to it take.
    fn size(&self) -> u64 {
        fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    }

    fn aside(&self) -> Vec<PathBuf> {
        let mut all = file::aside_in(self.folder.path()).unwrap();
        all.sort();
        all
    }
}

fn status(at_ms: u64, used: Option<u64>, problems: &[Problem]) -> Status {
    let gpu = |index: u32| GpuStatus {
        index,
        id: format!("GPU-{index}"),
        name: "a card".into(),
        age_ms: 0,
        memory: used.map_or_else(
            || Known::Unknown("it is lost".into()),
            |mib| {
                Known::Value(GpuBalance {
                    total: Bytes::mib(16_311),
                    reserved: Bytes::mib(456),
                    used: Bytes::mib(mib),
                    free: Bytes::mib(16_311 - mib),
                    foreign: Bytes(412_345_678),
                    kept: Bytes::mib(mib),
                    headroom: Bytes::mib(256),
                })
            },
        ),
        suspect: None,
        holders: Known::Value(Vec::new()),
        temperature_c: Some(52),
        power_w: Some(180),
        utilization_percent: Some(97),
    };
    Status {
        schema: SCHEMA,
        node: "tower".into(),
        version: String::new(),
        at_ms,
        uptime_ms: None,
        default: None,
        home: Vec::new(),
        gpus: Known::Value(vec![gpu(0), gpu(1)]),
        host: Known::Value(HostStatus { total: Bytes::mib(31_846), available: Bytes::mib(21_810) }),
        models: Vec::new(),
        swap: None,
        placements: Vec::new(),
        last_swap: None,
        problems: problems.to_vec(),
    }
}

fn seen(status: Status) -> Batch {
    Batch { events: Vec::new(), status: Some(status), sample: true }
}

fn swap(id: u64, began_ms: u64, outcome: Option<Outcome>) -> SwapSummary {
    let step = |step, elapsed_ms| StepReport {
        step,
        state: StepState::Done,
        rollback: false,
        model: None,
        elapsed_ms,
        expected_ms: None,
        detail: "GPU 0 after 1.31 s, GPU 1 after 2.48 s".into(),
    };
    SwapSummary {
        id,
        verb: Verb::Switch,
        model: "genesis".parse().ok(),
        by: None,
        stops: Vec::new(),
        starts: vec!["genesis".parse().unwrap()],
        gpus: vec![0, 1],
        gpu_bytes: Vec::new(),
        began_ms,
        elapsed_ms: 5_000,
        expected_ms: None,
        steps: outcome
            .map_or_else(Vec::new, |_| vec![step(Step::Released, 2_480), step(Step::Ready, 55_200)]),
        outcome,
        reason: None,
        failure: None,
        held_at_exit: None,
        cancelled: false,
        early_start_would_fail: false,
        gap_ms: None,
        serving: Vec::new(),
        default: None,
        undo: None,
    }
}

fn events(whats: Vec<What>, from: u64) -> Batch {
    let event =
        |(n, what): (u64, What)| Arc::new(Event { schema: SCHEMA, id: from + n, at_ms: NOW + n, what });
    Batch { events: (0..).zip(whats).map(event).collect(), status: None, sample: false }
}

fn problem(code: &str) -> Problem {
    Problem { code: code.into(), subject: "GPU 1".into(), since_ms: NOW, text: "t".into(), next: "n".into() }
}

const PAGE: Page = Page { last: 100, before: None };

#[tokio::test]
async fn what_was_written_is_read_again_after_berthd_died() {
    let kept = Kept::new(limits(Bytes::mib(64)));
    let done = swap(1, NOW, Some(Outcome::Done));
    let began = swap(2, NOW + 9_000, None);
    let step = StepReport { state: StepState::Began, elapsed_ms: 10, ..done.steps[0].clone() };
    let whats = vec![
        What::SwapBegan { swap: swap(1, NOW, None) },
        What::SwapStep { swap: 1, step: step.clone() },
        What::SwapEnded { swap: done.clone() },
        What::ProblemBegan { problem: problem("gpu_unknown") },
        What::SwapBegan { swap: began.clone() },
        What::SwapStep { swap: 2, step: step.clone() },
    ];
    let mut store = kept.store();
    store.write(&events(whats, 7), NOW).unwrap();
    store
        .write(&seen(status(NOW + 1_000, Some(14_000), &[problem("gpu_unknown"), problem("rival")])), NOW)
        .unwrap();
    store.write(&seen(status(NOW + 2_000, None, &[problem("rival")])), NOW).unwrap();
    // It says nothing to the end: what is written is written.
    std::mem::forget(store);

    let kept = kept.restart();
    drop(kept.store());
    let reader = kept.reader();
    let cut = SwapSummary {
        steps: vec![step],
        elapsed_ms: 0,
        reason: Some(
            "it was cut off by the end of berthd; the next one went on from there by looking".into(),
        ),
        ..began
    };
    assert_eq!(reader.swaps(PAGE).await.unwrap(), [cut.clone(), done.clone()]);
    let earlier = Page { before: Some(NOW + 9_000), ..PAGE };
    assert_eq!(reader.swaps(earlier).await.unwrap(), std::slice::from_ref(&done));
    assert_eq!(reader.swaps(Page { last: 1, ..PAGE }).await.unwrap(), [cut]);
    assert_eq!(reader.swap(1).await.unwrap(), Some(done));
    assert_eq!(reader.swap(3).await.unwrap(), None);
    let ids = |events: &[Event]| events.iter().map(|event| event.id).collect::<Vec<_>>();
    assert_eq!(ids(&reader.events(PAGE, None).await.unwrap()), [12, 11, 10, 9, 8, 7]);
    assert_eq!(ids(&reader.events(Page { before: Some(9), last: 1 }, None).await.unwrap()), [8]);
    assert_eq!(ids(&reader.events(PAGE, Some("swap_step".into())).await.unwrap()), [12, 8]);
    let problems = reader.problems(PAGE).await.unwrap();
    let problems: Vec<_> = problems.iter().map(|past| (past.problem.code.as_str(), past.ended_ms)).collect();
    assert_eq!(problems, [("rival", None), ("gpu_unknown", Some(NOW + 2_000))]);

    let window = Window::new(Some(NOW), Some(NOW + 5_000), Some(5), NOW).unwrap();
    let devices = reader.devices(window, NOW + 5_000).await.unwrap().devices;
    let found: Vec<_> =
        devices.iter().map(|device| (device.id.as_str(), device.index, device.total)).collect();
    let total = Some(Bytes::mib(16_311));
    let host = ("host", None, Some(Bytes::mib(31_846)));
    assert_eq!(found, [("GPU-0", Some(0), total), ("GPU-1", Some(1), total), host]);
    let used: Vec<_> = devices[0].samples.iter().map(|sample| (sample.at_ms, sample.used)).collect();
    assert_eq!(
        used,
        [(NOW + 1_000, Some(Bytes::mib(14_000))), (NOW + 2_000, None)],
        "unknown is not nothing"
    );
}

#[tokio::test]
async fn a_swap_that_ended_with_berthd_is_taken_from_the_ledger() {
    let kept = Kept::new(limits(Bytes::mib(64)));
    let mut store = kept.store();
    store.write(&events(vec![What::SwapBegan { swap: swap(1, NOW, None) }], 1), NOW).unwrap();
    drop(store);
    let last = swap(1, NOW, Some(Outcome::Restored));
    let status = Status { last_swap: Some(last.clone()), ..status(NOW, None, &[]) };
    kept.store().write(&seen(status), NOW).unwrap();
    assert_eq!(kept.reader().swaps(PAGE).await.unwrap(), [last]);
}

/// Rows of the coarser tiers are as if berthd had never been away, and a time is shown whole though it is in all tiers.
#[tokio::test]
async fn means_go_on_over_a_restart_and_tiers_are_joined() {
    let mut kept = Kept::new(limits(Bytes::mib(64)));
    for minute in 0..125u64 {
        let at_ms = NOW + minute * 60_000;
        let mut store = Store::open(&kept.path(), kept.limits, at_ms).unwrap();
        for second in [0, 20, 40] {
            let at_ms = at_ms + second * 1_000;
            store.write(&seen(status(at_ms, Some(100 + minute), &[])), at_ms).unwrap();
        }
        drop(store);
        kept = kept.restart();
    }
    let now = NOW + 125 * 60_000;
    let file = Connection::open(kept.path()).unwrap();
    let count = |table: &str| {
        let count = format!("SELECT count(*) FROM {table} WHERE device = 1");
        file.query_row(&count, [], |row| row.get::<_, u64>(0)).unwrap()
    };
    assert_eq!((count("sample"), count("sample_minute"), count("sample_quarter")), (375, 124, 8));
    let quarter = "SELECT used, used_max FROM sample_quarter ORDER BY at_ms LIMIT 1";
    let quarter = file.query_row(quarter, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(quarter, (107 << 20, 114 << 20), "the mean and the peak of 100 to 114");

    // The finest tier no longer reaches back: what is older comes from the coarser ones, what is newest from the finer.
    file.execute("DELETE FROM sample WHERE at_ms < ?1", [NOW + 90 * 60_000]).unwrap();
    file.execute("DELETE FROM sample_minute WHERE at_ms < ?1", [NOW + 60 * 60_000]).unwrap();
    for points in [7_200 / 60, 7_200 / 900, 2_000] {
        let window = Window::new(Some(NOW), Some(now), Some(points), now).unwrap();
        let devices = kept.reader().devices(window, now).await.unwrap().devices;
        let samples = &devices[0].samples;
        assert_eq!(samples[0].at_ms, NOW, "{points} points");
        assert!(now - samples.last().unwrap().at_ms <= (now - NOW) / points + 60_000, "{points} points");
        let wrong = samples
            .windows(2)
            .find(|pair| pair[0].used > pair[1].used || pair[1].at_ms - pair[0].at_ms > 2_000_000);
        assert_eq!(wrong, None, "{points} points: they go up, and nothing is missing");
    }
}

/// Reads all that there is; gives the swaps.
async fn everything(reader: &Reader) -> Result<Vec<SwapSummary>, HistoryError> {
    let window = Window::new(Some(NOW), Some(NOW + 300_000), None, NOW).unwrap();
    _ = reader.devices(window, NOW).await?;
    _ = (reader.problems(PAGE).await?, reader.events(PAGE, None).await?);
    reader.swaps(PAGE).await
}

/// Whatever byte is wrong and wherever the file ends: it is read or set aside, and what happens next is kept.
#[tokio::test]
async fn a_damaged_file_is_read_or_set_aside() {
    let sound = Kept::new(limits(Bytes::mib(64)));
    let mut store = sound.store();
    for n in 0..60 {
        let ended = What::SwapEnded { swap: swap(n, NOW + n, Some(Outcome::Done)) };
        store.write(&events(vec![ended], 10 * n), NOW).unwrap();
        store.write(&seen(status(NOW + n * 1_000, Some(n), &[problem("rival")])), NOW).unwrap();
    }
    drop(store);
    let bytes = fs::read(sound.path()).unwrap();
    let (mut set_aside, mut read) = (0, 0);
    let places = (0..100).chain((100..bytes.len()).step_by(bytes.len() / 120));
    for (n, place) in places.enumerate() {
        let mut damaged = bytes.clone();
        if n % 4 == 3 {
            damaged.truncate(place);
        } else {
            damaged[place] ^= [0xff, 0x01, 0x80][n % 4];
        }
        let mut kept = Kept::new(limits(Bytes::mib(64)));
        fs::write(kept.path(), &damaged).unwrap();
        let new = swap(99, NOW + DAY_MS, Some(Outcome::Done));
        let batch = events(vec![What::SwapEnded { swap: new.clone() }], 1_000);
        kept.writer.write(&batch, NOW).unwrap_or_else(|error| panic!("byte {place}: {error}"));
        let swaps = match everything(&kept.reader()).await {
            Ok(swaps) => swaps,
            Err(error) => {
                // What the check of the whole does not see a reader meets: with the next write it is set aside.
                assert!(error.is_damage() && kept.aside().is_empty(), "byte {place}: {error}");
                kept.writer.write(&batch, NOW).unwrap();
                everything(&kept.reader()).await.unwrap()
            }
        };
        if kept.aside().is_empty() {
            read += 1;
            assert_eq!(swaps[0], new, "byte {place}");
        } else {
            set_aside += 1;
            assert_eq!(fs::read(&kept.aside()[0]).unwrap(), damaged, "byte {place}: it is kept as it was");
            assert_eq!(swaps, [new], "byte {place}");
            let said = kept.writer.damaged().unwrap();
            assert_eq!(said.code, "history_damaged");
            assert!(said.hints[0].contains(&kept.aside()[0].display().to_string()), "{said:?}");
        }
    }
    assert!(set_aside > 40 && read > 40, "{set_aside} were set aside, {read} were read");
}

#[tokio::test]
async fn damage_under_way_is_found_and_few_files_are_kept() {
    let mut kept = Kept::new(limits(Bytes::mib(64)));
    for round in 0..4 {
        for n in 0..200 {
            kept.writer.write(&seen(status(NOW + n * 1_000, Some(n), &[])), NOW).unwrap();
        }
        let long =
            SwapSummary { reason: Some("why ".repeat(5_000)), ..swap(90, NOW, Some(Outcome::Degraded)) };
        kept.writer.write(&events(vec![What::SwapEnded { swap: long }], 1), NOW).unwrap();
        let file = Connection::open(kept.path()).unwrap();
        file.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        // The oldest samples, which the writer does not look at again; the middle of a long text, which only who reads
        // it looks at.
        let place =
            ["name = 'sample' AND pagetype = 'leaf'", "name = 'swap' AND pagetype = 'overflow'"][round % 2];
        let page = format!("SELECT pageno FROM dbstat WHERE {place} ORDER BY path LIMIT 1");
        let page: u64 = file.query_row(&page, [], |row| row.get(0)).unwrap();
        let overwritten = fs::OpenOptions::new().write(true).open(kept.path()).unwrap();
        overwritten.write_all_at(&[0xff; 4096], (page - 1) * file::PAGE).unwrap();
        kept.writer.write(&seen(status(NOW + 200_000, Some(1), &[])), NOW).unwrap();
        assert_eq!(kept.aside().len(), round.min(2), "it is not met by writing");
        assert!(everything(&kept.reader()).await.unwrap_err().is_damage(), "it can't be read");
        let next = events(vec![What::SwapBegan { swap: swap(1, NOW, None) }], 1);
        kept.writer.write(&next, NOW).unwrap();
        assert_eq!(kept.aside().len(), (round + 1).min(2), "it is set aside");
        assert_eq!(kept.reader().swaps(PAGE).await.unwrap().len(), 1);
    }
    assert_eq!(kept.aside().len(), 2, "the oldest are removed");
}

#[test]
fn a_newer_or_foreign_file_is_set_aside_and_says_why() {
    for (sql, why) in [
        (
            "PRAGMA user_version = 2",
            "a newer version of Berth wrote it (its tables are of version 2, known is 1)",
        ),
        ("PRAGMA application_id = 7", "it is no history of Berth"),
    ] {
        let mut kept = Kept::new(limits(Bytes::mib(64)));
        kept.writer.write(&Batch::default(), NOW).unwrap();
        kept = kept.restart();
        Connection::open(kept.path()).unwrap().execute_batch(sql).unwrap();
        kept.writer.write(&Batch::default(), NOW).unwrap();
        let said = kept.writer.damaged().unwrap();
        assert!(said.text.contains(why) && said.text.contains("a new one was begun"), "{said:?}");
        assert_eq!(kept.aside().len(), 1);
        // It is said for as long as the file is there, over a restart too.
        let kept = kept.restart();
        let said = kept.writer.damaged().unwrap();
        assert!(
            said.text.starts_with("an earlier history could not be believed. It is kept as "),
            "{said:?}"
        );
        fs::remove_file(&kept.aside()[0]).unwrap();
        assert_eq!(kept.writer.damaged(), None);
    }
}

/// What can't be written is an error and nothing else, and goes on once it can.
#[tokio::test]
async fn a_folder_that_takes_nothing_is_an_error_until_it_does() {
    let mut kept = Kept::new(limits(Bytes::mib(64)));
    // Where the file should be is a folder: this stands for all that the kernel may refuse, also to root.
    fs::create_dir(kept.path()).unwrap();
    let batch = events(vec![What::SwapBegan { swap: swap(1, NOW, None) }], 1);
    for _ in 0..2 {
        let error = kept.writer.write(&batch, NOW).unwrap_err();
        assert!(!error.is_damage() && kept.aside().is_empty(), "{error}");
        let said = refusal(&error);
        assert_eq!(said.code, "history_error");
        assert!(said.text.starts_with("what happens is not kept: history /"), "{said:?}");
        assert!(kept.reader().swaps(PAGE).await.is_err());
    }
    fs::remove_dir(kept.path()).unwrap();
    kept.writer.write(&batch, NOW).unwrap();
    assert_eq!(kept.reader().swaps(PAGE).await.unwrap().len(), 1);
}

/// A small file with a reading each second and a swap each minute: it never gets larger than declared, keeps what is
/// newest, and each kind has its share.
#[tokio::test]
async fn the_file_stays_within_its_size() {
    let kept = Kept::new(limits(Bytes::mib(8)));
    let mut store = Store::open(&kept.path(), kept.limits, NOW).unwrap();
    let (mut now, mut most, mut id) = (NOW, 0, 0);
    for n in 0..12_000u64 {
        now = NOW + n * 1_000;
        store.write(&seen(status(now, Some(n % 16_000), &[])), now).unwrap();
        if n % 10 == 0 {
            id += 1;
            let whats = vec![
                What::SwapBegan { swap: swap(id, now, None) },
                What::SwapEnded { swap: swap(id, now, Some(Outcome::Done)) },
                What::Model {
                    model: "genesis".parse().unwrap(),
                    state: ModelState::Failed,
                    text: "long ".repeat(300),
                },
            ];
            store.write(&events(whats, 3 * id), now).unwrap();
        }
        if n % 100 == 0 {
            most = most.max(kept.size());
        }
    }
    assert!(most <= Bytes::mib(8).0, "{most} bytes");
    let file = Connection::open(kept.path()).unwrap();
    let count = |of: &str| {
        file.query_row(&format!("SELECT count(*) FROM {of}"), [], |row| row.get::<_, u64>(0)).unwrap()
    };
    let rows = count("sample");
    assert!(
        rows <= kept.limits.rows + 3 * DROP_MS / 1_000 && rows > kept.limits.rows / 10 * 9,
        "{rows} rows"
    );
    let pages = |of: &str| count(&format!("(SELECT 1 FROM dbstat WHERE name = '{of}')")) * file::PAGE;
    let each = pages("sample") / rows;
    assert!(each <= ROW, "a row takes {each} bytes");
    for (of, most) in [("event", kept.limits.events), ("swap", kept.limits.swaps)] {
        assert!(pages(of) <= most.0 / 2 * 3 && pages(of) > most.0 / 3, "{of}: {} of {most}", pages(of));
    }
    assert_eq!(kept.reader().swaps(PAGE).await.unwrap()[0].id, id, "the newest is there");

    // What is declared smaller later is given back.
    drop((store, file));
    let kept = Kept::within(
        kept.folder,
        Limits { lists_ms: 1, tiers_ms: [1; 3], pages: Bytes::mib(1), ..kept.limits },
    );
    drop(Store::open(&kept.path(), kept.limits, now + DAY_MS).unwrap());
    assert!(kept.size() <= Bytes::mib(1).0, "{} bytes", kept.size());
}

/// A file that is full before its limits are reached: what is oldest makes room, and what happens is kept.
#[tokio::test]
async fn a_full_file_makes_room() {
    let limits = Limits {
        pages: Bytes::mib(1),
        swaps: Bytes::mib(16),
        events: Bytes::mib(16),
        ..limits(Bytes::mib(64))
    };
    let kept = Kept::new(Limits { rows: 40_000, ..limits });
    let mut store = kept.store();
    for n in 0..9_000 {
        store.write(&seen(status(NOW + n * 1_000, Some(1), &[])), NOW).unwrap();
    }
    assert!(kept.size() <= Bytes::mib(1).0 + 2 * (512 << 10), "{} bytes", kept.size());
    let window = Window::new(Some(NOW), Some(NOW + DAY_MS), None, NOW).unwrap();
    let devices = kept.reader().devices(window, NOW + DAY_MS).await.unwrap().devices;
    assert!(devices[0].samples.last().unwrap().at_ms >= NOW + 8_700_000, "the newest are kept");
}
