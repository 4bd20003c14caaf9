//! A server that nobody can use up: connections are counted in all and by source, and the head of a request has a size
//! and a time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tower::ServiceExt;

use crate::places::Places;
use crate::tls::Tls;

const CONNECTIONS: usize = 512;
/// Probes, a scraper, and as many waiters as the relay lets one source have, with room to spare.
const CONNECTIONS_OF_ONE: usize = 64;
/// From the connection, or the last answer, to the end of the request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const LARGEST_HEAD: usize = 16 << 10;
/// Nothing that is asked here takes longer: a client that does not read its answer is left.
const LONGEST_CONNECTION: Duration = Duration::from_mins(10);
/// Until a listener that cannot accept, for want of open files perhaps, tries again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Serves `app` for as long as it is polled, over TLS if there are certificates. Handlers may ask for `ConnectInfo`.
pub async fn serve(listener: TcpListener, app: Router, tls: Option<Tls>) -> Infallible {
    let places = Places::new(CONNECTIONS, CONNECTIONS_OF_ONE);
    loop {
        let (stream, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "no connection accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Some(place) = places.enter(source.ip()) else {
            tracing::debug!(%source, "too many connections");
            continue;
        };
        let (app, tls) = (app.clone(), tls.clone());
        tokio::spawn(async move {
            let _place = place;
            let conversation = async {
                match tls {
                    None => converse(stream, source, app).await,
                    Some(tls) => {
                        let stream =
                            tokio::time::timeout(HEAD_TIMEOUT, tls.acceptor().accept(stream)).await??;
                        converse(stream, source, app).await
                    }
                }
            };
            match tokio::time::timeout(LONGEST_CONNECTION, conversation).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%source, %error, "a connection broke"),
                Err(_) => tracing::debug!(%source, "a connection was open for too long"),
            }
        });
    }
}

async fn converse<S>(stream: S, source: SocketAddr, app: Router) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(source));
        app.clone().oneshot(request)
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn served() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/", get(|| async { "ok" }));
        tokio::spawn(async move { match serve(listener, app, None).await {} });
        address
    }

    /// Everything that comes back until the server closes.
    async fn said(stream: &mut TcpStream) -> String {
        let mut said = Vec::new();
        // A connection that is closed with bytes unread is reset.
        let _ = stream.read_to_end(&mut said).await;
        String::from_utf8_lossy(&said).into_owned()
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(request.as_bytes()).await;
        said(&mut stream).await
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_source_has_so_many_connections_and_gets_them_back() {
        let address = served().await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_OF_ONE {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        assert_eq!(ask(address, GET).await, "", "one too many is closed without a word");
        idle.clear();
        let again = async {
            while ask(address, GET).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), again).await.unwrap();
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused() {
        let address = served().await;
        let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(LARGEST_HEAD));
        let said = ask(address, &large).await;
        assert!(said.starts_with("HTTP/1.1 431") || said.is_empty(), "{said}");
        assert!(ask(address, GET).await.ends_with("ok"), "others are served as before");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_finishes_its_request_is_left() {
        let address = served().await;
        for begun in ["", "GET / HTTP/1.1\r\nHost:"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(begun.as_bytes()).await.unwrap();
            let began = tokio::time::Instant::now();
            said(&mut stream).await;
            let took = began.elapsed();
            assert!((HEAD_TIMEOUT / 2..HEAD_TIMEOUT * 2).contains(&took), "{begun:?}: {took:?}");
        }
    }
}
