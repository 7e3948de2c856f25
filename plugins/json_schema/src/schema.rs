//! From the JSON of a schema to checks that are ready to be made, or to what is wrong with it.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use crate::pattern::Pattern;

/// `$schema` as it is written for these drafts, without the `#` that may end it.
const DRAFT_2020_12: &str = "https://json-schema.org/draft/2020-12/schema";
const DRAFT_07: &str = "http://json-schema.org/draft-07/schema";

/// What says nothing of the message.
const ANNOTATIONS: [&str; 18] = [
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "example",
    "examples",
    "format",
    "readOnly",
    "title",
    "writeOnly",
];

/// The place of a subschema in [`Schema::nodes`].
pub(crate) type NodeId = usize;

/// A schema with all its subschemas, of which those that are referred to exist once.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) root: NodeId,
    pub(crate) nodes: Vec<Node>,
}

/// One subschema.
#[derive(Debug)]
pub(crate) enum Node {
    /// `false`.
    Never,
    /// A value has to pass all; `true` has none.
    Checks(Vec<Check>),
}

/// One keyword, or several that belong together.
#[derive(Debug)]
pub(crate) enum Check {
    Type(Vec<Type>),
    Enum(Vec<Value>),
    Const(Value),
    MultipleOf(Number),
    Minimum(Number),
    ExclusiveMinimum(Number),
    Maximum(Number),
    ExclusiveMaximum(Number),
    MinLength(usize),
    MaxLength(usize),
    Pattern(Pattern),
    MinItems(usize),
    MaxItems(usize),
    UniqueItems,
    /// `prefixItems`, and `items` for those behind; in draft-07 `items` and `additionalItems`.
    Items {
        first: Vec<NodeId>,
        rest: Option<NodeId>,
    },
    Contains {
        node: NodeId,
        min: usize,
        max: usize,
    },
    MinProperties(usize),
    MaxProperties(usize),
    Required(Vec<String>),
    PropertyNames(NodeId),
    /// Those of `properties` that a constant or a list of them tells: so the kinds of a union are told
    /// apart before what is in them is looked at, maybe by each kind again, and again within it.
    Discriminators(BTreeMap<String, NodeId>),
    Properties {
        named: BTreeMap<String, NodeId>,
        patterns: Vec<(Pattern, NodeId)>,
        additional: Option<NodeId>,
    },
    DependentRequired(BTreeMap<String, Vec<String>>),
    DependentSchemas(Vec<(String, NodeId)>),
    Ref(NodeId),
    AllOf(Vec<NodeId>),
    AnyOf(Vec<NodeId>),
    OneOf(Vec<NodeId>),
    Not(NodeId),
    If {
        condition: NodeId,
        then: Option<NodeId>,
        otherwise: Option<NodeId>,
    },
}

/// What `type` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Null,
    Boolean,
    Integer,
    Number,
    String,
    Array,
    Object,
}

impl Schema {
    /// Reads a whole schema. An error begins with the place of what is wrong, as a JSON pointer.
    pub(crate) fn new(document: &Value) -> Result<Self, String> {
        let is_draft_07 = match document.get("$schema") {
            None => false,
            Some(uri) => match uri.as_str().map(|uri| uri.trim_end_matches('#')) {
                Some(DRAFT_2020_12) => false,
                Some(DRAFT_07) => true,
                _ => {
                    return Err(format!(
                        "/$schema: {uri} is not allowed: {DRAFT_2020_12:?} or {DRAFT_07:?}"
                    ));
                }
            },
        };
        let mut compiler = Compiler {
            document,
            is_draft_07,
            nodes: Vec::new(),
            known: BTreeMap::new(),
        };
        let root = compiler.node(document, "")?;
        let schema = Self {
            root,
            nodes: compiler.nodes,
        };
        let mut known = vec![Ends::Unknown; schema.nodes.len()];
        for node in 0..schema.nodes.len() {
            schema.check_ends(node, &mut known)?;
        }
        Ok(schema)
    }

