//! What people are told of a model of home that finds no place since somebody else has the memory.

use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::facts::Known;
use berth_core::plan;
use berth_core::release::Proofs;
use berth_core::report::{Problem, Requests};
use berth_core::rivals::{Rivals, Service};
use berth_core::status::{self, Memory, View};
use berth_core::upkeep::Upkeep;

use crate::story::{Machine, name};

pub(super) fn problems(machine: &Machine, memory: &Memory) -> Vec<Problem> {
    status::problems(&View {
        settings: &machine.settings,
        facts: &machine.facts,
        state: &machine.state,
        proofs: &Proofs::default(),
        upkeep: &Upkeep::default(),
        memory,
        swap: None,
        requests: &|_| Requests::default(),
        now: Duration::from_secs(100),
        now_ms: 0,
        uptime_ms: 0,
    })
}

/// A bare tower where genesis is home and doesn't run.
fn genesis_is_missing() -> Machine {
    let mut tower = Machine::bare(2);
    tower.state.home.models = vec![name("genesis")];
    tower
}

/// A memory in which aeon.service is enabled for boot.
fn aeon_is_enabled() -> Memory {
    let mut rivals = Rivals::default();
    rivals.take(vec![Service {
        unit: "aeon.service".to_owned(),
        restart: "always".to_owned(),
        commands: vec![vec!["/opt/vllm/bin/vllm".to_owned(), "serve".to_owned()]],
    }]);
    Memory { rivals, ..Memory::default() }
}

/// Puts the newest process of a GPU into a unit.
fn in_unit(machine: &mut Machine, gpu: usize, unit: &str) {
    let Known::Value(processes) = &mut machine.gpu(gpu).processes else { panic!("no lists") };
    processes.last_mut().unwrap().unit = Some(unit.to_owned());
}

#[test]
fn it_names_the_rival_that_has_its_memory_and_the_command_that_ends_it() {
    let mut tower = genesis_is_missing().foreign(0, "Xorg", 400);
    for gpu in [0, 1] {
        tower.holds(gpu, 812, "VLLM::Worker", 14_331, None);
        in_unit(&mut tower, gpu, "aeon.service");
    }
    let told = problems(&tower, &aeon_is_enabled());
    let codes: Vec<&str> = told.iter().map(|problem| problem.code.as_str()).collect();
    assert_eq!(codes, ["degraded", "rival"], "what may come is told after what is");
    assert_eq!(
        told[0].text,
        "genesis should serve and does not: 13.1 GiB short on GPU 0: it needs 14.0 GiB, 933 MiB are available \
         (held: pid 4001 (Xorg) 400 MiB, pid 812 (VLLM::Worker) of aeon.service 14.0 GiB); 12.7 GiB short on GPU 1: \
         it needs 14.0 GiB, 1.3 GiB are available (held: pid 812 (VLLM::Worker) of aeon.service 14.0 GiB)"
    );
    assert_eq!(told[0].next, "sudo systemctl disable --now aeon.service", "Xorg is not in the way");
    assert_eq!(told[1].subject, "aeon.service");

    // Not enabled it is only to be stopped.
    let mut memory = Memory::default();
    memory.rivals.take(Vec::new());
    let told = problems(&tower, &memory);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].next, "sudo systemctl stop aeon.service");
}

#[test]
fn it_asks_for_no_more_ends_than_make_room() {
    let mut tower = genesis_is_missing();
    let missing = |tower: &Machine| {
        let model = &tower.settings.models[&name("genesis")];
        plan::missing(&tower.settings, &tower.facts, &tower.state, model)
    };
    assert_eq!(missing(&tower), None);
    for (pid, mib) in [(1, 900), (2, 7000), (3, 3000)] {
        tower.holds(0, pid, "train.py", mib, None);
    }
    let pids =
        |tower: &Machine| missing(tower).map(|missing| missing.holders.iter().map(|p| p.pid).collect());
    assert_eq!(pids(&tower), Some(vec![2, 3]));
    tower.holds(1, 4, "train.py", 1700, None);
    assert_eq!(pids(&tower), Some(vec![2, 3, 4]));
    let next = |tower: &Machine| problems(tower, &Memory::default())[0].next.clone();
    assert_eq!(next(&tower), "sudo kill 2 3 4");

    // What is not known to hold little may hold it all.
    let mut unknown = tower.clone();
    for gpu in [0, 1] {
        let Known::Value(processes) = &mut unknown.gpu(gpu).processes else { panic!("no lists") };
        processes.last_mut().unwrap().memory = Known::Unknown("not said".to_owned());
    }
    assert_eq!(pids(&unknown), Some(vec![2, 1, 3, 4]));

    // Memory of nobody: no process's end would help, so none is asked for.
    let mut nobodys = tower.clone();
    let Known::Value(memory) = &mut nobodys.gpu(1).memory else { panic!("no memory") };
    memory.used = memory.used.plus(Bytes::mib(12_000));
    assert_eq!(pids(&nobodys), Some(Vec::new()));
    assert_eq!(next(&nobodys), "berthctl logs genesis; berthctl switch MODEL to serve another");
}

#[test]
fn on_a_machine_without_gpus_nobody_is_a_rival() {
    let told = problems(&Machine::bare(0), &aeon_is_enabled());
    assert_eq!(told, []);
    let told = problems(&Machine::bare(1), &aeon_is_enabled());
    assert_eq!(told.len(), 1, "{told:?}");
}
