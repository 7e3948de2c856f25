//! The SDK's bindings: made here from `sdk/wit/plugin.wit` and checked in, so that building a
//! plugin needs no code generator. In: the contract. Out: one Rust file with the types, imports and
//! export macros of every interface, and one `component-type` section per world, which tells
//! `wit-component` what a core module is meant to be.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use wit_bindgen_core::{
    Files, WorldGenerator,
    wit_parser::{Resolve, WorldId},
};
use wit_component::StringEncoding;

use crate::write_if_changed;

const CONTRACT: &str = "sdk/wit/plugin.wit";
const BINDINGS: &str = "sdk/src/bindings";

/// A world of everything, so that all plugins share one set of types.
const EVERYTHING: &str = "
    package pointsman:sdk;
    world everything {
        include pointsman:plugin/stateful-policy-plugin@0.1.0;
        include pointsman:plugin/stateful-filter-plugin@0.1.0;
        include pointsman:plugin/stateful-handler-plugin@0.1.0;
    }
";

/// One generated file: its name below `sdk/src/bindings` and its content.
struct Generated {
    name: String,
    content: Vec<u8>,
}

/// Writes the bindings anew.
pub(crate) fn write(root: &Path) -> Result<()> {
    for file in generate(root)? {
        let path = root.join(BINDINGS).join(&file.name);
        if write_if_changed(&path, &file.content)? {
            eprintln!("wrote {}/{}", BINDINGS, file.name);
        }
    }
    Ok(())
}

fn generate(root: &Path) -> Result<Vec<Generated>> {
    let path = root.join(CONTRACT);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {CONTRACT}"))?;
    let mut resolve = Resolve::default();
    let contract = resolve.push_str(CONTRACT, &text)?;
    let worlds: Vec<(String, WorldId)> = resolve.packages[contract]
        .worlds
        .iter()
        .map(|(name, id)| (name.clone(), *id))
        .collect();

    let mut generated = Vec::new();
    for (name, world) in worlds {
        generated.push(Generated {
            name: format!("{name}.component-type"),
            content: wit_component::metadata::encode(&resolve, world, StringEncoding::UTF8, None)?,
        });
    }
    generated.push(rust(&mut resolve)?);
    Ok(generated)
}

/// The Rust file. `wit-bindgen` ends it with a macro that exports the whole world and with that
/// world's section; both are cut off, since no plugin is everything: `pointsman_sdk::export!` uses
/// the macros of the single interfaces and the section of the right world.
fn rust(resolve: &mut Resolve) -> Result<Generated> {
    let package = resolve.push_str("everything.wit", EVERYTHING)?;
    let world = resolve.select_world(&[package], Some("everything"))?;
    let options = wit_bindgen_rust::Opts {
        generate_all: true,
        pub_export_macro: true,
        disable_custom_section_link_helpers: true,
        additional_derive_attributes: vec!["PartialEq".to_owned()],
        ..Default::default()
    };
    let mut files = Files::default();
    options.build().generate(resolve, world, &mut files)?;

    let (_, content) = files.iter().next().context("wit-bindgen made no file")?;
    let text = str::from_utf8(content)?;
    let end = text
        .find("\n/// Generates `#[unsafe(no_mangle)]` functions")
        .context("wit-bindgen's output no longer ends with the export macro of the world")?;
    let kept: Vec<&str> = text[..end].lines().map(str::trim_end).collect();
    ensure!(
        !kept.iter().any(|line| line.contains("link_section")),
        "wit-bindgen's output has a section in an unexpected place"
    );
    Ok(Generated {
        name: "contract.rs".to_owned(),
        content: (kept.join("\n") + "\n").into_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_bindings_are_those_of_the_contract() {
        let root = crate::workspace_root();
        for file in generate(&root).expect("the contract is valid WIT") {
            let path = root.join(BINDINGS).join(&file.name);
            let found = fs::read(&path).unwrap_or_default();
            assert!(
                found == file.content,
                "{BINDINGS}/{} is out of date: run `cargo xtask bindings`",
                file.name
            );
        }
    }
}
