//! What answers at a node's 169.254.169.254: the simulator, as if it had an address for each machine.

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;

/// Leads requests of one node on to its metadata service at the simulator, from an address of this machine.
pub async fn serve(at: IpAddr, endpoint: String) -> SocketAddr {
    let listener = TcpListener::bind((at, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let router = Router::new().fallback(move |request| {
        let (http, endpoint) = (http.clone(), endpoint.clone());
        async move { forward(&http, &endpoint, request).await.unwrap_or_else(|error| error) }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn forward(http: &reqwest::Client, endpoint: &str, request: Request) -> Result<Response, Response> {
    let failed = |error: &dyn std::fmt::Display| (StatusCode::BAD_GATEWAY, error.to_string()).into_response();
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.map_err(|error| failed(&error))?;
    let mut headers = parts.headers;
    headers.remove("host");
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let asked = http.request(parts.method, format!("{endpoint}{path}")).headers(headers).body(body);
    let answer = asked.send().await.map_err(|error| failed(&error))?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = answer.bytes().await.map_err(|error| failed(&error))?;
    Ok((status, headers, Body::from(body)).into_response())
}
