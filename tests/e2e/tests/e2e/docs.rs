//! Every command that README and docs tell people to type is typed here, on a terminal, page by page and line by line, on a
//! machine with hand-written services that Berth has not seen yet. A new one is run as it stands and has to succeed; what one
//! needs first, how else it ends, or why it can't be run here, is in [`CASES`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sandbox::Output;
use shapes::gguf::Type;
use shapes::{models, safetensors};

use crate::package::{Machine, package};

/// These pages are read first; all others follow.
const FIRST: [&str; 5] =
    ["README.md", "docs/coming-from.md", "docs/configuration.md", "docs/security.md", "docs/metrics.md"];

/// What begins with one of these is a command, where it stands in a sentence.
const PROGRAMS: [&str; 18] = [
    "apt",
    "berthctl",
    "berthd",
    "cargo",
    "curl",
    "gpusim",
    "journalctl",
    "loginctl",
    "make",
    "man",
    "nvidia-modprobe",
    "nvidia-smi",
    "ollama",
    "setfacl",
    "sqlite3",
    "sudo",
    "systemctl",
    "tailscale",
];

/// Words that stand for others, and what is typed for them.
const PLACEHOLDERS: [(&str, &str); 5] = [
    ("MODEL", "genesis"),
    ("NAME", "laptop"),
    ("N", "0"),
    ("UNIT", "rival.service"),
    ("COPY", "/tmp/history.db"),
];

/// What is special about a command.
enum How {
    /// A command of root's comes first.
    After(&'static str),
    /// It goes on until Ctrl-C, which is no failure.
    Watches,
    /// It ends with one of these, after a command of root's.
    Ends(&'static [i32], &'static str),
    /// Something else is typed in its place, after a command of root's.
    As(&'static str, &'static str),
    /// It is not run here, and why.
    Not(&'static str),
}
use How::{After, As, Ends, Not, Watches};

/// By the command; one that ends with `*` stands for all that begin so.
const CASES: &[(&str, How)] = &[
    ("$ *", Not("recordings.rs has what it says")),
    ("cargo *", Not(BUILDS)),
    ("make*", Not(BUILDS)),
    ("sudo make install", Not(BUILDS)),
    ("berthctl →*", Not("a picture")),
    // In a page that tells the whole of them elsewhere.
    ("berthctl add", Not(NAME)),
    ("berthctl add WHAT", Not(NAME)),
    ("berthctl fit", Not(NAME)),
    ("berthctl key", Not(NAME)),
    ("berthctl plan", Not(NAME)),
    ("berthctl setup", Not(NAME)),
    ("berthctl stop", Not(NAME)),
    ("berthctl switch", Not(NAME)),
    ("berthctl token", Not(NAME)),
    ("journalctl -u", Not(NAME)),
    ("systemctl start", Not(NAME)),
    ("systemctl status", Not(NAME)),
    ("ollama *", Not("Ollama's own")),
    ("sudo systemctl disable --now ollama", Not("Ollama's own")),
    ("nvidia-*", Not("the driver's own; here is no card")),
    ("setfacl *", Not("of the package acl, which is not everywhere")),
    ("tailscale *", Not("Tailscale's own")),
    ("man *", Not("pages are looked at by package.rs; man itself is not everywhere")),
    ("berthd --user", Not(USERS)),
    ("journalctl --user*", Not(USERS)),
    ("loginctl *", Not(USERS)),
    ("systemctl --user*", Not(USERS)),
    ("systemctl edit user@.service", Not(USERS)),
    ("apt *", Not("package.rs does it, and looks at what is left")),
    ("sudo berthctl setup --undo", After("berthctl stop --all")),
    (
        "sudo berthctl add genesis.service",
        After("rm -f /etc/berth/models.d/genesis.toml; berthctl stop --all; berthctl reload"),
    ),
    (
        "berthctl cancel",
        After(
            "berthctl setup --yes --stop && berthctl switch genesis && touch /run/slow && \
               systemd-run --quiet berthctl restart genesis && sleep 0.5 && rm /run/slow",
        ),
    ),
    ("sudo systemctl stop genesis.service", After("systemctl start genesis && berthctl setup --yes")),
    ("berthctl add genesis.service --dry-run", After("berthctl stop --all; berthctl setup --undo --yes")),
    (
        "sudo berthctl add ./genesis.service",
        After("berthctl remove genesis --yes && cp /etc/systemd/system/genesis.service /home/frank/"),
    ),
    (
        "sudo berthctl add 4711",
        As(
            "sudo berthctl add $(cat /run/pid)",
            "(setpriv --reuid frank --regid frank --clear-groups --reset-env -- /opt/llama.cpp/llama-server \
             -m /home/frank/models/gemma-4-26b.gguf --port 8033 >/dev/null 2>&1 & echo $! >/run/pid); sleep 0.5",
        ),
    ),
    ("sudo berthctl add ~/models/gemma-4-26b.gguf --name gemma", After("kill $(cat /run/pid)")),
    ("sudo install -m 600 hf /etc/berth/secrets/hf", After("echo hf_5ecret >/home/frank/hf")),
    ("berthctl status --watch", Watches),
    ("berthctl logs genesis -f", Watches),
    ("berthctl events -f", Watches),
    ("sudo berthctl doctor*", Ends(&[0, 1], "true")),
    ("berthctl doctor", Ends(&[0, 1], "true")),
    ("systemctl start berth-model@genesis", Ends(&[1], "true")),
];

const BUILDS: &str = "builds and tests Berth itself";
const NAME: &str = "the name of a verb";
const USERS: &str = "user.rs does all of it";

/// A command as it is written.
struct Written {
    page: String,
    line: usize,
    /// In a sentence, not in a block of its own.
    inline: bool,
    text: String,
}

/// The commands of a page, in their order.
fn written(page: &str, text: &str) -> Vec<Written> {
    let mut all = Vec::new();
    let mut line = 1;
    for (i, part) in text.split("```").enumerate() {
        let add = |offset: usize, inline: bool, text: &str| Written {
            page: page.to_owned(),
            line: line + offset,
            inline,
            text: text.to_owned(),
        };
        if i % 2 == 1 {
            let (language, body) = part.split_once('\n').unwrap_or_default();
            let prompted = language.is_empty();
            let mut lines = body.lines().enumerate();
            while let Some((at, first)) = lines.next() {
                if prompted && first.starts_with("$ ") {
                    all.push(add(at + 1, false, first));
                }
                if language != "sh" {
                    continue;
                }
                if first.contains("<<'EOF'") {
                    let rest: Vec<&str> =
                        lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "EOF").collect();
                    all.push(add(at + 1, false, &format!("{first}\n{}\nEOF\n", rest.join("\n"))));
                    continue;
                }
                let command = first.split(" # ").next().unwrap_or_default();
                all.extend(command.split(" && ").map(|part| add(at + 1, false, part.trim())));
            }
        } else {
            for (at, code) in part.split('`').enumerate().filter(|(at, _)| at % 2 == 1) {
                let before = part.split('`').take(at).map(|text| text.matches('\n').count()).sum();
                let code = code.split_whitespace().collect::<Vec<_>>().join(" ");
                let program = code.split(' ').next().unwrap_or_default();
                if PROGRAMS.contains(&program) && code != program {
                    all.extend(code.split(" && ").map(|part| add(before, true, part)));
                }
            }
        }
        line += part.matches('\n').count();
    }
    all.retain(|command| !command.text.is_empty());
    all
}

fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let mut names: Vec<String> = FIRST.map(str::to_owned).to_vec();
    for folder in ["docs", "docs/decisions"] {
        let found = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        let found = found.filter_map(|name| Some(format!("{folder}/{}", name.into_string().ok()?)));
        let mut found: Vec<String> =
            found.filter(|name| Path::new(name).extension().is_some_and(|it| it == "md")).collect();
        found.sort();
        names.extend(found.into_iter().filter(|name| !FIRST.contains(&name.as_str())));
    }
    names
        .into_iter()
        .map(|name| (fs::read_to_string(root.join(&name)).unwrap(), name))
        .map(|(a, b)| (b, a))
        .collect()
}

