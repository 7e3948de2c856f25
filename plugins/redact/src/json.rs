//! Finds values in a JSON text and edits them in place, in one pass that also checks that the text is
//! JSON. Knows the grammar of RFC 8259; what a pointer leads to is `pointer`'s business.
//!
//! A call has a deadline, and clients choose the text: so each byte costs some nanoseconds at most,
//! whatever it is. Nothing is recursive but for the steps of a pointer, and nothing is allocated for a
//! single value.

use std::ops::Range;

use crate::pointer::{Level, Pointers, Set};

/// What became of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing was found.
    Unchanged,
    Redacted(String),
    /// It is longer than is allowed, or would be.
    TooLong,
    /// It has more values than is allowed.
    TooMuchWork,
    NotJson,
}

/// How far a message may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Of the text, and of what comes of it.
    pub(crate) max_bytes: usize,
    /// A step is a value or a name that is read, or a row of escapes; and one more where a pointer may lead
    /// to the value, and where it is edited.
    pub(crate) max_steps: usize,
}

/// To go into an object or array instead of over it.
const STEPS_OF_CONTAINER: usize = 2;
/// To read a name with escapes.
const STEPS_OF_UNESCAPED: usize = 2;

/// Puts `replacement` in the place of what the pointers lead to; none: removes it, with its name and one
/// comma.
pub(crate) fn redact(
    text: &str,
    pointers: &Pointers,
    replacement: Option<&str>,
    limits: Limits,
) -> Outcome {
    if text.len() > limits.max_bytes {
        return Outcome::TooLong;
    }
    let mut walk = Walk {
        text,
        pointers,
        name: Vec::new(),
        edits: Edits {
            text: text.as_bytes(),
            replacement: replacement.map(str::as_bytes),
            edited: Vec::new(),
            n_copied: 0,
            max_bytes: limits.max_bytes,
        },
        max_steps: limits.max_steps,
    };
    let done = walk.document().and_then(|()| walk.edits.finish());
    match done {
        Ok(()) if walk.edits.n_copied == 0 => Outcome::Unchanged,
        Ok(()) => match String::from_utf8(walk.edits.edited) {
            Ok(text) => Outcome::Redacted(text),
            // Only whole values of a text are replaced by a text.
            Err(_) => Outcome::NotJson,
        },
        Err(Stop::TooLong) => Outcome::TooLong,
        Err(Stop::TooMuchWork) => Outcome::TooMuchWork,
        Err(Stop::NotJson) => Outcome::NotJson,
    }
}

/// Why a text is not read to its end.
#[derive(Debug)]
enum Stop {
    NotJson,
    TooLong,
    TooMuchWork,
}

/// One pass over a text.
struct Walk<'a> {
    text: &'a str,
    pointers: &'a Pointers,
    /// The last name that had escapes, without them.
    name: Vec<u8>,
    edits: Edits<'a>,
    max_steps: usize,
}

impl<'a> Walk<'a> {
    fn document(&mut self) -> Result<(), Stop> {
        let mut scan = Scan {
            text: self.text.as_bytes(),
            at: 0,
            next: 0,
            steps_left: self.max_steps,
        };
        scan.go(0);
        scan.space();
        let start = scan.at;
        let level = self.pointers.level(0);
        if self.value(&mut scan, self.pointers.all(), level, 0)? {
            self.edits.edit(start..scan.at)?;
        }
        scan.space();
        match scan.at == self.text.len() {
            true => Ok(()),
            false => Err(Stop::NotJson),
        }
    }

    /// Reads one value, to which the first steps of the pointers `into` have led: `level` is what comes
    /// after so many. True: a pointer ends here, and the caller is to edit it. What is within it has been
    /// edited otherwise.
    #[inline(always)]
    fn value(
        &mut self,
        scan: &mut Scan<'a>,
        into: Set,
        level: &'a Level,
        depth: usize,
    ) -> Result<bool, Stop> {
        if level.is_found(into) {
            scan.value()?;
            return Ok(true);
        }
        match scan.next {
            b'{' if level.is_about_members(into) => self.container(scan, into, depth, b'}')?,
            b'[' if level.is_about_elements(into) => self.container(scan, into, depth, b']')?,
            _ => scan.value()?,
        }
        Ok(false)
    }

