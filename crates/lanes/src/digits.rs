//! Bytes as hexadecimal digits: a repository's directories are lists of millions of names.
//!
//! Crash story: pure functions.

/// The two digits of each byte.
const PAIRS: [[u8; 2]; 256] = {
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        let digits = b"0123456789abcdef";
        pairs[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    pairs
};

/// The digits of a hash, lower case.
#[must_use]
pub fn digits(hash: &[u8; 32]) -> [u8; 64] {
    let mut digits = [0; 64];
    for (byte, pair) in hash.iter().zip(digits.as_chunks_mut::<2>().0) {
        *pair = PAIRS[usize::from(*byte)];
    }
    digits
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_byte_has_its_digits() {
        for first in (0..=u8::MAX).step_by(32) {
            let hash: [u8; 32] = std::array::from_fn(|n| first + n as u8);
            let expected: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(super::digits(&hash), expected.as_bytes());
        }
    }
}
