//! Many clients who ask, through the proxy, for models that can't be resident together; and what must not have come of
//! it: an answer cut short or refused, a request lost or answered twice, a load that was not begun in its turn, a failed
//! allocation.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow, ensure};
use berth_core::config::PROXY_PORT;
use berth_core::report::{Outcome, SwapSummary, Verb};
use serde_json::{Value, json};

use crate::http::{Answer, post};
use crate::{Berth, fake};

/// Each needs more than half of both cards. The first is home.
pub const MODELS: [&str; 3] = ["aeon", "genesis", "glm"];
const EACH: &str = "14300MiB";
/// For how long an answer may be waited for: several turns of everybody else.
const PATIENCE: Duration = Duration::from_secs(120);
/// A load begins once it is looked up what is free, on a machine that does other things too.
const LATE: Duration = Duration::from_millis(1500);

/// How many ask, for how long, and how long a turn is.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// Clients, each with one request at a time.
    pub clients: u64,
    /// How long they go on.
    pub time: Duration,
    /// `turn` of the proxy.
    pub turn: Duration,
    /// Draws what they ask for.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Requests that were answered whole.
    pub answers: u64,
    /// Models that were loaded for clients.
    pub loads: usize,
    /// The longest that anybody waited for a whole answer.
    pub longest_answer: Duration,
    /// The longest that a load, first in line, waited until it began.
    pub longest_turn: Duration,
    /// Allocations that failed for lack of memory.
    pub failed_allocations: u64,
    /// All that must not be, in words; empty is good.
    pub violations: Vec<String>,
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "answers={} loads={} longest_answer_ms={} longest_turn_ms={} failed_allocations={}",
            self.answers,
            self.loads,
            self.longest_answer.as_millis(),
            self.longest_turn.as_millis(),
            self.failed_allocations
        )
    }
}

/// One request, in milliseconds since 1970.
struct Asked {
    model: &'static str,
    prompt: String,
    sent: u64,
    answered: u64,
}

/// A machine with three models of which any displaces any other for whoever asks.
///
/// # Errors
/// It does not come up.
pub fn machine(turn: Duration) -> Result<Berth> {
    let main = format!(
        "node = \"tower\"\non_demand = \"evict\"\nguest_idle = \"3s\"\n[proxy]\nturn = \"{}ms\"\n\
         [deadlines]\ndrain = \"20s\"\nstop = \"3s\"\nrelease = \"12s\"\nstart = \"10s\"\n",
        turn.as_millis()
    );
    let flags = ["--load-time", "300ms", "--token-delay", "20ms", "--say-prompts"];
    let fakes = MODELS.iter().map(|model| (*model, fake(2, EACH, &flags)));
    fakes.fold(Berth::builder().main(&main), |builder, (model, toml)| builder.model(model, &toml)).try_boot()
}

/// Lets them ask. `progress` is told every now and then how many answers there were.
///
/// # Errors
/// The machine can't be looked at.
pub fn crowd(berth: &Berth, plan: &Crowd, mut progress: impl FnMut(u64)) -> Result<Served> {
    berth.switch(MODELS[0]);
    berth.gpu(&["linger-random", "600ms", &plan.seed.to_string()]);
    let (pid1, failed_before) = (berth.pid1()?, berth.stats().failed);
    let (over, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let (asked, violations) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let mut swaps: BTreeMap<u64, SwapSummary> = BTreeMap::new();
    thread::scope(|scope| {
        for client in 0..plan.clients {
            let (over, answers, asked, violations) = (&over, &answers, &asked, &violations);
            scope.spawn(move || {
                let mut chance = Chance::new(plan.seed, client);
                for round in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let prompt = format!("c{client}r{round}");
                    match ask(pid1, &prompt, &mut chance) {
                        Ok(one) => {
                            answers.fetch_add(1, Ordering::Relaxed);
                            locked(asked).push(one);
                        }
                        Err(error) => locked(violations).push(format!("{prompt}: {error:#}")),
                    }
                    thread::sleep(Duration::from_millis(chance.below(400)));
                }
            });
        }
        let begin = Instant::now();
        while begin.elapsed() < plan.time {
            thread::sleep(Duration::from_secs(5).min(plan.time.saturating_sub(begin.elapsed())));
            // Berth keeps only the newest events.
            swaps.extend(berth.swaps().into_iter().map(|swap| (swap.id, swap)));
            progress(answers.load(Ordering::Relaxed));
        }
        over.store(true, Ordering::Relaxed);
    });
    let (asked, mut violations) = (taken(asked), taken(violations));
    // Nobody asks any more: home returns.
    berth.wait_for("home is back", Duration::from_secs(60), |berth| {
        (berth.serving() == [MODELS[0]]).then_some(())
    });
    swaps.extend(berth.swaps().into_iter().map(|swap| (swap.id, swap)));
    let home = berth.status().home;
    if home.len() != 1 || home[0].as_str() != MODELS[0] {
        violations.push(format!("home is {home:?}"));
    }
    violations.extend(not_once(berth, &asked));
    let loads: Vec<&SwapSummary> = swaps.values().filter(|swap| swap.verb == Verb::Load).collect();
    let cut = |swap: &SwapSummary| swap.steps.iter().any(|step| step.detail.contains("cut off"));
    for swap in swaps.values().filter(|swap| swap.outcome != Some(Outcome::Done) || cut(swap)) {
        violations.push(format!("a swap ended otherwise: {swap:?}"));
    }
    let longest_turn = turns(&swaps, &asked).into_iter().max().unwrap_or_default();
    if longest_turn > plan.turn + LATE {
        violations.push(format!("a load that was first in line began after {longest_turn:?}"));
    }
    let failed_allocations = berth.stats().failed - failed_before;
    if failed_allocations > 0 {
        violations.push(format!("{failed_allocations} allocations failed"));
    }
    let longest = asked.iter().map(|one| one.answered - one.sent).max().unwrap_or_default();
    Ok(Served {
        answers: answers.load(Ordering::Relaxed),
        loads: loads.len(),
        longest_answer: Duration::from_millis(longest),
        longest_turn,
        failed_allocations,
        violations,
    })
}

