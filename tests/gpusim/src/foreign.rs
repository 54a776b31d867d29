//! Foreign processes: real ones, with a name and a pid of their own, that live until they are told to end.
//! What they hold is booked by the server that starts them.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The foreign processes of a server, by name.
#[derive(Debug, Default)]
pub struct Foreigners(HashMap<String, Child>);

impl Foreigners {
    /// The pid of the one called `name`, which is started if it isn't running.
    pub fn pid_of(&mut self, name: &str) -> io::Result<u32> {
        if let Some(child) = self.0.get_mut(name)
            && child.try_wait()?.is_none()
        {
            return Ok(child.id());
        }
        let mut child = Command::new(std::env::current_exe()?)
            .arg0(name)
            .args(["hold", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        // It says its first line once it has its name.
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.is_empty() {
            child.wait()?;
            return Err(io::Error::other(format!("{name} ended at once")));
        }
        let pid = child.id();
        self.0.insert(name.to_owned(), child);
        Ok(pid)
    }

    /// Ends the one called `name`; false if there is none.
    pub fn stop(&mut self, name: &str) -> io::Result<bool> {
        let Some(mut child) = self.0.remove(name) else { return Ok(false) };
        drop(child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(1);
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(true)
    }

    /// Ends all of them.
    pub fn stop_all(&mut self) -> io::Result<()> {
        let names: Vec<String> = self.0.keys().cloned().collect();
        names.iter().try_for_each(|name| self.stop(name).map(|_| ()))
    }

    /// Reaps those that ended otherwise.
    pub fn reap(&mut self) {
        self.0.retain(|_, child| !matches!(child.try_wait(), Ok(Some(_))));
    }
}

/// A foreign process's whole life: takes its name, then waits for its server to close the pipe or die.
pub fn hold(name: &str) -> io::Result<()> {
    let name = std::ffi::CString::new(name)?;
    nix::sys::prctl::set_name(&name)?;
    writeln!(io::stdout(), "holding")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
