//! Any text is a configuration, or has problems that can be found in it.

use std::path::Path;

use pointsman_config::Config;

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Config::from_toml(text, Path::new("/etc/pointsman")) {
        Ok(config) => {
            assert!(!config.listeners.is_empty() && !config.routes.is_empty());
            assert!(config.workers > 0);
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            let n_lines = text.split('\n').count();
            for problem in problems {
                assert!(!problem.message.is_empty());
                let is_there = problem
                    .line
                    .is_none_or(|line| (1..=n_lines).contains(&line));
                assert!(is_there, "{problem} of {n_lines} lines");
            }
        }
    }
}
