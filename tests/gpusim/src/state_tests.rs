//! The state, held to the nanosecond.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::linger::Shape;
use crate::units::MIB;

const MS: u64 = 1_000_000;

/// Two cards of 1,000 MiB, 250 of them reserved.
fn gpus() -> Gpus {
    Gpus::new(Config::new(&[1000 * MIB, 1000 * MIB], 0))
}

fn take(gpus: &mut Gpus, now: u64, pid: u32, device: u32, mib: u64) -> Result<(), Failure> {
    gpus.alloc(now, (pid, "server", false), device, mib * MIB, Kind::Compute)
}

fn used(gpus: &Gpus, device: u32, now: u64) -> u64 {
    gpus.memory(device, now).unwrap().used / MIB
}

fn linger(gpus: &mut Gpus, device: Option<u32>, shape: Shape) {
    gpus.set(device, &Knob::Linger(Linger { shape, ..Linger::default() }), 0).unwrap();
}

#[test]
fn memory_adds_up_and_runs_out() {
    let mut gpus = gpus();
    take(&mut gpus, 1, 10, 0, 700).unwrap();
    let memory = gpus.memory(0, 1).unwrap();
    assert_eq!(memory.total, memory.reserved + memory.used + memory.free);
    assert_eq!(memory.free, 50 * MIB);
    assert_eq!(take(&mut gpus, 2, 11, 0, 51).unwrap_err().code, Code::OutOfMemory);
    take(&mut gpus, 3, 11, 0, 50).unwrap();
    let happened = gpus.take_happenings();
    let Happening::Failed(failed) = &happened[1] else { panic!("{happened:?}") };
    assert_eq!((failed.pid, failed.wanted, failed.free), (11, 51 * MIB, 50 * MIB));
}

#[test]
fn a_step_frees_at_its_instant_and_the_dead_are_not_listed() {
    let mut gpus = gpus();
    linger(&mut gpus, Some(0), Shape::Step { ns: 10 * MS });
    take(&mut gpus, 1, 10, 0, 700).unwrap();
    take(&mut gpus, 1, 10, 1, 300).unwrap();
    gpus.died(10, None, Exit::Signal(9), 100);
    assert_eq!(gpus.processes(0, Kind::Compute, 101).unwrap(), []);
    assert_eq!((used(&gpus, 0, 101), used(&gpus, 1, 101)), (700, 0));
    assert!(take(&mut gpus, 100 + 10 * MS - 1, 11, 0, 100).is_err());
    assert_eq!(used(&gpus, 0, 100 + 10 * MS), 0);
    take(&mut gpus, 100 + 10 * MS, 11, 0, 100).unwrap();
    let releases = gpus.take_happenings().into_iter().filter_map(|h| match h {
        Happening::Released(r) => Some((r.device, r.bytes / MIB, r.died_ns, r.freed_ns)),
        _ => None,
    });
    let releases: Vec<_> = releases.collect();
    assert_eq!(releases, [(0, 700, 100, 100 + 10 * MS), (1, 300, 100, 100)]);
}

#[test]
fn a_ramp_frees_evenly_and_listing_the_dead_is_a_knob() {
    let mut gpus = gpus();
    linger(&mut gpus, None, Shape::Ramp { ns: 10 * MS });
    gpus.set(None, &Knob::LingerListed(true), 0).unwrap();
    take(&mut gpus, 1, 10, 0, 700).unwrap();
    gpus.died(10, None, Exit::Code(0), 0);
    assert_eq!(used(&gpus, 0, 5 * MS), 350);
    assert_eq!(
        gpus.processes(0, Kind::Compute, 5 * MS).unwrap(),
        [Listed { pid: 10, bytes: Some(350 * MIB) }]
    );
    gpus.settle(10 * MS);
    assert_eq!(gpus.processes(0, Kind::Compute, 10 * MS).unwrap(), []);
}

#[test]
fn a_foreign_process_takes_what_is_released_before_anyone_else_can() {
    let mut gpus = gpus();
    linger(&mut gpus, None, Shape::Step { ns: 10 * MS });
    take(&mut gpus, 1, 10, 0, 700).unwrap();
    gpus.wish((20, "Xorg"), 0, 400 * MIB, Kind::Graphics, When::AtRelease { delay: 0 });
    gpus.died(10, None, Exit::Code(0), 0);
    assert_eq!(gpus.processes(0, Kind::Graphics, 5 * MS).unwrap(), []);
    let failed = take(&mut gpus, 20 * MS, 11, 0, 700).unwrap_err();
    assert_eq!(failed.code, Code::OutOfMemory);
    assert_eq!(
        gpus.processes(0, Kind::Graphics, 20 * MS).unwrap(),
        [Listed { pid: 20, bytes: Some(400 * MIB) }]
    );
}

#[test]
fn a_foreign_process_takes_it_a_little_later_too() {
    let mut gpus = gpus();
    linger(&mut gpus, None, Shape::Step { ns: 10 * MS });
    take(&mut gpus, 1, 10, 0, 700).unwrap();
    gpus.wish((20, "thief"), 0, 400 * MIB, Kind::Compute, When::AtRelease { delay: 5 * MS });
    gpus.died(10, None, Exit::Code(0), 0);
    gpus.settle(15 * MS - 1);
    assert_eq!(used(&gpus, 0, 15 * MS - 1), 0);
    take(&mut gpus, 15 * MS - 1, 11, 0, 600).unwrap();
    gpus.settle(15 * MS);
    assert_eq!(used(&gpus, 0, 15 * MS), 750);
}

