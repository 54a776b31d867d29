//! The clients' one address: a request names a model, and goes on to the server of that name, or waits for it, or is
//! refused with what would help. Knows who answers to which name (`Directory`), and of the driver its messages.
//!
//! It goes on while the driver swaps. Bodies are read only as far as it takes to find the model, and of an answer only its
//! end is kept until it is over.

mod body;
mod client;
mod comments;
mod cors;
mod forward;
mod headers;
mod keys;
mod reply;
mod telemetry;
mod traffic;

pub use traffic::Traffic;

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use berth_core::config::{Changes, DEFAULT_ALIAS, Deadlines, Proxy as Settings};
use berth_core::name::ModelName;
use berth_core::proxy::finder::Finder;
use berth_core::proxy::{Directory, Refused, Route, Verdict, route};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::declared::Declared;
use crate::driver::Message;
use crate::listen::{Opened, listening};

use self::body::{Answer, Sent, too_large};
use self::client::{Client, Waits};
use self::cors::Cors;
use self::forward::Forward;
use self::keys::May;
use self::telemetry::Account;
use self::traffic::Counted;

/// Who answers to which name; None until the driver has looked.
pub type Names = watch::Receiver<Option<Arc<Directory>>>;

/// Whether berthd ends as soon as its clients have their answers.
pub type Leaving = watch::Receiver<bool>;

/// The most threads that pass requests on. One carries tens of thousands in a second.
const MOST_THREADS: usize = 4;
/// How long a request's head may take to come in.
const HEAD: Duration = Duration::from_secs(30);
/// The longest head of a request.
const HEAD_SIZE: usize = 64 << 10;
/// So long one who has connected and asked nothing yet is waited for when berthd leaves.
const ABOUT_TO_ASK: Duration = Duration::from_secs(1);
/// Between two tries to take a connection in, where there are no file descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What requests are answered with.
pub struct Proxy {
    names: Names,
    traffic: Traffic,
    declared: Declared,
    forward: Forward,
}

/// Where a request goes.
struct Sending {
    address: SocketAddr,
    known_as: Option<String>,
    changes: Arc<Changes>,
    deadlines: Deadlines,
    instead_of: Option<ModelName>,
    counted: Counted,
}

/// A request that waits.
struct Waiting<'c> {
    counted: Counted,
    names: Names,
    _shown: Waits<'c>,
}

/// Serves clients until berthd leaves. From then on nobody is taken in, and who is answered to may hear the end: whoever sent
/// `leaving` sees it closed after the last.
///
/// On threads of its own, each with its own connections to models' servers: a request is passed on without waking
/// another thread, and none waits while the driver syncs its ledger.
pub async fn serve(
    declared: Declared,
    mut names: Names,
    traffic: Traffic,
    driver: mpsc::Sender<Message>,
    listeners: Vec<Opened>,
    leaving: Leaving,
) -> io::Result<()> {
    // Until then nobody is known: whoever connects waits.
    tokio::select! {
        known = names.wait_for(Option::is_some) => if known.is_err() { return Ok(()) },
        () = left(leaving.clone()) => return Ok(()),
    }
    let connections = Arc::new(Semaphore::new(declared.now().proxy.connections as usize));
    let count = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST_THREADS);
    let workers = (0..count).map(|_| worker()).collect::<io::Result<Vec<Handle>>>()?;
    let workers: Vec<(Handle, Arc<Proxy>)> = workers
        .into_iter()
        .map(|worker| {
            let (declared, names, traffic) = (declared.clone(), names.clone(), traffic.clone());
            (worker, Arc::new(Proxy { names, traffic, declared, forward: Forward::default() }))
        })
        .collect();
    for (address, listener) in listeners {
        let (driver, workers, connections) = (driver.clone(), workers.clone(), Arc::clone(&connections));
        let leaving = leaving.clone();
        tokio::spawn(async move {
            let serving = async {
                let listener = listening(address, listener, driver).await;
                tracing::info!(%address, "clients reach models here");
                accept(listener, &workers, &connections, &leaving).await;
            };
            // Who connects from now on waits at the socket, which systemd keeps for the next berthd.
            tokio::select! {
                () = serving => {}
                () = left(leaving.clone()) => {}
            }
        });
    }
    Ok(())
}

