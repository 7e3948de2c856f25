//! libFuzzer's program: `FUZZ_TARGET` names the target, the arguments are libFuzzer's.

#![no_main]

use std::env;
use std::sync::OnceLock;

use pointsman_fuzz::TARGETS;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static RUN: OnceLock<fn(&[u8])> = OnceLock::new();
    let run = RUN.get_or_init(|| {
        let asked = env::var("FUZZ_TARGET").unwrap_or_default();
        let found = TARGETS.iter().find(|(name, _)| *name == asked);
        found
            .unwrap_or_else(|| panic!("FUZZ_TARGET={asked:?} is no target"))
            .1
    });
    run(data);
});