    /// Refuses a subschema that asks for itself before it has moved on to a part of the message.
    fn check_ends(&self, node: NodeId, known: &mut [Ends]) -> Result<(), String> {
        match known[node] {
            Ends::Yes => return Ok(()),
            Ends::UnderWay => {
                return Err(": a schema refers to itself in a circle".to_owned());
            }
            Ends::Unknown => known[node] = Ends::UnderWay,
        }
        if let Node::Checks(checks) = &self.nodes[node] {
            for next in checks.iter().flat_map(Check::of_the_same) {
                self.check_ends(next, known)?;
            }
        }
        known[node] = Ends::Yes;
        Ok(())
    }
}

/// Whether a subschema comes to an end with one value.
#[derive(Clone, Copy)]
enum Ends {
    Unknown,
    UnderWay,
    Yes,
}

impl Check {
    /// The order in which checks are made. A value of another type is the first thing to say, what costs
    /// next to nothing comes before what goes through all of a text or list, and that before other schemas.
    fn rank(&self) -> u8 {
        match self {
            Self::Type(_) => 0,
            Self::Pattern(_) | Self::UniqueItems => 2,
            Self::Discriminators(_) => 3,
            Self::Items { .. }
            | Self::Contains { .. }
            | Self::PropertyNames(_)
            | Self::Properties { .. }
            | Self::DependentSchemas(_)
            | Self::Ref(_)
            | Self::AllOf(_)
            | Self::AnyOf(_)
            | Self::OneOf(_)
            | Self::Not(_)
            | Self::If { .. } => 4,
            _ => 1,
        }
    }

    /// The subschemas that the same value is held against.
    fn of_the_same(&self) -> Vec<NodeId> {
        match self {
            Self::Ref(node) | Self::Not(node) => vec![*node],
            Self::AllOf(nodes) | Self::AnyOf(nodes) | Self::OneOf(nodes) => nodes.clone(),
            Self::DependentSchemas(nodes) => nodes.iter().map(|(_, node)| *node).collect(),
            Self::If {
                condition,
                then,
                otherwise,
            } => [Some(*condition), *then, *otherwise]
                .into_iter()
                .flatten()
                .collect(),
            _ => Vec::new(),
        }
    }
}

struct Compiler<'a> {
    document: &'a Value,
    is_draft_07: bool,
    nodes: Vec<Node>,
    /// By their JSON pointer, those under way among them: so schemas may be recursive.
    known: BTreeMap<String, NodeId>,
}

