//! Finds values in a JSON text and edits them in place. `serde_json` says first whether the text is
//! JSON at all; the walk behind it relies on that, goes down only where a pointer leads, and passes
//! over the rest without recursion, however deep that is.

use std::{borrow::Cow, ops::Range};

use serde::de::IgnoredAny;

use crate::pointer::{Pointer, Step};

/// How much longer a message may become. A client that writes `[0,0,0,` where each element is replaced
/// would otherwise choose how much memory the plugin takes.
const MAX_GROWTH_BYTES: usize = 1 << 20;

/// What became of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing was found.
    Unchanged,
    Redacted(String),
    /// It would be longer by more than [`MAX_GROWTH_BYTES`].
    TooLong,
    NotJson,
}

/// Puts `replacement` in the place of what the pointers lead to; none: removes it, with its name and one
/// comma.
pub(crate) fn redact(text: &str, pointers: &[Pointer], replacement: Option<&str>) -> Outcome {
    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        return Outcome::NotJson;
    }
    let mut walk = Walk {
        text,
        at: 0,
        replacement,
        edited: None,
        n_copied: 0,
        is_too_long: false,
    };
    let paths: Vec<&[Step]> = pointers.iter().map(Pointer::steps).collect();
    walk.skip_space();
    let start = walk.at;
    if walk.value(&paths) {
        walk.edit(start..walk.at);
    }
    match walk.edited {
        _ if walk.is_too_long => Outcome::TooLong,
        Some(edited) => Outcome::Redacted(edited + &text[walk.n_copied..]),
        None => Outcome::Unchanged,
    }
}

/// One pass over a text that is JSON.
struct Walk<'a> {
    text: &'a str,
    /// What is read next; between values and signs, so never within a character.
    at: usize,
    replacement: Option<&'a str>,
    /// The new text up to `n_copied` of the old one; none before the first edit.
    edited: Option<String>,
    n_copied: usize,
    is_too_long: bool,
}

impl<'a> Walk<'a> {
    /// Reads one value. True: a pointer leads to it, and the caller is to edit it. What is within it
    /// has been edited otherwise.
    fn value(&mut self, paths: &[&[Step]]) -> bool {
        let is_found = paths.iter().any(|path| path.is_empty());
        match self.peek() {
            Some(b'{' | b'[') if !is_found && !paths.is_empty() => self.container(paths),
            _ => self.skip_value(),
        }
        is_found
    }

    /// Reads an object or an array. No path is empty.
    fn container(&mut self, paths: &[&[Step]]) {
        let is_object = self.peek() == Some(b'{');
        self.at += 1;
        self.skip_space();
        let mut end_before = self.at;
        let mut is_any_kept = false;
        for index in 0.. {
            let start = self.at;
            let below = match self.peek() {
                None | Some(b'}' | b']') => break,
                Some(_) if is_object => {
                    let name = self.name();
                    below(paths, |step| step.leads_to_member(name.as_deref()))
                }
                Some(_) => below(paths, |step| step.leads_to_element(index)),
            };
            let value_start = self.at;
            let is_found = self.value(&below);
            let end = self.at;
            self.skip_space();
            if self.peek() == Some(b',') {
                self.at += 1;
                self.skip_space();
            }
            // A comma goes with what is removed: the one before it if something stands there, else the
            // one behind it.
            match (is_found, self.replacement) {
                (false, _) => is_any_kept = true,
                (true, Some(_)) => self.edit(value_start..end),
                (true, None) if is_any_kept => self.edit(end_before..end),
                (true, None) if self.peek().is_some_and(|next| next != b'}' && next != b']') => {
                    self.edit(start..self.at);
                }
                (true, None) => self.edit(start..end),
            }
            end_before = end;
        }
        self.at += 1;
    }

