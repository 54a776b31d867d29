//! Whether models fit: the verdict, then by device and part, then what would.

use berth_core::bytes::Bytes;
use berth_core::report::DeviceShare;

use super::parts::{self, Balance, tried};
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
    parts::label(device.gpu)
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

/// By part and device, and how each is known; what is there, and who holds the rest.
fn parts(devices: &[Device], paint: Paint) -> String {
    let shares: Vec<DeviceShare> = devices
        .iter()
        .map(|device| DeviceShare {
            gpu: device.gpu,
            needs: device.needs_bytes,
            available: device.available_bytes,
            parts: device.parts.clone(),
        })
        .collect();
    let row = |name, cell: &dyn Fn(&Device) -> Option<Bytes>, note| Balance {
        name,
        cells: devices.iter().map(cell).collect(),
        note,
    };
    let balance = [
        row("total", &|device| device.total_bytes, String::new()),
        row("kept back", &|device| Some(device.kept_back_bytes), String::new()),
        row("held by others", &|device| device.others_bytes, holders(devices)),
    ];
    parts::parts(&shares, &balance, paint)
}

/// Who else holds memory there.
fn holders(devices: &[Device]) -> String {
    let each = devices.iter().filter(|device| !device.others.is_empty()).map(|device| {
        let by = clean(&device.others.join(", "));
        if devices.len() == 1 { by } else { format!("{}: {by}", label(device)) }
    });
    join(each, "; ")
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
