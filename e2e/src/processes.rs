//! What the kernel knows of one process.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// Where a process keeps its memory, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All of it that is in RAM.
    pub resident: f64,
    /// Of this what is not backed by a file.
    pub anonymous: f64,
}

/// The memory of a process.
pub fn memory(pid: u32) -> Result<Memory> {
    Ok(Memory { resident: mib(pid, "VmRSS")?, anonymous: mib(pid, "RssAnon")? })
}

/// The most memory that a process has had in RAM, in MiB.
pub fn peak(pid: u32) -> Result<f64> {
    mib(pid, "VmHWM")
}

fn mib(pid: u32, field: &str) -> Result<f64> {
    let status = read(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).with_context(|| format!("/proc/{pid}/status has no {field}"))
}

/// CPU time of all threads of a process, by the scheduler's nanosecond counter, and how many threads these are.
pub fn cpu_time(pid: u32) -> Result<(Duration, usize)> {
    let mut sum = (Duration::ZERO, 0);
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = read(thread?.path().join("schedstat"))?;
        let nanos = text.split_whitespace().next().and_then(|text| text.parse().ok());
        sum.0 += Duration::from_nanos(nanos.context("schedstat begins with no number")?);
        sum.1 += 1;
    }
    Ok(sum)
}

/// How many threads a process has.
pub fn threads(pid: u32) -> Result<usize> {
    entries(&format!("/proc/{pid}/task"))
}

/// How many files a process has open, sockets among them.
pub fn open_files(pid: u32) -> Result<usize> {
    entries(&format!("/proc/{pid}/fd"))
}

/// How many TCP connections a process has to a port of this machine.
pub fn connections(pid: u32, port: u16) -> Result<usize> {
    let table = read(format!("/proc/{pid}/net/tcp"))?;
    let remote = format!(":{port:04X}");
    let of_port = |line: &&str| line.split_whitespace().nth(2).is_some_and(|peer| peer.ends_with(&remote));
    let sockets: BTreeSet<&str> =
        table.lines().filter(of_port).filter_map(|line| line.split_whitespace().nth(9)).collect();
    let mut count = 0;
    for file in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that was closed just now is no connection.
        let Ok(target) = std::fs::read_link(file?.path()) else { continue };
        let inode = target.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']'));
        count += usize::from(inode.is_some_and(|inode| sockets.contains(inode)));
    }
    Ok(count)
}

fn entries(folder: &str) -> Result<usize> {
    Ok(std::fs::read_dir(folder).with_context(|| format!("cannot read {folder}"))?.count())
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
