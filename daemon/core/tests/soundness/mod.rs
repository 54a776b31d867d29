//! Which readings and events make a GPU suspect, and when it is sound again.

use std::time::Duration;

use berth_core::backend::PlacedGpu;
use berth_core::bytes::Bytes;
use berth_core::facts::{Known, Moment};
use berth_core::plan::{self, Start};
use berth_core::soundness::Soundness;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use crate::story::{DRIVER, Machine, device, memory, name};

const SOUND: Duration = Duration::from_secs(10);
const TOTAL: u64 = 16_311;
const RESERVED: u64 = 388;

/// One GPU, read again and again.
struct Bench {
    machine: Machine,
    soundness: Soundness,
    now: Moment,
    foreign: u64,
    /// Whether the newest good reading had half of the total.
    halved: bool,
}

impl Bench {
    fn new() -> Self {
        let mut machine = Machine::bare(1);
        machine.holds(0, 77, "Xorg", 3000, None);
        let mut bench = Self {
            machine,
            soundness: Soundness::default(),
            now: Duration::from_secs(100),
            foreign: 3000,
            halved: false,
        };
        bench.reads(1);
        bench
    }

    /// Lets the newest reading be judged once more, `ms` later.
    fn judge(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.machine.facts.at = self.now;
        self.soundness.judge(&mut self.machine.facts.gpus, self.now, SOUND);
    }

    /// A new reading as the device is, but for what `otherwise` makes of it.
    fn reads_otherwise(&mut self, ms: u64, otherwise: impl FnOnce(&mut berth_core::facts::Gpu)) {
        let (foreign, at) = (self.foreign, self.now + Duration::from_millis(ms));
        let gpu = self.machine.gpu(0);
        (gpu.read_at, gpu.listed_at) = (at, at);
        (gpu.lost, gpu.memory) = (false, Known::Value(memory(TOTAL, RESERVED, DRIVER + foreign)));
        if let Known::Value(processes) = &mut gpu.processes {
            processes[0].memory = Known::Value(Bytes::mib(foreign));
        }
        otherwise(gpu);
        if let (Known::Value(memory), false) = (&gpu.memory, gpu.lost) {
            self.halved = memory.total != Bytes::mib(TOTAL);
        }
        self.judge(ms);
    }

    fn reads(&mut self, ms: u64) {
        self.reads_otherwise(ms, |_| {});
    }

    fn reads_used(&mut self, ms: u64, mib: u64) {
        self.reads_otherwise(ms, |gpu| gpu.memory = Known::Value(memory(TOTAL, RESERVED, mib)));
    }

    fn is_unknown(&mut self, ms: u64) {
        self.reads_otherwise(ms, |gpu| gpu.memory = Known::Unknown("no answer".to_owned()));
    }

    fn is_lost(&mut self, ms: u64) {
        self.reads_otherwise(ms, |gpu| {
            (gpu.lost, gpu.memory) = (true, Known::Unknown("GPU is lost".to_owned()));
        });
    }

    fn xid(&mut self, xid: u64) -> bool {
        let now = self.now;
        self.soundness.xid(&device(0), xid, now)
    }

    /// Why the device is suspect.
    fn suspect(&self) -> Option<&str> {
        self.machine.facts.gpus()[0].suspect.as_ref().map(|suspicion| suspicion.why.as_str())
    }

    /// Whether a small model would be started there; the refusal's code where not.
    fn admits(&self) -> Result<(), String> {
        let gpus = vec![PlacedGpu { id: device(0), index: 0, bytes: Bytes::mib(1) }];
        let start = Start { model: name("small"), gpus, layout: berth_core::layout::Layout::default() };
        let Machine { settings, facts, state, .. } = &self.machine;
        plan::admit(settings, facts, state, &start).map_err(|refusal| refusal.code)
    }

    /// It is suspect for this reason until it was read soundly for a while, and then it is not. Its newest reading is
    /// the first sound one.
    #[track_caller]
    fn is_suspect_for_a_while(&mut self, why: &str) {
        assert!(self.suspect().is_some_and(|said| said.contains(why)), "{:?}", self.suspect());
        assert!(self.machine.facts.gpus()[0].suspect.as_ref().unwrap().until.is_some());
        for _ in 0..9 {
            self.reads(1000);
            assert_eq!(self.admits(), Err("gpu_suspect".to_owned()));
        }
        self.reads(1000);
        assert_eq!((self.suspect(), self.admits()), (None, Ok(())));
    }
}

