//! The verbs that ask berthd: ask, show, and give the exit code.

use berth_core::report::{
    Accepted, ClearRequest, Cleared, Event, LogLine, Outcome, PlanReport, Reloaded, Repaired, Request,
    SCHEMA, SignIn, Status, SwapSummary, Verdict,
};
use jiff::tz::TimeZone;
use serde::Serialize;
use tokio::time::Instant;

use crate::args::Wait;
use crate::client::{Client, Trouble};
use crate::complaint::Complaint;
use crate::events::{Events, Message};
use crate::exit::Exit;
use crate::follow::{Away, End, RETRY, follow};
use crate::out::Out;
use crate::progress::Progress;
use crate::render::{self, swap};
use crate::standalone;

/// berthd and the reader: what every verb needs.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) out: Out,
}

/// A verb's end: its exit code, or why it could not do its work.
pub(crate) type Ended = anyhow::Result<Result<Exit, Complaint>>;

/// The last line of a change with `--json`.
#[derive(Serialize)]
struct Last<'a> {
    schema: u32,
    exit: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<&'a SwapSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<&'a Accepted>,
}

/// A log line with `--json`.
#[derive(Serialize)]
struct VersionedLine<'a> {
    schema: u32,
    #[serde(flatten)]
    line: &'a LogLine,
}

impl Context {
    /// `status --markdown`, also without berthd.
    pub(crate) async fn page(&self) -> Result<Exit, Complaint> {
        let (status, exit) = self.look().await;
        Out::say(&render::markdown::page(&status, &TimeZone::system()));
        Ok(exit)
    }

    /// What berthd says, else what can be seen without it.
    pub(crate) async fn look(&self) -> (Status, Exit) {
        match self.client.get::<Status>("/api/v1/status").await {
            Ok(status) => (status, Exit::Done),
            Err(trouble) => {
                let complaint = Complaint::from(trouble);
                let exit = complaint.exit;
                (standalone::status(&complaint).await, exit)
            }
        }
    }

    /// `status`, also without berthd.
    pub(crate) async fn status(&self) -> Result<Exit, Complaint> {
        let (status, exit) = self.look().await;
        if self.out.json {
            Out::document(&status);
        } else {
            Out::say(&render::status::status(&status, self.out.paint));
        }
        Ok(exit)
    }

    /// `plan VERB`.
    pub(crate) async fn plan(&self, request: &Request) -> Result<Exit, Complaint> {
        let plan: PlanReport = self.client.post("/api/v1/plan", request).await?;
        if self.out.json {
            Out::document(&plan);
        } else {
            Out::say(&render::plan::plan(&plan, self.out.paint));
        }
        Ok(if matches!(plan.verdict, Verdict::Refused(_)) { Exit::Refused } else { Exit::Done })
    }

    /// `device clear GPU`.
    pub(crate) async fn clear(&self, device: String) -> Result<Exit, Complaint> {
        let cleared: Cleared = self.client.post("/api/v1/devices/clear", &ClearRequest { device }).await?;
        if self.out.json {
            Out::document(&cleared);
        } else {
            Out::say(&render::device::cleared(&cleared));
        }
        Ok(Exit::Done)
    }

    /// `reload`, and `reload --check`.
    pub(crate) async fn reload(&self, check: bool) -> Result<Exit, Complaint> {
        let path = if check { "/api/v1/check" } else { "/api/v1/reload" };
        let reloaded: Reloaded = self.client.post(path, &()).await?;
        if self.out.json {
            Out::document(&reloaded);
        } else {
            Out::say(&render::reload::reloaded(&reloaded, check));
        }
        Ok(Exit::Done)
    }

    /// `dashboard`.
    pub(crate) async fn dashboard(&self) -> Result<Exit, Complaint> {
        let sign_in: SignIn = self.client.post("/api/v1/session", &()).await?;
        if self.out.json {
            Out::document(&sign_in);
        } else {
            let SignIn { url, rights, expires_in_s, .. } = sign_in;
            Out::say(&format!(
                "{url}\n\nSigns one browser in as you, who may {}. It works once, within {} minutes.\n",
                rights.as_str(),
                expires_in_s.div_ceil(60)
            ));
        }
        Ok(Exit::Done)
    }

