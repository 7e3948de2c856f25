//! The metrics page: sums in, text out, in either of two formats.
//!
//! The one place that knows the names, labels and help of all series, and the home of the
//! `prometheus-client` crate, which is used for encoding alone. `docs/metrics.md` describes the
//! same series for operators. The encoder writes OpenMetrics; [`classic`] turns its page into
//! Prometheus' own text format, so that each family is described once. The encoder appends `_total`
//! to the name of a counter and `_info` to that of an info, so the names here lack them. OpenMetrics
//! allows each name one type, which is why the gauge `pointsman_connections` cannot have a counter
//! `pointsman_connections_total` beside it.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::counters::{Metrics, TargetTotals, Totals};
use crate::labels::{
    ABORTED_BY, Format, Limit, ProblemKind, REFUSED_STATUSES, ReloadKind, ReloadResult,
    STATUS_CLASSES, UpgradeResult,
};
use crate::process::Process;
use crate::scrape::{BackendSample, CallSample, Scrape, UpstreamSample, UsageSample};

const DIRECTIONS: [&str; 2] = ["up", "down"];

impl Metrics {
    /// The metrics page.
    pub fn encode(&self, scrape: Scrape, format: Format) -> String {
        text(self.totals(), scrape, self.started(), format)
    }
}

/// The whole page.
pub(super) fn text(totals: Totals, scrape: Scrape, started: SystemTime, format: Format) -> String {
    let page = MetricsPage {
        totals,
        scrape,
        started,
        process: Process::read(),
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(page));
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &registry) {
        // A `String` takes everything, so this is a series that the encoder refuses: our mistake.
        tracing::error!(%error, "the metrics page is cut short");
    }
    match format {
        Format::OpenMetrics => text,
        Format::Classic => classic(&text),
    }
}

/// A page of OpenMetrics as the text format 0.0.4. Samples are written alike in both; what differs is
/// the comments: a family bears the name of its samples there, an info is a gauge, and there is neither
/// unit nor end.
fn classic(open_metrics: &str) -> String {
    let mut page = String::with_capacity(open_metrics.len() + open_metrics.len() / 32);
    let mut help = "";
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            page.push_str(line);
            page.push('\n');
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            // Always right before the type.
            (Some("HELP"), _, text) => help = text.unwrap_or_default(),
            (Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    other => ("", other),
                };
                page.push_str(&format!(
                    "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"
                ));
            }
            _ => {}
        }
    }
    page
}

#[derive(Debug)]
struct MetricsPage {
    totals: Totals,
    scrape: Scrape,
    started: SystemTime,
    process: Process,
}

impl Collector for MetricsPage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        self.sessions(out)?;
        self.connections(out)?;
        self.traffic(out)?;
        self.backends(out)?;
        self.upstreams(out)?;
        self.plugins(out)?;
        self.calls(out)?;
        self.reloads(out)?;
        self.problems(out)?;
        self.process(out)
    }
}

impl MetricsPage {
    fn sessions(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let targets = self.with_sessions();
        let sessions = targets.map(|(name, sums)| ([("target", name)], sums.sessions));
        gauges(
            out,
            "pointsman_sessions",
            "Open sessions, by upstream or handler",
            sessions,
        )?;

        let workers = &self.totals.workers;
        let indexes: Vec<String> = workers.iter().map(|(i, ..)| i.to_string()).collect();
        let by_worker = || indexes.iter().map(|index| [("worker", index.as_str())]);
        let sessions = by_worker().zip(workers.iter().map(|(_, sessions, _)| *sessions));
        let help = "Open sessions, by worker";
        gauges(out, "pointsman_worker_sessions", help, sessions)?;
        let lags = workers.iter().map(|(.., lag_ns)| *lag_ns as f64 / 1e9);
        let help = "How long what was ready waited for its worker when that was last looked at";
        let lags = by_worker().zip(lags);
        gauges(out, "pointsman_worker_lag_seconds", help, lags)?;

        let upgrades = UpgradeResult::ALL.into_iter().zip(self.totals.upgrades);
        let upgrades = upgrades.map(|(result, count)| ([("result", result.label())], count));
        counters(
            out,
            "pointsman_upgrades",
            "Upgrade requests answered, by result",
            upgrades,
        )
    }

