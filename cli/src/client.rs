//! Asks berthd: HTTP/1.1 over its unix socket, one connection a request.

use std::path::PathBuf;
use std::time::Duration;

use berth_core::report::ApiProblem;
use berth_observe::scope::Scope;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout, timeout_at};

/// A unix socket connects at once, or its backlog is full.
const CONNECT: Duration = Duration::from_secs(5);
/// berthd looks at files, ports and GPUs before it answers; a GPU call may take its time to be given up.
const ANSWER: Duration = Duration::from_secs(30);
/// berthd sends at least a comment every 15 s; after more than two of those it is gone.
const SILENCE: Duration = Duration::from_secs(40);
/// Nothing that berthd sends is anywhere near this size.
const LARGEST: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The socket can't be connected to.
    #[error("can't connect to {}: {source}", .socket.display())]
    Unreachable {
        /// Which.
        socket: PathBuf,
        /// Where there was no berthd either.
        passed_over: Option<PathBuf>,
        /// Why.
        source: std::io::Error,
    },
    /// Connected, and then no answer, or half of one.
    #[error("{0}")]
    Broken(String),
    /// An answer, and it is no.
    #[error("{}", .0.title)]
    Answer(Box<ApiProblem>),
}

/// Where berthd is.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    passed_over: Option<PathBuf>,
}

impl Client {
    /// Asks at this socket; without one at that of the machine or of the user's own berthd, whichever is there.
    pub(crate) fn new(socket: Option<PathBuf>, own: bool) -> Self {
        let found = socket.is_none() && !own;
        let socket = socket.unwrap_or_else(|| Scope::this().socket());
        let other =
            [Scope::System, Scope::User].map(Scope::socket).into_iter().find(|other| *other != socket);
        Self { socket, passed_over: other.filter(|_| found) }
    }

    /// The answer to a GET.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Trouble> {
        let answer = self.send(Method::GET, path, Vec::new()).await?;
        read(answer, path).await
    }

    /// The answer to a POST.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Trouble> {
        let body =
            serde_json::to_vec(body).map_err(|e| Trouble::Broken(format!("can't write the request: {e}")))?;
        let answer = self.send(Method::POST, path, body).await?;
        read(answer, path).await
    }

    /// The answer to a DELETE.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Trouble> {
        let answer = self.send(Method::DELETE, path, Vec::new()).await?;
        read(answer, path).await
    }

    /// The answer to a GET that goes on: its lines as they come.
    pub(crate) async fn lines(&self, path: &str) -> Result<Lines, Trouble> {
        let answer = self.send(Method::GET, path, Vec::new()).await?;
        Ok(Lines { body: answer.into_body(), buffer: Vec::new(), ended: false, heard: Instant::now() })
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, Trouble> {
        let unreachable = |source| Trouble::Unreachable {
            socket: self.socket.clone(),
            passed_over: self.passed_over.clone().filter(|other| !other.exists()),
            source,
        };
        let stream = match timeout(CONNECT, UnixStream::connect(&self.socket)).await {
            Ok(result) => result.map_err(unreachable)?,
            Err(_) => return Err(unreachable(std::io::ErrorKind::TimedOut.into())),
        };
        let broken =
            |e: hyper::Error| Trouble::Broken(format!("berthd broke off before it answered {path}: {e}"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends with the answer's body; what goes wrong in it is seen there.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "berth")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| Trouble::Broken(format!("can't ask for {path}: {e}")))?;
        let Ok(answer) = timeout(ANSWER, sender.send_request(request)).await else {
            let seconds = ANSWER.as_secs();
            return Err(Trouble::Broken(format!("berthd did not answer {path} within {seconds} s")));
        };
        let answer = answer.map_err(broken)?;
        if answer.status().is_success() { Ok(answer) } else { Err(refusal(answer, path).await) }
    }
}

async fn read<T: DeserializeOwned>(answer: Response<Incoming>, path: &str) -> Result<T, Trouble> {
    let body = whole(answer, path).await?;
    serde_json::from_slice(&body).map_err(|e| {
        Trouble::Broken(format!(
            "berthd's answer to {path} can't be understood ({e}): is it another version?"
        ))
    })
}

async fn whole(answer: Response<Incoming>, path: &str) -> Result<Bytes, Trouble> {
    let body = Limited::new(answer.into_body(), LARGEST).collect();
    match timeout(ANSWER, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) => Err(Trouble::Broken(format!("berthd broke off in its answer to {path}: {e}"))),
        Err(_) => Err(Trouble::Broken(format!("berthd stopped in the middle of its answer to {path}"))),
    }
}

/// What an answer that is no success says; where it says nothing, at least its status.
async fn refusal(answer: Response<Incoming>, path: &str) -> Trouble {
    let status = answer.status();
    let body = match whole(answer, path).await {
        Ok(body) => body,
        Err(trouble) => return trouble,
    };
    let problem = serde_json::from_slice(&body).unwrap_or_else(|_| ApiProblem {
        status: status.as_u16(),
        code: "unexpected_answer".to_owned(),
        title: format!("berthd answered {path} with status {status} and no reason"),
        hints: Vec::new(),
        plan: None,
    });
    Trouble::Answer(Box::new(problem))
}

/// Lines of an answer that goes on.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    ended: bool,
    /// When berthd last sent something.
    heard: Instant,
}

impl Lines {
    /// The next line without its end; None at the end of the answer. Fails when berthd breaks off. `silence`
    /// tells whether to give up on an answer that has said nothing for longer than berthd ever is silent.
    ///
    /// Safe to cancel: what has been read stays.
    pub(crate) async fn next(&mut self, silence: bool) -> Result<Option<String>, Trouble> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                return Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()));
            }
            if self.ended {
                let rest = std::mem::take(&mut self.buffer);
                return Ok((!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned()));
            }
            if self.buffer.len() > LARGEST {
                return Err(Trouble::Broken(format!(
                    "berthd sent a line of more than {} MiB",
                    LARGEST >> 20
                )));
            }
            let frame = if silence {
                timeout_at(self.heard + SILENCE, self.body.frame()).await.map_err(|_| {
                    Trouble::Broken(format!("berthd has said nothing for {} s", SILENCE.as_secs()))
                })?
            } else {
                self.body.frame().await
            };
            self.heard = Instant::now();
            match frame {
                None => self.ended = true,
                Some(Ok(frame)) => self.buffer.extend(frame.data_ref().into_iter().flatten()),
                Some(Err(e)) => return Err(Trouble::Broken(format!("the connection to berthd broke: {e}"))),
            }
        }
    }
}
