//! Requests to a port, as many at once as there are connections, and how long each took: as little work as there can
//! be beside what is measured.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::upstream::{Kind, threads};

/// Answers on each connection before any is counted: enough for both sides to have all their connections.
const WARM: usize = 3;

/// For all of one load; only a proxy that leaves a request unanswered passes it.
const DEADLINE: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Where, on the loopback of the network that the caller is in.
    pub(super) port: u16,
    pub(super) kind: Kind,
    /// How many at once.
    pub(super) connections: usize,
    /// How many in all.
    pub(super) answers: usize,
}

/// How long it took.
#[derive(Debug, Clone, Default)]
pub(super) struct Taken {
    /// From each request to the first part of its answer, in nanoseconds.
    pub(super) first: Vec<u64>,
    /// From each later part to the one before it, in nanoseconds.
    pub(super) gaps: Vec<u64>,
    /// From the first request to the end of the last answer.
    pub(super) time: Duration,
}

impl Load {
    /// Asks for all of it.
    ///
    /// # Errors
    /// One answer is not what it must be, or does not come.
    pub(super) fn run(&self) -> Result<Taken> {
        let threads = threads().min(self.connections);
        let (together, left) = (Barrier::new(threads), Arc::new(AtomicUsize::new(self.answers)));
        let parts = thread::scope(|scope| {
            let start = |thread: usize| {
                let (together, left) = (&together, Arc::clone(&left));
                let connections = (self.connections - thread).div_ceil(threads);
                scope.spawn(move || self.run_some(connections, together, &left))
            };
            let running: Vec<_> = (0..threads).map(start).collect();
            let ended =
                running.into_iter().map(|part| part.join().map_err(|_| anyhow!("a thread panicked"))?);
            ended.collect::<Result<Vec<_>>>()
        })?;
        let mut taken = Taken::default();
        let begun = parts.iter().map(|(_, begun, _)| *begun).min();
        let ended = parts.iter().map(|(_, _, ended)| *ended).max();
        taken.time = ended.zip(begun).map_or(Duration::ZERO, |(ended, begun)| ended - begun);
        for (part, _, _) in parts {
            taken.take(part);
        }
        Ok(taken)
    }

    /// One thread's share; when its first request was sent and its last answer had come.
    fn run_some(
        &self,
        connections: usize,
        together: &Barrier,
        left: &Arc<AtomicUsize>,
    ) -> Result<(Taken, Instant, Instant)> {
        let prepared = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no runtime")
            .and_then(|runtime| Ok((runtime.block_on(in_time(self.open(connections)))?, runtime)));
        // Also where this one could not: the others wait for it.
        together.wait();
        let (clients, runtime) = prepared?;
        let begun = Instant::now();
        let taken = runtime.block_on(in_time(async {
            let mut asking = JoinSet::new();
            for mut client in clients {
                let left = Arc::clone(left);
                asking.spawn(async move { client.ask_until(&left).await });
            }
            let mut taken = Taken::default();
            while let Some(part) = asking.join_next().await {
                taken.take(part??);
            }
            Ok(taken)
        }));
        Ok((taken?, begun, Instant::now()))
    }

    /// Opens so many connections and warms them.
    async fn open(&self, connections: usize) -> Result<Vec<Client>> {
        let mut opening = JoinSet::new();
        for _ in 0..connections {
            let load = *self;
            opening.spawn(async move {
                let mut client = Client::open(load).await?;
                client.ask_until(&AtomicUsize::new(WARM)).await?;
                anyhow::Ok(client)
            });
        }
        let mut clients = Vec::new();
        while let Some(client) = opening.join_next().await {
            clients.push(client??);
        }
        Ok(clients)
    }
}

/// The outcome, if there is one by the deadline.
async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(DEADLINE, work).await.unwrap_or_else(|_| Err(anyhow!("not answered within {DEADLINE:?}")))
}

impl Taken {
    /// Adds another's, all but its time.
    fn take(&mut self, other: Taken) {
        self.first.extend(other.first);
        self.gaps.extend(other.gaps);
    }
}

/// One connection, kept open.
struct Client {
    sender: SendRequest<Full<Bytes>>,
    kind: Kind,
    body: Bytes,
    host: HeaderValue,
}

impl Client {
    async fn open(load: Load) -> Result<Client> {
        let address = (Ipv4Addr::LOCALHOST, load.port);
        let socket = TcpStream::connect(address)
            .await
            .with_context(|| format!("nobody listens on 127.0.0.1:{}", load.port))?;
        socket.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(socket)).await?;
        // Why it ended is told to whoever sends.
        tokio::spawn(async move { _ = connection.await });
        let host = HeaderValue::try_from(format!("127.0.0.1:{}", load.port))?;
        Ok(Client { sender, kind: load.kind, body: load.kind.request(), host })
    }

    /// Asks again and again until nothing is left to be asked.
    async fn ask_until(&mut self, left: &AtomicUsize) -> Result<Taken> {
        let mut taken = Taken::default();
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            self.ask(&mut taken).await?;
        }
        Ok(taken)
    }

    async fn ask(&mut self, taken: &mut Taken) -> Result<()> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static("/v1/chat/completions");
        request.headers_mut().insert(HOST, self.host.clone());
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.sender.ready().await.context("the connection was not kept open")?;

        let mut before = Instant::now();
        let response = self.sender.send_request(request).await.context("no answer")?;
        let status = response.status();
        let mut body = response.into_body();
        if status != 200 {
            let said = body.collect().await?.to_bytes();
            return Err(anyhow!("it answered {status}: {}", String::from_utf8_lossy(&said)));
        }
        let answer = self.kind.answer();
        let (mut came, mut parts) = (0, 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.context("an answer that was cut off")?;
            let Some(data) = frame.data_ref() else { continue };
            let right = answer.bytes.get(came..came + data.len()).is_some_and(|bytes| bytes == data);
            ensure!(right, "not the upstream's answer: {}", String::from_utf8_lossy(data));
            came += data.len();
            let now = Instant::now();
            // Parts that came together have no time between them.
            while parts < answer.parts && came >= (parts + 1) * answer.part {
                let waited = u64::try_from((now - before).as_nanos())?;
                if parts == 0 { &mut taken.first } else { &mut taken.gaps }.push(waited);
                (before, parts) = (now, parts + 1);
            }
        }
        ensure!(came == answer.bytes.len(), "{came} bytes of an answer of {} came", answer.bytes.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::upstream::{TOKENS, answer_on};
    use super::*;

    #[test]
    fn every_answer_is_timed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        thread::spawn(|| answer_on(listener, 2));
        let load = Load { port, kind: Kind::Whole, connections: 3, answers: 50 };
        let taken = load.run().expect("answers");
        assert_eq!((taken.first.len(), taken.gaps.len()), (50, 0));

        let taken = Load { kind: Kind::Streamed, answers: 4, ..load }.run().expect("streams");
        assert_eq!((taken.first.len(), taken.gaps.len()), (4, 4 * (TOKENS - 1)));
        let stream = Duration::from_nanos(taken.gaps.iter().sum::<u64>() / 4);
        assert!(stream >= Duration::from_millis(30), "{TOKENS} tokens of a stream came within {stream:?}");
    }

    #[test]
    fn where_nobody_listens_there_are_no_figures() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        drop(listener);
        let load = Load { port, kind: Kind::Whole, connections: 2, answers: 5 };
        let error = load.run().expect_err("nobody listens");
        assert!(error.to_string().contains("nobody listens"), "{error:#}");
    }
}
