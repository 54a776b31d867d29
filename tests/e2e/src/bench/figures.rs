//! Figures from many measurements.

/// The value that so many percent of the measurements don't exceed (nearest rank); 0 of none.
pub(super) fn percentile(values: &[u64], percent: usize) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or_default()
}

/// Nanoseconds as milliseconds with one decimal.
pub(super) fn millis(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let values: Vec<u64> = (1..=200).rev().collect();
        assert_eq!(
            (percentile(&values, 50), percentile(&values, 99), percentile(&values, 100)),
            (100, 198, 200)
        );
        assert_eq!((percentile(&[7], 50), percentile(&[7], 99), percentile(&[], 50)), (7, 7, 0));
        assert_eq!(percentile(&[3, 1], 50), 1);
    }

    #[test]
    fn one_decimal() {
        assert_eq!(millis(1_250_000), "1.2");
        assert_eq!(millis(0), "0.0");
    }
}
