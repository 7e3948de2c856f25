//! Any file is a plugin, or is refused: no parser and no compiler takes the process along.
//!
//! The contract in a core module's custom sections is left out: its parser (`wit-parser` 0.254 to 0.263)
//! overflows the stack over packages that depend on each other, so the balancer meets it in a process of its
//! own only. The integration tests see that, with the file that is in `seeds/`.

use std::sync::OnceLock;

use pointsman_plugins::load::{self, Compiler};

/// What the names of such sections begin with.
const CONTRACT_SECTION: &[u8] = b"component-type";

pub(crate) fn run(data: &[u8]) {
    if data
        .windows(CONTRACT_SECTION.len())
        .any(|bytes| bytes == CONTRACT_SECTION)
    {
        // Refused or not, without a parser.
        let _ = load::look(data);
        return;
    }
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
