//! What a person who asks for a change is told, beside what berthd recorded of it.

use berth_core::name::ModelName;
use berth_core::report::{Event, SwapSummary, Verb, What};

use crate::berth::{Berth, CtlOutput};

/// A change as it is told in words, and the same change as berthd's events have it.
#[derive(Debug, Clone)]
pub struct Told {
    /// What berthctl printed, and its exit code.
    pub output: CtlOutput,
    /// How the swap ended.
    pub swap: SwapSummary,
}

impl Told {
    /// Why it failed; panics unless that is one sentence, and what berthctl printed has every word of it.
    #[track_caller]
    pub fn reason(&self) -> &str {
        let Self { output, swap } = self;
        let Some(reason) = swap.reason.as_deref() else { panic!("no reason was given: {swap:?}") };
        assert!(!reason.contains('\n'), "not one sentence: {reason}");
        // A step's time stands between the words where a sentence is longer than a line.
        let printed = output.to_string();
        let mut printed = printed.split_whitespace();
        let missing = reason.split_whitespace().find(|word| !printed.any(|printed| printed.contains(word)));
        assert_eq!(missing, None, "`{reason}` was not printed whole:\n{output}");
        reason
    }
}

impl Berth {
    /// `berthctl …` without `--json`, for a change that comes to a swap; panics unless it ends with this code.
    #[track_caller]
    pub fn told(&self, code: i32, arguments: &[&str]) -> Told {
        let output = self.ctl(arguments).with_code(code);
        let swap = self.swaps().into_iter().rfind(|swap| swap.verb != Verb::Restore);
        let Some(swap) = swap else { panic!("no swap came of it: {output}") };
        Told { output, swap }
    }

    /// All swaps that ended since berthd came up, oldest first, its own ones too.
    #[track_caller]
    pub fn swaps(&self) -> Vec<SwapSummary> {
        let output = self.ctl(&["events", "--json", "-n", "2000"]).with_code(0);
        let events = serde_json::Deserializer::from_str(&output.stdout).into_iter::<Event>();
        let swap = |event: serde_json::Result<Event>| match event {
            Ok(Event { what: What::SwapEnded { swap }, .. }) => Some(swap),
            Ok(_) => None,
            Err(error) => panic!("not an event ({error}): {output}"),
        };
        events.filter_map(swap).collect()
    }

    /// Panics unless this model alone serves, answers, and is home, with nothing wrong.
    #[track_caller]
    pub fn assert_home(&self, model: &str) {
        let status = self.status();
        assert_eq!(self.serving(), [model], "{status:?}");
        assert_eq!(status.home.iter().map(ModelName::as_str).collect::<Vec<_>>(), [model]);
        assert_eq!(status.default.as_ref().map(ModelName::as_str), Some(model));
        assert_eq!(status.problems, []);
        assert!(!self.ask(model).is_empty());
    }

    /// Panics when an allocation failed since the counters were reset.
    #[track_caller]
    pub fn assert_no_failed_allocation(&self) {
        let stats = self.stats();
        assert_eq!(stats.failed, 0, "{:?}", stats.failures);
    }
}
