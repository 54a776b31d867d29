//! A model that runs as the unit that it replaces: Berth's, as far as memory, clients and stops are concerned.

use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::facts::{Active, Known, Listener, Preflight};
use berth_core::plan::{Verdict, admit};
use berth_core::proxy::Clients;
use berth_core::release::Proofs;
use berth_core::report::Verb;
use berth_core::state::Phase;
use berth_core::status::Memory;
use berth_core::swap::World;
use berth_core::upkeep::Upkeep;

use crate::story::{Machine, device, name, unit};

/// The tower on which genesis.service runs, with pid 812 and what that holds of each GPU; nothing is Berth's yet.
fn by_hand(mib: u64) -> Machine {
    let mut tower = Machine::bare(2);
    let mut run = unit("by-hand", Active::Active, &[812]);
    run.predecessor = Some("genesis.service".to_owned());
    tower.facts.units.insert(name("genesis"), run);
    for gpu in [0, 1] {
        tower.holds(gpu, 812, "vllm", mib, None);
    }
    tower
}

fn observe(machine: &mut Machine) {
    let mut proofs = Proofs::default();
    let mut world = World {
        settings: &machine.settings,
        facts: &machine.facts,
        state: &mut machine.state,
        proofs: &mut proofs,
        clients: &Clients::new(),
        now: Duration::from_secs(100),
        now_ms: 0,
    };
    Upkeep::default().observe(&mut world, false);
}

fn claimed(machine: &Machine) -> Vec<Bytes> {
    machine.state.claims[&name("genesis")].gpus.iter().map(|part| part.placed.bytes).collect()
}

#[test]
fn what_it_holds_is_the_models() {
    let mut tower = by_hand(14_300);
    assert_eq!(tower.state.foreign(&tower.facts.gpus()[0]), Some(Bytes::mib(14_303)));
    observe(&mut tower);
    let claim = &tower.state.claims[&name("genesis")];
    assert_eq!((claim.phase, claim.invocation.as_str()), (Phase::Serving, "by-hand"));
    assert_eq!(claim.address, Some("127.0.0.1:8022".parse().unwrap()));
    assert_eq!(claimed(&tower), [Bytes::mib(14_300); 2]);
    assert_eq!(tower.state.foreign(&tower.facts.gpus()[0]), Some(Bytes::mib(3)));
    // It is stopped for another as any model is.
    let Verdict::Go(plan) = tower.plan(Verb::Switch, Some("aeon")) else { panic!("aeon fits then") };
    assert_eq!(plan.stops, [name("genesis")]);
    // And it is home by a word alone.
    let Verdict::Go(plan) = tower.plan(Verb::Start, Some("genesis")) else { panic!("it serves") };
    assert_eq!((plan.stops.len(), plan.starts.len()), (0, 0));
    assert_eq!((plan.home.models, plan.home.default), (vec![name("genesis")], Some(name("genesis"))));
}

/// Found while it loaded, it would else be let go of GPUs on which it was never seen.
#[test]
fn its_memory_is_awaited_where_it_came_later() {
    let mut tower = by_hand(0);
    observe(&mut tower);
    // On which of them it will be is not known.
    assert_eq!(claimed(&tower), [Bytes::ZERO; 2]);
    for (mib, expected) in [(9_000, 9_000), (5, 9_000), (5_000, 14_005)] {
        for gpu in [0, 1] {
            tower.holds(gpu, 812, "vllm", mib, None);
        }
        observe(&mut tower);
        assert_eq!(claimed(&tower), [Bytes::mib(expected); 2], "+ {mib}");
    }
    let before: Vec<_> =
        tower.state.claims[&name("genesis")].gpus.iter().map(|part| part.unlisted_before).collect();
    assert_eq!(before, [Some(Bytes::mib(3)); 2]);
}

#[test]
fn nothing_is_started_beside_it_before_it_is_known() {
    let mut tower = by_hand(4_000);
    tower.gpu(1).processes = Known::Unknown("N/A".to_owned());
    observe(&mut tower);
    assert!(tower.state.claims.is_empty());
    let Verdict::Refused { refusal, .. } = tower.plan(Verb::Switch, Some("genesis")) else { panic!("twice") };
    assert_eq!(refusal.code, "not_taken_over");
    assert!(refusal.text.starts_with("genesis runs already as genesis.service"), "{}", refusal.text);

    // Whoever decided to start it, and however late: also while it is being stopped.
    let bare = Machine::bare(2);
    let Verdict::Go(plan) = bare.plan(Verb::Switch, Some("genesis")) else { panic!("it fits") };
    for active in [Active::Activating, Active::Active, Active::Deactivating] {
        let mut tower = by_hand(4_000);
        tower.facts.units.get_mut(&name("genesis")).unwrap().active = active;
        let refusal = admit(&tower.settings, &tower.facts, &tower.state, &plan.starts[0]).unwrap_err();
        assert_eq!(refusal.code, "not_taken_over");
    }
    let mut tower = by_hand(0);
    tower.facts.units.get_mut(&name("genesis")).unwrap().active = Active::Inactive;
    assert_eq!(admit(&tower.settings, &tower.facts, &tower.state, &plan.starts[0]), Ok(()));

    // Nor is another given its port, and why it is not known is said.
    let mut tower = by_hand(4_000);
    tower.gpu(1).processes = Known::Unknown("N/A".to_owned());
    let (address, model) = ("127.0.0.1".parse().unwrap(), Some(name("genesis")));
    let listener = Listener { address, port: 8022, uid: 1000, model, unit: None };
    tower.preflight.insert(name("twin"), Preflight { files: Vec::new(), port: Some(listener) });
    let Verdict::Refused { refusal, .. } = tower.plan(Verb::Start, Some("twin")) else {
        panic!("8022 is taken")
    };
    assert_eq!(refusal.text, "port 8022 is taken by genesis (127.0.0.1, user id 1000)");
    let problems = super::missing::problems(&tower, &Memory::default());
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert_eq!(problem.code, "not_taken_over");
    assert_eq!(
        problem.text,
        "genesis.service runs, and is not taken over as genesis: what it holds is not known, since GPU 1 does not say: N/A"
    );
}

#[test]
fn what_is_let_go_of_is_somebody_elses() {
    let mut tower = by_hand(14_300);
    observe(&mut tower);
    tower.state.home.models = vec![name("genesis")];
    tower.state.home.default = Some(name("genesis"));
    tower.state.let_go(&name("genesis"));
    assert_eq!(tower.state.home, berth_core::state::Home::default());
    let gpu = tower.facts.gpu(&device(0)).unwrap();
    assert_eq!(
        (tower.state.foreign(gpu), tower.state.claimed(&device(0), &[])),
        (Some(Bytes::mib(14_303)), Bytes::ZERO)
    );
}
