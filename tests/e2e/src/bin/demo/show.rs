//! What the reader sees: 80 columns, few words.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::report::{Step, StepState, SwapSummary};
use berth_tests::{PROMPT, step_ms};

use crate::by_hand::ByHand;
use crate::servers::Servers;
use crate::with_berth::Switched;

/// The longest line.
const WIDTH: usize = 80;

pub(crate) fn title(servers: &Servers) {
    let (who, how) = if servers.are_real() {
        ("llama.cpp's llama-server with Gemma 3 270M", "")
    } else {
        ("fakellm, since the real llama-server is not to be had here", "\n(it pretends; all else is real)")
    };
    println!("{}", bold("Berth in a minute"));
    println!("A machine in a sandbox, with its own systemd and two simulated GPUs of 16 GiB.");
    println!("As on real ones, a dead process's memory comes back late: after 2.5 s.");
    println!("aeon and genesis are {who}.{how}");
    println!("Each holds 14.0 GiB on both GPUs, so only one of them fits.");
}

pub(crate) fn booted(after: Duration) {
    println!("Booted in {}.", seconds(after));
}

pub(crate) fn heading(text: &str) {
    println!("\n{}", bold(text));
}

/// A command of root's and what came of it.
pub(crate) fn command(typed: &str, outcome: &str) {
    println!("# {typed:<30} {outcome}");
}

/// A command whose own output follows.
pub(crate) fn typed(user: &str, command: &str) {
    println!("{user}$ {}", bold(command));
}

pub(crate) fn answer(model: &str, answer: &str) {
    let line =
        format!("  {model}, asked \"{PROMPT}\": {}", answer.split_whitespace().collect::<Vec<_>>().join(" "));
    println!("{}", cut(&line));
}

/// How genesis died by hand.
pub(crate) fn death(reason: &str, held: Bytes) {
    let words = reason.find("allocating").map_or(reason, |start| &reason[start..]);
    println!("{}", cut(&format!("  {}", words.trim())));
    println!("  aeon was gone, but {held} of its memory were not back. Nothing serves now.");
}

/// The steps of both ways, and their times.
pub(crate) fn table(by_hand: &ByHand, swap: &SwapSummary) {
    println!();
    let row = |step: &str, by_hand: &str, berth: &str| println!("{step:<18}{by_hand:>18}{berth:>14}");
    let time = |step| step_ms(swap, step).map_or_else(|| "-".to_owned(), millis);
    row("aeon -> genesis", "by hand", "with Berth");
    row("checked", "no", &time(Step::Checked));
    row("aeon stopped", &seconds(by_hand.stopped), &time(Step::Stopped));
    row("memory released", "not waited for", &time(Step::Released));
    row("genesis ready", "out of memory", &time(Step::Ready));
    row("no answers for", "until repaired", &swap.gap_ms.map_or_else(|| "-".to_owned(), millis));
    println!();
}

/// The line that scripts read: moments count from the switch's beginning.
pub(crate) fn last_line(by_hand: &ByHand, switched: &Switched) {
    let swap = &switched.swap;
    let until = |last: Step| -> u64 {
        let done = swap.steps.iter().filter(|report| report.state == StepState::Done && report.step <= last);
        done.map(|report| report.elapsed_ms).sum()
    };
    println!(
        "demo: switched aeon -> genesis, released after {} ms, ready after {} ms, \
         failed allocations with berth {}, without berth {}",
        until(Step::Released),
        swap.elapsed_ms,
        switched.failed,
        by_hand.failed
    );
}

/// For a reader at a terminal.
pub(crate) fn what_to_try(dir: &Path) {
    println!("\n{}", bold("It stays up until Ctrl-C. In another terminal:"));
    let sudo = if std::env::var_os("SUDO_USER").is_some() { "sudo " } else { "" };
    println!("  {sudo}target/debug/sandbox shell --dir {}", dir.display());
    println!("and there, for example:");
    for (command, what) in [
        ("berthctl", "who holds the GPUs, what serves"),
        ("berthctl back", "undo the switch"),
        ("berthctl plan switch aeon", "what would happen; touches nothing"),
        ("gpusim ctl linger 8s", "memory comes back later still"),
        ("systemctl start berth-model@aeon", "refused: only berthd starts models"),
        ("systemctl restart berthd", "what serves goes on serving"),
    ] {
        println!("  {command:<34} {what}");
    }
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn millis(ms: u64) -> String {
    seconds(Duration::from_millis(ms))
}

/// At most a line.
fn cut(line: &str) -> String {
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}

fn bold(text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if std::io::stdout().is_terminal() && !plain { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}
