//! Values as SQL that gives back the very same bytes.
//!
//! Rows are read by the binary protocol with `character_set_results = NULL`: numbers come as numbers (the text
//! protocol rounds floats), texts in the bytes that the column holds. Text that is the same in ASCII and UTF-8 is
//! written as such; any other as hexadecimal digits with the character set in front.
//!
//! Crash story: pure functions, no effects.

use std::{io::Write, str};

use mysql::Value;

/// How the values of a column are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// Numbers as they come, and decimals, which come as their digits.
    Number,
    /// `ENUM` and `SET`: the index or the bits, because a text is ambiguous (an invalid value reads as an empty one).
    Ordinal,
    /// Bytes: binary strings, bits, geometry.
    Binary,
    /// Text in this character set.
    Text(Vec<u8>),
    /// A date without a time of day.
    Date,
    /// Date and time of day, or a length of time.
    Moment,
    /// A type of its own (`inet6`, `uuid`): text if it looks like it, else bytes.
    Other,
}

impl Shape {
    /// By `DATA_TYPE` and `CHARACTER_SET_NAME` of `information_schema.COLUMNS`.
    pub(super) fn of(data_type: &str, charset: Option<&str>) -> Self {
        match data_type.to_ascii_lowercase().as_str() {
            "tinyint" | "smallint" | "mediumint" | "int" | "integer" | "bigint" | "year" | "float"
            | "double" | "decimal" => Self::Number,
            "enum" | "set" => Self::Ordinal,
            "date" => Self::Date,
            "datetime" | "timestamp" | "time" => Self::Moment,
            // Of MySQL; MariaDB's is a longtext.
            "json" => Self::Text(b"utf8mb4".to_vec()),
            "bit" | "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" | "geometry"
            | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
            | "geometrycollection" | "geomcollection" | "vector" => Self::Binary,
            _ => charset.map_or(Self::Other, |name| Self::Text(name.to_ascii_lowercase().into_bytes())),
        }
    }

    /// What is selected for a column of this quoted name.
    pub(super) fn select(&self, quoted: &str) -> String {
        match self {
            Self::Ordinal => format!("CAST({quoted} AS UNSIGNED)"),
            _ => quoted.to_owned(),
        }
    }
}

/// Writes a value. What cannot be of this shape is an error.
///
/// # Errors
/// What the protocol gave and the column's type does not allow.
pub(super) fn write(out: &mut Vec<u8>, shape: &Shape, value: &Value) -> Result<(), String> {
    match (value, shape) {
        (Value::NULL, _) => out.extend_from_slice(b"NULL"),
        (Value::Int(number), _) => number_text(out, format_args!("{number}")),
        (Value::UInt(number), _) => number_text(out, format_args!("{number}")),
        // The exact double of a float, so that no decimal is rounded twice on its way back.
        (Value::Float(number), _) => number_text(out, format_args!("{:e}", f64::from(*number))),
        (Value::Double(number), _) => number_text(out, format_args!("{number:e}")),
        (Value::Bytes(bytes), Shape::Number | Shape::Ordinal) => digits(out, bytes)?,
        (Value::Bytes(bytes), Shape::Text(charset)) => text(out, charset, bytes),
        (Value::Bytes(bytes), Shape::Other | Shape::Date | Shape::Moment) if is_plain(bytes) => {
            quoted(out, bytes);
        }
        (Value::Bytes(bytes), _) => hex(out, bytes),
        (Value::Date(year, month, day, ..), Shape::Date) => {
            number_text(out, format_args!("'{year:04}-{month:02}-{day:02}'"));
        }
        (Value::Date(year, month, day, h, m, s, us), _) => {
            number_text(
                out,
                format_args!("'{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}{}'", Fraction(*us)),
            );
        }
        (Value::Time(negative, days, h, m, s, us), _) => {
            let sign = if *negative { "-" } else { "" };
            let hours = u64::from(*days) * 24 + u64::from(*h);
            number_text(out, format_args!("'{sign}{hours:02}:{m:02}:{s:02}{}'", Fraction(*us)));
        }
    }
    Ok(())
}

struct Fraction(u32);

impl std::fmt::Display for Fraction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, ".{:06}", self.0) }
    }
}

fn number_text(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    let _ = out.write_fmt(text);
}

/// A decimal: only digits, sign and point go into the statement.
fn digits(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() || !bytes.iter().all(|b| b.is_ascii_digit() || b"+-.eE".contains(b)) {
        return Err(format!("{:?} is not a number", String::from_utf8_lossy(bytes)));
    }
    out.extend_from_slice(bytes);
    Ok(())
}

