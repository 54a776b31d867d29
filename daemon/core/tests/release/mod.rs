//! The proof of release (rule 2), reading by reading. Each case tells a small story of one model whose unit ended,
//! and at which reading, if at any, its memory counts as back.

use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::facts::{Active, Docker, Exit, Facts, GpuProcess, Known, Unit};
use berth_core::release::{Proofs, Reading, worth_listing};
use berth_core::state::{Phase, State};

use crate::story::{DRIVER, Machine, device, memory, name, unit};

const MODEL: &str = "small";
const HELD: u64 = 5120;
/// The pid of the model's process, which holds [`HELD`] MiB.
const PID: u32 = 4001;

/// One reading: what a card holds in MiB that belongs to no listed process, and the listed processes.
struct Card<'a> {
    unlisted: u64,
    listed: &'a [(u32, u64, Option<&'a str>)],
}

/// A machine whose one model is on its way down.
struct Story {
    machine: Machine,
    proofs: Proofs,
    at: u64,
}

impl Story {
    fn new(parts: &[(usize, u64)]) -> Self {
        let mut machine = Machine::bare(2);
        machine.claims(MODEL, Phase::Ending, parts, None);
        let mut story = Self { machine, proofs: Proofs::default(), at: 100_000 };
        story.later();
        story
    }

    fn one() -> Self {
        Self::new(&[(0, HELD)])
    }

    /// Time passes; nothing new is read.
    fn later(&mut self) -> &mut Self {
        self.at += 100;
        self.machine.facts.at = Duration::from_millis(self.at);
        self
    }

    fn unit(&mut self, active: Active, pids: &[u32]) -> &mut Self {
        self.machine.facts.units.insert(name(MODEL), unit("run-of-small", active, pids));
        self
    }

    fn gone(&mut self) -> &mut Self {
        self.unit(Active::Inactive, &[])
    }

    /// A full reading of one card, begun just now.
    fn reads(&mut self, gpu: usize, card: &Card) -> &mut Self {
        let at = Duration::from_millis(self.at);
        let used = card.unlisted + card.listed.iter().map(|(_, mib, _)| mib).sum::<u64>();
        let gpu = self.machine.gpu(gpu);
        (gpu.read_at, gpu.listed_at) = (at, at);
        gpu.memory = Known::Value(memory(16_311, 388, used));
        let listed = card.listed.iter().map(|(pid, mib, model)| GpuProcess {
            pid: *pid,
            started: Some(u64::from(*pid)),
            program: "server".to_owned(),
            memory: Known::Value(Bytes::mib(*mib)),
            model: model.map(name),
            unit: None,
        });
        gpu.processes = Known::Value(listed.collect());
        self
    }

    fn lists_unknown(&mut self, gpu: usize) -> &mut Self {
        self.machine.gpu(gpu).processes = Known::Unknown("not supported".to_owned());
        self
    }

    /// Weighs the facts and lets time pass: whether the claim ended.
    fn proved(&mut self) -> bool {
        let facts: &Facts = &self.machine.facts;
        let proved = self.proofs.weigh(&mut self.machine.state, facts);
        assert_eq!(proved.is_empty(), self.machine.state.claims.contains_key(&name(MODEL)));
        self.later();
        !proved.is_empty()
    }

    /// What a reading of card 0, weighed, comes to.
    fn after(&mut self, card: &Card) -> bool {
        self.reads(0, card).proved()
    }

    fn state(&self) -> &State {
        &self.machine.state
    }

    fn why_not(&self) -> String {
        let claim = &self.state().claims[&name(MODEL)];
        let unproved = self.proofs.unproved(&name(MODEL), claim);
        unproved.iter().map(berth_core::release::Unproved::sentence).collect::<Vec<_>>().join("; ")
    }
}

const EMPTY: Card = Card { unlisted: DRIVER, listed: &[] };
const LINGERS: Card = Card { unlisted: DRIVER + HELD, listed: &[] };