    /// Reads an object or an array, until `close`. No pointer of `into` ends here.
    fn container(
        &mut self,
        outer: &mut Scan<'a>,
        into: Set,
        depth: usize,
        close: u8,
    ) -> Result<(), Stop> {
        let level = self.pointers.level(depth);
        let below = self.pointers.level(depth + 1);
        // A copy, which stays in registers.
        let mut scan = *outer;
        scan.spend(STEPS_OF_CONTAINER)?;
        scan.pass();
        if scan.next == close {
            scan.step();
            *outer = scan;
            return Ok(());
        }
        let mut end_before = scan.at;
        let mut is_any_kept = false;
        for index in 0.. {
            scan.spend(1)?;
            let start = scan.at;
            let led = match close {
                b'}' => {
                    let (name, has_escapes) = scan.name()?;
                    let name = match has_escapes {
                        true => {
                            scan.spend(STEPS_OF_UNESCAPED)?;
                            unescaped(name, &mut self.name, level.longest())
                        }
                        false => Some(name),
                    };
                    level.at_member(name)
                }
                _ => level.at_element(index),
            };
            let value_start = scan.at;
            let is_found = self.value(&mut scan, into & led, below, depth + 1)?;
            let end = scan.at;
            scan.space();
            let is_last = scan.next == close;
            if !is_last {
                scan.expect(b',')?;
            }
            // A comma goes with what is removed: the one before it if something stands there, else the
            // one behind it.
            scan.spend(usize::from(is_found))?;
            match (is_found, self.edits.replacement) {
                (false, _) => is_any_kept = true,
                (true, Some(_)) => self.edits.edit(value_start..end)?,
                (true, None) if is_any_kept => self.edits.edit(end_before..end)?,
                (true, None) if !is_last => self.edits.edit(start..scan.at)?,
                (true, None) => self.edits.edit(start..end)?,
            }
            if is_last {
                break;
            }
            end_before = end;
        }
        scan.step();
        *outer = scan;
        Ok(())
    }
}

/// The new text.
struct Edits<'a> {
    text: &'a [u8],
    /// None: what is found is removed.
    replacement: Option<&'a [u8]>,
    /// What has become of `text` up to `n_copied`, 0 before the first edit.
    edited: Vec<u8>,
    n_copied: usize,
    max_bytes: usize,
}

impl Edits<'_> {
    /// Edits come in the order of the text and do not overlap.
    #[inline(always)]
    fn edit(&mut self, range: Range<usize>) -> Result<(), Stop> {
        self.keep(range.start)?;
        if let Some(replacement) = self.replacement {
            push(&mut self.edited, replacement);
        }
        self.n_copied = range.end;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Stop> {
        match self.n_copied {
            0 => Ok(()),
            _ => self.keep(self.text.len()),
        }
    }

    /// Copies what is not edited.
    #[inline(always)]
    fn keep(&mut self, end: usize) -> Result<(), Stop> {
        let kept = &self.text[self.n_copied..end];
        if self.edited.len() + kept.len() > self.max_bytes {
            return Err(Stop::TooLong);
        }
        push(&mut self.edited, kept);
        Ok(())
    }
}

/// As `extend_from_slice`, which leaves it to the host to copy even a few bytes, and costs more than those.
#[inline(always)]
fn push(bytes: &mut Vec<u8>, piece: &[u8]) {
    match piece.len() {
        1..=8 => piece.iter().for_each(|&byte| bytes.push(byte)),
        _ => bytes.extend_from_slice(piece),
    }
}

/// Passes over parts of a text, and stops at what is no JSON.
#[derive(Clone, Copy)]
struct Scan<'a> {
    text: &'a [u8],
    /// Where it is.
    at: usize,
    /// The byte there; 0 at the end, which is never right outside of a value.
    next: u8,
    steps_left: usize,
}

impl<'a> Scan<'a> {
    #[inline(always)]
    fn go(&mut self, at: usize) {
        self.at = at;
        self.next = self.text.get(at).copied().unwrap_or(0);
    }

    #[inline(always)]
    fn spend(&mut self, n_steps: usize) -> Result<(), Stop> {
        let left = self.steps_left.checked_sub(n_steps);
        self.steps_left = left.ok_or(Stop::TooMuchWork)?;
        Ok(())
    }

    #[inline(always)]
    fn step(&mut self) {
        self.go(self.at + 1);
    }

    #[inline(always)]
    fn space(&mut self) {
        if self.next <= b' ' {
            let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
            let rest = self.text.get(self.at..).unwrap_or_default();
            self.go(self.at + rest.iter().take_while(is_space).count());
        }
    }

