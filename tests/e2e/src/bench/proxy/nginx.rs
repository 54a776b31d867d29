//! nginx in a guest, as a reverse proxy before one upstream.

use std::path::Path;

use anyhow::{Result, ensure};

use super::upstream::Kind;
use crate::Berth;

/// A guest's programs are the host's.
const PROGRAM: &str = "/usr/sbin/nginx";

const UNIT: &str = "bench-nginx.service";

/// Where it listens, and passes on answers as they come only for streams.
pub(super) fn port(kind: Kind) -> u16 {
    match kind {
        Kind::Whole => 8021,
        Kind::Streamed => 8022,
    }
}

/// Starts it.
///
/// # Errors
/// The host has none.
pub(super) fn start(berth: &Berth, upstream: u16) -> Result<()> {
    ensure!(Path::new(PROGRAM).exists(), "there is no {PROGRAM}: `tests/deps bench` installs it");
    berth.sandbox().write_file("/etc/bench-nginx.conf", configuration(upstream))?;
    let unit = format!("[Service]\nType=exec\nExecStart={PROGRAM} -e stderr -c /etc/bench-nginx.conf\n");
    berth.sandbox().write_file(&format!("/etc/systemd/system/{UNIT}"), unit)?;
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    _ = berth.systemctl(&["start", UNIT]).with_code(0);
    Ok(())
}

/// As one would write it to have nginx in nobody's way: connections are kept on both sides and never closed for the
/// number of their requests, and nothing is logged.
fn configuration(upstream: u16) -> String {
    let (whole, streamed) = (port(Kind::Whole), port(Kind::Streamed));
    format!(
        "daemon off;
pid /run/bench-nginx.pid;
error_log stderr warn;
worker_processes 2;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    upstream model {{
        server 127.0.0.1:{upstream};
        keepalive 64;
        keepalive_timeout 1h;
        keepalive_requests 1000000000;
    }}
    proxy_http_version 1.1;
    proxy_set_header Connection \"\";
    server {{
        listen 127.0.0.1:{whole};
        location / {{ proxy_pass http://model; }}
    }}
    server {{
        listen 127.0.0.1:{streamed};
        location / {{ proxy_pass http://model; proxy_buffering off; }}
    }}
}}
"
    )
}