#[test]
fn what_a_device_does_makes_it_suspect_until_it_is_sound_for_a_while() {
    let mut bench = Bench::new();
    bench.is_lost(1000);
    assert_eq!(bench.admits(), Err("gpu_unknown".to_owned()));
    bench.reads(1000);
    bench.is_suspect_for_a_while("GPU is lost");

    assert!(bench.xid(79));
    bench.judge(1);
    assert_eq!(bench.admits(), Err("gpu_suspect".to_owned()));
    bench.reads(1000);
    bench.is_suspect_for_a_while("Xid 79");

    // Its total changed, and that is its total from then on.
    bench.reads_otherwise(1000, |gpu| gpu.memory = Known::Value(memory(12_000, RESERVED, 3003)));
    assert!(bench.suspect().unwrap().contains("from 15.9 GiB to 11.7 GiB"));
    bench.reads(1000);
    assert!(bench.suspect().unwrap().contains("from 11.7 GiB to 15.9 GiB"));
    bench.reads(1000);
    bench.is_suspect_for_a_while("from 11.7 GiB to 15.9 GiB");

    bench.reads_otherwise(1000, |gpu| {
        let Known::Value(memory) = &mut gpu.memory else { panic!() };
        memory.free = memory.total;
    });
    bench.reads(1000);
    bench.is_suspect_for_a_while("does not add up: 2.9 GiB used, 15.9 GiB free");

    // Below what Xorg held before and holds still; up to 64 MiB less may be rounding.
    bench.reads_used(1000, 3000 - 64);
    assert_eq!(bench.suspect(), None);
    bench.reads_used(1000, 3000 - 65);
    bench.reads(1000);
    bench.is_suspect_for_a_while("only 2.9 GiB are used, and its processes are listed with 2.9 GiB");

    // 5 GiB that are nobody's go and come back.
    for mib in [8003, 8003, 3003, 8003] {
        assert_eq!(bench.suspect(), None);
        bench.reads_used(1000, mib);
    }
    let why = "jumped from 7.8 GiB to 2.9 GiB and back";
    assert!(bench.suspect().unwrap().contains(why), "{:?}", bench.suspect());
}

#[test]
fn silence_makes_a_device_suspect_only_when_it_is_long() {
    let mut bench = Bench::new();
    for _ in 0..6 {
        bench.is_unknown(1000);
        assert_eq!((bench.suspect(), bench.admits()), (None, Err("gpu_unknown".to_owned())));
    }
    // So is a library that can't be used; and one that is back within 5 s.
    bench = Bench::new();
    bench.is_unknown(1000);
    let seen = std::mem::replace(&mut bench.machine.facts.gpus, Known::Unknown("NVML hangs".to_owned()));
    bench.judge(3000);
    bench.machine.facts.gpus = seen.clone();
    bench.reads(2000);
    assert_eq!((bench.suspect(), bench.admits()), (None, Ok(())));
    bench.machine.facts.gpus = Known::Unknown("NVML hangs".to_owned());
    bench.judge(1000);
    bench.judge(3000);
    bench.machine.facts.gpus = seen;
    bench.reads(2001);
    bench.is_suspect_for_a_while("it could not be read for 5 s");
}

#[test]
fn what_programs_do_makes_no_device_suspect() {
    let mut bench = Bench::new();
    for xid in [13, 31, 43, 45, 68, 109] {
        assert!(!bench.xid(xid));
    }
    bench.judge(1);
    assert_eq!((bench.suspect(), bench.admits()), (None, Ok(())));
    // A program that takes memory between the reading of the memory and that of the lists.
    bench.reads_otherwise(1000, |gpu| {
        let Known::Value(processes) = &mut gpu.processes else { panic!() };
        processes[0].memory = Known::Value(Bytes::mib(9000));
    });
    assert_eq!(bench.suspect(), None);
    // What a dead process held comes back late, and a short-lived one takes some in between.
    for mib in [3003, 9003, 3003, 3003, 9003, 9003, 3003] {
        bench.reads_used(1000, mib);
        assert_eq!(bench.suspect(), None);
    }
    // What is not listed, or not with its bytes, can't contradict the memory.
    for processes in [Known::Unknown("N/A".to_owned()), Known::Value(Vec::new())] {
        for mib in [9003, 3003, 9003, 3003].into_iter().skip(usize::from(processes.value().is_some()) * 3) {
            bench.reads_otherwise(1000, |gpu| {
                gpu.processes = processes.clone();
                gpu.memory = Known::Value(memory(TOTAL, RESERVED, mib));
            });
            assert_eq!(bench.suspect(), None);
        }
    }
}

#[test]
fn bad_readings_in_between_and_gaps_start_the_while_anew() {
    let mut bench = Bench::new();
    assert!(bench.xid(48));
    for _ in 0..9 {
        bench.reads(1000);
    }
    bench.is_unknown(1000);
    bench.reads(1000);
    bench.is_suspect_for_a_while("Xid 48");
    assert!(bench.xid(48));
    bench.reads(1000);
    // The same reading again, however late, is no other one; and nothing is known of the time without any.
    bench.judge(20_000);
    assert_eq!(bench.admits(), Err("gpu_suspect".to_owned()));
    bench.reads(1);
    bench.is_suspect_for_a_while("Xid 48");
    // What was begun before the event says nothing of it.
    let at = bench.now + Duration::from_secs(1);
    assert!(bench.soundness.xid(&device(0), 48, at));
    bench.reads(500);
    let until = bench.machine.facts.gpus()[0].suspect.as_ref().unwrap().until;
    assert_eq!(until, None);
    bench.reads(600);
    let until = bench.machine.facts.gpus()[0].suspect.as_ref().unwrap().until;
    assert_eq!(until, Some(bench.now + SOUND));
}

