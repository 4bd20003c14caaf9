//! The relay: lets pods, which may be cut off from the metadata service, read the notice that the node is under.
//! It changes nothing, and nobody can use it up: who waits is counted in all and by source.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{ConnectInfo, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use spotpool_crds::EvictionNotice;
use spotpool_runtime::places::Places;
use spotpool_runtime::serve;
use tokio::net::TcpListener;
use tokio::sync::watch;

const MOST_WAITERS: usize = 256;
const MOST_WAITERS_OF_ONE: usize = 16;
const LONGEST_WAIT: Duration = Duration::from_mins(5);

#[derive(Clone)]
struct Relay {
    notice: watch::Receiver<Option<EvictionNotice>>,
    waiters: Places,
}

/// Serves `GET /v1/notice[?wait=30s]`, in plain text: pods reach it at their own node's address, which no certificate names.
pub async fn serve(listener: TcpListener, notice: watch::Receiver<Option<EvictionNotice>>) -> Infallible {
    serve::serve(listener, app(notice), None).await
}

fn app(notice: watch::Receiver<Option<EvictionNotice>>) -> Router {
    let relay = Relay { notice, waiters: Places::new(MOST_WAITERS, MOST_WAITERS_OF_ONE) };
    Router::new().route("/v1/notice", get(answer)).with_state(relay)
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
        return (StatusCode::BAD_REQUEST, "wait must be a duration, such as 30s\n").into_response();
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

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http::{Method, Request};
    use tower::ServiceExt;

    /// What the relay answers to `source`; `None` if it has not after a while.
    async fn asked(app: &Router, source: u8, method: Method, path: &str) -> Option<StatusCode> {
        let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([10, 0, 0, source], 1))));
        let answer = tokio::time::timeout(Duration::from_secs(1), app.clone().oneshot(request)).await;
        answer.ok().map(|answer| answer.unwrap().status())
    }

    #[tokio::test(start_paused = true)]
    async fn one_pod_that_waits_too_often_does_not_keep_others_from_waiting() {
        let (_notice, told) = watch::channel(None);
        let app = app(told);
        let wait = |source| asked(&app, source, Method::GET, "/v1/notice?wait=30s");
        let waiting = futures::future::join_all((0..MOST_WAITERS_OF_ONE + 4).map(|_| wait(1)));
        let (greedy, other) = tokio::join!(waiting, wait(2));
        let refused = greedy.iter().filter(|answer| **answer == Some(StatusCode::TOO_MANY_REQUESTS)).count();
        assert_eq!((refused, other), (4, None), "{greedy:?}");
        // A look is no wait.
        assert_eq!(asked(&app, 1, Method::GET, "/v1/notice").await, Some(StatusCode::OK));
    }

    #[tokio::test]
    async fn nothing_can_be_changed_here() {
        let (_notice, told) = watch::channel(None);
        let app = app(told);
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let answer = asked(&app, 1, method.clone(), "/v1/notice").await;
            assert_eq!(answer, Some(StatusCode::METHOD_NOT_ALLOWED), "{method}");
        }
        for path in ["/", "/v1", "/v1/notice/", "/metrics"] {
            assert_eq!(asked(&app, 1, Method::GET, path).await, Some(StatusCode::NOT_FOUND), "{path}");
        }
        assert_eq!(asked(&app, 1, Method::GET, "/v1/notice?wait=soon").await, Some(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn patience_has_limits() {
        assert_eq!(patience("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(patience("2h"), Ok(LONGEST_WAIT));
        assert!(patience("-1s").is_err() && patience("soon").is_err() && patience("").is_err());
    }
}
