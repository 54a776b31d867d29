//! Every command that README and docs tell people to type is typed here, on a terminal, page by page and line by line, on a
//! machine with hand-written services that Berth has not seen yet. A new one is run as it stands and has to succeed; what one
//! needs first, how else it ends, or why it can't be run here, is in [`CASES`].

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_tests::post;
use sandbox::Output;
use serde_json::json;
use shapes::gguf::Type;
use shapes::{models, safetensors};

use crate::package::{Machine, package};

/// These pages are read first; all others follow.
const FIRST: [&str; 5] =
    ["README.md", "docs/coming-from.md", "docs/configuration.md", "docs/security.md", "docs/metrics.md"];

/// What begins with one of these is a command, where it stands in a sentence.
const PROGRAMS: [&str; 17] = [
    "apt",
    "berthctl",
    "berthd",
    "cargo",
    "curl",
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
    /// It ends with one of these, after a command of root's.
    Ends(&'static [i32], &'static str),
    /// Another one is typed, after a command of root's.
    As(&'static str, &'static str),
    /// It goes on until Ctrl-C, which is no failure.
    Watches,
    /// It stands for all that this verb can be told: there has to be one.
    Verb,
    /// It is not run here, and why: that is for who reads this.
    Not(#[expect(dead_code)] &'static str),
}
use How::{After, As, Ends, Not, Verb, Watches};

/// By the command as it is written; one that ends with `*` is how it begins. Those of a page are in its order, since each
/// finds what those before it left.
const CASES: &[(&str, How)] = &[
    ("$ *", Not("recordings.rs and policies_tests.rs have what it says")),
    ("berthctl →*", Not("a picture")),
    ("berthd --user", Not(USERS)),
    ("cargo *", Not(BUILDS)),
    ("journalctl --user*", Not(USERS)),
    ("journalctl -u", Not("a beginning")),
    ("loginctl *", Not(USERS)),
    ("make*", Not(BUILDS)),
    ("man *", Not("package.rs looks at the pages; man itself is not everywhere")),
    ("nvidia-*", Not("the driver's own; here is no card")),
    ("ollama *", Not("Ollama's own")),
    ("setfacl *", Not("of the package acl, which is not everywhere")),
    ("sudo apt remove berth", Not(PACKAGE)),
    ("sudo apt purge berth", Not(PACKAGE)),
    ("sudo make install", Not(BUILDS)),
    ("sudo systemctl disable --now ollama", Not("Ollama's own")),
    ("systemctl --user*", Not(USERS)),
    ("systemctl edit user@.service", Not(USERS)),
    ("systemctl start", Not("a beginning")),
    ("systemctl status", Not("a beginning")),
    ("tailscale *", Not("Tailscale's own")),
    ("berthctl add", Verb),
    ("berthctl add WHAT", As("berthctl add --help", "true")),
    ("berthctl fit", Verb),
    ("berthctl key", Verb),
    ("berthctl plan", Verb),
    ("berthctl restart", Verb),
    ("berthctl setup", Verb),
    ("berthctl stop", Verb),
    ("berthctl switch", Verb),
    ("berthctl token", Verb),
    (
        "berthctl add /etc/containers/systemd/vllm.container",
        As(
            "berthctl add /etc/containers/systemd/vllm.container --dry-run",
            "mkdir -p /etc/containers/systemd; printf '[Container]\\nImage=vllm/vllm-openai\\nExec=--model a/b\\nNetwork=host\\n' \
             >/etc/containers/systemd/vllm.container",
        ),
    ),
    // README
    ("sudo berthctl setup --undo", After("berthctl stop --all")),
    (
        "sudo tee /etc/berth/models.d/genesis.toml*",
        After("berthctl setup --undo --yes; systemctl stop aeon genesis"),
    ),
    (
        "sudo berthctl add genesis.service",
        After("berthctl stop --all; rm -f /etc/berth/models.d/genesis.toml"),
    ),
    (
        "berthctl cancel",
        After(
            "berthctl stop --all; rm /etc/berth/models.d/genesis.toml && berthctl setup --yes && berthctl switch genesis && \
             touch /run/slow && systemd-run --quiet berthctl restart genesis && sleep 0.5 && rm /run/slow",
        ),
    ),
    // Coming from elsewhere
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
    (
        "sudo berthctl add ~/models/gemma-4-26b.gguf*",
        After("kill $(cat /run/pid); berthctl remove fakellm --yes"),
    ),
    ("sudo berthctl remove MODEL", After("berthctl add genesis.service --yes")),
    ("berthctl stop MODEL", After("berthctl add genesis.service --yes && berthctl switch genesis")),
    // Configuration. In place of setfacl.
    ("berthctl switch gemma --set ctx=16384 --set kv=q8_0", After("chmod o+x /home/frank")),
    ("sudo install -m 600 hf /etc/berth/secrets/hf", After("echo hf_5ecret >/home/frank/hf")),
    // Operations
    ("berthctl status --watch", Watches),
    ("berthctl logs genesis -f", Watches),
    ("berthctl events -f", Watches),
    ("sudo berthctl doctor*", Ends(&[0, 1], "true")),
    ("berthctl doctor", Ends(&[0, 1], "true")),
    ("berthctl back", After("berthctl switch genesis && berthctl restart genesis")),
    (
        "sudo journalctl -u berthd -o verbose -g '^request$'",
        After(
            "mkdir /run/systemd/system/berthd.service.d && printf '[Service]\\nEnvironment=BERTH_LOG=info,berthd::proxy=debug\\n' \
             >/run/systemd/system/berthd.service.d/log.conf && systemctl daemon-reload && systemctl restart berthd && \
             curl -fsS -d '{\"model\": \"default\", \"prompt\": \"count\"}' http://127.0.0.1:8010/v1/completions",
        ),
    ),
    (
        "berthctl retry MODEL",
        After(
            "printf '[restart]\\nfailures = 1\\n' >/etc/berth/berth.toml && berthctl reload && berthctl switch genesis && \
             touch /run/broken && systemctl kill -s KILL berth-model@genesis && \
             until berthctl status | grep -q quarantined; do sleep 0.1; done; rm /run/broken",
        ),
    ),
    ("sudo systemctl start berth-model@genesis", Ends(&[1], "berthctl stop genesis")),
    ("sudo systemctl stop berth-model@genesis", After("berthctl switch genesis")),
];

const BUILDS: &str = "builds and tests Berth itself";
const PACKAGE: &str = "package.rs does it, and looks at what is left";
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
        let mut add = |line: usize, text: &str| {
            let (page, inline) = (page.to_owned(), i % 2 == 0);
            all.push(Written { page, line, inline, text: text.trim().to_owned() });
        };
        if i % 2 == 1 {
            in_block(part, |at, text| add(line + at, text));
        } else {
            in_sentences(part, |at, text| add(line + at, text));
        }
        line += part.matches('\n').count();
    }
    all.retain(|command| !command.text.is_empty());
    all
}

