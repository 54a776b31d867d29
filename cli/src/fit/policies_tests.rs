//! What docs/policies.md shows of each policy is what berthctl says of it: one model, on one card and on two.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use berth_core::plan;
use berth_core::report::{Request, Verb};

use super::tests::{card, machine, written};
use super::*;
use crate::render::PLAIN;
use shapes::gguf::Type;
use shapes::models;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policies.md");

/// What stands before each text that berthctl says: of which policy, on how many cards, and what is typed.
const MARK: &str = "<!-- ";

/// The settings with the model under this policy, and with one that is small.
fn settings(page: &str, policy: &str, weights: &Path) -> Settings {
    let file = |path: &str, text: String| SourceFile { path: path.into(), text };
    let own = page.split("```toml\n# /etc/berth/policies.d/").nth(1).unwrap();
    let (name, text) = own.split("```").next().unwrap().split_once(".toml\n").unwrap();
    let cmd = |path: &str| format!("cmd = \"/opt/llama.cpp/llama-server -m {path}");
    let sources = Sources {
        main: None,
        policies: vec![file(&format!("/etc/berth/policies.d/{name}.toml"), text.to_owned())],
        models: vec![
            file(
                "/etc/berth/models.d/supergemma.toml",
                format!("{} \"\nctx = 32768\npolicy = \"{policy}\"\n", cmd(weights.to_str().unwrap())),
            ),
            file(
                "/etc/berth/models.d/embed.toml",
                format!("{}\"\nmemory = {{ gpu = \"2 GiB\" }}\n", cmd("/e.gguf")),
            ),
        ],
    };
    config::load(&sources, "tower").unwrap_or_else(|errors| panic!("{}", errors[0]))
}

/// What a terminal shows.
fn shown(page: &str, policy: &str, cards: u32, typed: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let weights = written(&folder, "supergemma.gguf", &models::gemma4_26b(Type::Other(3, 32, 20)));
    let settings = settings(page, policy, &weights);
    let name: ModelName = "supergemma".parse().unwrap();
    let embed = |index| {
        if index == 0 && typed.contains("start") { &[("llama-server", Some("embed"), 2048)][..] } else { &[] }
    };
    let mut ground = machine((0..cards).map(|index| card(index, embed(index))).collect(), 28_000);
    ground.facts.files.insert(weights.clone(), files::look(&weights, None));
    let text = if typed.contains("fit") {
        let judged = ground.judge(&settings, &settings.models[&name], name.to_string()).unwrap();
        render::fit::one(&judged, PLAIN)
    } else {
        ground.facts.units.insert("embed".parse().unwrap(), running(BTreeMap::new()));
        ground.find_models();
        let request: Request =
            serde_json::from_value(serde_json::json!({ "verb": "start", "model": name })).unwrap();
        assert_eq!(request.verb, Verb::Start);
        let verdict = plan::plan(&settings, &ground.facts, &ground.state, &request, &BTreeMap::new());
        render::plan::plan(&plan::report(&settings, &ground.facts, &ground.state, &request, &verdict), PLAIN)
    };
    text.replace(weights.to_str().unwrap(), "/models/supergemma.gguf")
}

/// The page with each text as it would be now.
fn renewed(page: &str) -> String {
    let mut parts = page.split(MARK);
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let (mark, rest) = part.split_once(" -->\n```\n").unwrap();
        let (_, rest) = rest.split_once("```\n").unwrap();
        let [policy, cards, typed] = mark.splitn(3, ", ").collect::<Vec<_>>()[..] else { panic!("{mark}") };
        let text = shown(page, policy, cards.parse().unwrap(), typed);
        // Writing to a String cannot fail.
        _ = write!(out, "{MARK}{mark} -->\n```\n$ {typed}\n{text}```\n{rest}");
    }
    out
}

#[test]
fn the_page_of_policies_shows_what_is_said() {
    let page = fs::read_to_string(PAGE).unwrap();
    let now = renewed(&page);
    for policy in ["auto", "exclusive", "split", "cpu", "one-card"] {
        assert!(page.contains(&format!("{MARK}{policy}, ")), "it shows nothing of {policy}");
    }
    // What it says of these in words.
    let fit = |policy, cards| shown(&page, policy, cards, "berthctl fit supergemma");
    for (cards, policy) in [(1, "exclusive"), (2, "exclusive"), (1, "split")] {
        assert_eq!(fit(policy, cards), fit("auto", cards), "{policy} on {cards}");
    }
    for policy in ["cpu", "one-card"] {
        assert_eq!(fit(policy, 2), fit(policy, 1), "{policy}");
    }
    if std::env::var_os("BERTH_RENEW").is_some() {
        fs::write(PAGE, &now).unwrap();
    } else {
        assert!(
            page == now,
            "docs/policies.md is not of this code: `make reference` makes it. It is now:\n{now}"
        );
    }
}
