//! The VMs behind the nodes, as the Compute resource provider sees them: are they there, do they run.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use url::Url;

use crate::error::{AzureError, Class};
use crate::http::Transport;
use crate::wire::{WriteGate, not_understood, request, understand};

/// A GA version that all clouds have; `simulateEviction` is there since 2020-06-01.
/// <https://learn.microsoft.com/rest/api/compute/virtual-machine-scale-set-vms>
const API_VERSION: &str = "2024-07-01";
/// A scale set holds 1,000 VMs, a page about a hundred.
const MOST_PAGES: usize = 50;

/// VMs of the cluster's node resource group.
pub trait Instances: Send + Sync {
    /// One VM; none where Azure says that it is gone.
    fn instance<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<Option<Instance>, AzureError>>;

    /// Every VM of the scale set that `member` is or was in; none where that is gone.
    fn scale_set_of<'a>(&'a self, member: &'a VmId) -> BoxFuture<'a, Result<Vec<Instance>, AzureError>>;

    /// Has Azure start a VM that is stopped or deallocated. Accepted is not started: how it goes, its power state tells.
    fn start<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<(), AzureError>>;

    /// Has Azure evict a spot VM for practice: notice, 30 s, eviction.
    fn simulate_eviction<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<(), AzureError>>;
}

/// Which VM: a member of a scale set, or one by itself as agent pools of type `VirtualMachines` have them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId {
    subscription: String,
    resource_group: String,
    scale_set: Option<String>,
    /// Name, or instance id in the scale set.
    vm: String,
}

impl VmId {
    /// The scale set's name, if it is in one.
    pub fn scale_set(&self) -> Option<&str> {
        self.scale_set.as_deref()
    }

    /// The VM's name, or its id in its scale set.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    fn scale_set_path(&self) -> Option<Vec<&str>> {
        Some(self.path("virtualMachineScaleSets", self.scale_set.as_deref()?))
    }

    fn vm_path(&self) -> Vec<&str> {
        match self.scale_set_path() {
            Some(mut path) => {
                path.extend(["virtualMachines", &self.vm]);
                path
            }
            None => self.path("virtualMachines", &self.vm),
        }
    }

    fn path<'a>(&'a self, kind: &'a str, name: &'a str) -> Vec<&'a str> {
        let group = &self.resource_group;
        vec![
            "subscriptions",
            &self.subscription,
            "resourceGroups",
            group,
            "providers",
            "Microsoft.Compute",
            kind,
            name,
        ]
    }
}

/// Reads a Node's `spec.providerID` (`azure:///subscriptions/…`) or a resource id (`/subscriptions/…`).
impl FromStr for VmId {
    type Err = AzureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            let shown: String = text.chars().take(200).collect();
            AzureError::new(Class::Invalid, "InvalidName", format!("`{shown}` is no id of a VM"))
        };
        let path = text.strip_prefix("azure://").unwrap_or(text).strip_prefix('/').ok_or_else(wrong)?;
        let parts: Vec<&str> = path.split('/').collect();
        let plain = |part: &&str| {
            !part.is_empty()
                && part.len() <= 90
                && !part.chars().all(|letter| letter == '.')
                && part.chars().all(|letter| letter.is_alphanumeric() || "-_.()".contains(letter))
        };
        // Azure's paths are without case, and each component spells them its own way.
        let is =
            |index: usize, word: &str| parts.get(index).is_some_and(|part| part.eq_ignore_ascii_case(word));
        let compute = is(0, "subscriptions")
            && is(2, "resourceGroups")
            && is(4, "providers")
            && is(5, "Microsoft.Compute")
            && parts.iter().all(plain);
        let member = parts.len() == 10 && is(6, "virtualMachineScaleSets") && is(8, "virtualMachines");
        let single = parts.len() == 8 && is(6, "virtualMachines");
        if !compute || !(member || single) {
            return Err(wrong());
        }
        Ok(Self {
            subscription: parts[1].to_owned(),
            resource_group: parts[3].to_owned(),
            scale_set: member.then(|| parts[7].to_owned()),
            vm: parts[parts.len() - 1].to_owned(),
        })
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scale_set {
            Some(scale_set) => write!(f, "{scale_set}_{}", self.vm),
            None => f.write_str(&self.vm),
        }
    }
}

/// Whether a VM runs.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, strum::Display, strum::EnumString, strum::IntoStaticStr,
)]
#[strum(ascii_case_insensitive)]
pub enum PowerState {
    /// Coming up.
    Starting,
    /// Running.
    Running,
    /// Going down; still billed.
    Stopping,
    /// Down; still billed.
    Stopped,
    /// Going down and off its host.
    Deallocating,
    /// Off its host, not billed: what an eviction under `Deallocate` leaves.
    Deallocated,
    /// Azure does not say: while a VM is made or deleted, for instance.
    Unknown,
}

impl PowerState {
    /// Whether the VM is off its host or going: nothing runs on it any more.
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Deallocating | Self::Deallocated)
    }
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its name in Azure.
    pub name: String,
    /// Its id in its scale set.
    pub instance_id: Option<String>,
    /// Whether it runs.
    pub power: PowerState,
    /// `Succeeded`, `Creating`, `Updating`, `Deleting`, `Failed`, …
    pub provisioning_state: String,
    /// Availability zones.
    pub zones: Vec<String>,
}