    fn connections(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let totals = &self.totals;
        gauge(
            out,
            "pointsman_connections",
            "Open client connections",
            totals.connections_open,
        )?;
        let accepted = totals.connections_accepted;
        counter(
            out,
            "pointsman_connections_accepted",
            "Client connections taken on",
            accepted,
        )?;
        let refused = totals.connections_refused;
        counter(
            out,
            "pointsman_connections_refused",
            "Client connections closed at once for want of room",
            refused,
        )?;
        let ended = totals.handshakes_ended;
        counter(
            out,
            "pointsman_handshakes_ended",
            "Client connections closed because too many had not sent their request",
            ended,
        )?;
        gauge(
            out,
            "pointsman_buffered_bytes",
            "What sessions hold of bytes that were read and not yet sent",
            totals.buffered_bytes,
        )?;
        counter(
            out,
            "pointsman_access_log_dropped",
            "Access log lines lost: nobody read them in time, or they could not be written",
            self.scrape.access_log_dropped,
        )?;
        counter(
            out,
            "pointsman_error_log_dropped",
            "Error log lines lost: nobody read them in time, or they could not be written",
            self.scrape.error_log_dropped,
        )
    }

    fn traffic(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ended = Limit::ALL.into_iter().zip(self.totals.ended_by_limit);
        counters(
            out,
            "pointsman_sessions_ended",
            "Sessions ended because of a limit",
            ended.map(|(limit, n)| ([("limit", limit.label())], n)),
        )?;
        let bytes = self
            .with_sessions()
            .flat_map(|(name, sums)| directions(name, sums.bytes));
        counters(
            out,
            "pointsman_bytes",
            "Bytes of sessions, framing included, by direction (up: from the client)",
            bytes,
        )?;
        let messages = self
            .with_sessions()
            .flat_map(|(name, sums)| directions(name, sums.messages));
        counters(
            out,
            "pointsman_messages",
            "Whole data messages, by direction (up: from the client)",
            messages,
        )?;
        let requests = self
            .totals
            .targets
            .iter()
            .filter(|(_, sums)| sums.has_requests)
            .flat_map(|(name, sums)| {
                let classes = STATUS_CLASSES.into_iter().zip(sums.requests);
                classes.map(move |(class, count)| {
                    ([("target", name.as_str()), ("code", class)], count)
                })
            });
        counters(
            out,
            "pointsman_http_requests",
            "Plain HTTP requests answered, by class of status",
            requests,
        )?;
        let requests_refused = REFUSED_STATUSES
            .into_iter()
            .zip(self.totals.requests_refused);
        counters(
            out,
            "pointsman_requests_refused",
            "Plain requests answered without a route, and what was no request, by status",
            requests_refused.map(|(status, n)| ([("status", status)], n)),
        )?;
        let with_requests = self.totals.targets.iter();
        let with_requests = with_requests.filter(|(_, sums)| sums.has_requests);
        let aborted = with_requests.flat_map(|(name, sums)| {
            let by = ABORTED_BY.into_iter().zip(sums.aborted);
            by.map(move |(by, n)| ([("target", name.as_str()), ("by", by)], n))
        });
        counters(
            out,
            "pointsman_http_aborted",
            "Plain answers whose body broke off, by whose doing",
            aborted,
        )
    }

    fn backends(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labelled = |value: fn(&BackendSample) -> u64| {
            self.scrape.backends.iter().map(move |sample| {
                (
                    [
                        ("upstream", sample.upstream.as_str()),
                        ("backend", sample.backend.as_str()),
                    ],
                    value(sample),
                )
            })
        };
        let up = labelled(|sample| u64::from(sample.is_up));
        gauges(
            out,
            "pointsman_backend_up",
            "1 where the backend is fit and its last dial did not fail, else 0",
            up,
        )?;
        let healthy = labelled(|sample| u64::from(sample.is_healthy));
        let help = "0 where health checks fail, else 1";
        gauges(out, "pointsman_backend_healthy", help, healthy)?;
        let ejected = labelled(|sample| u64::from(sample.is_ejected));
        let help = "1 where live traffic has put the backend out, else 0";
        gauges(out, "pointsman_backend_ejected", help, ejected)?;
        let draining = labelled(|sample| u64::from(sample.is_draining));
        let help = "1 where the operator has taken the backend out, else 0";
        gauges(out, "pointsman_backend_draining", help, draining)?;
        let ejections = labelled(|sample| sample.ejections);
        let help = "How often live traffic has put the backend out";
        counters(out, "pointsman_backend_ejections", help, ejections)?;
        let active = labelled(|sample| sample.active);
        gauges(
            out,
            "pointsman_backend_active",
            "Open sessions and plain requests under way at the backend",
            active,
        )?;
        let failures = labelled(|sample| sample.failures);
        counters(
            out,
            "pointsman_backend_failures",
            "Failed dials and handshakes",
            failures,
        )
    }