#[test]
fn two_readings_after_the_end_prove_it() {
    let mut story = Story::one();
    assert!(!story.after(&Card { unlisted: DRIVER, listed: &[(PID, HELD, Some(MODEL))] }), "it still runs");
    assert_eq!(
        story.why_not(),
        "GPU 0: whether small's memory is back is unknown: its processes have not ended"
    );
    story.gone();
    assert!(!story.after(&LINGERS));
    assert_eq!(
        story.why_not(),
        "GPU 0: 5.0 GiB of small's memory are still held though its processes are gone"
    );
    assert!(!story.after(&EMPTY), "one reading is not enough");
    assert_eq!(story.why_not(), "GPU 0: small's memory is back in one reading, not yet in two");
    assert!(!story.proved(), "the same reading again is not a second one");
    assert!(story.after(&EMPTY));
}

#[test]
fn readings_from_before_the_end_do_not_count() {
    let mut story = Story::one();
    // Read while the process was on its way out, weighed when it was gone.
    story.reads(0, &EMPTY).later().gone();
    assert!(!story.proved());
    assert!(!story.after(&EMPTY), "the first that counts");
    assert!(story.after(&EMPTY));
    // The list is older than the memory: the fast poll reads memory alone.
    let mut story = Story::one();
    story.reads(0, &EMPTY).later().gone();
    for _ in 0..5 {
        story.machine.gpu(0).read_at = Duration::from_millis(story.at);
        assert!(!story.proved());
    }
}

#[test]
fn a_relapse_between_two_readings_begins_anew() {
    let mut story = Story::one();
    story.gone();
    assert!(!story.after(&EMPTY));
    assert!(!story.after(&LINGERS));
    assert!(!story.after(&EMPTY), "the first again");
    assert!(story.after(&EMPTY));
}

#[test]
fn processes_that_come_back_undo_what_was_proved() {
    let mut story = Story::new(&[(0, HELD), (1, HELD)]);
    story.gone();
    for _ in 0..2 {
        story.reads(0, &EMPTY).reads(1, &LINGERS);
        assert!(!story.proved());
    }
    assert!(story.proofs.proved_at(&name(MODEL), &device(0)).is_some());
    // A child that had hidden in a cgroup below.
    story.unit(Active::Inactive, &[PID + 1]);
    assert!(!story.proved());
    assert!(story.proofs.proved_at(&name(MODEL), &device(0)).is_none());
    story.gone();
    story.reads(0, &EMPTY).reads(1, &EMPTY);
    assert!(!story.proved(), "one reading since");
    story.reads(0, &EMPTY).reads(1, &EMPTY);
    assert!(story.proved());
}

#[test]
fn a_unit_whose_cgroup_cannot_be_read_has_not_ended() {
    let mut story = Story::one();
    story.gone();
    story.machine.facts.units.get_mut(&name(MODEL)).unwrap().processes =
        Known::Unknown("permission denied".to_owned());
    for _ in 0..3 {
        assert!(!story.after(&EMPTY));
    }
    story.unit(Active::Deactivating, &[]);
    for _ in 0..3 {
        assert!(!story.after(&EMPTY));
    }
    // systemd has forgotten the unit: nothing of it is left.
    story.machine.facts.units.clear();
    assert!(!story.after(&EMPTY));
    assert!(story.after(&EMPTY));
}

#[test]
fn foreign_growth_fools_it_in_neither_direction() {
    // It takes as much as was released (Ollama's wait would never end, or its subtraction wrap).
    let mut story = Story::one();
    story.gone();
    assert!(!story.after(&Card { unlisted: DRIVER, listed: &[(9, HELD, None)] }));
    assert!(story.after(&Card { unlisted: DRIVER, listed: &[(9, 2 * HELD, None)] }));
    // It grows while ours lingers.
    let mut story = Story::one();
    story.gone();
    for mib in [100, 4000, 9000] {
        assert!(!story.after(&Card { unlisted: DRIVER + HELD, listed: &[(9, mib, None)] }));
    }
}

