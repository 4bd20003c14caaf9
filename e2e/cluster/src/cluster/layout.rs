//! Where a cluster's files and ports are, and how each of its programs is started.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::{ClusterOptions, LOOPBACK};
use crate::kwok;
use crate::pki::{self, Authority};
use crate::ports;
use crate::supervise::{Program, Supervised};
use crate::tools::Tools;

const SERVICE_NETWORK: &str = "10.96.0.0/16";
const FIRST_SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));

#[derive(Debug)]
pub(super) struct Layout {
    pub(super) options: ClusterOptions,
    pub(super) tools: Tools,
    pub(super) ports: Ports,
    pub(super) dir: PathBuf,
    pub(super) server_url: String,
}

impl Layout {
    pub(super) fn pki(&self, file: &str) -> String {
        self.dir.join("pki").join(file).display().to_string()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{user}.kubeconfig"))
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    fn program(&self, name: &str, path: &Path) -> Program {
        Program::new(name, path).dir(&self.dir).log(self.log(name))
    }

    pub(super) fn etcd(&self) -> Result<Supervised> {
        let client = format!("http://127.0.0.1:{}", self.ports.etcd);
        let peer = format!("http://127.0.0.1:{}", self.ports.etcd_peer);
        self.program("etcd", &self.tools.etcd)
            .arg("--name=n0")
            .arg(format!("--data-dir={}", self.file("etcd").display()))
            .args(["--unsafe-no-fsync", "--log-level=warn"])
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=n0={peer}"))
            .spawn()
    }

    pub(super) fn apiserver(&self) -> Result<Supervised> {
        let mut program = self
            .program("kube-apiserver", &self.tools.apiserver)
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd))
            .arg(format!("--bind-address={}", self.options.bind_address))
            .arg(format!("--secure-port={}", self.ports.apiserver))
            // A loopback address may not be an endpoint.
            .arg("--endpoint-reconciler-type=none")
            .arg(format!("--tls-cert-file={}", self.pki("apiserver.crt")))
            .arg(format!("--tls-private-key-file={}", self.pki("apiserver.key")))
            .arg(format!("--client-ca-file={}", self.pki("ca.crt")))
            .arg(format!("--kubelet-client-certificate={}", self.pki("kubelet-client.crt")))
            .arg(format!("--kubelet-client-key={}", self.pki("kubelet-client.key")))
            .arg("--kubelet-preferred-address-types=InternalIP")
            // Nobody uses these, but without them the others log an error several times a second.
            .arg(format!("--requestheader-client-ca-file={}", self.pki("ca.crt")))
            .args([
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                "--service-account-issuer=https://kubernetes.default.svc",
            ])
            .arg(format!("--service-account-key-file={}", self.pki("sa.pub")))
            .arg(format!("--service-account-signing-key-file={}", self.pki("sa.key")))
            .arg(format!("--service-cluster-ip-range={SERVICE_NETWORK}"))
            .args([
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
            ]);
        if self.options.audit_log {
            program = program
                .arg(format!("--audit-policy-file={}", self.file("audit-policy.yaml").display()))
                .arg(format!("--audit-log-path={}", self.audit_log().display()))
                // In megabytes; by default the file is moved away at 100, and counts would be wrong.
                .args(["--audit-log-format=json", "--audit-log-maxsize=1000000"]);
        }
        program.args(&self.options.apiserver_args).spawn()
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.dir.join("log/audit.jsonl")
    }

    pub(super) fn controller_manager(&self) -> Result<Supervised> {
        self.with_kubeconfig("kube-controller-manager", &self.tools.controller_manager)
            .arg(format!("--secure-port={}", self.ports.controller_manager))
            .arg("--use-service-account-credentials=true")
            .arg(format!("--service-account-private-key-file={}", self.pki("sa.key")))
            .arg(format!("--root-ca-file={}", self.pki("ca.crt")))
            .arg(format!("--cluster-signing-cert-file={}", self.pki("ca.crt")))
            .arg(format!("--cluster-signing-key-file={}", self.pki("ca.key")))
            // By default 600 pods take half a minute, and the first ServiceAccount five seconds.
            .args(["--kube-api-qps=300", "--kube-api-burst=600"])
            .args(&self.options.controller_manager_args)
            .spawn()
    }

    pub(super) fn scheduler(&self) -> Result<Supervised> {
        self.with_kubeconfig("kube-scheduler", &self.tools.scheduler)
            .arg(format!("--secure-port={}", self.ports.scheduler))
            .args(["--kube-api-qps=500", "--kube-api-burst=1000"])
            .args(&self.options.scheduler_args)
            .spawn()
    }

    fn with_kubeconfig(&self, name: &str, path: &Path) -> Program {
        let kubeconfig = self.kubeconfig(name).display().to_string();
        self.program(name, path)
            .arg(format!("--kubeconfig={kubeconfig}"))
            .arg(format!("--authentication-kubeconfig={kubeconfig}"))
            .arg(format!("--authorization-kubeconfig={kubeconfig}"))
            .args(["--bind-address=127.0.0.1", "--leader-elect=false"])
    }

    pub(super) fn kwok(&self) -> Result<Supervised> {
        let (key, value) = kwok::NODE_LABEL;
        self.program("kwok", &self.tools.kwok)
            .env("KWOK_WORKDIR", self.file("kwok"))
            .arg(format!("--kubeconfig={}", self.kubeconfig("admin").display()))
            .arg(format!("--config={}", self.file("kwok-stages.yaml").display()))
            .arg(format!("--manage-nodes-with-label-selector={key}={value}"))
            .arg("--node-lease-duration-seconds=40")
            .arg(format!("--server-address=127.0.0.1:{}", self.ports.kwok))
            .spawn()
    }

    /// Certificates, kubeconfigs and other files that the programs read. Returns the certificate authority.
    pub(super) fn write_files(&self) -> Result<Authority> {
        let pki = self.dir.join("pki");
        for dir in [&pki, &self.dir.join("log"), &self.dir.join("kwok")] {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let authority = Authority::new()?;
        let ca = authority.identity();
        ca.write(&pki, "ca")?;
        let addresses = [LOOPBACK, FIRST_SERVICE, self.options.bind_address];
        authority.server(&addresses)?.write(&pki, "apiserver")?;
        let masters = Some("system:masters");
        authority.client("apiserver-kubelet-client", masters)?.write(&pki, "kubelet-client")?;
        pki::write_token_keys(&pki)?;
        let users = [
            ("admin", "admin", masters),
            ("kube-controller-manager", "system:kube-controller-manager", None),
            ("kube-scheduler", "system:kube-scheduler", None),
        ];
        for (file, name, group) in users {
            let user = pki::certificate_user(&authority.client(name, group)?);
            pki::write_kubeconfig(&self.kubeconfig(file), &self.server_url, &ca.cert, &user, "default")?;
        }
        if self.options.audit_log {
            let policy = json!({
                "apiVersion": "audit.k8s.io/v1",
                "kind": "Policy",
                "omitStages": ["RequestReceived"],
                "rules": [{"level": "Metadata"}],
            });
            pki::write_private(&self.file("audit-policy.yaml"), &policy.to_string())?;
        }
        if self.options.kwok {
            let target = self.file("kwok-stages.yaml");
            kwok::write_stages(&self.tools.kwok_stages, &self.options.kwok_stages, &target)?;
        }
        Ok(authority)
    }

    /// Whether one of our servers ended because somebody else has its port.
    pub(super) fn lost_a_port(&self) -> bool {
        ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"].iter().any(|name| {
            let log = std::fs::read(self.log(name)).unwrap_or_default();
            String::from_utf8_lossy(&log).contains("address already in use")
        })
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) etcd: u16,
    pub(super) etcd_peer: u16,
    pub(super) apiserver: u16,
    pub(super) controller_manager: u16,
    pub(super) scheduler: u16,
    pub(super) kwok: u16,
}

impl Ports {
    pub(super) fn pick(bind: IpAddr) -> Result<Self> {
        let mut held = Vec::new();
        let mut pick = || -> Result<u16> {
            let listener = ports::hold(bind)?;
            let port = listener.local_addr()?.port();
            // Held until all are picked, so that they differ.
            held.push(listener);
            Ok(port)
        };
        Ok(Self {
            etcd: pick()?,
            etcd_peer: pick()?,
            apiserver: pick()?,
            controller_manager: pick()?,
            scheduler: pick()?,
            kwok: pick()?,
        })
    }
}
