#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::facts::{Active, Brought, Unit};
use crate::layout::Layout;
use crate::state::{Claim, Phase};

const HEADROOM: Bytes = Bytes::mib(2 << 10);

fn gib(n: u64) -> Bytes {
    Bytes::mib(n << 10)
}

fn name(name: &str) -> ModelName {
    name.parse().unwrap()
}

/// A host of 32 GiB on which nobody holds anything.
struct Beelink {
    state: State,
    facts: Facts,
}

impl Beelink {
    fn new() -> Self {
        let mut host = Self { state: State::default(), facts: Facts::none_yet() };
        host.available(gib(32));
        host
    }

    fn available(&mut self, available: Bytes) {
        let read_at = Duration::from_secs(1);
        self.facts.host.memory = Known::Value(HostMemory { read_at, total: gib(32), available });
    }

    fn claim(&mut self, model: &str, bytes: Bytes, phase: Phase) {
        let claim = Claim {
            gpus: Vec::new(),
            layout: Layout { host: bytes, ..Layout::default() },
            phase,
            invocation: String::new(),
            declared: BTreeMap::new(),
            earlier: String::new(),
            address: None,
            unseen: false,
            seen: BTreeMap::new(),
            run: None,
        };
        self.state.claims.insert(name(model), claim);
    }

    /// The model's unit runs, and pins so much.
    fn runs(&mut self, model: &str, pinned: Known<Bytes>) {
        let unit = Unit {
            active: Active::Active,
            sub: "running".to_owned(),
            result: "success".to_owned(),
            exit: None,
            invocation: String::new(),
            started_at: None,
            main_pid: Some(7),
            processes: Known::Value(BTreeMap::from([(7, 1)])),
            brought: match pinned {
                Known::Value(pinned) => Known::Value(Brought { pinned, ..Brought::default() }),
                Known::Unknown(why) => Known::Unknown(why),
            },
            docker: Unit::docker_not_asked(),
            predecessor: None,
        };
        self.facts.units.insert(name(model), unit);
    }

    fn left(&self, except: &[&str]) -> Bytes {
        let except: Vec<ModelName> = except.iter().map(|model| name(model)).collect();
        *self.state.host_available(&self.facts, HEADROOM, &except).value().unwrap()
    }

    fn foreign(&self) -> Bytes {
        *self.state.host_foreign(&self.facts).value().unwrap()
    }
}

/// S9: 18 GiB are mapped, and the kernel still calls nearly all of it available; or they are locked, and it doesn't.
#[test]
fn two_models_of_18_gib_are_never_both_admitted() {
    let mut host = Beelink::new();
    host.available(gib(30));
    assert_eq!(host.left(&[]), gib(28), "the first fits");
    host.claim("supergemma", gib(18), Phase::Starting);
    assert_eq!(host.left(&[]), gib(10), "from the moment of its claim, before it has read a byte");

    for (pinned, available) in [(gib(1), gib(29)), (gib(18), gib(12)), (gib(9), gib(21))] {
        for phase in [Phase::Starting, Phase::Serving, Phase::Ending] {
            host.claim("supergemma", gib(18), phase);
            host.runs("supergemma", Known::Value(pinned));
            host.available(available);
            assert_eq!(host.foreign(), gib(2));
            assert_eq!(host.left(&[]), gib(10), "{pinned} pinned, {phase:?}");
            assert!(host.left(&[]) < gib(18));
            assert_eq!(host.left(&["supergemma"]), gib(28), "in its place the second fits");
        }
    }

    host.facts.units.clear();
    host.state.claims.clear();
    host.available(gib(30));
    assert_eq!(host.left(&[]), gib(28), "once it is proved gone");
}

#[test]
fn what_is_not_a_models_is_foreign() {
    let mut host = Beelink::new();
    host.available(gib(20));
    assert_eq!((host.foreign(), host.left(&[])), (gib(12), gib(18)));
    // Without a claim it is as good as anybody's.
    host.runs("found", Known::Value(gib(5)));
    assert_eq!((host.foreign(), host.left(&[])), (gib(12), gib(18)));
    host.claim("found", gib(6), Phase::Serving);
    assert_eq!((host.foreign(), host.left(&[])), (gib(7), gib(17)));
}

#[test]
fn more_than_was_claimed_counts_too() {
    let mut host = Beelink::new();
    host.claim("grown", gib(4), Phase::Serving);
    host.claim("on-gpus", Bytes::ZERO, Phase::Serving);
    host.runs("grown", Known::Value(gib(7)));
    host.runs("on-gpus", Known::Value(gib(3)));
    host.available(gib(22));
    assert_eq!(host.foreign(), Bytes::ZERO);
    assert_eq!(host.state.host_claimed(&[]), gib(4));
    let none: [ModelName; 0] = [];
    assert_eq!(host.state.host_outgrown(&host.facts, &none), gib(6));
    assert_eq!(host.left(&[]), gib(20), "30 less 7 and 3");
    assert_eq!(host.left(&["grown"]), gib(27));
    assert_eq!(host.left(&["grown", "on-gpus"]), gib(30));
}

#[test]
fn unknown_is_not_zero() {
    let mut host = Beelink::new();
    host.claim("unread", gib(10), Phase::Serving);
    host.runs("unread", Known::Unknown("its cgroup can't be read".to_owned()));
    host.available(gib(20));
    assert_eq!(host.foreign(), gib(12), "what can't be attributed is foreign");
    assert_eq!(host.left(&[]), gib(8));

    host.facts.host.memory = Known::Unknown("/proc is not mounted".to_owned());
    let unknown = Known::Unknown("/proc is not mounted".to_owned());
    assert_eq!(host.state.host_foreign(&host.facts), unknown);
    assert_eq!(host.state.host_available(&host.facts, HEADROOM, &[]), unknown);
}

#[test]
fn readings_of_two_moments_never_wrap_around() {
    let mut host = Beelink::new();
    host.claim("ended", gib(18), Phase::Ending);
    // It was read while it still ran, and the memory when it was gone.
    host.runs("ended", Known::Value(gib(18)));
    assert_eq!(host.foreign(), Bytes::ZERO);
    assert_eq!(host.left(&[]), gib(12));
    host.claim("vast", gib(100), Phase::Starting);
    assert_eq!(host.left(&[]), Bytes::ZERO);
}
