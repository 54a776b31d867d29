//! `history`: what was, asked of berthd.

use berth_core::report::{ProblemsHistory, SwapHistory, SwapsHistory};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;
use crate::render::history;
use crate::verbs::Context;

impl Context {
    /// `history`.
    pub(crate) async fn past_swaps(&self, last: u32) -> Result<Exit, Complaint> {
        let past: SwapsHistory = self.client.get(&format!("/api/v1/history/swaps?last={last}")).await?;
        if self.out.json {
            Out::document(&past);
        } else {
            Out::say(&history::swaps(&past.swaps, Timestamp::now(), &TimeZone::system(), self.out.paint));
        }
        Ok(Exit::Done)
    }

    /// `history NUMBER`.
    pub(crate) async fn past_swap(&self, id: u64) -> Result<Exit, Complaint> {
        let past: SwapHistory = self.client.get(&format!("/api/v1/history/swaps/{id}")).await?;
        if self.out.json {
            Out::document(&past);
        } else {
            Out::say(&history::swap(&past.swap, &TimeZone::system(), self.out.paint));
        }
        Ok(Exit::Done)
    }

    /// `history --problems`.
    pub(crate) async fn past_problems(&self, last: u32) -> Result<Exit, Complaint> {
        let past: ProblemsHistory = self.client.get(&format!("/api/v1/history/problems?last={last}")).await?;
        if self.out.json {
            Out::document(&past);
        } else {
            Out::say(&history::problems(&past.problems, &TimeZone::system(), self.out.paint));
        }
        Ok(Exit::Done)
    }
}
