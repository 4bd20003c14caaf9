//! What the kernel knows of the machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

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
    let stat = std::fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let fields: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests count as user already.
    let idle = fields.get(3).context("/proc/stat has no idle time")? + fields.get(4).unwrap_or(&0.0);
    Ok((idle, fields.iter().take(8).sum()))
}
