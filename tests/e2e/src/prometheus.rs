//! berthd's page for Prometheus, judged by Prometheus' own tool.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::builder::workspace;

/// A page that `promtool check metrics` has passed.
#[derive(Debug, Clone)]
pub struct Page(String);

impl Page {
    /// Has a page checked.
    ///
    /// # Errors
    /// There is no promtool, or it has something against it.
    pub fn check(text: &str) -> Result<Page> {
        // Where `tests/deps` puts it, unless it is installed.
        let own = workspace().join(".cache/promtool/promtool");
        let program = if own.exists() { own } else { PathBuf::from("promtool") };
        let mut checking = Command::new(&program)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}: run `make deps`", program.display()))?;
        let mut stdin = checking.stdin.take().context("no pipe")?;
        stdin.write_all(text.as_bytes())?;
        drop(stdin);
        let output = checking.wait_with_output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(output.status.success() && said.is_empty(), "promtool: {}: {said}\n{text}", output.status);
        Ok(Page(text.to_owned()))
    }

    /// The value of a series, written as on the page: `berth_gpu_memory_used_bytes{gpu="0",uuid="…"}`.
    pub fn value(&self, series: &str) -> Option<f64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        line.parse().ok()
    }
}
