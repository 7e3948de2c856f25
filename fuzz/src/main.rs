//! libFuzzer's program: `FUZZ_TARGET` names the target, the arguments are libFuzzer's.

#![no_main]

use std::sync::OnceLock;
use std::{env, panic};

use pointsman_fuzz::TARGETS;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static RUN: OnceLock<fn(&[u8])> = OnceLock::new();
    let run = RUN.get_or_init(|| {
        let asked = env::var("FUZZ_TARGET").unwrap_or_default();
        if asked == "plugin" {
            // libFuzzer's hook ends the process at any panic. Those of other people's parsers are caught, which
            // is what is looked at; one that is not caught ends the process still.
            drop(panic::take_hook());
        }
        let found = TARGETS.iter().find(|(name, _)| *name == asked);
        found
            .unwrap_or_else(|| panic!("FUZZ_TARGET={asked:?} is no target"))
            .1
    });
    run(data);
});
