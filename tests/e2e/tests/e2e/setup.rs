//! First contact, after the package is installed: setup finds two hand-written services of which one serves, makes both
//! Berth's, and takes all of it back.

use sandbox::Output;
use serde_json::Value;
use shapes::models;

use crate::package::{Machine, package};

/// A server that Berth knows by its name, so also where it does not run.
const SERVER: &str = "/opt/koboldcpp/koboldcpp";

/// A hand-written service of frank's on both cards.
fn by_hand(port: u16) -> String {
    format!(
        "[Unit]\nDescription=By hand\n\n[Service]\nUser=frank\nExecStart={SERVER} --vram-each 9000MiB --port {port}\n\
         Restart=always\n\n[Install]\nWantedBy=multi-user.target\n"
    )
}

fn document(output: &Output) -> Value {
    serde_json::from_str(output.stdout.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {}{}", output.stdout, output.stderr))
}

fn with_code(machine: &Machine, command: &str, code: i32) -> Output {
    let output = machine.run(command);
    assert_eq!(output.status.code(), Some(code), "{command}: {}{}", output.stdout, output.stderr);
    output
}

/// S2: after a power cut what was switched to serves, and the rival that is enabled for boot does not start.
#[test]
fn two_services_by_hand_become_models_and_come_back() {
    let package = package();
    let mut machine = Machine::boot(&[(&package, "berth.deb")]);
    machine.root(&format!("mkdir -p $(dirname {SERVER}) && ln -s /usr/bin/fakellm {SERVER}"));
    for (unit, port) in [("genesis", 8022), ("aeon", 8023)] {
        let path = format!("/etc/systemd/system/{unit}.service");
        machine.sandbox.write_file(&path, by_hand(port)).unwrap();
    }
    let weights = tempfile::NamedTempFile::new().unwrap();
    models::small()[0].1.write_hollow(weights.path()).unwrap();
    machine
        .sandbox
        .write_file("/home/frank/models/gemma.gguf", std::fs::read(weights.path()).unwrap())
        .unwrap();
    // One that loads several models by itself, and would at boot.
    let ollama = "[Service]\nExecStart=/opt/ollama/ollama serve\n\n[Install]\nWantedBy=multi-user.target\n";
    machine.sandbox.write_file("/etc/systemd/system/ollama.service", ollama).unwrap();
    machine.root("mkdir /opt/ollama && ln -s /usr/bin/fakellm /opt/ollama/ollama");
    machine.root("chown -R frank: /home/frank/models; systemctl daemon-reload");
    machine.root("systemctl enable --quiet genesis aeon ollama && systemctl start genesis");
    let without_berth = machine.etc();
    machine.root("DEBIAN_FRONTEND=noninteractive apt-get install -qq -y /opt/berth.deb 2>&1");
    let installed = machine.etc();
    // As `make install` leaves it.
    machine.root("systemctl disable --quiet --now berthd");
    let before = machine.etc();

    looks_and_changes_nothing(&machine);
    assert_eq!(machine.etc(), before);

    let main = |unit: &str| machine.root(&format!("systemctl show -p MainPID --value {unit}"));
    let genesis = main("genesis");
    let said = machine.root("berthctl setup --yes");
    println!("{said}");
    for expected in [
        "Start berthd now and at each boot",
        "genesis.service becomes the model genesis",
        "ollama.service stays as it is",
        "ollama.service no longer starts at boot",
        "aeon and genesis are Berth's",
        "It serves on, and Berth stops it when its memory is wanted.",
        "Next: berthctl status",
        "Undo: sudo berthctl setup --undo",
    ] {
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    assert_eq!(main("genesis"), genesis, "what serves is not stopped");
    for unit in ["genesis", "aeon"] {
        assert_eq!(machine.run(&format!("systemctl is-enabled {unit}")).stdout.trim(), "masked");
    }
    assert_eq!(machine.run("systemctl is-enabled ollama").stdout.trim(), "disabled");
    let again = machine.root("berthctl setup --yes");
    assert!(again.contains("nothing to change"), "{again}");
    // What served serves on, and clients reach it at Berth's address.
    machine.root("berthctl switch genesis");
    assert_eq!(machine.ask("default").status, 200);
    assert_eq!(main("genesis"), genesis);

    machine.sandbox.cut().unwrap();
    machine.sandbox.boot().unwrap();
    // The sandbox lets frank join at each boot.
    machine.root("gpasswd --delete frank berth");
    machine.until("genesis serves again", || {
        machine.run("berthctl status").stdout.contains("genesis serves").then_some(())
    });
    assert_eq!(machine.ask("default").status, 200);
    let user = machine.root("ps -o user= -p $(systemctl show -p MainPID --value berth-model@genesis)");
    assert!(user.starts_with("frank"), "{user}");
    for unit in ["genesis", "aeon", "ollama", "berth-model@aeon"] {
        assert_eq!(machine.run(&format!("systemctl is-active {unit}")).stdout.trim(), "inactive", "{unit}");
    }

    let refused = with_code(&machine, "berthctl setup --undo --yes", 3);
    assert!(refused.stderr.contains("berthctl stop genesis"), "{}", refused.stderr);
    machine.root("berthctl stop --all");
    let dry = machine.root("berthctl setup --undo --dry-run");
    assert!(dry.find("aeon").unwrap() > dry.find("genesis").unwrap(), "the last change first: {dry}");
    machine.root("berthctl setup --undo --yes");
    same(&machine.etc(), &before);
    assert!(!machine.run("systemctl is-active berthd").status.success());
    machine.root("systemctl is-enabled genesis aeon ollama");
    let nothing = machine.root("berthctl setup --undo --yes");
    assert!(nothing.contains("changed nothing"), "{nothing}");

    // Three commands from the package on, where what serves may be stopped.
    machine.root("systemctl start genesis");
    let said = machine.root("berthctl setup --yes --stop");
    assert!(said.contains("Next: berthctl switch genesis"), "{said}");
    machine.root("berthctl switch genesis && berthctl stop genesis && berthctl setup --undo --yes");
    same(&machine.etc(), &before);

    machine.root("systemctl enable --quiet berthd");
    same(&machine.etc(), &installed);
    machine.root("dpkg --purge berth 2>&1");
    same(&machine.etc(), &without_berth);
}

#[track_caller]
fn same(now: &str, then: &str) {
    let differ = |a: &str, b: &str| {
        a.lines().filter(|line| !b.lines().any(|other| other == *line)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(now == then, "in /etc now: {:#?}, and then: {:#?}", differ(now, then), differ(then, now));
}

/// What there is, what could be done, what is in the way; and who may not, or whom nobody can ask.
fn looks_and_changes_nothing(machine: &Machine) {
    machine.root("systemd-run --quiet --unit llama-swap -- python3 -m http.server --bind 127.0.0.1 8010");
    machine.until("the port is taken", || {
        machine.run("ss -Hltn sport = :8010 | grep -q 8010").status.success().then_some(())
    });
    let said = machine.root("berthctl setup --dry-run");
    println!("{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    let document = document(&with_code(machine, "berthctl setup --dry-run --json", 0));
    machine.root("systemctl stop llama-swap");
    assert_eq!(document["changed"], false);
    assert_eq!(document["lacks"].as_array().unwrap().len(), 0, "{document}");
    assert_eq!(document["gpus"].as_array().unwrap().len(), 2);
    let changes: Vec<_> =
        document["changes"].as_array().unwrap().iter().map(|one| one["unit"].as_str().unwrap()).collect();
    assert_eq!(changes, ["berthd.service", "aeon.service", "genesis.service", "ollama.service"]);
    let [aeon, genesis, _] = document["services"].as_array().unwrap().as_slice() else {
        panic!("{document}")
    };
    assert_eq!((&genesis["runs"], &genesis["held_bytes"]), (&true.into(), &(9000_u64 << 21).into()));
    assert_eq!(aeon["runs"], false);
    assert!(aeon["at_boot"].as_str().unwrap().contains("enabled for boot (Restart=always)"), "{aeon}");
    assert_eq!(document["ports"][0]["port"], 8010);
    for expected in [
        "Serving  genesis.service  koboldcpp  GPU 0+1  17.6 GiB  :8022",
        "Rival    aeon.service is enabled for boot",
        "/home/frank/models: 1 model (1 fits)",
        "sudo berthctl add /home/frank/models/gemma.gguf --run-as frank",
        "[proxy] listen = [\"127.0.0.1:8011\"]",
    ] {
        let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let expected = expected.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(&expected), "{expected}: {said}");
    }
    // What can be mended keeps nothing from starting at boot.
    machine.root("echo '# changed' >>/etc/systemd/system/genesis.service");
    let unread = with_code(machine, "berthctl setup --dry-run", 0).stdout;
    machine.root("sed -i '$d' /etc/systemd/system/genesis.service && systemctl daemon-reload");
    assert!(unread.contains("genesis.service stays as it is"), "{unread}");
    assert!(!unread.contains("genesis.service no longer starts"), "{unread}");
    let nobody = with_code(machine, "berthctl setup </dev/null", 2);
    assert!(nobody.stderr.contains("--yes"), "{}", nobody.stderr);
    let no = with_code(machine, "yes n | head -4 | script -qec 'berthctl setup' /dev/null", 3);
    assert_eq!(no.stdout.matches("Do it? [Y/n]").count(), 4, "{}", no.stdout);
    assert!(no.stdout.contains("Nothing was changed."), "{}", no.stdout);
    let frank = machine.sandbox.exec_as("frank", &["berthctl", "setup", "--yes"]).unwrap();
    assert!(frank.stderr.contains("only root"), "{}{}", frank.stdout, frank.stderr);
    with_code(machine, "berthctl setup --dry-run /nowhere", 2);
    // Without its rule in polkit berthd may start nothing.
    machine.root("mv /usr/share/polkit-1/rules.d/60-berth.rules /tmp/");
    let refused = with_code(machine, "berthctl setup --yes", 3);
    // polkit itself would find it again some time later.
    machine.root("mv /tmp/60-berth.rules /usr/share/polkit-1/rules.d/ && systemctl restart polkit");
    assert!(
        refused.stderr.contains("can't work here yet") && refused.stdout.contains("Lacks"),
        "{}",
        refused.stderr
    );
}
