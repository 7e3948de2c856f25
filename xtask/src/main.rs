//! What people run: `cargo xtask COMMAND`. Each command is a few steps, every step is a command line
//! that is shown before it runs, and nothing here knows what the product does.

mod bench;
mod bindings;
mod deny;
mod fuzz;
mod packages;
mod plugins;
mod setup;
mod step;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result};

use crate::step::Step;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup              the wasm target, Node.js, the npm packages of examples and tests,
                     Python's venv, Chromium, promtool
  plugins            build the shipped plugins to target/plugins/NAME.wasm
  build              plugins, then target/release/pointsman with them embedded
  demo [ARGS]        build quickly, then `pointsman demo ARGS` (`--once`: end by itself)
  test [ARGS]        setup, build, then all tests; ARGS go to `cargo test`
  bench [ARGS]       build, set up nginx, HAProxy, Envoy and Node.js, then measure Pointsman beside
                     them; ARGS go to `pointsman-bench` (`--list`, `--workload NAME...`)
  hostile [--write]  build, set up nginx and HAProxy, then show what Pointsman and they do with hostile
                     clients and lying backends; `--write`: in docs/hostile.md
  conformance [--write] [CASES]
                     build, then run Autobahn's cases against Pointsman and against `ws`; `--write`:
                     into docs/conformance.md
  soak [--minutes N] [--sessions N]
                     build, then 30 minutes of 2,000 sessions that come and go, in trouble
  fuzz [--seconds N] [TARGET...]
                     look for input that breaks what must hold, for 5 s each; targets are the
                     folders of fuzz/seeds. `slowest` looks for the slowest message of each
                     shipped plugin
  deny               licenses, sources and versions of all dependencies, by deny.toml; then known
                     vulnerabilities
  ci                 formatting, lints, documentation, then test, fuzz, deny but for known
                     vulnerabilities, and a soak of 3 minutes
  bindings           make the SDK's bindings anew from sdk/wit/plugin.wit

exit code: 0 done, 1 a step failed, 2 wrong usage
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let (command, rest) = match args.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("", &[][..]),
    };
    let takes_args = matches!(
        command,
        "demo" | "test" | "bench" | "hostile" | "conformance" | "soak" | "fuzz"
    );
    if !takes_args && !rest.is_empty() {
        return wrong_usage(&format!("`{command}` takes no arguments"));
    }
    let root = workspace_root();
    let done = match command {
        "setup" => setup::all(&root),
        "plugins" => plugins::build(&root),
        "build" => build(&root),
        "demo" => demo(&root, rest),
        "test" => test(&root, rest),
        "bench" => bench(&root, rest),
        "hostile" => match rest {
            [] => hostile(&root, false),
            [write] if write == "--write" => hostile(&root, true),
            _ => return wrong_usage("`hostile` takes `--write` or nothing"),
        },
        "conformance" => conformance(&root, rest),
        "soak" => soak(&root, rest),
        "fuzz" => fuzz::run(&root, rest),
        "deny" => deny::check(&root),
        "ci" => ci(&root),
        "bindings" => bindings::write(&root),
        "help" | "-h" | "--help" => {
            eprint!("{USAGE}");
            Ok(())
        }
        "" => return wrong_usage("no command"),
        other => return wrong_usage(&format!("unknown command `{other}`")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn wrong_usage(problem: &str) -> ExitCode {
    eprintln!("error: {problem}\n\n{USAGE}");
    ExitCode::from(2)
}

fn build(root: &Path) -> Result<()> {
    plugins::build(root)?;
    Step::cargo(root)
        .args(["build", "--release", "--locked"])
        .args(packages::flags(&packages::PROGRAMS))
        .run()
}

/// Builds nothing but what runs, by a profile that compiles it soon.
fn demo(root: &Path, args: &[String]) -> Result<()> {
    plugins::build(root)?;
    Step::cargo(root)
        .args(["build", "--locked", "--profile", "demo"])
        .args(["--package", "pointsman"])
        .run()?;
    let args = args.strip_prefix(&["--".to_owned()]).unwrap_or(args);
    Step::new(root, root.join("target/demo/pointsman"))
        .args(["demo"])
        .args(args)
        .run()
}

fn test(root: &Path, args: &[String]) -> Result<()> {
    setup::all(root)?;
    build(root)?;
    let began = Instant::now();
    for packages in packages::tested_together(root, args)? {
        Step::cargo(root)
            .args(["test", "--release", "--locked"])
            .args(packages::flags(&packages))
            .args(args)
            .run()?;
    }
    let took = began.elapsed().as_secs();
    eprintln!(
        "tests, with what they had to build: {} min {} s",
        took / 60,
        took % 60
    );
    Ok(())
}

fn bench(root: &Path, args: &[String]) -> Result<()> {
    build(root)?;
    bench::run(root, args)
}

fn hostile(root: &Path, writes: bool) -> Result<()> {
    build(root)?;
    bench::debian(root)?;
    let args: &[&str] = if writes {
        &["--write", "docs/hostile.md"]
    } else {
        &[]
    };
    Step::new(root, root.join("target/release/hostile"))
        .args(args)
        .run()
}

fn conformance(root: &Path, args: &[String]) -> Result<()> {
    build(root)?;
    setup::all(root)?;
    let step = Step::new(root, root.join("target/release/conformance"));
    match args {
        [write, cases @ ..] if write == "--write" => step
            .args(["--write", "docs/conformance.md"])
            .args(cases)
            .run(),
        cases => step.args(cases).run(),
    }
}

fn soak(root: &Path, args: &[String]) -> Result<()> {
    build(root)?;
    Step::new(root, root.join("target/release/soak"))
        .args(args)
        .run()
}

/// The plugins come before the lints: the host's build script reads them.
fn ci(root: &Path) -> Result<()> {
    Step::cargo(root).args(["fmt", "--all", "--check"]).run()?;
    plugins::build(root)?;
    Step::cargo(root)
        .args([
            "clippy",
            "--release",
            "--locked",
            "--workspace",
            "--all-targets",
        ])
        .args(["--", "-D", "warnings"])
        .run()?;
    Step::cargo(root)
        .env("RUSTDOCFLAGS", "-D warnings")
        .args(["doc", "--release", "--locked", "--no-deps", "--workspace"])
        .run()?;
    test(root, &[])?;
    fuzz::run(root, &[])?;
    deny::check_offline(root)?;
    soak(root, &["--minutes".to_owned(), "3".to_owned()])
}

/// The folder that this crate's folder is in.
fn workspace_root() -> PathBuf {
    let here = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().map(Path::to_path_buf).unwrap_or(here)
}

/// Leaves a file alone that holds `content` already, so that nothing built from it is built anew.
/// Says whether it wrote.
fn write_if_changed(path: &Path, content: &[u8]) -> Result<bool> {
    match fs::read(path) {
        Ok(found) if found == content => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}
