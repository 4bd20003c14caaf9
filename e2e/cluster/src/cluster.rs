//! One control plane: its folder, its processes, and the ways to talk to it.

mod layout;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use self::layout::{Layout, Ports};
use crate::pki::{self, Authority};
use crate::progress::Progress;
use crate::supervise::{Supervised, remove_at_exit};
use crate::tools::Tools;

/// Seconds on an idle machine; a busy one may take far longer, and giving up early helps nobody.
const READY_TIMEOUT: Duration = Duration::from_mins(3);
const POLL: Duration = Duration::from_millis(50);
/// A port may be taken between our look and the start of the server, by another test run for instance.
const PORT_TRIES: u32 = 5;
/// Folders of clusters whose process is gone, kept for whoever looks into a failure.
const KEPT_FOLDERS: usize = 5;
const FOLDER_PREFIX: &str = "spotpool-cluster-";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// How a cluster is to be.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClusterOptions {
    /// Run KWOK, which plays the kubelets of nodes with the label `type=kwok`.
    pub kwok: bool,
    /// Further files of KWOK stages. Where two stages match, KWOK chooses one at random, by weight.
    pub kwok_stages: Vec<PathBuf>,
    /// Write an audit log (see [`Cluster::audit_log`]).
    pub audit_log: bool,
    /// Where the API server listens. Real kubelets in network namespaces of their own cannot reach the loopback
    /// address: for them, give that of the bridge that they share with the host.
    pub bind_address: IpAddr,
    /// Further arguments of the API server; for a flag given twice, the later one counts.
    pub apiserver_args: Vec<String>,
    /// Further arguments of the controller manager, such as `--node-monitor-grace-period=20s`.
    pub controller_manager_args: Vec<String>,
    /// Further arguments of the scheduler.
    pub scheduler_args: Vec<String>,
    /// The folder in which the cluster's own folder is made; the system's folder for temporary files by default.
    pub parent_dir: Option<PathBuf>,
    /// Leave the cluster's folder, with everything in it, after a clean stop, too.
    pub keep: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            kwok: true,
            kwok_stages: Vec::new(),
            audit_log: false,
            bind_address: LOOPBACK,
            apiserver_args: Vec::new(),
            controller_manager_args: Vec::new(),
            scheduler_args: Vec::new(),
            parent_dir: None,
            keep: false,
        }
    }
}

/// A cluster to test on.
///
/// Dropping it without [`Cluster::stop`] counts as a failure: its processes are killed, its folder stays and is named
/// on stderr. If the process ends without running destructors, the folder stays as well, but for etcd's data; the
/// next start of a cluster removes all but the newest few of such folders.
#[derive(Debug)]
pub struct Cluster {
    kubeconfig: PathBuf,
    config: Kubeconfig,
    server_url: String,
    ca_pem: String,
    kubectl: PathBuf,
    dir: PathBuf,
    /// `None` for a cluster that was there before us.
    own: Option<Own>,
}

/// What there is to a cluster that we run.
#[derive(Debug)]
struct Own {
    layout: Layout,
    authority: Authority,
    processes: Mutex<Processes>,
    /// Held for as long as the folder is in use.
    _lock: File,
}

#[derive(Debug, Default)]
struct Processes {
    kwok: Option<Supervised>,
    scheduler: Option<Supervised>,
    controller_manager: Option<Supervised>,
    apiserver: Option<Supervised>,
    etcd: Option<Supervised>,
}

impl Processes {
    fn check_running(&self) -> Result<()> {
        let all = [&self.etcd, &self.apiserver, &self.controller_manager, &self.scheduler, &self.kwok];
        all.into_iter().flatten().try_for_each(Supervised::check_running)
    }

    fn in_order_of_end(self) -> impl Iterator<Item = Supervised> {
        [self.kwok, self.scheduler, self.controller_manager, self.apiserver, self.etcd].into_iter().flatten()
    }
}

