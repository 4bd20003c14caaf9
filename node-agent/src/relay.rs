//! The relay: lets pods, which may be cut off from the metadata service, read the notice that the node is under.
//! It changes nothing, and nobody can use it up: who waits is counted in all and by source.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{ConnectInfo, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use spotpool_crds::EvictionNotice;
use tokio::net::TcpListener;
use tokio::sync::watch;

const MOST_WAITERS: usize = 256;
const MOST_WAITERS_OF_ONE: usize = 16;
const LONGEST_WAIT: Duration = Duration::from_mins(5);

#[derive(Clone)]
struct Relay {
    notice: watch::Receiver<Option<EvictionNotice>>,
    waiters: Waiters,
}

/// Serves `GET /v1/notice[?wait=30s]`.
pub async fn serve(
    listener: TcpListener,
    notice: watch::Receiver<Option<EvictionNotice>>,
) -> std::io::Result<()> {
    let relay = Relay { notice, waiters: Waiters::default() };
    let app = Router::new().route("/v1/notice", get(answer)).with_state(relay);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await
}

#[derive(Deserialize)]
struct Ask {
    wait: Option<String>,
}

#[derive(Serialize)]
struct Told {
    notice: Option<EvictionNotice>,
}

async fn answer(
    State(relay): State<Relay>,
    ConnectInfo(source): ConnectInfo<SocketAddr>,
    Query(ask): Query<Ask>,
) -> Response {
    let Ok(wait) = ask.wait.as_deref().map(patience).transpose() else {
        return (StatusCode::BAD_REQUEST, "wait: want a duration such as 30s\n").into_response();
    };
    let mut notice = relay.notice.clone();
    let now = notice.borrow_and_update().clone();
    let told = match (now, wait) {
        (None, Some(wait)) => {
            let Some(_place) = relay.waiters.enter(source.ip()) else {
                return (StatusCode::TOO_MANY_REQUESTS, "too many wait for the notice\n").into_response();
            };
            let waited = tokio::time::timeout(wait, notice.wait_for(Option::is_some)).await;
            waited.ok().and_then(|waited| waited.ok().and_then(|notice| notice.clone()))
        }
        (now, _) => now,
    };
    Json(Told { notice: told }).into_response()
}

fn patience(text: &str) -> Result<Duration, spotpool_crds::duration::ParseError> {
    let wait = spotpool_crds::Duration::from_str(text)?;
    Ok(Duration::from(wait).min(LONGEST_WAIT))
}

/// Who waits, by source.
#[derive(Clone, Default)]
struct Waiters(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Waiters {
    fn enter(&self, source: IpAddr) -> Option<Place> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = waiting.values().sum();
        let of_one = waiting.get(&source).copied().unwrap_or_default();
        if all >= MOST_WAITERS || of_one >= MOST_WAITERS_OF_ONE {
            return None;
        }
        waiting.insert(source, of_one + 1);
        Some(Place { waiters: self.clone(), source })
    }
}

/// One waiter's place, given back when it goes.
struct Place {
    waiters: Waiters,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.waiters.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = waiting.get_mut(&self.source) {
            *of_one -= 1;
            if *of_one == 0 {
                waiting.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_all_and_by_source() {
        let waiters = Waiters::default();
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let mut places: Vec<_> = (0..16).map(|_| waiters.enter(ip(1)).unwrap()).collect();
        assert!(waiters.enter(ip(1)).is_none());
        places.pop();
        places.push(waiters.enter(ip(1)).unwrap());
        places.extend(
            (2..17).flat_map(|last| (0..16).map(move |_| last)).map(|last| waiters.enter(ip(last)).unwrap()),
        );
        assert_eq!(places.len(), MOST_WAITERS);
        assert!(waiters.enter(ip(99)).is_none());
        places.clear();
        assert!(waiters.0.lock().unwrap().is_empty());
    }

    #[test]
    fn patience_has_limits() {
        assert_eq!(patience("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(patience("2h"), Ok(LONGEST_WAIT));
        assert!(patience("-1s").is_err() && patience("soon").is_err() && patience("").is_err());
    }
}
