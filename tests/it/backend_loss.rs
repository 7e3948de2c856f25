//! The promise: a backend that is gone without a Close looks to its clients as it would without a balancer
//! between, unless the route asks for a Close.

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Balancer, PATIENCE, Reply, ScriptedBackend, Wire, accept_upgrade, eventually, frame,
    upgrade_request,
};
use serde_json::Value;

const HELLO: &[u8] = b"\x81\x05hello";
/// Of a message of five bytes.
const BEGUN: &[u8] = b"\x81\x05hel";
const CLOSE_1012: &[u8] = b"\x88\x02\x03\xf4";

/// A session at a backend that answers the client's first message with `last`, and is gone: what the client
/// has got when its connection ends, and the line of the end.
async fn seen(route: &str, last: &[u8], by_reset: bool) -> Result<(Vec<u8>, Value)> {
    let message = frame(0x81, b"go");
    let (n, last) = (message.len(), last.to_vec());
    let backend = ScriptedBackend::start(move |head| Reply::EndWhenRead {
        first: accept_upgrade(head, &[]),
        n,
        last: last.clone(),
        by_reset,
    })
    .await?;
    let address = backend.address();
    let toml = format!(
        "[[upstream]]\nname = \"app\"\nbackends = [\"{address}\"]\n\n\
         [[route]]\npath = \"/*\"\nupstream = \"app\"\n{route}\n"
    );
    let balancer = Balancer::start(&toml).await?;
    let mut client = Wire::connect(balancer.address()).await?;
    client.send(upgrade_request("/", &[])).await?;
    let answer = client.head().await?;
    ensure!(answer.status == 101, "{}", answer.status);
    client.send(message).await?;
    let seen = client.rest().await?;
    drop(client);
    let mut end = None;
    eventually("the end is logged", PATIENCE, async || {
        let lines = balancer.access_log().unwrap_or_default();
        end = lines.into_iter().find(|line| line["event"] == "close");
        end.is_some()
    })
    .await?;
    Ok((seen, end.context("it was found")?))
}

#[tokio::test]
async fn the_client_of_a_backend_that_is_lost_is_cut_off_too() -> Result<()> {
    for filters in ["", "filters = [\"tap\"]"] {
        for abort in ["", "on_backend_loss = \"abort\""] {
            for by_reset in [false, true] {
                let case = format!("{filters} {abort} {by_reset}");
                let route = format!("{filters}\n{abort}");
                let (seen, end) = seen(&route, HELLO, by_reset).await.context(case.clone())?;
                assert_eq!(seen, HELLO, "{case}: all that came, and no Close");
                assert_eq!(end["closed_by"], "backend", "{case}");
                assert!(end.get("close_code").is_none(), "{case}: {end}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_route_can_have_its_clients_told_of_a_lost_backend() -> Result<()> {
    for filters in ["", "filters = [\"tap\"]"] {
        for by_reset in [false, true] {
            let case = format!("{filters} {by_reset}");
            let route = format!("{filters}\non_backend_loss = \"close\"");
            let (seen, end) = seen(&route, HELLO, by_reset).await.context(case.clone())?;
            assert_eq!(seen, [HELLO, CLOSE_1012].concat(), "{case}");
            assert_eq!(end["closed_by"], "backend", "{case}");
            assert_eq!(end["close_code"], 1012, "{case}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn no_close_is_put_into_half_a_frame() -> Result<()> {
    for by_reset in [false, true] {
        let close = "on_backend_loss = \"close\"";
        let (got, end) = seen(close, BEGUN, by_reset).await?;
        assert_eq!(got, BEGUN);
        assert!(end.get("close_code").is_none(), "{end}");
        // What is assembled for a filter has not begun for the client.
        let filtered = format!("{close}\nfilters = [\"tap\"]");
        let (got, end) = seen(&filtered, BEGUN, by_reset).await?;
        assert_eq!(got, CLOSE_1012);
        assert_eq!(end["close_code"], 1012, "{end}");
    }
    Ok(())
}