#[test]
fn a_foreign_process_that_shrinks_is_not_our_memory() {
    let mut story = Story::one();
    story.machine.holds(0, 9, "Xorg", 6000, None);
    story.gone();
    for foreign in [6000, 880, 0] {
        for _ in 0..2 {
            assert!(!story.after(&Card { unlisted: DRIVER + HELD, listed: &[(9, foreign, None)] }));
        }
    }
    assert_eq!(story.state().foreign(&story.machine.facts.gpus()[0]), Some(Bytes::mib(DRIVER)));
}

#[test]
fn a_process_once_seen_holds_the_claim_wherever_it_is_now() {
    let mut story = Story::one();
    story.gone();
    // Its cgroup is empty, but it is listed still: by its pid alone, being a zombie of no cgroup.
    for _ in 0..3 {
        assert!(!story.after(&Card { unlisted: DRIVER, listed: &[(PID, HELD, None)] }));
    }
    assert_eq!(
        story.why_not(),
        "GPU 0: 5.0 GiB of small's memory are still held: pid 4001 (server) holds 5.0 GiB"
    );
    // No start time can be read of a process that is gone already: that is no proof that it is another.
    story.reads(0, &Card { unlisted: DRIVER, listed: &[(PID, HELD, None)] });
    let Known::Value(processes) = &mut story.machine.gpu(0).processes else { panic!() };
    processes[0].started = None;
    assert!(!story.proved());
}

#[test]
fn another_process_of_the_same_pid_is_foreign() {
    let mut story = Story::one();
    story.gone();
    for expected in [false, true] {
        story.reads(0, &Card { unlisted: DRIVER, listed: &[(PID, 700, None)] });
        let Known::Value(processes) = &mut story.machine.gpu(0).processes else { panic!() };
        processes[0].started = Some(999_999);
        assert_eq!(story.proved(), expected);
    }
}

#[test]
fn unlisted_memory_within_the_tolerance_is_back() {
    for (over, expected) in [(64, true), (65, false)] {
        let mut story = Story::one();
        story.gone();
        story.after(&Card { unlisted: DRIVER + over, listed: &[] });
        assert_eq!(story.after(&Card { unlisted: DRIVER + over, listed: &[] }), expected, "{over} MiB");
    }
}

#[test]
fn without_lists_free_must_be_back() {
    let mut story = Story::one();
    story.gone();
    let readings = [(DRIVER + HELD, false), (DRIVER + 65, false), (DRIVER + 64, false), (DRIVER, true)];
    for (used, expected) in readings {
        story.reads(0, &Card { unlisted: used, listed: &[] }).lists_unknown(0);
        assert_eq!(story.proved(), expected, "{used} MiB used");
    }
}

#[test]
fn one_process_of_unknown_size_makes_the_list_useless() {
    let mut story = Story::one();
    story.gone();
    let unknown = |story: &mut Story, unlisted: u64| {
        story.reads(0, &Card { unlisted, listed: &[(9, 300, None)] });
        let Known::Value(processes) = &mut story.machine.gpu(0).processes else { panic!() };
        processes[0].memory = Known::Unknown("not available".to_owned());
        story.proved()
    };
    // 300 MiB are foreign, but nobody says so: used less listed would say that all is back.
    for _ in 0..3 {
        assert!(!unknown(&mut story, DRIVER));
    }
    assert!(!story.after(&EMPTY));
    assert!(story.after(&EMPTY));
}

#[test]
fn a_lost_gpu_is_never_proved_free() {
    let mut story = Story::one();
    story.gone();
    assert!(!story.after(&EMPTY));
    for _ in 0..3 {
        story.reads(0, &EMPTY);
        story.machine.gpu(0).memory = Known::Unknown("the GPU is lost".to_owned());
        assert!(!story.proved());
    }
    assert_eq!(story.why_not(), "GPU 0: whether small's memory is back is unknown: the GPU is lost");
    for _ in 0..3 {
        let gpus = std::mem::replace(&mut story.machine.facts.gpus, Known::Value(Vec::new()));
        assert!(!story.proved(), "a card that is not there");
        story.machine.facts.gpus = Known::Unknown("NVML does not answer".to_owned());
        assert!(!story.proved(), "no cards at all");
        story.machine.facts.gpus = gpus;
    }
    assert!(!story.after(&EMPTY), "the first since it was lost");
    assert!(story.after(&EMPTY));
}

