//! Prometheus' text format, version 0.0.4: what `promtool check metrics` reads too, which takes no counters of OpenMetrics.

use std::fmt::Write as _;

use super::Histogram;

/// The labels of a sample.
pub(super) type Labels = Vec<(&'static str, String)>;

/// A page that grows by whole metrics. One without samples is left out.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// Something that goes up and down. What is not known has no sample.
    pub(super) fn gauge(&mut self, name: &str, help: &str, samples: impl Iterator<Item = (Labels, f64)>) {
        self.metric(name, "gauge", help, samples);
    }

    /// Something that only goes up, until berthd is started anew.
    pub(super) fn counter(&mut self, name: &str, help: &str, samples: impl Iterator<Item = (Labels, f64)>) {
        self.metric(name, "counter", help, samples);
    }

    /// Times, in seconds.
    pub(super) fn histogram<'h>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl Iterator<Item = (Labels, &'h Histogram)>,
    ) {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return;
        }
        self.head(name, "histogram", help);
        for (labels, histogram) in samples {
            for (bound, count) in histogram.buckets() {
                let bound = bound.map_or("+Inf".to_owned(), |bound| bound.to_string());
                let labels: Labels = labels.iter().cloned().chain([("le", bound)]).collect();
                self.sample(&format!("{name}_bucket"), &labels, count as f64);
            }
            self.sample(&format!("{name}_sum"), &labels, histogram.sum().as_secs_f64());
            self.sample(&format!("{name}_count"), &labels, histogram.count() as f64);
        }
    }

    /// All of it.
    pub(super) fn finish(self) -> String {
        self.0
    }

    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: impl Iterator<Item = (Labels, f64)>) {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return;
        }
        self.head(name, kind, help);
        for (labels, value) in samples {
            self.sample(name, &labels, value);
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, String)], value: f64) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            self.0.push_str(if at == 0 { "{" } else { "," });
            _ = write!(self.0, "{label}=\"");
            for c in text.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        let end = if labels.is_empty() { "" } else { "}" };
        _ = writeln!(self.0, "{end} {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_page_is_as_prometheus_reads_it() {
        let mut page = Page::default();
        page.gauge("berth_nothing", "Not known.", std::iter::empty());
        let label = "a\\b\"c\nd".to_owned();
        page.gauge("berth_some_bytes", "Known.", [(vec![("name", label)], 17_102_274_560.0)].into_iter());
        let mut times = Histogram::default();
        times.add(Duration::from_millis(30));
        times.add(Duration::from_secs(400));
        page.histogram("berth_wait_seconds", "Waits.", [(Labels::new(), &times)].into_iter());
        let text = page.finish();
        assert!(
            text.starts_with(
                "# HELP berth_some_bytes Known.\n# TYPE berth_some_bytes gauge\n\
                 berth_some_bytes{name=\"a\\\\b\\\"c\\nd\"} 17102274560\n"
            ),
            "{text}"
        );
        let has = |line: &str| assert!(text.lines().any(|one| one == line), "{line}: {text}");
        has("berth_wait_seconds_bucket{le=\"0.01\"} 0");
        has("berth_wait_seconds_bucket{le=\"0.05\"} 1");
        has("berth_wait_seconds_bucket{le=\"300\"} 1");
        has("berth_wait_seconds_bucket{le=\"+Inf\"} 2");
        has("berth_wait_seconds_sum 400.03");
        has("berth_wait_seconds_count 2");
    }
}
