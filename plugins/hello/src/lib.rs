//! HTTP handler `hello`: answers every request with `{"hello":"world"}`. It is a plain `wasi:http`
//! component and knows nothing of Pointsman, so it runs on any host of that interface.

use wasi::{
    exports::http::incoming_handler::Guest,
    http::types::{
        Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
    },
    io::streams::StreamError,
};

const CONTENT_TYPE: &str = "application/json; charset=utf-8";
const BODY: &str = r#"{"hello":"world"}"#;

struct Hello;

impl Guest for Hello {
    fn handle(request: IncomingRequest, answer: ResponseOutparam) {
        let body = match request.method() {
            Method::Head => "",
            _ => BODY,
        };
        let response = OutgoingResponse::new(headers(body));
        let outgoing = response
            .body()
            .expect("the body of a new response is not taken yet");
        ResponseOutparam::set(answer, Ok(response));
        // Both fail when the client is gone, which is no affair of ours.
        let _ = write(&outgoing, body);
        let _ = OutgoingBody::finish(outgoing, None);
    }
}

/// `HEAD` has no body, and then no length is given: hosts hold us to it.
fn headers(body: &str) -> Fields {
    let mut headers = vec![("content-type".to_owned(), CONTENT_TYPE.into())];
    if !body.is_empty() {
        headers.push(("content-length".to_owned(), body.len().to_string().into()));
    }
    Fields::from_list(&headers).expect("these headers are well formed, and none is forbidden")
}

fn write(outgoing: &OutgoingBody, body: &str) -> Result<(), StreamError> {
    let stream = outgoing.write().expect("the stream is not taken yet");
    if !body.is_empty() {
        stream.blocking_write_and_flush(body.as_bytes())?;
    }
    Ok(())
}

wasi::http::proxy::export!(Hello);
