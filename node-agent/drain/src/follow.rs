//! Following objects through outages of the API server.

use std::convert::Infallible;
use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::jitter::{any_of, jittered};

/// First wait after an error.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait while a notice is on.
const LONGEST_URGENT_WAIT: Duration = Duration::from_millis(800);
/// Longest wait otherwise: many agents must not trample an API server that comes back.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// For how many seconds a watch is asked for. Agents that open theirs in the same instant, as when the API server is back, would
/// renew them in the same instant from then on, were it as long for all. kube takes no more than 294.
const WATCH_LASTS: RangeInclusive<u32> = 240..=290;

/// Gives every event of a watch to `apply`, and goes on after errors. Never ends.
pub async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    urgent: watch::Receiver<bool>,
    what: &'static str,
    mut apply: impl FnMut(watcher::Event<K>),
) -> Infallible
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let at_once = |event| {
        apply(event);
        Duration::ZERO
    };
    follow_with_pauses(api, config, urgent, what, at_once).await
}

/// The same, with the pauses that `apply` returns: after a list, the watch is opened so much later.
pub async fn follow_with_pauses<K>(
    api: Api<K>,
    config: watcher::Config,
    mut urgent: watch::Receiver<bool>,
    what: &'static str,
    mut apply: impl FnMut(watcher::Event<K>) -> Duration,
) -> Infallible
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = pin!(watcher(api, config.timeout(any_of(WATCH_LASTS))));
    let mut wait = FIRST_WAIT;
    loop {
        match events.next().await {
            Some(Ok(event)) => {
                // Init says that a list is about to be tried, not that it worked.
                if wait != FIRST_WAIT && !matches!(event, watcher::Event::Init) {
                    tracing::info!(what, "watch works again");
                    wait = FIRST_WAIT;
                }
                let pause = apply(event);
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
            }
            Some(Err(error)) => {
                if wait == FIRST_WAIT {
                    tracing::warn!(what, %error, "watch interrupted, trying again");
                } else {
                    tracing::debug!(what, %error, "watch still interrupted");
                }
                let is_urgent = *urgent.borrow_and_update();
                let longest = if is_urgent { LONGEST_URGENT_WAIT } else { LONGEST_WAIT };
                tokio::select! {
                    () = tokio::time::sleep(jittered(wait.min(longest))) => {}
                    Ok(()) = urgent.changed() => {}
                }
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            // A watcher has no end; should one come to have it, do not spin.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Ten thousand requests in one second, every five minutes, are more than an API server has room for.
    #[test]
    fn watches_that_were_opened_together_are_not_renewed_together() {
        const AGENTS: u32 = 5000;
        let mut renewals = BTreeMap::<u32, u32>::new();
        for _ in 0..AGENTS {
            let lasts = any_of(WATCH_LASTS);
            assert!(WATCH_LASTS.contains(&lasts));
            *renewals.entry(lasts).or_default() += 1;
        }
        let most = renewals.values().max().unwrap();
        assert!(most * 20 < AGENTS, "{most} of {AGENTS} in one second: {renewals:?}");
    }
}
