//! Whether a model's server is ready: one attempt at a time, asked as a client would.
//!
//! A port can be answered by anyone, and a server can be healthy and dead. So the kernel is asked first whose
//! socket takes the connection, and a healthy server must also generate one token. In service the two are asked for
//! one by one, and what gives no answer is told from what answers with an error.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use berth_core::backend::GenerateProbe;
use berth_core::facts::Named;
use berth_core::health::Outcome;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::proc::Groups;
use crate::sockets::{self, Makers, Socket};

/// A server on this machine accepts at once, unless its queue is full.
const CONNECT: Duration = Duration::from_secs(1);
/// The health answer must begin within this time: a server that loads says so at once.
const HEALTH: Duration = Duration::from_secs(5);
/// No answer to a probe needs more.
const BODY_LIMIT: usize = 64 << 10;
/// What of a server's answer is shown, in characters.
const TEXT_LIMIT: usize = 200;

/// What to ask, and of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTarget {
    /// The address that the server is to listen on; a wildcard is asked by the loopback address.
    pub address: SocketAddr,
    /// The path that answers 2xx once the server is up, for example `/health`.
    pub health_path: String,
    /// How to have one token generated; None where health is all there is.
    pub generate: Option<GenerateProbe>,
    /// The model's cgroups.
    pub control_groups: Groups,
}

/// What one attempt showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Nobody listens there yet.
    NotListening,
    /// A socket that was not made by the model's processes answers there. It was asked nothing.
    WrongOwner(Stranger),
    /// It listens and is not healthy yet.
    Loading {
        /// The status of its answer; None where it gave none.
        status: Option<u16>,
        /// What it said, or how it failed to.
        text: String,
    },
    /// It says that it is healthy, and does not generate.
    NotGenerating {
        /// What it did instead.
        detail: String,
    },
    /// It is healthy and generates.
    Ready,
    /// Whose socket it is can't be found out, so it was not asked.
    Unknown(String),
}

impl fmt::Display for Probe {
    /// What it means, as a clause about the server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotListening => write!(f, "nothing listens on its port yet"),
            Self::WrongOwner(stranger) => write!(f, "a foreign process answers on its port: {stranger}"),
            Self::Loading { status: Some(status), text } => {
                write!(f, "its health check answers {status}: {text}")
            }
            Self::Loading { status: None, text } => write!(f, "its health check does not answer: {text}"),
            Self::NotGenerating { detail } => write!(f, "it is healthy and does not generate: {detail}"),
            Self::Ready => write!(f, "it is ready"),
            Self::Unknown(why) => write!(f, "whose socket answers on its port is unknown: {why}"),
        }
    }
}

/// Who answers in a model's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Its socket.
    pub socket: Socket,
    /// The processes that have the socket open, as far as they can be seen.
    pub holders: Vec<Named>,
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.socket)?;
        self.holders.iter().try_for_each(|holder| write!(f, ", {holder}"))
    }
}

/// Asks once, for at most `deadline` in all.
pub async fn probe(target: &ProbeTarget, deadline: Duration) -> Probe {
    probe_noting(target, deadline, &AtomicBool::new(false)).await
}

/// The same, and sets `healthy` once the health check was passed and a token is asked for: what is waited for can
/// then be told while it is waited for.
pub async fn probe_noting(target: &ProbeTarget, deadline: Duration, healthy: &AtomicBool) -> Probe {
    let attempt = Attempt { target, end: Instant::now() + deadline, healthy };
    attempt.run().await.unwrap_or_else(|other| other)
}

/// One health check of a server in service; it takes at most `deadline`.
///
/// # Errors
/// Whose socket answers can't be found out, so nothing was asked; why, as a clause.
pub async fn health(target: &ProbeTarget, deadline: Duration) -> Result<Outcome, String> {
    let attempt = Attempt { target, end: Instant::now() + deadline, healthy: &AtomicBool::new(false) };
    let answer = attempt.ask(Method::GET, &target.health_path, None, deadline).await;
    outcome(answer.and_then(|answer| {
        if answer.status.is_success() {
            return Ok(());
        }
        let (path, status) = (&target.health_path, answer.status.as_u16());
        Err(NoAnswer::Failed(format!("GET {path} answered {status}: {}", answer.text())))
    }))
}

/// One token of a server in service, asked for by `generate`; as [`health`].
///
/// # Errors
/// As [`health`].
pub async fn token(
    target: &ProbeTarget,
    generate: &GenerateProbe,
    deadline: Duration,
) -> Result<Outcome, String> {
    let attempt = Attempt { target, end: Instant::now() + deadline, healthy: &AtomicBool::new(true) };
    outcome(attempt.generate(generate).await)
}

