//! Whether models fit: the verdict, then by device and part, then what would.

use berth_core::bytes::Bytes;
use berth_core::demand::{Source, What};

use super::parts::tried;
use super::text::{clean, gib, gpus, join, paragraph, wrap};
use super::{Column, Paint, Table, Tone};
use crate::fit::{Device, Folder, Judged};

/// What `berthctl fit` prints of one model.
pub(crate) fn one(judged: &Judged, paint: Paint) -> String {
    let verdict = format!("{}\n", wrap(&verdict(judged), super::WIDTH).join("\n"));
    let (tone, word) = match judged.fits {
        Some(true) => (Tone::Good, "Fits"),
        Some(false) => (Tone::Bad, "Does not fit"),
        None => (Tone::Warn, "Can't be said"),
    };
    let mut out = verdict.replacen(word, &paint.tint(tone, word), 1);
    out.push_str(&paragraph("", &clean(&about(judged))));
    out.push_str(&parts(&judged.devices, paint));
    if let Some(unsure) = &judged.unsure {
        out.push_str(&paragraph("Note: ", &clean(unsure)));
    }
    out.push_str(&tried(&judged.tried, paint));
    if judged.fits == Some(false) {
        out.push_str(&instead(judged, paint));
    }
    out
}

/// What it prints of a folder: one line a model.
pub(crate) fn folder(folder: &Folder, paint: Paint) -> String {
    let fit = folder.models.iter().filter(|judged| judged.fits == Some(true)).count();
    let all = folder.models.len();
    let models = if all == 1 { "model fits" } else { "models fit" };
    let path = clean(&folder.path.display().to_string());
    let mut out = match all {
        0 => paragraph("", &format!("There is no model in {path} that can be judged")),
        _ => paragraph("", &format!("{fit} of {all} {models} in {path}")),
    };
    let mut table = Table::new(1, &[Column::Wrap, Column::Right, Column::Right, Column::Left, Column::Wrap]);
    table.plain(Tone::Dim, &["MODEL", "WEIGHTS", "NEEDS", "WHERE", "VERDICT"]);
    for judged in &folder.models {
        let needs = judged.devices.iter().map(|device| device.needs_bytes).sum::<Bytes>();
        let (tone, verdict) = match judged.fits {
            Some(true) => (Tone::Good, fits_briefly(judged)),
            Some(false) => (Tone::Bad, short_briefly(judged)),
            None => (Tone::Warn, format!("can't be said: {}", judged.why.as_deref().unwrap_or_default())),
        };
        table.row(vec![
            (Tone::Plain, clean(&judged.name)),
            (Tone::Plain, judged.weights_bytes.map_or("-".to_owned(), gib)),
            (Tone::Plain, gib(needs)),
            (Tone::Plain, if judged.fits == Some(true) { place(&judged.devices) } else { "-".to_owned() }),
            (tone, clean(&verdict)),
        ]);
    }
    for other in &folder.others {
        let text = match other.kind {
            "unreadable" => format!("can't be read: {}", other.text),
            _ => other.text.clone(),
        };
        table.plain(Tone::Dim, &[&clean(&other.name), "-", "-", "-", &clean(&text)]);
    }
    out.push_str(&table.render(paint));
    out
}

fn fits_briefly(judged: &Judged) -> String {
    let spare = judged.spare_bytes.unwrap_or_default();
    match given_up(judged) {
        // Where the rest is, another column says.
        Some(given) => {
            format!("fits, {spare} to spare; {}", given.split(", the rest on ").next().unwrap_or(given))
        }
        None => format!("fits, {spare} to spare"),
    }
}

fn short_briefly(judged: &Judged) -> String {
    let would = judged.instead.first().map(|first| format!("; {} would fit", first.text));
    shortage(judged) + &would.unwrap_or_default()
}

