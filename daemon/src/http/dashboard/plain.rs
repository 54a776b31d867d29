//! The plain status page: one answer made from [`Status`], without a script, which asks for itself again.

use std::fmt::{self, Display, Write};

use axum::extract::{RawQuery, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use berth_core::bytes::Bytes;
use berth_core::facts::Known;
use berth_core::report::{
    GpuBalance, GpuStatus, Holder, ModelState, ModelStatus, Outcome, Status, StepState, SwapSummary,
};
use tokio::sync::oneshot;

use super::{ASK_AGAIN, Api};
use crate::driver::Message;
use crate::scope::Scope;

/// Why this is all there is.
pub(super) const NOT_BUILT: &str = "the dashboard is not in this build of berthd, a plain status page takes its place: it is built by `make build` \
     where Node 20.19 or newer is";

/// A browser asks again after so many seconds.
const REFRESH: HeaderName = HeaderName::from_static("refresh");
/// The query of who reads slowly: the page does not change meanwhile.
const STILL: &str = "still";

const STYLE: &str = include_str!("plain.css");

/// `GET /plain`, and `GET /` where the dashboard was not built. With `?still` it stays as it is.
pub(super) async fn page(State(api): State<Api>, RawQuery(query): RawQuery) -> Response {
    let still = query.as_deref() == Some(STILL);
    let (reply, answer) = oneshot::channel();
    let (code, text) = match api.ask(Message::Status(reply), answer).await {
        Some(status) => (StatusCode::OK, render(&status, super::find(super::INDEX).is_some(), still)),
        None => (StatusCode::SERVICE_UNAVAILABLE, silent()),
    };
    let about = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    let mut answer = (code, about, text).into_response();
    if !still {
        answer.headers_mut().insert(REFRESH, HeaderValue::from_static("5"));
    }
    answer
}

/// `GET /plain.css`.
pub(super) async fn style() -> Response {
    let about = [(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, ASK_AGAIN)];
    (about, STYLE).into_response()
}

/// Text from elsewhere, as HTML shows it: program names and logs are not ours.
struct Text<T>(T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaped<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl Write for Escaped<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.chars().try_for_each(|c| match c {
                    '&' => self.0.write_str("&amp;"),
                    '<' => self.0.write_str("&lt;"),
                    '>' => self.0.write_str("&gt;"),
                    '"' => self.0.write_str("&quot;"),
                    '\'' => self.0.write_str("&#39;"),
                    c => self.0.write_char(c),
                })
            }
        }
        write!(Escaped(f), "{}", self.0)
    }
}

fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{}</title>\n<link rel=\"stylesheet\" href=\"plain.css\">\n</head>\n<body>\n<main>\n",
        Text(title)
    )
}

const FOOT: &str = "</main>\n</body>\n</html>\n";

fn silent() -> String {
    let journalctl = Scope::this().journalctl();
    let text = format!(
        "<h1>berthd does not answer</h1>\n<p>Its journal says why: <code>{journalctl} -u berthd -n 50</code></p>\n"
    );
    head("berthd does not answer") + &text + FOOT
}

/// The page. `built`: whether the dashboard is there too. `still`: whether it stays as it is.
fn render(status: &Status, built: bool, still: bool) -> String {
    let mut out = head(&format!("{}: Berth", status.node));
    // Writing to a string never fails.
    _ = write_page(&mut out, status, built, still);
    out + FOOT
}

fn write_page(out: &mut String, status: &Status, built: bool, still: bool) -> fmt::Result {
    writeln!(out, "<h1>{}</h1>", Text(&status.node))?;
    match &status.default {
        Some(model) => writeln!(out, "<p><code>default</code> is {}.</p>", Text(model))?,
        None => writeln!(out, "<p>Nothing serves as <code>default</code>.</p>")?,
    }
    problems(out, status)?;
    if let Some(swap) = &status.swap {
        writeln!(out, "<h2>Under way</h2>")?;
        steps(out, swap)?;
    }
    devices(out, status)?;
    models(out, &status.models, status.at_ms)?;
    if let Some(swap) = &status.last_swap {
        writeln!(out, "<h2>Last switch</h2>")?;
        steps(out, swap)?;
    }
    let more = if built {
        "The <a href=\"./\">dashboard</a> shows more, and needs JavaScript.".to_owned()
    } else {
        format!("Why this page is plain: {}.", Text(NOT_BUILT))
    };
    let again = if still {
        "It stays as it is: <a href=\"?\">ask again every 5 s</a>."
    } else {
        "Asked again every 5 s: <a href=\"?still\">keep it still</a>."
    };
    writeln!(
        out,
        "<p class=\"note\">{again} {more} Changes: <code>berthctl switch MODEL</code>. \
         berthd {}.</p>",
        Text(&status.version)
    )
}

