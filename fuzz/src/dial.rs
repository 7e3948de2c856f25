//! Whatever a backend sends when it is asked for a WebSocket, only the one answer to what was asked
//! makes a session, and no byte behind it is lost; all else is an answer or an error.

use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use pointsman_traffic::upstream::dial::{self, Deadlines, Destination, UpgradeAnswer};
use pointsman_traffic::upstream::tls::BackendStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use crate::answer::{KEY, asked, check_accepted};

/// More than any input takes.
const PATIENCE: Duration = Duration::from_secs(3);

thread_local! {
    static PLACE: (Runtime, TcpListener, String) = {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        (runtime, listener, address)
    };
}

pub(crate) fn run(data: &[u8]) {
    PLACE.with(|(runtime, listener, address)| {
        runtime.block_on(async {
            // Kept until the other side is done, and closed so that its port is free at once.
            let (_backend, ()) = tokio::join!(backend(listener, data), client(address, data));
        });
    });
}

async fn backend(listener: &TcpListener, data: &[u8]) -> TcpStream {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    stream.set_zero_linger().expect("an option that there is");
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let n = stream.read_buf(&mut request).await.expect("a request");
        assert!(n > 0, "half a request");
    }
    // It may have had enough.
    let _ = stream.write_all(data).await;
    let _ = stream.shutdown().await;
    stream
}

async fn client(address: &str, data: &[u8]) {
    let to = Destination { address, tls: None };
    let deadlines = Deadlines {
        connect: PATIENCE,
        response: PATIENCE,
    };
    let request = Request::get("/")
        .header("host", "a")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", KEY);
    let (head, ()) = request.body(()).expect("a request").into_parts();
    let head = dial::upgrade_request(head);
    match dial::upgrade(to, head, &asked(), deadlines).await {
        Ok(UpgradeAnswer::Upgraded { stream, early, .. }) => {
            let mut behind = early.to_vec();
            let BackendStream::Plain(mut stream) = stream else {
                panic!("nobody asked for TLS");
            };
            let rest = stream.read_to_end(&mut behind).await;
            rest.expect("all that was sent");
            check_answer(data, &behind);
        }
        Ok(UpgradeAnswer::Refused(response)) => {
            // A body may be cut off.
            let _ = response.into_body().collect().await;
        }
        Err(error) => drop(error.to_string()),
    }
}

fn check_answer(data: &[u8], behind: &[u8]) {
    let mut rest = data;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut answer = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(n)) = answer.parse(rest) else {
            panic!("{:?} was believed", String::from_utf8_lossy(rest));
        };
        rest = &rest[n..];
        match answer.code {
            Some(101) => {
                assert_eq!(answer.version, Some(1));
                check_accepted(answer.headers);
                break;
            }
            code => assert!(matches!(code, Some(100..=199)), "{code:?} was believed"),
        }
    }
    assert!(
        rest == behind,
        "{} bytes behind it became {}",
        rest.len(),
        behind.len()
    );
}
