//! `slowest SECONDS [PLUGIN...]`: looks for the slowest input of all shipped plugins, or of these. Fails if one
//! takes longer than a call has.

use std::env;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pointsman_fuzz::slowest::{self, CALL_TIMEOUT, CASES, Case, Plugin};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((seconds, plugins)) = args.split_first() else {
        eprintln!("usage: slowest SECONDS [PLUGIN...]");
        return ExitCode::from(2);
    };
    let Ok(seconds) = seconds.parse().map(Duration::from_secs) else {
        eprintln!("`{seconds}` is no number of seconds");
        return ExitCode::from(2);
    };
    let is_asked =
        |case: &&Case| plugins.is_empty() || plugins.iter().any(|name| name == case.plugin);
    let cases: Vec<&Case> = CASES.iter().filter(is_asked).collect();
    if cases.is_empty() {
        eprintln!("none of these plugins reads what a client or a backend writes");
        return ExitCode::from(2);
    }
    let time_for_each = seconds / cases.len() as u32;
    let mut random = fastrand::Rng::new();
    let mut are_fast = true;
    for case in cases {
        let plugin = Plugin::load(case.plugin);
        let began = Instant::now();
        let found = slowest::search(&plugin, case, &mut random, || {
            began.elapsed() < time_for_each
        });
        eprintln!("{case}: {found}");
        are_fast &= found.cost <= CALL_TIMEOUT;
    }
    if !are_fast {
        eprintln!("a call takes longer than {} ms", CALL_TIMEOUT.as_millis());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
