//! The shipped plugins: every package in `plugins/` becomes one component, `target/plugins/NAME.wasm`.
//! A plugin is compiled to a core module in a target folder of its own, and then made a component.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use wit_component::ComponentEncoder;

use crate::{
    setup::{self, TARGET},
    write_if_changed,
};

/// Builds all of them, and removes what is left of plugins that are gone.
pub(crate) fn build(root: &Path) -> Result<()> {
    let names = names(root)?;
    let packages = names.iter().flat_map(|name| ["--package", name.as_str()]);
    setup::wasm(root)?
        .cargo(root)
        .args([
            "build",
            "--locked",
            "--profile",
            "plugin",
            "--target",
            TARGET,
        ])
        .args(["--target-dir", "target/wasm"])
        .args(packages)
        .run()?;

    let output = root.join("target/plugins");
    for name in &names {
        let core = root.join(format!("target/wasm/{TARGET}/plugin/{name}.wasm"));
        let component =
            componentize(&core).with_context(|| format!("plugin {name} is no component"))?;
        if write_if_changed(&output.join(format!("{name}.wasm")), &component)? {
            eprintln!(
                "wrote target/plugins/{name}.wasm ({} bytes)",
                component.len()
            );
        }
    }
    remove_others(&output, &names)
}

/// The folder's name is the package's name and the plugin's.
pub(crate) fn names(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join("plugins")).context("cannot read plugins/")? {
        let entry = entry?;
        if entry.path().join("Cargo.toml").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn componentize(core: &Path) -> Result<Vec<u8>> {
    let module = fs::read(core).with_context(|| format!("cannot read {}", core.display()))?;
    ComponentEncoder::default()
        .validate(true)
        .module(&module)?
        .encode()
}

fn remove_others(output: &Path, names: &[String]) -> Result<()> {
    for entry in fs::read_dir(output)? {
        let path = entry?.path();
        let is_ours = path
            .file_stem()
            .is_some_and(|stem| names.iter().any(|name| stem == name.as_str()));
        if !is_ours {
            eprintln!("removing {}: no such plugin", path.display());
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
