//! The admin server over TLS, with certificates as an authority of one's own makes them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, ServerName};
use spotpool_runtime::admin::{self, Readiness};
use spotpool_runtime::args::CommonArgs;
use spotpool_runtime::tls::Tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const NAME: &str = "spotpool-metrics";

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn args(dir: &Path) -> CommonArgs {
    let file = |name: &str| dir.join(name).display().to_string();
    let args = ["p", "--tls-cert-file", &file("tls.crt"), "--tls-key-file", &file("tls.key")];
    Args::parse_from(args).common
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key, in PEM.
fn pair(authority: &CertifiedIssuer<'static, KeyPair>) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

fn write(dir: &Path, (certificate, key): &(String, String)) {
    std::fs::write(dir.join("tls.crt"), certificate).unwrap();
    std::fs::write(dir.join("tls.key"), key).unwrap();
}

async fn served(dir: &Path) -> SocketAddr {
    let tls = Tls::load(&args(dir)).unwrap();
    assert!(tls.is_some());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut registry = Registry::default();
    registry.register("a", "b", prometheus_client::metrics::gauge::Gauge::<i64>::default());
    let serving = admin::serve(listener, Readiness::default(), Arc::new(registry), tls);
    tokio::spawn(async move { match serving.await {} });
    address
}

/// What a scraper that trusts `authority` reads, or why it does not.
async fn scrape(address: SocketAddr, authority: &CertificateDer<'static>) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(NAME).unwrap();
    let mut stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .map_err(|error| error.to_string())?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.map_err(|error| error.to_string())?;
    Ok(String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn whoever_trusts_the_authority_scrapes_and_a_renewed_certificate_is_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (authority(), authority());
    write(dir.path(), &pair(&old));
    let address = served(dir.path()).await;
    let said = scrape(address, old.der()).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("\na 0\n"), "{said}");
    scrape(address, new.der()).await.expect_err("another authority is believed");
    let plain = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        said
    };
    assert!(
        !String::from_utf8_lossy(&plain.await).contains("HTTP/1.1 200"),
        "plain HTTP is served beside TLS"
    );

    // Half of the next pair, then nonsense: the last pair goes on.
    let next = pair(&new);
    std::fs::write(dir.path().join("tls.crt"), &next.0).unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    scrape(address, old.der()).await.unwrap();
    write(dir.path(), &next);
    let taken_up = async {
        while scrape(address, new.der()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), taken_up).await.unwrap();
}

#[tokio::test]
async fn files_that_cannot_be_used_are_told_of_by_flag() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = || Tls::load(&args(dir.path())).err().unwrap().to_string();
    assert!(refusal().starts_with("--tls-cert-file ") && refusal().contains("No such file"), "{}", refusal());
    let authority = authority();
    let (good, other) = (pair(&authority), pair(&authority));
    for (certificate, key, wanted) in [
        (&*good.0, "", "no PEM key"),
        ("hello", &*good.1, "no PEM certificate"),
        (&good.0, &other.1, "do not go together"),
    ] {
        write(dir.path(), &(certificate.to_owned(), key.to_owned()));
        assert!(refusal().contains(wanted) && refusal().contains("--tls-cert-file"), "{}", refusal());
    }
    assert!(Args::try_parse_from(["p", "--tls-cert-file", "tls.crt"]).is_err(), "half a pair");
}
