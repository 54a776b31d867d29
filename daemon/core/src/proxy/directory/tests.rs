#![allow(clippy::unwrap_used)]

use super::*;

fn name(name: &str) -> ModelName {
    name.parse().unwrap()
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn entry(way: Way, state: ModelState) -> Entry {
    Entry {
        way,
        state,
        known_as: None,
        request: Arc::default(),
        deadlines: crate::config::load(&crate::config::Sources::default(), "tower").unwrap().deadlines,
        context: None,
        aliases: Vec::new(),
        fallback: None,
        error: None,
        stopped: false,
        refused: None,
        load: None,
    }
}

/// aeon serves and is `default`, vllm serves under a path, genesis is off, late loads, and sick is quarantined.
fn tower() -> Directory {
    let known_as = Some("/models/v".to_owned());
    let models = [
        ("aeon", entry(Way::Open(address(1)), ModelState::Serving)),
        ("genesis", entry(Way::Away, ModelState::Off)),
        ("late", Entry { load: Some(12), ..entry(Way::Coming, ModelState::Loading) }),
        ("sick", Entry { error: Some("it died".to_owned()), ..entry(Way::Away, ModelState::Quarantined) }),
        ("vllm", Entry { known_as, ..entry(Way::Open(address(2)), ModelState::Serving) }),
    ];
    Directory {
        models: models.into_iter().map(|(model, entry)| (name(model), entry)).collect(),
        aliases: [("production".to_owned(), name("aeon")), ("Big Model".to_owned(), name("vllm"))].into(),
        default: Some(name("aeon")),
        unknown_to_default: false,
    }
}

/// What becomes of it, in short.
fn fate(directory: &Directory, asked: &str) -> String {
    match directory.verdict(asked) {
        Verdict::Send { model, known_as, instead_of, .. } => {
            let known_as = known_as.map(|known_as| format!(" as {known_as}")).unwrap_or_default();
            let instead_of = instead_of.map(|other| format!(" instead of {other}")).unwrap_or_default();
            format!("{model}{known_as}{instead_of}")
        }
        Verdict::Wait(model) => format!("waits for {model}"),
        Verdict::Load(model) => format!("has {model} loaded"),
        Verdict::Refused(refused) => format!("{} {}", refused.status, refused.code),
    }
}

#[test]
fn a_name_leads_to_its_model_or_to_nobody() {
    let tower = tower();
    for (asked, wanted) in [
        ("aeon", "aeon"),
        ("production", "aeon"),
        ("default", "aeon"),
        ("vllm", "vllm as /models/v"),
        ("Big Model", "vllm as /models/v"),
        ("late", "waits for late"),
        ("genesis", "409 model_not_loaded"),
        ("sick", "503 model_quarantined"),
        ("nobody", "404 model_not_found"),
        ("Aeon", "404 model_not_found"),
        ("aeon ", "404 model_not_found"),
        ("", "404 model_not_found"),
        ("a/b:c", "404 model_not_found"),
    ] {
        assert_eq!(fate(&tower, asked), wanted, "{asked:?}");
    }
    // What its server calls itself needs no rewriting, and is no name of Berth's.
    assert_eq!(fate(&tower, "/models/v"), "404 model_not_found");
}

#[test]
fn another_model_answers_only_where_that_is_declared() {
    let mut tower = tower();
    tower.models.get_mut(&name("genesis")).unwrap().fallback = Some(name("vllm"));
    tower.models.get_mut(&name("aeon")).unwrap().fallback = Some(name("vllm"));
    tower.models.get_mut(&name("sick")).unwrap().fallback = Some(name("genesis"));
    assert_eq!(fate(&tower, "genesis"), "vllm as /models/v instead of genesis");
    assert_eq!(fate(&tower, "aeon"), "aeon");
    // A fallback of a fallback is none.
    assert_eq!(fate(&tower, "sick"), "503 model_quarantined");
    tower.unknown_to_default = true;
    assert_eq!(fate(&tower, "nobody"), "aeon");
    tower.default = None;
    assert_eq!(
        (fate(&tower, "nobody"), fate(&tower, "default")),
        ("503 nothing_serves".into(), "503 nothing_serves".into())
    );
}

#[test]
fn a_refusal_says_what_there_is_and_what_to_do() {
    let tower = tower();
    let text = |asked: &str| match tower.verdict(asked) {
        Verdict::Refused(refused) => refused.text,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        text("genesis"),
        "genesis is not loaded; aeon, vllm serve. An operator can: berthctl switch genesis"
    );
    assert_eq!(
        text("sick"),
        "sick failed so often that it is not started any more: it died; aeon, vllm serve. An operator can: berthctl retry sick"
    );
    assert_eq!(
        text("x\ny"),
        "there is no model \"x\\ny\". There are: aeon, genesis, late, sick, vllm, Big Model, production, and `default` for the one that serves"
    );
    assert!(text(&"x".repeat(5000)).len() < 400);
    let late = tower.give_up(&name("late"), 429, "queue_full", "256 requests wait for late already");
    assert_eq!(
        (late.text.as_str(), late.retry_after),
        ("256 requests wait for late already; try again in 12 s", Some(12))
    );
}