#[test]
fn each_gpu_is_proved_by_itself_and_late_proof_is_taken() {
    let mut story = Story::new(&[(0, HELD), (1, HELD)]);
    story.gone();
    for _ in 0..50 {
        story.reads(0, &EMPTY).reads(1, &LINGERS);
        assert!(!story.proved(), "card 0 can't make up for card 1");
    }
    assert!(story.proofs.proved_at(&name(MODEL), &device(0)).is_some());
    assert!(story.proofs.proved_at(&name(MODEL), &device(1)).is_none());
    story.at += 3_600_000;
    // Card 0 was proved and may be used by others since.
    story.reads(0, &LINGERS).reads(1, &EMPTY);
    assert!(!story.proved());
    story.reads(1, &EMPTY);
    assert!(story.proved());
}

#[test]
fn two_claims_that_linger_on_one_gpu_wait_for_each_other() {
    let mut story = Story::one();
    story.machine.claims("glm-flash", Phase::Ending, &[(0, 9216)], None);
    story.machine.facts.units.insert(name("glm-flash"), unit("run-of-glm-flash", Active::Inactive, &[]));
    story.gone();
    // Which of the two has 5 GiB left can't be told, so neither ends.
    for _ in 0..3 {
        assert!(!story.after(&LINGERS));
        assert_eq!(story.state().claims.len(), 2);
    }
    assert!(!story.after(&EMPTY));
    assert!(story.after(&EMPTY));
    assert!(story.state().claims.is_empty());
}

#[test]
fn a_claim_without_gpus_ends_with_its_processes() {
    let mut story = Story::new(&[]);
    assert!(!story.proved());
    story.gone();
    assert!(story.proved());
}

#[test]
fn the_fast_poll_knows_when_the_lists_are_worth_reading() {
    let mut story = Story::one();
    story.gone().reads(0, &Card { unlisted: DRIVER + HELD, listed: &[(9, 400, None)] });
    let part = &story.state().claims[&name(MODEL)].gpus[0];
    let limit = worth_listing(part, &story.machine.facts.gpus()[0]).unwrap();
    // Back, with the foreign process as it was listed last.
    assert!(limit >= Bytes::mib(DRIVER + 400) && limit < Bytes::mib(DRIVER + HELD), "{limit}");
    let reading = berth_core::release::judge(story.state(), &name(MODEL), part, None);
    assert_eq!(reading, Reading::Unknown("GPU 0 can't be seen".to_owned()));
}

#[test]
fn a_container_that_was_never_seen_may_still_come() {
    let docker = |story: &mut Story, docker: Option<Docker>| {
        let unit = story.gone().machine.facts.units.get_mut(&name(MODEL)).unwrap();
        unit.docker = docker.map_or_else(Unit::docker_not_asked, Known::Value);
    };
    let unseen = || {
        let mut story = Story::one();
        story.machine.state.claims.get_mut(&name(MODEL)).unwrap().unseen = true;
        story
    };
    let proved_within = |story: &mut Story, seconds: u64| {
        let until = story.at + 1000 * seconds;
        while story.at < until {
            if story.after(&EMPTY) {
                return true;
            }
        }
        false
    };
    for (state, within) in [
        (Some(Docker::Silent), None),
        (Some(Docker::Busy), Some(61)),
        (None, Some(61)),
        (Some(Docker::Idle), Some(1)),
    ] {
        let mut story = unseen();
        docker(&mut story, state);
        assert_eq!(proved_within(&mut story, 59), within == Some(1), "{state:?}");
        assert_eq!(within == Some(1) || proved_within(&mut story, 2), within.is_some(), "{state:?}");
    }
    // docker has answered a client that ended by itself; one that was told to, or killed, heard nothing.
    for (exit, answered) in [(Exit::Status(125), true), (Exit::Status(143), false), (Exit::Signal(9), false)]
    {
        let mut story = unseen();
        docker(&mut story, Some(Docker::Silent));
        story.machine.facts.units.get_mut(&name(MODEL)).unwrap().exit = Some(exit);
        assert_eq!(proved_within(&mut story, 59), answered, "{exit:?}");
    }
    // It comes, and what it holds has to be proved free anew.
    let mut story = unseen();
    docker(&mut story, Some(Docker::Busy));
    assert!(!story.after(&EMPTY));
    assert!(story.why_not().contains("docker may still start its container"), "{}", story.why_not());
    story.unit(Active::Failed, &[PID]);
    assert!(!story.after(&Card { unlisted: DRIVER, listed: &[(PID, HELD, Some(MODEL))] }));
    docker(&mut story, Some(Docker::Idle));
    assert!(!story.after(&EMPTY));
    assert!(story.after(&EMPTY));
    // One that was seen comes no more.
    let mut story = Story::one();
    docker(&mut story, Some(Docker::Silent));
    assert!(proved_within(&mut story, 1));
}

