//! A client of berthd's control socket that takes the time: what berthctl does, without a process for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_core::report::{Accepted, Event, Outcome, Status, SwapSummary, What};
use gpusim::sys::now_ns;
use serde_json::json;

use crate::Berth;

/// Longer than any swap here takes.
const DEADLINE: Duration = Duration::from_secs(120);

/// Where berthd listens.
pub(crate) struct Client {
    socket: PathBuf,
}

/// A swap under way, with the stream of its events.
pub(crate) struct Following {
    /// When the request was sent.
    pub asked: u64,
    id: u64,
    lines: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn new(berth: &Berth) -> Client {
        Client { socket: berth.sandbox().root().join("run/berth/berth.sock") }
    }

    /// Asks for a change and follows it.
    pub(crate) fn change(&self, verb: &str, model: &str) -> Result<Following> {
        let body = json!({ "verb": verb, "model": model }).to_string();
        let asked = now_ns();
        let (code, body) = self.ask(&format!(
            "POST /api/v1/swaps HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))?;
        if code != 202 {
            bail!("`{verb} {model}` was not accepted: {body}");
        }
        let accepted: Accepted = serde_json::from_str(&body).context("berthd's answer to a change")?;
        let id = accepted.swap.with_context(|| format!("there was nothing to do for `{verb} {model}`"))?;
        let path = format!("/api/v1/events?swap={id}&after={}", accepted.after);
        let lines = self.send(&format!("GET {path} HTTP/1.0\r\n\r\n"))?;
        Ok(Following { asked, id, lines })
    }

    /// The state of the node, as berthd has it now.
    pub(crate) fn status(&self) -> Result<Status> {
        let (code, body) = self.ask("GET /api/v1/status HTTP/1.0\r\n\r\n")?;
        if code != 200 {
            bail!("berthd did not say how it is: {body}");
        }
        serde_json::from_str(&body).context("berthd's status")
    }

    /// One request; the status and the body of its answer.
    fn ask(&self, request: &str) -> Result<(u16, String)> {
        let mut text = String::new();
        self.send(request)?.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("an answer that is no HTTP")?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((code.context("an answer without a status")?, body.to_owned()))
    }

    fn send(&self, request: &str) -> Result<BufReader<UnixStream>> {
        let mut stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("can't connect to {}", self.socket.display()))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(request.as_bytes())?;
        Ok(BufReader::new(stream))
    }
}

impl Following {
    /// Waits for the swap's end; when it was heard of, and what was said.
    pub(crate) fn ended(self) -> Result<(u64, SwapSummary)> {
        for line in self.lines.lines() {
            let line = line.context("no event of the swap any more")?;
            let Some(event) = line.strip_prefix("data:") else { continue };
            let heard = now_ns();
            let event: Event = serde_json::from_str(event.trim()).context("an event of berthd's")?;
            if let What::SwapEnded { swap } = event.what
                && swap.id == self.id
            {
                if swap.outcome != Some(Outcome::Done) {
                    bail!("swap {} failed: {swap:#?}", swap.id);
                }
                return Ok((heard, swap));
            }
        }
        bail!("the events ended before swap {} did", self.id)
    }
}
