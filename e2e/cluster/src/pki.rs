//! The certificates and kubeconfigs of one cluster: EC P-256, valid for as long as the cluster can matter.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

/// A certificate and its key, as PEM.
pub(crate) struct Identity {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Identity {
    /// Writes `NAME.crt` and `NAME.key` (0600) into `dir`.
    pub(crate) fn write(&self, dir: &Path, name: &str) -> Result<()> {
        write_private(&dir.join(format!("{name}.crt")), &self.cert)?;
        write_private(&dir.join(format!("{name}.key")), &self.key)
    }
}

/// The cluster's own certificate authority.
#[derive(Debug)]
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let mut params = subject("spotpool-e2e-ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("generate the CA's key")?;
        Ok(Self(CertifiedIssuer::self_signed(params, key).context("sign the CA's certificate")?))
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity { cert: self.0.pem(), key: self.0.key().serialize_pem() }
    }

    /// A client whose user is `name`, in `group` if one is given.
    pub(crate) fn client(&self, name: &str, group: Option<&str>) -> Result<Identity> {
        let mut params = subject(name, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    /// The API server's certificate.
    pub(crate) fn server(&self, addresses: &[IpAddr]) -> Result<Identity> {
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let names: Vec<String> =
            names.into_iter().map(String::from).chain(addresses.iter().map(IpAddr::to_string)).collect();
        let mut params = subject("kube-apiserver", None);
        params.subject_alt_names = CertificateParams::new(names)
            .context("name the API server in its certificate")?
            .subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    fn issue(&self, mut params: CertificateParams) -> Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let key = KeyPair::generate().context("generate a key")?;
        let cert = params.signed_by(&key, &self.0).context("sign a certificate")?;
        Ok(Identity { cert: cert.pem(), key: key.serialize_pem() })
    }
}

fn subject(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    params
}

/// The key pair that signs ServiceAccount tokens: `sa.key` and `sa.pub`.
pub(crate) fn write_token_keys(dir: &Path) -> Result<()> {
    let key = KeyPair::generate().context("generate the key of ServiceAccount tokens")?;
    write_private(&dir.join("sa.key"), &key.serialize_pem())?;
    write_private(&dir.join("sa.pub"), &key.public_key_pem())
}

/// The `user` of a kubeconfig that signs in with a certificate.
pub(crate) fn certificate_user(identity: &Identity) -> Value {
    json!({
        "client-certificate-data": ByteString(identity.cert.clone().into_bytes()),
        "client-key-data": ByteString(identity.key.clone().into_bytes()),
    })
}

/// Writes a kubeconfig (0600) with one cluster, one user and one context.
pub(crate) fn write_kubeconfig(
    path: &Path,
    server: &str,
    ca_pem: &str,
    user: &Value,
    namespace: &str,
) -> Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "spotpool-e2e", "cluster": {
            "server": server,
            "certificate-authority-data": ByteString(ca_pem.as_bytes().to_vec()),
        }}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "spotpool-e2e", "context": {
            "cluster": "spotpool-e2e", "user": "user", "namespace": namespace,
        }}],
        "current-context": "spotpool-e2e",
    });
    write_private(path, &serde_yaml_ng::to_string(&config).context("write a kubeconfig as YAML")?)
}

/// Writes a file that only its owner may read, also where one with other permissions was before.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let partial = path.with_extension("partial");
        let _ = std::fs::remove_file(&partial);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)?
            .write_all(text.as_bytes())?;
        std::fs::rename(&partial, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
