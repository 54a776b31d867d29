//! Requests to a port inside a guest, from outside: nothing has to be installed in it, and no process of it
//! takes part.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its HTTP status.
    pub status: u16,
    /// Its headers, a line each.
    pub head: String,
    /// Its body.
    pub body: String,
}

/// POSTs JSON to a loopback port in the network of the process `pid1`.
///
/// # Errors
/// Nobody listens, no answer comes within the deadline, or it is no HTTP.
pub fn post(pid1: u32, port: u16, path: &str, body: &Value, deadline: Duration) -> Result<Answer> {
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    say(pid1, port, request.as_bytes(), deadline)
}

/// Sends these bytes to a loopback port in the network of the process `pid1`, and reads until the other end has enough.
///
/// # Errors
/// As [`post`].
pub fn say(pid1: u32, port: u16, request: &[u8], deadline: Duration) -> Result<Answer> {
    let mut stream = connect(pid1, port, deadline)?;
    stream.write_all(request)?;
    answer(stream).with_context(|| format!("no whole answer from port {port} within {deadline:?}"))
}

/// What comes until the other end has said all.
fn answer(mut stream: impl Read) -> Result<Answer> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer that is no HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.context("an answer without a status")?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// GETs a resource of the control socket of the guest whose PID 1 is `pid1`.
///
/// # Errors
/// Nobody listens, no answer comes within the deadline, or it is no HTTP.
pub fn get(pid1: u32, path: &str, deadline: Duration) -> Result<Answer> {
    let mut stream = UnixStream::connect(format!("/proc/{pid1}/root/run/berth/berth.sock"))
        .context("nobody listens on the guest's control socket")?;
    stream.set_read_timeout(Some(deadline))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: berth\r\n\r\n").as_bytes())?;
    answer(stream).with_context(|| format!("no whole answer to {path} within {deadline:?}"))
}

/// Listens at a loopback port in the network of the process `pid1`.
///
/// # Errors
/// It is taken.
pub fn listen(pid1: u32, port: u16) -> Result<TcpListener> {
    inside(pid1, || Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?))
}

/// Connects to a loopback port in the network of the process `pid1`. No reading or writing may take longer than
/// `deadline`.
///
/// # Errors
/// Nobody listens.
pub fn connect(pid1: u32, port: u16, deadline: Duration) -> Result<TcpStream> {
    inside(pid1, move || {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, deadline)
            .with_context(|| format!("nobody listens on {address} in the guest"))?;
        stream.set_read_timeout(Some(deadline))?;
        stream.set_write_timeout(Some(deadline))?;
        Ok(stream)
    })
}

/// Does something in the network of the process `pid1`, and waits for it. The sockets that it makes stay there, and so
/// do threads that it starts.
///
/// # Errors
/// The network can't be entered, or what is done there fails.
pub(crate) fn inside<T: Send>(pid1: u32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let network = File::open(format!("/proc/{pid1}/ns/net")).context("the guest is gone")?;
    // A network namespace is a thread's own, and this thread must keep its old one.
    thread::scope(|scope| {
        let working = scope.spawn(|| {
            setns(network, CloneFlags::CLONE_NEWNET).context("can't enter the guest's network: not root?")?;
            work()
        });
        working.join().map_err(|_| anyhow!("the thread in the guest's network panicked"))?
    })
}

/// Asks the server on a port for a few words; gives them.
///
/// # Errors
/// As [`post`], or the server refused.
pub fn ask(pid1: u32, port: u16, prompt: &str) -> Result<String> {
    let body = json!({ "model": "any", "prompt": prompt, "max_tokens": 16, "temperature": 0 });
    let answer = post(pid1, port, "/v1/completions", &body, Duration::from_secs(30))?;
    if answer.status != 200 {
        bail!("port {port} answered {}: {}", answer.status, answer.body);
    }
    let value: Value = serde_json::from_str(&answer.body).context("an answer that is no JSON")?;
    let text = value.pointer("/choices/0/text").and_then(Value::as_str);
    Ok(text.with_context(|| format!("an answer without text: {value}"))?.to_owned())
}
