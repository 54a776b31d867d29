//! What a reload changed, or would.

use berth_core::report::{Changed, Reloaded, ValueChange};
use berth_observe::scope::Scope;

use super::text::{clean, paragraph};

/// Each value that differs, by model.
pub(crate) fn reloaded(reloaded: &Reloaded, check: bool) -> String {
    let mut out = String::new();
    for change in &reloaded.changes {
        out.push_str(&title(change));
        let same_all = change.values.iter().all(|value| value.before.is_none())
            || change.values.iter().all(|value| value.after.is_none());
        // All of a model that is new, or gone, is in its file.
        let values = change.values.iter().filter(|_| change.model.is_none() || !same_all);
        values.for_each(|value| out.push_str(&paragraph("  ", &changed(value))));
    }
    for warning in &reloaded.warnings {
        out.push_str(warning.trim_end());
        out.push('\n');
    }
    let end = match (reloaded.changes.is_empty(), check) {
        (true, _) => "Nothing has changed.",
        (false, true) => "Nothing was changed yet. Take it up: berthctl reload",
        (false, false) => {
            "Holds from now on. Nothing that runs was touched; `berthctl status` says which models a restart would change."
        }
    };
    out.push_str(&paragraph("", end));
    if reloaded.changes.iter().any(|change| change.needs_restart) {
        let scope = Scope::this();
        let what = format!(
            "Where berthd listens, and for how many clients, it takes up when it starts: {}{} restart berthd",
            scope.sudo(),
            scope.systemctl()
        );
        out.push_str(&paragraph("", &what));
    }
    out
}

fn title(change: &Changed) -> String {
    let Some(model) = &change.model else { return "berth.toml\n".to_owned() };
    if change.values.iter().all(|value| value.before.is_none()) {
        format!("{model} is new\n")
    } else if change.values.iter().all(|value| value.after.is_none()) {
        format!("{model} is gone\n")
    } else {
        format!("{model}\n")
    }
}

/// One value, before and after.
pub(crate) fn changed(value: &ValueChange) -> String {
    let shown = |value: &Option<String>| value.as_deref().map_or_else(|| "-".to_owned(), clean);
    format!("{}: {} -> {}", value.key, shown(&value.before), shown(&value.after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::examples::name;

    #[test]
    fn what_differs_is_shown_by_model() {
        let value = |key: &str, before: Option<&str>, after: Option<&str>| ValueChange {
            key: key.to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        };
        let changed = |model: Option<&str>, values: Vec<ValueChange>| Changed {
            model: model.map(name),
            needs_restart: model.is_none(),
            values,
        };
        let all = Reloaded {
            schema: 1,
            changes: vec![
                changed(None, vec![value("proxy.listen", Some("127.0.0.1:8010"), Some("0.0.0.0:8010"))]),
                changed(Some("glm"), vec![value("cmd", None, Some("llama-server"))]),
                changed(
                    Some("genesis"),
                    vec![
                        value(
                            "cmd",
                            Some("vllm serve /models/qwen"),
                            Some("vllm serve /models/qwen --max-num-seqs 4"),
                        ),
                        value("env.VLLM_MARLIN_USE_ATOMIC_ADD", None, Some("1")),
                    ],
                ),
                changed(Some("aeon"), vec![value("cmd", Some("vllm serve"), None)]),
            ],
            warnings: Vec::new(),
        };
        let none = Reloaded { changes: Vec::new(), ..all.clone() };
        insta::assert_snapshot!(
            [reloaded(&all, true), reloaded(&all, false), reloaded(&none, false)].join("\n")
        );
    }
}
