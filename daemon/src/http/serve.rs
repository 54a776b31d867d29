//! Connections to the control API: over the unix socket and over TCP. Every wait of theirs has a deadline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_io_timeout::TimeoutStream;

use super::caller::Via;

/// How long a request's head may take to come in, and a connection may idle.
const HEAD: Duration = Duration::from_secs(30);
/// The longest head of a request.
const HEAD_SIZE: usize = 64 << 10;
/// How long a listener may read nothing of what is sent to it; it comes back with the last event that it saw.
pub(super) const UNREAD: Duration = Duration::from_secs(30);
/// How many may be connected to one listener at a time.
const CONNECTIONS: usize = 1024;
/// Between two tries to take a connection in, where there are no file descriptors left.
const AGAIN: Duration = Duration::from_millis(100);

/// Serves who connects to the unix socket, until the process ends.
pub(super) async fn socket(listener: UnixListener, routes: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, _) = taken(|| listener.accept()).await;
        // Who has hung up already can't be told, and needs no answer.
        let Ok(peer) = stream.peer_cred() else { continue };
        let routes = routes.clone();
        tokio::spawn(async move {
            converse(stream, Via::Socket(peer), routes).await;
            drop(place);
        });
    }
}

/// Serves who connects at this address, until the process ends.
pub(super) async fn tcp(listener: std::net::TcpListener, at: SocketAddr, routes: Router) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(address = %at, %error, "the control API can't be served"),
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, from) = taken(|| listener.accept()).await;
        // Events are small, and each is waited for.
        _ = stream.set_nodelay(true);
        let routes = routes.clone();
        tokio::spawn(async move {
            converse(stream, Via::Tcp { at, from }, routes).await;
            drop(place);
        });
    }
}

/// The next connection.
async fn taken<T, F: Future<Output = io::Result<T>>>(accept: impl Fn() -> F) -> T {
    loop {
        match accept().await {
            Ok(taken) => return taken,
            Err(error) => {
                tracing::warn!(%error, "the control API can't take a connection in");
                sleep(AGAIN).await;
            }
        }
    }
}

pub(super) async fn converse<S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: S,
    via: Via,
    routes: Router,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(UNREAD));
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(via.clone());
        routes.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the control API ended");
    }
}