    /// One byte, and the space behind it.
    #[inline(always)]
    fn pass(&mut self) {
        self.step();
        self.space();
    }

    #[inline(always)]
    fn expect(&mut self, byte: u8) -> Result<(), Stop> {
        if self.next != byte {
            return Err(Stop::NotJson);
        }
        self.pass();
        Ok(())
    }

    /// A value with all that is in it.
    #[inline(always)]
    fn value(&mut self) -> Result<(), Stop> {
        match self.next {
            b'{' | b'[' => nested(self),
            _ => {
                self.spend(1)?;
                self.scalar()
            }
        }
    }

    /// A value that is neither object nor array.
    #[inline(always)]
    fn scalar(&mut self) -> Result<(), Stop> {
        match self.next {
            b'"' => {
                self.string()?;
                Ok(())
            }
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => Err(Stop::NotJson),
        }
    }

    /// A member's name and the colon. The name is as it is written; true: with escapes.
    #[inline(always)]
    fn name(&mut self) -> Result<(&'a [u8], bool), Stop> {
        if self.next != b'"' {
            return Err(Stop::NotJson);
        }
        self.spend(1)?;
        let start = self.at + 1;
        let has_escapes = self.string()?;
        let text = self.text;
        let name = &text[start..self.at - 1];
        self.space();
        self.expect(b':')?;
        Ok((name, has_escapes))
    }

    /// A string from its first quote to its last. True: it has escapes.
    #[inline(always)]
    fn string(&mut self) -> Result<bool, Stop> {
        self.step();
        let mut has_escapes = false;
        loop {
            self.go(self.at + n_plain(&self.text[self.at..]));
            match self.next {
                b'"' => {
                    self.step();
                    return Ok(has_escapes);
                }
                b'\\' => self.escapes()?,
                _ => return Err(Stop::NotJson),
            }
            has_escapes = true;
        }
    }

    /// One escape, and those that follow at once.
    #[inline(always)]
    fn escapes(&mut self) -> Result<(), Stop> {
        self.spend(1)?;
        let mut at = self.at;
        while let [b'\\', rest @ ..] = &self.text[at..] {
            at += match rest {
                [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
                [b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|n| n.is_ascii_hexdigit()) => 6,
                _ => return Err(Stop::NotJson),
            };
        }
        self.go(at);
        Ok(())
    }

    #[inline(always)]
    fn number(&mut self) -> Result<(), Stop> {
        if self.next == b'-' {
            self.step();
        }
        match self.next {
            b'0' => self.step(),
            _ => self.digits()?,
        }
        if self.next == b'.' {
            self.step();
            self.digits()?;
        }
        if matches!(self.next, b'e' | b'E') {
            self.step();
            if matches!(self.next, b'+' | b'-') {
                self.step();
            }
            self.digits()?;
        }
        Ok(())
    }

    /// One at least.
    #[inline(always)]
    fn digits(&mut self) -> Result<(), Stop> {
        if !self.next.is_ascii_digit() {
            return Err(Stop::NotJson);
        }
        while self.next.is_ascii_digit() {
            self.step();
        }
        Ok(())
    }

    #[inline(always)]
    fn word(&mut self, word: &[u8]) -> Result<(), Stop> {
        if !self.text[self.at..].starts_with(word) {
            return Err(Stop::NotJson);
        }
        self.go(self.at + word.len());
        Ok(())
    }
}

/// Passes over an object or array with all that is in it, however deep.
fn nested(outer: &mut Scan<'_>) -> Result<(), Stop> {
    // A copy, which stays in registers.
    let mut scan = *outer;
    let mut open = Nesting::default();
    loop {
        scan.spend(1)?;
        match scan.next {
            b'{' => {
                scan.pass();
                if scan.next != b'}' {
                    open.push(true);
                    scan.name()?;
                    continue;
                }
                scan.step();
            }
            b'[' => {
                scan.pass();
                if scan.next != b']' {
                    open.push(false);
                    continue;
                }
                scan.step();
            }
            _ => scan.scalar()?,
        }
        loop {
            if open.depth == 0 {
                *outer = scan;
                return Ok(());
            }
            scan.space();
            match scan.next {
                b',' => {
                    scan.pass();
                    if open.is_object() {
                        scan.name()?;
                    }
                    break;
                }
                b'}' if open.is_object() => {}
                b']' if !open.is_object() => {}
                _ => return Err(Stop::NotJson),
            }
            scan.step();
            open.pop();
        }
    }
}

/// What is open: for each level a bit, set for an object.
#[derive(Default)]
struct Nesting {
    depth: usize,
    /// The last level is the lowest bit.
    last: u64,
    /// Those before the last 1 to 64.
    before: Vec<u64>,
}

impl Nesting {
    #[inline(always)]
    fn push(&mut self, is_object: bool) {
        if self.depth.is_multiple_of(64) && self.depth > 0 {
            self.before.push(self.last);
        }
        self.last = self.last << 1 | u64::from(is_object);
        self.depth += 1;
    }