#[test]
fn an_operator_takes_it_as_it_is() {
    let mut bench = Bench::new();
    let now = bench.now;
    assert_eq!(bench.soundness.clear(&device(0), now), None);
    assert_eq!(bench.soundness.clear(&device(7), now), None);
    assert!(bench.xid(79));
    bench.judge(1);
    let now = bench.now;
    assert!(bench.soundness.clear(&device(0), now).unwrap().contains("Xid 79"));
    bench.judge(1);
    assert_eq!(bench.admits(), Ok(()));
    // A contradiction that stands is taken as it is until it ends; the next one counts.
    bench.reads_used(1000, 1000);
    assert!(bench.suspect().is_some());
    let now = bench.now;
    assert!(bench.soundness.clear(&device(0), now).is_some());
    bench.reads_used(1000, 1100);
    assert_eq!((bench.suspect(), bench.admits()), (None, Ok(())));
    bench.reads(1000);
    bench.reads_used(1000, 1000);
    assert_eq!(bench.admits(), Err("gpu_suspect".to_owned()));
    // One that is lost stays lost.
    bench.is_lost(1000);
    let now = bench.now;
    assert!(bench.soundness.clear(&device(0), now).is_some());
    bench.is_lost(1000);
    assert!(bench.suspect().is_some());
}

#[derive(Debug, Clone)]
enum Happening {
    /// Foreign use from now on, and a reading.
    Foreign(u64),
    Nobodys(u64),
    Same,
    Unknown,
    Lost,
    Xid(u64),
    Total,
    Dip,
}

fn well() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (0u64..15_000).prop_map(Happening::Foreign),
        2 => Just(Happening::Same),
        1 => prop::sample::select(vec![13u64, 31, 43, 45, 68, 109]).prop_map(Happening::Xid),
    ]
}

fn ill() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => well(),
        2 => (0u64..1000).prop_map(Happening::Nobodys),
        1 => Just(Happening::Unknown),
        1 => Just(Happening::Lost),
        1 => (1u64..160).prop_map(Happening::Xid),
        1 => Just(Happening::Total),
        1 => Just(Happening::Dip),
    ]
}

impl Bench {
    /// Whether this is known to be the device's fault.
    fn happens(&mut self, ms: u64, happening: &Happening) -> bool {
        let steady = self.foreign;
        match *happening {
            Happening::Foreign(mib) => {
                self.foreign = mib;
                self.reads(ms);
            }
            Happening::Nobodys(mib) => self.reads_used(ms, DRIVER + steady + mib),
            Happening::Same => self.reads(ms),
            Happening::Unknown => self.is_unknown(ms),
            Happening::Lost => {
                self.is_lost(ms);
                return true;
            }
            Happening::Xid(xid) => {
                let is = self.xid(xid);
                self.judge(ms);
                return is;
            }
            Happening::Total => {
                // One that stays is the new total.
                let changes = !self.halved;
                self.reads_otherwise(ms, |gpu| {
                    gpu.memory = Known::Value(memory(TOTAL / 2, RESERVED, steady.min(TOTAL / 3)));
                });
                return changes;
            }
            Happening::Dip => {
                // Twice, since the first may be that of a program that took memory just now.
                self.reads_used(ms, 0);
                self.reads_used(1, 0);
                return steady > 64;
            }
        }
        false
    }
}

fn config() -> ProptestConfig {
    let kept = FileFailurePersistence::Direct("proptest-regressions/soundness.txt");
    ProptestConfig { cases: 1000, failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_is_placed_on_a_suspect_device_before_it_was_sound_for_the_time(
        all in prop::collection::vec((1u64..4000, ill()), 1..60)
    ) {
        let mut bench = Bench::new();
        let mut wrong_at: Option<Moment> = None;
        for (ms, happening) in all {
            if bench.happens(ms, &happening) {
                wrong_at = bench.now.checked_sub(Duration::from_millis(ms));
                prop_assert!(bench.admits().is_err(), "{happening:?}");
            }
            let admitted = bench.admits() == Ok(());
            prop_assert!(
                !admitted || wrong_at.is_none_or(|at| bench.now >= at + SOUND),
                "after {happening:?}, {:?} since {wrong_at:?}", bench.now
            );
        }
        // And it is free again once all is well.
        for _ in 0..12 {
            bench.reads(1000);
        }
        prop_assert_eq!(bench.admits(), Ok(()));
    }

    #[test]
    fn what_foreign_processes_take_and_give_back_makes_no_device_suspect(
        all in prop::collection::vec((1u64..4000, well()), 1..60)
    ) {
        let mut bench = Bench::new();
        for (ms, happening) in all {
            prop_assert!(!bench.happens(ms, &happening));
            prop_assert_eq!(bench.suspect(), None);
        }
    }
}
