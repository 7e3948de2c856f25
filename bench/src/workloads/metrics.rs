//! Pointsman's own figures: one page of metrics fetched over HTTP, and values out of it.
//!
//! In goes the admin address, out comes text; [`values`] reads a metric of it. As little of HTTP and
//! OpenMetrics as that takes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest wait for a page.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The page of metrics.
///
/// # Errors
/// Nobody answers there, or not with 200.
pub fn fetch(admin: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT)
        .with_context(|| format!("no metrics at {admin}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n"
    )?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    if !page.starts_with("HTTP/1.1 200") {
        bail!(
            "{admin}/metrics answered {:?}",
            page.lines().next().unwrap_or_default()
        );
    }
    Ok(page)
}

/// The values of all lines of `metric` whose labels hold `label`, in the order of the page.
pub fn values(page: &str, metric: &str, label: &str) -> Vec<f64> {
    let lines = page.lines().filter_map(|line| {
        let labelled = line.strip_prefix(metric)?.strip_prefix('{')?;
        let (labels, value) = labelled.rsplit_once("} ")?;
        labels.contains(label).then_some(value)
    });
    lines
        .filter_map(|value| value.split(' ').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::values;

    const PAGE: &str = "\
# TYPE pointsman_worker_sessions gauge
pointsman_worker_sessions{worker=\"0\"} 498
pointsman_worker_sessions{worker=\"1\"} 502
pointsman_worker_sessions_total{worker=\"1\"} 7
pointsman_plugin_generation{plugin=\"echo\"} 3
";

    #[test]
    fn values_are_those_of_the_metric_and_the_label() {
        assert_eq!(
            values(PAGE, "pointsman_worker_sessions", "worker="),
            [498.0, 502.0]
        );
        assert_eq!(
            values(PAGE, "pointsman_plugin_generation", "plugin=\"echo\""),
            [3.0]
        );
        assert!(values(PAGE, "pointsman_plugin_generation", "plugin=\"none\"").is_empty());
    }
}