fn text(out: &mut Vec<u8>, charset: &[u8], bytes: &[u8]) {
    let readable = match charset {
        b"utf8mb4" | b"utf8mb3" | b"utf8" => str::from_utf8(bytes).is_ok(),
        b"latin1" | b"ascii" => bytes.is_ascii(),
        _ => bytes.is_empty(),
    };
    if readable {
        quoted(out, bytes);
    } else if charset == b"binary" {
        hex(out, bytes);
    } else {
        out.push(b'_');
        out.extend_from_slice(charset);
        out.push(b' ');
        hex(out, bytes);
    }
}

fn is_plain(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| b.is_ascii_graphic() || *b == b' ')
}

/// A string in quotes, for statements under an `sql_mode` without `NO_BACKSLASH_ESCAPES`. What a client could take
/// for the end of a line is written as an escape.
pub(super) fn quoted(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'\'');
    for byte in bytes {
        match byte {
            b'\'' => out.extend_from_slice(b"\\'"),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            0 => out.extend_from_slice(b"\\0"),
            0x1a => out.extend_from_slice(b"\\Z"),
            _ => out.push(*byte),
        }
    }
    out.push(b'\'');
}

fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if bytes.is_empty() {
        return out.extend_from_slice(b"''");
    }
    out.reserve(2 + 2 * bytes.len());
    out.extend_from_slice(b"0x");
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// A name in backticks.
pub(crate) fn name(text: &str) -> String {
    format!("`{}`", text.replace('`', "``"))
}

/// A text in quotes, for conditions of our own.
pub(super) fn string(text: &str) -> String {
    let mut out = Vec::new();
    quoted(&mut out, text.as_bytes());
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use mysql::Value;

    use super::{Shape, name, write};

    fn sql(shape: &Shape, value: Value) -> String {
        let mut out = Vec::new();
        write(&mut out, shape, &value).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn floats_are_written_as_the_doubles_that_they_are() {
        for bits in [0x3dcc_cccd_u32, 1, 0x8000_0000, 0x7f7f_ffff, 0x0080_0000] {
            let float = f32::from_bits(bits);
            let text = sql(&Shape::Number, Value::Float(float));
            #[allow(clippy::cast_possible_truncation, reason = "it is a float's own value")]
            let back = text.parse::<f64>().unwrap() as f32;
            assert_eq!(back.to_bits(), bits, "{text}");
            assert!(text.contains('e'), "{text} is not a decimal");
        }
        let double = f64::from_bits(0x3fb9_9999_9999_999b);
        assert_eq!(
            sql(&Shape::Number, Value::Double(double)).parse::<f64>().unwrap().to_bits(),
            double.to_bits()
        );
    }

    #[test]
    fn text_keeps_its_bytes() {
        let latin1 = Shape::of("varchar", Some("latin1"));
        let utf8 = Shape::of("text", Some("utf8mb4"));
        let sjis = Shape::of("char", Some("sjis"));
        assert_eq!(sql(&latin1, Value::Bytes(b"it's".to_vec())), r"'it\'s'");
        assert_eq!(sql(&latin1, Value::Bytes(b"\xe9".to_vec())), "_latin1 0xE9");
        assert_eq!(sql(&utf8, Value::Bytes("é\n\0".into())), r"'é\n\0'");
        assert_eq!(sql(&utf8, Value::Bytes(b"\xff".to_vec())), "_utf8mb4 0xFF");
        assert_eq!(sql(&sjis, Value::Bytes(b"\\".to_vec())), "_sjis 0x5C");
        assert_eq!(sql(&sjis, Value::Bytes(vec![])), "''");
        assert_eq!(sql(&Shape::of("blob", None), Value::Bytes(b"a\0".to_vec())), "0x6100");
        assert_eq!(sql(&Shape::of("inet6", None), Value::Bytes(b"::1".to_vec())), "'::1'");
    }

    #[test]
    fn times_are_written_whole() {
        let date = Value::Date(0, 0, 0, 0, 0, 0, 0);
        assert_eq!(sql(&Shape::of("date", None), date.clone()), "'0000-00-00'");
        assert_eq!(sql(&Shape::of("datetime", None), date), "'0000-00-00 00:00:00'");
        let moment = Value::Date(2026, 1, 2, 3, 4, 5, 60);
        assert_eq!(sql(&Shape::of("timestamp", None), moment), "'2026-01-02 03:04:05.000060'");
        let time = Value::Time(true, 34, 22, 59, 59, 0);
        assert_eq!(sql(&Shape::of("time", None), time), "'-838:59:59'");
    }

    #[test]
    fn a_number_is_never_anything_else() {
        let mut out = Vec::new();
        assert!(write(&mut out, &Shape::Number, &Value::Bytes(b"1; DROP".to_vec())).is_err());
        assert_eq!(sql(&Shape::of("decimal", None), Value::Bytes(b"-12.50".to_vec())), "-12.50");
        assert_eq!(Shape::of("set", Some("latin1")).select("`a`"), "CAST(`a` AS UNSIGNED)");
        assert_eq!(name("a`b"), "`a``b`");
    }
}
