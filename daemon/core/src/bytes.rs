//! Sizes of memory: parsed from what people write, shown as they read them.

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A number of bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// `n` mebibytes (2^20 bytes each).
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The sum, or the largest size there is.
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or nothing where `other` is larger.
    pub const fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// In GiB, for display.
    pub fn gib(self) -> f64 {
        self.0 as f64 / (1u64 << 30) as f64
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::plus)
    }
}

impl fmt::Display for Bytes {
    /// One decimal in GiB from a tenth of a GiB upwards, whole MiB below, `512 B` below one MiB.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.gib() >= 0.95 {
            write!(f, "{:.1} GiB", self.gib())
        } else if self.0 >= 1 << 20 || self.0 == 0 {
            write!(f, "{} MiB", (self.0 + (1 << 19)) >> 20)
        } else {
            write!(f, "{} B", self.0)
        }
    }
}

/// A size that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a size; write for example \"14.3 GiB\", \"900 MiB\" or \"16 GB\"")]
pub struct BadSize(pub String);

impl FromStr for Bytes {
    type Err = BadSize;

    /// Reads `14.3 GiB`, `900MiB`, `16 GB` (10^9) or a bare number of bytes.
    fn from_str(text: &str) -> Result<Self, BadSize> {
        let bad = || BadSize(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kib" | "k" => 1024.0,
            "mib" | "m" => 1024.0 * 1024.0,
            "gib" | "g" => 1024.0 * 1024.0 * 1024.0,
            "tib" | "t" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            _ => return Err(bad()),
        };
        let value = number.parse::<f64>().map_err(|_| bad())? * factor;
        if !value.is_finite() || value >= 9.0e18 {
            return Err(bad());
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(Self(value.round() as u64))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!("14.5 GiB".parse(), Ok(Bytes::mib(14848)));
        assert_eq!("900MiB".parse(), Ok(Bytes::mib(900)));
        assert_eq!("16 GB".parse(), Ok(Bytes(16_000_000_000)));
        assert_eq!("12".parse(), Ok(Bytes(12)));
        for bad in ["", "GiB", "-1 GiB", "1..2 GiB", "14 gigs", "1e30 TiB", "99999999999999999999 TiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shows_what_people_read() {
        assert_eq!(Bytes::mib(14643).to_string(), "14.3 GiB");
        assert_eq!(Bytes::mib(412).to_string(), "412 MiB");
        assert_eq!(Bytes::ZERO.to_string(), "0 MiB");
        assert_eq!(Bytes(512).to_string(), "512 B");
    }
}
