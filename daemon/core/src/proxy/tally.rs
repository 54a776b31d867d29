//! What a model's requests come to. It begins anew with berthd.

use std::collections::VecDeque;
use std::time::Duration;

use super::usage::Usage;
use crate::metrics::Histogram;
use crate::report::Requests;

/// The newest so many requests make the medians.
const NEWEST: usize = 100;
/// An answer of fewer tokens says little of how fast they come.
const FEWEST_TOKENS: u64 = 8;
/// One that comes in a shorter time was collected before it was sent.
const SHORTEST: Duration = Duration::from_millis(10);

/// A request that ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ended {
    /// The `code` of a refusal, or how its model's answer ended: `2xx`, `client_gone` …
    pub outcome: &'static str,
    /// How long it waited for its model; None where it never got there.
    pub queued: Option<Duration>,
    /// From then until its answer began.
    pub first_byte: Option<Duration>,
    /// From then until the first token of a stream.
    pub first_token: Option<Duration>,
    /// From the first token of a stream to its end.
    pub generation: Option<Duration>,
    /// Its tokens.
    pub usage: Usage,
}

impl Ended {
    /// Tokens in a second, as its server measured it, else as they came.
    pub fn speed(&self) -> Option<f64> {
        let tokens = self.usage.completion.filter(|tokens| *tokens >= FEWEST_TOKENS)?;
        // The first one came before that time began.
        let as_they_came = |time: &Duration| (tokens - 1) as f64 / time.as_secs_f64();
        let seen = self.generation.filter(|time| *time >= SHORTEST);
        self.usage.per_second.or(seen.as_ref().map(as_they_came))
    }
}

/// One model's.
#[derive(Debug, Default)]
pub struct Tally {
    requests: Requests,
    newest: VecDeque<Newest>,
    times: RequestTimes,
}

/// How long the requests took that reached their model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestTimes {
    /// How long they waited for it.
    pub queued: Histogram,
    /// From then until their answers began.
    pub first_byte: Histogram,
    /// From then until the first tokens of streams.
    pub first_token: Histogram,
}

#[derive(Debug)]
struct Newest {
    queued: u64,
    first_byte: Option<u64>,
    first_token: Option<u64>,
    speed: Option<f64>,
}

impl Tally {
    /// Counts a request that ended now, in milliseconds since 1970.
    pub fn add(&mut self, ended: &Ended, now_ms: u64) {
        let requests = &mut self.requests;
        requests.total += 1;
        *requests.outcomes.entry(ended.outcome.to_owned()).or_default() += 1;
        let Some(queued) = ended.queued else { return };
        let tokens = |tokens: Option<u64>| tokens.unwrap_or(0);
        requests.prompt_tokens = requests.prompt_tokens.saturating_add(tokens(ended.usage.prompt));
        requests.completion_tokens =
            requests.completion_tokens.saturating_add(tokens(ended.usage.completion));
        requests.last_used_ms = Some(now_ms);
        self.times.queued.add(queued);
        if let Some(time) = ended.first_byte {
            self.times.first_byte.add(time);
        }
        if let Some(time) = ended.first_token {
            self.times.first_token.add(time);
        }
        if self.newest.len() == NEWEST {
            self.newest.pop_front();
        }
        self.newest.push_back(Newest {
            queued: millis(queued),
            first_byte: ended.first_byte.map(millis),
            first_token: ended.first_token.map(millis),
            speed: ended.speed(),
        });
    }

    /// How long they took.
    pub fn times(&self) -> &RequestTimes {
        &self.times
    }

    /// All of it, beside what goes on.
    pub fn requests(&self, under_way: usize, waiting: usize) -> Requests {
        let median_ms =
            |pick: fn(&Newest) -> Option<u64>| median(self.newest.iter().filter_map(pick).collect());
        Requests {
            under_way: under_way as u64,
            waiting: waiting as u64,
            queued_ms: median_ms(|one| Some(one.queued)),
            first_byte_ms: median_ms(|one| one.first_byte),
            first_token_ms: median_ms(|one| one.first_token),
            tokens_per_second: median(self.newest.iter().filter_map(|one| one.speed).collect()),
            ..self.requests.clone()
        }
    }
}

/// The one in the middle; of two the lower one.
fn median<T: PartialOrd + Copy>(mut all: Vec<T>) -> Option<T> {
    // Speeds are finite.
    all.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    all.get(all.len().saturating_sub(1) / 2).copied()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(completion: u64, per_second: Option<f64>) -> Usage {
        Usage { prompt: Some(10), completion: Some(completion), per_second }
    }

    #[test]
    fn requests_are_counted_by_what_came_of_them() {
        let mut tally = Tally::default();
        assert_eq!(tally.requests(0, 0), Requests::default());
        tally.add(&Ended { outcome: "queue_full", ..Ended::default() }, 5);
        assert_eq!(tally.requests(0, 0).last_used_ms, None, "a refusal is no use");
        for (at, queued) in [(7, 0), (8, 400), (9, 30)] {
            let usage = tokens(5, None);
            let ended = Ended {
                outcome: "2xx",
                queued: Some(Duration::from_millis(queued)),
                first_byte: Some(Duration::from_millis(9)),
                usage,
                ..Ended::default()
            };
            tally.add(&ended, at);
        }
        let wanted = Requests {
            total: 4,
            outcomes: [("queue_full".to_owned(), 1), ("2xx".to_owned(), 3)].into(),
            under_way: 1,
            waiting: 2,
            prompt_tokens: 30,
            completion_tokens: 15,
            queued_ms: Some(30),
            first_byte_ms: Some(9),
            last_used_ms: Some(9),
            ..Requests::default()
        };
        assert_eq!(tally.requests(1, 2), wanted);
        let times = tally.times();
        assert_eq!((times.queued.count(), times.queued.sum()), (3, Duration::from_millis(430)));
        assert_eq!((times.first_byte.count(), times.first_token.count()), (3, 0));
    }

    #[test]
    fn a_speed_is_the_servers_or_measured_and_else_unknown() {
        let speed = |completion, per_second, generation: Option<u64>| {
            let generation = generation.map(Duration::from_millis);
            Ended { usage: tokens(completion, per_second), generation, ..Ended::default() }.speed()
        };
        assert_eq!(speed(81, None, Some(1000)), Some(80.0));
        assert_eq!(speed(81, Some(75.5), Some(1000)), Some(75.5));
        assert_eq!(speed(81, Some(75.5), None), Some(75.5));
        assert_eq!(speed(81, None, None), None);
        assert_eq!(speed(81, None, Some(3)), None, "it was not measured");
        assert_eq!(speed(1, Some(1e6), Some(1000)), None, "llama.cpp's for one token");
        assert_eq!(Ended { generation: Some(Duration::from_secs(1)), ..Ended::default() }.speed(), None);
    }

    #[test]
    fn medians_are_of_the_newest() {
        let mut tally = Tally::default();
        for speed in (1..=300).rev() {
            let usage = tokens(10, Some(f64::from(speed)));
            tally.add(&Ended { outcome: "2xx", queued: Some(Duration::ZERO), usage, ..Ended::default() }, 0);
        }
        assert_eq!(tally.requests(0, 0).tokens_per_second, Some(50.0));
        assert_eq!((tally.requests(0, 0).total, tally.newest.len()), (300, NEWEST));
    }
}
