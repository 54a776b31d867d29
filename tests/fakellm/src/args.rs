//! The command line: the servers' own words where they have some, and a flag for each misbehaviour.
#![allow(clippy::doc_markdown, reason = "clap shows these comments to people as they are")]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{CommandFactory, Parser, ValueEnum};
use gpusim::units::{parse_duration, parse_size};
use gpusim::visible::{Claims, parse_claim};

/// More flags, for when the command line is made by somebody else; split at white space.
const FLAGS_VARIABLE: &str = "FAKELLM_FLAGS";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Style {
    /// Listens at once and answers 503 while it loads.
    Llama,
    /// Listens once it has loaded.
    Vllm,
}

/// Which part of a family of processes this one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    Main,
    /// The child that serves for a parent that only waits.
    Server,
    /// A child that holds memory and does not go away by itself.
    Worker,
    /// Starts an escaped worker and ends, so that nobody is its parent.
    Escapee,
    /// A worker in a cgroup of its own.
    Escaped,
    /// The child that only listens.
    Listener,
}

/// A model server without a model. Flags of llama-server and vllm that mean nothing here are passed over with
/// a word on stderr; FAKELLM_FLAGS may hold more flags. From SIGUSR1 on /health never answers, from SIGUSR2 on
/// generating never ends.
#[derive(Debug, Clone, Parser)]
#[command(version, args_override_self = true)]
pub(crate) struct Arguments {
    #[arg(long)]
    pub port: Option<u16>,
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Listen here, whatever --host says.
    #[arg(long)]
    pub bind_host: Option<String>,
    #[arg(long, value_enum, default_value = "llama")]
    pub style: Style,
    /// The name in answers [default: from --model].
    #[arg(long, visible_aliases = ["alias", "served-model-name"])]
    pub model_name: Option<String>,
    /// A model's file or folder; only its name is used.
    #[arg(short, long)]
    pub model: Option<PathBuf>,
    #[arg(short, long, visible_aliases = ["ctx-size", "max-model-len"], default_value_t = 4096)]
    pub ctx: u64,

    /// DEVICE=SIZE: hold this much on the DEVICE-th visible GPU; may be repeated.
    #[arg(long, value_parser = parse_claim)]
    pub vram: Vec<(u32, u64)>,
    /// Hold this much on each visible GPU.
    #[arg(long, value_parser = parse_size)]
    pub vram_each: Option<u64>,
    /// As vLLM: refuse unless this part of each visible GPU is free, then hold it.
    #[arg(long)]
    pub gpu_memory_utilization: Option<f64>,
    /// DEVICE=SIZE: take this much more at the first prompt of --after-tokens.
    #[arg(long, value_parser = parse_claim)]
    pub grow: Vec<(u32, u64)>,
    /// How long the prompt is that makes it grow.
    #[arg(long, default_value_t = 1000)]
    pub after_tokens: u64,

    /// Memory is taken in ten steps over this time; ready afterwards.
    #[arg(long, value_parser = parse_duration, default_value = "0s")]
    pub load_time: Duration,
    /// The memory on GPUs is taken at once, and this much of the host's bit by bit over --load-time.
    #[arg(long, value_parser = parse_size)]
    pub load_rss: Option<u64>,
    /// Load for ever.
    #[arg(long)]
    pub never_ready: bool,
    /// Listen only once loaded (vllm does so anyway).
    #[arg(long)]
    pub bind_late: bool,
    /// Say this on stderr at the start; may be repeated.
    #[arg(long)]
    pub print: Vec<String>,
    /// End at once with this code.
    #[arg(long, num_args = 0..=1, default_missing_value = "1", value_name = "CODE")]
    pub exit_at_once: Option<u8>,
    /// Out of memory this long after the start, if still loading (not counted by gpusim).
    #[arg(long, value_parser = parse_duration)]
    pub oom_after: Option<Duration>,
    /// End this long after the start, with code 1 or by --die-signal.
    #[arg(long, value_parser = parse_duration)]
    pub die_after: Option<Duration>,
    /// The number of the signal to die of.
    #[arg(long)]
    pub die_signal: Option<i32>,
    #[arg(long)]
    pub ignore_sigterm: bool,
    /// Take this long to end after SIGTERM.
    #[arg(long, value_parser = parse_duration, default_value = "0s")]
    pub slow_stop: Duration,

    /// Time for each token.
    #[arg(long, value_parser = parse_duration, default_value = "0s")]
    pub token_delay: Duration,
    /// Answer nothing else while an answer is generated, and compute all the time.
    #[arg(long)]
    pub busy: bool,
    /// Say each prompt on stdout before anything is generated for it.
    #[arg(long)]
    pub say_prompts: bool,
    /// Generate nothing: answer with the request's body as it came, under the key `request`.
    #[arg(long)]
    pub echo: bool,
    /// /health never answers.
    #[arg(long)]
    pub hang_health: bool,
    /// /health is fine, generating never ends.
    #[arg(long)]
    pub no_generate: bool,
    /// /health is fine, generating fails with 500.
    #[arg(long)]
    pub generate_error: bool,