/// What is typed into a shell; of what a terminal shows, what follows its prompt.
fn in_block(block: &str, mut add: impl FnMut(usize, &str)) {
    let (language, body) = block.split_once('\n').unwrap_or_default();
    let mut lines = body.lines().zip(1..);
    while let Some((line, at)) = lines.next() {
        if language.is_empty() && line.starts_with("$ ") {
            add(at, line);
        } else if language == "sh" && line.ends_with("<<'EOF'") {
            let rest: Vec<&str> =
                lines.by_ref().map(|(line, _)| line).take_while(|line| *line != "EOF").collect();
            add(at, &format!("{line}\n{}\nEOF", rest.join("\n")));
        } else if language == "sh" {
            let command = line.split(" #").next().unwrap_or_default();
            command.split(" && ").for_each(|command| add(at, command));
        }
    }
}

fn in_sentences(text: &str, mut add: impl FnMut(usize, &str)) {
    let mut at = 0;
    for (i, part) in text.split('`').enumerate() {
        let code = part.split_whitespace().collect::<Vec<_>>().join(" ");
        let program = code.split(' ').next().unwrap_or_default();
        if i % 2 == 1 && PROGRAMS.contains(&program) && code != program {
            code.split(" && ").for_each(|command| add(at, command));
        }
        at += part.matches('\n').count();
    }
}

