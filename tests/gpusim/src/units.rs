//! Sizes and durations as people write them: `14300MiB`, `14.3GiB`, `2500ms`, `3s`.

use std::time::Duration;

/// One mebibyte in bytes.
pub const MIB: u64 = 1 << 20;

/// Splits `14.3GiB` into its number and its unit.
fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.parse().map_err(|_| format!("`{text}` does not start with a number"))?;
    Ok((number, unit.trim()))
}

/// Bytes of `14300MiB`, `14.3GiB`, `512K` or a plain number of bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => MIB,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(format!("`{unit}` in `{text}` is no unit of size; write MiB or GiB")),
    };
    // Whole numbers stay exact; only fractions go through floating point.
    if number.fract() == 0.0 {
        let digits = text.trim().split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        let whole: u64 = digits.parse().map_err(|_| format!("`{text}` is too large"))?;
        return whole.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok((number * factor as f64).round() as u64)
}

/// The duration of `2500ms`, `3s`, `1.5s`, `2m`; a plain number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "" | "s" => number,
        "ms" => number / 1e3,
        "us" => number / 1e6,
        "m" | "min" => number * 60.0,
        _ => return Err(format!("`{unit}` in `{text}` is no unit of time; write ms or s")),
    };
    // Whole nanoseconds: 2.5e9 and not 2499999999.
    Duration::try_from_secs_f64((seconds * 1e9).round() / 1e9).map_err(|error| format!("`{text}`: {error}"))
}

/// Nanoseconds of a duration, capped at what 64 bits hold.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// `14300.00 MiB`, as the servers print it.
pub fn mib(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / MIB as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("14300MiB").unwrap(), 14300 * MIB);
        assert_eq!(parse_size("1.5 GiB").unwrap(), 1536 * MIB);
        assert_eq!(parse_size("0").unwrap(), 0);
        assert_eq!(parse_size("18446744073709551615").unwrap(), u64::MAX);
        for bad in ["", "GiB", "5 apples", "-1MiB", "99999999999999999999", "18446744073709551615MiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("2500ms").unwrap(), Duration::from_millis(2500));
        assert_eq!(parse_duration("0.3s").unwrap(), Duration::from_millis(300));
        assert_eq!(parse_duration("45").unwrap(), Duration::from_secs(45));
        assert!(parse_duration("soon").is_err());
    }
}