    #[inline(always)]
    fn pop(&mut self) {
        self.depth -= 1;
        self.last = match self.depth.is_multiple_of(64) {
            true => self.before.pop().unwrap_or(0),
            false => self.last >> 1,
        };
    }

    #[inline(always)]
    fn is_object(&self) -> bool {
        self.last & 1 == 1
    }
}

/// How many bytes at the beginning stand for themselves in a string.
#[inline(always)]
fn n_plain(text: &[u8]) -> usize {
    let mut n = 0;
    while let Some(&eight) = text[n..].first_chunk() {
        let special = special(u64::from_le_bytes(eight));
        if special != 0 {
            return n + special.trailing_zeros() as usize / 8;
        }
        n += 8;
    }
    let is_plain = |byte: &&u8| !matches!(byte, 0..b' ' | b'"' | b'\\');
    n + text[n..].iter().take_while(is_plain).count()
}

/// Marks quotes, backslashes and control characters among eight bytes, by their highest bits. Only the
/// lowest mark is to be relied on ("Bit Twiddling Hacks", "Determine if a word has a byte less than n").
fn special(eight: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let less = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word;
    let is = |byte: u8| less(eight ^ (ONES * u64::from(byte)), 1);
    (less(eight, u64::from(b' ')) | is(b'"') | is(b'\\')) & (ONES << 7)
}

/// A name without its escapes. None: it has more than `max_bytes`, or is not Unicode, which JSON can write
/// (`"\ud800"`) and a pointer cannot.
fn unescaped<'a>(name: &[u8], into: &'a mut Vec<u8>, max_bytes: usize) -> Option<&'a [u8]> {
    into.clear();
    let mut rest = name;
    while let [first, behind @ ..] = rest {
        if into.len() > max_bytes {
            return None;
        }
        (rest, _) = match (first, behind) {
            (b'\\', [b'u', digits @ ..]) => {
                let (c, n_digits) = unicode(digits)?;
                into.extend(c.encode_utf8(&mut [0; 4]).bytes());
                (digits.get(n_digits..)?, ())
            }
            (b'\\', [sign, behind @ ..]) => {
                let sign = match sign {
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    // A quote, a backslash or a slash.
                    other => *other,
                };
                (behind, into.push(sign))
            }
            _ => (behind, into.push(*first)),
        };
    }
    Some(into)
}

