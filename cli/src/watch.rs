//! `status --watch`: the picture of the node, with the steps of a swap, drawn again where it stands and cut to the window.

use std::time::Duration;

use berth_core::report::Status;
use terminal_size::{Height, Width, terminal_size};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;
use crate::render::text::cut;
use crate::render::{self, swap};
use crate::verbs::Context;

/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(1);
/// The same while a swap is under way.
const SWAPPING: Duration = Duration::from_millis(250);

impl Context {
    /// `status --watch`; also without berthd. Goes on until it is dropped.
    pub(crate) async fn watch(&self) -> Result<Exit, Complaint> {
        let mut resized = signal(SignalKind::window_change()).ok();
        let (mut frame, mut size) = (0, None);
        loop {
            let (status, _) = self.look().await;
            if self.out.json {
                Out::document(&status);
            } else {
                let text = self.picture(&status, frame);
                let now = terminal_size().filter(|_| self.out.terminal);
                Out::say(&drawn(&text, now, frame == 0 || now != size));
                size = now;
            }
            frame += 1;
            let pause = sleep(if status.swap.is_some() { SWAPPING } else { RENEW });
            match &mut resized {
                Some(resized) => tokio::select! {
                    () = pause => {}
                    _ = resized.recv() => {}
                },
                None => pause.await,
            }
        }
    }

    /// The node, and below it the swap under way with its steps.
    fn picture(&self, status: &Status, frame: usize) -> String {
        let Some(under_way) = &status.swap else { return render::status::status(status, self.out.paint) };
        let node = Status { swap: None, ..status.clone() };
        let node = render::status::status(&node, self.out.paint);
        format!("{node}\n{}", swap::live(under_way, frame, self.out.paint))
    }
}

/// The text for where the last one stands, or for an `empty` screen; without a terminal below the last one.
fn drawn(text: &str, size: Option<(Width, Height)>, empty: bool) -> String {
    let Some((Width(columns), Height(rows))) = size else {
        return if empty { text.to_owned() } else { format!("\n{text}") };
    };
    let fitted = fitted(text, columns.into(), rows.into());
    if empty {
        return format!("\x1b[2J\x1b[H{fitted}");
    }
    // Line by line over the last one: clearing it all first would flicker.
    format!("\x1b[H{}\x1b[K\x1b[J", fitted.replace('\n', "\x1b[K\n"))
}

/// What of a text fits into a window, without a line break at its end, at which the window would scroll.
fn fitted(text: &str, columns: usize, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let shown = if lines.len() > rows { rows.saturating_sub(1) } else { lines.len() };
    let mut fitted: Vec<String> = lines[..shown].iter().map(|line| cut(line, columns)).collect();
    if shown < lines.len() {
        fitted.push(cut(&format!("… {} more lines in a higher window", lines.len() - shown), columns));
    }
    fitted.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_cut_to_the_window() {
        let text = "\x1b[1mtower\x1b[0m serves\nGPU 0 ████░\nGPU 1 ██░░░\n";
        assert_eq!(fitted(text, 80, 24), text.trim_end());
        assert_eq!(fitted(text, 8, 3), "\x1b[1mtower\x1b[0m s…\nGPU 0 █…\nGPU 1 █…");
        assert_eq!(fitted(text, 80, 2), "\x1b[1mtower\x1b[0m serves\n… 2 more lines in a higher window");
        assert_eq!(fitted(text, 6, 1), "… 3 m…");
        for (columns, rows) in [(0, 0), (1, 1), (2, 2), (5, 9)] {
            assert!(fitted(text, columns, rows).lines().count() <= rows.max(1), "{columns} {rows}");
        }
    }

    #[test]
    fn it_is_drawn_over_the_last_one_and_not_after_a_resize() {
        let size = |columns, rows| Some((Width(columns), Height(rows)));
        assert_eq!(drawn("a\nb\n", size(80, 24), true), "\x1b[2J\x1b[Ha\nb");
        assert_eq!(drawn("a\nb\n", size(80, 24), false), "\x1b[Ha\x1b[K\nb\x1b[K\x1b[J");
        assert_eq!((drawn("a\n", None, true), drawn("a\n", None, false)), ("a\n".into(), "\na\n".into()));
    }
}