/// Every command of every page.
fn all() -> Vec<Written> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let mut pages: Vec<String> = FIRST.map(str::to_owned).to_vec();
    for folder in ["docs", "docs/decisions"] {
        let names = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        let paths = names.map(|name| format!("{folder}/{}", name.to_str().unwrap()));
        let mut found: Vec<_> =
            paths.filter(|path| Path::new(path).extension().is_some_and(|it| it == "md")).collect();
        found.sort();
        pages.extend(found.into_iter().filter(|page| !FIRST.contains(&page.as_str())));
    }
    pages.iter().flat_map(|page| written(page, &fs::read_to_string(root.join(page)).unwrap())).collect()
}

fn case(command: &str) -> Option<&'static (&'static str, How)> {
    CASES.iter().find(|(which, _)| match which.strip_suffix('*') {
        Some(begin) => command.starts_with(begin),
        None => command == *which,
    })
}

/// With what a reader types in place of words that stand for others.
fn filled_in(command: &str) -> String {
    let word =
        |word| PLACEHOLDERS.iter().find(|(placeholder, _)| *placeholder == word).map_or(word, |(_, it)| *it);
    command.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Types a command on frank's terminal, and answers with yes what it asks.
fn on_terminal(machine: &Machine, command: &str) -> Result<Output, String> {
    let (user, command) = match command.strip_prefix("sudo ") {
        Some(command) => (None, command),
        None => (Some("frank"), command),
    };
    machine.sandbox.write_file("/run/typed", format!("cd /home/frank\n{command}\n")).unwrap();
    // What ends its input would end what is typed, as Ctrl-D does.
    let run = "export HOME=/home/frank USER=frank TERM=dumb PAGER=cat EDITOR=/opt/editor; \
               keys=$(mktemp -u) && mkfifo $keys && exec 3<>$keys && rm $keys && yes | head -9 >&3 && \
               exec script -qec 'sh /run/typed' /dev/null <&3";
    let output = machine.sandbox.exec_within(Duration::from_secs(30), user, &["sh", "-c", run]);
    output.map_err(|error| format!("{error:#}"))
}

/// Runs a command as its case says. What is wrong with how it ended, if anything.
fn run(machine: &Machine, written: &Written, how: Option<&How>) -> Option<String> {
    let mut typed = filled_in(&written.text);
    let mut codes: &[i32] = &[0];
    let first = match how {
        Some(After(first)) => first,
        Some(Ends(with, first)) => {
            codes = with;
            first
        }
        Some(As(other, first)) => {
            (*other).clone_into(&mut typed);
            first
        }
        Some(Watches) => {
            codes = &[130];
            typed = format!("timeout --foreground --preserve-status -s INT 1 {typed}");
            ""
        }
        Some(Verb) => {
            typed.push_str(" --help");
            ""
        }
        Some(Not(_)) => return None,
        None => "",
    };
    if !first.is_empty() {
        machine.root(first);
    }
    let Written { page, line, text, .. } = written;
    let output = match on_terminal(machine, &typed) {
        Ok(output) => output,
        Err(why) => return Some(format!("{page}:{line}: `{text}`: {why}")),
    };
    let (code, said) = (output.status.code().unwrap_or(-1), output.stdout + &output.stderr);
    (!codes.contains(&code))
        .then(|| format!("{page}:{line}: `{text}` ends with {code}, not {codes:?}:\n{said}"))
}

/// First contact is among it: README's own commands, from the package to the first answer through the proxy.
#[test]
fn what_the_docs_tell_to_type_does_what_they_say() {
    let package = package();
    let machine = Machine::boot(&[(&package, "berth.deb")]);
    prepare(&machine);
    let commands = all();
    let in_blocks: BTreeSet<_> = commands.iter().filter(|it| !it.inline).map(|it| &it.text).collect();
    let (mut seen, mut used, mut wrong) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let (mut tried, mut answered, begin) = (0, None, Instant::now());
    for written in &commands {
        // Said again in a sentence it is no other command.
        if written.inline && (in_blocks.contains(&written.text) || !seen.insert(&written.text)) {
            continue;
        }
        let found = case(&written.text);
        used.extend(found.map(|(which, _)| *which));
        let how = found.map(|(_, how)| how);
        wrong.extend(run(&machine, written, how));
        tried += u32::from(!matches!(how, Some(Not(_))));
        if answered.is_none() && answers(&machine) {
            println!("docs: first_answer_ms={} commands={tried}", begin.elapsed().as_millis());
            answered = Some(tried);
        }
    }
    println!("docs: commands={tried} s={}", begin.elapsed().as_secs());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(answered.is_some_and(|commands| commands <= 3), "first contact took {answered:?} commands");
    let unused: Vec<_> =
        CASES.iter().map(|(which, _)| which).filter(|which| !used.contains(**which)).collect();
    assert!(unused.is_empty(), "no page has {unused:?} any more");
}

/// Whether clients get an answer.
fn answers(machine: &Machine) -> bool {
    let body = json!({ "prompt": "count", "max_tokens": 4 });
    let answer =
        post(machine.sandbox.pid1().unwrap(), 8010, "/v1/completions", &body, Duration::from_secs(5));
    answer.is_ok_and(|answer| answer.status == 200)
}

/// The machine of whom the docs speak: two hand-written services of frank's, of which one serves, a rival, and his files.
fn prepare(machine: &Machine) {
    let write = |path: &str, text: &str| machine.sandbox.write_file(path, text).unwrap();
    let server = |before: &str, flags: &str| {
        format!(
            "#!/bin/sh\n{before}\n[ ! -e /run/slow ] || set -- \"$@\" --load-time 20s\n\
             exec /usr/bin/fakellm {flags} \"$@\"\n"
        )
    };
    write(
        "/opt/vllm/bin/vllm",
        &server("[ ! -e /run/broken ] || exit 1", "--style vllm --gpu-memory-utilization 0.92"),
    );
    write("/opt/llama.cpp/llama-server", &server("", "--vram-each 7000MiB"));
    write("/opt/editor", "#!/bin/sh\nprintf '[Service]\\nUser=frank\\n' >>\"$1\"\n");
    let service = |name: &str, command: &str| {
        let text = format!(
            "[Service]\nUser=frank\nExecStart={command}\nRestart=always\n\n[Install]\nWantedBy=multi-user.target\n"
        );
        write(&format!("/etc/systemd/system/{name}.service"), &text);
    };
    for (name, weights, port) in [("genesis", "int4", 8022), ("aeon", "nvfp4", 8021)] {
        let flags = format!(
            "/models/qwen3.6-27b-{weights} --tensor-parallel-size 2 --gpu-memory-utilization 0.90 --port {port}"
        );
        service(name, &format!("/opt/vllm/bin/vllm serve {flags}"));
    }
    service("rival", "/usr/bin/sleep infinity");
    write(
        "/home/frank/llama-swap.yaml",
        "models:\n  tiny:\n    cmd: /opt/llama.cpp/llama-server -m /models/tiny.gguf --port 8090\n",
    );
    write("/models/qwen3.6-27b-int4/config.json", CONFIG);
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("model.safetensors");
    safetensors::write_hollow(&weights, &[("model.layers.0.mlp.up_proj.weight", "U8", 8, &[64, 1 << 20])])
        .unwrap();
    machine
        .sandbox
        .write_file("/models/qwen3.6-27b-int4/model.safetensors", fs::read(&weights).unwrap())
        .unwrap();
    // 15 GiB of weights.
    let gemma = models::gemma4_26b(Type::Other(3, 32, 20));
    machine.sandbox.write_file("/home/frank/models/gemma-4-26b.gguf", gemma.header()).unwrap();
    machine.root(&format!(
        "chmod 755 /opt/editor /opt/llama.cpp/llama-server /opt/vllm/bin/vllm && \
         ln -s /opt/llama.cpp/llama-server /usr/local/bin/ && cp -r /models/qwen3.6-27b-int4 /models/qwen3.6-27b-nvfp4 && \
         truncate -s {} /home/frank/models/gemma-4-26b.gguf && mkdir -p /home/frank/target/deb && \
         cp /opt/berth.deb /home/frank/target/deb/berth_0.1_amd64.deb && chown -R frank: /home/frank && \
         systemctl daemon-reload && systemctl enable --quiet genesis aeon && systemctl start genesis",
        gemma.length()
    ));
}

const CONFIG: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 64, "hidden_size": 5120,
 "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
 "torch_dtype": "bfloat16", "vocab_size": 151936}"#;