#[test]
fn an_operator_gives_up_only_what_nobody_can_be_named_for() {
    let give_up = |story: &mut Story, gpu: usize| {
        let Story { machine, proofs, .. } = story;
        let (given_up, kept) = proofs.give_up(&machine.state, &machine.facts, &device(gpu));
        let kept = kept.iter().map(berth_core::release::Unproved::sentence).collect::<Vec<_>>().join("; ");
        (given_up, kept)
    };
    let listed = Card { unlisted: DRIVER, listed: &[(PID, HELD, Some(MODEL))] };
    let mut story = Story::new(&[(0, HELD), (1, HELD)]);
    story.reads(0, &listed).reads(1, &listed);
    assert!(!story.proved());
    let (given_up, kept) = give_up(&mut story, 0);
    assert_eq!(given_up, [], "it still runs");
    assert!(kept.contains("its processes have not ended"), "{kept}");
    // Gone from its cgroup, and listed.
    story.gone().reads(0, &listed).reads(1, &LINGERS);
    assert!(!story.proved());
    let (given_up, kept) = give_up(&mut story, 0);
    assert_eq!(given_up, []);
    assert!(kept.contains("pid 4001 (server) holds 5.0 GiB"), "{kept}");
    assert!(!story.proved());
    // Unknown is not nobody.
    story.machine.gpu(0).memory = Known::Unknown("the GPU is lost".to_owned());
    assert!(!story.proved());
    assert_eq!(give_up(&mut story, 0).0, []);
    // Nobody is listed: on this card it is given up, and on the other one it is not.
    story.reads(0, &LINGERS).reads(1, &LINGERS);
    assert!(!story.proved());
    assert_eq!(give_up(&mut story, 0), (vec![(name(MODEL), Bytes::mib(HELD))], String::new()));
    assert_eq!(give_up(&mut story, 0), (vec![], String::new()), "once");
    story.reads(0, &LINGERS).reads(1, &LINGERS);
    assert!(!story.proved());
    assert_eq!(give_up(&mut story, 1).0, [(name(MODEL), Bytes::mib(HELD))]);
    assert!(story.proved());
    // What was given up is foreign use from then on.
    assert_eq!(story.state().foreign(&story.machine.facts.gpus()[0]), Some(Bytes::mib(DRIVER + HELD)));

    // Where the driver gives no lists nobody can be named either; but a process that is there again undoes it.
    let mut story = Story::one();
    story.gone().reads(0, &LINGERS).lists_unknown(0);
    assert!(!story.proved());
    assert_eq!(give_up(&mut story, 0).0.len(), 1);
    story.unit(Active::Active, &[PID]);
    assert!(!story.proved());
    assert_eq!(give_up(&mut story, 0).0, []);
    // A model that serves is not concerned.
    story.machine.state.claims.get_mut(&name(MODEL)).unwrap().phase = Phase::Serving;
    assert_eq!(give_up(&mut story, 0), (vec![], String::new()));
}