/// What the four digits of an escape stand for; two escapes where a character is written with both (RFC
/// 8259 section 7). Also how many bytes these are.
fn unicode(digits: &[u8]) -> Option<(char, usize)> {
    let unit = |digits: &[u8]| {
        let digits = digits.iter().map(|digit| char::from(*digit).to_digit(16));
        digits
            .take(4)
            .try_fold(0, |unit, digit| Some(unit << 4 | digit?))
    };
    let first = unit(digits)?;
    if let Some(c) = char::from_u32(first) {
        return Some((c, 4));
    }
    let second = unit(digits.get(4..)?.strip_prefix(b"\\u")?)?;
    let both = [first as u16, second as u16];
    Some((char::decode_utf16(both).next()?.ok()?, 10))
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;
    use serde_json::{Value, json};

    use super::*;
    use crate::pointer::Pointer;

    const MAX_BYTES: usize = 1 << 20;

    const LIMITS: Limits = Limits {
        max_bytes: MAX_BYTES,
        max_steps: usize::MAX,
    };

    fn run(text: &str, pointers: &[&str], replacement: Option<&str>) -> Outcome {
        let parse = |text: &&str| Pointer::parse(text).unwrap();
        let pointers: Vec<Pointer> = pointers.iter().map(parse).collect();
        let pointers = Pointers::new(&pointers).unwrap();
        redact(text, &pointers, replacement, LIMITS)
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
        check(r#"{"\u006B\u0065\u0079":1}"#, r#"{"\u006B\u0065\u0079":0}"#);
        for other in [
            r"key\n",
            r"\ud800key",
            r"key\udc00",
            r"k\/y",
            r"\ud83e\ud800",
            r"ke\\y",
        ] {
            let text = format!("{{\"{other}\":1,\"key\":2}}");
            self::check(&text, &["/key"], Some("0"), &text.replace('2', "0"));
        }
        let signs = r#"{"\b\f\n\r\t\"\\\/\ud83e\udd80ü":1}"#;
        let name = "/\u{8}\u{c}\n\r\t\"\\~1\u{1f980}ü";
        self::check(signs, &[name], Some("0"), &signs.replace(":1", ":0"));
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
    fn work_is_counted_by_values() {
        let check = |text: &str, pointers: &[&str], n_steps| {
            let parse = |text: &&str| Pointer::parse(text).unwrap();
            let pointers: Vec<Pointer> = pointers.iter().map(parse).collect();
            let pointers = Pointers::new(&pointers).unwrap();
            let is_too_much = |max_steps| {
                let limits = Limits {
                    max_steps,
                    ..LIMITS
                };
                redact(text, &pointers, Some("0"), limits) == Outcome::TooMuchWork
            };
            assert!(is_too_much(n_steps - 1), "more for {text}");
            assert!(!is_too_much(n_steps), "less for {text}");
        };
        check("1", &["/a"], 1);
        check("[1, [], {}, \"a\", null]", &["/a"], 6);
        check(r#"["\n\n", "a\nb\u0000"]"#, &["/a"], 1 + 2 + 3);
        check(r#"{"a": {"b": [{}]}}"#, &["/0"], 2 + 2 + 4);
        check(r#"{"a": 1, "\t": 2}"#, &["/a"], 2 + 4 + 6);
        check(r#"[{"a": 1}, [1]]"#, &["/*/a"], 2 + (1 + 2 + 4) + (1 + 2));
    }

    #[test]
    fn a_text_may_grow_to_its_bound() {
        let replacement = format!("\"{}\"", "x".repeat(MAX_BYTES - 4));
        let grown = run("[0]", &["/0"], Some(&replacement));
        assert_eq!(grown, Outcome::Redacted(format!("[{replacement}]")));
        assert_eq!(run("[0 ]", &["/0"], Some(&replacement)), Outcome::TooLong);
        assert_eq!(run("[0,1]", &["/*"], Some(&replacement)), Outcome::TooLong);
        // What comes later may make room.
        let text = format!("[0,\"{}\"]", "x".repeat(MAX_BYTES - 6));
        let shorter = Outcome::Redacted("[\"new\",\"new\"]".to_owned());
        assert_eq!(run(&text, &["/*"], Some("\"new\"")), shorter);
    }

    /// What `serde_json` takes for JSON, and nothing else: of all short texts of these parts, and of each
    /// document with a byte taken out, put in or changed.
    #[test]
    fn json_is_what_a_parser_takes() {
        let check = |text: &str| {
            let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
            for pointer in ["/no", "/a/a", "/*/*"] {
                let outcome = run(text, &[pointer], Some("0"));
                assert_eq!(outcome != Outcome::NotJson, is_json, "{text:?} {pointer}");
            }
        };
        let parts = [
            "{", "}", "[", "]", ",", ":", "\"a\"", "\"", "\\", "0", "1", "-", ".", "e", "+",
            "true", "null", "fals", " ", "\n", "u", "d800", "\u{1}", "\u{e9}", "\\u00e9", "\\\"",
        ];
        let n = parts.len();
        for number in 0..n * n * n * n {
            let digits = [1, n, n * n, n * n * n].map(|power| number / power % n);
            check(&digits.map(|digit| parts[digit]).concat());
        }
        let documents = [
            r#"{"a":{"a":[1,{"b":-2.5e+7}],"b":null},"b":[[],{},[0,{"a":"x,]}"}]]}"#,
            "{ \"a\" : [ true , false\t,\r\nnull ] , \"\\u0061\\n\\ud83e\\udd80\" : \"\u{1f980}12345678\" } ",
        ];
        for document in documents {
            for (at, _) in document.char_indices() {
                let (before, after) = document.split_at(at);
                for part in parts {
                    check(&[before, part, after].concat());
                    let mut rest = after.chars();
                    rest.next();
                    check(&[before, rest.as_str()].concat());
                    check(&[before, part, rest.as_str()].concat());
                }
                check(before);
            }
        }
    }
}