impl Cluster {
    /// Starts a cluster and waits until it is ready for use. The first time ever, this builds the programs.
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        let tools = Tools::ensure().await?;
        let parent = options.parent_dir.clone().unwrap_or_else(std::env::temp_dir);
        let parent = std::path::absolute(&parent)?;
        std::fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        remove_old_folders(&parent);
        let mut tries = 1;
        loop {
            let cluster = Self::new(options.clone(), tools.clone(), &parent)?;
            match cluster.boot().await {
                Ok(()) => return Ok(cluster),
                Err(_) if tries < PORT_TRIES && cluster.layout()?.lost_a_port() => {
                    tries += 1;
                    cluster.stop().await?;
                }
                // The drop of the cluster says where its folder is.
                Err(error) => return Err(error.context("the test cluster did not start")),
            }
        }
    }

    /// Uses a cluster that is there. It has no processes of ours: stopping it does nothing to it, and its API server
    /// cannot be stopped. No KWOK is started in it.
    pub async fn attach(kubeconfig: &Path) -> Result<Self> {
        let kubeconfig = std::path::absolute(kubeconfig)?;
        let config = read_kubeconfig(&kubeconfig)?;
        let context = config.current_context.as_ref().and_then(|current| {
            config.contexts.iter().find(|context| context.name == *current)?.context.as_ref()
        });
        let cluster = context.and_then(|context| {
            config.clusters.iter().find(|cluster| cluster.name == context.cluster)?.cluster.as_ref()
        });
        let cluster = cluster.with_context(|| {
            format!("{} has no current context that names a cluster", kubeconfig.display())
        })?;
        let server_url = cluster.server.clone().context("the kubeconfig names no server")?;
        let ca_pem = match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
            (Some(data), _) => {
                let ByteString(pem) = serde_json::from_value(json!(data)).context("the CA is not base64")?;
                String::from_utf8(pem).context("the CA is not PEM")?
            }
            (None, Some(path)) => {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?
            }
            (None, None) => String::new(),
        };
        let dir = tempfile::Builder::new().prefix("spotpool-attached-").tempdir()?.keep();
        Ok(Self { kubeconfig, config, server_url, ca_pem, kubectl: Tools::kubectl().await?, dir, own: None })
    }

    fn new(options: ClusterOptions, tools: Tools, parent: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(FOLDER_PREFIX).tempdir_in(parent)?.keep();
        let lock = File::create(dir.join("lock"))?;
        lock.lock()?;
        // Large and never looked at; the logs are what is kept.
        if !options.keep {
            remove_at_exit(&dir.join("etcd"))?;
        }
        let ports = Ports::pick(options.bind_address)?;
        let server_url = format!("https://{}", SocketAddr::new(options.bind_address, ports.apiserver));
        let kubectl = tools.kubectl.clone();
        let layout = Layout { options, tools, ports, dir: dir.clone(), server_url: server_url.clone() };
        let authority = layout.write_files()?;
        let ca_pem = authority.identity().cert;
        let kubeconfig = layout.kubeconfig("admin");
        let config = read_kubeconfig(&kubeconfig)?;
        let own = Some(Own { layout, authority, processes: Mutex::default(), _lock: lock });
        Ok(Self { kubeconfig, config, server_url, ca_pem, kubectl, dir, own })
    }

    async fn boot(&self) -> Result<()> {
        let layout = self.layout()?;
        // The API server waits for etcd by itself.
        self.processes()?.etcd = Some(layout.etcd()?);
        self.start_apiserver().await?;
        {
            let mut processes = self.processes()?;
            processes.controller_manager = Some(layout.controller_manager()?);
            processes.scheduler = Some(layout.scheduler()?);
            if layout.options.kwok {
                processes.kwok = Some(layout.kwok()?);
            }
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, "default");
        self.wait_for("the controller manager to make the ServiceAccount `default`", async || {
            Ok(accounts.get_opt("default").await?.is_some())
        })
        .await?;
        // Its health is behind a certificate of its own making; that it listens says that it has its port.
        self.wait_for("kube-scheduler to listen", async || {
            tokio::net::TcpStream::connect((LOOPBACK, layout.ports.scheduler)).await?;
            Ok(true)
        })
        .await?;
        if layout.options.kwok {
            self.wait_for_health("kwok", &format!("http://127.0.0.1:{}/readyz", layout.ports.kwok)).await?;
        }
        self.processes()?.check_running()
    }

    /// The kubeconfig of an administrator.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A new client that acts as administrator, for the current runtime.
    ///
    /// It never sends a request again by itself. By default kube's client does so for 429, 503 and 504, up to 15
    /// times, and an eviction that a disruption budget forbids would take minutes to say so.
    pub async fn client(&self) -> Result<Client> {
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(self.config.clone(), &options)
            .await
            .with_context(|| format!("{} cannot be used", self.kubeconfig.display()))?;
        config.default_retry = false;
        if self.own.is_some() {
            // On this machine, whatever HTTPS_PROXY says.
            config.proxy_url = None;
        }
        Client::try_from(config).context("cannot make a Kubernetes client")
    }

    /// The program kubectl.
    pub fn kubectl(&self) -> &Path {
        &self.kubectl
    }

    /// The API server's address, such as `https://127.0.0.1:20123`.
    pub fn server_url(&self) -> &str {
        &self.server_url
    }

    /// The certificate by which to know the API server; empty if an attached cluster's kubeconfig has none.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A folder for files that belong to this cluster's life; logs are in `log`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The audit log, if there is one: a JSON object a line, at level Metadata, one line a request (two for a watch:
    /// `stage` is `ResponseStarted` and, at its end, `ResponseComplete`), written before the client has its answer.
    pub fn audit_log(&self) -> Option<PathBuf> {
        let layout = &self.own.as_ref()?.layout;
        layout.options.audit_log.then(|| layout.audit_log())
    }

    /// The process ids of the components that run now, by name, for measurements.
    pub fn process_ids(&self) -> Vec<(String, u32)> {
        let Some(own) = &self.own else { return Vec::new() };
        let processes = own.lock();
        let all = [
            &processes.etcd,
            &processes.apiserver,
            &processes.controller_manager,
            &processes.scheduler,
            &processes.kwok,
        ];
        all.into_iter().flatten().map(|process| (process.name().to_owned(), process.id())).collect()
    }

    /// Ends the API server at once, as a crash does.
    pub async fn stop_apiserver(&self) -> Result<()> {
        let apiserver = self.processes()?.apiserver.take();
        end(apiserver).await
    }

    /// Starts the API server on the same port with the same data, and waits until it is ready.
    pub async fn start_apiserver(&self) -> Result<()> {
        let layout = self.layout()?;
        {
            let mut processes = self.processes()?;
            if processes.apiserver.is_none() {
                processes.apiserver = Some(layout.apiserver()?);
            }
        }
        let client = self.client().await?;
        self.wait_for("kube-apiserver to be ready", async || {
            client.request_text(http::Request::get("/readyz").body(Vec::new())?).await?;
            Ok(true)
        })
        .await
    }

    /// Ends etcd at once, as a crash does.
    pub async fn stop_etcd(&self) -> Result<()> {
        let etcd = self.processes()?.etcd.take();
        end(etcd).await
    }

    /// Starts etcd with the same data, and waits until it is ready.
    pub async fn start_etcd(&self) -> Result<()> {
        let layout = self.layout()?;
        {
            let mut processes = self.processes()?;
            if processes.etcd.is_none() {
                processes.etcd = Some(layout.etcd()?);
            }
        }
        self.wait_for_health("etcd", &format!("http://127.0.0.1:{}/health", layout.ports.etcd)).await
    }

    /// Writes a kubeconfig (0600) that signs in as a ServiceAccount, and beside it, as `PATH.token`, the token, which
    /// clients read again now and then, as in a pod. Returns the token's path, to be overwritten with a newer one.
    pub fn service_account_kubeconfig(
        &self,
        namespace: &str,
        service_account: &str,
        token: &str,
        path: &Path,
    ) -> Result<PathBuf> {
        let path = std::path::absolute(path)?;
        let mut token_file = path.clone().into_os_string();
        token_file.push(".token");
        let token_file = PathBuf::from(token_file);
        pki::write_private(&token_file, token)?;
        let user = json!({"tokenFile": token_file});
        pki::write_kubeconfig(&path, &self.server_url, &self.ca_pem, &user, namespace)
            .with_context(|| format!("the kubeconfig of {namespace}/{service_account}"))?;
        Ok(token_file)
    }

    /// Writes a kubeconfig (0600) that signs in as the kubelet of a node.
    pub(crate) fn kubelet_kubeconfig(&self, node: &str, path: &Path) -> Result<()> {
        let identity = self.own()?.authority.client(&format!("system:node:{node}"), Some("system:nodes"))?;
        let user = pki::certificate_user(&identity);
        pki::write_kubeconfig(path, &self.server_url, &self.ca_pem, &user, "default")
    }

    /// Ends the cluster and removes its folder, unless that is to be kept.
    pub async fn stop(mut self) -> Result<()> {
        let mut keep = false;
        if let Some(own) = self.own.take() {
            let processes = std::mem::take(&mut *own.lock());
            for process in processes.in_order_of_end() {
                end(Some(process)).await?;
            }
            keep = own.layout.options.keep;
        }
        let cleaned_up = if keep {
            // A folder without a lock is never swept away.
            std::fs::remove_file(self.dir.join("lock"))
        } else {
            std::fs::remove_dir_all(&self.dir)
        };
        cleaned_up.with_context(|| format!("cannot clean up {}", self.dir.display()))
    }

    fn own(&self) -> Result<&Own> {
        self.own.as_ref().ok_or_else(|| {
            anyhow!(
                "{} is a cluster that was there before; its processes are not ours to start or stop",
                self.server_url
            )
        })
    }

    fn layout(&self) -> Result<&Layout> {
        Ok(&self.own()?.layout)
    }

    fn processes(&self) -> Result<MutexGuard<'_, Processes>> {
        Ok(self.own()?.lock())
    }

    /// Polls until `check` says true, as long as none of our processes has ended.
    async fn wait_for(&self, what: &str, check: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let _progress = Progress::new(format!("waiting for {what}"));
        let began = Instant::now();
        loop {
            // A server that hangs must not keep us longer than one that refuses.
            let failure = match tokio::time::timeout(Duration::from_secs(10), check()).await {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => anyhow!("not yet so"),
                Ok(Err(error)) => error,
                Err(_) => anyhow!("no answer"),
            };
            self.processes()?.check_running()?;
            if began.elapsed() > READY_TIMEOUT {
                let seconds = READY_TIMEOUT.as_secs();
                return Err(failure
                    .context(format!("waited {seconds} s for {what}; logs: {}/log", self.dir.display())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn wait_for_health(&self, name: &str, url: &str) -> Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        self.wait_for(&format!("{name} to be ready"), async || {
            client.get(url).send().await?.error_for_status()?;
            Ok(true)
        })
        .await
    }
}

impl Own {
    fn lock(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(own) = self.own.take() else { return };
        let processes = std::mem::take(&mut *own.lock());
        for process in processes.in_order_of_end() {
            process.kill_blocking();
        }
        if !own.layout.options.keep {
            let _ = std::fs::remove_dir_all(self.dir.join("etcd"));
        }
        eprintln!(
            "spotpool: a test cluster was not stopped in order; its logs are in {}/log",
            self.dir.display()
        );
    }
}

/// SIGKILL: nothing of a throw-away cluster is worth the seconds that an orderly end takes.
async fn end(process: Option<Supervised>) -> Result<()> {
    if let Some(process) = process {
        process.kill()?;
        process.wait().await;
    }
    Ok(())
}

fn read_kubeconfig(path: &Path) -> Result<Kubeconfig> {
    Kubeconfig::read_from(path).with_context(|| format!("cannot use the kubeconfig {}", path.display()))
}

/// Removes the folders of clusters whose process is gone, but for the newest.
fn remove_old_folders(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    let mut folders: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    folders.sort();
    let old = folders.len().saturating_sub(KEPT_FOLDERS);
    for (_, folder) in folders.drain(..old) {
        // Another user's cannot be opened, and a running cluster's is locked. A folder without a lock was to be
        // kept, or is just being made.
        if File::open(folder.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}
