//! One value of a TOML text, and where it stands: its key path and its line.
//!
//! `toml_edit` has three shapes for the same thing (a list is an array or `[[tables]]`, a table is
//! inline or has a header); here they are one. What a value may be is decided by who asks.

use std::ops::Range;

use serde_json::Number;
use toml_edit::{ArrayOfTables, Item, Table, TableLike, Value};

/// Where something stands.
#[derive(Clone)]
pub(super) struct Spot {
    /// `upstream[0].retries`
    pub(super) path: String,
    /// The byte where it begins; none: it is not in the text.
    pub(super) at: Option<usize>,
}

/// One value of the text, and where it stands.
pub(super) struct Entry<'t> {
    pub(super) spot: Spot,
    node: Node<'t>,
}

/// The three shapes in which `toml_edit` hands out a value.
#[derive(Clone, Copy)]
enum Node<'t> {
    Value(&'t Value),
    Table(&'t Table),
    Tables(&'t ArrayOfTables),
}

/// The text, and where its lines begin.
pub(super) struct SourceText<'t> {
    text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> Entry<'t> {
    /// `key` of a table at `path`.
    pub(super) fn of(items: &'t dyn TableLike, key: &str, path: &str) -> Option<Self> {
        let (written, item) = items.get_key_value(key)?;
        let node = match item {
            Item::Value(value) => Node::Value(value),
            Item::Table(table) => Node::Table(table),
            Item::ArrayOfTables(tables) => Node::Tables(tables),
            Item::None => return None,
        };
        let at = written
            .span()
            .or_else(|| item.span())
            .map(|span| span.start);
        Some(Self {
            spot: Spot {
                path: join(path, key),
                at,
            },
            node,
        })
    }

    /// None where this is no list.
    pub(super) fn elements(&self) -> Option<Vec<Self>> {
        let element = |(index, (node, span)): (usize, (Node<'t>, Option<Range<usize>>))| {
            let path = format!("{}[{index}]", self.spot.path);
            let at = span.map_or(self.spot.at, |span| Some(span.start));
            Self {
                spot: Spot { path, at },
                node,
            }
        };
        match self.node {
            Node::Value(Value::Array(array)) => {
                let nodes = array.iter().map(|value| (Node::Value(value), value.span()));
                Some(nodes.enumerate().map(element).collect())
            }
            Node::Tables(tables) => {
                let nodes = tables
                    .iter()
                    .map(|table| (Node::Table(table), table.span()));
                Some(nodes.enumerate().map(element).collect())
            }
            _ => None,
        }
    }

    /// None where this is no table.
    pub(super) fn table(&self) -> Option<&'t dyn TableLike> {
        match self.node {
            Node::Value(Value::InlineTable(table)) => Some(table),
            Node::Table(table) => Some(table),
            _ => None,
        }
    }

    /// None where this is no string.
    pub(super) fn as_str(&self) -> Option<&'t str> {
        match self.node {
            Node::Value(value) => value.as_str(),
            _ => None,
        }
    }

    /// None where this is no whole number.
    pub(super) fn as_integer(&self) -> Option<i64> {
        match self.node {
            Node::Value(value) => value.as_integer(),
            _ => None,
        }
    }

    /// None where this is neither `true` nor `false`.
    pub(super) fn as_bool(&self) -> Option<bool> {
        match self.node {
            Node::Value(value) => value.as_bool(),
            _ => None,
        }
    }

    /// What is neither a table nor a list, as JSON.
    pub(super) fn scalar(&self) -> serde_json::Value {
        match self.node {
            Node::Value(value) => scalar(value),
            _ => serde_json::Value::Null,
        }
    }

    /// A float that JSON has no word for.
    pub(super) fn is_infinite_or_nan(&self) -> bool {
        let Node::Value(value) = self.node else {
            return false;
        };
        value.as_float().is_some_and(|float| !float.is_finite())
    }

    /// Whether this is the scalar `other`; two lists are the same where both are empty.
    pub(super) fn is_same_as(&self, other: &Value) -> bool {
        match (self.elements(), other.as_array()) {
            (None, None) => self.scalar() == scalar(other),
            (Some(elements), Some(array)) => elements.is_empty() && array.is_empty(),
            _ => false,
        }
    }

    /// The first line of what was written, cut where it is long.
    pub(super) fn found(&self, source: &SourceText<'_>) -> String {
        const MAX_CHARS: usize = 60;
        let value = match self.node {
            Node::Value(value) => value,
            Node::Table(_) => return "a table".to_owned(),
            Node::Tables(_) => return "a list of tables".to_owned(),
        };
        let written = value.span().and_then(|span| source.text.get(span));
        let Some(written) = written else {
            return value.type_name().to_owned();
        };
        let shown: String = written
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(MAX_CHARS)
            .collect();
        let dots = if shown.len() < written.len() {
            "..."
        } else {
            ""
        };
        shown + dots
    }
}

impl<'t> SourceText<'t> {
    /// Finds the lines of `text`.
    pub(super) fn new(text: &'t str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = [0].into_iter().chain(ends.map(|(at, _)| at + 1)).collect();
        Self { text, line_starts }
    }

    /// Counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }
}

fn scalar(value: &Value) -> serde_json::Value {
    match value {
        Value::String(text) => text.value().as_str().into(),
        Value::Integer(number) => (*number.value()).into(),
        Value::Float(number) => Number::from_f64(*number.value()).into(),
        Value::Boolean(flag) => (*flag.value()).into(),
        Value::Datetime(date) => date.value().to_string().into(),
        Value::Array(_) | Value::InlineTable(_) => serde_json::Value::Null,
    }
}

/// `path.key`, with quotes where TOML wants them.
pub(super) fn join(path: &str, key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let dot = if path.is_empty() { "" } else { "." };
    if !key.is_empty() && key.chars().all(is_bare) {
        format!("{path}{dot}{key}")
    } else {
        format!("{path}{dot}{key:?}")
    }
}