fn outcome(result: Result<(), NoAnswer>) -> Result<Outcome, String> {
    match result {
        Ok(()) => Ok(Outcome::Passed),
        Err(NoAnswer::Late(text)) => Ok(Outcome::Unanswered(text)),
        Err(NoAnswer::Failed(text)) => Ok(Outcome::Failed(text)),
        Err(NoAnswer::NotAsked(Probe::Unknown(why))) => Err(why),
        Err(NoAnswer::NotAsked(Probe::NotListening)) => {
            Ok(Outcome::Failed("nothing listens on its port any more".to_owned()))
        }
        Err(NoAnswer::NotAsked(other)) => Ok(Outcome::Failed(other.to_string())),
    }
}

struct Attempt<'a> {
    target: &'a ProbeTarget,
    end: Instant,
    healthy: &'a AtomicBool,
}

/// An answer: its status, and its body where that is short enough.
struct Answer {
    status: StatusCode,
    body: Option<Bytes>,
}

/// Why there is no answer.
enum NoAnswer {
    /// Nothing was asked, and what that means for the attempt.
    NotAsked(Probe),
    /// It was asked and did not answer in time, as a clause.
    Late(String),
    /// It was asked; what happened, as a clause about the server.
    Failed(String),
}

impl Attempt<'_> {
    /// The result, early (`Err`) or at the end.
    async fn run(&self) -> Result<Probe, Probe> {
        self.health().await?;
        self.healthy.store(true, Ordering::Relaxed);
        if let Some(generate) = &self.target.generate {
            self.generate(generate).await.map_err(|no_answer| match no_answer {
                NoAnswer::NotAsked(result) => result,
                NoAnswer::Late(detail) | NoAnswer::Failed(detail) => Probe::NotGenerating { detail },
            })?;
        }
        Ok(Probe::Ready)
    }

    async fn health(&self) -> Result<(), Probe> {
        let path = &self.target.health_path;
        let answer = match self.ask(Method::GET, path, None, HEALTH).await {
            Ok(answer) => answer,
            Err(NoAnswer::NotAsked(result)) => return Err(result),
            Err(NoAnswer::Late(text) | NoAnswer::Failed(text)) => {
                return Err(Probe::Loading { status: None, text });
            }
        };
        if answer.status.is_success() {
            return Ok(());
        }
        Err(Probe::Loading { status: Some(answer.status.as_u16()), text: answer.text() })
    }

    async fn generate(&self, generate: &GenerateProbe) -> Result<(), NoAnswer> {
        let path = &generate.path;
        let failed = |detail| Err(NoAnswer::Failed(detail));
        let answer = self.ask(Method::POST, path, Some(generate), self.left()).await?;
        if !answer.status.is_success() {
            return failed(format!("POST {path} answered {}: {}", answer.status.as_u16(), answer.text()));
        }
        let json = answer.body.as_deref().map(serde_json::from_slice::<serde_json::Value>);
        match json {
            Some(Ok(serde_json::Value::Object(object))) if object.contains_key("error") => {
                failed(format!("POST {path} answered 200 with an error: {}", answer.text()))
            }
            Some(Ok(serde_json::Value::Object(_))) => Ok(()),
            Some(_) => failed(format!("POST {path} answered 200 without JSON: {}", answer.text())),
            None => {
                failed(format!("POST {path} answered with more than {} KiB for one token", BODY_LIMIT >> 10))
            }
        }
    }

    /// One request on a connection of its own. Its answer must begin within `begins`.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        generate: Option<&GenerateProbe>,
        begins: Duration,
    ) -> Result<Answer, NoAnswer> {
        let what = format!("{method} {path}");
        let stream = self.connect().await?;
        let failed = |error: &dyn fmt::Display| NoAnswer::Failed(format!("{what} failed: {error}"));
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        let mut connection = Background(tokio::spawn(connection));
        let answer = self.exchange(sender, &method, path, generate, begins).await;
        // Whoever counts the server's clients next is not to count this one.
        connection.end().await;
        answer
    }

    async fn exchange(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        method: &Method,
        path: &str,
        generate: Option<&GenerateProbe>,
        begins: Duration,
    ) -> Result<Answer, NoAnswer> {
        let what = format!("{method} {path}");
        let failed = |error: &dyn fmt::Display| NoAnswer::Failed(format!("{what} failed: {error}"));
        let in_time = |limit: Duration| limit.min(self.left());
        let mut request =
            Request::builder().method(method.clone()).uri(path).header(HOST, self.target.address.to_string());
        let mut body = String::new();
        if let Some(generate) = generate {
            body = generate.body.to_string();
            request = request.header(CONTENT_TYPE, "application/json");
            if let Some(key) = &generate.bearer {
                request = request.header(AUTHORIZATION, format!("Bearer {key}"));
            }
        }
        let body = Full::new(Bytes::from(body));
        let request = request.body(body).map_err(|error| failed(&error))?;

        let begun = Instant::now();
        let late = |what: &str, begun: Instant| {
            NoAnswer::Late(format!("{what} for {:.1} s", begun.elapsed().as_secs_f64()))
        };
        let response = timeout(in_time(begins), sender.send_request(request))
            .await
            .map_err(|_| late(&format!("{what} was not answered"), begun))?
            .map_err(|error| failed(&with_cause(&error)))?;
        let status = response.status();
        let body = timeout(self.left(), Limited::new(response.into_body(), BODY_LIMIT).collect())
            .await
            .map_err(|_| late(&format!("{what} answered {} and did not end", status.as_u16()), begun))?;
        match body {
            Ok(body) => Ok(Answer { status, body: Some(body.to_bytes()) }),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Ok(Answer { status, body: None }),
            Err(error) => Err(failed(&error)),
        }
    }

    /// A connection whose other end was made by the model's processes.
    async fn connect(&self) -> Result<TcpStream, NoAnswer> {
        let server = sockets::reachable(self.target.address);
        let makers = Makers::of(&self.target.control_groups);
        let not_asked = |result| Err(NoAnswer::NotAsked(result));
        match owner(sockets::would_answer(server), &makers) {
            Ok(true) => {}
            Ok(false) => return not_asked(Probe::NotListening),
            Err(result) => return not_asked(result),
        }
        let stream = match timeout(CONNECT.min(self.left()), TcpStream::connect(server)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return not_asked(Probe::NotListening);
            }
            Ok(Err(error)) => {
                return Err(NoAnswer::Failed(format!("connecting to {server} failed: {error}")));
            }
            Err(_) => return Err(NoAnswer::Late(format!("{server} listens and accepts no connection"))),
        };
        if makers.were_moved() {
            return Ok(stream);
        }
        // Another socket may have taken the port meanwhile, or share it: this very connection is what counts.
        let end = stream.local_addr().and_then(|client| sockets::answers(server, client));
        match owner(end, &makers) {
            Ok(true) => Ok(stream),
            Ok(false) => Err(NoAnswer::Failed(format!("{server} closed the connection at once"))),
            Err(result) => not_asked(result),
        }
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
}