impl Compiler<'_> {
    /// The subschema at this place.
    fn node(&mut self, schema: &Value, at: &str) -> Result<NodeId, String> {
        if let Some(known) = self.known.get(at) {
            return Ok(*known);
        }
        let node = self.nodes.len();
        self.nodes.push(Node::Never);
        self.known.insert(at.to_owned(), node);
        self.nodes[node] = match schema {
            Value::Bool(false) => Node::Never,
            Value::Bool(true) => Node::Checks(Vec::new()),
            Value::Object(keywords) => Node::Checks(self.checks(keywords, at)?),
            other => return Err(wrong(at, other, "a schema: a table, true or false")),
        };
        Ok(node)
    }

    fn checks(&mut self, keywords: &Map<String, Value>, at: &str) -> Result<Vec<Check>, String> {
        if !at.is_empty() && keywords.contains_key("$id") {
            return Err(format!("{at}/$id: only the whole schema may have one"));
        }
        // Draft-07 section 8.3: what is beside a reference is not looked at.
        if let (true, Some(reference)) = (self.is_draft_07, keywords.get("$ref")) {
            return Ok(vec![self.reference(reference, &format!("{at}/$ref"))?]);
        }
        let mut checks = Vec::new();
        for (name, value) in keywords {
            let at = format!("{at}/{}", escaped(name));
            checks.extend(self.check(keywords, name, value, &at)?);
        }
        checks.extend(self.discriminators(&checks));
        checks.sort_by_key(Check::rank);
        Ok(checks)
    }

    fn discriminators(&self, checks: &[Check]) -> Option<Check> {
        let named = checks.iter().find_map(|check| match check {
            Check::Properties { named, .. } => Some(named),
            _ => None,
        })?;
        let tells = |node: NodeId| match &self.nodes[node] {
            Node::Checks(checks) => {
                let tells = |check| matches!(check, &Check::Const(_) | &Check::Enum(_));
                checks.iter().any(tells) && checks.iter().all(|check| check.rank() < 2)
            }
            Node::Never => false,
        };
        let named = named.iter().filter(|(_, node)| tells(**node));
        let named: BTreeMap<_, _> = named.map(|(name, node)| (name.clone(), *node)).collect();
        (!named.is_empty()).then_some(Check::Discriminators(named))
    }

    /// What one keyword asks for. Of those that belong together, one speaks for all.
    fn check(
        &mut self,
        all: &Map<String, Value>,
        name: &str,
        value: &Value,
        at: &str,
    ) -> Result<Option<Check>, String> {
        let is_draft_07 = self.is_draft_07;
        Ok(Some(match name {
            "type" => Check::Type(types(value, at)?),
            "enum" => Check::Enum(list(value, at)?.clone()),
            "const" => Check::Const(value.clone()),
            "multipleOf" => match number(value, at)? {
                divisor if divisor.as_f64() > Some(0.0) => Check::MultipleOf(divisor),
                _ => return Err(wrong(at, value, "a number above 0")),
            },
            "minimum" => Check::Minimum(number(value, at)?),
            "exclusiveMinimum" => Check::ExclusiveMinimum(number(value, at)?),
            "maximum" => Check::Maximum(number(value, at)?),
            "exclusiveMaximum" => Check::ExclusiveMaximum(number(value, at)?),
            "minLength" => Check::MinLength(count(value, at)?),
            "maxLength" => Check::MaxLength(count(value, at)?),
            "pattern" => Check::Pattern(pattern(text(value, at)?, at)?),
            "minItems" => Check::MinItems(count(value, at)?),
            "maxItems" => Check::MaxItems(count(value, at)?),
            "uniqueItems" => match value {
                Value::Bool(true) => Check::UniqueItems,
                Value::Bool(false) => return Ok(None),
                _ => return Err(wrong(at, value, "true or false")),
            },
            "prefixItems" if !is_draft_07 => Check::Items {
                first: self.nodes_in_list(value, at)?,
                rest: self.beside(all, at, "items")?,
            },
            "items" if all.contains_key("prefixItems") && !is_draft_07 => return Ok(None),
            "items" if value.is_array() && is_draft_07 => Check::Items {
                first: self.nodes_in_list(value, at)?,
                rest: self.beside(all, at, "additionalItems")?,
            },
            "items" => Check::Items {
                first: Vec::new(),
                rest: Some(self.node(value, at)?),
            },
            "additionalItems" if is_draft_07 => return Ok(None),
            "contains" => {
                let bound = |name, default| match all.get(name) {
                    Some(value) if !is_draft_07 => count(value, &sibling(at, name)),
                    _ => Ok(default),
                };
                let (min, max) = (bound("minContains", 1)?, bound("maxContains", usize::MAX)?);
                let node = self.node(value, at)?;
                Check::Contains { node, min, max }
            }
            "minContains" | "maxContains" if !is_draft_07 => return Ok(None),
            "minProperties" => Check::MinProperties(count(value, at)?),
            "maxProperties" => Check::MaxProperties(count(value, at)?),
            "required" => Check::Required(texts(value, at)?),
            "propertyNames" => Check::PropertyNames(self.node(value, at)?),
            "properties" | "patternProperties" | "additionalProperties" => {
                let speaker = ["properties", "patternProperties", "additionalProperties"]
                    .into_iter()
                    .find(|speaker| all.contains_key(*speaker));
                if speaker != Some(name) {
                    return Ok(None);
                }
                self.properties(all, at)?
            }
            "dependentRequired" if !is_draft_07 => {
                let entries = table(value, at)?.iter();
                let entries = entries
                    .map(|(name, value)| Ok((name.clone(), texts(value, &below(at, name))?)));
                Check::DependentRequired(entries.collect::<Result<_, String>>()?)
            }
            "dependentSchemas" if !is_draft_07 => {
                Check::DependentSchemas(self.nodes_in_table(value, at)?)
            }
            "dependencies" if is_draft_07 => return self.dependencies(value, at).map(Some),
            "$ref" => self.reference(value, at)?,
            "allOf" => Check::AllOf(self.nodes_in_list(value, at)?),
            "anyOf" => Check::AnyOf(self.nodes_in_list(value, at)?),
            "oneOf" => Check::OneOf(self.nodes_in_list(value, at)?),
            "not" => Check::Not(self.node(value, at)?),
            "if" => Check::If {
                condition: self.node(value, at)?,
                then: self.beside(all, at, "then")?,
                otherwise: self.beside(all, at, "else")?,
            },
            "then" | "else" => return Ok(None),
            name if ANNOTATIONS.contains(&name) || name.starts_with("x-") => return Ok(None),
            _ => {
                return Err(format!(
                    "{at}: unknown or not supported in this draft: see the plugin's list of keywords"
                ));
            }
        }))
    }

    fn properties(&mut self, all: &Map<String, Value>, at: &str) -> Result<Check, String> {
        let (named_at, patterns_at) = (sibling(at, "properties"), sibling(at, "patternProperties"));
        let named = match all.get("properties") {
            Some(value) => self.nodes_in_table(value, &named_at)?,
            None => Vec::new(),
        };
        let patterns = match all.get("patternProperties") {
            Some(value) => self.nodes_in_table(value, &patterns_at)?,
            None => Vec::new(),
        };
        let patterns = patterns
            .into_iter()
            .map(|(pattern, node)| Ok((self::pattern(&pattern, &patterns_at)?, node)));
        Ok(Check::Properties {
            named: named.into_iter().collect(),
            patterns: patterns.collect::<Result<_, String>>()?,
            additional: self.beside(all, at, "additionalProperties")?,
        })
    }

    /// Draft-07 section 6.5.7: each is a list of names or a schema. All of it as schemas, so that it
    /// is one check.
    fn dependencies(&mut self, value: &Value, at: &str) -> Result<Check, String> {
        let mut nodes = Vec::new();
        for (name, dependency) in table(value, at)? {
            let at = below(at, name);
            let node = match dependency {
                Value::Array(_) => {
                    let required = Check::Required(texts(dependency, &at)?);
                    self.nodes.push(Node::Checks(vec![required]));
                    self.nodes.len() - 1
                }
                schema => self.node(schema, &at)?,
            };
            nodes.push((name.clone(), node));
        }
        Ok(Check::DependentSchemas(nodes))
    }

    /// Within this document; nothing is ever fetched.
    fn reference(&mut self, value: &Value, at: &str) -> Result<Check, String> {
        const ALLOWED: &str = "\"#\", or \"#/\" and the place of a schema in this document";
        let pointer = value.as_str().and_then(|uri| uri.strip_prefix('#'));
        let pointer = pointer
            .filter(|pointer| pointer.is_empty() || pointer.starts_with('/'))
            .and_then(percent_decoded)
            .ok_or_else(|| wrong(at, value, ALLOWED))?;
        let schema = self.document.pointer(&pointer);
        let schema = schema.ok_or_else(|| format!("{at}: {value} leads nowhere: {ALLOWED}"))?;
        Ok(Check::Ref(self.node(schema, &pointer)?))
    }

    /// The schema under another keyword of the same table.
    fn beside(
        &mut self,
        all: &Map<String, Value>,
        at: &str,
        name: &str,
    ) -> Result<Option<NodeId>, String> {
        let schema = all.get(name);
        schema
            .map(|schema| self.node(schema, &sibling(at, name)))
            .transpose()
    }

    fn nodes_in_list(&mut self, value: &Value, at: &str) -> Result<Vec<NodeId>, String> {
        let schemas = list(value, at)?.iter().enumerate();
        schemas
            .map(|(place, schema)| self.node(schema, &format!("{at}/{place}")))
            .collect()
    }

    fn nodes_in_table(&mut self, value: &Value, at: &str) -> Result<Vec<(String, NodeId)>, String> {
        let schemas = table(value, at)?.iter();
        schemas
            .map(|(name, schema)| Ok((name.clone(), self.node(schema, &below(at, name))?)))
            .collect()
    }
}

