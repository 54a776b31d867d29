//! Times, as people write them.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;

use super::Table;

/// No step of a swap takes longer than this, so a longer deadline is a slip of the pen.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl Table<'_, '_> {
    pub(in crate::config) fn duration_or(&mut self, key: &'static str, otherwise: Duration) -> Duration {
        const EXPECTED: &str = "a time, for example \"90 s\", \"15 min\" or \"1h 30m\"";
        let text = self.string(key, EXPECTED);
        self.by_default(key, shown(otherwise));
        text.and_then(|text| self.time(key, &text, EXPECTED)).unwrap_or(otherwise)
    }

    /// A time, or None where it is written `"off"`; `otherwise` where it is not written.
    pub(in crate::config) fn duration_or_off(
        &mut self,
        key: &'static str,
        otherwise: Option<Duration>,
    ) -> Option<Duration> {
        const EXPECTED: &str = "a time, for example \"10 s\" or \"5 min\", or \"off\"";
        let text = self.string(key, EXPECTED);
        self.by_default(key, otherwise.map_or("off".to_owned(), shown));
        let Some(text) = text else { return otherwise };
        if text.get_ref() == "off" { None } else { self.time(key, &text, EXPECTED) }
    }

    /// A time within `range`; `expected` says what it is, with its bounds.
    pub(in crate::config) fn duration_within(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        expected: &str,
        otherwise: Duration,
    ) -> Duration {
        let text = self.string(key, expected);
        self.by_default(key, shown(otherwise));
        let Some(text) = text else { return otherwise };
        let label = match humantime::parse_duration(text.get_ref()) {
            Ok(time) if range.contains(&time) => return time,
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        self.complain(key, expected, &text.span(), &label);
        otherwise
    }

    fn time(&self, key: &str, text: &Spanned<String>, expected: &str) -> Option<Duration> {
        let label = match humantime::parse_duration(text.get_ref()) {
            Ok(Duration::ZERO) => "nothing can be done in no time".to_owned(),
            Ok(time) if time > LONGEST => "at most 24 h are allowed".to_owned(),
            Ok(time) => return Some(time),
            Err(error) => error.to_string(),
        };
        self.reader.error(format!("`{}{key}` must be {expected}", self.prefix), &text.span(), label);
        None
    }
}

/// A time as people write it.
pub(in crate::config) fn shown(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}
