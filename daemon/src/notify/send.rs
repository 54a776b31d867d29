//! One push: a command that is run, or an address that is posted to. Errors are clauses for the journal.

use std::fmt::Display;
use std::process::Stdio;
use std::time::Duration;

use berth_core::config::{Format, Target};
use berth_core::notify::{Push, PushEvent};
use berth_core::report::Severity;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

/// What of an answer, or of what a command says, is looked at.
const LIMIT: usize = 16 << 10;
/// What of it is shown, in characters.
const SHOWN: usize = 300;
/// What systemd gave berthd for itself.
const NOT_THEIRS: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Pushes this, in at most `deadline`.
pub(super) async fn send(target: &Target, push: &Push, deadline: Duration) -> Result<(), String> {
    let json = serde_json::to_vec(push).map_err(|error| error.to_string())?;
    match target {
        Target::Command(argv) => run(argv, push, &json, deadline).await,
        Target::Post { url, format } => timeout(deadline, post(url, *format, push, json))
            .await
            .map_err(|_| format!("{url} did not answer within {} s", deadline.as_secs_f64()))?,
    }
}

/// Runs a command with the problem as JSON on its standard input, and killed with all its children at the deadline.
async fn run(argv: &[String], push: &Push, json: &[u8], deadline: Duration) -> Result<(), String> {
    let (program, arguments) = argv.split_first().ok_or("no program is declared")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    for name in NOT_THEIRS {
        command.env_remove(name);
    }
    let problem = &push.problem;
    let severity = if push.severity == Severity::Error { "error" } else { "warning" };
    for (name, value) in [
        ("BERTH_NODE", &push.node),
        ("BERTH_EVENT", &push.event.as_str().to_owned()),
        ("BERTH_SEVERITY", &severity.to_owned()),
        ("BERTH_CODE", &problem.code),
        ("BERTH_SUBJECT", &problem.subject),
        ("BERTH_TITLE", &push.title()),
        ("BERTH_TEXT", &push.text()),
    ] {
        command.env(name, value.replace('\0', " "));
    }
    let mut child = command.spawn().map_err(|error| format!("{program} can't be run: {error}"))?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // One that does not read it needs it not.
            _ = stdin.write_all(json).await;
        }
    };
    let ended = async { tokio::join!(feed, said(stdout), said(stderr), child.wait()) };
    let Ok(((), out, err, status)) = timeout(deadline, ended).await else {
        if let Some(group) = group {
            // It may have ended just now.
            _ = killpg(group, Signal::SIGKILL);
        }
        return Err(format!("{program} did not end within {} s and was killed", deadline.as_secs_f64()));
    };
    let status = status.map_err(|error| format!("how {program} ended is unknown: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{program} ended with {status}: {}", line(&[out, err].concat())))
    }
}

/// The beginning of what comes; the rest is read and forgotten, so that nobody is held up.
async fn said(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        // What can't be read is not shown.
        _ = (&mut pipe).take(LIMIT as u64).read_to_end(&mut kept).await;
        _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    kept
}

async fn post(url: &str, format: Format, push: &Push, json: Vec<u8>) -> Result<(), String> {
    let failed = |error: &dyn Display| format!("{url}: {error}");
    let uri: Uri = url.parse().map_err(|error| failed(&error))?;
    let authority = uri.authority().ok_or_else(|| failed(&"it names no host"))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(HOST, authority.as_str())
        .header(USER_AGENT, concat!("berthd/", env!("CARGO_PKG_VERSION")));
    let request = match format {
        Format::Json => request.header(CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(json))),
        Format::Ntfy => {
            let (priority, tags) = match (push.event, push.severity) {
                (PushEvent::Ended, _) => ("2", "white_check_mark"),
                (PushEvent::Began, Severity::Error) => ("4", "rotating_light"),
                (PushEvent::Began, Severity::Warning) => ("3", "warning"),
            };
            let title = push.title().replace(char::is_control, " ");
            let title = HeaderValue::from_bytes(title.as_bytes()).map_err(|error| failed(&error))?;
            let request = request.header("Title", title).header("Priority", priority).header("Tags", tags);
            request.body(Full::new(Bytes::from(push.text())))
        }
    };
    let request = request.map_err(|error| failed(&error))?;
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    // It ends with the answer; how it ends is seen there.
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| failed(&error));
    let result = match response {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) => {
            let status = response.status();
            let body = Limited::new(response.into_body(), LIMIT).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            Err(failed(&format!("it answered {status}: {}", line(&body))))
        }
        Err(why) => Err(why),
    };
    connection.abort();
    result
}

/// What was said, on one line.
fn line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line: String = words.collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect();
    if line.is_empty() { "it said nothing".to_owned() } else { line }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
