//! berthd's event stream: server-sent events, read line by line.

use berth_core::report::Event;

use crate::client::{Client, Lines, Trouble};

/// What the stream gave.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
pub(crate) enum Message {
    /// Something happened.
    Event(Event),
    /// berthd is still there.
    Alive,
    /// The stream is at its end.
    End,
}

/// An open stream.
#[derive(Debug)]
pub(crate) struct Events {
    lines: Lines,
    data: String,
}

impl Events {
    /// Opens `/api/v1/events` with this query.
    pub(crate) async fn open(client: &Client, query: &str) -> Result<Self, Trouble> {
        Ok(Self { lines: client.lines(&format!("/api/v1/events?{query}")).await?, data: String::new() })
    }

    /// The next message. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Message, Trouble> {
        loop {
            let Some(line) = self.lines.next(true).await? else { return Ok(Message::End) };
            if line.is_empty() && !self.data.is_empty() {
                let data = std::mem::take(&mut self.data);
                return serde_json::from_str(&data).map(Message::Event).map_err(|e| {
                    Trouble::Broken(format!(
                        "an event of berthd can't be understood ({e}): is it another version?"
                    ))
                });
            }
            if line.starts_with(':') {
                return Ok(Message::Alive);
            }
            if let Some(data) = line.strip_prefix("data:") {
                // A message may have several such lines, which a line end joins.
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
        }
    }
}
