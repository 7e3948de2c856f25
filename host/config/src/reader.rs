//! A strict reader of TOML: every key that is asked for is ticked off, what is left over is unknown.
//!
//! In comes the text; out goes what the caller makes of its sections, or every [`Problem`] at
//! once, in the order of the lines. Each knows its key path, its line, what was found and what is
//! allowed. Which keys there are is the business of `file.rs`.

use std::collections::{BTreeMap, btree_map};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use pointsman_contract::names::PluginName;
use serde_json::Map;
use toml_edit::{Document, TableLike, Value};

use super::Problem;
use super::entry::{Entry, SourceText, Spot, join};
use super::nearest::nearest;

pub(super) const MILLISECONDS: &str = "a number of milliseconds";
pub(super) const SECONDS: &str = "a number of seconds";
pub(super) const BYTES: &str = "a number of bytes";

/// Longest wait before a client has its answer: ten minutes.
pub(super) const MAX_TIMEOUT_MS: u64 = 600_000;
/// Longest silence in the middle of something: a day.
pub(super) const MAX_SILENCE_MS: u64 = 86_400_000;

/// What `toml_edit` says of a key that is written twice.
const DUPLICATE_KEY: &str = "duplicate key";

/// Tables within tables in a value that is handed on as JSON. Common JSON readers stop at 128.
const MAX_JSON_DEPTH: usize = 64;

/// What a reader comes across beside values.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// In the order of the lines, once all is read.
    pub(super) problems: Vec<Problem>,
    /// Plugins that are named, and where.
    pub(super) plugins: Vec<(PluginName, String)>,
}

/// As [`read_all`].
///
/// # Errors
///
/// Everything that is wrong.
pub(super) fn read<T>(
    text: &str,
    read: impl FnOnce(&mut Section<'_, '_>) -> Option<T>,
) -> Result<T, Vec<Problem>> {
    match read_all(text, read) {
        (Some(value), found) if found.problems.is_empty() => Ok(value),
        (_, found) => Err(found.problems),
    }
}

/// Reads `text` with `read`, which gets the root of the document.
///
/// One problem where `text` is no TOML; else all that `read` came across, and all unknown keys.
/// `read` returns `None` only where it has reported why.
pub(super) fn read_all<T>(
    text: &str,
    read: impl FnOnce(&mut Section<'_, '_>) -> Option<T>,
) -> (Option<T>, Findings) {
    let mut found = Findings::default();
    let source = SourceText::new(text);
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let line = error.span().map(|span| source.line(span.start));
            // What the key is called, only the text knows.
            let duplicate = error.span().filter(|_| error.message() == DUPLICATE_KEY);
            let key = duplicate.and_then(|span| text.get(span));
            let named = key.map(|key| format!(" {key}")).unwrap_or_default();
            found.problems.push(Problem {
                key: key.unwrap_or_default().to_owned(),
                line,
                message: format!("not valid TOML: {}{named}", error.message()),
            });
            return (None, found);
        }
    };
    let root = Spot {
        path: String::new(),
        at: None,
    };
    let value = Section::read(&source, &mut found, root, Some(document.as_table()), read);
    let problems = &mut found.problems;
    problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
    debug_assert!(
        value.is_some() || !problems.is_empty(),
        "a reader gave up without saying why"
    );
    (value, found)
}

/// Values that have to differ, and where each was seen first.
pub(super) type Taken<K> = BTreeMap<K, Spot>;

/// One table while it is read. One that is absent reads like an empty one.
pub(super) struct Section<'t, 'p> {
    pub(super) spot: Spot,
    source: &'t SourceText<'t>,
    items: Option<&'t dyn TableLike>,
    /// Keys asked for: the ones that are allowed here.
    asked: Vec<String>,
    /// Keys that are known, but not offered to who mistypes another.
    unserved: Vec<&'static str>,
    found: &'p mut Findings,
}

impl<'t, 'p> Section<'t, 'p> {
    fn read<T>(
        source: &'t SourceText<'t>,
        found: &'p mut Findings,
        spot: Spot,
        items: Option<&'t dyn TableLike>,
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let (asked, unserved) = (Vec::new(), Vec::new());
        let mut section = Self {
            spot,
            source,
            items,
            asked,
            unserved,
            found,
        };
        let value = read(&mut section);
        section.refuse_leftovers();
        value
    }

