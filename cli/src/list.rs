//! Lists of words with commas between: `path=root.raw,readonly=on`.
//!
//! A value in double quotes may have commas in it, as Cloud Hypervisor takes it:
//! `path="a,b.raw",readonly=on`. A quote within the quotes is written twice. A quote that does not
//! begin a value stands for itself.

use std::borrow::Cow;

/// A word: `key=value`, or a value alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Word<'a> {
    /// What is before the `=`.
    pub key: Option<&'a str>,
    /// Without its quotes.
    pub value: Cow<'a, str>,
}

/// The words of a list, each key once but for those in `repeated`.
///
/// # Errors
/// A quote is not closed, something follows it, or a key is there twice.
pub fn split<'a>(text: &'a str, repeated: &[&str]) -> Result<Vec<Word<'a>>, String> {
    let words = words(text)?;
    for (nth, word) in words.iter().enumerate() {
        let Some(key) = word.key.filter(|key| !repeated.contains(key)) else { continue };
        if words[..nth].iter().any(|other| other.key == Some(key)) {
            return Err(format!("{key}= is there twice"));
        }
    }
    Ok(words)
}

/// The words of a list.
///
/// # Errors
/// A quote is not closed, or something follows it.
pub fn words(text: &str) -> Result<Vec<Word<'_>>, String> {
    let mut words: Vec<Word<'_>> = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (key, tail) = match text.find(['=', ',', '"']) {
            Some(at) if text[at..].starts_with('=') => (Some(&text[..at]), &text[at + 1..]),
            _ => (None, text),
        };
        let value;
        (value, rest) = match tail.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => match tail.split_once(',') {
                Some((value, rest)) => (value.into(), Some(rest)),
                None => (tail.into(), None),
            },
        };
        words.push(Word { key, value });
    }
    Ok(words)
}

/// From behind a quote: the value, and what follows its comma.
fn unquote(text: &str) -> Result<(Cow<'_, str>, Option<&str>), String> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some((part, tail)) = rest.split_once('"') else {
            return Err(format!("the quote before `{text}` is not closed"));
        };
        value += part;
        if tail.is_empty() {
            return Ok((value.into(), None));
        }
        if let Some(next) = tail.strip_prefix(',') {
            return Ok((value.into(), Some(next)));
        }
        let Some(next) = tail.strip_prefix('"') else {
            return Err(format!("write a comma between the quote and `{tail}`"));
        };
        value.push('"');
        rest = next;
    }
}

/// A word as [`split`] takes it.
pub fn word(key: Option<&str>, value: &str) -> String {
    let quoted =
        value.contains(',') || value.starts_with('"') || key.is_none() && value.contains('=');
    let value = match quoted {
        true => format!("\"{}\"", value.replace('"', "\"\"")),
        false => value.to_owned(),
    };
    key.map_or(value.clone(), |key| format!("{key}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(Option<&str>, String)> {
        words(text).unwrap().into_iter().map(|word| (word.key, word.value.into_owned())).collect()
    }

    #[test]
    fn lists_are_cut_at_their_commas() {
        for (text, words) in [
            ("", &[(None, "")][..]),
            ("a", &[(None, "a")]),
            ("a,", &[(None, "a"), (None, "")]),
            ("a.raw,readonly=on", &[(None, "a.raw"), (Some("readonly"), "on")]),
            ("path=a=b", &[(Some("path"), "a=b")]),
            (r#"path="a,b",id=x"#, &[(Some("path"), "a,b"), (Some("id"), "x")]),
            (r#""a,b=c",id=x"#, &[(None, "a,b=c"), (Some("id"), "x")]),
            (r#"path="a""b""#, &[(Some("path"), "a\"b")]),
            (r#"path="""#, &[(Some("path"), "")]),
            (r#"a"b"=c,d"#, &[(None, "a\"b\"=c"), (None, "d")]),
            (r#"path=a"b,c"#, &[(Some("path"), "a\"b"), (None, "c")]),
        ] {
            let words: Vec<_> = words.iter().map(|(key, value)| (*key, (*value).into())).collect();
            assert_eq!(pairs(text), words, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            (r#"path="a"#, "not closed"),
            (r#"path="a""#.trim_end_matches('"'), "not closed"),
            (r#"path="a"b"#, "a comma between the quote and `b`"),
            ("id=a,path=b,id=c", "id= is there twice"),
        ] {
            let error = split(text, &[]).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(split("id=a,path=b,id=c", &["id"]).unwrap().len(), 3);
    }

    #[test]
    fn every_word_can_be_written() {
        for value in ["", "a", "a,b", "\"", "a\"b", "\"a\",\"", "a=b", ",", "=", "\"\""] {
            for key in [None, Some("path")] {
                let list = format!("x,{},id=y", word(key, value));
                let got = pairs(&list);
                assert_eq!(got.get(1), Some(&(key, value.to_owned())), "{list}");
                assert_eq!(got.len(), 3, "{list}");
            }
        }
    }
}
