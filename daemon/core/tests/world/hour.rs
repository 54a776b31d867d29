//! An hour with thousands of clients, who ask for models that can't all serve at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_core::config::OnDemand;
use berth_core::facts::Moment;
use berth_core::name::ModelName;
use berth_core::proxy::{Directory, Verdict};
use berth_core::report::Verb;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

use super::World;
use crate::story::name;

const HOUR: u64 = 3_600_000;
/// Between two looks of this test, and how much later than it is due something may happen for that and for the driver's.
const LOOK: u64 = 100;
const SLACK: u64 = 1500;

/// How the clients of one hour are.
#[derive(Debug, Clone)]
struct Scene {
    seed: u64,
    gpus: usize,
    home: Vec<&'static str>,
    /// Of each model.
    on_demand: Vec<OnDemand>,
    clients: usize,
    /// In seconds: between two requests of a client, of an answer, until a client hangs up, of a turn.
    think: u64,
    answer: u64,
    patience: u64,
    turn: u64,
    /// In milliseconds: of a load, and how long memory lingers.
    load: u64,
    linger: u64,
}

fn scene(gpus: usize) -> impl Strategy<Value = Scene> {
    let on_demand = prop_oneof![
        5 => Just(OnDemand::Evict),
        2 => Just(OnDemand::Beside),
        1 => Just(OnDemand::Never)
    ];
    let home = prop::sample::subsequence(vec!["glm", "small", "tiny", "host"], 0..3);
    let home = prop_oneof![1 => Just(vec!["aeon"]), 2 => home];
    let whose = (any::<u64>(), Just(gpus), home, prop::collection::vec(on_demand, 6));
    let times = (60u64..1200, 1u64..30, 5u64..400, 1u64..60, 500u64..15_000, 0u64..3000);
    (whose, 1000usize..4000, times).prop_map(|((seed, gpus, home, on_demand), clients, times)| {
        let (think, answer, patience, turn, load, linger) = times;
        Scene { seed, gpus, home, on_demand, clients, think, answer, patience, turn, load, linger }
    })
}

/// A request that waits.
struct Asked {
    client: usize,
    ticket: u64,
    since: u64,
    until: u64,
}

/// What became of all requests.
#[derive(Debug, Default, Clone, PartialEq)]
struct Counts {
    asked: usize,
    sent: usize,
    refused: usize,
    hung_up: usize,
    full: usize,
}

struct Hour {
    scene: Scene,
    world: World,
    chance: u64,
    names: Vec<ModelName>,
    /// When each client asks next.
    next: BTreeSet<(u64, usize)>,
    waiting: BTreeMap<ModelName, Vec<Asked>>,
    counts: Counts,
    /// Who is first in line, and since when.
    first: Option<(ModelName, u64)>,
    ended: (usize, u64),
    longest: u64,
}

impl Hour {
    fn new(scene: Scene) -> Self {
        let mut world = World::new(scene.gpus);
        for (model, on_demand) in world.names().iter().zip(&scene.on_demand) {
            world.settings.models.get_mut(model).unwrap().guests.on_demand = *on_demand;
            let manner = world.nature.manner(model.as_str());
            (manner.load, manner.linger) = (scene.load, scene.linger);
        }
        world.settings.proxy.turn = Duration::from_secs(scene.turn);
        for model in &scene.home {
            _ = world.ask(Verb::Start, Some(*model));
            world.wait_until(60_000, |world| !world.busy());
        }
        let names = world.names();
        let mut hour = Self {
            chance: scene.seed | 1,
            world,
            names,
            next: BTreeSet::new(),
            waiting: BTreeMap::new(),
            counts: Counts::default(),
            first: None,
            ended: (0, 0),
            longest: 0,
            scene,
        };
        for client in 0..hour.scene.clients {
            let at = hour.world.nature.now + hour.draw(2000 * hour.scene.think);
            hour.next.insert((at, client));
        }
        hour
    }

    /// A number below `most` (xorshift, from the seed).
    fn draw(&mut self, most: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % most.max(1)
    }

    fn thinks(&mut self, client: usize, after: u64) {
        let at = self.world.nature.now + after + self.draw(2000 * self.scene.think);
        self.next.insert((at, client));
    }

    fn asks(&mut self, client: usize, directory: &Directory) {
        self.counts.asked += 1;
        // Half of them ask for two of the models.
        let models = self.names.len() as u64;
        let which = if self.draw(2) == 0 { self.draw(2) } else { self.draw(models) };
        let model = self.names[usize::try_from(which).unwrap()].clone();
        match directory.verdict(model.as_str()) {
            Verdict::Send { .. } => self.sends(client, &model),
            Verdict::Refused(_) => {
                self.counts.refused += 1;
                self.thinks(client, 0);
            }
            Verdict::Wait(_) | Verdict::Load(_) => {
                let now = self.world.nature.now;
                let ticket = self.world.clients.wait(&model, ("client", true), 256, self.world.at());
                if let Some(ticket) = ticket {
                    let until = now + 500 * self.scene.patience + self.draw(1000 * self.scene.patience);
                    let asked = Asked { client, ticket, since: now, until };
                    self.waiting.entry(model).or_default().push(asked);
                    self.world.tick();
                } else {
                    self.counts.full += 1;
                    self.thinks(client, 0);
                }
            }
        }
    }

