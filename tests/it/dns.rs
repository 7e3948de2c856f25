//! The promise: backends that a name stands for are followed as its records change, as often as these
//! are valid; what cannot be resolved changes nothing.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use pointsman_tests::{Backend, Balancer, Client, PATIENCE, Tasks, eventually, get};
use tokio::net::UdpSocket;
use tokio::time::Instant;

type Zone = HashMap<(String, RecordType), Vec<(u32, RData)>>;

/// A real name server, for one zone that tests change.
struct NameServer {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<Mutex<Vec<Instant>>>,
    _server: Tasks,
}

impl NameServer {
    async fn start() -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        let address = socket.local_addr()?;
        let (zone, asked) = (Arc::<Mutex<Zone>>::default(), Arc::<Mutex<_>>::default());
        let (of_server, questions) = (Arc::clone(&zone), Arc::clone(&asked));
        let server = Tasks::start(|_| serve(socket, of_server, questions));
        Ok(Self {
            address,
            zone,
            asked,
            _server: server,
        })
    }

    fn set(&self, name: &str, kind: RecordType, records: Vec<(u32, RData)>) {
        let mut zone = self.zone.lock().unwrap_or_else(PoisonError::into_inner);
        zone.insert((format!("{name}."), kind), records);
    }

    fn clear(&self) {
        let mut zone = self.zone.lock().unwrap_or_else(PoisonError::into_inner);
        zone.clear();
    }

    /// How often an address was asked for.
    fn n_asked(&self) -> usize {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.len()
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>, asked: Arc<Mutex<Vec<Instant>>>) {
    let mut room = [0; 4096];
    while let Ok((n, from)) = socket.recv_from(&mut room).await {
        let Ok(question) = Message::from_vec(&room[..n]) else {
            continue;
        };
        let answer = answer(question, &zone, &asked);
        if let Ok(answer) = answer.to_vec() {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

fn answer(question: Message, zone: &Mutex<Zone>, asked: &Mutex<Vec<Instant>>) -> Message {
    let zone = zone.lock().unwrap_or_else(PoisonError::into_inner);
    let mut answer = question.into_response();
    let Some(query) = answer.queries.first().cloned() else {
        return answer;
    };
    let name = query.name.to_utf8().to_lowercase();
    if query.query_type == RecordType::A {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(Instant::now());
    }
    if !zone.keys().any(|(known, _)| *known == name) {
        answer.metadata.response_code = ResponseCode::NXDomain;
        return answer;
    }
    for (ttl, data) in zone.get(&(name, query.query_type)).into_iter().flatten() {
        answer.add_answer(Record::from_rdata(query.name.clone(), *ttl, data.clone()));
    }
    answer
}

fn a(last: u8) -> RData {
    RData::A(A(Ipv4Addr::new(127, 0, 0, last)))
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Result<RData> {
    let target = Name::from_utf8(format!("{target}."))?;
    Ok(RData::SRV(SRV::new(priority, weight, port, target)))
}

/// `lines`: the rest of the table `dns`.
fn site(server: &NameServer, lines: &str) -> String {
    format!(
        "drain_timeout_secs = 1\n[[upstream]]\nname = \"app\"\n\
         dns = {{ server = \"{}\", {lines} }}\n[[route]]\npath = \"/*\"\nupstream = \"app\"\n",
        server.address
    )
}

async fn backends(balancer: &Balancer, expected: &[String]) -> Result<Duration> {
    eventually(format!("{expected:?}"), PATIENCE, async || {
        let status = balancer.status().await.unwrap_or_default();
        let list = status["upstreams"][0]["backends"].as_array().cloned();
        let names = list.into_iter().flatten();
        let names: Vec<_> = names
            .filter_map(|b| b["address"].as_str().map(str::to_owned))
            .collect();
        names == expected
    })
    .await
}

/// Two backends at one port and two addresses.
async fn pair() -> Result<(Backend, Backend, u16)> {
    loop {
        let first = Backend::start().await?;
        let port = first.address().port();
        if let Ok(second) = Backend::start_at(SocketAddr::from(([127, 0, 0, 2], port))).await {
            return Ok((first, second, port));
        }
    }
}

#[tokio::test]
async fn addresses_come_and_go_with_the_records() -> Result<()> {
    let server = NameServer::start().await?;
    let (first, second, port) = pair().await?;
    server.set("app.test", RecordType::A, vec![(1, a(1))]);
    let lines = format!("name = \"app.test\", port = {port}, refresh_secs = 3600");
    let balancer = Balancer::start(&site(&server, &lines)).await?;
    backends(&balancer, &[first.address().to_string()]).await?;
    let url = balancer.url("/websocket");
    let mut of_first = Client::connect(&url).await?;

    server.set("app.test", RecordType::A, vec![(1, a(2)), (1, a(1))]);
    let both = [first.address().to_string(), second.address().to_string()];
    // Sooner than without the TTL of a second: `refresh_secs` is an hour.
    backends(&balancer, &both).await?;
    let mut of_second = Client::connect(&url).await?;
    if of_second.backend()? != second.address() {
        of_second = Client::connect(&url).await?;
    }
    assert_eq!(of_second.backend()?, second.address());

    server.set("app.test", RecordType::A, vec![(1, a(1))]);
    assert_eq!(of_second.close_code().await?, Some(1012));
    of_first.echo_text("nothing has happened to me").await?;

    // Nobody knows the name any more: those found last stay.
    server.clear();
    eventually("it is said", PATIENCE, async || {
        balancer
            .log()
            .iter()
            .any(|line| line.contains("there is no name app.test"))
    })
    .await?;
    let mut client = Client::connect(&url).await?;
    client.echo_text("still there").await?;
    of_first.echo_text("as I am").await
}

#[tokio::test]
async fn services_bring_port_weight_and_backups() -> Result<()> {
    let server = NameServer::start().await?;
    let name = "_ws._tcp.app.test";
    let one = Backend::start().await?;
    let two = Backend::start().await?;
    let spare = Backend::start().await?;
    server.set("host.test", RecordType::A, vec![(30, a(1))]);
    let records = [(10, 3, &one), (10, 1, &two), (20, 0, &spare)];
    let records = records.map(|(priority, weight, backend)| {
        Ok((
            30,
            srv(priority, weight, backend.address().port(), "host.test")?,
        ))
    });
    server.set(
        name,
        RecordType::SRV,
        records.into_iter().collect::<Result<_>>()?,
    );
    let balancer = Balancer::start(&site(&server, &format!("name = \"{name}\""))).await?;
    let mut expected = [&one, &two, &spare].map(|backend| backend.address().to_string());
    expected.sort();
    backends(&balancer, &expected).await?;
    let status = balancer.status().await?;
    for (backend, weight, is_backup) in [(&one, 3, false), (&two, 1, false), (&spare, 1, true)] {
        let list = status["upstreams"][0]["backends"].as_array();
        let named = |b: &&serde_json::Value| b["address"] == backend.address().to_string();
        let found = list.into_iter().flatten().find(named);
        let found = found.map(|b| (b["weight"].as_u64(), b["backup"].as_bool()));
        assert_eq!(found, Some((Some(weight), Some(is_backup))));
    }
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(Client::connect(&balancer.url("/websocket")).await?);
    }
    assert_eq!((one.n_open(), two.n_open(), spare.n_open()), (6, 2, 0));
    Ok(())
}

#[tokio::test]
async fn a_name_is_asked_for_as_often_as_its_answer_is_valid() -> Result<()> {
    let server = NameServer::start().await?;
    let backend = Backend::start().await?;
    let port = backend.address().port();
    server.set("app.test", RecordType::A, vec![(600, a(1))]);
    let lines = format!("name = \"app.test\", port = {port}, refresh_secs = 2");
    let balancer = Balancer::start(&site(&server, &lines)).await?;
    backends(&balancer, &[backend.address().to_string()]).await?;
    let before = server.n_asked();
    let took = eventually("two more questions", PATIENCE, async || {
        server.n_asked() >= before + 2
    });
    let took = took.await?;
    // Between the two are two seconds; the first may have been under way.
    assert!(
        took > Duration::from_secs(1),
        "every two seconds, and it took {took:?}"
    );
    let reloads = [("kind", "backends"), ("result", "ok")];
    let metrics = balancer.metrics().await?;
    assert_eq!(
        metrics.sum("pointsman_reloads_total", &reloads),
        1.0,
        "the same is no change"
    );
    Ok(())
}

#[tokio::test]
async fn until_a_name_is_known_there_is_nobody() -> Result<()> {
    let server = NameServer::start().await?;
    let backend = Backend::start().await?;
    let port = backend.address().port();
    let lines = format!("name = \"app.test\", port = {port}, refresh_secs = 1");
    let balancer = Balancer::start(&site(&server, &lines)).await?;
    assert_eq!(get(balancer.address(), "/").await?.status, 503);
    server.set("app.test", RecordType::A, vec![(60, a(1))]);
    backends(&balancer, &[backend.address().to_string()]).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_text("found").await
}
