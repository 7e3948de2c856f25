//! Holds a message against a schema. The work is bounded: a message that asks for too much is not
//! valid. The host would end a call that runs too long, and every session of the instance with it.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    mem,
};

use serde_json::{Map, Number, Value};

use crate::{
    pattern::Pattern,
    schema::{Check, Node, NodeId, Schema, Type, escaped},
};

/// What stands for the keyword where the work is too much.
const TOO_MUCH_WORK: &str = "too much work";

/// Of a text or a name.
const HASHED_BYTES_PER_STEP: usize = 64;

/// What stands for the keyword where the schema is `false`, until who has asked names itself.
const FALSE: &str = "false";

/// Why a message is not valid.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The keyword that failed.
    pub(crate) keyword: &'static str,
    /// The place in the message, innermost part first.
    place: Vec<String>,
}

impl Failure {
    fn new(keyword: &'static str) -> Self {
        Self {
            keyword,
            place: Vec::new(),
        }
    }

    /// As a JSON pointer (RFC 6901); empty for the whole message. Of a long one only the end.
    pub(crate) fn path(&self, max_bytes: usize) -> String {
        let parts = self.place.iter().rev();
        let path: String = parts.map(|part| format!("/{}", escaped(part))).collect();
        if path.len() <= max_bytes {
            return path;
        }
        const CUT: &str = "...";
        let start = path.len() - max_bytes.saturating_sub(CUT.len());
        format!("{CUT}{}", &path[path.ceil_char_boundary(start)..])
    }

    pub(crate) fn is_too_much_work(&self) -> bool {
        self.keyword == TOO_MUCH_WORK
    }

    /// A schema that is `false` is named after the keyword that holds it.
    fn asked_by(mut self, keyword: &'static str) -> Self {
        if self.keyword == FALSE {
            self.keyword = keyword;
        }
        self
    }
}

impl Schema {
    /// Whether the message is valid, and if not, what fails first. A step is a subschema tried, two
    /// values compared, or as much of a text as a pattern gets through in that time, some 50 ns.
    pub(crate) fn validate(&self, message: &Value, max_steps: usize) -> Result<(), Failure> {
        let mut validation = Validation {
            schema: self,
            steps_left: max_steps,
            n_trials: 0,
        };
        validation.node(self.root, message)
    }
}

struct Validation<'a> {
    schema: &'a Schema,
    steps_left: usize,
    /// How many subschemas are under way of which only whether they hold is asked.
    n_trials: usize,
}

