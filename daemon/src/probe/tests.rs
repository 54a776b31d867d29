#![allow(clippy::unwrap_used)]
use std::net::{IpAddr, Ipv4Addr};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const LONG: Duration = Duration::from_secs(5);

fn own_groups() -> Groups {
    Groups::of(crate::proc::control_group_of(std::process::id()).unwrap())
}

fn target(address: SocketAddr) -> ProbeTarget {
    let generate = GenerateProbe {
        path: "/completion".to_owned(),
        body: serde_json::json!({"prompt":"a","n_predict":1}),
        bearer: None,
    };
    ProbeTarget {
        address,
        health_path: "/health".to_owned(),
        generate: Some(generate),
        control_groups: own_groups(),
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn serve(app: Router) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// A server of raw bytes: each connection gets them after its request, and stays open.
async fn serve_raw(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_ref()).await;
            open.push(stream);
        }
    });
    address
}

fn healthy() -> Router {
    Router::new().route("/health", get(|| async { r#"{"status":"ok"}"# }))
}

#[tokio::test]
async fn a_server_that_generates_is_ready() {
    let app = healthy().route(
        "/completion",
        post(|headers: axum::http::HeaderMap, body: String| async move {
            assert_eq!(headers["content-type"], "application/json");
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body, serde_json::json!({ "prompt": "a", "n_predict": 1 }));
            r#"{"content":"b"}"#
        }),
    );
    let address = serve(app).await;
    assert_eq!(probe(&target(address), LONG).await, Probe::Ready);
    let anywhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
    assert_eq!(probe(&target(anywhere), LONG).await, Probe::Ready);
}

#[tokio::test]
async fn health_alone_is_enough_where_nothing_generates() {
    let address = serve(healthy()).await;
    let target = ProbeTarget { generate: None, ..target(address) };
    assert_eq!(probe(&target, LONG).await, Probe::Ready);
}

#[tokio::test]
async fn nobody_listens() {
    let (listener, address) = listener().await;
    drop(listener);
    assert_eq!(probe(&target(address), LONG).await, Probe::NotListening);
}

#[tokio::test]
async fn a_stranger_on_the_port_is_named_and_asked_nothing() {
    let (listener, address) = listener().await;
    let target = ProbeTarget { control_groups: Groups::of("/no-such.slice".to_owned()), ..target(address) };
    let Probe::WrongOwner(stranger) = probe(&target, LONG).await else { panic!("not seen as a stranger") };
    assert_eq!((stranger.socket.address, stranger.socket.port), (address.ip(), address.port()));
    assert!(stranger.holders.iter().any(|holder| holder.pid == std::process::id()), "{stranger:?}");
    let text = stranger.to_string();
    assert!(text.contains(&format!("{address} of uid ")) && text.contains("(pid "), "{text}");
    let connected = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(connected.is_err(), "the stranger was connected to");
}

#[tokio::test]
async fn a_server_that_loads_tells_so() {
    let body = r#"{"error":{"code":503,"message":"Loading\u001b[31m model","type":"unavailable_error"}}"#;
    let app =
        Router::new().route("/health", get(move || async move { (StatusCode::SERVICE_UNAVAILABLE, body) }));
    let expected = Probe::Loading { status: Some(503), text: "Loading [31m model".to_owned() };
    assert_eq!(probe(&target(serve(app).await), LONG).await, expected);

    let app = Router::new()
        .route("/health", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "é".repeat(999)) }));
    let Probe::Loading { status: Some(500), text } = probe(&target(serve(app).await), LONG).await else {
        panic!()
    };
    assert_eq!(text, format!("{} …", "é".repeat(TEXT_LIMIT)));
}

