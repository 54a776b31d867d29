//! What can be typed: the verbs, their options and their help.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ColorChoice, Parser, Subcommand};

use berth_core::report::{Request, Rights, Verb};
use berth_observe::scope::Scope;

use crate::exit;

/// The verbs grouped as people look for them. A test holds it against the real list.
const GROUPS: &str = "\
{about}

Usage: berthctl [VERB] [OPTIONS]

See:
  (no verb)       who holds the GPUs and what serves; works without berthd too
  status          the same; --watch keeps it on the screen
  logs MODEL      what a model's server said; -f follows
  events          what Berth did; -f follows
  history         past swaps, or one by its number; --problems: what was wrong
  dashboard       an address that signs your browser in, once
Change:
  switch MODEL    make it `default`; stop only what is in the way
  start MODEL     add it beside the rest; never stops another
  stop MODEL      free its memory; it stays stopped (--all: every model)
  restart MODEL   the same again
  back            whatever served before
  cancel          give up the change under way; what served before serves again
  retry MODEL     start what is quarantined again
  reload          take up what is declared now; touches nothing that runs
  repair          go on from what a damaged ledger still tells; keeps the file
  device clear N  use a GPU that is suspect again at once
  key NAME        make a key for a client of the proxy; needs no berthd
  token NAME      make a token for a program that asks berthd over TCP
Declare:
  setup           look at this machine, and propose what to make Berth's of it;
                  asks for each change; --undo: the way back
  add WHAT        a service, a process, a model's file or llama-swap's
                  configuration becomes a model; nothing that runs is stopped
  remove MODEL    the way back: the service that it was is there again
Before you do:
  plan VERB …     say what a change would do, touch nothing
  fit WHAT        does a file, a folder's models or a declared model fit here?
  check           validate and explain the configuration; needs no berthd
When something is wrong:
  doctor          look at the machine: driver, units, files, ports and more
  help VERB       more on each, with an example

Options:
{options}{after-help}";

const AFTER: &str = "\
Examples:
  berthctl switch genesis           stop what is in the way, then serve genesis
  berthctl plan switch llama70b     would it fit? what would be stopped?
  berthctl back                     undo
";

const JSON: &str = "\
With --json, on standard output (`schema` is 1; fields may be added to it):
  status, plan, fit, check, doctor, history, reload, repair, device clear, key,
  token, dashboard, setup, add, remove
                        one document
  events, logs          one document a line
  switch, start, stop, restart, back, retry, cancel
                        one event a line while it is followed; the last line has
                        `exit` and one of `swap` (how it ended), `accepted`
                        (--no-wait, or nothing to do) or `problem`
  any verb that fails   a last line with `exit` and `problem` (`code`, `title`,
                        `hints`)";