/// Instances by ARM.
pub struct ComputeInstances {
    transport: Arc<dyn Transport>,
    endpoint: Url,
    may_write: WriteGate,
}

impl ComputeInstances {
    /// `transport` has to sign for ARM at `endpoint`.
    pub fn new(
        transport: Arc<dyn Transport>,
        endpoint: Url,
        may_write: WriteGate,
    ) -> Result<Self, AzureError> {
        if endpoint.cannot_be_a_base() {
            return Err(AzureError::new(
                Class::Invalid,
                "InvalidRequest",
                "the Azure endpoint is no http(s) URL",
            ));
        }
        Ok(Self { transport, endpoint, may_write })
    }

    fn url(&self, path: &[&str], with_view: bool) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if with_view {
            url.query_pairs_mut().append_pair("$expand", "instanceView");
        }
        url.query_pairs_mut().append_pair("api-version", API_VERSION);
        url
    }

    async fn get(&self, url: &Url) -> Result<Option<Response<Bytes>>, AzureError> {
        let answer = self.transport.execute(request(Method::GET, url)?).await?;
        match answer.status() {
            status if status.is_success() => Ok(Some(answer)),
            StatusCode::NOT_FOUND => {
                let error = AzureError::from_response(&answer);
                if is_gone(&error.code) { Ok(None) } else { Err(error) }
            }
            _ => Err(AzureError::from_response(&answer)),
        }
    }

    /// Asks for something to be done with a VM.
    async fn post(&self, vm: &VmId, what: &str) -> Result<(), AzureError> {
        let mut path = vm.vm_path();
        path.push(what);
        let request = request(Method::POST, &self.url(&path, false))?;
        if !(self.may_write)() {
            return Err(AzureError::new(Class::Conflict, "NotLeader", "the leader lease is lost"));
        }
        let answer = self.transport.execute(request).await?;
        if answer.status().is_success() { Ok(()) } else { Err(AzureError::from_response(&answer)) }
    }

    fn link(&self, link: &str) -> Result<Url, AzureError> {
        Url::parse(link)
            .ok()
            .filter(|url| url.origin() == self.endpoint.origin())
            .ok_or_else(|| not_understood("the next page of VMs is on another host"))
    }
}

impl Instances for ComputeInstances {
    fn instance<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<Option<Instance>, AzureError>> {
        async move {
            let Some(answer) = self.get(&self.url(&vm.vm_path(), true)).await? else { return Ok(None) };
            Ok(Some(understand::<Vm>(answer.body())?.into()))
        }
        .boxed()
    }

    fn scale_set_of<'a>(&'a self, member: &'a VmId) -> BoxFuture<'a, Result<Vec<Instance>, AzureError>> {
        async move {
            let Some(mut path) = member.scale_set_path() else {
                return Ok(self.instance(member).await?.into_iter().collect());
            };
            path.push("virtualMachines");
            let mut instances = Vec::new();
            let mut next = Some(self.url(&path, true));
            for _ in 0..MOST_PAGES {
                let Some(url) = next else { return Ok(instances) };
                let Some(answer) = self.get(&url).await? else { return Ok(Vec::new()) };
                let page: Page = understand(answer.body())?;
                instances.extend(page.value.into_iter().map(Instance::from));
                next = page
                    .next_link
                    .filter(|link| !link.is_empty())
                    .map(|link| self.link(&link))
                    .transpose()?;
            }
            Err(not_understood("the list of VMs does not end"))
        }
        .boxed()
    }

    fn start<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<(), AzureError>> {
        self.post(vm, "start").boxed()
    }

    fn simulate_eviction<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<(), AzureError>> {
        self.post(vm, "simulateEviction").boxed()
    }
}

/// Whether a 404 says that the VM or its scale set is gone. A node that is taken for gone loses its pods: a 404
/// of a proxy, or about another thing than the VM, is no such word.
fn is_gone(code: &str) -> bool {
    code.ends_with("NotFound") && !["ResourceGroupNotFound", "SubscriptionNotFound"].contains(&code)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    value: Vec<Vm>,
    next_link: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vm {
    #[serde(default)]
    name: String,
    instance_id: Option<String>,
    zones: Option<Vec<String>>,
    #[serde(default)]
    properties: Properties,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Properties {
    provisioning_state: Option<String>,
    /// Null while a VM is deleted.
    instance_view: Option<InstanceView>,
}

#[derive(Deserialize)]
struct InstanceView {
    statuses: Option<Vec<Status>>,
}

#[derive(Deserialize)]
struct Status {
    code: Option<String>,
}

impl From<Vm> for Instance {
    fn from(vm: Vm) -> Self {
        let statuses = vm.properties.instance_view.and_then(|view| view.statuses).unwrap_or_default();
        let power = statuses.iter().filter_map(|status| status.code.as_deref()?.strip_prefix("PowerState/"));
        Self {
            name: vm.name,
            instance_id: vm.instance_id,
            power: power.filter_map(|state| state.parse().ok()).next_back().unwrap_or(PowerState::Unknown),
            provisioning_state: vm.properties.provisioning_state.unwrap_or_default(),
            zones: vm.zones.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
