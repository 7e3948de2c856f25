//! Any file is a plugin, or is refused: no parser and no compiler takes the process along.

use std::sync::OnceLock;

use pointsman::plugins::load::{self, Compiler};

pub(crate) fn run(data: &[u8]) {
    static COMPILER: OnceLock<Compiler> = OnceLock::new();
    let compiler =
        COMPILER.get_or_init(|| Compiler::without_cache().expect("this machine runs plugins"));
    let compiled = compiler.kinds_of(data);
    match load::look(data) {
        // What cannot be seen without a parser is told by it, or by what stands around it.
        Ok(()) => assert!(compiled.map_or_else(
            |error| !error.to_string().is_empty(),
            |kinds| !kinds.names().is_empty()
        )),
        Err(error) => assert_eq!(compiled, Err(error)),
    }
}