/// One request for one of the models, half of them streamed; its answer is looked at whole.
fn ask(pid1: u32, prompt: &str, chance: &mut Chance) -> Result<Asked> {
    let model = MODELS[usize::try_from(chance.below(3))?];
    let (tokens, stream) = (2 + chance.below(12), chance.below(2) == 0);
    let body = json!({ "model": model, "prompt": prompt, "max_tokens": tokens, "stream": stream });
    let sent = now_ms();
    let answer = post(pid1, PROXY_PORT, "/v1/completions", &body, PATIENCE)?;
    let answered = now_ms();
    ensure!(answer.status == 200, "{model} answered {}: {}", answer.status, answer.body);
    ensure!(
        answer.head.contains(&format!("x-berth-model: {model}")),
        "another than {model}: {}",
        answer.head
    );
    ensure!(came(&answer, stream)? == tokens, "{model} was cut short of {tokens} tokens: {}", answer.body);
    Ok(Asked { model, prompt: prompt.to_owned(), sent, answered })
}

/// How many tokens came, of an answer that is whole.
fn came(answer: &Answer, stream: bool) -> Result<u64> {
    if stream {
        ensure!(answer.body.contains("data: [DONE]"), "no end: {}", answer.body);
        let chunks = answer.body.lines().filter(|line| line.starts_with("data: {"));
        // The last one only says why it ends.
        return Ok(chunks.count().saturating_sub(1).try_into()?);
    }
    let body: Value = serde_json::from_str(&answer.body)?;
    body["usage"]["completion_tokens"].as_u64().ok_or_else(|| anyhow!("no usage: {body}"))
}

/// Requests that no server was asked, or more than one, or one twice.
fn not_once(berth: &Berth, asked: &[Asked]) -> Vec<String> {
    let mut times: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for model in MODELS {
        let journal = berth.journal(&format!("berth-model@{model}.service"));
        for (_, prompt) in journal.lines().filter_map(|line| line.split_once("prompt: ")) {
            *times.entry((model, prompt.trim().to_owned())).or_default() += 1;
        }
    }
    let all = |prompt: &str| -> usize {
        MODELS.iter().filter_map(|model| times.get(&(*model, prompt.to_owned()))).sum()
    };
    let wrong = asked
        .iter()
        .filter(|one| times.get(&(one.model, one.prompt.clone())) != Some(&1) || all(&one.prompt) != 1);
    wrong.map(|one| format!("{} of {} was asked {} times", one.prompt, one.model, all(&one.prompt))).collect()
}

/// How long each load waited from when it was first in line and no swap was under way.
fn turns(swaps: &BTreeMap<u64, SwapSummary>, asked: &[Asked]) -> Vec<Duration> {
    let mut free_since = 0;
    let mut turns = Vec::new();
    for swap in swaps.values() {
        if let (Verb::Load, Some(model)) = (swap.verb, &swap.model) {
            let waited = |one: &&Asked| {
                one.model == model.as_str() && one.sent <= swap.began_ms && one.answered > swap.began_ms
            };
            let first = asked.iter().filter(waited).map(|one| one.sent).min();
            let since = first.unwrap_or(swap.began_ms).max(free_since);
            turns.push(Duration::from_millis(swap.began_ms.saturating_sub(since)));
        }
        free_since = swap.began_ms + swap.elapsed_ms;
    }
    turns
}

/// Numbers as if by chance, from a seed (an LCG with Knuth's constants).
struct Chance(u64);

impl Chance {
    fn new(seed: u64, client: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(client))
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn locked<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn taken<T>(shared: Mutex<T>) -> T {
    shared.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