impl Validation<'_> {
    fn node(&mut self, node: NodeId, value: &Value) -> Result<(), Failure> {
        self.spend(1)?;
        match &self.schema.nodes[node] {
            Node::Never => Err(Failure::new(FALSE)),
            Node::Checks(checks) => checks.iter().try_for_each(|check| self.check(check, value)),
        }
    }

    /// Whether the value is valid there, where that it is not is no failure.
    fn holds(&mut self, node: NodeId, value: &Value) -> Result<bool, Failure> {
        self.n_trials += 1;
        let valid = self.node(node, value);
        self.n_trials -= 1;
        match valid {
            Ok(()) => Ok(true),
            Err(failure) if failure.is_too_much_work() => Err(failure),
            Err(_) => Ok(false),
        }
    }

    /// A failure within a part of the message. Nobody asks for the place of one in a trial, and to
    /// write it down would cost more than all else.
    fn under(&self, mut failure: Failure, part: impl fmt::Display) -> Failure {
        if self.n_trials == 0 {
            failure.place.push(part.to_string());
        }
        failure
    }

    fn spend(&mut self, steps: usize) -> Result<(), Failure> {
        let left = self.steps_left.checked_sub(steps);
        self.steps_left = left.ok_or_else(|| Failure::new(TOO_MUCH_WORK))?;
        Ok(())
    }

    /// What is about values of one type lets the others pass.
    fn check(&mut self, check: &Check, value: &Value) -> Result<(), Failure> {
        match value {
            Value::Number(number) => check_number(check, number)?,
            Value::String(text) => self.check_text(check, text)?,
            Value::Array(items) => self.check_array(check, items)?,
            Value::Object(members) => self.check_object(check, members)?,
            Value::Null | Value::Bool(_) => {}
        }
        match check {
            Check::Type(types) => ensure(types.iter().any(|kind| is_of(value, *kind)), "type"),
            Check::Enum(allowed) => {
                for one in allowed {
                    if self.equal(one, value)? {
                        return Ok(());
                    }
                }
                Err(Failure::new("enum"))
            }
            Check::Const(one) => ensure(self.equal(one, value)?, "const"),
            Check::DependentSchemas(all) => {
                let mut asked = all.iter().filter(|(name, _)| value.get(name).is_some());
                asked.try_for_each(|(_, node)| {
                    let valid = self.node(*node, value);
                    valid.map_err(|failure| failure.asked_by("dependentSchemas"))
                })
            }
            Check::Ref(node) => self.node(*node, value),
            Check::AllOf(nodes) => nodes.iter().try_for_each(|node| self.node(*node, value)),
            Check::AnyOf(nodes) => ensure(self.count(nodes, value, 1)? > 0, "anyOf"),
            Check::OneOf(nodes) => ensure(self.count(nodes, value, 2)? == 1, "oneOf"),
            Check::Not(node) => ensure(!self.holds(*node, value)?, "not"),
            Check::If {
                condition,
                then,
                otherwise,
            } => {
                let (node, name) = match self.holds(*condition, value)? {
                    true => (then, "then"),
                    false => (otherwise, "else"),
                };
                let node = node.map_or(Ok(()), |node| self.node(node, value));
                node.map_err(|failure| failure.asked_by(name))
            }
            _ => Ok(()),
        }
    }

    fn check_text(&mut self, check: &Check, text: &str) -> Result<(), Failure> {
        match check {
            Check::MinLength(min) => ensure(text.chars().count() >= *min, "minLength"),
            Check::MaxLength(max) => ensure(text.chars().count() <= *max, "maxLength"),
            Check::Pattern(pattern) => ensure(self.matches(pattern, text)?, "pattern"),
            _ => Ok(()),
        }
    }

    fn check_array(&mut self, check: &Check, items: &[Value]) -> Result<(), Failure> {
        match check {
            Check::MinItems(min) => ensure(items.len() >= *min, "minItems"),
            Check::MaxItems(max) => ensure(items.len() <= *max, "maxItems"),
            Check::UniqueItems => match self.repeated(items)? {
                Some(place) => Err(self.under(Failure::new("uniqueItems"), place)),
                None => Ok(()),
            },
            Check::Items { first, rest } => {
                for (place, item) in items.iter().enumerate() {
                    if let Some(node) = first.get(place).or(rest.as_ref()) {
                        let valid = self.node(*node, item);
                        valid.map_err(|failure| self.under(failure.asked_by("items"), place))?;
                    }
                }
                Ok(())
            }
            Check::Contains { node, min, max } => {
                let mut n = 0;
                for item in items {
                    n += usize::from(self.holds(*node, item)?);
                }
                ensure(n >= *min, "contains")?;
                ensure(n <= *max, "maxContains")
            }
            _ => Ok(()),
        }
    }

    fn check_object(&mut self, check: &Check, members: &Map<String, Value>) -> Result<(), Failure> {
        match check {
            Check::MinProperties(min) => ensure(members.len() >= *min, "minProperties"),
            Check::MaxProperties(max) => ensure(members.len() <= *max, "maxProperties"),
            Check::Required(names) => self.required(names, members, "required"),
            Check::PropertyNames(node) => {
                for name in members.keys() {
                    if !self.holds(*node, &Value::String(name.clone()))? {
                        return Err(self.under(Failure::new("propertyNames"), name));
                    }
                }
                Ok(())
            }
            Check::Discriminators(named) => named.iter().try_for_each(|(name, node)| {
                let valid = members
                    .get(name)
                    .map_or(Ok(()), |value| self.node(*node, value));
                valid.map_err(|failure| self.under(failure, name))
            }),
            Check::Properties {
                named,
                patterns,
                additional,
            } => members.iter().try_for_each(|(name, value)| {
                let nodes = self.nodes_of(name, named, patterns, *additional)?;
                for (node, asked_by) in nodes {
                    let valid = self.node(node, value);
                    valid.map_err(|failure| self.under(failure.asked_by(asked_by), name))?;
                }
                Ok(())
            }),
            Check::DependentRequired(all) => {
                let mut asked = all.iter().filter(|(name, _)| members.contains_key(*name));
                asked.try_for_each(|(_, names)| self.required(names, members, "dependentRequired"))
            }
            _ => Ok(()),
        }
    }

    fn required(
        &self,
        names: &[String],
        members: &Map<String, Value>,
        keyword: &'static str,
    ) -> Result<(), Failure> {
        let missing = names.iter().find(|name| !members.contains_key(*name));
        match missing {
            Some(name) => Err(self.under(Failure::new(keyword), name)),
            None => Ok(()),
        }
    }

    /// The schemas for a member of this name, and the keywords that have them.
    fn nodes_of(
        &mut self,
        name: &str,
        named: &BTreeMap<String, NodeId>,
        patterns: &[(Pattern, NodeId)],
        additional: Option<NodeId>,
    ) -> Result<Vec<(NodeId, &'static str)>, Failure> {
        let own = named.get(name).map(|node| (*node, "properties"));
        let mut nodes: Vec<_> = own.into_iter().collect();
        for (pattern, node) in patterns {
            if self.matches(pattern, name)? {
                nodes.push((*node, "patternProperties"));
            }
        }
        if nodes.is_empty() {
            nodes.extend(additional.map(|node| (node, "additionalProperties")));
        }
        Ok(nodes)
    }

    /// How many of the schemas the value is valid for; no more than `enough` are looked for.
    fn count(&mut self, nodes: &[NodeId], value: &Value, enough: usize) -> Result<usize, Failure> {
        let mut n = 0;
        for node in nodes {
            n += usize::from(self.holds(*node, value)?);
            if n == enough {
                break;
            }
        }
        Ok(n)
    }

    fn matches(&mut self, pattern: &Pattern, text: &str) -> Result<bool, Failure> {
        self.spend(text.len().saturating_mul(pattern.steps_per_byte))?;
        Ok(pattern.regex.is_match(text))
    }

    /// The first item that equals one before it. Only items of one hash are compared.
    fn repeated(&mut self, items: &[Value]) -> Result<Option<usize>, Failure> {
        let mut hashes = Vec::with_capacity(items.len());
        for (place, item) in items.iter().enumerate() {
            hashes.push((self.hash(item)?, place));
        }
        hashes.sort_unstable();
        let mut first = None;
        for alike in hashes.chunk_by(|(one, _), (other, _)| one == other) {
            for (n, (_, place)) in alike.iter().enumerate() {
                for (_, other) in &alike[..n] {
                    if self.equal(&items[*place], &items[*other])? {
                        first = Some(first.map_or(*place, |first: usize| first.min(*place)));
                    }
                }
            }
        }
        Ok(first)
    }

    /// The same for values that are [equal](Self::equal).
    fn hash(&mut self, value: &Value) -> Result<u64, Failure> {
        self.spend(1)?;
        let mut hasher = DefaultHasher::new();
        mem::discriminant(value).hash(&mut hasher);
        match value {
            Value::Null => {}
            Value::Bool(value) => value.hash(&mut hasher),
            // Adding 0 makes one zero of both.
            Value::Number(number) => {
                let number = number.as_f64().map(|number| (number + 0.0).to_bits());
                number.hash(&mut hasher);
            }
            Value::String(text) => {
                self.spend(text.len() / HASHED_BYTES_PER_STEP)?;
                text.hash(&mut hasher);
            }
            Value::Array(items) => {
                for item in items {
                    self.hash(item)?.hash(&mut hasher);
                }
            }
            // In whatever order they come.
            Value::Object(members) => {
                let mut sum = 0_u64;
                for (name, value) in members {
                    self.spend(name.len() / HASHED_BYTES_PER_STEP)?;
                    let mut member = DefaultHasher::new();
                    (name, self.hash(value)?).hash(&mut member);
                    sum = sum.wrapping_add(member.finish());
                }
                sum.hash(&mut hasher);
            }
        }
        Ok(hasher.finish())
    }

    /// As JSON Schema has it (section 4.2.2): `1` and `1.0` are equal.
    fn equal(&mut self, one: &Value, other: &Value) -> Result<bool, Failure> {
        self.spend(1)?;
        match (one, other) {
            (Value::Number(one), Value::Number(other)) => {
                Ok(compare(one, other) == Some(Ordering::Equal))
            }
            (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
                for (one, other) in one.iter().zip(other) {
                    if !self.equal(one, other)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Value::Object(one), Value::Object(other)) if one.len() == other.len() => {
                for (name, one) in one {
                    match other.get(name) {
                        Some(other) if self.equal(one, other)? => {}
                        _ => return Ok(false),
                    }
                }
                Ok(true)
            }
            (Value::Array(_) | Value::Object(_), _) => Ok(false),
            _ => Ok(one == other),
        }
    }
}