/// Whether there is a socket, and it was made by these; else the result that this means.
fn owner(found: io::Result<Option<Socket>>, makers: &Makers) -> Result<bool, Probe> {
    match found {
        Ok(None) => Ok(false),
        Ok(Some(socket)) if makers.made(&socket) => Ok(true),
        Ok(Some(socket)) if socket.cgroup_id.is_none() => Err(Probe::Unknown(
            "the kernel does not tell sockets' cgroups; Linux 5.8 or newer does".to_owned(),
        )),
        Ok(Some(socket)) => Err(Probe::WrongOwner(Stranger { holders: socket.holders(), socket })),
        Err(error) => Err(Probe::Unknown(format!("the kernel does not say whose socket it is: {error}"))),
    }
}

impl Answer {
    /// What the server says, in one short line: the message of an error object, or else the body's beginning.
    fn text(&self) -> String {
        let Some(body) = &self.body else {
            return format!("a body of more than {} KiB", BODY_LIMIT >> 10);
        };
        let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        let message = json.as_ref().and_then(|json| {
            let error = json.get("error")?;
            error.get("message").unwrap_or(error).as_str()
        });
        let text = message.map_or_else(|| String::from_utf8_lossy(body), Into::into);
        // It goes to terminals and journals.
        let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
        let line = words.collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(TEXT_LIMIT) {
            Some((end, _)) => format!("{} …", &line[..end]),
            None => line,
        }
    }
}

/// A task that ends with its owner.
struct Background<T>(tokio::task::JoinHandle<T>);

impl<T> Background<T> {
    /// Ends it and waits until it has ended.
    async fn end(&mut self) {
        self.0.abort();
        // Aborted, or ended before that.
        _ = (&mut self.0).await;
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// hyper says what failed, and its source why.
fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error} ({cause})"),
        None => error.to_string(),
    }
}

#[cfg(test)]
#[path = "probe/tests.rs"]
mod tests;