fn types(value: &Value, at: &str) -> Result<Vec<Type>, String> {
    let one = std::slice::from_ref(value);
    let names = value.as_array().map_or(one, Vec::as_slice);
    let kind = |name: &Value| match name.as_str() {
        Some("null") => Ok(Type::Null),
        Some("boolean") => Ok(Type::Boolean),
        Some("integer") => Ok(Type::Integer),
        Some("number") => Ok(Type::Number),
        Some("string") => Ok(Type::String),
        Some("array") => Ok(Type::Array),
        Some("object") => Ok(Type::Object),
        _ => Err(wrong(
            at,
            name,
            "\"null\", \"boolean\", \"integer\", \"number\", \"string\", \"array\", \"object\", or a list of them",
        )),
    };
    names.iter().map(kind).collect()
}

fn pattern(pattern: &str, at: &str) -> Result<Pattern, String> {
    Pattern::new(pattern).map_err(|error| format!("{at}: {pattern:?} is not allowed: {error}"))
}

fn number(value: &Value, at: &str) -> Result<Number, String> {
    match value {
        Value::Number(number) => Ok(number.clone()),
        other => Err(wrong(at, other, "a number")),
    }
}

/// `2.0` is a whole number, too.
fn count(value: &Value, at: &str) -> Result<usize, String> {
    let count = value.as_f64().filter(|n| *n >= 0.0 && n.fract() == 0.0);
    count
        .map(|n| n as usize)
        .ok_or_else(|| wrong(at, value, "a whole number from 0"))
}

