//! Which packages are built together. Cargo unites the features of what one command builds, so every command
//! that needs the balancer names packages of one set: then its dependencies, wasmtime above all, are compiled once.

use std::path::Path;

use anyhow::Result;

use crate::plugins;

/// The balancer, and the programs that drive it.
pub(crate) const PROGRAMS: [&str; 3] = ["pointsman", "pointsman-tests", "pointsman-bench"];

/// What has the same features as those.
const BESIDE_PROGRAMS: [&str; 7] = [
    "pointsman-config",
    "pointsman-contract",
    "pointsman-fuzz",
    "pointsman-log",
    "pointsman-metrics",
    "pointsman-plugins",
    "pointsman-protocol",
];

/// Tested with a clock that can be stopped, a feature of tokio that the balancer is not built with.
const WITH_STOPPED_CLOCK: [&str; 3] = ["pointsman-admin", "pointsman-traffic", "pointsman-watch"];

/// As cargo takes them.
pub(crate) fn flags(packages: &[impl AsRef<str>]) -> impl Iterator<Item = String> {
    let flag = |name: &_| {
        [
            "--package".to_owned(),
            AsRef::<str>::as_ref(name).to_owned(),
        ]
    };
    packages
        .iter()
        .flat_map(flag)
        .collect::<Vec<_>>()
        .into_iter()
}

/// All packages of the first set.
pub(crate) fn with_programs() -> Vec<String> {
    let names = PROGRAMS.into_iter().chain(BESIDE_PROGRAMS);
    names.map(str::to_owned).collect()
}

/// All packages that have tests, by the sets in which they are built. Arguments that name one target of a
/// package are about the programs' tests.
pub(crate) fn tested_together(root: &Path, args: &[String]) -> Result<Vec<Vec<String>>> {
    let names_target = |arg: &String| matches!(arg.as_str(), "--test" | "--bench" | "--bin");
    if args.iter().take_while(|arg| *arg != "--").any(names_target) {
        return Ok(vec![with_programs()]);
    }
    let mut guests = plugins::names(root)?;
    guests.extend(["pointsman-sdk", "xtask"].map(str::to_owned));
    let clock = WITH_STOPPED_CLOCK.map(str::to_owned).to_vec();
    Ok(vec![with_programs(), clock, guests])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::workspace_root;

    #[test]
    fn every_package_is_in_one_set() {
        let root = workspace_root();
        let sets = tested_together(&root, &[]).unwrap();
        let all: Vec<_> = sets.into_iter().flatten().collect();
        let lock = fs::read_to_string(root.join("Cargo.lock")).unwrap();
        let ours = lock.split("[[package]]").filter(|package| {
            // What comes from a registry says so.
            package.contains("name = ") && !package.contains("source = ")
        });
        let names: BTreeSet<_> = ours
            .filter_map(|package| package.split('"').nth(1))
            .collect();
        assert_eq!(all.len(), names.len());
        assert_eq!(
            all.iter().map(String::as_str).collect::<BTreeSet<_>>(),
            names
        );
    }
}