fn problems(out: &mut String, status: &Status) -> fmt::Result {
    if status.problems.is_empty() {
        return writeln!(out, "<p>No problems.</p>");
    }
    writeln!(out, "<h2>Problems</h2>\n<ul>")?;
    for problem in &status.problems {
        let ago = Ago(status.at_ms, problem.since_ms);
        writeln!(
            out,
            "<li>{} <span class=\"note\">({}, since {ago})</span><br>What to do: <code>{}</code></li>",
            Text(&problem.text),
            Text(&problem.code),
            Text(&problem.next)
        )?;
    }
    writeln!(out, "</ul>")
}

fn devices(out: &mut String, status: &Status) -> fmt::Result {
    writeln!(out, "<h2>Memory</h2>\n<div class=\"wide\">\n<table>")?;
    writeln!(out, "<tr><th>Device<th>In use<th>Kept for models<th>Held by<th>Sensors<th>Measured</tr>")?;
    match &status.gpus {
        Known::Value(gpus) => gpus.iter().try_for_each(|gpu| device(out, gpu))?,
        Known::Unknown(why) => writeln!(out, "<tr><td>GPUs<td colspan=\"5\">unknown: {}</tr>", Text(why))?,
    }
    match &status.host {
        Known::Value(host) => {
            let used = host.total.less(host.available);
            writeln!(out, "<tr><td>RAM<td>{used} of {}<td><td><td><td></tr>", host.total)?;
        }
        Known::Unknown(why) => writeln!(out, "<tr><td>RAM<td colspan=\"5\">unknown: {}</tr>", Text(why))?,
    }
    writeln!(out, "</table>\n</div>")
}

fn device(out: &mut String, gpu: &GpuStatus) -> fmt::Result {
    write!(out, "<tr><td>GPU {}", gpu.index)?;
    if let Some(why) = &gpu.suspect {
        write!(out, "<br>suspect: {}", Text(why))?;
    }
    match &gpu.memory {
        Known::Value(GpuBalance { used, total, kept, .. }) => write!(out, "<td>{used} of {total}<td>{kept}")?,
        Known::Unknown(why) => write!(out, "<td>unknown: {}<td>unknown", Text(why))?,
    }
    match &gpu.holders {
        Known::Value(holders) => {
            let holders: Vec<String> = holders.iter().map(holder).collect();
            write!(out, "<td>{}", holders.join("<br>"))?;
        }
        Known::Unknown(why) => write!(out, "<td>unknown: {}", Text(why))?,
    }
    let sensors = [(gpu.temperature_c, "°C"), (gpu.power_w, "W"), (gpu.utilization_percent, "%")];
    let sensors: Vec<String> =
        sensors.iter().filter_map(|(value, unit)| value.map(|value| format!("{value} {unit}"))).collect();
    writeln!(out, "<td>{}<td>{}.{} s ago</tr>", sensors.join(", "), gpu.age_ms / 1000, gpu.age_ms / 100 % 10)
}

fn holder(holder: &Holder) -> String {
    match &holder.memory {
        Known::Value(bytes) => format!("{} {bytes}", Text(&holder.name)),
        Known::Unknown(why) => format!("{} unknown: {}", Text(&holder.name), Text(why)),
    }
}

fn models(out: &mut String, models: &[ModelStatus], now_ms: u64) -> fmt::Result {
    writeln!(out, "<h2>Models</h2>\n<div class=\"wide\">\n<table>")?;
    writeln!(out, "<tr><th>Model<th>State<th>Where<th>Speed<th>Last used<th>Last error</tr>")?;
    for model in models {
        let gpus: Vec<String> = model.gpus.iter().map(u32::to_string).collect();
        let place = if gpus.is_empty() { String::new() } else { format!("GPU {}", gpus.join("+")) };
        let short = model.short.map_or_else(String::new, |short: Bytes| format!(", by {short}"));
        let speed = model.requests.tokens_per_second;
        let speed = speed.map_or_else(String::new, |speed| format!("{speed:.0} tok/s"));
        let used = model.requests.last_used_ms;
        let used = used.map_or_else(String::new, |at| format!("{} ago", Ago(now_ms, at)));
        writeln!(
            out,
            "<tr><td>{}<td>{}{short}<td>{place}<td>{speed}<td>{used}<td>{}</tr>",
            Text(&model.name),
            word(model.state),
            Text(model.last_error.as_deref().unwrap_or_default())
        )?;
    }
    writeln!(out, "</table>\n</div>")
}