    fn upstreams(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labelled = |value: fn(&UpstreamSample) -> u64| {
            let row = move |sample: &'_ UpstreamSample| value(sample);
            self.scrape
                .upstreams
                .iter()
                .map(move |sample| ([("upstream", sample.upstream.as_str())], row(sample)))
        };
        let waiting = labelled(|sample| sample.waiting);
        let help = "Requests that wait for room at a backend";
        gauges(out, "pointsman_upstream_waiting", help, waiting)?;
        let retries = labelled(|sample| sample.retries);
        let help = "Requests that were tried at another backend";
        counters(out, "pointsman_upstream_retries", help, retries)
    }

    fn plugins(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let scrape = &self.scrape;
        let generations = scrape
            .plugins
            .iter()
            .map(|sample| ([("plugin", sample.plugin.as_str())], sample.generation));
        gauges(
            out,
            "pointsman_plugin_generation",
            "The generation that serves",
            generations,
        )?;
        self.usage(out)?;
        let failures = scrape
            .failures
            .iter()
            .map(|(plugin, kind, n)| (pair(plugin, "kind", kind), *n));
        counters(
            out,
            "pointsman_plugin_failures",
            "Failed calls into plugins, by kind",
            failures,
        )?;
        let counts = scrape
            .guest_counts
            .iter()
            .map(|(plugin, name, n)| (pair(plugin, "name", name), *n));
        counters(
            out,
            "pointsman_plugin_count",
            "What plugins count themselves",
            counts,
        )?;
        let values = scrape
            .guest_gauges
            .iter()
            .map(|(plugin, name, value)| (pair(plugin, "name", name), *value));
        gauges(
            out,
            "pointsman_plugin_value",
            "What plugins measure themselves",
            values,
        )
    }

    fn usage(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let usage = &self.scrape.usage;
        let all = |value: fn(&UsageSample) -> u64| {
            usage
                .iter()
                .map(move |sample| ([("plugin", sample.plugin.as_str())], value(sample)))
        };
        let instances = all(|sample| sample.instances);
        gauges(
            out,
            "pointsman_plugin_instances",
            "Instances alive",
            instances,
        )?;
        let memory = all(|sample| sample.memory_bytes);
        let help = "Linear memory of the instances alive";
        gauges(out, "pointsman_plugin_memory_bytes", help, memory)?;
        let sessions = all(|sample| sample.sessions);
        let help = "Sessions at the plugin's instances";
        gauges(out, "pointsman_plugin_sessions", help, sessions)?;
        let store = all(|sample| sample.store_bytes);
        let help = "What the plugin keeps in the shared store";
        gauges(out, "pointsman_plugin_store_bytes", help, store)?;
        let dropped = all(|sample| sample.dropped_messages);
        let help = "Messages that full queues of sessions lost";
        counters(out, "pointsman_plugin_dropped_messages", help, dropped)?;
        let bytes = usage.iter().flat_map(|sample| {
            [("in", sample.bytes_in), ("out", sample.bytes_out)]
                .map(|(direction, n)| (pair(&sample.plugin, "direction", direction), n))
        });
        let help = "Payload that sessions were shown, and that they returned";
        counters(out, "pointsman_plugin_message_bytes", help, bytes)?;
        let verdicts = usage.iter().flat_map(|sample| {
            let of_plugin = |&(verdict, n)| (pair(&sample.plugin, "verdict", verdict), n);
            sample.verdicts.iter().map(of_plugin)
        });
        let help = "What the plugin said of messages";
        counters(out, "pointsman_plugin_verdicts", help, verdicts)?;
        let failures = usage.iter().flat_map(|sample| {
            let of_plugin = |&(scope, n)| (pair(&sample.plugin, "scope", scope), n);
            sample.session_failures.iter().map(of_plugin)
        });
        let help = "Calls for one session that failed, by what ended with them";
        counters(out, "pointsman_plugin_session_failures", help, failures)?;
        let lost = all(|sample| sample.sessions_lost);
        let help = "Sessions that ended because a call for another one took their instance";
        counters(out, "pointsman_plugin_sessions_lost", help, lost)?;
        let penalties = usage.iter().flat_map(|sample| {
            let of_plugin = |&(result, n)| (pair(&sample.plugin, "result", result), n);
            sample.penalties.iter().map(of_plugin)
        });
        let help = "Handshakes of clients that the plugin had failed for";
        counters(out, "pointsman_plugin_penalties", help, penalties)
    }

