#![allow(clippy::unwrap_used)]
use super::*;
use crate::access::Step;
use crate::doctor::Severity;
use berth_core::config::{Settings, SourceFile, Sources, load};

fn settings(models: &[(&str, &str)]) -> Settings {
    let file = |(name, text): &(&str, &str)| SourceFile {
        path: PathBuf::from(format!("/etc/berth/models.d/{name}.toml")),
        text: (*text).to_owned(),
    };
    load(&Sources { models: models.iter().map(file).collect(), ..Sources::default() }, "tower").unwrap()
}

fn frank() -> Identity {
    Identity { user: "frank".into(), uid: 4_001, gids: [4_001].into() }
}

fn unit() -> Unit {
    Unit { user: Ok(frank()), memlock: u64::MAX, nice: 0, realtime: false, protect_home: "no".into() }
}

fn step(path: &str, folder: bool, mode: u32) -> Step {
    Step { path: path.into(), folder, mode, uid: 0, gid: 0, listed: false }
}

fn file(folder_mode: u32, file_mode: u32) -> File {
    let steps = vec![step("/models", true, folder_mode), step("/models/q.gguf", false, file_mode)];
    File { path: "/models/q.gguf".into(), want: Want::Read, way: Way { steps, ends: None }, unmounted: None }
}

fn seen(files: Vec<File>) -> Seen {
    Seen {
        model: "genesis".parse().unwrap(),
        unit: Known::Value(unit()),
        files: Known::Value(files),
        judged: None,
        locks: false,
        ineffective: Vec::new(),
    }
}

#[test]
fn weights_that_its_user_can_t_read_name_the_folder_and_the_command() {
    assert_eq!(readable(&seen(vec![file(0o755, 0o644)])), []);
    // Two files behind the same closed folder are one finding.
    let found = readable(&seen(vec![file(0o700, 0o644), file(0o700, 0o644)]));
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(finding.text, "genesis can't read /models/q.gguf: it runs as frank");
    assert_eq!(finding.evidence, ["drwx------ root root /models"]);
    assert_eq!(finding.next, "sudo setfacl -m u:frank:x /models");
    let found = readable(&seen(vec![file(0o755, 0o600)]));
    assert_eq!(found[0].next, "sudo setfacl -m u:frank:r /models/q.gguf");
}

#[test]
fn what_keeps_a_model_and_its_variants_from_their_files_is_told_once() {
    let of = |name: &str| Seen { model: name.parse().unwrap(), ..seen(vec![file(0o700, 0o644)]) };
    let all = ["genesis", "genesis:long", "genesis2"].map(of);
    let Some(check) = judge(&Models(Known::Value(all.into()))).into_iter().next() else { panic!() };
    let subjects: Vec<&str> = check.findings.iter().map(|finding| finding.subject.as_str()).collect();
    assert_eq!(subjects, ["genesis", "genesis2"]);
}

#[test]
fn homes_that_the_unit_hides_and_users_that_are_not_there() {
    let mut at_home = file(0o755, 0o644);
    at_home.path = "/home/frank/q.gguf".into();
    let mut hidden = seen(vec![at_home]);
    hidden.unit = Known::Value(Unit { protect_home: "yes".into(), ..unit() });
    assert!(readable(&hidden)[0].text.contains("ProtectHome=yes"));
    hidden.unit = Known::Value(Unit { protect_home: "read-only".into(), ..unit() });
    assert_eq!(readable(&hidden), []);
    hidden.unit = Known::Value(Unit { user: Err("there is no user frank".into()), ..unit() });
    assert_eq!(readable(&hidden)[0].code, "no_user");
}

#[test]
fn a_disk_that_is_not_mounted_is_said_instead_of_the_file_that_is_not_there() {
    let mut away = file(0o755, 0o644);
    away.unmounted = Some("/models".into());
    away.way = Way { steps: vec![], ends: Some(("/models/q.gguf".into(), access::End::Missing)) };
    let found = readable(&seen(vec![away.clone()]));
    assert_eq!(
        (found.len(), found[0].code.as_str(), found[0].next.as_str()),
        (1, "not_mounted", "sudo mount /models")
    );
    away.unmounted = None;
    let found = readable(&seen(vec![away]));
    assert_eq!((found[0].code.as_str(), found[0].next.as_str()), ("file_missing", "ls -l /models"));
}

