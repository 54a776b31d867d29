//! Who asked for which change, and what came of it: in the journal (`journalctl -u berthd BERTH_AUDIT=true`).

use berth_core::report::Actor;

use super::caller::By;

/// Who asks for which change.
pub(super) struct Audit {
    by: By,
    verb: &'static str,
    model: String,
}

impl Audit {
    /// A change that is asked for.
    pub(super) fn new(by: By, verb: &'static str, model: String) -> Self {
        Self { by, verb, model }
    }

    /// Who asks.
    pub(super) fn actor(&self) -> &Actor {
        &self.by.actor
    }

    /// Writes it down.
    pub(super) fn write(self, outcome: &str) {
        let Self { by: By { actor: Actor { user, uid, pid }, from }, verb, model } = self;
        let what = format!("{verb} {model}");
        let what = what.trim_end();
        let who = match (uid, pid) {
            (Some(uid), Some(pid)) => format!("{user} (uid {uid}) by pid {pid} ({from})"),
            (Some(uid), None) => format!("{user} (uid {uid}) from {from}"),
            _ => format!("{user} from {from}"),
        };
        // Of whom the kernel knows the process, from is its command line.
        let (command, address) = if pid.is_some() { (Some(&from), None) } else { (None, Some(&from)) };
        tracing::info!(
            audit = true,
            uid,
            user,
            pid,
            command,
            address,
            verb,
            model,
            outcome,
            "audit: {who} asked: {what}: {outcome}"
        );
    }
}