fn word(state: ModelState) -> &'static str {
    match state {
        ModelState::Serving => "serving",
        ModelState::Loading => "loading",
        ModelState::Stopping => "stopping",
        ModelState::Off => "off",
        ModelState::TooBig => "too big",
        ModelState::Failed => "failed",
        ModelState::Quarantined => "quarantined",
        ModelState::Retired => "retired",
    }
}

fn steps(out: &mut String, swap: &SwapSummary) -> fmt::Result {
    let model = swap.model.as_ref().map_or_else(String::new, |model| format!(" {}", Text(model)));
    let end = match swap.outcome {
        None => "under way",
        Some(Outcome::Done) => "done",
        Some(Outcome::Restored) => "failed, and what served before serves again",
        Some(Outcome::Degraded) => "failed, and not all that should serve does",
    };
    let seconds = Seconds(swap.elapsed_ms);
    writeln!(out, "<p>{}{model}: {end}, {seconds}</p>\n<ul>", swap.verb.as_str())?;
    for step in swap.steps.iter().filter(|step| step.state != StepState::Skipped) {
        let state = match step.state {
            StepState::Began => "goes on",
            StepState::Failed => "failed",
            StepState::Done | StepState::Skipped => "done",
        };
        let name = format!("{:?}", step.step).to_lowercase();
        writeln!(out, "<li>{name}: {state}, {} {}</li>", Seconds(step.elapsed_ms), Text(&step.detail))?;
    }
    writeln!(out, "</ul>")?;
    match &swap.reason {
        Some(why) => writeln!(out, "<p>{}</p>", Text(why)),
        None => Ok(()),
    }
}

/// Milliseconds as seconds.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} s", self.0 / 1000, self.0 / 100 % 10)
    }
}

/// How long before a moment another was, in its largest unit.
struct Ago(u64, u64);

impl Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.saturating_sub(self.1) / 1000 {
            seconds @ 0..60 => write!(f, "{seconds} s"),
            seconds @ 60..3600 => write!(f, "{} min", seconds / 60),
            seconds @ 3600..172_800 => write!(f, "{} h", seconds / 3600),
            seconds => write!(f, "{} d", seconds / 86_400),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn status() -> Status {
        let mib = 1u64 << 20;
        serde_json::from_value(json!({
            "schema": 1, "node": "tower", "version": "0.1.0", "at_ms": 1_000_000, "uptime_ms": 5000,
            "default": "aeon", "home": ["aeon"],
            "gpus": { "value": [
                { "index": 0, "id": "GPU-0", "name": "card", "age_ms": 420, "temperature_c": 52, "power_w": null,
                  "utilization_percent": null,
                  "memory": { "value": { "total": 16384 * mib, "reserved": 300 * mib, "used": 2048 * mib,
                      "free": 14036 * mib, "foreign": 0, "kept": 2048 * mib, "headroom": 256 * mib } },
                  "holders": { "value": [{ "name": "<script>alert('x')</script>", "ours": false, "pids": [7],
                      "memory": { "value": 2048 * mib } }] } },
                { "index": 1, "id": "GPU-1", "name": "card", "age_ms": 9000, "temperature_c": null, "power_w": null,
                  "utilization_percent": null, "memory": { "unknown": "it fell off the bus" },
                  "holders": { "unknown": "it fell off the bus" } }
            ] },
            "host": { "value": { "total": 32768 * mib, "available": 16384 * mib } },
            "models": [{ "name": "aeon", "state": "too_big", "gpus": [0, 1], "memory": null, "since_ms": null,
                "address": "127.0.0.1:8101", "aliases": [], "pid": null, "to_switch_ms": null, "short": 1024 * mib,
                "last_error": "\"no\" & never" }],
            "swap": null, "last_swap": null,
            "problems": [{ "code": "degraded", "since_ms": 940_000, "text": "a < b", "next": "berthctl logs aeon" }]
        }))
        .unwrap()
    }

    #[test]
    fn all_is_told_and_nothing_of_it_is_markup() {
        let page = render(&status(), false, false);
        for text in [
            "2.0 GiB of 16.0 GiB",
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; 2.0 GiB",
            "<td>GPU 1<td>unknown: it fell off the bus<td>unknown<td>unknown: it fell off the bus",
            "52 °C<td>0.4 s ago",
            "RAM<td>16.0 GiB of 32.0 GiB",
            "<td>aeon<td>too big, by 1.0 GiB<td>GPU 0+1",
            "&quot;no&quot; &amp; never",
            "a &lt; b",
            "(degraded, since 1 min)",
            "Node 20.19",
        ] {
            assert!(page.contains(text), "{text} is not in {page}");
        }
        assert!(!page.contains("<script"), "{page}");
        assert!(render(&status(), true, true).contains("<a href=\"./\">dashboard</a>"));
    }
}
