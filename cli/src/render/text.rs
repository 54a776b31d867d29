//! Words and figures: durations, ages, memory, lists, bars, colours.

use std::fmt::Write as _;

use berth_core::bytes::Bytes;
use berth_core::name::ModelName;
use textwrap::{Options, WordSplitter};

/// The columns that all output fits into.
pub(crate) const WIDTH: usize = 80;

/// What a colour is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Warn,
    Bad,
    Dim,
    Bold,
}

/// Whether to colour.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    pub(crate) color: bool,
}

impl Paint {
    /// The text in the tone's colour.
    pub(crate) fn tint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.color || text.is_empty() => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Dim => "2",
            Tone::Bold => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A measured duration: `0.0 s`, `59.9 s`, `1m04s`, `1h02m`.
pub(crate) fn took(ms: u64) -> String {
    if ms < 59_950 { format!("{:.1} s", ms as f64 / 1000.0) } else { long(ms) }
}

/// A duration that is a guess: `0.4 s`, `19 s`, `1m04s`.
pub(crate) fn about(ms: u64) -> String {
    match ms {
        0..9_950 => format!("{:.1} s", ms as f64 / 1000.0),
        9_950..59_500 => format!("{} s", (ms + 500) / 1000),
        _ => long(ms),
    }
}

fn long(ms: u64) -> String {
    let seconds = (ms + 500) / 1000;
    if seconds < 3600 {
        format!("{}m{:02}s", seconds / 60, seconds % 60)
    } else {
        format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60)
    }
}

/// A long while in its largest unit: `40 s`, `12 min`, `5 h`, `3 d`.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// GiB with one decimal and no unit; less than a twentieth of one is still not nothing.
pub(crate) fn gib(bytes: Bytes) -> String {
    match bytes.gib() {
        g if g > 0.0 && g < 0.05 => "<0.1".to_owned(),
        g => format!("{g:.1}"),
    }
}

/// `GPU 0`, `GPU 0+1`, `GPU 0-7`; `-` for none.
pub(crate) fn gpus(indices: &[u32]) -> String {
    let run = indices.windows(2).all(|pair| pair[1] == pair[0] + 1);
    match indices {
        [] => "-".to_owned(),
        [first, .., last] if run && indices.len() > 2 => format!("GPU {first}-{last}"),
        _ => format!("GPU {}", join(indices.iter(), "+")),
    }
}

/// `aeon`, `aeon and embedder`, `a, b and c`.
pub(crate) fn names(models: &[ModelName]) -> String {
    match models {
        [] => "nothing".to_owned(),
        [only] => only.to_string(),
        [rest @ .., last] => format!("{} and {last}", join(rest.iter(), ", ")),
    }
}

/// The items with a separator between them.
pub(crate) fn join<T: ToString>(items: impl Iterator<Item = T>, separator: &str) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(separator)
}

/// A bar of `width` cells; what is not nothing shows at least one.
pub(crate) fn bar(part: Bytes, whole: Bytes, width: usize) -> String {
    let share = if whole.0 == 0 { 0.0 } else { part.0 as f64 / whole.0 as f64 };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let cells = (share * width as f64).round() as usize;
    let cells = cells.clamp(usize::from(part.0 > 0), width);
    format!("{}{}", "█".repeat(cells), "░".repeat(width - cells))
}

/// The text without escape sequences and other control characters: logs and program names are not ours, and
/// must not steer the reader's terminal.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => match chars.next() {
                // CSI: up to its final byte.
                Some('[') => while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {},
                // OSC, DCS and the like: up to BEL or the ST that ends them.
                Some(']' | 'P' | '^' | '_' | 'X') => {
                    while chars.next_if(|c| !matches!(c, '\x07' | '\x1b')).is_some() {}
                    if chars.peek() == Some(&'\x1b') {
                        chars.next();
                    }
                }
                _ => continue,
            },
            '\t' => {
                out.push_str("    ");
                continue;
            }
            c if !c.is_control() && !is_bidi(c) => {
                out.push(c);
                continue;
            }
            _ => continue,
        }
        // The final byte of the sequence that was skipped.
        chars.next();
    }
    out
}

/// Characters that turn the order of text around on a terminal.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Columns that the text takes on a terminal.
pub(crate) fn columns(text: &str) -> usize {
    textwrap::core::display_width(text)
}

