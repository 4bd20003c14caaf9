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
/// Longest wait otherwise.
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
    let (mut wait, mut is_known) = (FIRST_WAIT, false);
    loop {
        match events.next().await {
            Some(Ok(event)) => {
                // Init says that a list is about to be tried, not that it worked.
                if !matches!(event, watcher::Event::Init) {
                    if wait != FIRST_WAIT {
                        tracing::info!(what, "watch works again");
                        wait = FIRST_WAIT;
                    }
                    is_known = true;
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
                tokio::select! {
                    () = tokio::time::sleep(pause_after_error(wait, is_urgent, is_known)) => {}
                    Ok(()) = urgent.changed() => {}
                }
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            // A watcher has no end; should one come to have it, do not spin.
            None => std::future::pending().await,
        }
    }
}

/// How long to wait after an error. All agents of a cluster lose an API server in the same instant, and must not trample the one
/// that comes back: where nothing hurries, and what was listed will do meanwhile, each comes at a moment of its own.
fn pause_after_error(wait: Duration, is_urgent: bool, is_known: bool) -> Duration {
    if is_urgent {
        jittered(wait.min(LONGEST_URGENT_WAIT))
    } else if is_known {
        LONGEST_WAIT.mul_f64(f64::from(any_of(0..=1000)) / 1000.0)
    } else {
        jittered(wait)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// When an agent lists that lost the API server for so long: its first try after that.
    fn returns(outage: Duration, is_urgent: bool) -> Duration {
        let (mut tried, mut wait) = (Duration::ZERO, FIRST_WAIT);
        while tried <= outage {
            tried += pause_after_error(wait, is_urgent, true);
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        tried.saturating_sub(outage)
    }

    /// Five thousand agents that list in one second are a second outage. One whose node has a notice waits for nobody.
    #[test]
    fn an_api_server_that_is_back_is_not_asked_by_all_at_once() {
        const AGENTS: u32 = 5000;
        for outage in [0, 1, 5, 30].map(Duration::from_secs) {
            let mut seconds = BTreeMap::<u64, u32>::new();
            for _ in 0..AGENTS {
                *seconds.entry(returns(outage, false).as_secs()).or_default() += 1;
            }
            let most = seconds.values().max().unwrap();
            assert!(most * 4 < AGENTS, "{most} of {AGENTS} in one second after {outage:?}: {seconds:?}");
            assert!((0..100).all(|_| returns(outage, true) < Duration::from_secs(1)));
        }
    }

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
