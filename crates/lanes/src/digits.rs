//! Hashes as hexadecimal digits, in which they stand in index files and trees, millions of them.
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

/// The 32 bytes that 64 digits of either case stand for; nothing if one of them is none.
///
/// Loops without a branch or a table, for the compiler to do 16 digits at a time.
#[must_use]
pub fn from_digits(digits: &[u8; 64]) -> Option<[u8; 32]> {
    let (mut values, mut wrong) = ([0; 64], 0);
    for (value, digit) in values.iter_mut().zip(digits) {
        let number = digit.wrapping_sub(b'0');
        let letter = (digit | 0x20).wrapping_sub(b'a');
        *value = if number < 10 { number } else { letter.wrapping_add(10) };
        wrong |= u8::from((number >= 10) & (letter >= 6));
    }
    let mut bytes = [0; 32];
    for (byte, [high, low]) in bytes.iter_mut().zip(values.as_chunks::<2>().0) {
        *byte = high << 4 | low & 15;
    }
    (wrong == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::from_digits;

    #[test]
    fn every_byte_has_its_digits() {
        for first in (0..=u8::MAX).step_by(32) {
            let hash: [u8; 32] = std::array::from_fn(|n| first + n as u8);
            let expected: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(super::digits(&hash), expected.as_bytes());
        }
    }

    /// The library is the oracle; every byte stands at every place.
    #[test]
    fn digits_are_what_the_library_takes_for_digits() {
        let digits = *b"0123456789abcdefABCDEF99f0E1d2C3b4A5968778695a4B3c2D1e0Fffffffff";
        for place in 0..64 {
            for byte in 0..=255 {
                let mut changed = digits;
                changed[place] = byte;
                let mut expected = [0; 32];
                let is_right = hex::decode_to_slice(changed, &mut expected).is_ok();
                assert_eq!(from_digits(&changed), is_right.then_some(expected), "{byte} at {place}");
            }
        }
    }
}
