#![allow(clippy::unwrap_used)]
use std::path::{Path, PathBuf};

use berth_core::config::Sources;

use super::*;
use crate::unit::{self, Around, File, Unit};

/// The folder that stands for a machine with hand-written units; the end-to-end tests run them.
fn machine() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/units")
}

/// The variables that systemd gives every service there.
fn around() -> Around {
    let environment = [("LANG", "C.UTF-8"), ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")];
    Around {
        root: machine(),
        environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        hostname: "tower".into(),
        machine_id: None,
    }
}

/// Every unit of the machine with its files; of a template the instances that are enabled.
fn units() -> Vec<(String, Vec<File>)> {
    let folder = machine().join("etc/systemd/system");
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".service")).collect::<Vec<_>>()
    };
    let mut all = names(&folder);
    all.retain(|name| !name.contains('@'));
    all.extend(names(&folder.join("multi-user.target.wants")));
    all.sort();
    let read = |name: String| {
        let own = match name.split_once('@') {
            Some((template, _)) => folder.join(format!("{template}@.service")),
            None => folder.join(&name),
        };
        let mut files = unit::beside(&own).unwrap();
        for file in &mut files {
            file.path = Path::new("/").join(file.path.strip_prefix(machine()).unwrap());
        }
        (name, files)
    };
    all.into_iter().map(read).collect()
}

fn translated(name: &str, files: &[File]) -> Result<Draft, Refusal> {
    let unit = Unit::read(name, files)?;
    from_unit::translate(&unit, from_unit::name(&unit).parse().unwrap(), &around())
}

/// All that a draft comes to, and what `check` says of it.
fn told(draft: Draft) -> String {
    let mut addition = Addition::of(draft);
    let placed = placed(&mut addition, &Sources::default(), false);
    let (draft, wrong) = match valid(&addition, &Sources::default()) {
        Ok(settings) => {
            let draft = &mut addition.drafts[0];
            if let Some(why) = undeclared(draft, &settings, None) {
                draft.note("memory", why);
            }
            let model = settings.models.values().next().unwrap();
            // What is read back is what systemd would run.
            assert_eq!(backend::declared_line(model), draft.argv);
            let inside = model.container.iter().flat_map(|container| &container.env);
            let inside: crate::unit::Variables =
                inside.map(|(name, value)| (name.clone(), value.clone())).collect();
            assert_eq!(model.env, draft.env.clone().into_iter().chain(inside).collect());
            (&addition.drafts[0], String::new())
        }
        Err(errors) => {
            let all: Vec<String> = errors.iter().map(|error| error.render(false)).collect();
            (&addition.drafts[0], format!("-- not valid\n{}\n", all.join("\n")))
        }
    };
    let mut out = draft.declaration();
    out += &draft.drop_in().map_or(String::new(), |text| format!("-- drop-in\n{text}"));
    out += &draft.secrets().map_or(String::new(), |text| format!("-- secrets\n{text}"));
    let placed = placed[0].iter().map(|one| format!("-- placed: {one}\n"));
    let notes = draft.notes.iter().map(|note| format!("! {}: {}\n", note.what, note.why));
    let rest: Vec<String> = placed.chain(notes).collect();
    out + &rest.concat() + &wrong
}

#[test]
fn each_hand_written_unit_is_translated_or_refused_with_the_reason() {
    let all = units();
    assert!(all.len() >= 25, "{}", all.len());
    for (name, files) in all {
        let text = match translated(&name, &files) {
            Ok(draft) => told(draft),
            Err(refusal) => {
                let place = refusal.place.map_or(String::new(), |place| format!("{place}: "));
                format!("refused: {place}{}\n{}", refusal.what, refusal.instead.unwrap_or_default())
            }
        };
        insta::with_settings!({ snapshot_path => "../../tests/units/snapshots", prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(name.replace('@', "_"), text);
        });
    }
}

