//! What each key means and, where that is no constant, what holds where it is not given: the one place that says so.
//! In Markdown, with links as from docs; in the order in which people want to read of them.

use super::FileKind;

/// What is said of a key, or of a table.
pub(super) struct Said {
    /// Its whole name; a table's name that the writer chooses is `*`.
    pub(super) key: &'static str,
    /// What it means.
    pub(super) meaning: &'static str,
    /// What holds where it is not given, in words. A constant is noted by who reads the key.
    pub(super) otherwise: &'static str,
}

/// A key whose default is a constant, or that has none.
const fn key(key: &'static str, meaning: &'static str) -> Said {
    Said { key, meaning, otherwise: "" }
}

/// A key whose default follows from something.
const fn or(key: &'static str, otherwise: &'static str, meaning: &'static str) -> Said {
    Said { key, meaning, otherwise }
}

/// A key of a model's file that berth.toml has too, for all models.
const fn as_node(key: &'static str) -> Said {
    or(key, "as berth.toml says", "")
}

/// All that is said of the keys of such a file.
pub(super) fn said(kind: FileKind) -> &'static [Said] {
    match kind {
        FileKind::Main => MAIN,
        FileKind::Model => MODEL,
        FileKind::Policy => POLICY,
    }
}

/// What is said of one key. That of a model's key is said of the node's where it means the same.
pub(super) fn of(kind: FileKind, key: &str) -> Option<(&'static str, &'static str)> {
    let find = |kind| said(kind).iter().find(|said| said.key == key);
    let found = find(kind)?;
    let meaning = if found.meaning.is_empty() { find(FileKind::Main)?.meaning } else { found.meaning };
    Some((meaning, found.otherwise))
}

/// Nothing holds without such a key.
const MUST: &str = "it must be";

const MAIN: &[Said] = &[
    or("node", "the host's name", "its name in what people see"),
    key(
        "on_demand",
        "whether models are loaded because clients ask: see [on demand](configuration.md#on-demand)",
    ),
    key(
        "guest_idle",
        "how long a model stays that was loaded because clients asked, once nobody asks any more",
    ),
    key("gpu.headroom", "memory of each GPU that is never given to a model"),
    key(
        "gpu.sound",
        "for how long a GPU that misbehaved must be read soundly before anything is placed there again",
    ),
    key(
        "deadlines.drain",
        "before a model is stopped, answers of it that are under way may go on for so long; then they are cut off",
    ),
    key("deadlines.stop", "from when systemd begins to stop it until what is left is killed"),
    key("deadlines.release", "from the last process's end until its memory must be proved free"),
    key(
        "deadlines.start",
        "from the start until it must be ready. A load that took longer before lengthens it, and while its memory, on a \
         GPU or the host's, still grows it extends, up to twice",
    ),
    key("deadlines.connect", "until a model's server takes the connection of a request"),
    key(
        "health.every",
        "between two health checks of a model in service; `\"off\"`: none, and no token either. Each must be answered \
         within 5 s, or within this where it is shorter",
    ),
    key("health.failures", "so many failures in a row, of either kind, and the model is restarted"),
    key(
        "health.token",
        "an idle model that has not generated for so long is asked for one token; `\"off\"`: never. It must come within \
         60 s, or within this where it is shorter. Off for models whose `[ready] generate` is false",
    ),
    key("health.busy", "for so long a model may leave its checks unanswered while it works"),
    key(
        "restart.first",
        "the pause before a model that failed is started again; it doubles with each failure",
    ),
    key("restart.longest", "the longest such pause"),
    key("restart.healthy", "after so long in service earlier failures no longer count"),
    key(
        "restart.failures",
        "so many failures within `window` and the model is quarantined. After a boot two failed starts in a row are \
         enough",
    ),
    key("restart.window", "the time within which they count"),
    key(
        "boot.gpus",
        "for so long a GPU that was there before is waited for, before home is placed on those that are",
    ),
    key(
        "boot.files",
        "for so long a model's missing files are waited for, before another model serves in its place",
    ),
    key("proxy.listen", "addresses with ports where clients reach models; `[]` for none"),
    key("proxy.unknown", "a name that nobody has: `\"refuse\"` it, or `\"default\"` answers"),
    key("proxy.body", "the longest body of a request"),
    key("proxy.queue", "so many requests may wait for one model"),
    key("proxy.wait", "how long one may wait for a model that is on its way"),
    key(
        "proxy.turn",
        "for so long models that are asked on and on keep their place before others that clients wait for",
    ),
    key(
        "proxy.first_byte",
        "how long a model may take until its answer begins, where its own `[deadlines]` don't say it",
    ),
    key(
        "proxy.idle",
        "how long a request's body may pause; and an answer, where the model's own `[deadlines]` don't say it",
    ),
    key("proxy.connections", "so many clients may be connected at a time; more wait"),
    or(
        "proxy.cors",
        "none",
        "origins of web pages that may ask from a browser, exactly as browsers write them, their cookies included; \
         `[\"*\"]` for all pages, without those",
    ),
    key(
        "proxy.keys",
        "A client's key, made by `berthctl key NAME`. With one declared nobody is answered without a key; without any, \
         whoever reaches the address may ask.",
    ),
    or("proxy.keys.*.sha256", MUST, "the key by its hash"),
    or("proxy.keys.*.models", "all", "the names that it may ask for: a model's, an alias, `default`"),
    key("proxy.keys.*.loads", "whether a model that does not serve is loaded for it"),
    key(
        "http.listen",
        "addresses with ports of the control API and the dashboard; `[]`: the unix socket alone. One that other machines \
         reach needs a token",
    ),
    or(
        "http.hosts",
        "none",
        "names by which browsers reach it, beside addresses, `localhost` and the node's name: a name that anybody may own \
         could be pointed here",
    ),
    or(
        "http.anonymous",
        "`\"read\"` on loopback addresses, else `\"none\"`",
        "what one may do there who shows nothing",
    ),
    key("http.tokens", "A program's token, made by `berthctl token NAME`."),
    or("http.tokens.*.sha256", MUST, "the token by its hash"),
    key("http.tokens.*.rights", "what it opens"),
    key(
        "rights",
        "Users (`\"frank\"`) and groups (`\"@agents\"`) who may do so much over the unix socket: see \
         [rights](configuration.md#rights).",
    ),
    or(
        "rights.operate",
        "where `[rights]` is not there, the group `berth`",
        "see everything, plan, and change what serves",
    ),
    or("rights.plan", "nobody", "see everything, and ask what a change would do"),
    or("rights.read", "nobody", "see everything"),
    key("history.every", "between two samples of the devices; each is kept for a day"),
    key("history.samples", "for how long their means of a minute are kept, at most as long as `keep`"),
    key(
        "history.keep",
        "for how long their means of a quarter of an hour are kept, and swaps, problems and events",
    ),
    key(
        "history.size",
        "what all of it may take on the disk: each kind has its share, and what is oldest of it goes before its time. With \
         two GPUs and the defaults the samples take about 20 MiB",
    ),
    key("ports.range", "ports for models that name none"),
    key(
        "notify",
        "Who is told of problems: see [being told](configuration.md#being-told). One of `command` and `url`.",
    ),
    key(
        "notify.*.command",
        "a program and its arguments; no shell runs it. It is given the problem as JSON on standard input, and \
         `BERTH_EVENT` (`began` or `ended`), `BERTH_SEVERITY` (`error` or `warning`), `BERTH_CODE`, `BERTH_SUBJECT`, \
         `BERTH_NODE`, `BERTH_TITLE` and `BERTH_TEXT`",
    ),
    key("notify.*.url", "where it is posted instead. `http://` alone: berthd speaks no TLS, curl does"),
    key(
        "notify.*.format",
        "what is posted: `\"json\"`; `\"ntfy\"`: the text, with ntfy's title, priority (4 for an error, 3 for a warning, 2 \
         for an end) and tags",
    ),
    key(
        "notify.*.settle",
        "how long a problem must stand, or be gone, before that is told; what comes and goes within is told nobody",
    ),
    key("notify.*.every", "in the long run one push in this time; up to 10 follow each other at once"),
];