    fn calls(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = (
            "pointsman_plugin_call_seconds",
            "How long calls into plugins took",
        );
        let mut family = out.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for sample in &self.scrape.calls {
            let labels = pair(&sample.plugin, "call", &sample.call);
            let buckets = with_last_bucket(sample);
            // Not the sample's own: read while it grows, it may lag behind its buckets.
            let count = buckets.iter().map(|(_, n)| n).sum();
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(sample.sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn reloads(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rows = ReloadKind::ALL.into_iter().zip(self.totals.reloads);
        let reloads = rows.flat_map(|(kind, row)| {
            let cells = ReloadResult::ALL.into_iter().zip(row);
            cells.map(move |(result, n)| ([("kind", kind.label()), ("result", result.label())], n))
        });
        counters(
            out,
            "pointsman_reloads",
            "Reloads, by what was reloaded and how it ended",
            reloads,
        )?;
        let last = self.scrape.config_reload;
        gauge(
            out,
            "pointsman_config_last_reload_successful",
            "1 where the last reading of the configuration was successful, else 0",
            u64::from(last.is_successful),
        )?;
        gauge(
            out,
            "pointsman_config_last_reload_success_timestamp_seconds",
            "When the configuration was last read successfully, in seconds since 1970",
            seconds(last.succeeded_at),
        )
    }

    fn problems(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let problems = ProblemKind::ALL.into_iter().zip(self.scrape.problems);
        gauges(
            out,
            "pointsman_problems",
            "What is wrong now, by kind; `pointsman status` says what",
            problems.map(|(kind, n)| ([("kind", kind.label())], n)),
        )
    }

    fn process(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let help = "The version that runs";
        out.encode_descriptor("pointsman_build", help, None, MetricType::Info)?
            .encode_info(&version)?;

        gauge(
            out,
            "process_start_time_seconds",
            "When the process started, in seconds since 1970",
            seconds(self.started),
        )?;
        if let Some(bytes) = self.process.resident_bytes {
            gauge(out, "process_resident_memory_bytes", "Memory in RAM", bytes)?;
        }
        if let Some(fds) = self.process.open_fds {
            gauge(out, "process_open_fds", "Open file descriptors", fds)?;
        }
        counter(
            out,
            "process_cpu_seconds",
            "Time on the CPU, user and system",
            self.process.cpu_secs,
        )
    }

    fn with_sessions(&self) -> impl Iterator<Item = (&str, &TargetTotals)> {
        let targets = self
            .totals
            .targets
            .iter()
            .filter(|(_, sums)| sums.has_sessions);
        targets.map(|(name, sums)| (name.as_str(), sums))
    }
}

fn seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64()
}

fn directions(
    target: &str,
    values: [u64; 2],
) -> impl Iterator<Item = ([(&'static str, &str); 2], u64)> {
    let by_direction = DIRECTIONS.into_iter().zip(values);
    by_direction
        .map(move |(direction, value)| ([("target", target), ("direction", direction)], value))
}

fn pair<'a>(plugin: &'a str, key: &'static str, value: &'a str) -> [(&'static str, &'a str); 2] {
    [("plugin", plugin), (key, value)]
}

/// The encoder wants a last bucket without bound, and adds the buckets up by itself.
fn with_last_bucket(sample: &CallSample) -> Vec<(f64, u64)> {
    let mut buckets = sample.buckets.clone();
    buckets.retain(|(bound, _)| bound.is_finite());
    let in_buckets: u64 = buckets.iter().map(|(_, n)| n).sum();
    buckets.push((f64::INFINITY, sample.count.saturating_sub(in_buckets)));
    buckets
}

fn counters<'a, const N: usize, V: EncodeCounterValue>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = ([(&'static str, &'a str); N], V)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        encode_counter(family.encode_family(&labels)?, value)?;
    }
    Ok(())
}

fn counter(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: impl EncodeCounterValue,
) -> fmt::Result {
    encode_counter(
        out.encode_descriptor(name, help, None, MetricType::Counter)?,
        value,
    )
}

fn encode_counter(mut metric: MetricEncoder<'_>, value: impl EncodeCounterValue) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn gauges<'a, const N: usize, V: EncodeGaugeValue>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = ([(&'static str, &'a str); N], V)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn gauge(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    out.encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::labels::TargetKind;
    use crate::scrape::{ConfigReload, PluginSample, UsageSample};

    #[test]
    fn every_series_has_the_name_that_the_docs_give_it() {
        let page = full_page();
        for line in [
            "# TYPE pointsman_sessions gauge",
            "pointsman_sessions{target=\"app\"} 3",
            "pointsman_sessions{target=\"echo\"} 0",
            "pointsman_worker_sessions{worker=\"0\"} 3",
            "# TYPE pointsman_upgrades counter",
            "pointsman_upgrades_total{result=\"accepted\"} 1",
            "pointsman_upgrades_total{result=\"no_backend\"} 0",
            "pointsman_connections 1",
            "pointsman_connections_accepted_total 2",
            "pointsman_connections_refused_total 0",
            "pointsman_access_log_dropped_total 11",
            "pointsman_error_log_dropped_total 12",
            "pointsman_bytes_total{target=\"app\",direction=\"up\"} 10",
            "pointsman_bytes_total{target=\"app\",direction=\"down\"} 20",
            "pointsman_messages_total{target=\"app\",direction=\"up\"} 1",
            "pointsman_messages_total{target=\"echo\",direction=\"down\"} 0",
            "pointsman_http_requests_total{target=\"app\",code=\"2xx\"} 1",
            "pointsman_http_requests_total{target=\"hello\",code=\"5xx\"} 0",
            "# TYPE pointsman_backend_up gauge",
            "pointsman_backend_up{upstream=\"app\",backend=\"127.0.0.1:3001\"} 1",
            "pointsman_backend_healthy{upstream=\"app\",backend=\"127.0.0.1:3001\"} 0",
            "pointsman_backend_ejected{upstream=\"app\",backend=\"127.0.0.1:3001\"} 1",
            "pointsman_backend_draining{upstream=\"app\",backend=\"127.0.0.1:3001\"} 1",
            "pointsman_backend_ejections_total{upstream=\"app\",backend=\"127.0.0.1:3001\"} 8",
            "pointsman_upstream_waiting{upstream=\"app\"} 6",
            "pointsman_upstream_retries_total{upstream=\"app\"} 7",
            "pointsman_backend_active{upstream=\"app\",backend=\"127.0.0.1:3001\"} 4",
            "pointsman_backend_failures_total{upstream=\"app\",backend=\"127.0.0.1:3001\"} 5",
            "pointsman_plugin_generation{plugin=\"round_robin\"} 2",
            "pointsman_plugin_instances{plugin=\"chat\"} 2",
            "pointsman_plugin_memory_bytes{plugin=\"chat\"} 65536",
            "pointsman_plugin_sessions{plugin=\"chat\"} 3",
            "pointsman_plugin_store_bytes{plugin=\"chat\"} 100",
            "pointsman_plugin_dropped_messages_total{plugin=\"chat\"} 1",
            "pointsman_plugin_message_bytes_total{plugin=\"chat\",direction=\"out\"} 20",
            "pointsman_plugin_verdicts_total{plugin=\"chat\",verdict=\"reply\"} 6",
            "pointsman_plugin_session_failures_total{plugin=\"chat\",scope=\"instance\"} 1",
            "pointsman_plugin_sessions_lost_total{plugin=\"chat\"} 31",
            "pointsman_plugin_penalties_total{plugin=\"chat\",result=\"rejected\"} 0",
            "pointsman_plugin_failures_total{plugin=\"round_robin\",kind=\"trap\"} 0",
            "pointsman_plugin_count_total{plugin=\"chat\",name=\"joins\"} 7",
            "pointsman_plugin_value{plugin=\"chat\",name=\"rooms\"} 1.5",
            "# TYPE pointsman_plugin_call_seconds histogram",
            "pointsman_plugin_call_seconds_sum{plugin=\"round_robin\",call=\"choose\"} 0.25",
            "pointsman_plugin_call_seconds_count{plugin=\"round_robin\",call=\"choose\"} 10",
            "pointsman_plugin_call_seconds_bucket{le=\"0.001\",plugin=\"round_robin\",call=\"choose\"} 6",
            "pointsman_plugin_call_seconds_bucket{le=\"0.01\",plugin=\"round_robin\",call=\"choose\"} 9",
            "pointsman_plugin_call_seconds_bucket{le=\"+Inf\",plugin=\"round_robin\",call=\"choose\"} 10",
            "pointsman_reloads_total{kind=\"plugin\",result=\"failed\"} 1",
            "pointsman_reloads_total{kind=\"config\",result=\"unchanged\"} 0",
            "pointsman_config_last_reload_successful 0",
            "pointsman_config_last_reload_success_timestamp_seconds 1.5",
            "pointsman_problems{kind=\"config\"} 3",
            "pointsman_problems{kind=\"backends_file\"} 0",
            concat!(
                "pointsman_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"} 1"
            ),
            "# TYPE process_cpu_seconds counter",
            "# TYPE process_resident_memory_bytes gauge",
            "# TYPE process_open_fds gauge",
            "# TYPE process_start_time_seconds gauge",
        ] {
            assert!(
                page.lines().any(|found| found == line),
                "{line} is not in:\n{page}"
            );
        }
        assert!(page.contains("\nprocess_cpu_seconds_total "));
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn the_classic_page_has_the_same_samples_and_comments_of_its_own() {
        let (open_metrics, classic) = (full_page(), full_page_as(Format::Classic));
        let samples = |page: &str| -> Vec<String> {
            let is_steady = |line: &&str| !line.starts_with('#') && !line.starts_with("process_");
            page.lines().filter(is_steady).map(str::to_owned).collect()
        };
        assert_eq!(samples(&classic), samples(&open_metrics));
        let comments: Vec<&str> = classic.lines().filter(|l| l.starts_with('#')).collect();
        for pair in [
            [
                "# HELP pointsman_upgrades_total Upgrade requests answered, by result",
                "# TYPE pointsman_upgrades_total counter",
            ],
            [
                "# HELP pointsman_build_info The version that runs",
                "# TYPE pointsman_build_info gauge",
            ],
            [
                "# HELP pointsman_plugin_call_seconds How long calls into plugins took",
                "# TYPE pointsman_plugin_call_seconds histogram",
            ],
        ] {
            assert!(comments.windows(2).any(|found| found == pair), "{pair:?}");
        }
        let is_comment = |line: &&str| line.starts_with("# HELP ") || line.starts_with("# TYPE ");
        assert!(comments.iter().all(is_comment), "{comments:?}");
        assert_eq!(
            comments.len(),
            open_metrics.lines().filter(|l| l.starts_with('#')).count() - 1,
            "all but the end"
        );
        assert!(classic.ends_with('\n'));
    }

    #[test]
    fn a_handler_has_no_plain_requests_and_an_http_handler_no_sessions() {
        let page = full_page();
        assert!(!page.contains("pointsman_http_requests_total{target=\"echo\""));
        assert!(!page.contains("pointsman_sessions{target=\"hello\""));
        assert!(!page.contains("pointsman_bytes_total{target=\"hello\""));
        assert!(!page.contains("pointsman_messages_total{target=\"hello\""));
    }

    #[test]
    fn each_family_has_one_help_and_one_type_and_no_series_comes_twice() {
        let page = full_page();
        let mut helps = BTreeSet::new();
        let mut types = BTreeSet::new();
        let mut series = BTreeSet::new();
        for line in page.lines() {
            let mut words = line.split(' ');
            let is_new = match (words.next(), words.next(), words.next()) {
                (Some("#"), Some("HELP"), Some(name)) => helps.insert(name.to_owned()),
                (Some("#"), Some("TYPE"), Some(name)) => types.insert(name.to_owned()),
                (Some("#"), ..) => true,
                _ => line
                    .rsplit_once(' ')
                    .is_some_and(|(name, _)| series.insert(name.to_owned())),
            };
            assert!(is_new, "{line} comes twice");
        }
        assert_eq!(helps, types);
    }

    #[test]
    fn an_upstream_and_a_handler_of_one_name_share_their_series() {
        let metrics = Metrics::new();
        metrics
            .worker(0)
            .target(TargetKind::Upstream, "echo")
            .sessions
            .add(1);
        metrics
            .worker(0)
            .target(TargetKind::Handler, "echo")
            .sessions
            .add(1);
        let page = metrics.encode(Scrape::default(), Format::OpenMetrics);
        assert_eq!(
            page.matches("pointsman_sessions{target=\"echo\"} 2\n")
                .count(),
            1
        );
    }

    #[test]
    fn label_values_of_strangers_are_escaped() {
        let scrape = Scrape {
            guest_counts: vec![("p".into(), "a\"b\\c\nd".into(), 1)],
            ..Scrape::default()
        };
        let page = Metrics::new().encode(scrape, Format::OpenMetrics);
        assert!(
            page.contains(r#"pointsman_plugin_count_total{plugin="p",name="a\"b\\c\nd"} 1"#),
            "{page}"
        );
    }

    #[test]
    fn the_start_is_given_in_seconds_of_the_epoch() {
        let page = text(
            Totals::default(),
            Scrape::default(),
            UNIX_EPOCH + Duration::from_millis(1_500),
            Format::OpenMetrics,
        );
        assert!(
            page.contains("\nprocess_start_time_seconds 1.5\n"),
            "{page}"
        );
    }

    fn full_page() -> String {
        full_page_as(Format::OpenMetrics)
    }

    fn full_page_as(format: Format) -> String {
        let metrics = Metrics::new();
        let worker = metrics.worker(0);
        worker.connections_accepted.add(2);
        worker.connections_open.add(1);
        worker.upgrade(UpgradeResult::Accepted);
        let app = worker.target(TargetKind::Upstream, "app");
        app.sessions.add(3);
        app.bytes_up.add(10);
        app.bytes_down.add(20);
        app.messages_up.add(1);
        app.request(200);
        worker.target(TargetKind::Handler, "echo");
        worker.target(TargetKind::Http, "hello");
        metrics
            .reloads(ReloadKind::Plugin, ReloadResult::Failed)
            .add(1);
        let scrape = Scrape {
            upstreams: vec![UpstreamSample {
                upstream: "app".into(),
                waiting: 6,
                retries: 7,
            }],
            backends: vec![BackendSample {
                is_healthy: false,
                is_ejected: true,
                is_draining: true,
                ejections: 8,
                upstream: "app".into(),
                backend: "127.0.0.1:3001".into(),
                is_up: true,
                active: 4,
                failures: 5,
            }],
            plugins: vec![PluginSample {
                plugin: "round_robin".into(),
                generation: 2,
            }],
            usage: vec![UsageSample {
                plugin: "chat".into(),
                instances: 2,
                memory_bytes: 65_536,
                sessions: 3,
                store_bytes: 100,
                bytes_in: 10,
                bytes_out: 20,
                dropped_messages: 1,
                verdicts: vec![("reply", 6)],
                session_failures: vec![("session", 8), ("instance", 1)],
                sessions_lost: 31,
                penalties: vec![("delayed", 5), ("rejected", 0)],
            }],
            calls: vec![CallSample {
                plugin: "round_robin".into(),
                call: "choose".into(),
                buckets: vec![(0.001, 6), (0.01, 3)],
                sum: 0.25,
                count: 10,
            }],
            failures: vec![("round_robin".into(), "trap".into(), 0)],
            guest_counts: vec![("chat".into(), "joins".into(), 7)],
            guest_gauges: vec![("chat".into(), "rooms".into(), 1.5)],
            access_log_dropped: 11,
            error_log_dropped: 12,
            problems: [0, 0, 3, 0, 0, 0, 0, 0, 0],
            config_reload: ConfigReload {
                is_successful: false,
                succeeded_at: UNIX_EPOCH + Duration::from_millis(1_500),
            },
        };
        metrics.encode(scrape, format)
    }
}
