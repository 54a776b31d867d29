//! What many who listen cost a switch, half of whom never read.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpusim::sys::now_ns;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

use super::client::Client;
use crate::soak::{EACH, Process};
use crate::{Berth, connect};

/// How many listen at once.
pub(super) const LISTENERS: usize = 200;
/// The control API over TCP.
const PORT: u16 = 8009;
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) struct Listening {
    /// What each switch took while nobody listened, in nanoseconds.
    pub alone: Vec<u64>,
    /// While all of them did.
    pub listened: Vec<u64>,
    /// How much more of berthd was its own at the end than before anybody listened, in KiB.
    pub grown_kib: i64,
}

/// So many switches each way, in turn.
pub(super) fn measure(switches: u32, mut progress: impl FnMut(u32)) -> Result<Listening> {
    let load = ["--load-time", "20ms"];
    let berth = Berth::builder().fake("aeon", EACH, &load).fake("genesis", EACH, &load).try_boot()?;
    let client = Client::new(&berth);
    client.change("switch", "aeon")?.ended()?;
    let process = Process::of_berthd(&berth)?;
    let before = process.at_rest()?.anonymous_kib;
    let mut models = ["genesis", "aeon"].into_iter().cycle();
    let mut switch = || -> Result<u64> {
        let model = models.next().context("it goes round")?;
        let begun = now_ns();
        client.change("switch", model)?.ended()?;
        Ok(now_ns() - begun)
    };
    let (mut alone, mut listened) = (Vec::new(), Vec::new());
    for done in 0..switches {
        alone.push(switch()?);
        let listeners = Listeners::come(&berth)?;
        listened.push(switch()?);
        listeners.leave()?;
        progress(done + 1);
    }
    let grown_kib = process.at_rest()?.anonymous_kib - before;
    Ok(Listening { alone, listened, grown_kib })
}

/// Those who listen.
struct Listeners {
    /// They read nothing.
    _silent: Vec<TcpStream>,
    /// Tells those who read to stop.
    stop: oneshot::Sender<()>,
    reading: std::thread::JoinHandle<Result<usize>>,
}

impl Listeners {
    fn come(berth: &Berth) -> Result<Self> {
        let pid1 = berth.pid1()?;
        let open = |_| -> Result<TcpStream> {
            let mut stream = connect(pid1, PORT, DEADLINE)?;
            stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            Ok(stream)
        };
        let mut silent = (0..LISTENERS).map(open).collect::<Result<Vec<_>>>()?;
        let readers = silent.split_off(LISTENERS / 2);
        let (stop, stopped) = oneshot::channel();
        let reading = std::thread::spawn(move || read(readers, stopped));
        Ok(Self { _silent: silent, stop, reading })
    }

    fn leave(self) -> Result<()> {
        // Whoever reads ends by itself where berthd breaks off.
        _ = self.stop.send(());
        let read = self.reading.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
        ensure!(read > 0, "nobody was told anything");
        Ok(())
    }
}

/// Reads all of them until told to stop; how many bytes came.
fn read(streams: Vec<TcpStream>, mut stopped: oneshot::Receiver<()>) -> Result<usize> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (told, mut come) = tokio::sync::mpsc::unbounded_channel();
        for stream in streams {
            stream.set_nonblocking(true)?;
            let (mut stream, told) = (tokio::net::TcpStream::from_std(stream)?, told.clone());
            tokio::spawn(async move {
                let mut part = [0; 16 << 10];
                while let Ok(read @ 1..) = stream.read(&mut part).await {
                    _ = told.send(read);
                }
            });
        }
        drop(told);
        let mut all = 0;
        loop {
            tokio::select! {
                read = come.recv() => match read {
                    Some(read) => all += read,
                    None => return Ok(all),
                },
                _ = &mut stopped => return Ok(all),
            }
        }
    })
}
