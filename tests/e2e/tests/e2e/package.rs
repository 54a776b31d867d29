//! The Debian package, in a sandbox that has nothing of Berth but simulated GPUs and a server: installed, upgraded and
//! removed under models that serve, purged; and what the installed daemon and models may and may not do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_tests::{Answer, Streamed, fake, post, stage};
use sandbox::{Output, Sandbox};
use serde_json::json;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(15);

/// The port of the proxy, which clients have.
const PROXY: u16 = 8010;

/// systemd's figure for what a service could do, from 0 to 10, may be no more than this.
const EXPOSED: [(&str, f64); 3] =
    [("berthd.service", 2.5), ("berth-model@.service", 3.0), ("berth-devices.service", 7.0)];

/// A server in a virtual environment, as people have them in their homes: it reads its weights and a token, notes what it
/// found and where, and becomes a fakellm.
const SERVER: &str = r#"
import json, os, sys
weights = sys.argv[sys.argv.index("-m") + 1]
cache = os.path.join(os.path.expanduser("~"), ".cache", "server")
os.makedirs(cache, exist_ok=True)
found = {
    "weights": open(weights).read(), "prefix": sys.prefix, "uid": os.getuid(), "home": os.environ["HOME"],
    "variable": os.environ["HF_TOKEN"], "credential": open(os.environ["HF_TOKEN_PATH"]).read(),
}
json.dump(found, open(os.path.join(cache, "found.json"), "w"))
port = sys.argv[sys.argv.index("--port") + 1]
os.execv("/usr/bin/fakellm", ["fakellm", "--vram-each", "6000MiB", "--port", port, "--host", "127.0.0.1", "--fork-child", "--token-delay", "10ms"])
"#;

const SECRET: &str = "hf_5ecret";

/// The package that `make package` made.
pub(crate) fn package() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/deb");
    let found = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut packages: Vec<_> = found.filter(|path| path.extension().is_some_and(|it| it == "deb")).collect();
    assert_eq!(packages.len(), 1, "no package in {}: `make package` makes it", folder.display());
    packages.remove(0)
}

/// The same with another version.
fn as_version(package: &Path, version: &str, folder: &Path) -> PathBuf {
    let (tree, to) = (folder.join("tree"), folder.join(format!("berth_{version}.deb")));
    let dpkg = |args: &[&std::ffi::OsStr]| {
        assert!(Command::new("dpkg-deb").args(args).status().unwrap().success(), "{args:?}");
    };
    dpkg(&["-R".as_ref(), package.as_ref(), tree.as_ref()]);
    let control = fs::read_to_string(tree.join("DEBIAN/control")).unwrap();
    let lines = control.lines().map(|line| match line.strip_prefix("Version: ") {
        Some(_) => format!("Version: {version}\n"),
        None => format!("{line}\n"),
    });
    fs::write(tree.join("DEBIAN/control"), lines.collect::<String>()).unwrap();
    dpkg(&["-Zgzip".as_ref(), "-z1".as_ref(), "-b".as_ref(), tree.as_ref(), to.as_ref()]);
    to
}

/// A machine without Berth.
pub(crate) struct Machine {
    pub(crate) sandbox: Sandbox,
    /// What hides the source from it, at each boot.
    _nothing: TempDir,
}

impl Machine {
    /// With these packages in /root.
    pub(crate) fn boot(packages: &[(&Path, &str)]) -> Machine {
        let (stage, tree) = (stage().unwrap(), tempfile::tempdir().unwrap());
        let list = "for file in usr/bin/gpusim usr/bin/fakellm usr/lib/*/libnvidia-ml.so.1; do \
                    install -D \"$0/$file\" \"$1/$file\" || exit 1; done";
        let mut copy = Command::new("sh");
        copy.args(["-c", list]).arg(&stage).arg(tree.path()).current_dir(&stage);
        assert!(copy.status().unwrap().success(), "no whole tree: `make stage`");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let nothing = tempfile::tempdir().unwrap();
        let mut builder = Sandbox::builder().name("tower").tree(tree.path());
        builder = builder.bind_read_only(nothing.path(), source);
        for (from, name) in packages {
            builder = builder.bind_read_only(*from, format!("/opt/{name}"));
        }
        let sandbox = builder.up().unwrap_or_else(|error| panic!("{error:#}"));
        let machine = Machine { sandbox, _nothing: nothing };
        // The sandbox's users are of Berth's group, hosts without an init keep packages from starting services, and lack a
        // group that udev makes.
        machine.root(
            "groupdel berth; rm -f /usr/sbin/policy-rc.d; getent group render || groupadd --system render",
        );
        machine
    }