    /// Reads a table at `spot`; `None`: as if it were empty.
    fn enter<T>(
        &mut self,
        spot: Spot,
        items: Option<&'t dyn TableLike>,
        read: impl FnOnce(&mut Section<'t, '_>) -> T,
    ) -> T {
        Section::read(self.source, self.found, spot, items, read)
    }

    /// The table `[key]`, also where it is absent.
    pub(super) fn section<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Section<'t, '_>) -> T,
    ) -> T {
        let items = self.entry(key).and_then(|entry| self.table_of(&entry));
        self.enter(self.spot(key), items, read)
    }

    /// Each table of `[[key]]`, or of a list of inline tables.
    pub(super) fn sections<T>(
        &mut self,
        key: &str,
        mut read: impl FnMut(&mut Section<'t, '_>) -> Option<T>,
    ) -> Vec<T> {
        let entries = self.list(key, &format!("tables, each written as [[{key}]]"));
        entries
            .iter()
            .filter_map(|entry| self.section_at(entry, &mut read))
            .collect()
    }

    /// The table that `entry` is; anything else is refused.
    pub(super) fn section_at<T>(
        &mut self,
        entry: &Entry<'t>,
        read: impl FnOnce(&mut Section<'t, '_>) -> Option<T>,
    ) -> Option<T> {
        let items = self.table_of(entry)?;
        self.enter(entry.spot.clone(), Some(items), read)
    }

    /// Reads what stands for a whole table as a table without keys.
    pub(super) fn section_without_keys<T>(
        &mut self,
        entry: &Entry<'t>,
        read: impl FnOnce(&mut Section<'t, '_>) -> T,
    ) -> T {
        self.enter(entry.spot.clone(), None, read)
    }

    /// The keys that are written here.
    pub(super) fn names(&self) -> Vec<String> {
        self.items.map_or_else(Vec::new, |items| {
            items.iter().map(|(key, _)| key.to_owned()).collect()
        })
    }

    /// Whether `key` is written, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Ticks `key` off.
    pub(super) fn entry(&mut self, key: &str) -> Option<Entry<'t>> {
        self.asked.push(key.to_owned());
        self.find(key)
    }

    /// Where `key` is or, where it is absent, its table.
    pub(super) fn spot(&self, key: &str) -> Spot {
        let absent = || Spot {
            path: join(&self.spot.path, key),
            at: self.spot.at,
        };
        self.find(key).map_or_else(absent, |entry| entry.spot)
    }

    fn find(&self, key: &str) -> Option<Entry<'t>> {
        Entry::of(self.items?, key, &self.spot.path)
    }

    /// None where `key` is absent, or where `read` refused it.
    fn value<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl FnOnce(&Entry<'t>) -> Option<T>,
    ) -> Option<T> {
        let entry = self.entry(key)?;
        let value = read(&entry);
        if value.is_none() {
            self.refuse(&entry, allowed);
        }
        value
    }

    /// A string; none where it is absent or refused.
    pub(super) fn text<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        self.value(key, allowed, |entry| entry.as_str().and_then(read))
    }

    /// One of a few words, each with what it stands for; none where it is absent or refused.
    pub(super) fn word<T: Clone>(&mut self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let entry = self.entry(key)?;
        let written = entry.as_str().unwrap_or_default();
        let found = words.iter().find(|(word, _)| *word == written);
        if found.is_none() {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.refuse_near(&entry, &one_of(&words), nearest(written, words));
        }
        found.map(|(_, value)| value.clone())
    }

    /// A string that has to be there.
    pub(super) fn required_text<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        self.require(key, allowed);
        self.text(key, allowed, read)
    }

    /// A list of strings; empty where it is absent.
    pub(super) fn texts<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let values = self.texts_at(key, allowed, read).into_iter();
        values.map(|(value, _)| value).collect()
    }

    /// The same, each with the path of its key.
    pub(super) fn texts_at<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Vec<(T, String)> {
        let mut values = Vec::new();
        for entry in self.list(key, &format!("a list, each {allowed}")) {
            match entry.as_str().and_then(&read) {
                Some(value) => values.push((value, entry.spot.path.clone())),
                None => self.refuse(&entry, allowed),
            }
        }
        values
    }

    /// A plugin is named at this path of a key.
    pub(super) fn names_plugin(&mut self, name: &PluginName, path: String) {
        self.found.plugins.push((name.clone(), path));
    }

    /// The elements of a list; none where it is absent.
    pub(super) fn list(&mut self, key: &str, allowed: &str) -> Vec<Entry<'t>> {
        self.value(key, allowed, Entry::elements)
            .unwrap_or_default()
    }

    /// `true` or `false`; `false` where it is absent.
    pub(super) fn flag(&mut self, key: &str) -> bool {
        self.flag_or(key, false)
    }

    /// `true` or `false`.
    pub(super) fn flag_or(&mut self, key: &str, default: bool) -> bool {
        self.value(key, "true or false", Entry::as_bool)
            .unwrap_or(default)
    }

    /// A whole number; none where it is absent or refused.
    pub(super) fn number_if_written<T>(
        &mut self,
        key: &str,
        what: &str,
        range: RangeInclusive<T>,
    ) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let allowed = format!("{what}, {} to {}", range.start(), range.end());
        self.value(key, &allowed, |entry| {
            T::try_from(entry.as_integer()?)
                .ok()
                .filter(|number| range.contains(number))
        })
    }

    /// A whole number.
    pub(super) fn number<T>(
        &mut self,
        key: &str,
        what: &str,
        range: RangeInclusive<T>,
        default: T,
    ) -> T
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        self.number_if_written(key, what, range).unwrap_or(default)
    }

    /// A key that ends in `_ms`.
    pub(super) fn millis(
        &mut self,
        key: &str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> Duration {
        Duration::from_millis(self.number(key, MILLISECONDS, range, default))
    }

    /// A key that ends in `_secs`.
    pub(super) fn secs(&mut self, key: &str, range: RangeInclusive<u64>, default: u64) -> Duration {
        Duration::from_secs(self.number(key, SECONDS, range, default))
    }

    /// A table of anything, as JSON: dates become strings. `{}` where it is absent.
    pub(super) fn json(&mut self, key: &str) -> serde_json::Value {
        let empty = serde_json::Value::Object(Map::new());
        let Some(entry) = self.entry(key) else {
            return empty;
        };
        match self.table_of(&entry) {
            Some(_) => self.json_of(&entry, 0),
            None => empty,
        }
    }

    fn json_of(&mut self, entry: &Entry<'t>, depth: usize) -> serde_json::Value {
        if depth > MAX_JSON_DEPTH {
            self.problem(
                &entry.spot,
                format!("nested deeper than {MAX_JSON_DEPTH} levels"),
            );
            return serde_json::Value::Null;
        }
        if let Some(items) = entry.table() {
            let fields = items.iter().filter_map(|(key, _)| {
                let field = Entry::of(items, key, &entry.spot.path)?;
                Some((key.to_owned(), self.json_of(&field, depth + 1)))
            });
            return serde_json::Value::Object(fields.collect());
        }
        if let Some(elements) = entry.elements() {
            return elements
                .iter()
                .map(|element| self.json_of(element, depth + 1))
                .collect();
        }
        if entry.is_infinite_or_nan() {
            self.refuse(entry, "a finite number");
        }
        entry.scalar()
    }

    /// Reports a list that is absent or empty.
    pub(super) fn require_some(&mut self, key: &str, what: &str) {
        self.require(key, what);
        if let Some(entry) = self.find(key)
            && entry.elements().is_some_and(|elements| elements.is_empty())
        {
            self.refuse(&entry, what);
        }
    }

    /// Reports a key that is absent.
    pub(super) fn require(&mut self, key: &str, what: &str) {
        if !self.has(key) {
            self.problem(&self.spot(key), format!("missing: {what}"));
        }
    }

    /// Accepts a key that is known and not served only with the one value that asks for nothing.
    pub(super) fn refuse_unserved(&mut self, key: &'static str, only: Option<&str>) {
        self.unserved.push(key);
        let Some(entry) = self.find(key) else { return };
        let allowed = only.and_then(|only| only.parse::<Value>().ok());
        match (only, allowed) {
            (Some(_), Some(allowed)) if entry.is_same_as(&allowed) => {}
            (Some(only), _) => self.unsupported(&entry, only),
            (None, _) => self.problem(&entry.spot, "this key is not supported by this version"),
        }
    }

    /// Reports `what` at `spot` where another spot took `value` before.
    pub(super) fn unique<K: Ord>(
        &mut self,
        spot: Spot,
        what: &str,
        value: K,
        taken: &mut Taken<K>,
    ) {
        match taken.entry(value) {
            btree_map::Entry::Vacant(free) => {
                free.insert(spot);
            }
            btree_map::Entry::Occupied(first) => {
                let Spot { path, at } = first.get();
                let line = at.map(|at| format!(", on line {}", self.source.line(at)));
                let line = line.unwrap_or_default();
                self.problem(
                    &spot,
                    format!("{what} is not allowed: {path} has it already{line}"),
                );
            }
        }
    }

    /// Reports what was found at `entry`, and what is allowed there.
    pub(super) fn refuse(&mut self, entry: &Entry<'_>, allowed: &str) {
        let found = entry.found(self.source);
        self.problem(&entry.spot, format!("{found} is not allowed: {allowed}"));
    }

    /// Reports what was found at `entry`, which a later version may allow, and what this one does.
    pub(super) fn unsupported(&mut self, entry: &Entry<'_>, only: &str) {
        let found = entry.found(self.source);
        let message = format!("{found} is not supported by this version: only {only}");
        self.problem(&entry.spot, message);
    }

    /// As [`Section::refuse`], and what was probably meant.
    pub(super) fn refuse_near(&mut self, entry: &Entry<'_>, allowed: &str, near: Option<&str>) {
        let meant = near.map(|near| format!("; did you mean \"{near}\"?"));
        self.refuse(entry, &format!("{allowed}{}", meant.unwrap_or_default()));
    }

    /// Reports anything.
    pub(super) fn problem(&mut self, spot: &Spot, message: impl Into<String>) {
        let line = spot.at.map(|at| self.source.line(at));
        self.found.problems.push(Problem {
            key: spot.path.clone(),
            line,
            message: message.into(),
        });
    }

    fn table_of(&mut self, entry: &Entry<'t>) -> Option<&'t dyn TableLike> {
        let items = entry.table();
        if items.is_none() {
            self.refuse(entry, "a table");
        }
        items
    }

    fn refuse_leftovers(&mut self) {
        for key in self.names() {
            if self.asked.contains(&key) || self.unserved.contains(&key.as_str()) {
                continue;
            }
            let message = match nearest(&key, self.asked.iter().map(String::as_str)) {
                Some(near) => format!("unknown key: did you mean {near}?"),
                None => format!("unknown key: one of {}", self.asked.join(", ")),
            };
            self.problem(&self.spot(&key), message);
        }
    }
}

/// `"a", "b" or "c"`
pub(super) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a section with keys of every kind makes of `text`.
    fn check(text: &str, expected: Result<&str, &[&str]>) {
        let read = read(text, |s| {
            let mut words = s.texts("words", "a word", |word| Some(word.to_owned()));
            words.extend(s.text("word", "a word", |word| Some(word.to_owned())));
            let number = s.number("number_ms", MILLISECONDS, 1..=9_u8, 5);
            let flag = s.flag("flag");
            let json = s.json("json");
            s.refuse_unserved("later", Some("[]"));
            s.refuse_unserved("never", None);
            let inner = s.section("inner", |s| s.number("depth", "a depth", 0..=9_u32, 0));
            let many = s.sections("many", |s| {
                s.required_text("name", "a name", |_| Some(1_u8))
            });
            Some(format!(
                "{words:?} {number} {flag} {json} {inner} {}",
                many.len()
            ))
        });
        let read = read.map_err(|problems| problems.iter().map(ToString::to_string).collect());
        let expected = expected.map(str::to_owned).map_err(|lines| {
            lines
                .iter()
                .map(|line| (*line).to_owned())
                .collect::<Vec<_>>()
        });
        assert_eq!(read, expected, "{text}");
    }

    #[test]
    fn what_is_absent_gets_its_default() {
        check("", Ok("[] 5 false {} 0 0"));
    }

    #[test]
    fn every_way_to_write_a_table_is_read() {
        check(
            "inner = { depth = 1 }\nmany = [{ name = 'a' }]",
            Ok("[] 5 false {} 1 1"),
        );
        check("inner.depth = 2", Ok("[] 5 false {} 2 0"));
        check(
            "[inner]\ndepth = 3\n[[many]]\nname = 'a'\n[[many]]\nname = 'b'",
            Ok("[] 5 false {} 3 2"),
        );
    }

    #[test]
    fn any_table_becomes_json() {
        check(
            "json = { a = [1, 2.5, 'x', true], d = 2026-01-02, n = { m = {} } }",
            Ok(r#"[] 5 false {"a":[1,2.5,"x",true],"d":"2026-01-02","n":{"m":{}}} 0 0"#),
        );
        check(
            "[json]\na = 1\n[[json.b]]\nc = 2",
            Ok(r#"[] 5 false {"a":1,"b":[{"c":2}]} 0 0"#),
        );
        check(
            "json.a.b = 07:32:00",
            Ok(r#"[] 5 false {"a":{"b":"07:32:00"}} 0 0"#),
        );
    }

    #[test]
    fn what_json_cannot_say_is_refused() {
        check(
            "[json]\na = [1,\n nan]\nb.\"c d\" = -inf",
            Err(&[
                "line 3: json.a[1]: nan is not allowed: a finite number",
                "line 4: json.b.\"c d\": -inf is not allowed: a finite number",
            ]),
        );
        check(
            "json = 5",
            Err(&["line 1: json: 5 is not allowed: a table"]),
        );
        let keys = |count: usize| vec!["a"; count].join(".");
        let text = format!("[json]\n{} = {{ {} = 1 }}", keys(40), keys(40));
        let key = format!("json.{}", keys(65));
        check(
            &text,
            Err(&[&format!("line 2: {key}: nested deeper than 64 levels")]),
        );
    }

    #[test]
    fn all_problems_are_reported_in_the_order_of_the_lines() {
        check(
            "[[many]]\n[inner]\ndepht = 1\n[json]\n",
            Err(&[
                "line 1: many[0].name: missing: a name",
                "line 3: inner.depht: unknown key: did you mean depth?",
            ]),
        );
        check(
            "words = ['a', 5]\nword = 'a'\nnumber_ms = 10\nflag = 'yes'\nnumber = 3",
            Err(&[
                "line 1: words[1]: 5 is not allowed: a word",
                "line 3: number_ms: 10 is not allowed: a number of milliseconds, 1 to 9",
                "line 4: flag: 'yes' is not allowed: true or false",
                "line 5: number: unknown key: did you mean number_ms?",
            ]),
        );
    }

    #[test]
    fn a_wrong_shape_says_what_was_found() {
        check(
            "words = 'a'",
            Err(&["line 1: words: 'a' is not allowed: a list, each a word"]),
        );
        check(
            "inner = []",
            Err(&["line 1: inner: [] is not allowed: a table"]),
        );
        check(
            "[[inner]]",
            Err(&["line 1: inner: a list of tables is not allowed: a table"]),
        );
        check(
            "[many]",
            Err(&["line 1: many: a table is not allowed: tables, each written as [[many]]"]),
        );
        check(
            "many = [1]",
            Err(&["line 1: many[0]: 1 is not allowed: a table"]),
        );
        check(
            "[word.x]",
            Err(&["line 1: word: a table is not allowed: a word"]),
        );
        check(
            "[[flag]]",
            Err(&["line 1: flag: a list of tables is not allowed: true or false"]),
        );
        check(
            "[number_ms]",
            Err(&["line 1: number_ms: a table is not allowed: a number of milliseconds, 1 to 9"]),
        );
        check(
            "word = [\n1]",
            Err(&["line 1: word: [... is not allowed: a word"]),
        );
        let long = format!("flag = '{}'", "x".repeat(99));
        let shown = format!(
            "line 1: flag: '{}... is not allowed: true or false",
            "x".repeat(59)
        );
        check(&long, Err(&[&shown]));
    }

    #[test]
    fn an_unserved_key_is_fine_while_it_asks_for_nothing() {
        check("later = []", Ok("[] 5 false {} 0 0"));
        for other in ["[1]", "{}", "'x'"] {
            let line = format!("line 1: later: {other} is not supported by this version: only []");
            check(&format!("later = {other}"), Err(&[&line]));
        }
        check(
            "[never]",
            Err(&["line 1: never: this key is not supported by this version"]),
        );
    }

    #[test]
    fn a_key_like_no_other_lists_what_is_allowed() {
        check(
            "zebra = 1\n\"\" = 2",
            Err(&[
                "line 1: zebra: unknown key: one of words, word, number_ms, flag, json, inner, many",
                "line 2: \"\": unknown key: one of words, word, number_ms, flag, json, inner, many",
            ]),
        );
    }

    #[test]
    fn what_is_no_toml_is_one_problem() {
        check(
            "word = 'a'\nword = 'b'",
            Err(&["line 2: word: not valid TOML: duplicate key word"]),
        );
        check(
            "[inner]\n[json]\n\"a b\" = 1\n[inner]",
            Err(&["line 4: inner: not valid TOML: duplicate key inner"]),
        );
        check(
            "word = 'a'\nflag = maybe\n[",
            Err(&["line 2: not valid TOML: string values must be quoted, expected literal string"]),
        );
    }
}