    /// Edits come in the order of the text and do not overlap.
    fn edit(&mut self, range: Range<usize>) {
        let max_bytes = self.text.len() + MAX_GROWTH_BYTES;
        let edited = self
            .edited
            .get_or_insert_with(|| String::with_capacity(max_bytes));
        let kept = &self.text[self.n_copied..range.start];
        let replacement = self.replacement.unwrap_or_default();
        let rest = self.text.len() - range.end;
        if edited.len() + kept.len() + replacement.len() + rest > max_bytes {
            self.is_too_long = true;
            return;
        }
        edited.push_str(kept);
        edited.push_str(replacement);
        self.n_copied = range.end;
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Goes to the next byte that is one of these, or to the end.
    fn skip_until(&mut self, is_wanted: impl Fn(u8) -> bool) {
        let rest = &self.text.as_bytes()[self.at..];
        let found = rest.iter().position(|&byte| is_wanted(byte));
        self.at += found.unwrap_or(rest.len());
    }

    fn skip_space(&mut self) {
        self.skip_until(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    }

    fn skip_value(&mut self) {
        let mut depth = 0;
        loop {
            match self.peek() {
                Some(b'"') => self.skip_string(),
                Some(b'{' | b'[') => {
                    depth += 1;
                    self.at += 1;
                }
                Some(b'}' | b']') => {
                    depth -= 1;
                    self.at += 1;
                }
                _ => self.skip_until(|byte| {
                    matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r')
                }),
            }
            if depth == 0 {
                return;
            }
            // To the next string, bracket or end; colons, commas, numbers and words are passed over.
            self.skip_until(|byte| matches!(byte, b'"' | b'{' | b'}' | b'[' | b']'));
        }
    }

    fn skip_string(&mut self) {
        self.at += 1;
        loop {
            self.skip_until(|byte| matches!(byte, b'"' | b'\\'));
            match self.peek() {
                Some(b'\\') => self.at += 2,
                _ => break,
            }
        }
        self.at += 1;
    }

    /// Reads a member's name and the colon. None: it is not Unicode.
    fn name(&mut self) -> Option<Cow<'a, str>> {
        let start = self.at;
        self.skip_string();
        let (text, end) = (self.text, self.at);
        self.skip_until(|byte| byte == b':');
        self.at += 1;
        self.skip_space();
        match &text[start + 1..end - 1] {
            plain if !plain.contains('\\') => Some(Cow::Borrowed(plain)),
            _ => serde_json::from_str(&text[start..end]).ok().map(Cow::Owned),
        }
    }
}

/// What is left of those paths whose first step leads on.
fn below<'a>(paths: &[&'a [Step]], leads_on: impl Fn(&Step) -> bool) -> Vec<&'a [Step]> {
    let rest = |path: &&'a [Step]| match path {
        [first, rest @ ..] if leads_on(first) => Some(rest),
        _ => None,
    };
    paths.iter().filter_map(rest).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(text: &str, pointers: &[&str], replacement: Option<&str>) -> Outcome {
        let parse = |text: &&str| Pointer::parse(text).unwrap();
        let pointers: Vec<Pointer> = pointers.iter().map(parse).collect();
        redact(text, &pointers, replacement)
    }

    #[track_caller]
    fn check(text: &str, pointers: &[&str], replacement: Option<&str>, expected: &str) {
        let expected = match expected {
            "" => Outcome::Unchanged,
            expected => Outcome::Redacted(expected.to_owned()),
        };
        assert_eq!(run(text, pointers, replacement), expected, "{text}");
    }

    #[test]
    fn values_are_found_by_the_examples_of_the_rfc() {
        let document = r#"{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, "k\"l": 6, " ": 7, "m~n": 8}"#;
        let check = |pointer, old: &str, new| {
            assert_eq!(document.matches(old).count(), 1);
            check(document, &[pointer], Some("X"), &document.replace(old, new));
        };
        check("", document, "X");
        check("/foo", r#"["bar", "baz"]"#, "X");
        check("/foo/0", r#""bar""#, "X");
        check("/", r#""": 0"#, r#""": X"#);
        check("/a~1b", ": 1", ": X");
        check("/c%d", ": 2", ": X");
        check("/e^f", ": 3", ": X");
        check("/g|h", ": 4", ": X");
        check("/i\\j", ": 5", ": X");
        check("/k\"l", ": 6", ": X");
        check("/ ", ": 7", ": X");
        check("/m~0n", ": 8", ": X");
        for pointer in [
            "/foo/2", "/foo/00", "/foo/+0", "/foo/-", "/foo/0/x", "/foo/", "/Foo", "/*/x",
        ] {
            self::check(document, &[pointer], Some("X"), "");
        }
    }

    #[test]
    fn only_what_is_found_changes() {
        let check = |text, pointers: &[&str], expected| check(text, pointers, Some("0"), expected);
        check(
            " [1.50e+3 ,\t\"\\u00fc\" ]\n",
            &["/1"],
            " [1.50e+3 ,\t0 ]\n",
        );
        check(" \"x\" ", &[""], " 0 ");
        check(
            r#"{"z":1,"a":{"b":2,"c":3}}"#,
            &["/a/c", "/z"],
            r#"{"z":0,"a":{"b":2,"c":0}}"#,
        );
        // The longer pointer has nothing left to find.
        check(r#"{"a":{"b":2}}"#, &["/a/b", "/a"], r#"{"a":0}"#);
        check(
            r#"[{"a":1},{"a":2},3,[4]]"#,
            &["/*/a", "/*/0"],
            r#"[{"a":0},{"a":0},3,[0]]"#,
        );
        check(r#"{"*":1,"b":2}"#, &["/*"], r#"{"*":0,"b":0}"#);
        // A number is a name in an object.
        check(r#"{"0":1,"00":2}"#, &["/00"], r#"{"0":1,"00":0}"#);
    }

    #[test]
    fn a_name_cannot_hide() {
        let check = |text, expected| check(text, &["/key"], Some("0"), expected);
        check(r#"{"k\u0065y":1}"#, r#"{"k\u0065y":0}"#);
        check(r#"{"key":1,"key":2}"#, r#"{"key":0,"key":0}"#);
        check(
            r#"{"a":"\"key\":1","key":2}"#,
            r#"{"a":"\"key\":1","key":0}"#,
        );
        check(r#"{"a":"\\","key":2}"#, r#"{"a":"\\","key":0}"#);
        check(r#"{"key" : 2}"#, r#"{"key" : 0}"#);
        check(
            r#"{"a":"}]","b":["]"],"\ud800":[{}],"ü":3,"key":2}"#,
            r#"{"a":"}]","b":["]"],"\ud800":[{}],"ü":3,"key":0}"#,
        );
    }

    #[test]
    fn what_is_removed_takes_one_comma_with_it() {
        let text = r#"{ "a": 1, "b": [2, 3] , "c": 4 }"#;
        let check = |pointers: &[&str], expected| check(text, pointers, None, expected);
        check(&["/a"], r#"{ "b": [2, 3] , "c": 4 }"#);
        check(&["/b"], r#"{ "a": 1 , "c": 4 }"#);
        check(&["/c"], r#"{ "a": 1, "b": [2, 3] }"#);
        check(&["/a", "/b"], r#"{ "c": 4 }"#);
        check(&["/a", "/c"], r#"{ "b": [2, 3] }"#);
        check(&["/b", "/c"], r#"{ "a": 1 }"#);
        check(&["/*"], "{  }");
        check(&["/b/0"], r#"{ "a": 1, "b": [3] , "c": 4 }"#);
        check(&["/b/1", "/a"], r#"{ "b": [2] , "c": 4 }"#);
        check(&["/b/*"], r#"{ "a": 1, "b": [] , "c": 4 }"#);
    }

    /// Every two of these pointers in every document, against the same done to a parsed document.
    #[test]
    fn the_edited_text_is_the_edited_document() {
        let documents = [
            json!({"a": {"a": [1, {"b": 2}], "b": null}, "b": [[], {}, [0, {"a": "x,]}"}]]}),
            json!([[1, 2, 3], {"a": {"b": {"a": true}}}, "\"[{", -1.5e-7, []]),
            json!({"0": {"0": 0, "a": [0]}, "a": [[[[0]]]], "b": ""}),
            json!("a"),
            json!({}),
        ];
        let pointers = [
            "/a", "/b", "/0", "/2", "/*", "/a/b", "/*/a", "/*/*", "/b/2/1", "/*/0", "/a/*/b",
            "/a/a/1",
        ];
        for document in &documents {
            for (first, second) in pointers.iter().flat_map(|a| pointers.map(|b| (*a, b))) {
                for replacement in [Some("{\"new\":0}"), None] {
                    let compact = document.to_string();
                    for text in [compact, serde_json::to_string_pretty(document).unwrap()] {
                        let found = match run(&text, &[first, second], replacement) {
                            Outcome::Unchanged => document.clone(),
                            Outcome::Redacted(text) => serde_json::from_str(&text).unwrap(),
                            other => panic!("{other:?}"),
                        };
                        let paths = [first, second].map(|path| path[1..].split('/').collect());
                        let expected = edited(document, &paths, replacement);
                        assert_eq!(found, expected, "{text} {first} {second}");
                    }
                }
            }
        }
    }

    /// Slow and plain. No path is empty.
    fn edited(value: &Value, paths: &[Vec<&str>], replacement: Option<&str>) -> Value {
        let child = |name: &str, value: &Value| {
            let leads_on = |path: &&Vec<&str>| path[0] == "*" || path[0] == name;
            let below = paths.iter().filter(leads_on).map(|path| path[1..].to_vec());
            let below: Vec<Vec<&str>> = below.collect();
            match below.iter().any(Vec::is_empty) {
                true => replacement.map(|json| serde_json::from_str(json).unwrap()),
                false => Some(edited(value, &below, replacement)),
            }
        };
        match value {
            Value::Array(elements) => {
                let elements = elements.iter().enumerate();
                let kept = elements.filter_map(|(n, element)| child(&n.to_string(), element));
                kept.collect()
            }
            Value::Object(members) => {
                let kept = members
                    .iter()
                    .filter_map(|(name, member)| Some((name.clone(), child(name, member)?)));
                Value::Object(kept.collect())
            }
            scalar => scalar.clone(),
        }
    }

    #[test]
    fn depth_costs_nothing() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(
            run(&deep, &["/0/0/a", "/*/*"], Some("1")),
            Outcome::Redacted("[[1]]".to_owned())
        );
        assert_eq!(run(&deep, &["/1"], Some("1")), Outcome::Unchanged);
        assert_eq!(run(&deep[1..], &["/0"], Some("1")), Outcome::NotJson);
    }

    #[test]
    fn a_text_may_grow_to_its_bound() {
        let replacement = format!("\"{}\"", "x".repeat(MAX_GROWTH_BYTES - 1));
        let grown = run("[0]", &["/0"], Some(&replacement));
        assert_eq!(grown, Outcome::Redacted(format!("[{replacement}]")));
        assert_eq!(run("[0,1]", &["/*"], Some(&replacement)), Outcome::TooLong);
    }
}