fn case(command: &str) -> Option<&'static (&'static str, How)> {
    CASES.iter().find(|(which, _)| match which.strip_suffix('*') {
        Some(begin) => command.starts_with(begin),
        None => command == *which,
    })
}

/// What somebody types for it.
fn typed(command: &str) -> String {
    let word = |word: &str| {
        let found = PLACEHOLDERS.iter().find(|(placeholder, _)| *placeholder == word);
        found.map_or_else(|| word.to_owned(), |(_, typed)| (*typed).to_owned())
    };
    if command.contains('\n') {
        command.to_owned()
    } else {
        command.split(' ').map(word).collect::<Vec<_>>().join(" ")
    }
}

/// Types a command on frank's terminal, and answers what it asks with yes.
fn on_terminal(machine: &Machine, command: &str, watches: bool) -> Output {
    let (user, command) = match command.strip_prefix("sudo ") {
        Some(command) => (None, command),
        None => (Some("frank"), command),
    };
    let line = if watches {
        format!("timeout --foreground --preserve-status -s INT 1 {command}")
    } else {
        command.to_owned()
    };
    machine.sandbox.write_file("/run/typed", format!("cd /home/frank\n{line}\n")).unwrap();
    // Its end would end what is typed as Ctrl-D does, after two seconds.
    let run = "export HOME=/home/frank USER=frank TERM=dumb PAGER=cat EDITOR=/opt/editor; \
               keys=$(mktemp -u) && mkfifo $keys && exec 3<>$keys && rm $keys && yes | head -9 >&3 && \
               exec script -qec 'sh /run/typed' /dev/null <&3";
    machine.sandbox.exec_within(Duration::from_secs(30), user, &["sh", "-c", run]).unwrap()
}

