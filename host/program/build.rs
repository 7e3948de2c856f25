//! Embeds the shipped plugins: every `target/plugins/NAME.wasm` that exists when this is built.
//!
//! `cargo xtask build` makes them first. A build without them works, and its binary knows no plugin
//! but those in the watched folder.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=POINTSMAN_EMBED");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let default = || manifest.join("../../target/plugins");
    let dir = env::var_os("POINTSMAN_EMBED").map_or_else(default, PathBuf::from);
    println!("cargo::rerun-if-changed={}", dir.display());
    let plugins = plugins(&dir)?;
    if plugins.is_empty() {
        println!("cargo::warning=no plugin is embedded: run `cargo xtask build`");
    }
    let mut code = String::from("&[\n");
    for (name, path) in plugins {
        println!("cargo::rerun-if-changed={}", path.display());
        code += &format!(
            "    ({name:?}, include_bytes!({:?}).as_slice()),\n",
            path.display().to_string()
        );
    }
    code += "]\n";
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("embedded.rs"), code)
}

/// Name and absolute path of each, by name.
fn plugins(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let Ok(dir) = dir.canonicalize() else {
        return Ok(Vec::new());
    };
    let mut plugins = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "wasm")
            && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
        {
            plugins.push((name.to_owned(), path));
        }
    }
    plugins.sort();
    Ok(plugins)
}