/// A line without what is beyond so many columns; colours take none, and end where they ended.
pub(crate) fn cut(line: &str, width: usize) -> String {
    let mut used = 0;
    let (mut kept, mut full) = (String::new(), false);
    let room = if columns(line) > width { width.saturating_sub(1) } else { width };
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            kept.push(c);
            kept.extend(chars.by_ref().take_while(|c| *c != 'm'));
            kept.push('m');
            continue;
        }
        let wide = columns(c.encode_utf8(&mut [0; 4]));
        full = full || used + wide > room;
        if !full {
            used += wide;
            kept.push(c);
        }
    }
    if full && width > 0 { kept + "…" } else { kept }
}

/// The text broken into lines of at most `width` columns; never none.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let options = Options::new(width.max(1)).word_splitter(WordSplitter::NoHyphenation);
    textwrap::wrap(text, options).into_iter().map(|line| line.trim_end().to_owned()).collect()
}

/// The text as a paragraph: the first line after `first`, the others after as many blanks.
pub(crate) fn paragraph(first: &str, text: &str) -> String {
    let indent = columns(first);
    let mut out = String::new();
    for (i, line) in wrap(text, WIDTH.saturating_sub(indent)).iter().enumerate() {
        let lead = if i == 0 { first.to_owned() } else { " ".repeat(indent) };
        // Writing to a String cannot fail.
        _ = writeln!(out, "{}", format!("{lead}{line}").trim_end());
    }
    out
}

/// Parts on as few lines as they fit into, three blanks between them.
pub(crate) fn spread(parts: &[String]) -> String {
    let mut out = String::new();
    let mut used = 0;
    for part in parts.iter().filter(|part| !part.is_empty()) {
        // A part breaks inside only where it has a line of its own and is still too long.
        for line in wrap(part, WIDTH - 2) {
            let width = columns(&line);
            let gap = match used {
                0 => "",
                _ if used + 3 + width <= WIDTH => "   ",
                _ => "\n  ",
            };
            used = if gap.starts_with('\n') { 2 } else { used + gap.len() } + width;
            out.push_str(gap);
            out.push_str(&line);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well_and_never_as_sixty_seconds() {
        let shown = [0, 40, 59_949, 59_950, 64_000, 3_599_000, 3_720_000].map(took);
        assert_eq!(shown, ["0.0 s", "0.0 s", "59.9 s", "1m00s", "1m04s", "59m59s", "1h02m"]);
        assert_eq!(
            [400, 9_960, 19_400, 59_499, 59_500].map(about),
            ["0.4 s", "10 s", "19 s", "59 s", "1m00s"]
        );
        assert_eq!([400, 61_000, 7_200_000, 259_200_000].map(age), ["0 s", "1 min", "2 h", "3 d"]);
    }

    #[test]
    fn little_is_not_nothing() {
        assert_eq!(gib(Bytes::ZERO), "0.0");
        assert_eq!(gib(Bytes::mib(20)), "<0.1");
        assert_eq!(gib(Bytes::mib(14643)), "14.3");
        assert_eq!(bar(Bytes::mib(1), Bytes::mib(16000), 5), "█░░░░");
        assert_eq!(bar(Bytes::ZERO, Bytes::ZERO, 3), "░░░");
        assert_eq!(bar(Bytes::mib(9), Bytes::mib(8), 3), "███");
    }

    #[test]
    fn lists_of_gpus_stay_short() {
        assert_eq!(gpus(&[]), "-");
        assert_eq!(gpus(&[0, 1]), "GPU 0+1");
        assert_eq!(gpus(&[0, 1, 2, 3]), "GPU 0-3");
        assert_eq!(gpus(&[0, 2, 3]), "GPU 0+2+3");
    }

    #[test]
    fn what_a_server_prints_cannot_steer_the_terminal() {
        assert_eq!(clean("\x1b[1;31mERROR\x1b[0m: no\x07 \x1b]0;title\x07room\r"), "ERROR: no room");
        assert_eq!(clean("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ a\tb\u{202e}c"), "link a    bc");
        assert_eq!(clean("\x1b"), "");
        assert_eq!(clean("\x1b[12"), "");
    }

    #[test]
    fn parts_break_at_their_borders() {
        let long = "x".repeat(50);
        assert_eq!(spread(&["a".into(), String::new(), "b".into()]), "a   b");
        assert_eq!(spread(&[long.clone(), long.clone(), "c".into()]), format!("{long}\n  {long}   c"));
    }
}
