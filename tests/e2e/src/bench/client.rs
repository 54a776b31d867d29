//! A client of berthd's control socket that takes the time: what berthctl does, without a process for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_core::report::{Accepted, Event, Outcome, SwapSummary, What};
use gpusim::sys::now_ns;
use serde_json::json;

use crate::Berth;

/// Longer than any swap here takes.
const DEADLINE: Duration = Duration::from_secs(120);

/// Where berthd listens.
pub(super) struct Client {
    socket: PathBuf,
}

/// A swap under way, with the stream of its events.
pub(super) struct Following {
    /// When the request was sent.
    pub asked: u64,
    id: u64,
    lines: BufReader<UnixStream>,
}

impl Client {
    pub(super) fn new(berth: &Berth) -> Client {
        Client { socket: berth.sandbox().root().join("run/berth/berth.sock") }
    }

    /// Asks for a switch and follows it.
    pub(super) fn switch(&self, model: &str) -> Result<Following> {
        let body = json!({ "verb": "switch", "model": model }).to_string();
        let asked = now_ns();
        let mut answer = self.send(&format!(
            "POST /api/v1/swaps HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))?;
        let mut text = String::new();
        answer.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("an answer that is no HTTP")?;
        if head.split(' ').nth(1) != Some("202") {
            bail!("the switch to {model} was not accepted: {body}");
        }
        let accepted: Accepted = serde_json::from_str(body).context("berthd's answer to a switch")?;
        let id = accepted.swap.with_context(|| format!("{model} serves already"))?;
        let path = format!("/api/v1/events?swap={id}&after={}", accepted.after);
        let lines = self.send(&format!("GET {path} HTTP/1.0\r\n\r\n"))?;
        Ok(Following { asked, id, lines })
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
    pub(super) fn ended(self) -> Result<(u64, SwapSummary)> {
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
