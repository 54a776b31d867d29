//! The cards themselves: what a specification like `2x16311` means, and what a card is called.

use serde::{Deserialize, Serialize};

use crate::units::{MIB, parse_size};

/// Total memory of a card when nothing else is said: what a 16 GiB RTX 5060 Ti reports.
pub const DEFAULT_TOTAL: u64 = 16311 * MIB;
/// What the driver keeps for itself: total = reserved + free + used.
pub const DEFAULT_RESERVED: u64 = 388 * MIB;

/// What never changes of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Position in the driver's order.
    pub index: u32,
    /// `GPU-` and a UUID; the same for the same index and seed, always.
    pub uuid: String,
    /// The product's name.
    pub name: String,
    /// Bytes.
    pub total: u64,
    /// Bytes of `total` that the driver keeps.
    pub reserved: u64,
    /// PCI bus number; the full id is `00000000:BB:00.0`.
    pub bus: u32,
    /// Power limit in milliwatts.
    pub power_limit_mw: u32,
}

impl Card {
    /// Card `index` with `total` bytes. `seed` tells the cards of one simulated machine from another's.
    pub fn new(index: u32, total: u64, seed: u64) -> Self {
        let high = mix(seed.wrapping_mul(0x1000).wrapping_add(u64::from(index)).wrapping_add(1));
        let low = mix(high);
        Card {
            index,
            uuid: format!(
                "GPU-{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
                high >> 32,
                (high >> 16) & 0xffff,
                high & 0xfff,
                0x8000 | (low >> 48 & 0x3fff),
                low & 0xffff_ffff_ffff
            ),
            name: "Simulated RTX 5060 Ti".to_owned(),
            total,
            reserved: DEFAULT_RESERVED.min(total / 4),
            bus: index + 1,
            power_limit_mw: 180_000,
        }
    }

    /// The long form of the PCI address.
    pub fn bus_id(&self) -> String {
        format!("00000000:{:02X}:00.0", self.bus)
    }
}

/// A well-mixed 64-bit value out of any other (splitmix64's finalizer).
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Totals of the cards in `2x16311`, `1x16311MiB,1x24GiB` or a bare count (`0`, `2`) of default cards. A size
/// without a unit is MiB here, since that is how cards are spoken of.
pub fn parse_cards(spec: &str) -> Result<Vec<u64>, String> {
    let mut totals = Vec::new();
    for part in spec.split(',') {
        let (count, total) = match part.split_once('x') {
            None => (part, DEFAULT_TOTAL),
            Some((count, size)) => {
                let bytes = parse_size(size)?;
                let bare = size.trim().chars().all(|c| c.is_ascii_digit() || c == '.');
                (count, if bare { bytes.saturating_mul(MIB) } else { bytes })
            }
        };
        let count: usize = count
            .trim()
            .parse()
            .map_err(|_| format!("`{part}` is not cards; write COUNTxSIZE like 2x16311, or a count"))?;
        if count > 64 || total == 0 {
            return Err(format!("`{part}`: at most 64 cards, and none without memory"));
        }
        totals.extend(std::iter::repeat_n(total, count));
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn specifications() {
        assert_eq!(parse_cards("2x16311").unwrap(), [16311 * MIB; 2]);
        assert_eq!(parse_cards("1x16311MiB,1x24GiB").unwrap(), [16311 * MIB, 24 << 30]);
        assert_eq!(parse_cards("0").unwrap(), [0; 0]);
        assert_eq!(parse_cards("1").unwrap(), [DEFAULT_TOTAL]);
        for bad in ["", "x", "2x", "65", "1x0", "two"] {
            assert!(parse_cards(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn uuids_are_stable_and_differ() {
        let (a, b) = (Card::new(0, DEFAULT_TOTAL, 0), Card::new(1, DEFAULT_TOTAL, 0));
        assert_eq!(a, Card::new(0, DEFAULT_TOTAL, 0));
        assert_ne!(a.uuid, b.uuid);
        assert_ne!(a.uuid, Card::new(0, DEFAULT_TOTAL, 1).uuid);
        assert_eq!(a.uuid.len(), "GPU-".len() + 36);
        assert_eq!(b.bus_id(), "00000000:02:00.0");
    }
}
