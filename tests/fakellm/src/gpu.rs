//! GPU memory, taken as the real servers take it, and said as they say it when there is too little.

use std::time::Duration;

use anyhow::{Context, Result};
use gpusim::Client;
use gpusim::units::mib;
use gpusim::visible::{Claims, Denied, by_environment};

use crate::args::{Arguments, Style};

/// What could not be had, in the server's own words.
#[derive(Debug)]
pub(crate) struct NoMemory(pub String);

impl std::fmt::Display for NoMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoMemory {}

fn connect() -> Result<Client> {
    Ok(Client::connect(Duration::from_secs(2))?.limit(Duration::from_secs(60))?)
}

/// Takes all that was declared, over the loading time.
pub(crate) fn load(arguments: &Arguments) -> Result<()> {
    let mut claims = arguments.claims();
    if let Some(part) = arguments.gpu_memory_utilization {
        claims.on.extend(desired(part)?);
    }
    if let Some(bytes) = arguments.load_rss {
        take(&claims, arguments.style, Duration::ZERO)?;
        fill(bytes, arguments.load_time);
        return Ok(());
    }
    if claims.is_empty() {
        std::thread::sleep(arguments.load_time);
        return Ok(());
    }
    take(&claims, arguments.style, arguments.load_time)
}

/// Fills memory of the host in small steps, as one that reads from a slow disk; it is kept.
fn fill(bytes: u64, over: Duration) {
    const STEPS: u32 = 100;
    let step = usize::try_from(bytes / u64::from(STEPS)).unwrap_or(usize::MAX);
    for _ in 0..STEPS {
        // Written to, or no page of it would be resident.
        std::mem::forget(vec![1_u8; step]);
        std::thread::sleep(over / STEPS);
    }
}

/// Takes these claims for this process.
pub(crate) fn take(claims: &Claims, style: Style, over: Duration) -> Result<()> {
    if claims.is_empty() {
        return Ok(());
    }
    claims.take(&mut connect()?, over).map_err(|denied| {
        if !denied.out_of_memory() {
            return anyhow::Error::new(denied.error);
        }
        anyhow::Error::new(NoMemory(text(&denied, style)))
    })
}

/// The words for an allocation that failed.
fn text(denied: &Denied, style: Style) -> String {
    match style {
        Style::Llama => format!(
            "{}\nllama_model_load: error loading model: unable to allocate CUDA{} buffer\n\
             srv    load_model: failed to load model\nmain: exiting due to model loading error",
            denied.llama_text(),
            denied.place
        ),
        Style::Vllm => format!(
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {:.2} GiB. GPU {}: {}\n\
             RuntimeError: Engine core initialization failed. See root cause above.",
            denied.bytes as f64 / f64::from(1 << 30),
            denied.place,
            denied.error
        ),
    }
}

/// What is said where nothing is really asked of the GPU.
pub(crate) fn pretended(style: Style) -> String {
    let failure = gpusim::protocol::Failure::new(gpusim::protocol::Code::OutOfMemory, "no memory left");
    let error = gpusim::ClientError::Refused(failure);
    text(&Denied { place: 0, bytes: 512 * gpusim::units::MIB, error }, style)
}

/// vLLM's rule: this part of each visible GPU must be free before anything is taken.
fn desired(part: f64) -> Result<Vec<(u32, u64)>> {
    let mut client = connect()?;
    let cards = client.cards()?;
    let mut claims = Vec::new();
    for (place, device) in (0u32..).zip(by_environment(cards)) {
        let memory =
            client.memory(device).with_context(|| format!("no memory reading of device {device}"))?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let wanted = (memory.total as f64 * part).ceil() as u64;
        if memory.free < wanted {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            return Err(NoMemory(format!(
                "ValueError: Free memory on device cuda:{place} ({:.2}/{:.2} GiB) on startup is less than \
                 desired GPU memory utilization ({part}, {:.2} GiB).\n\
                 RuntimeError: Engine core initialization failed. See root cause above.",
                gib(memory.free),
                gib(memory.total),
                gib(wanted)
            ))
            .into());
        }
        claims.push((place, wanted));
    }
    Ok(claims)
}

/// A line for the log of what is held.
pub(crate) fn summary(arguments: &Arguments) -> String {
    let claims = arguments.claims();
    let on = claims.on.iter().map(|(place, bytes)| format!("{} on GPU {place}", mib(*bytes)));
    let each = claims.each.iter().map(|bytes| format!("{} on each GPU", mib(*bytes)));
    let parts: Vec<_> = on.chain(each).collect();
    if parts.is_empty() { "no GPU memory declared".to_owned() } else { parts.join(", ") }
}
