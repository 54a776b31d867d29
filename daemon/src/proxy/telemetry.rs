//! What is known of requests once they ended: counts for each model, and a line for each at debug. Never what was asked or
//! answered, and no key.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_core::name::ModelName;
use berth_core::proxy::usage::Reader;
use berth_core::proxy::{Directory, Ended, RequestTimes, Tally};
use berth_core::report::Requests;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use hyper::{Request, Response, StatusCode};
use tokio::time::Instant;
use tracing::Level;

use super::body::Answer;
use crate::driver::now_ms;

/// How much of what a client wrote is logged, in characters.
const SHOWN: usize = 100;

/// Shared counts.
#[derive(Debug, Default, Clone)]
pub struct Telemetry(Arc<Mutex<BTreeMap<ModelName, Tally>>>);

impl Telemetry {
    /// What clients asked of this model, beside what goes on.
    pub fn requests(&self, model: &ModelName, under_way: usize, waiting: usize) -> Requests {
        match self.tallies().get(model) {
            Some(tally) => tally.requests(under_way, waiting),
            None => Tally::default().requests(under_way, waiting),
        }
    }

    /// How long requests took, of each model that was asked.
    pub fn times(&self) -> BTreeMap<ModelName, RequestTimes> {
        self.tallies().iter().map(|(model, tally)| (model.clone(), tally.times().clone())).collect()
    }

    /// A request that came in now.
    pub(super) fn begin<B>(&self, request: &Request<B>) -> Account {
        let line = tracing::enabled!(Level::DEBUG).then(|| Line {
            method: request.method().to_string(),
            path: short(request.uri().path()),
            ..Line::default()
        });
        Account {
            telemetry: self.clone(),
            began: Instant::now(),
            model: None,
            asked_at: None,
            sent_at: None,
            taken: None,
            status: None,
            outcome: None,
            first_byte: None,
            first_token: None,
            last: None,
            bytes: 0,
            reader: None,
            line,
        }
    }

    fn tallies(&self) -> MutexGuard<'_, BTreeMap<ModelName, Tally>> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much of a request's body came in, in bytes.
pub(super) type Taken = Arc<AtomicU64>;

/// What is known of one request so far. It is told of when this is dropped: then its answer ended, or nobody wants it.
#[derive(Debug)]
pub(super) struct Account {
    telemetry: Telemetry,
    began: Instant,
    model: Option<ModelName>,
    /// When it was known for which model it is, and when it went on to it.
    asked_at: Option<Instant>,
    sent_at: Option<Instant>,
    taken: Option<Taken>,
    status: Option<StatusCode>,
    first_byte: Option<Duration>,
    /// When the first token of a stream, and when the last bytes came.
    first_token: Option<Instant>,
    last: Option<Instant>,
    /// Of the answer's body.
    bytes: u64,
    reader: Option<Reader>,
    /// What came of it, once that is known.
    outcome: Option<&'static str>,
    /// What only the log is told.
    line: Option<Line>,
}

#[derive(Debug, Default)]
struct Line {
    method: String,
    path: String,
    asked: String,
    key: Option<String>,
}

impl Account {
    /// Whose key it showed.
    pub(super) fn shows(&mut self, key: Option<&str>) {
        if let Some(line) = &mut self.line {
            line.key = key.map(str::to_owned);
        }
    }

    /// It is for whoever has this name.
    pub(super) fn asks(&mut self, asked: &str, directory: &Directory) {
        self.asked_at = Some(Instant::now());
        self.model = directory.find(asked).map(|(name, _)| name.clone());
        if let Some(line) = &mut self.line {
            line.asked = short(asked);
        }
    }

    /// It goes on to this model, with a body of which so much came in.
    pub(super) fn goes_to(&mut self, model: &ModelName, taken: Taken) {
        self.sent_at = Some(Instant::now());
        self.model = Some(model.clone());
        self.taken = Some(taken);
    }

    /// It is answered: refused with this code, or as its model does, whose answer is then followed to its end.
    pub(super) fn answered(mut self, response: &mut Response<Answer>, refused: Option<&'static str>) {
        self.status = Some(response.status());
        self.outcome = refused;
        if refused.is_none() {
            self.first_byte = self.sent_at.map(|sent| sent.elapsed());
            self.reader = reader(response);
        }
        response.body_mut().follow(self);
    }

    /// This much of the answer's body went on.
    pub(super) fn passes(&mut self, bytes: &[u8]) {
        let now = Instant::now();
        self.last = Some(now);
        self.sends(bytes.len() as u64);
        if self.reader.as_mut().is_some_and(|reader| reader.push(bytes)) {
            self.first_token = Some(now);
        }
    }

    pub(super) fn sends(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// The answer came to its end.
    pub(super) fn ends(&mut self) {
        let class = self.status.map(class);
        self.outcome = self.outcome.or(class);
    }

    /// The answer won't come to its end.
    pub(super) fn breaks(&mut self, why: &'static str) {
        self.outcome.get_or_insert(why);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let since = |from: Option<Instant>, to: Option<Instant>| Some(to?.duration_since(from?));
        let ended = Ended {
            outcome: self.outcome.unwrap_or("client_gone"),
            queued: since(self.asked_at, self.sent_at),
            first_byte: self.first_byte,
            first_token: since(self.sent_at, self.first_token),
            generation: since(self.first_token, self.last),
            usage: self.reader.as_ref().map(Reader::usage).unwrap_or_default(),
        };
        if let Some(line) = &self.line {
            let ms = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1e3);
            tracing::debug!(
                model = self.model.as_ref().map(ModelName::as_str),
                asked = ?line.asked,
                key = line.key,
                method = line.method,
                path = ?line.path,
                status = self.status.map(|status| status.as_u16()),
                code = ended.outcome,
                queued_ms = ms(ended.queued),
                first_byte_ms = ms(ended.first_byte),
                first_token_ms = ms(ended.first_token),
                ms = ms(Some(self.began.elapsed())),
                bytes_in = self.taken.as_ref().map(|taken| taken.load(Ordering::Relaxed)),
                bytes_out = self.bytes,
                prompt_tokens = ended.usage.prompt,
                completion_tokens = ended.usage.completion,
                tokens_per_second = ended.speed(),
                "request"
            );
        }
        if let Some(model) = self.model.take() {
            self.telemetry.tallies().entry(model).or_default().add(&ended, now_ms());
        }
    }
}

/// Who reads the answer's numbers; none of what went wrong, and of what can't be read.
fn reader(response: &Response<Answer>) -> Option<Reader> {
    let headers = response.headers();
    let plain = response.status().is_success() && !headers.contains_key(CONTENT_ENCODING);
    let kind = headers.get(CONTENT_TYPE).filter(|_| plain)?;
    Reader::of(kind.to_str().ok()?)
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        ..200 => "1xx",
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        500.. => "5xx",
    }
}

fn short(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}
