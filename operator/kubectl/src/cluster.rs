//! The cluster: what is asked of it, as whom, and what time it is there.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, PatchParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use spotpool_crds::{SpotPool, names};

use crate::Error;
use crate::args::ClusterArgs;
use crate::output::short;

/// Who asks, in the API server's audit log.
const USER_AGENT: &str = concat!("kubectl-spotpool/", env!("CARGO_PKG_VERSION"));
/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the first answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Who writes, on the objects.
pub const FIELD_MANAGER: &str = "kubectl-spotpool";
/// The resource that everything is about.
pub const SPOT_POOLS: &str = "spotpools.spotpool.dev";
/// What the operator's Lease is called.
pub const LEASE: &str = "spotpool-operator";

/// A cluster that answers.
pub struct Cluster {
    /// To ask it.
    pub client: Client,
    /// Its address.
    pub server: String,
    /// The namespace that was asked for, if one was.
    pub only: Option<String>,
    /// Whether all namespaces were asked for.
    pub all: bool,
    /// The namespace of the kubeconfig's context.
    pub usual: String,
    /// How far this machine's clock is behind the API server's, where that said its time.
    pub behind: Option<SignedDuration>,
}

impl Cluster {
    /// Connects, and asks for the time.
    pub async fn connect(args: &ClusterArgs) -> Result<Self, Error> {
        let config = |error: &dyn std::fmt::Display| Error::Config(error.to_string());
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let mut found = match &args.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| config(&error))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| config(&error))?
            }
            None if args.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|error| config(&error))?
            }
            None => Config::infer().await.map_err(|error| config(&error))?,
        };
        found.connect_timeout = Some(CONNECT_TIMEOUT);
        // A person waits: what the server says is told, not tried again.
        found.default_retry = false;
        found.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(USER_AGENT)));
        let (server, usual) = (found.cluster_url.to_string(), found.default_namespace.clone());
        let server = server.trim_end_matches('/').to_owned();
        let client = Client::try_from(found).map_err(|error| config(&error))?;
        let behind = time(&client, &server).await?;
        let (only, all) = (args.namespace.clone(), args.all_namespaces);
        Ok(Self { client, server, only, all, usual, behind })
    }

    /// The time there: what stands on objects is by clocks of the cluster.
    pub fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        self.behind.and_then(|behind| now.checked_add(behind).ok()).unwrap_or(now)
    }

    /// SpotPools that were asked for, by namespace and name, and the namespace that they are of if not of all.
    pub async fn pools(&self) -> Result<(Vec<SpotPool>, Option<String>), Error> {
        let (pools, namespace) = match &self.only {
            Some(namespace) => (self.pools_of(Some(namespace)).await?, Some(namespace.clone())),
            None => match self.pools_of(None).await {
                // Few may read all namespaces.
                Err(error) if error.is_denied() && !self.all => {
                    (self.pools_of(Some(&self.usual)).await?, Some(self.usual.clone()))
                }
                pools => (pools?, None),
            },
        };
        let mut pools = pools;
        pools.sort_by_key(|pool| (pool.namespace(), pool.name_any()));
        Ok((pools, namespace))
    }

    async fn pools_of(&self, namespace: Option<&str>) -> Result<Vec<SpotPool>, Error> {
        let api: Api<SpotPool> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let list = api.list(&ListParams::default()).await;
        Ok(list.map_err(|error| Error::of(error, &self.server, "list", SPOT_POOLS, namespace))?.items)
    }

    /// What is wrong with the operator, if anything is; `pools` are whose operator it should be.
    pub async fn complaint(&self, pools: &[&SpotPool]) -> Option<String> {
        let leases: Api<Lease> = Api::all(self.client.clone());
        let by_name = ListParams::default().fields(&format!("metadata.name={LEASE}"));
        let leases = match leases.list(&by_name).await {
            Ok(leases) => leases.items,
            // Whoever may not see leases is not told about them.
            Err(_) => return None,
        };
        let namespaces: Vec<String> = pools.iter().filter_map(|pool| pool.namespace()).collect();
        complaint(&leases, &namespaces, self.now()).or_else(|| unseen(pools, self.now()))
    }

    /// Ends a command whose answer is of an operator that does not work any more.
    pub async fn check_operator(&self, pools: &[&SpotPool]) -> Result<(), Error> {
        self.needs_operator(
            pools,
            "what is shown is all that is known, and `kubectl spotpool doctor` says more",
        )
        .await
    }

    /// An error if there is no operator at work, with what follows from that.
    pub async fn needs_operator(&self, pools: &[&SpotPool], then: &str) -> Result<(), Error> {
        match self.complaint(pools).await {
            Some(complaint) => Err(Error::NoOperator(format!("{complaint}; {then}"))),
            None => Ok(()),
        }
    }
}

