//! What docker is at, as the kernel shows it: docker is not asked.

use std::io;
use std::path::Path;

use berth_core::facts::{Docker, Known};

use crate::sockets::{self, Abandoned};

/// Where it listens; which of the two it is called depends on how it was started.
const SOCKETS: [&str; 2] = ["/run/docker.sock", "/var/run/docker.sock"];

/// Whether docker is still at what it was asked for by clients that are gone. It closes their connections when it is done.
pub fn owes() -> Known<Docker> {
    if !Path::new(SOCKETS[0]).exists() {
        return Known::Value(Docker::Idle);
    }
    let each = SOCKETS.iter().map(|socket| sockets::abandoned(Path::new(socket)));
    match each.collect::<io::Result<Vec<_>>>() {
        Ok(all) => Known::Value(state(&all.concat())),
        Err(error) => Known::Unknown(format!("the kernel does not say who waits for docker: {error}")),
    }
}

fn state(abandoned: &[Abandoned]) -> Docker {
    match abandoned.iter().all(|request| request.is_read) {
        _ if abandoned.is_empty() => Docker::Idle,
        true => Docker::Busy,
        false => Docker::Silent,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read as _, Write as _};
    use std::net::Shutdown;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn what_a_gone_client_asked_for_is_seen_until_the_server_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let now = || state(&sockets::abandoned(&path).unwrap());
        let server = UnixListener::bind(&path).unwrap();
        assert_eq!(now(), Docker::Idle);
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"start").unwrap();
        assert_eq!(now(), Docker::Silent, "not accepted yet");
        let mut accepted = server.accept().unwrap().0;
        // One that sends no more waits for the answer.
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(now(), Docker::Idle);
        drop(client);
        assert_eq!(now(), Docker::Silent);
        accepted.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(now(), Docker::Busy);
        drop(accepted);
        assert_eq!(now(), Docker::Idle);
    }
}
