//! A real llama-server loads a model and says in its log what it allocated.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_tests::Assets;

/// Mesa's device that computes on the processor. Twice the same is two devices to llama.cpp.
const DRIVERS: &str = "/usr/share/vulkan/icd.d";

/// MiB in the server's buffers on each device.
#[derive(Debug, Default)]
pub(super) struct Logged {
    /// GPUs by their number; None is the host.
    pub(super) on: BTreeMap<Option<usize>, Buffers>,
}

/// MiB in the buffers on one device, of the model's own context.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Buffers {
    pub(super) weights: f64,
    pub(super) global: f64,
    pub(super) sliding: f64,
    pub(super) recurrent: f64,
    pub(super) compute: f64,
    /// All buffers of a second context, with the weights of a second model.
    pub(super) draft: f64,
}

/// The GPUs that a server sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gpus {
    None,
    /// So many of Mesa's.
    Mesa(usize),
}

/// Lets a llama-server load `model` with `args`, and ends it.
///
/// # Errors
/// What it said instead of being ready.
pub(super) fn load(assets: &Assets, model: &Path, args: &[&str], gpus: Gpus) -> Result<Logged, String> {
    let server = assets.folder().join("llama.cpp");
    let log = tempfile::NamedTempFile::new().expect("no temporary file");
    let output = || Stdio::from(File::options().append(true).open(log.path()).expect("no log"));
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = port.expect("no port").port().to_string();
    let mut command = Command::new(server.join("llama-server"));
    command
        .arg("--model")
        .arg(model)
        .args(["--host", "127.0.0.1", "--port", &port, "-lv", "4"])
        .args(["-fit", "off", "--no-warmup", "--no-repack", "--offline"])
        .args(args)
        .env("LD_LIBRARY_PATH", &server)
        .env("GGML_VK_VISIBLE_DEVICES", "")
        .stdin(Stdio::null())
        .stdout(output())
        .stderr(output());
    if let Gpus::Mesa(count) = gpus {
        command.env("VK_DRIVER_FILES", mesa()?).env("GGML_VK_VISIBLE_DEVICES", vec!["0"; count].join(","));
    }
    let mut child = command.spawn().map_err(|error| format!("can't run llama-server: {error}"))?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let said = loop {
        let text = std::fs::read_to_string(log.path()).unwrap_or_default();
        if text.contains("all slots are idle") {
            break Ok(text);
        }
        if let Ok(Some(status)) = child.try_wait() {
            break Err(format!("llama-server ended with {status}: {}", complaints(&text)));
        }
        if Instant::now() > deadline {
            break Err(format!("llama-server is not ready after 60 s: {}", complaints(&text)));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let _ = child.kill();
    let _ = child.wait();
    said.map(|text| read(&text))
}

/// The file that names Mesa's driver.
fn mesa() -> Result<String, String> {
    let files = std::fs::read_dir(DRIVERS).into_iter().flatten().flatten().map(|entry| entry.path());
    let name =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lvp_icd."));
    let found = files.into_iter().find(|path| name(path));
    found
        .map(|path| path.to_string_lossy().into_owned())
        .ok_or_else(|| format!("no lvp_icd.*.json in {DRIVERS}: run `make deps`, which installs Mesa's"))
}

fn complaints(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(" E ")).collect();
    lines.join("\n")
}

fn read(log: &str) -> Logged {
    let mut logged = Logged::default();
    let (mut contexts, mut sliding) = (0, false);
    // Buffers that are made again take the place of those before.
    let mut compute: BTreeMap<(Option<usize>, bool), f64> = BTreeMap::new();
    for line in log.lines() {
        if line.contains("constructing llama_context") {
            contexts += 1;
            sliding = false;
        }
        if line.contains("creating") && line.contains("KV cache") {
            sliding = !line.contains("non-SWA");
        }
        let Some((what, mib)) = line.split_once("buffer size =") else { continue };
        let words: Vec<&str> = what.split_whitespace().collect();
        let [.., device, kind] = words[..] else { continue };
        let Some(mib) = mib.split_whitespace().next().and_then(|mib| mib.parse::<f64>().ok()) else {
            continue;
        };
        let on = device.strip_prefix("Vulkan").and_then(|number| number.parse().ok());
        let buffers = logged.on.entry(on).or_default();
        // The draft's weights are loaded after the model's context is there.
        let draft = contexts > 1 || (contexts == 1 && kind == "model");
        match kind {
            "compute" => {
                compute.insert((on, draft), mib);
            }
            _ if draft => buffers.draft += mib,
            "model" => buffers.weights += mib,
            "KV" if sliding => buffers.sliding += mib,
            "KV" => buffers.global += mib,
            "RS" => buffers.recurrent += mib,
            "output" => buffers.compute += mib,
            other => panic!("the log has a new kind of buffer, `{other}`: {line}"),
        }
    }
    for ((on, draft), mib) in compute {
        let buffers = logged.on.entry(on).or_default();
        *(if draft { &mut buffers.draft } else { &mut buffers.compute }) += mib;
    }
    logged
}