/// How this program writes; a dry run is checked by the API server and changes nothing.
pub fn patch_params(dry_run: bool) -> PatchParams {
    PatchParams { dry_run, field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// How far we are behind the API server, by the date in its answer. That is whole seconds, so less than two is nothing.
async fn time(client: &Client, server: &str) -> Result<Option<SignedDuration>, Error> {
    let unreachable = |why: String| Error::Unreachable { server: server.into(), why };
    let request = http::Request::get("/version").body(Body::empty());
    let request = request.map_err(|error| unreachable(error.to_string()))?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.send(request)).await;
    let answer = answer
        .map_err(|_| unreachable(format!("no answer within {}s", ANSWER_TIMEOUT.as_secs())))?
        .map_err(|error| Error::of(error, server, "get", "version", None))?;
    if answer.status() == http::StatusCode::UNAUTHORIZED {
        return Err(Error::SignedOut(server.into()));
    }
    let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok());
    let behind = date.map(|date| date.duration_since(Timestamp::now()));
    Ok(behind.map(
        |behind| if behind.abs() < SignedDuration::from_secs(2) { SignedDuration::ZERO } else { behind },
    ))
}

/// What is wrong with the operator by its Lease: the one in a SpotPool's own namespace counts, else the newest of all. No
/// Lease at all says nothing: a single replica may run without.
pub fn complaint(leases: &[Lease], namespaces: &[String], now: Timestamp) -> Option<String> {
    let renewed = |lease: &Lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0);
    let own = leases.iter().filter(|lease| lease.namespace().is_some_and(|it| namespaces.contains(&it)));
    let lease = own
        .max_by_key(|lease| renewed(lease))
        .or_else(|| leases.iter().max_by_key(|lease| renewed(lease)))?;
    let spec = lease.spec.clone().unwrap_or_default();
    let name = format!("{}/{}", lease.namespace().unwrap_or_default(), lease.name_any());
    let renewed = renewed(lease)?;
    let age = now.duration_since(renewed).as_secs();
    if spec.holder_identity.unwrap_or_default().is_empty() {
        return (age > 10)
            .then(|| format!("no operator is at work: lease {name} was given back {} ago", short(age)));
    }
    let lasts = i64::from(spec.lease_duration_seconds.unwrap_or(15));
    (age > lasts * 2 + 2)
        .then(|| format!("the operator is silent: lease {name} was last renewed {} ago", short(age)))
}

/// SpotPools that no operator has ever looked at.
fn unseen(pools: &[&SpotPool], now: Timestamp) -> Option<String> {
    let old = |pool: &SpotPool| {
        let made = pool.metadata.creation_timestamp.as_ref().map(|made| made.0);
        made.is_some_and(|made| now.duration_since(made).as_secs() > 60)
    };
    let is_unseen =
        |pool: &SpotPool| pool.status.as_ref().is_none_or(|status| status.observed_generation == 0);
    let pool = pools.iter().find(|pool| is_unseen(pool) && old(pool))?;
    let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
    Some(format!(
        "no operator has ever looked at SpotPool {namespace}/{name}: start one, with {namespace} in its --pool-namespaces"
    ))
}