const MODEL: &[Said] = &[
    or(
        "cmd",
        "`program` must be",
        "program and arguments as you type them; leading `NAME=value` go to the environment. No shell runs it: pipes, \
         redirections and `$(…)` are refused",
    ),
    or("program", "`cmd` must be", "the program alone"),
    or("args", "none", "its arguments"),
    or("name", "the file's name", "letters, digits, `.`, `_`, `-`"),
    or("backend", "from the program's name", "what kind of server it is"),
    or("model", "from `-m`, `--model`, `vllm serve X`", "file or folder of the weights"),
    or("env", "none", "environment of the server"),
    or(
        "secrets",
        "none",
        "variables whose values are [credentials](security.md#secrets-of-a-model) of the model's unit",
    ),
    or("cwd", "the home of the unit's user", "working directory"),
    or("host", "from its arguments; else 127.0.0.1", "the address where the server is to listen"),
    or(
        "port",
        "from its arguments; else the next free one of `[ports]`",
        "the port where the server is to listen",
    ),
    key(
        "exposed",
        "its processes may listen at other addresses than `host` and `port`, which is a problem otherwise: see \
         [`exposed`](operations.md#problems-and-what-to-do)",
    ),
    or(
        "replaces",
        "none",
        "the unit that served this model before it was Berth's: while that runs, it is the model; \
         [`berthctl add`](coming-from.md#what-runs-goes-on) writes it",
    ),
    key("shares_port", "this model may have another's port: the two never run at once"),
    or(
        "policy",
        "`auto`; `split` where its memory is given for several GPUs",
        "how it may be placed: one of the [policies](configuration.md#policies)",
    ),
    or(
        "known_as",
        "vLLM: its served name; else what the client asked for",
        "the name of the model in requests to its server, where that takes no other",
    ),
    or("aliases", "none", "other names for it; `default` always follows the switch"),
    key("retired", "kept for the record, never started, never a problem"),
    or(
        "fallback",
        "the model that served last, where nothing else serves or this one is `default`",
        "who serves in its place while it is quarantined or its files are missing, and answers clients who ask for it while \
         it is not loaded",
    ),
    as_node("on_demand"),
    as_node("guest_idle"),
    or(
        "priority",
        "the policy's",
        "of what is to come back after a boot, models with a higher one come first",
    ),
    or("ctx", SERVERS, "tokens of context: of all slots together, for vLLM of one request"),
    or(
        "kv",
        SERVERS,
        "how the KV cache is kept: `\"f16\"`, `\"q8_0\"`, `\"q4_0\"` …; vLLM: `\"fp8\"`, `\"bf16\"`, `\"f16\"`",
    ),
    or("kv_k", SERVERS, "the same of keys alone"),
    or("kv_v", SERVERS, "the same of values alone"),
    or("slots", SERVERS, "requests that are answered at once"),
    or("unified", SERVERS, "whether slots share one pool of context"),
    or("ubatch", SERVERS, "tokens that are computed at once"),
    or("gpu_layers", SERVERS, "layers on GPUs, the last ones; the output counts as one"),
    or(
        "cpu_experts",
        SERVERS,
        "of how many layers, the last ones, the experts stay on the CPU. llama.cpp: `-ot`",
    ),
    or("threads", SERVERS, "threads that compute on the CPU"),
    or("utilization", SERVERS, "share of each GPU that is taken, in hundredths"),
    key("memory", "What is declared here is taken as it is: nothing is computed or measured then."),
    or(
        "memory.gpu",
        "llama.cpp: from the file's header; vLLM: its share of each GPU, and from the headers whether its weights and one \
         request fit; any other program: it must be declared",
        "what it needs in all, or on each GPU (`[\"14.3 GiB\", \"14.3 GiB\"]`)",
    ),
    or(
        "memory.host",
        "llama.cpp: from the file's header; any other program that runs on the host alone: it must be declared; else what \
         it took when it ran last",
        "what it needs of the host's memory, mapped files included",
    ),
    key(
        "request",
        "Fields of requests' JSON bodies that are changed on their way to the server. Such a body is read as a whole first.",
    ),
    or("request.default", "none", "added where they are missing: `default = { temperature = 0.7 }`"),
    or("request.set", "none", "replaced or added"),
    or("request.strip", "none", "taken out: `strip = [\"logit_bias\"]`"),
    or("ready.health", "`/health`", "path that answers 200 when the server is up"),
    or(
        "ready.generate",
        "`true` for llama.cpp and vLLM, unless they serve embeddings and the like",
        "one token must be generated before it counts as ready",
    ),
    as_node("deadlines.drain"),
    as_node("deadlines.stop"),
    as_node("deadlines.release"),
    as_node("deadlines.start"),
    as_node("deadlines.connect"),
    or(
        "deadlines.first_byte",
        "`[proxy] first_byte` of berth.toml",
        "how long it may take until an answer begins",
    ),
    or("deadlines.idle", "`[proxy] idle` of berth.toml", "how long an answer may pause"),
    as_node("health.every"),
    as_node("health.failures"),
    as_node("health.token"),
    as_node("health.busy"),
    key(
        "variants",
        "The same model with a few keys replaced, under the name `MODEL:NAME`: see \
         [variants](configuration.md#variants). It may have these keys, which mean what they do above:",
    ),
];