    pub(crate) fn run(&self, command: &str) -> Output {
        let argv = ["sh", "-c", command];
        self.sandbox.exec(&argv).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// What a command of root's says, which has to succeed.
    #[track_caller]
    pub(crate) fn root(&self, command: &str) -> String {
        let output = self.run(command);
        assert!(output.status.success(), "`{command}`: {}{}{}", output.stdout, output.stderr, self.journal());
        output.stdout + &output.stderr
    }

    fn journal(&self) -> String {
        self.run("journalctl --no-pager -n 60 -o short-precise").stdout
    }

    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(begin.elapsed() < SOON, "{what}: not within {SOON:?}\n{}", self.journal());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn pid1(&self) -> u32 {
        self.sandbox.pid1().unwrap()
    }

    /// Asks for a few words of a model at the clients' address.
    pub(crate) fn ask(&self, model: &str) -> Answer {
        let body = json!({ "model": model, "prompt": "count", "max_tokens": 4 });
        post(self.pid1(), PROXY, "/v1/completions", &body, SOON).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Which run of a model's server this is.
    fn run_of(&self, model: &str) -> String {
        let run =
            self.root(&format!("systemctl show -p MainPID,InvocationID,ActiveState berth-model@{model}"));
        assert!(run.contains("ActiveState=active"), "{model}: {run}{}", self.journal());
        run
    }

    /// What a process with berthd's rights, among berthd's files, says to a command.
    fn as_berthd(&self, command: &str) -> Output {
        let berthd = self.root("systemctl show -p MainPID --value berthd").trim().to_owned();
        self.run(&format!(
            "exec nsenter --target {berthd} --mount -- setpriv --reuid berth --regid berth \
             --groups $(id -G berth | tr ' ' ,),$(getent group systemd-journal | cut -d: -f3) \
             --no-new-privs --bounding-set=-all --inh-caps=-all -- sh -c '{command}'"
        ))
    }

    /// Everything below /etc, but what tools leave as the state before.
    pub(crate) fn etc(&self) -> String {
        self.root(
            "cd /etc && find . -xdev ! -name passwd- ! -name group- ! -name shadow- ! -name gshadow- \
             ! -name subuid- ! -name subgid- ! -name .pwd.lock | sort | while read -r path; do \
             if [ -f \"$path\" ] && [ ! -L \"$path\" ]; then what=$(sha256sum <\"$path\"); fi; \
             echo \"$(stat -c '%N %F %a %u %g' \"$path\") ${what-}\"; unset what; done",
        )
    }
}

/// `lintian` has no error, and no warning that this Debian knows.
#[test]
fn lintian_finds_no_error() {
    let output = Command::new("lintian").args(["--allow-root", "--fail-on", "error"]).arg(package()).output();
    let output = output.expect("lintian is missing: `make deps`");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let count = |kind: &str| said.lines().filter(|line| line.starts_with(kind)).count();
    println!("package: lintian errors={} warnings={}", count("E:"), count("W:"));
    assert!(output.status.success() && count("E:") == 0, "{said}");
}

#[test]
fn from_first_contact_to_a_purge() {
    let folder = tempfile::tempdir().unwrap();
    let package = package();
    let newer = as_version(&package, "99.0", folder.path());
    let machine = Machine::boot(&[(&package, "berth.deb"), (&newer, "newer.deb")]);
    let before = machine.etc();

    first_contact(&machine);
    is_sound(&machine);
    berthd_is_confined(&machine);
    serves_from_a_home(&machine);
    upgraded_under_a_stream(&machine);
    removed_and_back(&machine);
    purged(&machine);
    let after = machine.etc();
    let changed: Vec<_> = after.lines().filter(|line| !before.lines().any(|old| old == *line)).collect();
    assert!(after == before, "left in /etc: {changed:#?}");
    for gone in ["/var/lib/berth-model", "/etc/berth", "/run/berth", "/usr/share/berth", "/usr/bin/berthd"] {
        assert!(!machine.run(&format!("test -e {gone}")).status.success(), "{gone} is still there");
    }
    assert_eq!(machine.root("ls -A /var/lib/berth"), "");
}

/// Three commands to the first answer: install, declare, reload.
fn first_contact(machine: &Machine) {
    let begin = Instant::now();
    machine.root("DEBIAN_FRONTEND=noninteractive apt-get install -qq -y /opt/berth.deb 2>&1");
    let installed = begin.elapsed();
    let toml = fake(2, "6000MiB", &[]);
    machine.root(&format!("cat >/etc/berth/models.d/aeon.toml <<'EOF'\n{toml}EOF\n"));
    machine.root("berthctl reload");
    let answer = machine.ask("aeon");
    assert_eq!(answer.status, 200, "{}{}", answer.body, machine.journal());
    println!(
        "package: first_answer_ms={} of_that_installing_ms={} commands=3",
        begin.elapsed().as_millis(),
        installed.as_millis()
    );
    machine.root("berthctl switch aeon");
}

/// The units are valid and as closed as is promised; what people type is completed, and every verb has its page.
fn is_sound(machine: &Machine) {
    let units = "/usr/lib/systemd/system";
    let files = EXPOSED.map(|(unit, _)| format!("'{units}/{unit}'")).join(" ");
    // Pages are there, and man itself may not be.
    assert_eq!(machine.root(&format!("systemd-analyze verify --man=no {files}")), "");
    for (unit, most) in EXPOSED {
        let said =
            machine.root(&format!("systemd-analyze security --offline=true --no-pager '{units}/{unit}'"));
        let figure = said.rsplit_once(": ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
        let figure = figure.unwrap_or_else(|| panic!("no figure for {unit}: {said}"));
        println!("package: exposure of {unit}: {figure} (at most {most})");
        assert!(figure <= most, "{said}");
    }
    let completed = "bash -c '. /usr/share/bash-completion/completions/berthctl; COMP_WORDS=(berthctl swi) COMP_CWORD=1; \
                     _berthctl berthctl swi berthctl; echo ${COMPREPLY[*]}'";
    assert_eq!(machine.root(completed).trim(), "switch");
    let verbs = machine.root("ls /usr/share/man/man1/ | grep -c ^berthctl-").trim().parse::<u32>().unwrap();
    assert!(verbs > 20, "{verbs} pages");
    machine.root("zcat /usr/share/man/man8/berthd.8.gz | grep -q 'SH NAME'");
    machine.root("zcat /usr/share/man/man5/berth.toml.5.gz | grep -q 'SH NAME'");
    machine.root("grep -q json-schema.org /usr/share/berth/schema/model.json");
}

/// berthd handles models' units and no other, and writes into its own folders alone.
fn berthd_is_confined(machine: &Machine) {
    for verb in [
        "stop gpusim",
        "restart dbus",
        "start systemd-tmpfiles-clean",
        "stop berthd",
        "mask berth-model@aeon",
    ] {
        let denied = machine.as_berthd(&format!("systemctl --no-ask-password {verb}"));
        let said = denied.stderr;
        assert!(!denied.status.success(), "berthd may {verb}");
        assert!(said.contains("authentication required") || said.contains("Access denied"), "{verb}: {said}");
    }
    assert!(machine.root("systemctl is-active gpusim").contains("active"));
    let writable = "find / ( -path /proc -o -path /sys ) -prune -o ( -type d -o -type f ) -writable -print";
    let writable = machine.as_berthd(&writable.replace('(', "\\(").replace(')', "\\)")).stdout;
    let own = ["/run/berth", "/var/lib/berth", "/dev/shm", "/dev/mqueue"];
    let elsewhere: Vec<&str> =
        writable.lines().filter(|path| !own.iter().any(|own| Path::new(path).starts_with(own))).collect();
    assert!(writable.contains("/var/lib/berth/ledger"), "it was looked where berthd writes: {writable}");
    assert_eq!(elsewhere, [""; 0], "berthd can write there");
    // It is no luck of modes: not even what is everybody's.
    let tried = machine.as_berthd("touch /tmp/x; touch /var/tmp/x");
    assert_eq!(tried.stderr.matches("Read-only file system").count(), 2, "{}", tried.stderr);
}

/// Weights and a virtual environment in a home that is closed to others: the server runs as who lives there, uses the home
/// and its cache, and gets secrets that berthd never sees.
fn serves_from_a_home(machine: &Machine) {
    machine.root("test $(stat -c %a /home/frank) = 750");
    let frank = |command: &str| {
        let output = machine.sandbox.exec_as("frank", &["sh", "-c", &format!("cd; {command}")]).unwrap();
        assert!(output.status.success(), "{command}: {}{}", output.stdout, output.stderr);
    };
    frank("python3 -m venv --without-pip venv && mkdir models && echo weights >models/tiny.gguf");
    frank(&format!("cat >serve.py <<'EOF'\n{SERVER}EOF\n"));
    machine.root(&format!(
        "install -d -m 700 /etc/berth/secrets && umask 077 && printf %s {SECRET}1 >/etc/berth/secrets/hf && \
         echo HF_TOKEN={SECRET}2 >/etc/berth/secrets/genesis.env && umask 022 && \
         mkdir -p /etc/systemd/system/berth-model@genesis.service.d && \
         printf '[Service]\\nUser=frank\\nEnvironmentFile=/etc/berth/secrets/genesis.env\\n\
         LoadCredential=hf:/etc/berth/secrets/hf\\nEnvironment=HF_TOKEN_PATH=%%d/hf\\n' \
         >/etc/systemd/system/berth-model@genesis.service.d/frank.conf && systemctl daemon-reload"
    ));
    machine.root(
        "cat >/etc/berth/models.d/genesis.toml <<'EOF'\n\
         cmd = \"/home/frank/venv/bin/python3 /home/frank/serve.py -m /home/frank/models/tiny.gguf --port 8022\"\n\
         backend = \"llama.cpp\"\nmodel = \"/home/frank/models/tiny.gguf\"\nmemory = { gpu = [\"6000 MiB\", \"6000 MiB\"] }\n\
         EOF\nberthctl reload",
    );
    machine.root("berthctl switch genesis");
    let answer = machine.ask("default");
    assert_eq!(answer.status, 200, "{}", answer.body);

    let found =
        machine.root("stat -c '%U %n' ~frank/.cache/server/found.json; cat ~frank/.cache/server/found.json");
    let (owner, found) = found.split_once('\n').unwrap();
    assert_eq!(owner, "frank /home/frank/.cache/server/found.json");
    let found: serde_json::Value = serde_json::from_str(found).unwrap();
    let expected = json!({
        "weights": "weights\n", "prefix": "/home/frank/venv", "uid": 2001, "home": "/home/frank",
        "variable": format!("{SECRET}2"), "credential": format!("{SECRET}1"),
    });
    assert_eq!(found, expected);
    let unit = "berth-model@genesis.service";
    let of_processes = machine.root(&format!(
        "for pid in $(cat /sys/fs/cgroup$(systemctl show -p ControlGroup --value {unit})/cgroup.procs); do \
         grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs)' /proc/$pid/status | tr -s '\\t\\n' ' '; echo; done"
    ));
    let processes: Vec<&str> = of_processes.lines().collect();
    assert!(processes.len() >= 2, "{of_processes}");
    for process in processes {
        let nothing = "CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1";
        assert_eq!(process.trim(), format!("Uid: 2001 2001 2001 2001 {nothing}"));
    }

    // The secrets: each place where they are, and what berthd keeps and says.
    let main = machine.root(&format!("systemctl show -p MainPID --value {unit}")).trim().to_owned();
    for path in [
        "/etc/berth/secrets/hf".to_owned(),
        "/etc/berth/secrets/genesis.env".to_owned(),
        format!("/run/credentials/{unit}/hf"),
        format!("/proc/{main}/environ"),
        "/home/frank/.cache/server/found.json".to_owned(),
    ] {
        assert!(
            machine.root(&format!("cat {path} | tr '\\0' '\\n'")).contains(SECRET),
            "no secret in {path}"
        );
        let read = machine.as_berthd(&format!("cat {path}"));
        assert!(!read.status.success() && read.stdout.is_empty(), "berthd reads {path}");
        assert!(read.stderr.contains("Permission denied"), "{path}: {}", read.stderr);
    }
    let kept = format!(
        "grep -rl {SECRET} /var/lib/berth /run/berth; berthctl status --json; berthctl check --json; \
         berthctl events --json; berthctl logs genesis; journalctl --no-pager"
    );
    assert!(!machine.run(&kept).stdout.contains(SECRET), "a secret is kept or shown");
    // And a model sees nobody's processes but those of its user, and writes neither programs nor settings.
    let inside = format!(
        "exec nsenter --target {main} --mount -- setpriv --reuid frank --regid frank --clear-groups -- \
         sh -c 'ls -d /proc/1; touch /usr/x /etc/x /sys/fs/cgroup/x'"
    );
    let tried = machine.run(&inside).stderr;
    assert!(tried.contains("'/proc/1': No such file"), "{tried}");
    assert_eq!(tried.matches("Read-only file system").count(), 3, "{tried}");
}

/// Models and what they are saying go on under an upgrade and a downgrade, to clients of the proxy too; the next berthd takes
/// them over.
fn upgraded_under_a_stream(machine: &Machine) {
    const TOKENS: u32 = 600;
    let (run, pid1) = (machine.run_of("genesis"), machine.pid1());
    let stream = Streamed::open(pid1, 8022).unwrap();
    let berthd = || machine.root("systemctl show -p MainPID --value berthd");
    // Six seconds, at the clients' address.
    let body = json!({ "model": "default", "prompt": "count", "max_tokens": TOKENS, "stream": true });
    let answering = std::thread::spawn(move || post(pid1, PROXY, "/v1/completions", &body, SOON).unwrap());
    std::thread::sleep(Duration::from_millis(300));
    for (package, version) in [("newer", "99.0"), ("berth", env!("CARGO_PKG_VERSION"))] {
        let (before, begin) = (berthd(), Instant::now());
        machine.root(&format!("dpkg --install /opt/{package}.deb 2>&1"));
        println!("package: to_version={version} ms={}", begin.elapsed().as_millis());
        assert_eq!(machine.root("dpkg-query -f '${Version}' -W berth"), version);
        assert_ne!(berthd(), before, "berthd is the package's");
        stream.goes_on().unwrap();
        assert_eq!(machine.run_of("genesis"), run);
        let answer = machine.ask("default");
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(machine.root("berthctl status").contains("genesis serves"));
    }
    let answer = answering.join().unwrap();
    assert!(answer.body.contains(&format!("\" {}\"", TOKENS - 1)), "cut off after {} B", answer.body.len());
    assert!(answer.body.trim_end().ends_with("data: [DONE]"), "cut off after {} B", answer.body.len());
}

/// Without berthd models go on, and the state stays; installed again, it goes on with both.
fn removed_and_back(machine: &Machine) {
    let run = machine.run_of("genesis");
    let stream = Streamed::open(machine.pid1(), 8022).unwrap();
    machine.root("dpkg --remove berth 2>&1");
    assert!(!machine.run("test -e /usr/bin/berthd || systemctl is-active berthd").status.success());
    machine.root("test -s /var/lib/berth/ledger && test -s /etc/berth/models.d/genesis.toml");
    stream.goes_on().unwrap();
    assert_eq!(machine.run_of("genesis"), run);
    machine.root("dpkg --install /opt/berth.deb 2>&1");
    assert!(machine.root("berthctl status").contains("genesis serves"));
    assert_eq!(machine.run_of("genesis"), run);
    stream.goes_on().unwrap();
}

/// A purge stops no model either; what one still needs stays until it is gone.
fn purged(machine: &Machine) {
    machine.root("berthctl switch aeon");
    let stream = Streamed::open(machine.pid1(), 8100).unwrap();
    let said = machine.root("dpkg --purge berth 2>&1");
    assert!(
        said.contains("a model still runs as berth-model, so that user and /var/lib/berth-model stay"),
        "{said}"
    );
    stream.goes_on().unwrap();
    machine.root("getent passwd berth-model && test -d /var/lib/berth-model && test ! -e /etc/berth");
    assert!(!machine.run("getent passwd berth || getent group berth").status.success());
    drop(stream);
    machine.root("systemctl stop berth-model@aeon");

    machine.root("dpkg --install /opt/berth.deb 2>&1");
    machine.until("berthd is up", || machine.run("berthctl status").status.success().then_some(()));
    let said = machine.root("dpkg --purge berth 2>&1");
    assert!(!said.contains("still runs"), "{said}");
    // What was written by hand is whose hand it was.
    machine.root("rm -r /etc/systemd/system/berth-model@genesis.service.d && systemctl daemon-reload");
}