/// Quadlet's files, each with what it comes to.
#[test]
fn each_quadlet_file_is_translated_or_refused_with_the_reason() {
    let folder = machine().join("etc/containers/systemd");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    assert!(paths.len() >= 4);
    let all = paths.iter().map(|path| {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let named = Path::new("/etc/containers/systemd").join(&file);
        let files: Vec<File> = unit::beside(path).unwrap();
        let files = files.into_iter().map(|one| File { path: named.clone(), ..one }).collect::<Vec<_>>();
        let draft = quadlet::service(&named, &files).and_then(|(name, file)| translated(&name, &[file]));
        let text = match draft {
            Ok(draft) => told(draft),
            Err(refusal) => format!("refused: {}: {}\n", refusal.place.unwrap_or_default(), refusal.what),
        };
        format!("== {file}\n{text}")
    });
    insta::assert_snapshot!(all.collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_user_s_quadlet_file_does_not_become_root_s() {
    use std::os::unix::fs::chown;

    for (path, of_machine) in [
        ("/etc/containers/systemd/vllm.container", true),
        ("/run/containers/systemd/llm/vllm.container", true),
        ("/usr/share/containers/systemd/vllm.container", true),
        ("/etc/containers/systemd/users/1000/vllm.container", false),
        ("/home/frank/.config/containers/systemd/vllm.container", false),
        ("/etc/containers/systemd2/vllm.container", false),
    ] {
        assert_eq!(quadlet::is_of_machine(Path::new(path)), of_machine, "{path}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vllm.container");
    let text = "[Container]\nImage=vllm/vllm-openai\nExec=--model a/b\nPublishPort=8022:8000\n";
    std::fs::write(&path, text).unwrap();
    let draft = || {
        let (name, file) =
            quadlet::service(&path, &[File { path: path.clone(), text: text.to_owned() }]).unwrap();
        translated(&name, &[file]).unwrap()
    };
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    if geteuid().is_root() {
        chown(&path, Some(nobody.uid.as_raw()), None).unwrap();
        let refusal = quadlet::of_user(&mut draft(), &path, "vllm.service", false).unwrap_err();
        assert!(refusal.instead.unwrap().starts_with("--run-as nobody, "), "{}", refusal.what);
    }
    assert!(quadlet::of_user(&mut draft(), &path, "vllm.service", false).is_err());
    let mut draft = draft();
    quadlet::of_user(&mut draft, &path, "vllm.service", true).unwrap();
    runs_as(&mut draft, "nobody").unwrap();
    assert_eq!(draft.service[0], "User=nobody");
    let told: Vec<String> = draft.notes.iter().map(|note| format!("{}: {}", note.what, note.why)).collect();
    let told = told.join("\n");
    assert!(told.contains("systemctl --user stop vllm.service"), "{told}");
    assert!(told.contains("User=nobody: podman without root needs ranges"), "{told}");
}

#[test]
fn what_berthd_may_not_read_is_named_with_the_way_in() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let (home, file) = (folder.path().join("frank"), folder.path().join("frank/q.gguf"));
    std::fs::create_dir(&home).unwrap();
    std::fs::write(&file, "x").unwrap();
    let mode = |mode| std::fs::set_permissions(&home, std::fs::Permissions::from_mode(mode)).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let berthd = Identity { user: "berth".into(), uid: 4_000_000, gids: [4_000_000].into() };
    let argv = ["/opt/llama.cpp/llama-server", "-m", file.to_str().unwrap()].map(str::to_owned).to_vec();
    let draft = Draft::new("q".parse().unwrap(), String::new(), argv);
    let why = || {
        let addition =
            Addition { drafts: vec![draft.clone()], service: None, process: None, notes: Vec::new() };
        undeclared(&draft, &valid(&addition, &Sources::default()).unwrap(), Some(&berthd))
    };
    mode(0o755);
    assert_eq!(why(), None);
    mode(0o750);
    let why = why().unwrap();
    assert!(why.contains(&format!("sudo setfacl -m u:berth:x {}", home.display())), "{why}");
    assert!(why.contains("drwxr-x---") && why.contains("[memory] gpu"), "{why}");
}
