//! Nodes that run containers: a kubelet and a containerd each, on a machine of their own as far as they can see.
//!
//! A node is a set of namespaces (processes, mounts, network, name). Its first process is supervised like every other
//! here; when that ends, however this process ended, the kernel ends all processes and mounts of the node. What it
//! cannot end so, the bridge and control groups, bears this process's id, and the next start removes what is left
//! of processes that are gone.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cluster::Cluster;
use crate::supervise::{Program, Supervised, output};
use crate::tools::Tools;

const INIT: &str = include_str!("../nodes/init.sh");
/// Debian's packages that have what is needed and is not ours to build.
const PACKAGES: &str =
    "apt-get install --no-install-recommends containerd runc containernetworking-plugins iptables iproute2";
const PROGRAMS: [&str; 8] = ["containerd", "ctr", "runc", "iptables", "ip", "nsenter", "unshare", "mount"];
const CNI_PLUGINS: &str = "/usr/lib/cni";
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";
const PREFIX: &str = "spotpool";
/// The image of what holds a pod's namespaces: an image like any other, to be given to the nodes by this name.
pub const PAUSE_IMAGE: &str = "localhost/pause:test";

const READY_TIMEOUT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);

/// A bridge between this machine and its nodes. One at a time in a process.
#[derive(Debug)]
pub struct Network {
    bridge: String,
    /// The address of this machine there; those of nodes are behind it.
    address: Ipv4Addr,
}

impl Network {
    /// What keeps real nodes from running on this machine, in a sentence; nothing where they can.
    pub fn missing() -> Option<String> {
        if fs::metadata("/proc/self").is_ok_and(|process| process.uid() != 0) {
            return Some("real nodes need root, for namespaces and containers".to_owned());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
        let lacking = PROGRAMS.into_iter().find(|name| !found(name)).map(str::to_owned);
        let plugins = Path::new(CNI_PLUGINS).join("bridge");
        let lacking = lacking.or_else(|| (!plugins.is_file()).then(|| plugins.display().to_string()))?;
        Some(format!("real nodes need {lacking} ({PACKAGES})"))
    }

    /// Makes the bridge, after removing what runs that are over have left behind.
    pub fn up() -> Result<Self> {
        if let Some(missing) = Self::missing() {
            bail!(missing);
        }
        remove_leftovers();
        let bridge = format!("{PREFIX}{}", std::process::id());
        let taken = ip(&["-oneline", "-4", "address"])?;
        let is_free = |third: &u8| !taken.contains(&format!(" 10.200.{third}."));
        let third = (0..=255).find(is_free).context("all networks of 10.200.0.0/16 are taken")?;
        let network = Self { bridge, address: Ipv4Addr::new(10, 200, third, 1) };
        let name = network.bridge.as_str();
        ip(&["link", "add", name, "type", "bridge"])?;
        ip(&["address", "add", &format!("{}/24", network.address), "dev", name])?;
        ip(&["link", "set", name, "up"])?;
        Ok(network)
    }

    /// The address of this machine that nodes can reach: for the API server and whoever else is to be reached.
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    fn of_node(&self, number: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.address.octets();
        Ipv4Addr::new(a, b, c, 10 + number)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = ip(&["link", "delete", &self.bridge]);
    }
}

/// How a node is to be.
#[derive(Debug, Clone)]
pub struct RealNodeOptions {
    /// Its name. A Node of this name that is there already is kept as it is, but for what a kubelet reports.
    pub name: String,
    /// 1 to 200, another for each node of a network.
    pub number: u8,
    /// OCI archives of all images that its pods may ask for, [`PAUSE_IMAGE`] among them: there is no registry.
    pub images: Vec<PathBuf>,
    /// Who answers at 169.254.169.254, port 80, for this node and its pods.
    pub metadata: SocketAddr,
}

/// A node with a kubelet of its own. It ends at once when it is dropped, as a VM does that is taken away.
#[derive(Debug)]
pub struct RealNode {
    name: String,
    control_group: String,
    kubelet: Supervised,
    containerd: Supervised,
    /// Last, so that it is dropped last.
    init: Supervised,
}

impl RealNode {
    /// Starts a node and waits until its kubelet is at work. Whether the Node is Ready is for the API server to say.
    pub async fn start(cluster: &Cluster, network: &Network, options: RealNodeOptions) -> Result<Self> {
        let kubelet = Tools::kubelet().await?;
        let RealNodeOptions { name, number, images, metadata } = options;
        let dir = cluster.dir().join(&name);
        fs::create_dir_all(&dir)?;
        let log = |program: &str| cluster.dir().join(format!("log/{program}-{name}.log"));
        let address = network.of_node(number);
        let pods = format!("10.201.{number}.0/24");

        let api = cluster.server_url().trim_start_matches("https://");
        let init = Program::new(format!("node {name}"), "unshare")
            .args(["--fork", "--kill-child", "--pid", "--mount-proc", "--mount", "--net", "--uts", "--ipc"])
            .args(["--propagation", "private", "/bin/sh", "-c", INIT, "init"])
            .arg(&dir)
            .args([&address.to_string(), &network.address.to_string(), api, &metadata.to_string(), &pods])
            .log(log("init"))
            .spawn()?;
        let process = wait("the first process of a node", &[&init], || Ok(child_of(init.id()))).await?;
        let link = format!("{}n{number}", std::process::id());
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &process.to_string()])?;
        ip(&["link", "set", &link, "master", &network.bridge, "up"])?;
        let is_up = dir.join("is-up");
        wait("the network of a node", &[&init], || Ok(is_up.exists().then_some(()))).await?;

