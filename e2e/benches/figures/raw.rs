//! The bare program that evictions are compared with: it does nothing but post evictions that were prepared before,
//! over one HTTP/2 connection that is already there, a fixed number of them at a time, and to wait as flow control asks.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions};
use kube::api::ListParams;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Config};
use serde_json::{from_str, to_string};
use spotpool_e2e::agents::issue;
use spotpool_e2e::{World, world::SYSTEM_NAMESPACE};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// Evictions in flight at a time where no budget is met: all that a node has. For each the apiserver lists the budgets
/// of its namespace from its watch cache, and where anything was written since, it waits for etcd to say how far that
/// is, which it asks at most every 100 ms: so fewer at a time are slower by 100 ms for each turn.
pub const CONCURRENCY: usize = 250;

type Lines = tokio::io::Lines<BufReader<tokio::process::ChildStdout>>;

/// The bare program, connected and with its requests prepared.
pub struct Raw {
    _child: Child,
    input: ChildStdin,
    output: Lines,
    pods: usize,
}

impl Raw {
    /// Writes the kubeconfig that it signs in with: as an agent, whose evictions the chart's policy admits on every node.
    pub async fn sign_in(world: &World) -> Result<PathBuf> {
        let account = "spotpool-node-agent";
        let pods: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM_NAMESPACE);
        let is_agent = |pod: &Pod| {
            pod.spec.as_ref().is_some_and(|spec| {
                spec.node_name.is_some() && spec.service_account_name.as_deref() == Some(account)
            })
        };
        let pods = pods.list(&ListParams::default()).await?;
        // The newest: the token of an agent whose node goes is refused once its Pod is gone.
        let agents = pods.iter().filter(|pod| is_agent(pod));
        let agent = agents
            .max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|at| at.0))
            .context("no agent runs whose token it could have")?;
        let token = issue(&world.client, agent).await?;
        let kubeconfig = world.cluster.dir().join("raw.kubeconfig");
        world.cluster.service_account_kubeconfig(SYSTEM_NAMESPACE, account, &token, &kubeconfig)?;
        Ok(kubeconfig)
    }

    /// Starts it for these pods, `concurrency` evictions at a time.
    pub async fn prepare(kubeconfig: &Path, pods: &[Pod], concurrency: usize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--raw")
            .arg(kubeconfig)
            .args(["--raw-concurrency", &concurrency.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut input = child.stdin.take().context("no input")?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?).lines();
        let evictions: Vec<Eviction> = pods.iter().map(eviction).collect();
        input.write_all(format!("{}\n", to_string(&evictions)?).as_bytes()).await?;
        ensure!(output.next_line().await?.as_deref() == Some("ready"), "the bare program did not start");
        Ok(Self { _child: child, input, output, pods: pods.len() })
    }

    /// Lets it go, and waits for its end.
    pub async fn go(mut self) -> Result<()> {
        self.input.write_all(b"go\n").await?;
        let accepted: usize = self.output.next_line().await?.context("the bare program died")?.parse()?;
        ensure!(accepted == self.pods, "only {accepted} of {} raw evictions were accepted", self.pods);
        Ok(())
    }
}

/// What the agent would send.
fn eviction(pod: &Pod) -> Eviction {
    Eviction {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        delete_options: Some(DeleteOptions {
            grace_period_seconds: Some(28),
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() }),
            ..DeleteOptions::default()
        }),
    }
}

/// Is the bare program: reads the evictions from stdin, says `ready`, waits for a line, posts, says how many were
/// accepted.
#[tokio::main(flavor = "current_thread")]
pub async fn run(kubeconfig: &Path, concurrency: usize) -> Result<()> {
    let config =
        Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default())
            .await?;
    let token = std::fs::read_to_string(
        config.auth_info.token_file.as_ref().context("the kubeconfig names no token file")?,
    )?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_only()
        .enable_http2()
        .wrap_connector(http);
    let client: Client<_, Full<bytes::Bytes>> =
        Client::builder(TokioExecutor::new()).http2_only(true).build(https);
    let server = config.cluster_url.to_string();
    let server = server.trim_end_matches('/');
    let request = |method: Method, path: String, body: Vec<u8>| {
        Request::builder()
            .method(method)
            .uri(format!("{server}{path}"))
            .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(bytes::Bytes::from(body)))
    };

    let mut lines = std::io::stdin().lock().lines();
    let evictions: Vec<Eviction> = from_str(&lines.next().context("no evictions")??)?;
    let requests: Vec<_> = evictions
        .iter()
        .map(|eviction| {
            let of = &eviction.metadata;
            let (Some(namespace), Some(name)) = (&of.namespace, &of.name) else {
                bail!("an eviction of no pod");
            };
            let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
            Ok(request(Method::POST, path, serde_json::to_vec(eviction)?)?)
        })
        .collect::<Result<_>>()?;
    // The connection is there, and the apiserver knows the token.
    let warm = client.request(request(Method::GET, "/version".to_owned(), Vec::new())?).await?;
    ensure!(warm.status().is_success(), "the apiserver answers {}", warm.status());
    warm.into_body().collect().await?;
    println!("ready");
    std::io::stdout().flush()?;
    lines.next().context("not to go")??;

    let client = &client;
    let post = |request: Request<Full<bytes::Bytes>>| async move {
        loop {
            let Ok(answer) = client.request(request.clone()).await else { return false };
            let header = answer.headers().get(header::RETRY_AFTER);
            let after = header.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
            match (answer.status(), after) {
                // Flow control.
                (StatusCode::TOO_MANY_REQUESTS, Some(seconds)) => {
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                }
                (status, _) => return status.is_success(),
            }
        }
    };
    let answers = futures::stream::iter(requests).map(post).buffer_unordered(concurrency);
    let accepted = answers.filter(|accepted| std::future::ready(*accepted)).count().await;
    println!("{accepted}");
    Ok(())
}