    /// Start a child in the same cgroup that ignores SIGTERM and outlives this process.
    #[arg(long)]
    pub fork_child: bool,
    /// DEVICE=SIZE: what the child (of --fork-child or --escape-child) holds.
    #[arg(long, value_parser = parse_claim)]
    pub child_vram: Vec<(u32, u64)>,
    /// Start such a child that nobody is the parent of, in the cgroup of --escape-to if that is allowed.
    #[arg(long)]
    pub escape_child: bool,
    /// A cgroup's folder, made if missing.
    #[arg(long)]
    pub escape_to: Option<PathBuf>,
    /// A child does all the work; this process only passes SIGTERM on to it.
    #[arg(long)]
    pub serve_from_child: bool,

    /// Start a child that only listens at this address with port; at one of IPv6 for that alone.
    #[arg(long)]
    pub child_listens: Option<SocketAddr>,
    /// How long after the start it does.
    #[arg(long, value_parser = parse_duration, default_value = "0s")]
    pub child_listens_after: Duration,

    #[arg(long, hide = true, value_enum, default_value = "main")]
    pub role: Role,
}

impl Arguments {
    /// The model's name in answers.
    pub(crate) fn name(&self) -> String {
        let of_file = || self.model.as_deref().and_then(Path::file_stem).map(|s| s.to_string_lossy().into());
        self.model_name.clone().or_else(of_file).unwrap_or_else(|| "fake".to_owned())
    }

    /// What it holds by declaration.
    pub(crate) fn claims(&self) -> Claims {
        Claims { on: self.vram.clone(), each: self.vram_each }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> (String, u16) {
        let default = if self.style == Style::Llama { 8080 } else { 8000 };
        (self.bind_host.as_ref().unwrap_or(&self.host).clone(), self.port.unwrap_or(default))
    }
}

/// The flags of this process, without those that mean nothing here.
pub(crate) fn parse() -> Arguments {
    let mut all: Vec<OsString> = std::env::args_os().collect();
    let more = std::env::var(FLAGS_VARIABLE).unwrap_or_default();
    all.extend(more.split_whitespace().map(OsString::from));
    let (known, passed_over) = sieve(all);
    let arguments = Arguments::parse_from(known);
    if arguments.role == Role::Main && !passed_over.is_empty() {
        eprintln!("fakellm: passing over {}", passed_over.join(" "));
    }
    arguments
}

/// Separates flags that are known here, with their values, from all else.
fn sieve(all: Vec<OsString>) -> (Vec<OsString>, Vec<String>) {
    let command = Arguments::command();
    let known = |flag: &str| {
        let name = flag.split('=').next().unwrap_or_default();
        let long = |a: &clap::Arg| {
            let names = a.get_long().into_iter().chain(a.get_all_aliases().unwrap_or_default());
            names.map(|l| format!("--{l}")).any(|l| l == name)
        };
        let short = |a: &clap::Arg| a.get_short().is_some_and(|s| format!("-{s}") == name);
        let found = command.get_arguments().find(|a| long(a) || short(a));
        found.map(|a| a.get_action().takes_values()).or(match name {
            "--help" | "-h" | "--version" | "-V" => Some(false),
            _ => None,
        })
    };
    let (mut kept, mut passed_over) = (Vec::new(), Vec::new());
    let mut words = all.into_iter().peekable();
    kept.extend(words.next());
    while let Some(word) = words.next() {
        let text = word.to_string_lossy().into_owned();
        let known = text.starts_with('-').then(|| known(&text)).flatten();
        let value = |next: &OsString| !next.to_string_lossy().starts_with('-');
        if let Some(takes_value) = known {
            kept.push(word);
            if takes_value && !text.contains('=') {
                kept.extend(words.next_if(value));
            }
        } else {
            passed_over.push(text.clone());
            if text.starts_with('-') && !text.contains('=') {
                passed_over.extend(words.next_if(value).map(|v| v.to_string_lossy().into_owned()));
            }
        }
    }
    (kept, passed_over)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(line: &str) -> (Arguments, Vec<String>) {
        let (known, passed_over) = sieve(line.split_whitespace().map(OsString::from).collect());
        (Arguments::try_parse_from(known).unwrap(), passed_over)
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_servers_own_command_lines_are_understood() {
        let (a, passed_over) =
            parsed("fakellm -m /models/aeon.gguf -ngl 99 --port 8022 -fa on --alias x -c 8192 --jinja");
        assert_eq!((a.port, a.name().as_str(), a.ctx), (Some(8022), "x", 8192));
        assert_eq!(passed_over, ["-ngl", "99", "-fa", "on", "--jinja"]);
        let (a, passed_over) = parsed(
            "fakellm serve /models/q --tensor-parallel-size=2 --gpu-memory-utilization 0.9 --style vllm",
        );
        assert_eq!((a.gpu_memory_utilization, a.style), (Some(0.9), Style::Vllm));
        assert_eq!(passed_over, ["serve", "/models/q", "--tensor-parallel-size=2"]);
    }

    #[test]
    fn an_exit_code_may_be_left_out() {
        assert_eq!(parsed("fakellm --exit-at-once").0.exit_at_once, Some(1));
        assert_eq!(parsed("fakellm --exit-at-once 0 --port 1").0.exit_at_once, Some(0));
        assert_eq!(parsed("fakellm").0.exit_at_once, None);
    }

    #[test]
    fn later_flags_win() {
        assert_eq!(parsed("fakellm --port 1 --port 2").0.port, Some(2));
        assert_eq!(parsed("fakellm --vram 0=1 --vram 1=2").0.vram, [(0, 1), (1, 2)]);
    }
}
