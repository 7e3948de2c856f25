//! What must be on the machine: the standard library for `wasm32-unknown-unknown`, Node.js, the npm
//! packages of the examples and tests, Python with venv, Chromium, and promtool. Everything that is there is
//! left alone; everything that will be installed is named first.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result, bail};

use crate::step::Step;

/// What the plugins are compiled for.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// The name under which `rustup` knows Debian's compiler, the one with a library for [`TARGET`].
const LINKED_TOOLCHAIN: &str = "wasm";

/// Older ones lack what the examples use.
const NODE_MIN_MAJOR: u32 = 18;

/// A cargo that can build for [`TARGET`].
pub(crate) enum WasmCargo {
    /// The toolchain that builds everything else.
    Plain,
    /// The one that is linked as [`LINKED_TOOLCHAIN`].
    Linked,
}

impl WasmCargo {
    pub(crate) fn cargo(&self, root: &Path) -> Step {
        let cargo = Step::cargo(root);
        match self {
            Self::Plain => cargo,
            Self::Linked => cargo.args([format!("+{LINKED_TOOLCHAIN}")]),
        }
    }
}

/// The wasm target, Node.js, the npm packages, Python's venv, Chromium and promtool.
pub(crate) fn all(root: &Path) -> Result<()> {
    wasm(root)?;
    let folders = npm_folders(root)?;
    if !folders.is_empty() {
        node(root)?;
    }
    for folder in folders {
        npm_packages(root, &folder)?;
    }
    python(root)?;
    chromium(root)?;
    promtool(root)?;
    eprintln!("all is set up");
    Ok(())
}

/// Finds a cargo that can build for wasm, or makes one: with Debian's packages where there is
/// `apt-get`, else with `rustup target add`.
pub(crate) fn wasm(root: &Path) -> Result<WasmCargo> {
    if let Some(found) = find_wasm_cargo(root) {
        return Ok(found);
    }
    if has(root, "apt-get") {
        wasm_from_debian(root).context(WAYS_OUT)?;
    } else {
        Step::new(root, "rustup")
            .args(["target", "add", TARGET])
            .run()
            .context(WAYS_OUT)?;
    }
    find_wasm_cargo(root)
        .with_context(|| format!("there is still no standard library for {TARGET}. {WAYS_OUT}"))
}

const WAYS_OUT: &str = "plugins need Rust's standard library for wasm32-unknown-unknown. Two ways \
    to get it: `rustup target add wasm32-unknown-unknown`, or run `cargo xtask setup` as root (or \
    with sudo) on a Debian that has the package rustc-web";

fn find_wasm_cargo(root: &Path) -> Option<WasmCargo> {
    let library = ["--print", "target-libdir", "--target", TARGET];
    let has_std = |rustc: Step| {
        rustc
            .args(library)
            .output()
            .is_some_and(|folder| holds_std(Path::new(&folder)))
    };
    if has_std(Step::new(root, "rustc")) {
        return Some(WasmCargo::Plain);
    }
    let linked = Step::new(root, "rustc").args([format!("+{LINKED_TOOLCHAIN}")]);
    has_std(linked).then_some(WasmCargo::Linked)
}

fn holds_std(folder: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(folder) else {
        return false;
    };
    entries.any(|entry| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libstd-") && name.ends_with(".rlib")
        })
    })
}

