//! The promise: filters and handlers speak RFC 6455 and RFC 7692 to the letter, and a relay changes no
//! verdict of Autobahn's on its backend. `cargo xtask conformance` runs all cases; here are those that
//! take no minutes.

use anyhow::{Result, ensure};
use pointsman_tests::conformance::{breaches, run};

const CASES: &[&str] = &[
    "1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*", "12.1.1", "12.1.5", "12.2.3",
    "12.5.4", "13.1.1", "13.2.2", "13.3.2", "13.4.3", "13.5.2", "13.6.1", "13.7.1",
];

#[tokio::test]
async fn autobahn_finds_nothing() -> Result<()> {
    let verdicts = run(CASES).await?;
    let n = verdicts.len();
    ensure!(n > 250, "only {n} cases were run");
    let breaches = breaches(&verdicts);
    ensure!(breaches.is_empty(), "{}", breaches.join("\n"));
    Ok(())
}