    /// `switch`, `start`, `stop`, `restart`, `back`.
    pub(crate) async fn change(&self, request: &Request, wait: &Wait) -> Ended {
        let until = wait.timeout.map(|time| Instant::now() + time);
        let accepted: Accepted = match self.client.post("/api/v1/swaps", request).await {
            Ok(accepted) => accepted,
            Err(trouble) => return Ok(Err(trouble.into())),
        };
        let Some(id) = accepted.swap.filter(|_| !wait.no_wait) else {
            self.accepted(&accepted);
            return Ok(Ok(Exit::Done));
        };
        self.followed(id, Some(accepted.after), until, &what(&accepted), Outcome::Done).await
    }

    /// Follows a swap to its end, from the event after `after` or from how it stands.
    async fn followed(
        &self,
        id: u64,
        after: Option<u64>,
        until: Option<Instant>,
        what: &str,
        aim: Outcome,
    ) -> Ended {
        let mut progress = Progress::new(self.out);
        let end = follow(&self.client, id, after, until, &mut progress).await?;
        Ok(match end {
            End::Ended(swap) => Ok(self.ended(&swap, aim)),
            End::Timeout => Err(unfinished(Exit::Timeout, "timeout", "Time is up", id, what)),
            End::Stopped => Err(unfinished(Exit::Stopped, "stopped_watching", "Stopped watching", id, what)),
            End::Lost(trouble) => Err(lost(trouble, id, what)),
        })
    }

    /// `cancel`.
    pub(crate) async fn cancel(&self, id: Option<u64>, wait: &Wait) -> Ended {
        let until = wait.timeout.map(|time| Instant::now() + time);
        let swap = match self.called_off(id).await {
            Ok(swap) => swap,
            Err(complaint) => return Ok(Err(complaint)),
        };
        // To go back is what is asked for.
        let aim = Outcome::Restored;
        Ok(if swap.outcome.is_some() {
            Ok(self.ended(&swap, aim))
        } else if wait.no_wait {
            if self.out.json {
                let exit = Exit::Done.code();
                Out::document(&Last { schema: SCHEMA, exit, swap: Some(&swap), accepted: None });
            } else {
                let text = format!("{} is called off. Follow: berthctl status --watch", swap::title(&swap));
                Out::say(&render::text::paragraph("", &text));
            }
            Ok(Exit::Done)
        } else {
            self.followed(swap.id, None, until, &swap::title(&swap), aim).await?
        })
    }

    /// Has the swap of this number, or the one under way, called off.
    async fn called_off(&self, id: Option<u64>) -> Result<SwapSummary, Complaint> {
        let under_way = match id {
            Some(id) => Some(id),
            None => self.client.get::<Status>("/api/v1/status").await?.swap.map(|swap| swap.id),
        };
        let Some(id) = under_way else {
            let title = "no change is under way".to_owned();
            let hint = "berthctl back (whatever served before the last one)".to_owned();
            return Err(Complaint::new(Exit::Refused, "no_swap", title, &[hint]));
        };
        Ok(self.client.delete(&format!("/api/v1/swaps/{id}")).await?)
    }

    fn accepted(&self, accepted: &Accepted) {
        if self.out.json {
            let exit = Exit::Done.code();
            Out::document(&Last { schema: SCHEMA, exit, swap: None, accepted: Some(accepted) });
            return;
        }
        Out::say(&match accepted.swap {
            Some(id) => render::text::paragraph(
                "",
                &format!("Accepted: {} (number {id}). Follow: berthctl status --watch", what(accepted)),
            ),
            None => render::plan::plan(&accepted.plan, self.out.paint),
        });
    }

    /// Shows how a swap ended, and gives the exit code where `aim` was asked for.
    fn ended(&self, swap: &SwapSummary, aim: Outcome) -> Exit {
        let exit = swap.outcome.filter(|outcome| *outcome != aim).map_or(Exit::Done, Exit::from);
        if self.out.json {
            Out::document(&Last { schema: SCHEMA, exit: exit.code(), swap: Some(swap), accepted: None });
        } else {
            Out::say(&swap::end(swap, self.out.paint));
        }
        exit
    }

    /// `repair`.
    pub(crate) async fn repair(&self) -> Result<Exit, Complaint> {
        let repaired: Repaired = self.client.post("/api/v1/repair", &()).await?;
        if self.out.json {
            Out::document(&repaired);
        } else {
            Out::say(&render::repair::repaired(&repaired));
        }
        Ok(Exit::Done)
    }

