//! A table without lines: columns as wide as what is in them, and some that wrap into what is left.

use super::text::{Paint, Tone, WIDTH, columns, paragraph, wrap};

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    Left,
    Right,
    /// To the left, and wrapped into what the others leave; several share it.
    Wrap,
}

/// Rows of cells; a shorter row ends early.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    indent: usize,
    rows: Vec<Row>,
}

#[derive(Debug)]
enum Row {
    Cells(Vec<(Tone, String)>),
    /// A label in the first column, and a text over all others.
    Span(Tone, String, String),
}

const GAP: usize = 2;
/// A column that wraps is never narrower than this.
const NARROWEST: usize = 8;

impl Table {
    /// An empty table, indented by so many blanks.
    pub(crate) fn new(indent: usize, columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), indent, rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<(Tone, String)>) {
        self.rows.push(Row::Cells(cells));
    }

    /// Adds a label and a text that takes the room of all other columns.
    pub(crate) fn span(&mut self, tone: Tone, label: &str, text: &str) {
        self.rows.push(Row::Span(tone, label.to_owned(), text.to_owned()));
    }

    /// Adds a row in one tone.
    pub(crate) fn plain<S: ToString>(&mut self, tone: Tone, cells: &[S]) {
        self.row(cells.iter().map(|cell| (tone, cell.to_string())).collect());
    }

    /// The table's lines, each ended.
    pub(crate) fn render(&self, paint: Paint) -> String {
        let widths = self.widths();
        let mut out = String::new();
        for row in &self.rows {
            let row = match row {
                Row::Cells(cells) => cells,
                Row::Span(tone, label, text) => {
                    let blanks = " ".repeat(widths[0].saturating_sub(columns(label)) + GAP);
                    let lead = format!("{}{label}{blanks}", " ".repeat(self.indent));
                    let lines = paragraph(&lead, text);
                    out.extend(lines.lines().map(|line| paint.tint(*tone, line) + "\n"));
                    continue;
                }
            };
            let cells: Vec<Vec<String>> = row
                .iter()
                .enumerate()
                .map(|(i, (_, text))| match self.columns[i] {
                    Column::Wrap => wrap(text, widths[i]),
                    Column::Left | Column::Right => vec![text.clone()],
                })
                .collect();
            let height = cells.iter().map(Vec::len).max().unwrap_or(1);
            for line in 0..height {
                out.push_str(self.line(row, &cells, &widths, line, paint).trim_end());
                out.push('\n');
            }
        }
        out
    }

    fn line(
        &self,
        row: &[(Tone, String)],
        cells: &[Vec<String>],
        widths: &[usize],
        line: usize,
        paint: Paint,
    ) -> String {
        let mut out = " ".repeat(self.indent);
        for (i, (tone, _)) in row.iter().enumerate() {
            let text = cells[i].get(line).map_or("", String::as_str);
            let blanks = " ".repeat(widths[i].saturating_sub(columns(text)));
            let painted = paint.tint(*tone, text);
            let gap = if i + 1 < row.len() { " ".repeat(GAP) } else { String::new() };
            match self.columns[i] {
                Column::Right => out.extend([blanks, painted, gap]),
                Column::Left | Column::Wrap => out.extend([painted, blanks, gap]),
            }
        }
        out
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths = vec![0; self.columns.len()];
        for row in &self.rows {
            match row {
                Row::Cells(cells) => {
                    for (width, (_, text)) in widths.iter_mut().zip(cells) {
                        *width = columns(text).max(*width);
                    }
                }
                Row::Span(_, label, _) => widths[0] = columns(label).max(widths[0]),
            }
        }
        let is_wrapped = |i: &usize| self.columns[*i] == Column::Wrap;
        let (mut wrapped, fixed): (Vec<usize>, Vec<usize>) = (0..widths.len()).partition(is_wrapped);
        let gaps = GAP * widths.len().saturating_sub(1);
        let taken = self.indent + gaps + fixed.iter().map(|i| widths[*i]).sum::<usize>();
        let mut left = WIDTH.saturating_sub(taken);
        // The narrowest first: what it does not need is left to the others.
        wrapped.sort_by_key(|i| widths[*i]);
        for (n, i) in wrapped.iter().enumerate() {
            widths[*i] = widths[*i].min((left / (wrapped.len() - n)).max(NARROWEST));
            left = left.saturating_sub(widths[*i]);
        }
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_column_takes_what_the_others_leave() {
        let mut table = Table::new(1, &[Column::Left, Column::Right, Column::Wrap]);
        table.plain(Tone::Plain, &["GPU 0", "14.7", &"genesis 14.3 ".repeat(8)]);
        table.plain(Tone::Plain, &["GPU 1", "4.7"]);
        let shown = table.render(Paint { color: false });
        assert!(shown.lines().all(|line| columns(line) <= WIDTH), "{shown}");
        assert_eq!(shown.lines().count(), 3, "{shown}");
        assert!(shown.ends_with("GPU 1   4.7\n"), "{shown}");
    }

    #[test]
    fn colours_take_no_room() {
        let mut table = Table::new(0, &[Column::Left, Column::Left]);
        table.row(vec![(Tone::Good, "ok".into()), (Tone::Plain, "x".into())]);
        assert_eq!(table.render(Paint { color: true }), "\x1b[32mok\x1b[0m  x\n");
    }
}
