//! From the JSON that the host hands over to a plugin's typed configuration, with errors that an
//! operator can act on: they name the key, what was found and what is allowed.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, MapAccess, Visitor},
};

/// The configuration of a plugin that has none. Refuses every key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoConfig {}

impl<'de> Deserialize<'de> for NoConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Empty;
        impl<'de> Visitor<'de> for Empty {
            type Value = NoConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an empty table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NoConfig, A::Error> {
                match map.next_key::<String>()? {
                    None => Ok(NoConfig {}),
                    Some(key) => Err(A::Error::custom(format_args!(
                        "unknown field `{key}`, there is nothing to configure"
                    ))),
                }
            }
        }
        deserializer.deserialize_map(Empty)
    }
}

/// Reads a configuration. The error is `key.in.key: what is wrong`. Where the text names the key
/// itself (an unknown one), it is the key of the table around it. So it is where a check of the
/// plugin's own fails at the last key of a table, because `serde_json` reports that at the table's
/// end; such a check may name its key at the start of its text, and it is not said twice.
pub(crate) fn read<C: DeserializeOwned>(json: &str) -> Result<C, String> {
    serde_json::from_str(json).map_err(|error| {
        let place = format!(" at line {} column {}", error.line(), error.column());
        let text = error.to_string();
        let text = text.strip_suffix(&place).unwrap_or(&text);
        match key_path(text_before(json, error.line(), error.column())) {
            path if path.is_empty() => text.to_owned(),
            path => {
                let key = path.rsplit('.').next().unwrap_or(&path);
                let own_key = text.strip_prefix(key);
                let text = own_key
                    .and_then(|rest| rest.strip_prefix(": "))
                    .unwrap_or(text);
                format!("{path}: {text}")
            }
        }
    })
}

/// What `serde_json` had read when it gave up; `column` counts bytes.
fn text_before(json: &str, line: usize, column: usize) -> &str {
    let lines_before = json.split_inclusive('\n').take(line.saturating_sub(1));
    let end = lines_before.map(str::len).sum::<usize>() + column;
    json.get(..end).unwrap_or(json)
}

/// Where in the document a text that begins it ends: `rooms[2].limit`. Empty for the document
/// itself.
fn key_path(text: &str) -> String {
    enum Step<'a> {
        Key(&'a str),
        Index(usize),
    }
    let mut steps = Vec::new();
    let mut last_string = "";
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match (c, steps.last_mut()) {
            ('"', _) => (last_string, rest) = split_string(rest),
            ('{', _) => steps.push(Step::Key("")),
            ('[', _) => steps.push(Step::Index(0)),
            ('}' | ']', _) => drop(steps.pop()),
            (':', Some(Step::Key(key))) => *key = last_string,
            (',', Some(Step::Key(key))) => *key = "",
            (',', Some(Step::Index(index))) => *index += 1,
            _ => {}
        }
    }
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Key("") => {}
            Step::Key(key) if path.is_empty() => path += key,
            Step::Key(key) => path += &format!(".{key}"),
            Step::Index(index) => path += &format!("[{index}]"),
        }
    }
    path
}

/// Splits behind the quote that ends the string; at the end if none does.
fn split_string(text: &str) -> (&str, &str) {
    let mut is_escaped = false;
    for (place, c) in text.char_indices() {
        match c {
            '"' if !is_escaped => return (&text[..place], &text[place + 1..]),
            '\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::policy::KeyKind;

    #[derive(Debug)]
    struct Limit;

    impl<'de> Deserialize<'de> for Limit {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            match u8::deserialize(deserializer)? {
                1..=9 => Ok(Self),
                other => Err(D::Error::custom(format_args!("{other} is outside 1..=9"))),
            }
        }
    }

    type Rooms = BTreeMap<String, Vec<BTreeMap<String, Limit>>>;

    #[track_caller]
    fn check<C: DeserializeOwned + fmt::Debug>(json: &str, expected: &str) {
        let error = read::<C>(json).expect_err("the configuration is wrong");
        assert_eq!(error, expected);
    }

    #[test]
    fn an_error_names_the_key() {
        check::<Rooms>(
            r#"{"a": [{"x": 1}], "b": [{}, {"y": 3, "z": "4"}]}"#,
            r#"b[1].z: invalid type: string "4", expected u8"#,
        );
        check::<Rooms>(r#"{"a": [{"x": 77}]}"#, "a[0]: 77 is outside 1..=9");
        check::<Rooms>(
            r#"{"a\",": 5}"#,
            r#"a\",: invalid type: integer `5`, expected a sequence"#,
        );
        check::<Rooms>(
            "{\n \"a\": [],\n \"b\": true }",
            "b: invalid type: boolean `true`, expected a sequence",
        );
        check::<Rooms>("[]", "invalid type: sequence, expected a map");
    }

    #[test]
    fn a_check_that_names_its_key_is_not_given_it_twice() {
        #[derive(Debug, Deserialize)]
        struct Hash {
            #[serde(rename = "key")]
            _key: KeyKind,
        }
        let expected = "key: \"ip\" is not allowed: one of \"client_ip\", \"path\", \"header\", \"cookie\", \"query\"";
        check::<Hash>(r#"{"key": "ip"}"#, expected);
        check::<Hash>(r#"{"key": "ip", "n": 1}"#, expected);
        let expected = format!("hashes.{expected}");
        check::<BTreeMap<String, Hash>>(r#"{"hashes": {"key": "ip", "n": 1}}"#, &expected);
    }

    #[test]
    fn what_is_not_json_is_refused() {
        check::<Rooms>("", "EOF while parsing a value");
        check::<Rooms>(r#"{"a"#, "EOF while parsing a string");
    }

    #[test]
    fn no_config_refuses_every_key() {
        assert_eq!(read("{}"), Ok(NoConfig {}));
        check::<NoConfig>(
            r#"{"weight": 1}"#,
            "unknown field `weight`, there is nothing to configure",
        );
        check::<NoConfig>("7", "invalid type: integer `7`, expected an empty table");
    }
}