/// The SpotPool of a name, which may be `namespace/name`.
pub fn find<'a>(pools: &'a [SpotPool], name: &str, usual: &str) -> Result<&'a SpotPool, Error> {
    let (namespace, wanted) = match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, name),
    };
    let fits = |pool: &&SpotPool| {
        pool.name_any() == wanted && namespace.is_none_or(|it| pool.namespace().as_deref() == Some(it))
    };
    let found: Vec<&SpotPool> = pools.iter().filter(fits).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            Err(Error::NotFound(format!("there is no SpotPool {name}{}", hint(wanted, &full_names(pools)))))
        }
        several => {
            several.iter().find(|pool| pool.namespace().as_deref() == Some(usual)).copied().ok_or_else(|| {
                let namespaces: Vec<String> = several.iter().filter_map(|pool| pool.namespace()).collect();
                Error::NotFound(format!(
                    "there is a SpotPool {name} in namespaces {}: say which with -n",
                    namespaces.join(", ")
                ))
            })
        }
    }
}

fn full_names(pools: &[SpotPool]) -> Vec<String> {
    pools.iter().map(|pool| format!("{}/{}", pool.namespace().unwrap_or_default(), pool.name_any())).collect()
}

/// What may have been meant.
pub fn hint(wanted: &str, names: &[String]) -> String {
    let short = |name: &String| name.rsplit('/').next().unwrap_or_default().to_owned();
    let likeness = |name: &String| strsim::jaro_winkler(&short(name), wanted);
    let best = names.iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    match best.filter(|best| likeness(best) > 0.75) {
        Some(best) => format!(": did you mean {best}?"),
        None if names.is_empty() => ": there is none at all here".into(),
        None if names.len() <= 5 => format!(": there are {}", names.join(", ")),
        None => format!(": there are {} others", names.len()),
    }
}

/// The SpotPool that a node is of, by its labels.
pub fn pool_of(node: &impl ResourceExt) -> Option<(String, String)> {
    let label = |key: &str| node.labels().get(key).cloned();
    Some((label(names::POOL_NAMESPACE_LABEL)?, label(names::POOL_LABEL)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pool(namespace: &str, name: &str) -> SpotPool {
        serde_json::from_value(json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"namespace": namespace, "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": 1, "agentPools": []}}))
        .unwrap()
    }

    #[test]
    fn a_name_that_is_not_there_brings_the_one_that_was_meant() {
        let pools = [pool("a", "workers"), pool("b", "workers"), pool("b", "batch")];
        assert_eq!(find(&pools, "batch", "a").unwrap().name_any(), "batch");
        assert_eq!(find(&pools, "b/workers", "a").unwrap().namespace().unwrap(), "b");
        assert_eq!(find(&pools, "workers", "a").unwrap().namespace().unwrap(), "a", "the usual one");
        let said = |name: &str| find(&pools, name, "c").unwrap_err().to_string();
        assert!(said("workers").contains("namespaces a, b: say which"), "{}", said("workers"));
        assert!(said("bacth").ends_with("did you mean b/batch?"), "{}", said("bacth"));
        assert!(said("zzz").contains("there are a/workers, b/workers, b/batch"), "{}", said("zzz"));
        assert!(hint("x", &[]).contains("none at all"));
    }

    #[test]
    fn an_operator_that_is_silent_is_told_of_and_one_that_renews_is_not() {
        let lease = |namespace: &str, holder: &str, renewed: &str| -> Lease {
            serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": LEASE}, "spec": {
                "holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": renewed}}))
            .unwrap()
        };
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let (fresh, old) = ("2026-01-01T00:09:55.000000Z", "2026-01-01T00:00:00.000000Z");
        let said = |leases: &[Lease]| complaint(leases, &["batch".into()], now).unwrap_or_default();
        assert_eq!(said(&[]), "", "it may run without an election");
        assert_eq!(said(&[lease("system", "one", fresh)]), "");
        assert!(
            said(&[lease("system", "one", old)])
                .contains("lease system/spotpool-operator was last renewed 10m ago")
        );
        assert!(said(&[lease("system", "", old)]).contains("was given back 10m ago"));
        let both = [lease("batch", "one", old), lease("system", "one", fresh)];
        assert!(said(&both).contains("batch/"), "its own namespace's operator counts");
    }

    #[test]
    fn a_pool_that_nobody_watches_is_named() {
        let pool = pool("batch", "workers");
        let after = |seconds: &str| unseen(&[&pool], seconds.parse().unwrap());
        assert_eq!(after("2026-01-01T00:00:30Z"), None, "give it a minute");
        assert!(after("2026-01-01T00:02:00Z").unwrap().contains("batch in its --pool-namespaces"));
    }
}
