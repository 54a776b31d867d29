//! A swap on the screen while it goes on: each step once it has ended, and below it the one under way.

use std::time::Instant;

use berth_core::name::ModelName;
use berth_core::report::{Event, Step, StepReport, StepState, SwapSummary, What};

use crate::out::Out;
use crate::render::swap;
use crate::render::text::paragraph;

/// What has been shown of one swap.
#[derive(Debug)]
pub(crate) struct Progress {
    out: Out,
    headed: bool,
    turned: bool,
    /// Steps whose end has been printed: after a reconnection they come again.
    printed: Vec<Key>,
    /// The steps under way and when they were heard of.
    current: Vec<(StepReport, Instant)>,
    /// Lines on the screen that are drawn again, below what stays.
    drawn: usize,
    frame: usize,
}

/// How long a step has taken that was heard of then.
fn elapsed(step: &StepReport, heard: Instant) -> u64 {
    step.elapsed_ms.saturating_add(u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX))
}

type Key = (Step, bool, Option<ModelName>);

impl Progress {
    pub(crate) fn new(out: Out) -> Self {
        Self {
            out,
            headed: false,
            turned: false,
            printed: Vec::new(),
            current: Vec::new(),
            drawn: 0,
            frame: 0,
        }
    }

    /// Shows an event; gives the swap when that was its end.
    pub(crate) fn event(&mut self, event: Event) -> Option<SwapSummary> {
        if self.out.json {
            Out::document(&event);
        }
        match event.what {
            What::SwapBegan { swap } => self.show(&swap),
            What::SwapStep { step, .. } => self.step(&step),
            What::SwapEnded { swap } => {
                self.show(&swap);
                return Some(swap);
            }
            What::Model { .. } | What::ProblemBegan { .. } | What::ProblemEnded { .. } => {}
        }
        None
    }

    /// Shows what has not been shown yet of a swap as it stands.
    pub(crate) fn show(&mut self, swap: &SwapSummary) {
        if !self.headed {
            self.headed = true;
            self.print(&(swap::head(swap, self.out.paint) + "\n"));
        }
        for step in &swap.steps {
            self.step(step);
        }
    }

    fn step(&mut self, step: &StepReport) {
        let key = (step.step, step.rollback, step.model.clone());
        if self.printed.contains(&key) {
            return;
        }
        let same = |(current, _): &mut (StepReport, Instant)| {
            (current.step, current.rollback, &current.model) == (key.0, key.1, &key.2)
        };
        let known = self.current.extract_if(.., same).next();
        if step.state == StepState::Began {
            // Heard of again, with more to say: its time goes on.
            let before = known.map_or(0, |(step, heard)| elapsed(&step, heard));
            let elapsed_ms = step.elapsed_ms.max(before);
            self.current.push((StepReport { elapsed_ms, ..step.clone() }, Instant::now()));
            self.draw();
            return;
        }
        self.printed.push(key);
        if let Some(line) = swap::step(step, self.out.paint) {
            let turn = if step.rollback && !self.turned {
                self.turned = true;
                swap::turn(self.out.paint) + "\n"
            } else {
                String::new()
            };
            self.print(&format!("{turn}{line}\n"));
        }
    }

    /// Says something that stays on the screen.
    pub(crate) fn note(&mut self, text: &str) {
        self.print(&paragraph(" … ", text));
    }

    /// Lets time pass on the screen.
    pub(crate) fn tick(&mut self) {
        self.frame += 1;
        self.draw();
    }

    /// Leaves the screen to others: takes away what would have been drawn again.
    pub(crate) fn leave(&mut self) {
        self.current.clear();
        self.draw();
    }

    fn print(&mut self, text: &str) {
        if self.out.json {
            return;
        }
        let up = self.up();
        Out::say(&(up + text));
        self.draw();
    }

    fn draw(&mut self) {
        if self.out.json || !self.out.terminal {
            return;
        }
        let mut text = self.up();
        for (step, heard) in &self.current {
            let since = u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX);
            let line =
                swap::under_way(step, self.frame, step.elapsed_ms.saturating_add(since), self.out.paint);
            // Not wrapped at the terminal's edge: each is one line on the screen, also where that is narrow.
            text.extend(["\x1b[?7l", line.as_str(), "\x1b[?7h\n"]);
        }
        self.drawn = self.current.len();
        Out::say(&text);
    }

    /// What takes the cursor up over the lines that are drawn again, and clears them.
    fn up(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            n => format!("\x1b[{n}A\r\x1b[J"),
        }
    }
}