        let inside = |program: &str, path: &Path| {
            Program::new(format!("{program} of {name}"), "nsenter")
                .arg(format!("--target={process}"))
                .args(["--pid", "--mount", "--net", "--uts", "--ipc"])
                .arg(path)
                .dir(&dir)
                .log(log(program))
        };
        let (config, socket) = write_containerd_config(&dir, &pods)?;
        let containerd = inside("containerd", Path::new("containerd")).arg("--config").arg(config).spawn()?;
        wait("containerd", &[&init, &containerd], || Ok(ctr(&socket, &["version"]).ok())).await?;
        for image in images {
            ctr(&socket, &["images", "import", &image.display().to_string()])
                .with_context(|| format!("cannot import {}", image.display()))?;
        }

        let control_group = format!("{PREFIX}{}n{number}", std::process::id());
        make_control_group(&control_group)?;
        let config = write_kubelet_config(&dir, cluster, address, &socket, &control_group)?;
        let kubeconfig = dir.join("kubelet.kubeconfig");
        cluster.kubelet_kubeconfig(&name, &kubeconfig)?;
        let kubelet = inside("kubelet", &kubelet)
            .arg(format!("--config={}", config.display()))
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--root-dir={}", dir.join("kubelet").display()))
            .arg(format!("--cert-dir={}", dir.join("kubelet-pki").display()))
            .args([format!("--hostname-override={name}"), format!("--node-ip={address}")])
            .spawn()?;
        let node = Self { name, control_group, kubelet, containerd, init };
        let health = format!("http://{address}:10248/healthz");
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let began = Instant::now();
        while http.get(&health).send().await.and_then(reqwest::Response::error_for_status).is_err() {
            node.check_running()?;
            if began.elapsed() > READY_TIMEOUT {
                bail!("waited in vain for the kubelet{}", node.kubelet.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(node)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The control group that all of its containers are in; a part of the path of each.
    pub fn control_group(&self) -> &str {
        &self.control_group
    }

    /// An error with the end of a log if one of its programs has ended.
    pub fn check_running(&self) -> Result<()> {
        [&self.init, &self.containerd, &self.kubelet].into_iter().try_for_each(Supervised::check_running)
    }
}

impl Drop for RealNode {
    fn drop(&mut self) {
        for program in [&self.init, &self.kubelet, &self.containerd] {
            program.kill_blocking();
        }
        // Its processes are as good as gone; the kernel needs a moment to take them out of their groups.
        let began = Instant::now();
        while !remove_control_group(&self.control_group) && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(POLL);
        }
    }
}

async fn wait<T>(
    what: &str,
    needed: &[&Supervised],
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        needed.iter().try_for_each(|program| program.check_running())?;
        if began.elapsed() > READY_TIMEOUT {
            let tail = needed.last().map(|program| program.log_tail()).unwrap_or_default();
            bail!("waited {} s in vain for {what}{tail}", READY_TIMEOUT.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn ip(args: &[&str]) -> Result<String> {
    output(Command::new("ip").args(args)).with_context(|| format!("ip {}", args.join(" ")))
}

fn ctr(socket: &Path, args: &[&str]) -> Result<String> {
    let mut ctr = Command::new("ctr");
    output(ctr.arg("--address").arg(socket).args(["--namespace", "k8s.io"]).args(args))
}

/// The only child of a process, if it has one by now.
fn child_of(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Returns the configuration and the socket.
fn write_containerd_config(dir: &Path, pods: &str) -> Result<(PathBuf, PathBuf)> {
    let (cni, socket, config) = (dir.join("cni"), dir.join("containerd.sock"), dir.join("containerd.toml"));
    fs::create_dir_all(&cni)?;
    let network = json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {
            "type": "host-local", "dataDir": dir.join("ipam"), "ranges": [[{"subnet": pods}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    fs::write(cni.join("10-pods.conflist"), network.to_string())?;
    // Where nobody may lower oom_score_adj, as in many a sandbox, runc fails without `restrict_oom_score_adj`.
    let text = format!(
        r#"version = 2
root = "{dir}/containerd"
state = "/run/containerd"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#,
        dir = dir.display(),
        socket = socket.display(),
        cni = cni.display(),
    );
    fs::write(&config, text)?;
    Ok((config, socket))
}

fn write_kubelet_config(
    dir: &Path,
    cluster: &Cluster,
    address: Ipv4Addr,
    socket: &Path,
    control_group: &str,
) -> Result<PathBuf> {
    let resolver = dir.join("resolv.conf");
    fs::write(&resolver, "options attempts:1 timeout:1\n")?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "healthzBindAddress": address,
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": cluster.dir().join("pki/ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{control_group}"),
        "enforceNodeAllocatable": ["pods"],
        // Still what this machine has; later releases refuse it by default.
        "failCgroupV1": false,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "resolvConf": resolver,
        "podLogsDir": dir.join("pod-logs"),
        "volumePluginDir": dir.join("volume-plugins"),
        "nodeStatusUpdateFrequency": "5s",
        "nodeLeaseDurationSeconds": 20,
        // The disk is this machine's, and what else is on it no concern of ours.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    });
    let path = dir.join("kubelet.json");
    fs::write(&path, config.to_string())?;
    Ok(path)
}

/// The folders that control groups are made in: one, or one for each controller.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(CONTROL_GROUPS);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let folders = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    folders.filter(|folder| folder.is_dir()).collect()
}

fn make_control_group(name: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let group = hierarchy.join(name);
        fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        // The first version's sets of processors begin empty, and hold no process then.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if hierarchy.join(file).exists() {
                fs::write(group.join(file), fs::read(hierarchy.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Whether nothing of it is left.
fn remove_control_group(name: &str) -> bool {
    hierarchies().iter().filter(|hierarchy| !remove_groups(&hierarchy.join(name))).count() == 0
}

/// Groups are folders that hold files which cannot be removed: only from the leaves, one by one.
fn remove_groups(group: &Path) -> bool {
    let below = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    for folder in below.filter(|path| path.is_dir()) {
        remove_groups(&folder);
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}

/// The process whose id a name begins with, behind our prefix.
fn owner(name: &str) -> Option<u32> {
    let id: String = name.strip_prefix(PREFIX)?.chars().take_while(char::is_ascii_digit).collect();
    id.parse().ok()
}

/// Removes bridges and control groups of processes that are gone.
fn remove_leftovers() {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let is_left = |name: &String| owner(name).is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists());
    for bridge in names(Path::new("/sys/class/net")).into_iter().filter(is_left) {
        let _ = ip(&["link", "delete", &bridge]);
    }
    for hierarchy in hierarchies() {
        for group in names(&hierarchy).into_iter().filter(is_left) {
            remove_groups(&hierarchy.join(group));
        }
    }
}