fn text<'a>(value: &'a Value, at: &str) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| wrong(at, value, "a string"))
}

fn texts(value: &Value, at: &str) -> Result<Vec<String>, String> {
    let all = list(value, at)?.iter();
    all.map(|value| text(value, at).map(str::to_owned))
        .collect()
}

fn list<'a>(value: &'a Value, at: &str) -> Result<&'a Vec<Value>, String> {
    value.as_array().ok_or_else(|| wrong(at, value, "a list"))
}

fn table<'a>(value: &'a Value, at: &str) -> Result<&'a Map<String, Value>, String> {
    value.as_object().ok_or_else(|| wrong(at, value, "a table"))
}

fn wrong(at: &str, found: &Value, allowed: &str) -> String {
    format!("{at}: {found} is not allowed: {allowed}")
}

fn below(at: &str, name: &str) -> String {
    format!("{at}/{}", escaped(name))
}

/// `at` is the place of another keyword of the same table.
fn sibling(at: &str, name: &str) -> String {
    let table = at.rsplit_once('/').map_or("", |(table, _)| table);
    below(table, name)
}

/// As a part of a JSON pointer (RFC 6901 section 3).
pub(crate) fn escaped(part: &str) -> String {
    part.replace('~', "~0").replace('/', "~1")
}

/// RFC 6901 section 6. None if it is not encoded as it ought to be.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend(parts.next()?.bytes());
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(part.get(2..)?.bytes());
    }
    String::from_utf8(bytes).ok()
}