#[test]
fn a_foreign_process_grows_at_its_time_but_not_beyond_the_card() {
    let mut gpus = gpus();
    gpus.alloc(0, (20, "Xorg", true), 0, 100 * MIB, Kind::Graphics).unwrap();
    gpus.wish((20, "Xorg"), 0, 900 * MIB, Kind::Graphics, When::At(5 * MS));
    gpus.settle(5 * MS - 1);
    assert_eq!(used(&gpus, 0, 5 * MS - 1), 100);
    gpus.settle(5 * MS);
    assert_eq!((used(&gpus, 0, 5 * MS), gpus.memory(0, 5 * MS).unwrap().free), (750, 0));
    gpus.died(20, None, Exit::Code(0), 6 * MS);
    assert_eq!(used(&gpus, 0, 6 * MS), 0);
}

#[test]
fn readings_can_be_missing_lost_or_stale() {
    let mut gpus = gpus();
    gpus.set(Some(0), &Knob::Stale(true), 0).unwrap();
    take(&mut gpus, 1, 10, 0, 100).unwrap();
    assert_eq!(used(&gpus, 0, 2), 0);
    gpus.set(Some(0), &Knob::Stale(false), 3).unwrap();
    assert_eq!(used(&gpus, 0, 4), 100);
    gpus.set(Some(0), &Knob::Jump(60 * MIB), 4).unwrap();
    let mut used_read = || gpus.read_memory(0, 4).unwrap().used / MIB;
    assert_eq!([used_read(), used_read()], [40, 100]);
    gpus.set(Some(0), &Knob::Usage(false), 5).unwrap();
    assert_eq!(gpus.processes(0, Kind::Compute, 6).unwrap(), [Listed { pid: 10, bytes: None }]);
    gpus.set(Some(0), &Knob::Lists(false), 7).unwrap();
    assert_eq!(gpus.processes(0, Kind::Compute, 8).unwrap_err().code, Code::NotSupported);
    gpus.set(Some(0), &Knob::MemoryNa(true), 9).unwrap();
    assert_eq!(gpus.memory(0, 10).unwrap_err().code, Code::NotSupported);
    gpus.set(Some(0), &Knob::Lost(true), 11).unwrap();
    assert_eq!(gpus.memory(0, 12).unwrap_err().code, Code::Lost);
    assert_eq!(take(&mut gpus, 13, 10, 0, 1).unwrap_err().code, Code::Lost);
    assert_eq!(gpus.driver().unwrap().cards, 2);
    assert_eq!(used(&gpus, 1, 14), 0);
    assert_eq!(gpus.memory(2, 15).unwrap_err().code, Code::NotFound);
    assert_eq!(gpus.set(Some(2), &Knob::Lost(true), 16).unwrap_err().code, Code::NotFound);
}

#[test]
fn calls_hang_where_and_as_long_as_told() {
    let mut gpus = gpus();
    let hang = Hang { ns: 10 * MS, each: false, calls: Calls::Memory };
    gpus.set(Some(1), &Knob::Hang(hang), 100).unwrap();
    assert_eq!(gpus.hangs(Some(1), Calls::Memory, 200, 200), Some(100 + 10 * MS));
    assert_eq!(gpus.hangs(Some(1), Calls::Processes, 200, 200), None);
    assert_eq!(gpus.hangs(Some(0), Calls::Memory, 200, 200), None);
    assert_eq!(gpus.hangs(Some(1), Calls::Memory, 200, 100 + 10 * MS), None);
    let every = Hang { ns: 10 * MS, each: true, calls: Calls::All };
    gpus.set(None, &Knob::Hang(every), 100).unwrap();
    assert_eq!(gpus.hangs(None, Calls::All, 500 * MS, 500 * MS), Some(510 * MS));
    gpus.set(None, &Knob::Hang(Hang { ns: 0, ..every }), 100).unwrap();
    assert_eq!(gpus.hangs(None, Calls::All, 500 * MS, 500 * MS), None);
}

#[test]
fn cards_can_be_replaced() {
    let mut gpus = gpus();
    take(&mut gpus, 1, 10, 0, 100).unwrap();
    take(&mut gpus, 1, 10, 1, 100).unwrap();
    let uuid = gpus.identity(0).unwrap().uuid;
    gpus.set(None, &Knob::Cards(vec![2000 * MIB]), 2).unwrap();
    assert_eq!((used(&gpus, 0, 3), gpus.driver().unwrap().cards), (100, 1));
    assert_eq!(gpus.identity(0).unwrap().uuid, uuid);
    gpus.set(None, &Knob::Cards(vec![]), 4).unwrap();
    assert_eq!(gpus.driver().unwrap().cards, 0);
    gpus.died(10, None, Exit::Code(0), 5);
    gpus.set(None, &Knob::VersionMismatch(true), 6).unwrap();
    assert_eq!(gpus.driver().unwrap_err().code, Code::VersionMismatch);
}