/// Who says a setting of the server that nobody declares.
const SERVERS: &str = "the server's own";

const POLICY: &[Said] = &[
    key(
        "devices",
        "which GPUs a model may be on: all, one by its index or UUID, those whose product name matches, or several of \
         these; or the host alone",
    ),
    key("gpus", "over how many: as few as hold it, all of them, one, or so many"),
    key("fill", "how layers are divided: by what each GPU has left, or one GPU after the other"),
    or("headroom", "as berth.toml says", "memory that is left free on each GPU"),
    key("share", "whether others may be on the same GPUs"),
    key("priority", "of what is to come back after a boot, models with a higher one come first"),
    key("evict", "whom a switch may stop for it: anyone, those of a lower priority, or nobody"),
    or(
        "ladder",
        "nothing",
        "what is given up until it fits, in this order, each besides those before it: `\"experts\"` (those of the last layers \
         stay on the CPU, as few as make it fit), `\"kv TYPE\"`, `\"ctx TOKENS\"`, `\"layers\"` (whole ones stay on the CPU). \
         A rung that would not take less than the model's own settings, names a type that its server does not know, or says \
         something else than its command line, is passed over",
    ),
    key(
        "host.cores",
        "the processors that it runs on: all, one thread of each core, of each fast or of each economical one, or these",
    ),
    or("host.threads", "one for each processor", "threads that compute"),
    key("host.lock", "its memory is locked, so that it is never paged out"),
    key("host.nice", "its scheduling priority; below 0 is a warning"),
    or("host.memory", "all but the headroom", "the most that it may take of the host's memory"),
    key("host.headroom", "host memory that is left free"),
];
