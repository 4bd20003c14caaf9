//! Waiting for what must come.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// How long anything in a test may take before it counts as never.
pub const GENEROUS: Duration = Duration::from_mins(3);

const LOOK_AGAIN: Duration = Duration::from_millis(40);

/// Looks until `look` finds something, and returns it.
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    within(GENEROUS, what, look).await
}

/// The same with a time of one's own. Errors of `look` are part of looking: the last is told at the end.
pub async fn within<T>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let give_up = Instant::now() + limit;
    loop {
        let found = tokio::time::timeout_at(give_up, look()).await;
        let last = match found {
            Ok(Ok(Some(found))) => return Ok(found),
            Ok(Err(error)) => Some(error),
            Ok(Ok(None)) | Err(_) => None,
        };
        if Instant::now() >= give_up {
            let last = last.map(|error| format!("; last: {error:#}")).unwrap_or_default();
            bail!("waited {}s in vain for {what}{last}", limit.as_secs());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
