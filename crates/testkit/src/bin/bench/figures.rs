//! Figures of repeated measurements.

use std::time::Duration;

/// Milliseconds with one decimal.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The median; of an even count the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The largest.
pub fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

/// As a cell of a table.
pub fn cell(value: f64) -> String {
    if value.is_nan() { "–".to_owned() } else { format!("{value:.1}") }
}

/// Medians and worst of a column.
pub fn column<T>(rows: &[T], of: impl Fn(&T) -> f64) -> Vec<f64> {
    rows.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::{cell, median, worst};

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(worst(&[1.0, 7.0, -2.0]), 7.0);
        assert_eq!((cell(median(&[])), cell(-1.25)), ("–".to_owned(), "-1.2".to_owned()));
    }
}
