//! A request goes on to a model's server, and its answer back.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use berth_core::config::Deadlines;
use berth_core::proxy::Refused;
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::copy_bidirectional;
use tokio::time::timeout;

use super::Sending;
use super::body::{Answer, Sent};
use super::headers;

/// How long a connection to a server is kept for the next request. Servers close theirs after 5 s, uvicorn and llama.cpp's
/// among them, and a request that meets that is lost.
const KEPT: Duration = Duration::from_secs(4);
/// How many are kept to one server.
const KEPT_EACH: usize = 256;

/// Which model answers.
pub(super) const MODEL: HeaderName = HeaderName::from_static("x-berth-model");
/// In whose place.
const INSTEAD_OF: HeaderName = HeaderName::from_static("x-berth-instead-of");

/// Connections to models' servers, by how long one may take. Nearly always that is the same for all.
#[derive(Default)]
pub(super) struct Forward(Mutex<BTreeMap<Duration, Client<HttpConnector, Sent>>>);

impl Forward {
    fn client(&self, connect: Duration) -> Client<HttpConnector, Sent> {
        // Nothing panics while it holds the lock.
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let client = clients.entry(connect).or_insert_with(|| {
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            connector.set_connect_timeout(Some(connect));
            Client::builder(TokioExecutor::new())
                .pool_idle_timeout(KEPT)
                .pool_max_idle_per_host(KEPT_EACH)
                .pool_timer(TokioTimer::new())
                .build(connector)
        });
        client.clone()
    }

    /// Sends a request on under this target (a path with its query), and gives the answer as it begins.
    pub(super) async fn send(
        &self,
        mut request: Request<Sent>,
        target: &str,
        to: Sending,
    ) -> Result<Response<Answer>, Refused> {
        let model = to.counted.model().clone();
        let upgrade = headers::upgrade(request.headers());
        let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        headers::onward(request.headers_mut(), upgrade);
        request.headers_mut().remove(HOST);
        *request.uri_mut() = Uri::builder()
            .scheme("http")
            .authority(to.address.to_string())
            .path_and_query(target)
            .build()
            .map_err(|error| failed(400, "bad_path", format!("{target} can't be asked for: {error}")))?;
        let fault = request.body().fault();
        let Deadlines { connect, first_byte, idle, .. } = to.deadlines;
        let answer = timeout(first_byte, self.client(connect).request(request)).await;
        let mut response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                // What was wrong with the request is said before what came of it.
                if let Some(refused) = fault.get() {
                    return Err(refused.clone());
                }
                let what = if error.is_connect() {
                    format!("{model} serves and takes no connection at {}", to.address)
                } else {
                    format!("{model} closed the connection without an answer")
                };
                tracing::debug!(%model, %error, "not answered");
                let next = format!("look at its log: berthctl logs {model}");
                return Err(failed(502, "backend_failed", format!("{what}; {next}")));
            }
            Err(_) => {
                let after = first_byte.as_secs();
                let text = format!("{model} did not begin to answer within {after} s");
                return Err(failed(504, "backend_timeout", text));
            }
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(client) = client
        {
            let server = hyper::upgrade::on(&mut response);
            let counted = to.counted;
            tokio::spawn(async move {
                if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
                    // It ends when one of them has enough.
                    _ = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await;
                }
                drop(counted);
            });
            return Ok(response.map(|_| Answer::Own(http_body_util::Full::default())));
        }
        Ok(back(response, to, idle))
    }
}

fn back(response: Response<Incoming>, to: Sending, idle: Duration) -> Response<Answer> {
    let (mut head, body) = response.into_parts();
    headers::onward(&mut head.headers, None);
    if let Ok(model) = HeaderValue::from_str(to.counted.model().as_str()) {
        head.headers.insert(MODEL, model);
    }
    if let Some(Ok(other)) = to.instead_of.map(|other| HeaderValue::from_str(other.as_str())) {
        head.headers.insert(INSTEAD_OF, other);
    }
    Response::from_parts(head, Answer::model(body, to.counted, idle))
}

fn failed(status: u16, code: &'static str, text: String) -> Refused {
    Refused { status, code, text, retry_after: None }
}
