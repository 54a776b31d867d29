//! A blocking client: one connection, one request at a time.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::cards::Card;
use crate::protocol::{
    Answer, Code, DEFAULT_SOCKET, Driver, Failure, Kind, Knob, Listed, Memory, Request, SOCKET_VARIABLE,
    Stats,
};

/// What can go wrong between a client and the server.
#[derive(Debug)]
pub enum ClientError {
    /// The server isn't there, or went away.
    Gone { socket: PathBuf, error: io::Error },
    /// The server said no.
    Refused(Failure),
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ClientError::Gone { socket, error } => {
                write!(
                    f,
                    "gpusim at {} does not answer: {error}; is `gpusim serve` running?",
                    socket.display()
                )
            }
            ClientError::Refused(failure) => failure.fmt(f),
        }
    }
}

impl std::error::Error for ClientError {}

/// The socket that `GPUSIM_SOCKET` names, or the default one.
pub fn default_socket() -> PathBuf {
    std::env::var_os(SOCKET_VARIABLE).map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from)
}

/// A connection to the server.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the default socket; see [`Client::connect_to`].
    pub fn connect(wait: Duration) -> Result<Self, ClientError> {
        Client::connect_to(&default_socket(), wait)
    }

    /// Connects, trying again for at most `wait` while nobody listens yet. Requests then wait for their answer
    /// without a limit, as calls into a driver do; see [`Client::limit`].
    pub fn connect_to(socket: &Path, wait: Duration) -> Result<Self, ClientError> {
        let deadline = Instant::now() + wait;
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => {
                    return Ok(Client { socket: socket.to_owned(), stream: BufReader::new(stream) });
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(ClientError::Gone { socket: socket.to_owned(), error });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Lets no later request wait longer than this.
    pub fn limit(self, limit: Duration) -> Result<Self, ClientError> {
        self.stream.get_ref().set_read_timeout(Some(limit)).map_err(|error| self.gone(error))?;
        Ok(self)
    }

    fn gone(&self, error: io::Error) -> ClientError {
        ClientError::Gone { socket: self.socket.clone(), error }
    }

    /// Asks, and waits for the answer.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let answer = self.exchange(request).map_err(|error| self.gone(error))?;
        match answer {
            Answer::Ok(value) => serde_json::from_value(value).map_err(|error| self.gone(error.into())),
            Answer::Error(failure) => Err(ClientError::Refused(failure)),
        }
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Answer> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        Ok(serde_json::from_str(&answer)?)
    }

    /// Takes memory for this process until it dies, also over an exec.
    pub fn alloc(&mut self, device: u32, bytes: u64) -> Result<(), ClientError> {
        self.call(&Request::Alloc { device, bytes, kind: Kind::Compute })
    }

    /// Changes how a card, or all cards, behave.
    pub fn set(&mut self, device: Option<u32>, knob: Knob) -> Result<(), ClientError> {
        self.call(&Request::Set { device, knob })
    }

    /// Counters and what is held.
    pub fn stats(&mut self) -> Result<Stats, ClientError> {
        self.call(&Request::Stats)
    }

    /// A card's memory reading.
    pub fn memory(&mut self, device: u32) -> Result<Memory, ClientError> {
        self.call(&Request::Memory { device })
    }

    /// A card's list of compute or graphics processes.
    pub fn processes(&mut self, device: u32, kind: Kind) -> Result<Vec<Listed>, ClientError> {
        self.call(&Request::Processes { device, kind })
    }

    /// All cards but lost ones, which a CUDA program does not see either.
    pub fn cards(&mut self) -> Result<Vec<Card>, ClientError> {
        let driver: Driver = self.call(&Request::Hello)?;
        let mut cards = Vec::new();
        for device in 0..driver.cards {
            match self.call(&Request::Card { device }) {
                Ok(card) => cards.push(card),
                Err(ClientError::Refused(Failure { code: Code::Lost, .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(cards)
    }
}
