//! What was declared anew takes effect here.

use std::sync::Arc;

use berth_core::config::{self, Settings};
use berth_core::name::ModelName;
use berth_core::report::{Changed, Refusal};

use super::{Driver, unnamed};
use crate::proc::monotonic_now;

impl Driver {
    /// These settings hold from now on; what differs. Nothing that runs is touched. Refused while a swap is under way,
    /// whose plan was made by the ones that held.
    pub(super) fn reload(&mut self, settings: Settings) -> Result<Vec<Changed>, Refusal> {
        if let Some(swap) = &self.swap {
            let id = swap.id();
            return Err(Refusal {
                code: "busy".to_owned(),
                text: format!(
                    "swap {id} is under way, by what was declared when it began; nothing was reloaded"
                ),
                hints: vec!["berthctl events --follow; when it has ended: berthctl reload".to_owned()],
            });
        }
        let gone = |name: &&ModelName| !settings.models.contains_key(*name) && name.settings().is_none();
        if let Some(name) = self.state.claims.keys().find(gone) {
            return Err(Refusal {
                code: "in_use".to_owned(),
                text: format!("{name} is not declared any more and has memory still; nothing was reloaded"),
                hints: vec![format!("berthctl stop {name}, then berthctl reload")],
            });
        }
        let changes = config::difference(&self.hands.declared.now(), &settings);
        for change in &changes {
            let what = change.model.as_ref().map_or("berth.toml", |model| model.as_str());
            let keys: Vec<&str> = change.values.iter().map(|value| value.key.as_str()).collect();
            tracing::info!(what, "declared anew: {what}: {}", keys.join(", "));
        }
        self.settings = Arc::new(unnamed::settings_for(&settings, &self.state, &self.facts));
        self.hands.declared.set(Arc::new(settings));
        self.memory.weigh_alone(&self.settings, &self.facts, &self.state, monotonic_now());
        self.name_all();
        self.notice();
        self.restore();
        Ok(changes)
    }
}