fn verdict(judged: &Judged) -> String {
    match judged.fits {
        Some(true) => {
            let gpus = judged.devices.iter().filter(|device| device.gpu.is_some()).count();
            let least = judged.devices.iter().filter(|device| device.gpu.is_some() || gpus == 0).min_by_key(
                |device| device.available_bytes.map(|available| available.less(device.needs_bytes)),
            );
            let least =
                least.filter(|_| gpus > 1).map_or(String::new(), |device| format!(" on {}", label(device)));
            let spare = judged.spare_bytes.unwrap_or_default();
            let given = given_up(judged).map_or(String::new(), |given| format!(": {given}"));
            format!("Fits on {} with {spare} to spare{least}{given}", place(&judged.devices))
        }
        Some(false) => format!("Does not fit: {}", shortage(judged)),
        None => format!("Can't be said: {}", clean(judged.why.as_deref().unwrap_or_default())),
    }
}

/// "0.8 GiB short on GPU 0, 1.2 GiB on GPU 1"; another reason where there is room.
fn shortage(judged: &Judged) -> String {
    let short: Vec<&Device> = judged.devices.iter().filter(|device| device.short() > Bytes::ZERO).collect();
    let each = short.iter().enumerate().map(|(i, device)| {
        let word = if i == 0 { " short" } else { "" };
        format!(
            "{}{word} {}",
            device.short(),
            device.gpu.map_or("in RAM".to_owned(), |gpu| format!("on GPU {gpu}"))
        )
    });
    match short.as_slice() {
        [] => clean(judged.why.as_deref().unwrap_or_default()),
        _ => join(each, ", "),
    }
}

/// What is given up for the place, if anything is.
fn given_up(judged: &Judged) -> Option<&str> {
    match judged.way.strip_prefix("whole on ") {
        Some(whole) => whole.split_once(", with ").map(|(_, with)| with),
        None => Some(&judged.way),
    }
}

fn place(devices: &[Device]) -> String {
    let indices: Vec<u32> = devices.iter().filter_map(|device| device.gpu).collect();
    if indices.is_empty() { "the CPU".to_owned() } else { gpus(&indices) }
}

fn label(device: &Device) -> String {
    device.gpu.map_or("RAM".to_owned(), |index| format!("GPU {index}"))
}

/// What the model is and under which settings it would run.
fn about(judged: &Judged) -> String {
    let mut words = vec![judged.name.clone()];
    words.extend(judged.architecture.clone());
    words.extend(judged.layers.map(|layers| format!("{layers} layers")));
    words.extend(judged.weights_bytes.map(|weights| format!("{weights} of weights")));
    let settings = &judged.settings;
    words.extend(settings.ctx.map(|ctx| format!("ctx {ctx}")));
    words.extend(match (settings.kv_k, settings.kv_v) {
        (Some(keys), Some(values)) if keys == values => Some(format!("KV {keys}")),
        (Some(keys), Some(values)) => Some(format!("K {keys}, V {values}")),
        _ => None,
    });
    words.extend(
        settings.slots.map(|slots| if slots == 1 { "1 slot".to_owned() } else { format!("{slots} slots") }),
    );
    words.extend(
        settings
            .unified
            .filter(|_| settings.slots != Some(1))
            .map(|unified| if unified { "one pool of context" } else { "context divided" }.to_owned()),
    );
    words.extend(settings.ubatch.map(|ubatch| format!("ubatch {ubatch}")));
    join(words.into_iter(), ", ")
}

const ROWS: [(What, &str); 9] = [
    (What::Weights, "weights"),
    (What::KvGlobal, "KV, whole context"),
    (What::KvSliding, "KV, sliding window"),
    (What::Recurrent, "recurrent state"),
    (What::Compute, "compute"),
    (What::Overhead, "overhead"),
    (What::Projector, "projector"),
    (What::Draft, "draft"),
    (What::Whole, "all of it"),
];

/// As many devices stand beside each other.
const ABREAST: usize = 4;

