//! Nothing that opens a door is logged or said: the token, and the signatures of operation URLs.

use std::io;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use serde_json::json;
use spotpool_azure::{AgentPools, Operations, Transport, Urgency};
use tracing_subscriber::fmt::MakeWriter;

use crate::scripted::{Answer, POOLS, Scripted, answer, list, ok, pool, read};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJvcGVyYXRvciJ9.TOKENTOKENTOKEN";
const OPERATION: &str = "https://management.azure.com/operations/1?api-version=2025-03-01&t=1&c=CERTCERTCERT&s=SIGNATURE&h=HASHHASHHASH";

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// What the old azure_core writes: it uses `log`.
impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}\n", record.target(), record.args());
        self.0.lock().unwrap().extend_from_slice(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Adds a token below the adapter, as the program does.
#[derive(Debug)]
struct Signed(Scripted);

impl Transport for Signed {
    fn execute(&self, mut request: http::Request<bytes::Bytes>) -> BoxFuture<'_, Answer> {
        request.headers_mut().insert(AUTHORIZATION, format!("Bearer {TOKEN}").parse().unwrap());
        self.0.execute(request).boxed()
    }
}

#[tokio::test(flavor = "current_thread")]
async fn neither_tokens_nor_signatures_are_logged_or_said() {
    let lines = Lines::default();
    log::set_boxed_logger(Box::new(lines.clone())).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(lines.clone()).finish();
    // For all threads: what other tests have logged first would else be taken for "nobody listens".
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let echo = json!({"error": {"code": "InvalidAuthenticationToken", "message": format!("Bearer {TOKEN} at {OPERATION}")}});
    let scripted = Scripted::new(move |asked| match asked.path() {
        POOLS => ok(&list(&[pool("spota", json!({}))])),
        path if path.ends_with("/spota") => {
            answer(201, &[("azure-asyncoperation", OPERATION)], &pool("spota", json!({})))
        }
        path if path.starts_with("/operations/") => answer(401, &[], &echo),
        _ => answer(500, &[], &echo),
    });
    let arm = scripted.arm_over(Arc::new(Signed(scripted.clone())));
    let mut said = Vec::new();
    assert_eq!(arm.list().await.unwrap().len(), 1);
    assert_eq!(scripted.last().header("authorization"), Some(&*format!("Bearer {TOKEN}")), "it was sent");
    let before = read(pool("spota", json!({}))).await;
    let accepted = arm.scale(&before, 4, Urgency::Routine).await.unwrap();
    said.push(format!("{accepted:?}"));
    let refused = arm.operation(accepted.operation.as_ref().unwrap()).await.unwrap_err();
    said.push(format!("{refused} {refused:?}"));
    let broken = arm.machines("spota").await.unwrap_err();
    said.push(format!("{broken} {broken:?}"));

    let logged = lines.text();
    assert!(logged.contains("azure_core::policies"), "the old SDK's own log is on: {logged}");
    assert!(logged.contains("Azure answered") && logged.contains("/operations/1"), "ours is on");
    for secret in ["TOKENTOKEN", "eyJhbGciOi", "SIGNATURE", "CERTCERT", "HASHHASH"] {
        assert!(!logged.contains(secret), "{secret} in {logged}");
        assert!(said.iter().all(|said| !said.contains(secret)), "{secret} in {said:?}");
    }
}