#[test]
fn what_the_docs_tell_to_type_does_what_they_say() {
    let package = package();
    let machine = Machine::boot(&[(&package, "berth.deb")]);
    prepare(&machine);
    let commands: Vec<Written> = pages().iter().flat_map(|(page, text)| written(page, text)).collect();
    let in_blocks: BTreeSet<_> = commands.iter().filter(|it| !it.inline).map(|it| it.text.clone()).collect();
    let (mut seen, mut used, mut wrong) = (BTreeSet::new(), BTreeSet::new(), String::new());
    {
        for command in &commands {
            if command.inline && (in_blocks.contains(&command.text) || !seen.insert(&command.text)) {
                continue;
            }
            let found = case(&command.text);
            used.extend(found.map(|(begin, _)| *begin));
            let (mut codes, mut text, mut watches) = (&[0][..], typed(&command.text), false);
            match found.map(|(_, how)| how) {
                Some(Not(_)) => continue,
                Some(After(first)) => _ = machine.root(first),
                Some(Watches) => (codes, watches) = (&[130], true),
                Some(Ends(with, first)) => {
                    codes = *with;
                    _ = machine.root(first);
                }
                Some(As(other, first)) => {
                    text = (*other).to_owned();
                    _ = machine.root(first);
                }
                None => {}
            }
            let begin = Instant::now();
            let output = on_terminal(&machine, &text, watches);
            let (code, ms) = (output.status.code().unwrap_or(-1), begin.elapsed().as_millis());
            println!("docs: {}:{} `{}`: {code} in {ms} ms", command.page, command.line, command.text);
            if std::env::var("SAY").is_ok() {
                println!("{}{}", output.stdout, output.stderr);
            }
            if !codes.contains(&code) {
                // Writing to a String cannot fail.
                _ = writeln!(
                    wrong,
                    "{}:{} `{}` ends with {code}, not {codes:?}:\n{}{}",
                    command.page, command.line, command.text, output.stdout, output.stderr
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let unused: Vec<_> =
        CASES.iter().map(|(begin, _)| begin).filter(|begin| !used.contains(**begin)).collect();
    assert!(unused.is_empty(), "no page has {unused:?} any more");
}

/// The machine of whom the docs speak: two hand-written services of frank's, one of which serves, and his files.
fn prepare(machine: &Machine) {
    let server = |flags: &str| {
        format!(
            "#!/bin/sh\n[ ! -e /run/broken ] || exit 1\n[ ! -e /run/slow ] || set -- \"$@\" --load-time 20s\n\
             exec /usr/bin/fakellm {flags} \"$@\"\n"
        )
    };
    let write = |path: &str, text: &str| machine.sandbox.write_file(path, text).unwrap();
    write("/opt/vllm/bin/vllm", &server("--style vllm --vram-each 14300MiB"));
    write("/opt/llama.cpp/llama-server", &server("--vram-each 6000MiB"));
    for (unit, model, port) in [("genesis", "int4", 8022), ("aeon", "nvfp4", 8021)] {
        write(
            &format!("/etc/systemd/system/{unit}.service"),
            &format!(
                "[Service]\nUser=frank\nExecStart=/opt/vllm/bin/vllm serve /models/qwen3.6-27b-{model} \
                 --tensor-parallel-size 2 --port {port}\nRestart=always\n\n[Install]\nWantedBy=multi-user.target\n"
            ),
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("weights");
    safetensors::write_hollow(&weights, &[("model.layers.0.mlp.up_proj.weight", "U8", 8, &[64, 1 << 20])])
        .unwrap();
    write("/models/qwen3.6-27b-int4/config.json", CONFIG);
    machine
        .sandbox
        .write_file("/models/qwen3.6-27b-int4/model.safetensors", fs::read(&weights).unwrap())
        .unwrap();
    let gemma = models::gemma4_26b(Type::Other(3, 32, 18));
    machine.sandbox.write_file("/home/frank/models/gemma-4-26b.gguf", gemma.header()).unwrap();
    write("/opt/editor", "#!/bin/sh\nprintf '[Service]\\nUser=frank\\n' >>\"$1\"\n");
    machine.root(&format!(
        "chmod 755 /opt/editor /opt/*/llama-server /opt/vllm/bin/vllm && ln -s /opt/llama.cpp/llama-server /usr/local/bin/ && \
         cp -r /models/qwen3.6-27b-int4 /models/qwen3.6-27b-nvfp4 && truncate -s {} /home/frank/models/gemma-4-26b.gguf && \
         mkdir -p /home/frank/target/deb && cp /opt/berth.deb /home/frank/target/deb/berth_0.1_amd64.deb && \
         chown -R frank: /home/frank && systemctl daemon-reload && systemctl enable --quiet genesis aeon && \
         systemctl start genesis",
        gemma.length()
    ));
}

const CONFIG: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 64, "hidden_size": 5120,
 "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
 "torch_dtype": "bfloat16", "vocab_size": 151936}"#;