    fn sends(&mut self, client: usize, model: &ModelName) {
        assert!(self.world.nature.ready(model), "{model} is asked and does not serve");
        let takes = 100 + self.draw(2000 * self.scene.answer);
        self.world.answers(model, takes);
        self.counts.sent += 1;
        self.thinks(client, takes);
    }

    /// Those who wait go on, are refused or hang up.
    fn moves(&mut self, directory: &Directory) {
        let now = self.world.nature.now;
        for model in self.names.clone() {
            let Some(waiting) = self.waiting.remove(&model) else { continue };
            let verdict = directory.verdict(model.as_str());
            let mut left = Vec::new();
            for asked in waiting {
                match verdict {
                    Verdict::Send { .. } => {
                        self.longest = self.longest.max(now - asked.since);
                        self.sends(asked.client, &model);
                        self.world.clients.give_back(&model, asked.ticket);
                    }
                    Verdict::Refused(_) => {
                        self.counts.refused += 1;
                        self.world.clients.give_back(&model, asked.ticket);
                        self.thinks(asked.client, 0);
                    }
                    _ if now >= asked.until => {
                        self.counts.hung_up += 1;
                        self.world.hangs_up(&model, asked.ticket);
                        self.thinks(asked.client, 0);
                    }
                    _ => left.push(asked),
                }
            }
            if !left.is_empty() {
                self.waiting.insert(model, left);
            }
        }
    }

    /// Who is first in line gets its turn in time, unless a swap is under way or memory on its way back.
    fn check_turn(&mut self, directory: &Directory) -> Result<(), TestCaseError> {
        let (world, now) = (&self.world, self.world.nature.now);
        if world.ended.len() != self.ended.0 {
            self.ended = (world.ended.len(), now);
        }
        let clients = world.clients.clients();
        let lines = clients.iter().filter_map(|(model, usage)| Some((usage.first.as_ref()?.0, model)));
        let waits = |model: &ModelName| matches!(directory.verdict(model.as_str()), Verdict::Load(_));
        let first: Option<(Moment, &ModelName)> = lines.filter(|(_, model)| waits(model)).min();
        let Some((since, model)) = first else {
            self.first = None;
            return Ok(());
        };
        if self.first.as_ref().is_none_or(|(was, _)| was != model) {
            self.first = Some((model.clone(), now));
        }
        let could = self.first.as_ref().map_or(now, |(_, at)| *at).max(self.ended.1);
        let could = could.max(u64::try_from(since.as_millis()).unwrap());
        let late = now.saturating_sub(could);
        let bound = 1000 * self.scene.turn + self.scene.linger + SLACK;
        prop_assert!(
            world.swap.is_some() || late <= bound,
            "{model} is first in line and was not loaded after {late} ms"
        );
        Ok(())
    }

    /// Lets time pass, with clients who ask or without.
    fn passes(&mut self, ms: u64, asking: bool) -> Result<(), TestCaseError> {
        let until = self.world.nature.now + ms;
        while self.world.nature.now < until {
            self.world.wait(LOOK);
            let directory = self.world.directory();
            self.moves(&directory);
            self.check_turn(&directory)?;
            while let Some((at, client)) = self.next.first().copied().filter(|_| asking)
                && at <= self.world.nature.now
            {
                self.next.pop_first();
                self.asks(client, &directory);
            }
        }
        Ok(())
    }
}

#[test]
fn an_hour_of_thousands_of_clients_on_two_gpus() {
    hours(2, 2);
}

#[test]
fn an_hour_of_thousands_of_clients_on_one_gpu() {
    hours(1, 2);
}

fn hours(gpus: usize, cases: u32) {
    let kept = FileFailurePersistence::Direct("proptest-regressions/hour.txt");
    let more = std::env::var("BERTH_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = Config {
        cases: more.unwrap_or(cases),
        failure_persistence: Some(Box::new(kept)),
        // Each case is an hour.
        max_shrink_iters: 40,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&scene(gpus), |scene| {
            let mut hour = Hour::new(scene.clone());
            hour.passes(HOUR, true)?;
            let (world, counts) = (&hour.world, &hour.counts);
            let waiting: usize = hour.waiting.values().map(Vec::len).sum();
            let under_way: usize = world.clients.clients().values().map(|usage| usage.under_way).sum();
            // None is lost, and none is counted twice.
            prop_assert_eq!(
                counts.asked,
                counts.sent + counts.refused + counts.hung_up + counts.full + waiting,
                "{:?}",
                counts
            );
            prop_assert_eq!(counts.sent, world.answered + world.cut + under_way, "{:?}", counts);
            prop_assert!(counts.asked > scene.clients / 2, "{counts:?}");
            prop_assert_eq!(world.nature.failed_allocations, 0);
            let swaps = world.ended.len();
            println!(
                "{counts:?} cut {} swaps {swaps} longest wait {} s {scene:?}",
                world.cut,
                hour.longest / 1000
            );
            // Nobody asks any more: home serves, and nothing else.
            hour.passes(900_000, false)?;
            hour.world.heal_and_settle();
            prop_assert!(hour.world.clients.clients().values().all(|usage| !usage.is_wanted()));
            let home: Vec<ModelName> = scene.home.iter().map(|model| name(model)).collect();
            prop_assert!(hour.world.state.home.models.iter().all(|model| home.contains(model)));
            Ok(())
        })
        .unwrap();
}
