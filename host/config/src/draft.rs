//! A configuration with problems: what of it could be read all the same, so that what is wrong elsewhere is found, too.

use pointsman_contract::names::PluginName;

use super::reader::Findings;
use super::{Config, Problem};

/// What a text says, and everything that is wrong with it.
#[derive(Debug)]
pub struct Draft {
    /// As it would be without what was refused, which has its default; a section that cannot be without is left out.
    /// None: the text is no TOML.
    pub config: Option<Config>,
    /// In the order of the lines.
    pub problems: Vec<Problem>,
    /// Every plugin that is named, in whatever section, with the key that names it.
    pub plugins: Vec<(PluginName, String)>,
    /// Where the sections of `config` are.
    pub keys: DraftKeys,
}

/// The keys of sections that could be read, in their order.
#[derive(Debug, Default, Clone)]
pub struct DraftKeys {
    /// Such as `upstream[2]`.
    pub upstreams: Vec<String>,
    /// Such as `route[0]`.
    pub routes: Vec<String>,
}

impl Draft {
    pub(super) fn new((config, found): (Option<Config>, Findings), keys: DraftKeys) -> Self {
        Self {
            config,
            problems: found.problems,
            plugins: found.plugins,
            keys,
        }
    }
}

impl DraftKeys {
    /// Those of a configuration without problems.
    pub fn of(config: &Config) -> Self {
        let keys = |name: &str, n| (0..n).map(|i| format!("{name}[{i}]")).collect();
        Self {
            upstreams: keys("upstream", config.upstreams.len()),
            routes: keys("route", config.routes.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_wrong_hides_neither_plugins_nor_the_sections_behind_it() {
        let text = "\
[[listener]]
bind = 'nowhere'
[[upstream]]
policy = 'first'
[[upstream]]
name = 'app'
policy = 'second'
backends = ['a:1']
retries = 'two'
[[route]]
path = 'a'
handler = 'third'
[[route]]
path = '/b'
upstream = 'app'
filters = ['Fourth', 'fifth']
";
        let draft = Draft::from_toml(text, Path::new(""));
        assert_eq!(draft.problems.len(), 6, "{:#?}", draft.problems);
        let named: Vec<_> = (draft.plugins.iter())
            .map(|(name, key)| format!("{name} {key}"))
            .collect();
        let expected = [
            "first upstream[0].policy",
            "second upstream[1].policy",
            "third route[0].handler",
            "fifth route[1].filters[1]",
        ];
        assert_eq!(named, expected);
        let config = draft.config.expect("it is TOML");
        assert_eq!((config.upstreams.len(), config.routes.len()), (1, 1));
        assert_eq!(draft.keys.upstreams, ["upstream[1]"]);
        assert_eq!(draft.keys.routes, ["route[1]"]);
        assert!(Draft::from_toml("a =", Path::new("")).config.is_none());
    }
}
