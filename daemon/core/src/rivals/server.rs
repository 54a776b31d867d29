//! Which model server a command line runs: known by the program's name, also behind the words that people put before
//! it (`env`, `numactl`, a shell, Python, a container engine). What is not known here is found when it holds memory.

use crate::backend;
use crate::config::BackendKind;

/// Servers for models besides those that Berth runs itself: names of programs, of Python modules and of container
/// images, and of the folders that people start some of them from; in lower case.
const SERVERS: &[&str] = &[
    "aphrodite",
    "comfyui",
    "exllama",
    "exllamav2",
    "exllamav3",
    "koboldcpp",
    "llama-swap",
    "llama.cpp",
    "llama_cpp",
    "llamafile",
    "lmdeploy",
    "local-ai",
    "localai",
    "mistralrs-server",
    "mlc_llm",
    "ollama",
    "sglang",
    "stable-diffusion-webui",
    "tabbyapi",
    "text-generation-inference",
    "text-generation-launcher",
    "text-generation-webui",
    "tritonserver",
    "trtllm-serve",
    "vllm",
    "vllm-openai",
    "xinference-local",
];

/// Names under which the scripts in such a folder start the server.
const STARTS: &[&str] = &["launch", "main", "run", "serve", "server", "start", "start_linux", "webui"];

/// Programs that run the program that their arguments name.
const WRAPPERS: &[&str] = &[
    "chrt",
    "conda",
    "env",
    "flock",
    "ionice",
    "mamba",
    "micromamba",
    "nice",
    "nohup",
    "numactl",
    "pixi",
    "poetry",
    "prlimit",
    "runuser",
    "setpriv",
    "setsid",
    "stdbuf",
    "sudo",
    "taskset",
    "time",
    "timeout",
    "uv",
    "uvx",
];

/// Their options whose value could be taken for a server: users and environments are called like what they are for.
const NAMING: &[&str] = &["-u", "--user", "-g", "--group", "-n", "--name", "-p", "--prefix"];

const SHELLS: &[&str] = &["ash", "bash", "dash", "ksh", "sh", "zsh"];

const CONTAINERS: &[&str] = &["docker", "nerdctl", "podman"];

/// The model server that a command line runs, by its name; None where it runs none that is known.
pub fn server_of(command: &[String]) -> Option<String> {
    let (program, args) = command.split_first()?;
    let base = base_name(program);
    match backend::kind_of(program, args) {
        BackendKind::LlamaCpp => return Some(base.to_owned()),
        BackendKind::Vllm => return Some("vllm".to_owned()),
        BackendKind::Command => {}
    }
    if WRAPPERS.contains(&base) {
        wrapped(args)
    } else if SHELLS.contains(&base) {
        match args.iter().position(|arg| arg.starts_with('-') && !arg.starts_with("--") && arg.contains('c'))
        {
            Some(flag) => in_script(args.get(flag + 1)?),
            None => wrapped(args),
        }
    } else if base.starts_with("python") {
        match args.iter().position(|arg| arg == "-m") {
            Some(flag) => known(args.get(flag + 1)?.split('.').next()?),
            None => wrapped(args),
        }
    } else if CONTAINERS.contains(&base) {
        args.iter().find_map(|arg| image(arg))
    } else {
        known(base).or_else(|| by_folder(program))
    }
}

/// The server among a wrapper's arguments.
fn wrapped(args: &[String]) -> Option<String> {
    let may_start = |at: &usize| {
        let named = at.checked_sub(1).is_some_and(|before| NAMING.contains(&args[before].as_str()));
        !args[*at].starts_with('-') && !named
    };
    (0..args.len()).filter(may_start).find_map(|at| server_of(&args[at..]))
}

/// The server that one of a shell's commands runs.
fn in_script(script: &str) -> Option<String> {
    script.split(['\n', ';', '&', '|', '(', ')', '{', '}']).find_map(|command| {
        let words = shell_words::split(command)
            .unwrap_or_else(|_| command.split_whitespace().map(str::to_owned).collect());
        let begins =
            |word: &String| word != "exec" && !word.split('/').next().is_some_and(|w| w.contains('='));
        server_of(&words[words.iter().position(begins)?..])
    })
}

/// The server in a container image: `ghcr.io/ggml-org/llama.cpp:server-cuda`.
fn image(word: &str) -> Option<String> {
    if word.starts_with(['-', '/', '.']) || word.contains('=') {
        return None;
    }
    let name = word.split('@').next()?;
    name.split('/').find_map(|part| known(part.split(':').next()?))
}

/// The server whose folder a start script lies in: `/opt/tabbyAPI/start.sh`.
fn by_folder(program: &str) -> Option<String> {
    let (folder, file) = program.rsplit_once('/')?;
    let stem = file.strip_suffix(".sh").or_else(|| file.strip_suffix(".py"))?;
    if STARTS.contains(&stem) { known(base_name(folder)) } else { None }
}

/// A server by its name, in whatever case and with the ending of a script.
fn known(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let stem = name.strip_suffix(".sh").or_else(|| name.strip_suffix(".py")).unwrap_or(&name);
    // These carry their version, the machine or the model in the name.
    if stem.starts_with("koboldcpp") {
        return Some("koboldcpp".to_owned());
    }
    if stem.ends_with(".llamafile") {
        return Some("llamafile".to_owned());
    }
    SERVERS.contains(&stem).then(|| stem.to_owned())
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}
