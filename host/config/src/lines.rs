//! Where a key stands in a text that was read before: for what turns out only once plugins are
//! loaded.

use toml_edit::{Document, TableLike};

use super::Problem;
use super::entry::{Entry, SourceText};

impl Problem {
    /// Gives problems that know only their keys the lines of those, or of the tables they would be in.
    #[must_use]
    pub fn locate_all(mut problems: Vec<Self>, text: &str) -> Vec<Self> {
        let source = SourceText::new(text);
        let Ok(document) = Document::parse(text) else {
            return problems;
        };
        for problem in &mut problems {
            let key = &problem.key;
            problem.line = problem
                .line
                .or_else(|| line_of(&source, document.as_table(), key));
        }
        problems
    }
}

fn line_of(source: &SourceText<'_>, document: &dyn TableLike, key: &str) -> Option<usize> {
    let mut table = Some(document);
    let mut at = None;
    for segment in key.split('.') {
        let (name, index) = match segment.split_once('[') {
            Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().ok()),
            None => (segment, None),
        };
        let Some(mut entry) = table.and_then(|table| Entry::of(table, name, "")) else {
            break;
        };
        if let Some(index) = index {
            entry = entry.elements()?.into_iter().nth(index)?;
        }
        at = entry.spot.at;
        table = entry.table();
    }
    at.map(|at| source.line(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_or_the_table_it_would_be_in() {
        let text = "[[upstream]]\nname = \"a\"\n\n[[upstream]]\nname = \"b\"\npolicy = \"p\"\n";
        for (key, line) in [
            ("upstream[1].policy", Some(6)),
            ("upstream[0].policy", Some(1)),
            ("upstream[2].policy", None),
            ("route[0].handler", None),
            ("plugins/bad.wasm", None),
        ] {
            let problem = Problem {
                key: key.to_owned(),
                line: None,
                message: String::new(),
            };
            assert_eq!(
                Problem::locate_all(vec![problem], text)[0].line,
                line,
                "{key}"
            );
        }
    }
}
