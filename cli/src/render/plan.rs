//! A plan: what would happen, or what is short where and what to try.

use berth_core::report::{ApiProblem, GpuChange, PlanReport, Refusal, StepForecast, Verdict};

use super::text::{about, clean, gib, gpus, join, names, paragraph, spread};
use super::{Column, Paint, Table, Tone, parts, swap};

/// What `berthctl plan` prints.
pub(crate) fn plan(plan: &PlanReport, paint: Paint) -> String {
    match &plan.verdict {
        Verdict::Refused(refusal) => refused(refusal, Some(plan), paint),
        Verdict::Nothing { text } => paragraph("", &format!("Nothing to do: {}", clean(text))),
        Verdict::Go => go(plan, paint),
    }
}

/// A refusal that came as an answer to a change.
pub(crate) fn problem(problem: &ApiProblem, paint: Paint) -> String {
    // The plan says more, where there is one: per GPU, and its hints.
    if let Some(plan) = &problem.plan
        && let Verdict::Refused(refusal) = &plan.verdict
    {
        return refused(refusal, Some(plan), paint);
    }
    let (code, text, hints) = (problem.code.clone(), problem.title.clone(), problem.hints.clone());
    refused(&Refusal { code, text, hints }, None, paint)
}

/// Commands or changes that would help, best first, one a line.
pub(crate) fn hints(hints: &[String]) -> String {
    hints
        .iter()
        .enumerate()
        .map(|(i, hint)| paragraph(if i == 0 { "Try: " } else { "     " }, &clean(hint)))
        .collect()
}

fn refused(refusal: &Refusal, plan: Option<&PlanReport>, paint: Paint) -> String {
    let word = "REFUSED: ";
    let text = paragraph(word, &clean(&refusal.text));
    let mut out = text.strip_prefix(word).unwrap_or(&text).to_owned();
    out.insert_str(0, &paint.tint(Tone::Bad, word));
    if let Some(plan) = plan.filter(|plan| plan.gpus.iter().any(|gpu| gpu.needs > gpu.available)) {
        out.push_str(&shortage(&plan.gpus, paint));
    }
    if let Some(plan) = plan {
        out.push_str(&ways(plan, paint));
    }
    out + &hints(&refusal.hints)
}

/// What was tried, and by part what the last way needs.
fn ways(plan: &PlanReport, paint: Paint) -> String {
    let last = plan.tried.last().map(|last| parts::parts(&last.devices, &[], paint));
    parts::tried(&plan.tried, paint) + &last.unwrap_or_default()
}

/// Per GPU: what is needed, what there is, and who else is on it.
fn shortage(changes: &[GpuChange], paint: Paint) -> String {
    let mut table = Table::new(
        1,
        &[
            Column::Left,
            Column::Right,
            Column::Right,
            Column::Right,
            Column::Right,
            Column::Right,
            Column::Wrap,
        ],
    );
    table.plain(Tone::Dim, &["GIB", "needs", "available", "short by", "total", "kept back", "others"]);
    for gpu in changes {
        let short = gpu.needs.less(gpu.available);
        let tone = if short.0 > 0 { Tone::Bad } else { Tone::Plain };
        table.row(vec![
            (Tone::Plain, format!("GPU {}", gpu.index)),
            (tone, gib(gpu.needs)),
            (tone, gib(gpu.available)),
            (tone, if short.0 > 0 { gib(short) } else { "-".to_owned() }),
            (Tone::Plain, gib(gpu.total)),
            (Tone::Plain, gib(gpu.unusable)),
            (Tone::Plain, others(gpu)),
        ]);
    }
    table.render(paint)
}

fn others(gpu: &GpuChange) -> String {
    match (gpu.foreign.0, gpu.foreign_by.as_slice()) {
        (0, _) => "-".to_owned(),
        (_, []) => format!("unattributed {}", gib(gpu.foreign)),
        (_, by) => format!("{} {}", clean(&join(by.iter(), ", ")), gib(gpu.foreign)),
    }
}

fn go(plan: &PlanReport, paint: Paint) -> String {
    let indices: Vec<u32> = plan.gpus.iter().map(|gpu| gpu.index).collect();
    let place = if indices.is_empty() { String::new() } else { gpus(&indices) };
    // A sum of which a part is missing would be too good.
    let whole: Option<u64> = plan.steps.iter().map(|step| step.expected_ms).sum();
    let time = whole.map_or_else(String::new, |ms| format!("about {}", about(ms)));
    let title = swap::moves(plan.request.verb, &plan.stops, &plan.starts);
    let mut out = spread(&[paint.tint(Tone::Bold, &title), place, time]) + "\n";
    out.push_str(&changes(plan, paint));
    out.push_str(&ways(plan, paint));
    if plan.steps.iter().any(|step| step.expected_ms.is_some()) {
        out.push_str(&paragraph("Steps: ", &join(plan.steps.iter().map(forecast), ", ")));
    }
    out.push_str(&paragraph("", &verdict(plan)));
    out
}

fn changes(plan: &PlanReport, paint: Paint) -> String {
    if plan.gpus.is_empty() {
        return String::new();
    }
    let mut table = Table::new(
        1,
        &[Column::Left, Column::Left, Column::Left, Column::Right, Column::Right, Column::Wrap],
    );
    table.plain(Tone::Dim, &["GIB", "now", "then", "needs", "available", "others"]);
    for gpu in &plan.gpus {
        table.plain(
            Tone::Plain,
            &[
                format!("GPU {}", gpu.index),
                residents(&gpu.before),
                residents(&gpu.after),
                gib(gpu.needs),
                gib(gpu.available),
                others(gpu),
            ],
        );
    }
    table.render(paint)
}

fn residents(on: &[(berth_core::name::ModelName, berth_core::bytes::Bytes)]) -> String {
    match on {
        [] => "-".to_owned(),
        _ => join(on.iter().map(|(name, bytes)| format!("{name} {}", gib(*bytes))), " "),
    }
}

fn forecast(step: &StepForecast) -> String {
    let model = step.model.as_ref().map_or_else(String::new, |model| format!(" {model}"));
    let time = step.expected_ms.map_or_else(String::new, |ms| format!(" {}", about(ms)));
    format!("{}{model}{time}", swap::noun(step.step))
}

fn verdict(plan: &PlanReport) -> String {
    let spare = plan
        .gpus
        .iter()
        .filter(|gpu| gpu.needs.0 > 0)
        .map(|gpu| (gpu.available.less(gpu.needs), gpu.index))
        .min()
        .map_or_else(String::new, |(spare, gpu)| format!("Fits, {} GiB to spare on GPU {gpu}. ", gib(spare)));
    let stops = match plan.stops.as_slice() {
        [] => "Nothing would be stopped.".to_owned(),
        stops => format!("Would stop {}.", names(stops)),
    };
    let model = plan.request.model.as_deref().map_or_else(String::new, |model| format!(" {}", clean(model)));
    format!("{spare}{stops} Nothing was touched. To do it: berthctl {}{model}", plan.request.verb.as_str())
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