/// The script needs root; linking the toolchain is the user's own affair.
fn wasm_from_debian(root: &Path) -> Result<()> {
    let shell = as_root(root, "sh")?;
    eprintln!(
        "{TARGET} has no standard library here. About to install from Debian: rustc-web, \
         cargo-web and rust-web-src (about 145 MB to download, 810 MB on disk), and to build the \
         library from its source (about a minute). `rustup target add {TARGET}` beforehand would \
         spare all of it."
    );
    let sysroot = Step::new(root, "rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("cannot ask rustc for its sysroot")?;
    shell
        .args([root.join("xtask/wasm-std.sh"), PathBuf::from(sysroot)])
        .run()?;
    Step::new(root, "rustup")
        .args(["toolchain", "link", LINKED_TOOLCHAIN, "/usr"])
        .run()
}

/// `program`, with sudo unless we are root already.
pub(crate) fn as_root(root: &Path, program: &str) -> Result<Step> {
    let is_root = Step::new(root, "id").args(["-u"]).output().as_deref() == Some("0");
    if is_root {
        return Ok(Step::new(root, program));
    }
    if has(root, "sudo") {
        return Ok(Step::new(root, "sudo").args([program]));
    }
    bail!("installing packages needs root, and there is no sudo here");
}

fn has(root: &Path, program: &str) -> bool {
    Step::new(root, program)
        .args(["--version"])
        .output()
        .is_some()
}

pub(crate) fn node(root: &Path) -> Result<()> {
    let major = Step::new(root, "node")
        .args(["--version"])
        .output()
        .and_then(|version| node_major(&version));
    if major.is_some_and(|major| major >= NODE_MIN_MAJOR) && has(root, "npm") {
        return Ok(());
    }
    let problem = match major {
        None => "Node.js is missing".to_owned(),
        Some(major) if major < NODE_MIN_MAJOR => format!("Node.js {major} is too old"),
        Some(_) => "npm is missing".to_owned(),
    };
    let otherwise = format!("install Node.js {NODE_MIN_MAJOR} or later with npm");
    from_debian(root, &problem, &["nodejs", "npm"], &otherwise)
}

/// What libFuzzer is compiled with.
pub(crate) fn cpp(root: &Path) -> Result<()> {
    if has(root, "c++") {
        return Ok(());
    }
    let problem = "A compiler of C++ is missing";
    from_debian(
        root,
        problem,
        &["g++"],
        "install one that is called as `c++`",
    )
}

/// Says what it does before it does it.
fn from_debian(root: &Path, problem: &str, packages: &[&str], otherwise: &str) -> Result<()> {
    if !has(root, "apt-get") {
        bail!("{problem}: {otherwise}");
    }
    let update = as_root(root, "apt-get")?;
    let named = packages.join(" and ");
    eprintln!("{problem}. About to install {named} from Debian.");
    update.args(["update", "-qq"]).run()?;
    as_root(root, "apt-get")?
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(packages)
        .run()
}

/// What the test `conformance` installs its client with.
fn python(root: &Path) -> Result<()> {
    let makes_venvs = Step::new(root, "python3").args(["-c", "import ensurepip"]);
    if makes_venvs.output().is_some() {
        return Ok(());
    }
    let problem = "Python is missing, or has no venv";
    let otherwise = "install Python 3 with venv";
    from_debian(root, problem, &["python3-venv"], otherwise)
}

/// What the test `chromium` drives. It is left out, and says so, where this cannot be installed.
fn chromium(root: &Path) -> Result<()> {
    if has(root, "chromium") {
        return Ok(());
    }
    let as_root = || has(root, "apt-get").then(|| as_root(root, "apt-get").ok())?;
    let (Some(update), Some(install)) = (as_root(), as_root()) else {
        eprintln!(
            "Chromium is missing and cannot be installed without apt-get and root: no test will \
             be done with a browser."
        );
        return Ok(());
    };
    eprintln!(
        "Chromium is missing. About to install chromium from Debian (about 150 MB to download, 450 \
         MB on disk)."
    );
    update.args(["update", "-qq"]).run()?;
    install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(["chromium"])
        .run()
}

/// What the tests of the metrics page read it with. It is only unpacked: the package would start a
/// Prometheus.
fn promtool(root: &Path) -> Result<()> {
    let folder = root.join("target/promtool");
    if has(root, "promtool") || folder.join("usr/bin/promtool").is_file() {
        return Ok(());
    }
    if !has(root, "apt-get") {
        eprintln!("promtool is missing: no test will read the metrics page with it.");
        return Ok(());
    }
    eprintln!(
        "promtool is missing. About to download Debian's package prometheus (19 MB), and to unpack \
         promtool from it into target/promtool (48 MB). The package is not installed."
    );
    if let Ok(apt_get) = as_root(root, "apt-get") {
        apt_get.args(["update", "-qq"]).run()?;
    }
    fs::create_dir_all(&folder)?;
    let download = Step::new(&folder, "apt-get").show_folder("target/promtool");
    download.args(["download", "-qq", "prometheus"]).run()?;
    Step::new(&folder, "sh")
        .show_folder("target/promtool")
        .args(["-c", UNPACK_PROMTOOL])
        .run()
}

const UNPACK_PROMTOOL: &str = "dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool \
    && rm prometheus_*.deb";

/// The number in front of `v18.20.4`.
fn node_major(version: &str) -> Option<u32> {
    version.strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// The folders in `examples/` and `tests/` that lock npm packages.
fn npm_folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for parent in ["examples", "tests"] {
        let Ok(entries) = fs::read_dir(root.join(parent)) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.join("package-lock.json").is_file() {
                folders.push(path);
            }
        }
    }
    folders.sort();
    Ok(folders)
}

pub(crate) fn npm_packages(root: &Path, folder: &Path) -> Result<()> {
    // npm writes this file last, so it is missing or old after an installation that broke off.
    let installed = modified(&folder.join("node_modules/.package-lock.json"));
    if installed.is_some() && installed >= modified(&folder.join("package-lock.json")) {
        return Ok(());
    }
    let shown = folder.strip_prefix(root).unwrap_or(folder);
    Step::new(folder, "npm")
        .show_folder(&shown.to_string_lossy())
        .args(["ci", "--no-audit", "--no-fund"])
        .run()
}

fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).ok()?.modified().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_of_node_is_read() {
        assert_eq!(node_major("v18.20.4"), Some(18));
        assert_eq!(node_major("v4"), Some(4));
        assert_eq!(node_major("18.0"), None);
        assert_eq!(node_major(""), None);
    }
}
