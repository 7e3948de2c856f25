//! Where in a request the token is.

use std::borrow::Cow;

use pointsman_sdk::Facts;
use serde::Deserialize;

use crate::token::Fault;

/// One place to look at.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    Header,
    Query,
    Subprotocol,
    Cookie,
}

/// The places in their order, and the names in them.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) order: Vec<Source>,
    /// In lower case.
    pub(crate) header: String,
    pub(crate) query: String,
    pub(crate) subprotocol_prefix: String,
    pub(crate) cookie: String,
}

impl Sources {
    /// The token in the first of the places that has one.
    pub(crate) fn token<'a>(&'a self, facts: &'a Facts) -> Result<Cow<'a, str>, Fault> {
        for source in &self.order {
            let token = match source {
                Source::Header => self.in_header(facts)?.map(Cow::Borrowed),
                Source::Query => facts.query(&self.query),
                Source::Subprotocol => self.in_subprotocols(facts)?.map(Cow::Borrowed),
                Source::Cookie => facts.cookies(&self.cookie).next().map(Cow::Borrowed),
            };
            if let Some(token) = token.filter(|token| !token.is_empty()) {
                return Ok(token);
            }
        }
        Err(Fault::Missing)
    }

    /// The headers that are looked at.
    pub(crate) fn headers(&self) -> Vec<String> {
        let header = |source: &Source| match source {
            Source::Header => Some(self.header.clone()),
            Source::Cookie => Some("cookie".to_owned()),
            Source::Query | Source::Subprotocol => None,
        };
        self.order.iter().filter_map(header).collect()
    }

    /// The offered subprotocols that are tokens: all of them, wherever the token was found.
    pub(crate) fn subprotocols<'a>(&'a self, facts: &'a Facts) -> impl Iterator<Item = &'a str> {
        let offered = facts.offered_subprotocols.iter();
        let is_asked = self.order.contains(&Source::Subprotocol);
        offered
            .map(String::as_str)
            .filter(move |name| is_asked && name.starts_with(&self.subprotocol_prefix))
    }

    /// RFC 6750 section 2.1; in a field of another name the token may stand alone.
    fn in_header<'a>(&'a self, facts: &'a Facts) -> Result<Option<&'a str>, Fault> {
        let fields = facts.headers.iter();
        let field = only_one(fields.filter(|field| field.name == self.header))?;
        Ok(field.and_then(|field| {
            let value = field.value.trim();
            match value.split_once(' ') {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                    Some(token.trim_start())
                }
                Some(_) => None,
                None => (self.header != "authorization").then_some(value),
            }
        }))
    }

    fn in_subprotocols<'a>(&'a self, facts: &'a Facts) -> Result<Option<&'a str>, Fault> {
        let offered = only_one(self.subprotocols(facts))?;
        Ok(offered.and_then(|name| name.strip_prefix(&self.subprotocol_prefix)))
    }
}

/// Of two, we might take one and the backend the other.
fn only_one<T>(mut all: impl Iterator<Item = T>) -> Result<Option<T>, Fault> {
    let one = all.next();
    match all.next() {
        None => Ok(one),
        Some(_) => Err(Fault::Malformed("more than one token")),
    }
}