/// Comes back when berthd leaves.
async fn left(mut leaving: Leaving) {
    // Who drops the sender leaves, too.
    _ = leaving.wait_for(|leaving| *leaving).await;
}

/// A thread that runs whatever is spawned on it, for ever.
fn worker() -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name("proxy".to_owned()).spawn(move || runtime.block_on(pending::<()>()))?;
    Ok(handle)
}

/// Takes clients in and gives them to the threads in turn: were each to take what it can, the busiest would take all.
async fn accept(
    listener: TcpListener,
    workers: &[(Handle, Arc<Proxy>)],
    connections: &Arc<Semaphore>,
    leaving: &Leaving,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "clients can't be taken in"),
    };
    for (worker, proxy) in workers.iter().cycle() {
        // It is never closed.
        let Ok(permit) = Arc::clone(connections).acquire_owned().await else { return };
        let accepted = loop {
            match listener.accept().await.and_then(|(stream, client)| Ok((stream.into_std()?, client))) {
                Ok(accepted) => break accepted,
                Err(error) => {
                    tracing::warn!(%error, "the proxy can't take a connection in");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        };
        let (proxy, leaving, (stream, client)) = (Arc::clone(proxy), leaving.clone(), accepted);
        worker.spawn(async move {
            let client = Client::new(&stream, client).map(Arc::new);
            match client.and_then(|client| Ok((TcpStream::from_std(stream)?, client))) {
                Ok((stream, client)) => proxy.converse(stream, client, leaving).await,
                Err(error) => tracing::warn!(%error, "a client can't be talked to"),
            }
            drop(permit);
        });
    }
}

impl Proxy {
    async fn converse(self: Arc<Self>, stream: TcpStream, client: Arc<Client>, leaving: Leaving) {
        // An answer's pieces are small, and each is waited for.
        _ = stream.set_nodelay(true);
        let asked = AtomicBool::new(false);
        let service = service_fn(|request| {
            asked.store(true, Ordering::Relaxed);
            let (proxy, client) = (Arc::clone(&self), Arc::clone(&client));
            async move { Ok::<_, Infallible>(proxy.respond(request, client).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(HEAD_SIZE)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = left(leaving.clone()) => {
                connection.as_mut().graceful_shutdown();
                match timeout(ABOUT_TO_ASK, connection.as_mut()).await {
                    Ok(ended) => ended,
                    Err(_) if asked.load(Ordering::Relaxed) => connection.await,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(client = %client.address, %error, "a client's connection ended");
        }
    }

    /// The answer, after comments where the client wants them and has to wait.
    async fn respond(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        client: Arc<Client>,
    ) -> Response<Answer> {
        if !comments::wanted(request.headers()) {
            return self.answer(request, &client).await;
        }
        // Comments can't be put before an encoded answer.
        request.headers_mut().remove(ACCEPT_ENCODING);
        let dialect = route(request.uri().path()).dialect();
        let declared = self.declared.now();
        let cors = Cors::of(&declared.proxy.cors, request.headers());
        let (proxy, waiting) = (Arc::clone(&self), Arc::clone(&client));
        let answering = async move { proxy.answer(request, &waiting).await };
        let mut response = comments::beside(answering, || client.is_waiting(), dialect).await;
        if matches!(response.body(), Answer::Commented(_)) {
            cors.mark(response.headers_mut());
        }
        response
    }

    async fn answer(&self, mut request: Request<Incoming>, client: &Client) -> Response<Answer> {
        let path = request.uri().path().to_owned();
        let route = route(&path);
        let dialect = route.dialect();
        let declared = self.declared.now();
        let settings = &declared.proxy;
        let cors = Cors::of(&settings.cors, request.headers());
        if let Some(answer) = cors.preflight(&request) {
            return answer.unwrap_or_else(|refused| reply::refusal(&refused, dialect)).map(Answer::Own);
        }
        let mut account = self.traffic.telemetry().begin(&request);
        let shown = cors.admit(request.headers());
        let shown = shown.and_then(|()| keys::take(&settings.keys, request.headers_mut(), client));
        let answer = match shown {
            Ok(may) => {
                account.shows(may.key());
                self.routed(settings, request, &path, &route, may, &mut account).await
            }
            Err(refused) => Err(refused),
        };
        let refused = answer.as_ref().err().map(|refused| refused.code);
        let mut answer = answer.unwrap_or_else(|refused| reply::refusal(&refused, dialect).map(Answer::Own));
        cors.mark(answer.headers_mut());
        account.answered(&mut answer, refused);
        answer
    }

    async fn routed(
        &self,
        settings: &Settings,
        request: Request<Incoming>,
        path: &str,
        route: &Route<'_>,
        may: May<'_>,
        account: &mut Account,
    ) -> Result<Response<Answer>, Refused> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match route {
            Route::Models if reads => Ok(reply::models(&self.directory(), may).map(Answer::Own)),
            Route::Model(id) if reads => {
                let (directory, id) = (self.directory(), decoded(id));
                may.ask(&directory, &id)?;
                match (reply::one(&directory, &id), directory.verdict(&id)) {
                    (Some(one), _) => Ok(one.map(Answer::Own)),
                    (None, Verdict::Refused(refused)) => Err(refused),
                    (None, _) => Err(not_found(path)),
                }
            }
            Route::Models | Route::Model(_) => {
                let text = "the list of models is asked for by GET".to_owned();
                Err(Refused { status: 405, code: "method_not_allowed", text, retry_after: None })
            }
            Route::Ask(_) => self.ask(settings, request, may, account).await,
            Route::Upstream(model, rest) => {
                let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
                let target = format!("{}{query}", if rest.is_empty() { "/" } else { rest });
                self.upstream(settings, request, &decoded(model), &target, may, account).await
            }
            Route::Unknown => Err(not_found(path)),
        }
    }

    /// A request that names its model in its body, or in its query.
    async fn ask(
        &self,
        settings: &Settings,
        request: Request<Incoming>,
        may: May<'_>,
        account: &mut Account,
    ) -> Result<Response<Answer>, Refused> {
        let (mut head, body) = request.into_parts();
        let most = settings.body.0;
        // Where both say how long it is, the chunks do (RFC 9112, 6.3).
        if head.headers.contains_key(TRANSFER_ENCODING) {
            head.headers.remove(CONTENT_LENGTH);
        }
        let length =
            head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > most) {
            return Err(too_large(most));
        }
        let mut sent = if body.is_end_stream() {
            Sent::unread(body, most, settings.idle)
        } else {
            let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            let finder = Finder::of(kind).map_err(|why| Refused {
                status: 400,
                code: "bad_body",
                text: why.to_string(),
                retry_after: None,
            })?;
            Sent::read(body, finder, most, settings.idle).await?
        };
        let asked = sent.found().map(|found| found.model.clone());
        let asked = asked.or_else(|| in_query(head.uri.query()?));
        // Who names none takes what serves, as with a server that has one model.
        let asked = asked.filter(|asked| !asked.is_empty()).unwrap_or_else(|| DEFAULT_ALIAS.to_owned());
        account.asks(&asked, &self.directory());
        let to = self.sending(settings, &asked, may).await?;
        account.goes_to(to.counted.model(), sent.taken());
        let mut longer = match &to.known_as {
            Some(known_as) => sent.rename(known_as)?,
            None => 0,
        };
        if !to.changes.is_empty() {
            longer += sent.change(&to.changes).await?;
        }
        if let Some(length) = length.and_then(|length| length.checked_add_signed(longer)) {
            head.headers.insert(CONTENT_LENGTH, length.into());
        }
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        self.forward.send(Request::from_parts(head, sent), &target, to).await
    }

    /// A request whose path names its model.
    async fn upstream(
        &self,
        settings: &Settings,
        request: Request<Incoming>,
        asked: &str,
        target: &str,
        may: May<'_>,
        account: &mut Account,
    ) -> Result<Response<Answer>, Refused> {
        account.asks(asked, &self.directory());
        let to = self.sending(settings, asked, may).await?;
        let (most, pause) = (settings.body.0, settings.idle);
        let request = request.map(|body| Sent::unread(body, most, pause));
        account.goes_to(to.counted.model(), request.body().taken());
        self.forward.send(request, target, to).await
    }

    /// Waits until whoever answers to this name can be asked, and counts the request there.
    async fn sending(&self, settings: &Settings, asked: &str, may: May<'_>) -> Result<Sending, Refused> {
        let end = Instant::now() + settings.wait;
        let mut waiting: Option<Waiting<'_>> = None;
        loop {
            let directory = self.directory();
            may.ask(&directory, asked)?;
            let model = match directory.verdict(asked) {
                Verdict::Send { model, address, known_as, changes, deadlines, instead_of } => {
                    let counted = self.traffic.enter(model);
                    // The driver holds requests back first and counts then; so it is counted first and looked at then.
                    if !Arc::ptr_eq(&directory, &self.directory()) {
                        continue;
                    }
                    return Ok(Sending {
                        address,
                        known_as: known_as.or_else(|| instead_of.map(|_| model.as_str())).map(str::to_owned),
                        changes: Arc::clone(changes),
                        deadlines: *deadlines,
                        instead_of: instead_of.cloned(),
                        counted,
                    });
                }
                Verdict::Refused(refused) => return Err(refused),
                Verdict::Wait(model) => model,
                Verdict::Load(model) => {
                    may.load(model)?;
                    model
                }
            };
            if waiting.as_ref().is_none_or(|waits| waits.counted.model() != model) {
                let most = settings.queue as usize;
                let Some(counted) = self.traffic.wait(model, (&may.who(), may.loads()), most) else {
                    let why = format!("{most} requests wait for {model} already");
                    return Err(directory.give_up(model, 429, "queue_full", &why));
                };
                let mut names = self.names.clone();
                // What has changed since is seen at once.
                names.mark_changed();
                let shown = may.client.waits();
                waiting = Some(Waiting { counted, names, _shown: shown });
            }
            let Some(waits) = &mut waiting else { continue };
            let news = tokio::select! {
                news = timeout_at(end, waits.names.changed()) => news,
                () = may.client.hangs_up() => {
                    let text = "the client hung up while it waited".to_owned();
                    return Err(Refused { status: 499, code: "client_gone", text, retry_after: None });
                }
            };
            if news.is_err() {
                let why = format!("{model} was not there after {} s", settings.wait.as_secs());
                return Err(directory.give_up(model, 503, "model_not_ready", &why));
            }
        }
    }

    fn directory(&self) -> Arc<Directory> {
        self.names.borrow().clone().unwrap_or_default()
    }
}

fn not_found(path: &str) -> Refused {
    let text = format!(
        "{path} is no path of the proxy. It takes OpenAI's and Anthropic's paths under /v1, llama.cpp's, GET /v1/models, \
         and any path of a model's server under /upstream/MODEL/"
    );
    Refused { status: 404, code: "unknown_path", text, retry_after: None }
}

fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}

/// `model` in a query.
fn in_query(query: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.into_iter().find(|(key, _)| *key == "model")?;
    Some(decoded(&value.replace('+', " ")))
}