#[test]
fn what_can_t_be_looked_at_is_unknown() {
    let unknown = |found: Vec<Finding>| {
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].severity, Severity::Unknown);
    };
    let mut dark = seen(vec![file(0o755, 0o644)]);
    dark.unit = Known::Unknown("no bus".into());
    unknown(readable(&dark));
    unknown(limits(&dark));
    dark.files = Known::Unknown("it has not answered for 10 s".into());
    unknown(readable(&dark));
    unknown(fits(&dark));
}

#[test]
fn memory_that_does_not_fit_is_said_with_how_much_is_short() {
    let settings = settings(&[("genesis", "cmd = \"serve\"\n[memory]\ngpu = \"20 GiB\"\n")]);
    let judged = fit::all(&settings, Known::Value(Vec::new()));
    let mut seen = seen(Vec::new());
    seen.judged = judged.into_values().next();
    let found = fits(&seen);
    assert_eq!((found[0].severity, found[0].subject.as_str()), (Severity::Unknown, ""), "{found:?}");
    let refusal =
        Refusal { code: "memory_undeclared".into(), text: "no memory is declared".into(), hints: vec![] };
    seen.judged = Some(Err(Box::new(refusal)));
    assert_eq!(fits(&seen)[0].severity, Severity::Unknown);
}

#[test]
fn a_limit_for_locked_memory_and_a_high_priority_are_found() {
    let mut locked = seen(Vec::new());
    locked.unit = Known::Value(Unit { memlock: 8 << 20, nice: -5, ..unit() });
    let codes = |seen: &Seen| limits(seen).into_iter().map(|finding| finding.code).collect::<Vec<_>>();
    assert_eq!(codes(&locked), ["priority"]);
    locked.locks = true;
    assert_eq!(codes(&locked), ["memlock", "priority"]);
    locked.unit = Known::Value(Unit { realtime: true, ..unit() });
    assert_eq!(codes(&locked), ["priority"]);
    locked.unit = Known::Value(unit());
    assert_eq!(limits(&locked), []);
}

#[test]
fn who_locks_its_memory_is_known_by_flag_variable_and_policy() {
    let settings = settings(&[
        ("flag", "cmd = \"llama-server -m /m.gguf --mlock\""),
        ("variable", "cmd = \"LLAMA_ARG_MLOCK=1 llama-server -m /m.gguf\""),
        ("policy", "cmd = \"llama-server -m /m.gguf\"\npolicy = \"cpu\""),
        ("none", "cmd = \"llama-server -m /m.gguf\""),
    ]);
    let locked: Vec<&str> =
        settings.models.values().filter(|model| locks(model)).map(|model| model.name.as_str()).collect();
    assert_eq!(locked, ["flag", "policy", "variable"]);
}

#[test]
fn what_systemd_can_not_give_a_unit_is_said() {
    let policies = vec![SourceFile {
        path: "/etc/berth/policies.d/pinned.toml".into(),
        text: "devices = [\"host\"]\n\n[host]\ncores = \"0-1\"\nlock = true\n".into(),
    }];
    let file = SourceFile {
        path: "/etc/berth/models.d/q.toml".into(),
        text: "cmd = \"llama-server -m /q.gguf\"\npolicy = \"pinned\"\n".into(),
    };
    let settings = load(&Sources { models: vec![file], policies, ..Sources::default() }, "tower").unwrap();
    let model = settings.models.values().next().unwrap();
    let with = |there: &[&str]| {
        let there = there.iter().map(ToString::to_string).collect();
        let ineffective = ineffective(model, &Known::Value(there));
        let found = limits(&Seen { ineffective, ..seen(Vec::new()) });
        found.into_iter().map(|finding| (finding.code, finding.evidence.concat())).collect::<Vec<_>>()
    };
    assert_eq!(with(&["cpu", "cpuset", "memory"]), []);
    let lacks = |name: &str| {
        ("no_controller".to_owned(), format!("systemd has no controller {name} for models' units"))
    };
    assert_eq!(with(&["memory"]), [lacks("cpuset")]);
    assert_eq!(with(&[]), [lacks("cpuset"), lacks("memory")]);
}