/// Switch GPU models safely: the next one starts when the memory is measured free.
#[derive(Debug, Parser)]
#[command(name = "berthctl", version, help_template = GROUPS, max_term_width = 80)]
#[command(after_help = format!("{AFTER}\n{}\n\n{JSON}", exit::EXPLAINED))]
pub(crate) struct Cli {
    /// What to do; without one: `status`.
    #[command(subcommand)]
    pub(crate) verb: Option<Command>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Your own Berth (berthd --user), also where the machine has one
    #[arg(long, global = true)]
    pub(crate) user: bool,
    /// berthd's socket; /run/berth/berth.sock, else that of your own berthd
    #[arg(long, global = true, value_name = "PATH", env = "BERTH_SOCKET", hide_env_values = true)]
    pub(crate) socket: Option<PathBuf>,
    /// When to use colours: auto, always or never; NO_COLOR is honoured
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    pub(crate) color: ColorChoice,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show who holds the GPUs and what serves
    #[command(after_help = "Example:\n  berthctl status --watch")]
    Status {
        /// Keep it on the screen, renewed every second, until Ctrl-C
        #[arg(long, short)]
        watch: bool,
        /// As a page in Markdown, to be put where others read it
        #[arg(long, conflicts_with_all = ["watch", "json"])]
        markdown: bool,
    },
    /// Make a model `default`; stop only what is in the way
    #[command(after_help = "Examples:\n  berthctl switch genesis --timeout 5m\n  \
        berthctl switch genesis --set ctx=16384 --set kv=q8_0\n\n\
        Ctrl-C stops watching, not the switch.")]
    Switch {
        #[command(flatten)]
        which: SetArg,
        #[command(flatten)]
        wait: Wait,
    },
    /// Add a model beside the rest; never stops another
    #[command(after_help = "Example:\n  berthctl start embedder")]
    Start {
        #[command(flatten)]
        which: SetArg,
        #[command(flatten)]
        wait: Wait,
    },
    /// Free a model's memory; it stays stopped, over a reboot too
    #[command(after_help = "Examples:\n  berthctl stop aeon\n  berthctl stop --all")]
    Stop {
        #[command(flatten)]
        which: StopArg,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stop a model and start it again
    #[command(after_help = "Example:\n  berthctl restart genesis")]
    Restart {
        #[command(flatten)]
        model: ModelArg,
        #[command(flatten)]
        wait: Wait,
    },
    /// Go back to whatever served before
    #[command(after_help = "Example:\n  berthctl back")]
    Back {
        #[command(flatten)]
        wait: Wait,
    },
    /// Give up the change under way; what served before serves again
    ///
    /// What was stopped is started again, once its memory is proved free: nothing is started over memory that is still
    /// held. A stop that has begun can't be cancelled, nor what berthd does by itself: that gives way to what you ask for.
    #[command(after_help = "Example:\n  berthctl cancel\n\n\
        Exits 0 when what served before serves again, 3 where there is nothing to\n\
        cancel.")]
    Cancel {
        /// Only if it is this one, by its number
        #[arg(value_name = "NUMBER")]
        swap: Option<u64>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Start a model again that is quarantined since it kept failing
    #[command(after_help = "Example:\n  berthctl retry genesis\n\n\
        A model of those that should serve is quarantined when it fails too often;\n\
        its fallback serves meanwhile, and makes room for it when it is retried.")]
    Retry {
        #[command(flatten)]
        model: ModelArg,
        #[command(flatten)]
        wait: Wait,
    },
    /// Mend a damaged ledger; models that run go on
    ///
    /// The damaged file is kept as /var/lib/berth/ledger.damaged-TIME. From now
    /// on the last line of it counts whose checksum is right; where there is
    /// none, Berth begins anew from what runs, and nothing is home until you
    /// switch or start a model. With a sound ledger nothing is changed.
    #[command(after_help = "Example:\n  berthctl repair\n\n\
        Exits 3 where a new ledger can't be written; nothing was changed then.")]
    Repair,
    /// Say what a change would do, touch nothing
    #[command(after_help = "Example:\n  berthctl plan switch llama70b\n\n\
        Exits 3 where the change would be refused.")]
    Plan {
        #[command(subcommand)]
        verb: PlanVerb,
    },
    /// Does it fit? A model's file, a folder of models or a declared model
    ///
    /// Read from headers, without berthd: weights and KV to the byte, buffers estimated. Models of Berth that run
    /// count as absent, what others hold does not. A GGUF file is judged as llama-server would load it, a folder with
    /// config.json and safetensors files as vLLM would, a declared model with its own flags and policy.
    #[command(
        after_help = "Examples:\n  berthctl fit ~/models/gemma-4-26b-a4b-q4_k_m.gguf --ctx 32768 --kv q8_0\n  \
        berthctl fit ~/models --gpus 2x15.9GiB\n  berthctl fit genesis --json\n\n\
        Exits 0 where it fits, of a folder where any does; 3 where it does not;\n\
        2 where there is nothing to judge, or no GPU can be seen and none is given."
    )]
    Fit {
        /// A path, else the name of a declared model
        #[arg(value_name = "FILE|DIR|MODEL")]
        what: PathBuf,
        #[command(flatten)]
        options: FitOptions,
    },
    /// Take a GPU as it is
    #[command(after_help = "Example:\n  berthctl device clear 1")]
    Device {
        #[command(subcommand)]
        verb: DeviceVerb,
    },
    /// Show what a model's server said
    #[command(after_help = "Example:\n  berthctl logs qwen32b -n 30")]
    Logs {
        #[command(flatten)]
        model: ModelArg,
        /// Go on with new lines until Ctrl-C
        #[arg(long, short)]
        follow: bool,
        /// How many of the last lines to show
        #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
        lines: u32,
    },
    /// Show what Berth did
    #[command(after_help = "Example:\n  berthctl events -f")]
    Events {
        /// Go on with new ones until Ctrl-C
        #[arg(long, short)]
        follow: bool,
        /// How many of the last ones to show
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
        last: u32,
    },
    /// Show past swaps, newest first, or what was wrong
    #[command(
        after_help = "Examples:\n  berthctl history\n  berthctl history 12\n  berthctl history --problems -n 50\n\n\
        How long it is kept is declared in [history] of berth.toml."
    )]
    History {
        /// Show this one with its steps
        #[arg(value_name = "NUMBER")]
        swap: Option<u64>,
        /// What was wrong, and until when
        #[arg(long, conflicts_with = "swap")]
        problems: bool,
        /// How many of the last ones to show, up to 500
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20, conflicts_with = "swap",
            value_parser = clap::value_parser!(u32).range(1..=500))]
        last: u32,
    },
    /// Make a key for a client of the proxy; needs no berthd
    #[command(after_help = "Example:\n  berthctl key frank\n\n\
        The key is printed once and kept nowhere; what is printed with it goes into berth.toml.")]
    Key {
        /// Whose it is: letters, digits, `-` and `_`
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Make a token for a program that asks berthd over TCP
    ///
    /// Needs no berthd: it prints the token and the lines for berth.toml, which hold its hash alone.
    #[command(after_help = "Example:\n  berthctl token prometheus --rights read")]
    Token {
        /// Who it is for
        #[arg(value_name = "NAME")]
        name: String,
        /// What it opens; each includes those before it
        #[arg(long, value_name = "read|plan|operate", default_value = "read", value_parser = rights)]
        rights: Rights,
    },
    /// Take up what is declared now, without a restart of berthd
    ///
    /// All of it is validated before anything changes, and what differs is shown. Nothing that runs is touched: a model
    /// whose declaration changed is marked until it is restarted.
    #[command(after_help = "Example:\n  berthctl reload --check\n\n\
        Exits 2 where the configuration is not valid, 3 while a swap is under way.")]
    Reload {
        /// Show what would change, and change nothing
        #[arg(long)]
        check: bool,
    },
    /// Look at this machine, and make what serves models here Berth's
    ///
    /// Shows the GPUs and who holds them, services that serve a model or would at boot, models' files and which of them
    /// fit, and what the machine lacks. Then proposes, and asks for each: to start berthd, and to add each such service as
    /// `add` does: declared as it is, run as the same user, disabled and masked, and not stopped. Common folders are looked
    /// into for models (~/models, /models, /srv/models, Hugging Face's cache), and those that are named.
    #[command(after_help = "Examples:\n  berthctl setup --dry-run\n  sudo berthctl setup\n  \
        sudo berthctl setup /mnt/weights --yes\n  sudo berthctl setup --undo\n\n\
        Exits 3 where Berth can't work yet, or where --undo would take a model away\n\
        that runs; nothing was changed then. Exits 5 where something is left to do.")]
    Setup(SetupOptions),
    /// Make a service, a process, a model's file or llama-swap's models Berth's
    ///
    /// Shows the declaration that it comes to, all that will change, and what can't be taken over with the reason; then
    /// asks. Every flag is kept. A service is disabled and masked, so that nothing but Berth starts it, and not stopped:
    /// it goes on as the model. What is changed is recorded, for `berthctl remove`.
    #[command(
        after_help = "Examples:\n  sudo berthctl add genesis.service\n  berthctl add ./genesis.service --dry-run\n  \
        sudo berthctl add ~/models/gemma-4-26b.gguf --name gemma\n  sudo berthctl add 4711\n  \
        sudo berthctl add ~/llama-swap.yaml\n\n\
        Exits 2 where it can't be read or is not valid, 3 where it can't be taken over;\n\
        nothing was changed then."
    )]
    Add {
        /// A service's name or file, a Quadlet file, a process's number, a GGUF file, a folder with config.json, or llama-swap's YAML
        #[arg(value_name = "WHAT")]
        what: String,
        #[command(flatten)]
        options: AddOptions,
    },
    /// Take a model out of Berth; the service that it was comes back
    ///
    /// All that `add` changed is put back as it was. A model that somebody declared by hand is removed with the drop-ins
    /// of its unit, and with --unit becomes a service of its own. It is refused while the model runs.
    #[command(after_help = "Example:\n  sudo berthctl remove genesis\n\n\
        Exits 3 while the model runs; nothing was changed then.")]
    Remove {
        /// The model's name
        #[arg(value_name = "MODEL")]
        model: String,
        /// Write a service NAME.service that runs it as declared; it is neither enabled nor started
        #[arg(long)]
        unit: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Show what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Print an address that signs your browser in to the dashboard, once
    ///
    /// What you may do there is what you may do here.
    #[command(after_help = "Example:\n  berthctl dashboard")]
    Dashboard,
    /// Look for what is wrong with this machine; changes nothing, needs no berthd
    ///
    /// The driver and the GPUs, services that would take them at boot, whether models' servers can read their files and
    /// have the memory, ports and who listens where, what Berth itself needs. Each finding says what shows it and the
    /// command that mends it. With sudo more can be seen; what can't be is said.
    #[command(after_help = "Examples:\n  sudo berthctl doctor\n  sudo berthctl doctor ssh.service\n\n\
        Exits 0 where nothing is wrong, 1 where something is or could not be looked at.")]
    Doctor {
        /// Units whose orderings and requirements are looked at too, beside Berth's
        #[arg(value_name = "UNIT")]
        units: Vec<String>,
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Validate and explain the configuration; needs no berthd
    #[command(after_help = "Example:\n  berthctl check --config ./etc\n\nExits 2 where it is not valid.")]
    Check {
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Write man pages, completions and schemas into a folder, for an installation
    #[command(hide = true)]
    Generate {
        /// The folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SetupOptions {
    /// Folders with models, besides the common ones
    #[arg(value_name = "FOLDER", conflicts_with = "undo")]
    pub(crate) folders: Vec<PathBuf>,
    /// Stop each service that becomes a model, too: its answers are cut off, its memory is free
    #[arg(long, conflicts_with = "undo")]
    pub(crate) stop: bool,
    /// Put back all that setup changed, the last change first; refused while one of its models runs
    #[arg(long)]
    pub(crate) undo: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Default, Args)]
pub(crate) struct AddOptions {
    /// The model's name, where it is one; without it that of the service or file
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Let the server run as this user, not as the service did
    #[arg(long, value_name = "USER")]
    pub(crate) run_as: Option<String>,
    /// Leave out the flags that say which GPUs and what goes where
    #[arg(long)]
    pub(crate) let_berth_place: bool,
    /// Stop the service too: its answers are cut off, its memory is free
    #[arg(long)]
    pub(crate) stop: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ModelArg {
    /// The model's name or one of its aliases
    #[arg(value_name = "MODEL")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArg {
    /// The folder with berth.toml, models.d and policies.d; /etc/berth, or your own Berth's
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
}

impl ConfigArg {
    /// The folder.
    pub(crate) fn folder(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| Scope::this().config())
    }
}

#[derive(Debug, Args)]
pub(crate) struct SetArg {
    #[command(flatten)]
    model: ModelArg,
    /// Try it with another ctx, kv, slots, policy …, without declaring it; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct StopArg {
    /// The model's name or one of its aliases
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// Every model
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Watch for at most this long (90s, 2m, 1m30s), then exit 7; the change itself goes on
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "no_wait")]
    pub(crate) timeout: Option<Duration>,
    /// Exit as soon as berthd has accepted it
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// Settings and devices other than what is declared and here.
#[derive(Debug, Args)]
pub(crate) struct FitOptions {
    /// Tokens of context, of all slots together; the model's own length where it is not given
    #[arg(long, value_name = "N")]
    pub(crate) ctx: Option<String>,
    /// How keys and values are kept: f16, q8_0, q4_0 …
    #[arg(long, value_name = "TYPE", conflicts_with_all = ["kv_k", "kv_v"])]
    pub(crate) kv: Option<String>,
    /// How keys are kept
    #[arg(long, value_name = "TYPE")]
    pub(crate) kv_k: Option<String>,
    /// How values are kept
    #[arg(long, value_name = "TYPE")]
    pub(crate) kv_v: Option<String>,
    /// Requests that are answered at once
    #[arg(long, value_name = "N")]
    pub(crate) slots: Option<String>,
    /// Tokens that are computed at once
    #[arg(long, value_name = "N")]
    pub(crate) ubatch: Option<String>,
    /// Whether slots share one pool of context: true or false
    #[arg(long, value_name = "BOOL")]
    pub(crate) unified: Option<String>,
    /// Empty GPUs instead of those here: 2x15.9GiB, or 24GiB,16GiB; none for the CPU alone
    #[arg(long, value_name = "GPUS")]
    pub(crate) gpus: Option<String>,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlanVerb {
    /// Making a model `default`
    Switch(SetArg),
    /// Adding a model beside the rest
    Start(SetArg),
    /// Freeing a model's memory
    Stop(StopArg),
    /// Stopping a model and starting it again
    Restart(ModelArg),
    /// Going back to whatever served before
    Back,
    /// Starting a quarantined model again
    Retry(ModelArg),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceVerb {
    /// Use a suspect GPU again at once, and wait no longer for memory there that nobody can be named for
    ///
    /// A GPU that was lost, reported a critical Xid, was silent or contradicted itself is suspect: nothing is placed
    /// there until it was read soundly for a while. This ends that at once; what is wrong with it anew makes it
    /// suspect again.
    ///
    /// Where a model ended and memory of it did not come back, that is given up too, if all its processes are gone
    /// and none is listed on this GPU: it counts as foreign use from then on. The answer says how much it was and
    /// whose. Memory of a process that still runs or is listed is never given up.
    #[command(after_help = "Examples:\n  berthctl device clear 1\n  \
        berthctl device clear GPU-8fe1c2d4-3a31-4c1e-9f0b-2f6d1f7f4a55\n\n\
        Exits 0 also where there was nothing to clear, 3 where there is no such GPU.")]
    Clear {
        /// Its index, as `berthctl status` shows it, or its UUID
        #[arg(value_name = "GPU")]
        gpu: String,
    },
}

impl PlanVerb {
    /// What to ask berthd.
    pub(crate) fn request(self) -> Request {
        match self {
            Self::Switch(which) => which.request(Verb::Switch),
            Self::Start(which) => which.request(Verb::Start),
            Self::Stop(which) => which.request(),
            Self::Restart(model) => request(Verb::Restart, model),
            Self::Back => bare(Verb::Back),
            Self::Retry(model) => request(Verb::Retry, model),
        }
    }
}

impl StopArg {
    /// What to ask berthd.
    pub(crate) fn request(self) -> Request {
        let verb = if self.all { Verb::StopAll } else { Verb::Stop };
        Request { model: self.model, ..bare(verb) }
    }
}

impl SetArg {
    /// What to ask berthd.
    pub(crate) fn request(self, verb: Verb) -> Request {
        Request { set: self.set.into_iter().collect(), ..request(verb, self.model) }
    }
}

/// The request of a verb that takes no model.
pub(crate) fn bare(verb: Verb) -> Request {
    Request { verb, model: None, set: BTreeMap::new() }
}

/// The request of a verb that takes one model.
pub(crate) fn request(verb: Verb, model: ModelArg) -> Request {
    Request { model: Some(model.name), ..bare(verb) }
}

/// Reads the name of what somebody may do.
fn rights(text: &str) -> Result<Rights, String> {
    let all = [Rights::Read, Rights::Plan, Rights::Operate];
    let found = all.into_iter().find(|rights| rights.as_str() == text);
    found.ok_or_else(|| "one of read, plan, operate".to_owned())
}

/// Reads `ctx=16384`.
fn setting(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
    match pair.filter(|(key, value)| !key.is_empty() && !value.is_empty()) {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err("write KEY=VALUE, for example ctx=16384".to_owned()),
    }
}

/// Reads `90s`, `2m`, `1m30s` or a bare number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a time; write for example 90s, 2m or 1m30s");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let span: jiff::SignedDuration = text.parse().map_err(|_| bad())?;
    Duration::try_from(span).map_err(|_| bad())
}

#[cfg(test)]
mod tests;
