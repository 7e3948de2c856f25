//! Where a key stands in a text that was read before: for what turns out only once plugins are
//! loaded.

use toml_edit::{Document, TableLike};

use super::Problem;
use super::entry::{Entry, Source};

impl Problem {
    /// Gives a problem that knows only its key the line of that key, or of the table it would be in.
    #[must_use]
    pub fn located_in(mut self, text: &str) -> Self {
        self.line = self.line.or_else(|| line_of(text, &self.key));
        self
    }
}

fn line_of(text: &str, key: &str) -> Option<usize> {
    let source = Source::new(text);
    let document = Document::parse(text).ok()?;
    let mut table: Option<&dyn TableLike> = Some(document.as_table());
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
            assert_eq!(line_of(text, key), line, "{key}");
        }
    }
}