    /// `logs MODEL`.
    pub(crate) async fn logs(&self, model: &str, lines: u32, follow: bool) -> Result<Exit, Complaint> {
        let path = format!("/api/v1/models/{}/logs?follow={follow}&lines=", escaped(model));
        let (mut lines, mut away) = (lines, Away::default());
        loop {
            match self.log(&format!("{path}{lines}"), follow, &mut away).await {
                Ok(()) => return Ok(Exit::Done),
                Err(trouble) if follow => self.again(&mut away, trouble).await?,
                Err(trouble) => return Err(trouble.into()),
            }
            // What was there has been shown.
            lines = 0;
        }
    }

    async fn log(&self, path: &str, follow: bool, away: &mut Away) -> Result<(), Trouble> {
        let zone = TimeZone::system();
        let mut stream = self.client.lines(path).await?;
        // A model may be silent for as long as it likes; berthd, asked for what there is, may not.
        while let Some(text) = stream.next(!follow).await? {
            away.heard();
            if text.is_empty() {
                continue;
            }
            let line: LogLine = serde_json::from_str(&text)
                .map_err(|e| Trouble::Broken(format!("a log line of berthd can't be understood ({e})")))?;
            if self.out.json {
                Out::document(&VersionedLine { schema: SCHEMA, line: &line });
            } else {
                Out::say(&(render::events::log(&line, &zone, self.out.paint) + "\n"));
            }
        }
        if follow { Err(Trouble::Broken("berthd closed the log".to_owned())) } else { Ok(()) }
    }

    /// `events`.
    pub(crate) async fn events(&self, last: u32, follow: bool) -> Result<Exit, Complaint> {
        let (mut query, mut away, mut seen) = (format!("last={last}"), Away::default(), None);
        loop {
            match self.some_events(&format!("{query}&follow={follow}"), follow, &mut away, &mut seen).await {
                Ok(()) => return Ok(Exit::Done),
                Err(trouble) if follow => self.again(&mut away, trouble).await?,
                Err(trouble) => return Err(trouble.into()),
            }
            query = seen.map_or_else(|| format!("last={last}"), |id| format!("after={id}"));
        }
    }

    async fn some_events(
        &self,
        query: &str,
        follow: bool,
        away: &mut Away,
        seen: &mut Option<u64>,
    ) -> Result<(), Trouble> {
        let zone = TimeZone::system();
        let mut events = Events::open(&self.client, query).await?;
        loop {
            let message = events.next().await?;
            away.heard();
            match message {
                Message::Event(event) => {
                    *seen = Some(event.id);
                    self.event(&event, &zone);
                }
                Message::Alive => {}
                Message::End if follow => {
                    return Err(Trouble::Broken("berthd closed the event stream".to_owned()));
                }
                Message::End => return Ok(()),
            }
        }
    }

    /// Waits for a berthd that is away, as long as it makes sense.
    async fn again(&self, away: &mut Away, trouble: Trouble) -> Result<(), Trouble> {
        if let Some(note) = away.again(trouble)? {
            Out::complain(&format!("{note}\n"));
        }
        tokio::time::sleep(RETRY).await;
        Ok(())
    }

    fn event(&self, event: &Event, zone: &TimeZone) {
        if self.out.json {
            Out::document(event);
        } else if let Some(line) = render::events::event(event, zone, self.out.paint) {
            Out::say(&(line + "\n"));
        }
    }
}

/// What goes on without us.
fn unfinished(exit: Exit, code: &str, text: &str, id: u64, what: &str) -> Complaint {
    let title = format!("{text}; {what} (number {id}) goes on.");
    let hints = [
        "berthctl status --watch, or berthctl events -f, to see how it goes on".to_owned(),
        format!("berthctl cancel {id} to give it up"),
    ];
    Complaint::new(exit, code, title, &hints)
}

/// berthd went away for good in the middle of it.
fn lost(trouble: Trouble, id: u64, what: &str) -> Complaint {
    let cause = Complaint::from(trouble);
    let title = format!("lost sight of {what} (number {id}): {}", cause.title);
    let mut hints = vec!["berthctl status (how it ended)".to_owned()];
    hints.extend(cause.hints);
    Complaint::new(Exit::Unreachable, "lost_sight", title, &hints)
}

fn what(accepted: &Accepted) -> String {
    swap::moves(accepted.plan.request.verb, &accepted.plan.stops, &accepted.plan.starts)
}

/// A name as one segment of a path.
fn escaped(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