fn check_number(check: &Check, number: &Number) -> Result<(), Failure> {
    let compared = |bound| compare(number, bound);
    match check {
        Check::MultipleOf(divisor) => ensure(is_multiple(number, divisor), "multipleOf"),
        Check::Minimum(min) => ensure(compared(min) != Some(Ordering::Less), "minimum"),
        Check::Maximum(max) => ensure(compared(max) != Some(Ordering::Greater), "maximum"),
        Check::ExclusiveMinimum(min) => {
            let is_above = compared(min) == Some(Ordering::Greater);
            ensure(is_above, "exclusiveMinimum")
        }
        Check::ExclusiveMaximum(max) => {
            let is_below = compared(max) == Some(Ordering::Less);
            ensure(is_below, "exclusiveMaximum")
        }
        _ => Ok(()),
    }
}

fn ensure(is_valid: bool, keyword: &'static str) -> Result<(), Failure> {
    match is_valid {
        true => Ok(()),
        false => Err(Failure::new(keyword)),
    }
}

fn is_of(value: &Value, kind: Type) -> bool {
    match (kind, value) {
        (Type::Null, Value::Null)
        | (Type::Boolean, Value::Bool(_))
        | (Type::Number, Value::Number(_))
        | (Type::String, Value::String(_))
        | (Type::Array, Value::Array(_))
        | (Type::Object, Value::Object(_)) => true,
        (Type::Integer, Value::Number(number)) => {
            whole(number).is_some() || number.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        _ => false,
    }
}

/// Exact where both are written as whole numbers.
fn compare(one: &Number, other: &Number) -> Option<Ordering> {
    match (whole(one), whole(other)) {
        (Some(one), Some(other)) => Some(one.cmp(&other)),
        _ => one.as_f64()?.partial_cmp(&other.as_f64()?),
    }
}

/// With fractions as near as they can be written: 0.0075 is a multiple of 0.0001.
fn is_multiple(number: &Number, divisor: &Number) -> bool {
    if let (Some(number), Some(divisor)) = (whole(number), whole(divisor)) {
        return number % divisor == 0;
    }
    let (Some(number), Some(divisor)) = (number.as_f64(), divisor.as_f64()) else {
        return false;
    };
    let quotient = number / divisor;
    quotient.is_finite() && (quotient - quotient.round()).abs() <= quotient.abs() * 1e-12
}

fn whole(number: &Number) -> Option<i128> {
    let signed = number.as_i64().map(i128::from);
    signed.or_else(|| number.as_u64().map(i128::from))
}
