//! A long answer of a server inside a guest, read from outside as it comes: whether it runs through.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::http;

/// A stream that is silent for so long stands still. A fakellm says something every few milliseconds.
const SILENT: Duration = Duration::from_secs(10);

/// More than any test waits for.
const TOKENS: u64 = 100_000_000;

/// An answer that comes in until it is closed. The server is a fakellm, whose tokens are numbered.
#[derive(Debug)]
pub struct Streamed {
    socket: TcpStream,
    came: Arc<Came>,
}

/// What came of it so far.
#[derive(Debug, Default)]
struct Came {
    tokens: AtomicU64,
    /// Why nothing more comes.
    end: OnceLock<String>,
}

impl Streamed {
    /// Asks the server on this port for an answer without an end, in the network of the process `pid1`.
    ///
    /// # Errors
    /// Nobody listens, or the server refuses.
    pub fn open(pid1: u32, port: u16) -> Result<Streamed> {
        Self::of(pid1, port, "any")
    }

    /// The same of a model behind this port.
    ///
    /// # Errors
    /// As [`Streamed::open`].
    pub fn of(pid1: u32, port: u16, model: &str) -> Result<Streamed> {
        let mut socket = http::connect(pid1, port, SILENT)?;
        let body =
            json!({ "model": model, "prompt": "count", "max_tokens": TOKENS, "stream": true }).to_string();
        write!(
            socket,
            "POST /v1/completions HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut lines = BufReader::new(socket.try_clone()?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        ensure!(line.contains(" 200 "), "port {port} does not stream: {line}");
        let came = Arc::new(Came::default());
        let coming = Arc::clone(&came);
        // It ends with the socket, at the latest when this is dropped.
        thread::spawn(move || {
            let Err(error) = read(lines, &coming.tokens);
            _ = coming.end.set(format!("{error:#}"));
        });
        Ok(Streamed { socket, came })
    }

    /// Tokens that have come so far.
    pub fn tokens(&self) -> u64 {
        self.came.tokens.load(Ordering::Relaxed)
    }

    /// Waits for one more token.
    ///
    /// # Errors
    /// None comes: the stream ended, lost a token or stands still.
    pub fn goes_on(&self) -> Result<()> {
        let (before, begin) = (self.tokens(), Instant::now());
        while self.tokens() == before {
            if let Some(end) = self.came.end.get() {
                bail!("the stream broke: {end}");
            }
            ensure!(begin.elapsed() < SILENT * 2, "the stream stands still after {before} tokens");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        // One that the server has ended is shut down already.
        _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Reads until the stream breaks or is closed from here.
fn read(mut lines: BufReader<TcpStream>, came: &AtomicU64) -> Result<Infallible> {
    let mut next = 0;
    loop {
        let mut line = String::new();
        let length = lines.read_line(&mut line).with_context(|| format!("cut after {next} tokens"))?;
        ensure!(length > 0 && line.ends_with('\n'), "it ended after {next} tokens");
        let Some(data) = line.strip_prefix("data:") else { continue };
        let chunk: Value = serde_json::from_str(data.trim()).context("a chunk that is no JSON")?;
        let text = chunk.pointer("/choices/0/text").and_then(Value::as_str).unwrap_or_default();
        // The first is the model's name, the others are numbered from 1.
        ensure!(
            next == 0 || text == format!(" {next}"),
            "token {next} is missing: {text:?} came in its place"
        );
        next += 1;
        came.store(next, Ordering::Relaxed);
    }
}
