//! Backends that a name stands for: A and AAAA records where the port is known, else SRV (RFC 2782).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{RData, RecordType};
use pointsman_config::{BackendConfig, Dns};

/// The largest weight of a backend; those of SRV records go up to 65,535.
const MAX_WEIGHT: u16 = 1000;

/// What a name stood for at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsAnswer {
    /// In order of their addresses; never empty.
    pub backends: Vec<BackendConfig>,
    /// How long it may be believed (the shortest TTL).
    pub valid_for: Duration,
}

/// Who is asked.
///
/// # Errors
/// The system's configuration cannot be read.
pub fn resolver(dns: &Dns) -> Result<TokioResolver, String> {
    let provider = TokioRuntimeProvider::default();
    let builder = match dns.server {
        None => TokioResolver::builder(provider).map_err(|error| error.to_string())?,
        Some(server) => {
            let mut name_server = NameServerConfig::udp_and_tcp(server.ip());
            for connection in &mut name_server.connections {
                connection.port = server.port();
            }
            let config = ResolverConfig::from_name_servers(vec![name_server]);
            let mut builder = TokioResolver::builder_with_config(config, provider);
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            builder
        }
    };
    let mut builder = builder;
    // Who asks again wants to know: answers are kept by their TTL, one floor up.
    builder.options_mut().cache_size = 0;
    builder.build().map_err(|error| error.to_string())
}

/// Asks once.
///
/// # Errors
/// Nobody answers, or the name stands for nothing.
pub async fn ask(resolver: &TokioResolver, dns: &Dns) -> Result<DnsAnswer, String> {
    let mut valid_for = dns.refresh;
    let mut found: Vec<(SocketAddr, u32, bool)> = Vec::new();
    match dns.port {
        Some(port) => {
            let addresses = addresses(resolver, &dns.name, &mut valid_for).await?;
            found.extend(
                addresses
                    .into_iter()
                    .map(|ip| (SocketAddr::new(ip, port), 1, false)),
            );
        }
        None => {
            let services = services(resolver, &dns.name, &mut valid_for).await?;
            let first = services.iter().map(|service| service.priority).min();
            for service in &services {
                let target = service.target.to_utf8();
                let weight = u32::from(service.weight.clamp(1, MAX_WEIGHT));
                let is_backup = Some(service.priority) != first;
                for ip in addresses(resolver, &target, &mut valid_for).await? {
                    let address = SocketAddr::new(ip, service.port);
                    found.push((address, weight, is_backup));
                }
            }
        }
    }
    // The same address twice: the one that is used first counts.
    found.sort_by_key(|&(address, _, is_backup)| (address, is_backup));
    found.dedup_by_key(|(address, ..)| *address);
    let backend = |(address, weight, is_backup): (SocketAddr, u32, bool)| BackendConfig {
        weight,
        is_backup,
        ..BackendConfig::at(address.to_string())
    };
    match found.is_empty() {
        true => Err(format!("{} has no address", dns.name)),
        false => Ok(DnsAnswer {
            backends: found.into_iter().map(backend).collect(),
            valid_for,
        }),
    }
}

async fn services(
    resolver: &TokioResolver,
    name: &str,
    valid_for: &mut Duration,
) -> Result<Vec<SRV>, String> {
    let answer = resolver.lookup(absolute(name), RecordType::SRV).await;
    let answer = answer.map_err(|error| said(name, &error))?;
    note_ttl(&answer, valid_for);
    let services = answer
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            // A target that is the root says that there is no such service (RFC 2782).
            RData::SRV(service) if !service.target.is_root() => Some(service.clone()),
            _ => None,
        });
    Ok(services.collect())
}

/// Both kinds; one of them is enough.
async fn addresses(
    resolver: &TokioResolver,
    name: &str,
    valid_for: &mut Duration,
) -> Result<BTreeSet<IpAddr>, String> {
    let (four, six) = tokio::join!(
        resolver.lookup(absolute(name), RecordType::A),
        resolver.lookup(absolute(name), RecordType::AAAA),
    );
    let mut found = BTreeSet::new();
    let mut failed = None;
    for answer in [four, six] {
        match answer {
            Ok(answer) => {
                note_ttl(&answer, valid_for);
                found.extend(
                    answer
                        .answers()
                        .iter()
                        .filter_map(|record| record.data.ip_addr()),
                );
            }
            Err(error) if error.is_no_records_found() && !error.is_nx_domain() => {}
            Err(error) => failed = Some(said(name, &error)),
        }
    }
    match failed {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// Names are whole: no search domain is tried.
fn absolute(name: &str) -> String {
    match name.ends_with('.') {
        true => name.to_owned(),
        false => format!("{name}."),
    }
}

fn note_ttl(answer: &Lookup, valid_for: &mut Duration) {
    let ttl = answer
        .valid_until()
        .saturating_duration_since(Instant::now());
    *valid_for = ttl.min(*valid_for);
}

fn said(name: &str, error: &NetError) -> String {
    match error.is_nx_domain() {
        true => format!("there is no name {name}"),
        false => format!("{name}: {error}"),
    }
}