#[tokio::test]
async fn a_server_that_accepts_and_does_not_answer_is_not_waited_for() {
    let begun = Instant::now();
    let found = probe(&target(serve_raw("").await), Duration::from_millis(300)).await;
    let Probe::Loading { status: None, text } = found else { panic!("{found:?}") };
    assert_eq!(text, "GET /health was not answered for 0.3 s");
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_body_that_never_ends_is_not_waited_for() {
    let address = serve_raw("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{").await;
    let found = probe(&target(address), Duration::from_millis(300)).await;
    let Probe::Loading { status: None, text } = found else { panic!("{found:?}") };
    assert_eq!(text, "GET /health answered 200 and did not end for 0.3 s");
}

#[tokio::test]
async fn what_does_not_speak_http_is_not_ready() {
    let found = probe(&target(serve_raw("220 mail ESMTP\r\n").await), LONG).await;
    let Probe::Loading { status: None, text } = found else { panic!("{found:?}") };
    assert!(text.starts_with("GET /health failed: "), "{text}");
}

#[tokio::test]
async fn a_healthy_server_that_does_not_generate_is_not_ready() {
    let hangs = healthy().route("/completion", post(std::future::pending::<()>));
    let found = probe(&target(serve(hangs).await), Duration::from_millis(400)).await;
    assert_eq!(
        found,
        Probe::NotGenerating { detail: "POST /completion was not answered for 0.4 s".to_owned() }
    );

    let error = (StatusCode::INTERNAL_SERVER_ERROR, r#"{"error":"CUDA error: device-side assert"}"#);
    for (answer, expected) in [
        (error, "answered 500: CUDA error: device-side assert"),
        ((StatusCode::OK, r#"{"error":{"message":"no slot"}}"#), "answered 200 with an error: no slot"),
        ((StatusCode::OK, "<html>hello</html>"), "answered 200 without JSON: <html>hello</html>"),
    ] {
        let app = healthy().route("/completion", post(move || async move { answer }));
        let found = probe(&target(serve(app).await), LONG).await;
        assert_eq!(found, Probe::NotGenerating { detail: format!("POST /completion {expected}") });
    }

    let endless = healthy().route("/completion", post(|| async { vec![b' '; BODY_LIMIT + 1] }));
    let found = probe(&target(serve(endless).await), LONG).await;
    let expected = "POST /completion answered with more than 64 KiB for one token".to_owned();
    assert_eq!(found, Probe::NotGenerating { detail: expected });
}

#[tokio::test]
async fn bad_paths_fail_without_a_panic() {
    let address = serve(healthy()).await;
    let target = ProbeTarget { health_path: "no slash\0".to_owned(), ..target(address) };
    let found = probe(&target, LONG).await;
    assert!(matches!(found, Probe::Loading { status: None, .. }), "{found:?}");
}

#[tokio::test]
async fn in_service_an_error_is_told_from_no_answer() {
    let short = Duration::from_millis(300);
    let ask = async |target: &ProbeTarget| health(target, short).await.unwrap();
    assert_eq!(ask(&target(serve(healthy()).await)).await, Outcome::Passed);
    let ill = Router::new().route("/health", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "dead") }));
    let answered = Outcome::Failed("GET /health answered 500: dead".to_owned());
    assert_eq!(ask(&target(serve(ill).await)).await, answered);
    let silent = Outcome::Unanswered("GET /health was not answered for 0.3 s".to_owned());
    assert_eq!(ask(&target(serve_raw("").await)).await, silent);

    let (listener, address) = listener().await;
    let stranger = ProbeTarget { control_groups: Groups::of("/no-such.slice".to_owned()), ..target(address) };
    let found = ask(&stranger).await;
    assert!(matches!(&found, Outcome::Failed(why) if why.contains("a foreign process answers")), "{found:?}");
    drop(listener);
    let gone = Outcome::Failed("nothing listens on its port any more".to_owned());
    assert_eq!(ask(&target(address)).await, gone);
}

#[tokio::test]
async fn in_service_a_token_leaves_no_connection_behind() {
    let hangs = healthy().route("/completion", post(std::future::pending::<()>));
    let dead = healthy().route("/completion", post(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "no") }));
    let own = Makers::of(&own_groups());
    for (app, expected) in [
        (hangs, Outcome::Unanswered("POST /completion was not answered for 0.3 s".to_owned())),
        (dead, Outcome::Failed("POST /completion answered 500: no".to_owned())),
    ] {
        let target = target(serve(app).await);
        let generate = target.generate.clone().unwrap();
        let found = token(&target, &generate, Duration::from_millis(300)).await;
        assert_eq!(found, Ok(expected));
        assert_eq!(sockets::clients(target.address.port(), &own).unwrap(), 0);
    }
}
