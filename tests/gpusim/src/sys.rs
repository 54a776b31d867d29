//! What the kernel says about processes and time. The crate's only unsafe code.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

use crate::linger::Exit;

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn now_ns() -> u64 {
    // The monotonic clock exists on every Linux and never runs negative.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}

/// A process held by descriptor, so that its number can't come to mean another one unnoticed.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Holds the process `pid`.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel just gave us this descriptor and nobody else has it.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The wait status, which newer kernels (6.15) still give after the process was reaped.
    fn reaped_status(&self) -> Option<i32> {
        // struct pidfd_info, first version: 64 bytes, the mask first and the wait status last.
        const PIDFD_INFO_EXIT: u64 = 1 << 3;
        #[repr(C)]
        struct Info {
            mask: u64,
            others: [u32; 13],
            exit_code: i32,
        }
        nix::ioctl_readwrite!(pidfd_get_info, 0xFF, 11, Info);
        let mut info = Info { mask: PIDFD_INFO_EXIT, others: [0; 13], exit_code: 0 };
        // SAFETY: the ioctl writes at most the size encoded in its number, which is Info's.
        unsafe { pidfd_get_info(self.0.as_raw_fd(), &raw mut info) }.ok()?;
        (info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `fds` is readable, or for `timeout`; says for each whether it is. A pidfd is readable
/// from the instant of its process's death.
pub fn readable(fds: &[BorrowedFd<'_>], timeout: PollTimeout) -> Vec<bool> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    if poll(&mut polled, timeout).is_err() {
        return vec![false; fds.len()];
    }
    polled.iter().map(|fd| fd.any().unwrap_or(false)).collect()
}

/// How the dead process `pid` ended: from its zombie if it is still there, else from its descriptor.
pub fn exit_of(pid: u32, fd: &PidFd) -> Exit {
    let zombie = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command name may hold anything, so count from its closing bracket.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        (*fields.first()? == "Z").then(|| fields.last()?.parse::<i32>().ok()).flatten()
    };
    match zombie().or_else(|| fd.reaped_status()) {
        None => Exit::Unknown,
        Some(status) => match status & 0x7f {
            0 => Exit::Code(status >> 8 & 0xff),
            signal => Exit::Signal(signal),
        },
    }
}

/// The command name of a process, or an empty one.
pub fn comm_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// Lets the calling thread run before ordinary ones, so that deaths are stamped when they happen and not when
/// a busy machine gets round to it. Says nothing where that is not allowed.
pub fn run_first() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a live local, and 0 names the calling thread.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters)
    };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;

    #[test]
    fn ends_are_told_apart_before_and_after_the_reaping() {
        for (script, expected) in [("exit 3", Exit::Code(3)), ("kill -9 $$", Exit::Signal(9))] {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let fd = PidFd::open(child.id()).unwrap();
            assert_eq!(readable(&[fd.as_fd()], PollTimeout::from(5000u16)), [true]);
            assert_eq!(exit_of(child.id(), &fd), expected);
            child.wait().unwrap();
            assert!([expected, Exit::Unknown].contains(&exit_of(child.id(), &fd)));
        }
    }

    #[test]
    fn a_living_process_is_not_readable() {
        let fd = PidFd::open(std::process::id()).unwrap();
        assert_eq!(readable(&[fd.as_fd()], PollTimeout::ZERO), [false]);
    }
}