/// By part and device, and how each is known.
fn parts(devices: &[Device], paint: Paint) -> String {
    let most = devices.iter().map(|device| device.needs_bytes).max().unwrap_or_default();
    // Where gibibytes would show nothing but noughts.
    let small = most < Bytes::mib(2048);
    let shown = |bytes: Bytes| {
        if small { format!("{:.1}", bytes.0 as f64 / (1u64 << 20) as f64) } else { gib(bytes) }
    };
    let some = |bytes: Bytes| if bytes == Bytes::ZERO { "-".to_owned() } else { shown(bytes) };
    let known = |bytes: Option<Bytes>| bytes.map_or("unknown".to_owned(), shown);
    let mut out = String::new();
    for devices in devices.chunks(ABREAST) {
        let columns = std::iter::repeat_n(Column::Right, devices.len());
        let columns: Vec<Column> = [Column::Left].into_iter().chain(columns).chain([Column::Wrap]).collect();
        let mut table = Table::new(1, &columns);
        let mut row = |tone, name: &str, cells: Vec<(Tone, String)>, note: String| {
            table
                .row([(tone, name.to_owned())].into_iter().chain(cells).chain([(Tone::Dim, note)]).collect());
        };
        let plain = |cell: &dyn Fn(&Device) -> String| -> Vec<(Tone, String)> {
            devices.iter().map(|device| (Tone::Plain, cell(device))).collect()
        };
        let heads = devices.iter().map(|device| (Tone::Dim, label(device)));
        row(Tone::Dim, if small { "MIB" } else { "GIB" }, heads.collect(), "KNOWN".to_owned());
        for (what, name) in ROWS {
            let mut sources: Vec<&str> = Vec::new();
            for part in devices.iter().flat_map(|device| &device.parts.0).filter(|part| part.what == what) {
                if !sources.contains(&source(part.source)) {
                    sources.push(source(part.source));
                }
            }
            if !sources.is_empty() {
                row(Tone::Plain, name, plain(&|device| some(device.parts.of(what))), sources.join(", "));
            }
        }
        row(Tone::Bold, "needs", plain(&|device| shown(device.needs_bytes)), String::new());
        let held = |bytes: Option<Bytes>| bytes.map_or("unknown".to_owned(), some);
        row(Tone::Dim, "total", plain(&|device| known(device.total_bytes)), String::new());
        row(Tone::Dim, "kept back", plain(&|device| some(device.kept_back_bytes)), String::new());
        row(Tone::Dim, "held by others", plain(&|device| held(device.others_bytes)), holders(devices));
        row(Tone::Plain, "available", plain(&|device| known(device.available_bytes)), String::new());
        let rests = devices.iter().map(|device| match (device.available_bytes, device.short()) {
            (None, _) => (Tone::Warn, "unknown".to_owned()),
            (Some(available), Bytes::ZERO) => (Tone::Good, shown(available.less(device.needs_bytes))),
            (_, short) => (Tone::Bad, format!("-{}", shown(short))),
        });
        row(Tone::Plain, "to spare", rests.collect(), String::new());
        out.push_str(&table.render(paint));
    }
    out
}

/// Who else holds memory there.
fn holders(devices: &[Device]) -> String {
    let each = devices.iter().filter(|device| !device.others.is_empty()).map(|device| {
        let by = clean(&device.others.join(", "));
        if devices.len() == 1 { by } else { format!("{}: {by}", label(device)) }
    });
    join(each, "; ")
}

fn source(source: Source) -> &'static str {
    match source {
        Source::Exact => "exact",
        Source::Estimated => "estimated",
        Source::Declared => "declared",
        Source::Learned => "learned",
    }
}

fn instead(judged: &Judged, paint: Paint) -> String {
    if judged.instead.is_empty() {
        return paragraph(
            "",
            "No smaller context, no narrower KV and no layers on the CPU would make it fit.",
        );
    }
    let mut table = Table::new(1, &[Column::Wrap, Column::Wrap]);
    for would in &judged.instead {
        table.plain(Tone::Plain, &[would.text.clone(), format!("{} to spare", would.spare_bytes)]);
    }
    format!("Would fit:\n{}", table.render(paint))
}
