//! As much of SQL as the model reads: which tables a statement names, how long it sleeps, what a `SET` sets.

use std::time::Duration;

/// Runs of white space made one blank, comments and the final semicolon taken off.
pub(super) fn normal(text: &str) -> String {
    let mut text = text.trim().to_owned();
    while let Some(start) = text.find("/*") {
        let Some(length) = text[start..].find("*/") else { break };
        text.replace_range(start..start + length + 2, " ");
    }
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    joined.trim_end_matches(';').trim_end().to_owned()
}

/// Whether the statement begins with these words, whatever the case.
pub(super) fn begins(statement: &str, words: &str) -> bool {
    let head = statement.get(..words.len());
    let ends = statement.as_bytes().get(words.len()).is_none_or(|byte| !byte.is_ascii_alphanumeric());
    ends && head.is_some_and(|head| head.eq_ignore_ascii_case(words))
}

/// Names after FROM, JOIN, INTO, UPDATE and TABLE, unquoted, in small letters.
pub(super) fn tables(statement: &str) -> Vec<String> {
    // What stands in quotes names nothing.
    let bare: String = statement.split(['\'', '"']).step_by(2).collect();
    let words = bare.split([' ', ',', '(', ')', ';']).filter(|word| !word.is_empty());
    let words: Vec<&str> = words.collect();
    let mut found = vec![];
    for pair in words.windows(2) {
        let names = ["FROM", "JOIN", "INTO", "UPDATE", "TABLE"];
        if names.iter().any(|name| pair[0].eq_ignore_ascii_case(name)) {
            found.push(pair[1].replace('`', "").to_lowercase());
        }
    }
    found
}

/// The argument of `SLEEP(…)` in seconds.
pub(super) fn sleeps(statement: &str) -> Duration {
    let capital = statement.to_uppercase();
    let argument = capital.split_once("SLEEP(").and_then(|(_, rest)| rest.split_once(')'));
    let seconds = argument.and_then(|(seconds, _)| seconds.trim().parse().ok()).unwrap_or(0.0);
    Duration::from_secs_f64(seconds)
}

/// Text between quotes, or the text itself.
pub(super) fn unquoted(text: &str) -> &str {
    let text = text.trim();
    let quoted = |mark: char| text.strip_prefix(mark).and_then(|text| text.strip_suffix(mark));
    quoted('\'').or_else(|| quoted('"')).or_else(|| quoted('`')).unwrap_or(text)
}

/// Whose variable is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Session,
    Global,
    User,
}

/// The assignments of a `SET`, scope, name in small letters and value; nothing of what is no variable.
pub(super) fn assignments(statement: &str) -> Vec<(Scope, String, String)> {
    let body = statement.get(4..).unwrap_or_default();
    if ["NAMES", "CHARACTER SET", "TRANSACTION", "SESSION TRANSACTION"].iter().any(|head| begins(body, head))
    {
        return vec![];
    }
    split(body, ',').iter().filter_map(|part| assignment(part)).collect()
}

fn assignment(part: &str) -> Option<(Scope, String, String)> {
    let (left, value) = part.split_once('=')?;
    let left = left.trim().trim_end_matches(':').trim().to_lowercase();
    let value = unquoted(value).to_owned();
    let prefixes = [
        ("@@global.", Scope::Global),
        ("@@session.", Scope::Session),
        ("@@local.", Scope::Session),
        ("@@", Scope::Session),
        ("@", Scope::User),
        ("global ", Scope::Global),
        ("session ", Scope::Session),
        ("local ", Scope::Session),
        ("", Scope::Session),
    ];
    let (prefix, scope) = prefixes.into_iter().find(|(prefix, _)| left.starts_with(prefix))?;
    Some((scope, left[prefix.len()..].trim().to_owned(), value))
}

/// Splits at a mark that stands outside quotes and parentheses.
pub(super) fn split(text: &str, mark: char) -> Vec<String> {
    let (mut parts, mut part, mut quote, mut depth) = (vec![], String::new(), None, 0);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"' | '`') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            _ => {}
        }
        if c == mark && quote.is_none() && depth == 0 {
            parts.push(std::mem::take(&mut part).trim().to_owned());
        } else {
            part.push(c);
        }
    }
    parts.push(part.trim().to_owned());
    parts
}

#[cfg(test)]
mod tests {
    use super::{Scope, assignments, begins, normal, sleeps, tables};

    #[test]
    fn statements_are_read() {
        assert_eq!(normal(" SELECT  /* x */ 1 ;"), "SELECT 1");
        assert!(begins("kill query 7", "KILL QUERY") && !begins("KILLED", "KILL"));
        assert_eq!(tables("INSERT INTO `App`.t VALUES (1)"), ["app.t"]);
        assert_eq!(tables("SELECT 'from a', b FROM c.d"), ["c.d"]);
        assert_eq!(sleeps("SELECT sleep(0.5) FROM t").as_millis(), 500);
        let set = assignments("SET SESSION wait_timeout = 3, @a='b,c', @@global.read_only=1");
        assert_eq!(set[0], (Scope::Session, "wait_timeout".into(), "3".into()));
        assert_eq!(set[1], (Scope::User, "a".into(), "b,c".into()));
        assert_eq!(set[2], (Scope::Global, "read_only".into(), "1".into()));
    }
}
