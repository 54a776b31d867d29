//! What watchdogs are told of a node: no false alarm, and none that is missed.

use std::time::Duration;

use berth_core::facts::Known;
use berth_core::release::Proofs;
use berth_core::report::{Health, HealthStatus, Readiness, Requests, SwapSummary, Verb};
use berth_core::state::{During, Fault, Phase, Quarantine, Served, Trouble};
use berth_core::status::{self, Memory, View};
use berth_core::upkeep::Upkeep;
use serde_json::json;

use crate::story::{Machine, name};

const GENESIS: &[(usize, u64)] = &[(0, 14_331), (1, 14_331)];

fn look<T>(machine: &Machine, memory: &Memory, swap: Option<&SwapSummary>, at: impl Fn(&View) -> T) -> T {
    at(&View {
        settings: &machine.settings,
        facts: &machine.facts,
        state: &machine.state,
        proofs: &Proofs::default(),
        upkeep: &Upkeep::default(),
        memory,
        swap,
        requests: &|_| Requests::default(),
        now: Duration::from_secs(100),
        now_ms: 9000,
        uptime_ms: 0,
    })
}

fn health(machine: &Machine, swap: Option<&SwapSummary>) -> Health {
    look(machine, &Memory::default(), swap, status::health)
}

fn readiness(machine: &Machine) -> Readiness {
    look(machine, &Memory::default(), None, status::readiness)
}

/// Whether all is well, and the codes of what is not.
fn said(machine: &Machine, swap: Option<&SwapSummary>) -> (bool, Vec<String>) {
    let health = health(machine, swap);
    let codes = health.problems.into_iter().map(|concern| concern.problem.code);
    (health.status == HealthStatus::Ok, codes.collect())
}

fn good() -> (bool, Vec<String>) {
    (true, vec![])
}

fn bad(code: &str) -> (bool, Vec<String>) {
    (false, vec![code.to_owned()])
}

fn swap(verb: Verb, stops: &[&str], starts: &[&str]) -> SwapSummary {
    serde_json::from_value(json!({
        "id": 7, "verb": verb, "model": null, "by": null, "stops": stops, "starts": starts, "gpus": [],
        "gpu_bytes": [], "began_ms": 0, "elapsed_ms": 0, "expected_ms": null, "steps": [], "outcome": null,
        "reason": null, "failure": null, "cancelled": false, "held_at_exit": null, "early_start_would_fail": false, "gap_ms": null,
        "serving": [], "default": null, "undo": null
    }))
    .unwrap()
}

/// A tower of whose home genesis is, and whose genesis failed after it served.
fn genesis_failed() -> Machine {
    let mut tower = Machine::bare(2);
    tower.state.home.models = vec![name("genesis")];
    tower.state.home.default = Some(name("genesis"));
    tower.state.served.insert(name("genesis"), Served { at_ms: 1000, boot: String::new() });
    let fault = Fault { at_ms: 2000, during: During::Service, text: "exit 1".to_owned() };
    let trouble = Trouble { failures: [fault].into(), quarantined: None };
    tower.state.troubles.insert(name("genesis"), trouble);
    tower
}

#[test]
fn what_is_off_or_retired_is_no_problem() {
    assert_eq!(said(&Machine::bare(2), None), good());
    let mut tower = Machine::tower(2).serves("genesis", GENESIS);
    assert_eq!(said(&tower, None), good());
    // `old` is retired: also where it was home once.
    tower.state.home.models.push(name("old"));
    assert_eq!(said(&tower, None), good());
    tower.state.home.default = None;
    assert!(readiness(&tower).ready && readiness(&Machine::bare(2)).ready, "nothing is desired");
}

#[test]
fn what_should_serve_and_does_not_is_an_error() {
    let mut tower = genesis_failed();
    assert_eq!(said(&tower, None), bad("degraded"));
    assert_eq!(readiness(&tower).why.unwrap(), "`default` is genesis, which does not serve");
    // It stays one problem until it serves: its restart neither ends it nor begins it anew.
    let restore = swap(Verb::Restore, &[], &["genesis"]);
    assert_eq!(said(&tower, Some(&restore)), bad("degraded"));
    tower.claims("genesis", Phase::Starting, GENESIS, None);
    let told = health(&tower, Some(&restore));
    assert_eq!((told.problems.len(), told.swap), (1, Some(7)));
    let text = "genesis should serve and does not: it is being started again";
    assert_eq!(told.problems[0].problem.text, text);
    // Also where an operator has it started.
    assert_eq!(said(&tower, Some(&swap(Verb::Switch, &[], &["genesis"]))), bad("degraded"));

    let mut tower = genesis_failed();
    let why = "failed 5 times within 10m".to_owned();
    tower.state.troubles.get_mut(&name("genesis")).unwrap().quarantined =
        Some(Quarantine { since_ms: 3000, why });
    assert_eq!(said(&tower, None), bad("quarantined"));
    assert!(!readiness(&tower).ready);
    // Clients are answered by who stands in for it; genesis still is not well.
    tower.claims("aeon", Phase::Serving, GENESIS, None);
    tower.state.stand_ins.insert(name("aeon"), name("genesis"));
    assert_eq!(said(&tower, None), bad("quarantined"));
    assert!(readiness(&tower).ready);
}

#[test]
fn what_an_operator_does_is_no_alarm_and_a_boot_is_no_push() {
    let mut tower = Machine::bare(2).serves("genesis", GENESIS);
    let to_aeon = swap(Verb::Switch, &["genesis"], &["aeon"]);
    for phase in [Phase::Serving, Phase::Ending] {
        tower.state.claims.get_mut(&name("genesis")).unwrap().phase = phase;
        assert_eq!(said(&tower, Some(&to_aeon)), good());
    }
    tower.state.claims.clear();
    assert_eq!(said(&tower, Some(&to_aeon)), good());
    // The swap is over, one way or the other, and it does not serve.
    assert_eq!(said(&tower, None), bad("degraded"));

    // After a boot: what watchdogs see is no problem that anybody is told of.
    let boot = swap(Verb::Restore, &[], &["genesis"]);
    assert_eq!(said(&tower, Some(&boot)), bad("starting"));
    let problems = look(&tower, &Memory::default(), Some(&boot), status::problems);
    assert_eq!(problems, []);
    // One that gave way to clients comes back.
    tower.state.displaced.insert(name("genesis"));
    assert_eq!(said(&tower, Some(&boot)), good());
}

#[test]
fn a_gpu_that_is_not_known_is_a_warning() {
    let mut tower = Machine::bare(2).serves("genesis", GENESIS);
    tower.gpu(1).memory = Known::Unknown("GPU is lost".to_owned());
    assert_eq!(said(&tower, None), (true, vec!["gpu_unknown".to_owned()]));
    let mut memory = Memory::default();
    memory.unheard.insert("127.0.0.1:8010".parse().unwrap(), "the port is taken".to_owned());
    let health = look(&tower, &memory, None, status::health);
    let codes: Vec<&str> = health.problems.iter().map(|concern| concern.problem.code.as_str()).collect();
    assert_eq!((health.status, codes), (HealthStatus::Degraded, vec!["proxy_unheard", "gpu_unknown"]));
    assert!(!look(&tower, &memory, None, status::readiness).ready);
}
