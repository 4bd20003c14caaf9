//! What the kernel knows of the machine and of one process.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Where a process keeps its memory, in MiB.
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

/// The share of the machine's CPU time that anything used for as long as `time`, 0 to 1.
pub async fn busy(time: Duration) -> Result<f64> {
    let first = ticks()?;
    tokio::time::sleep(time).await;
    let last = ticks()?;
    Ok(1.0 - (last.0 - first.0) / (last.1 - first.1).max(1.0))
}

/// Waits until the machine has little to do, or for a few seconds, and returns how busy it was at last: what was
/// done to set a run up must not be measured with it, and other work must show.
pub async fn settle() -> Result<f64> {
    let began = Instant::now();
    loop {
        let busy = busy(Duration::from_millis(400)).await?;
        if busy < 0.25 || began.elapsed() > Duration::from_secs(4) {
            return Ok(busy);
        }
    }
}

/// Idle ticks and all ticks since boot.
fn ticks() -> Result<(f64, f64)> {
    let stat = read("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let fields: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests count as user already.
    let idle = fields.get(3).context("/proc/stat has no idle time")? + fields.get(4).unwrap_or(&0.0);
    Ok((idle, fields.iter().take(8).sum()))
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
