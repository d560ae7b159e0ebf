//! logfmt: `key=value key="a \"quoted\" value" flag`.

/// Goes over the pairs of a line; `each` gets the key, the value as written between the quotes, and
/// whether the value has escapes (which are JSON's). `None` when the line has no pair at all, or a
/// quote is not closed.
pub fn pairs(line: &[u8], mut each: impl FnMut(&[u8], &[u8], bool)) -> Option<()> {
    let mut at = 0;
    let mut found = false;
    while at < line.len() {
        if line[at] <= b' ' {
            at += 1;
            continue;
        }
        let key_from = at;
        while at < line.len() && line[at] > b' ' && line[at] != b'=' && line[at] != b'"' {
            at += 1;
        }
        let key = &line[key_from..at];
        if line.get(at) == Some(&b'"') {
            return None;
        }
        if line.get(at) != Some(&b'=') {
            // A word without a value: logfmt's flag, or text that is not logfmt.
            continue;
        }
        if key.is_empty() {
            return None;
        }
        at += 1;
        if line.get(at) == Some(&b'"') {
            at += 1;
            let from = at;
            let mut is_escaped = false;
            loop {
                at += memchr::memchr2(b'"', b'\\', line.get(at..)?)?;
                if line[at] == b'"' {
                    break;
                }
                is_escaped = true;
                at += 2;
            }
            each(key, &line[from..at], is_escaped);
            at += 1;
        } else {
            let from = at;
            while at < line.len() && line[at] > b' ' {
                at += 1;
            }
            each(key, &line[from..at], false);
        }
        found = true;
    }
    found.then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Option<Vec<(String, String, bool)>> {
        let mut list = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        pairs(line.as_bytes(), |key, value, is_escaped| {
            list.push((text(key), text(value), is_escaped));
        })?;
        Some(list)
    }

    #[test]
    fn pairs_flags_and_quotes() {
        let pair =
            |key: &str, value: &str, is_escaped| (key.to_owned(), value.to_owned(), is_escaped);
        assert_eq!(
            read(r#"a=1 flag b="x y" c= d="q\"r""#),
            Some(vec![
                pair("a", "1", false),
                pair("b", "x y", false),
                pair("c", "", false),
                pair("d", r#"q\"r"#, true)
            ])
        );
        assert_eq!(read("plain words"), None);
        assert_eq!(read(r#"a="open"#), None);
        assert_eq!(read(r#"a="\"#), None);
        assert_eq!(read("=x"), None);
    }
}
