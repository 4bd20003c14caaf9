//! What Azure says of VMs whose Nodes give no sign of life. Asked only where a Node is suspect: one list of its scale set,
//! seldom, however many of its nodes are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use spotpool_azure::{AzureError, Clock, Instance, Instances, PowerState, VmId};
use spotpool_core::loss::{Signs, VmState, Word};
use spotpool_crds::names;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::node::{conditions, taints};
use crate::watches::{Nodes, Trigger};

/// How often the store is looked at for suspects.
const LOOK: Duration = Duration::from_secs(1);
/// From one list of a scale set to the next, while the same nodes are suspect: doubled each time …
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_mins(2);

/// Azure's word on VMs, by the uid of their Nodes.
pub type Words = BTreeMap<String, Word>;

/// The cache.
pub struct Vms {
    instances: Arc<dyn Instances>,
    nodes: Nodes,
    trigger: Trigger,
    metrics: Metrics,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    words: Words,
    asked: BTreeMap<String, Asked>,
}

/// How a scale set was asked about at last.
struct Asked {
    suspects: BTreeSet<String>,
    at: Instant,
    pause: Duration,
}

/// A Node that is suspect.
struct Suspect {
    uid: String,
    vm: VmId,
}

impl Vms {
    /// An empty cache. [`Self::keep_fresh`] fills it.
    pub fn new(
        instances: Arc<dyn Instances>,
        nodes: Nodes,
        trigger: Trigger,
        metrics: Metrics,
        clock: Clock,
    ) -> Self {
        Self { instances, nodes, trigger, metrics, clock, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now.
    pub fn words(&self) -> Words {
        self.state().words.clone()
    }

    /// Has Azure start the VM of a Node. What was known of it is not true any more.
    pub async fn start(&self, node: &Node) -> Result<(), AzureError> {
        let provider = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref()).unwrap_or_default();
        let vm: VmId = provider.parse()?;
        {
            let mut state = self.state();
            state.words.remove(&node.uid().unwrap_or_default());
            // It is asked about again when it has had the time to come up.
            if let Some(asked) = state.asked.get_mut(&scale_set(&vm)) {
                (asked.at, asked.pause) = (Instant::now(), FIRST_PAUSE * 6);
            }
        }
        let started = self.instances.start(&vm).await;
        self.metrics.azure_write("start", &started);
        started
    }

    /// Has Azure evict a spot VM on purpose.
    pub async fn simulate_eviction(&self, provider_id: &str) -> Result<(), AzureError> {
        let vm: VmId = provider_id.parse()?;
        let asked = self.instances.simulate_eviction(&vm).await;
        self.metrics.azure_write("simulateEviction", &asked);
        asked
    }

    /// Asks Azure about suspects. Ends never.
    pub async fn keep_fresh(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            for (scale_set, suspects) in self.suspects() {
                if self.is_due(&scale_set, &suspects) {
                    self.ask(&scale_set, &suspects).await;
                }
            }
        }
    }

    /// Nodes of SpotPools that are suspect, by scale set. Of all others what was known is forgotten.
    fn suspects(&self) -> BTreeMap<String, Vec<Suspect>> {
        let now = (self.clock)();
        let mut suspects: BTreeMap<String, Vec<Suspect>> = BTreeMap::new();
        for node in self.nodes.all().iter().filter(|node| node.labels().contains_key(names::POOL_LABEL)) {
            if signs(node).suspect_from().is_none_or(|from| from > now) {
                continue;
            }
            let provider = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref());
            let Some(Ok(vm)) = provider.map(str::parse::<VmId>) else { continue };
            let suspect = Suspect { uid: node.uid().unwrap_or_default(), vm };
            suspects.entry(scale_set(&suspect.vm)).or_default().push(suspect);
        }
        let uids: BTreeSet<&String> = suspects.values().flatten().map(|suspect| &suspect.uid).collect();
        let mut state = self.state();
        state.words.retain(|uid, _| uids.contains(uid));
        state.asked.retain(|scale_set, _| suspects.contains_key(scale_set));
        suspects
    }

    fn is_due(&self, scale_set: &str, suspects: &[Suspect]) -> bool {
        let state = self.state();
        let Some(asked) = state.asked.get(scale_set) else { return true };
        let is_new = suspects.iter().any(|suspect| !asked.suspects.contains(&suspect.uid));
        // Nodes that fall silent together are seen one after another.
        asked.at.elapsed() >= if is_new { FIRST_PAUSE } else { asked.pause }
    }

    async fn ask(&self, scale_set: &str, suspects: &[Suspect]) {
        let Some(first) = suspects.first() else { return };
        let asked_at = (self.clock)();
        let answer = self.instances.scale_set_of(&first.vm).await;
        self.metrics.azure_read("instances", &answer);
        let instances = answer.and_then(|instances| self.believed(scale_set, instances));
        let mut state = self.state();
        let uids: BTreeSet<String> = suspects.iter().map(|suspect| suspect.uid.clone()).collect();
        let pause = match state.asked.get(scale_set) {
            Some(asked) if uids.is_subset(&asked.suspects) => (asked.pause * 2).min(LONGEST_PAUSE),
            _ => FIRST_PAUSE,
        };
        let pause = match &instances {
            Ok(_) => pause,
            Err(error) => {
                tracing::warn!(scale_set, %error, "cannot ask Azure whether the VMs of silent nodes run");
                error.retry_after.unwrap_or(pause).max(pause)
            }
        };
        state.asked.insert(scale_set.to_owned(), Asked { suspects: uids, at: Instant::now(), pause });
        let Ok(instances) = instances else { return };
        for suspect in suspects {
            let vm = instances.iter().find(|it| is(it, &suspect.vm));
            let word = Word { state: vm.map_or(VmState::Gone, vm_state), asked: asked_at };
            tracing::info!(vm = %suspect.vm, state = ?word.state, "Azure's word on the VM of a silent node");
            state.words.insert(suspect.uid.clone(), word);
        }
        drop(state);
        self.trigger.fire();
    }

    /// A list that lacks VMs whose Nodes are at work is not of this scale set, or not whole: nobody is dead by it.
    fn believed(&self, scale_set: &str, instances: Vec<Instance>) -> Result<Vec<Instance>, AzureError> {
        let lacks = self.nodes.all().iter().any(|node| {
            let provider = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref());
            let Some(Ok(vm)) = provider.map(str::parse::<VmId>) else { return false };
            let works = signs(node).not_ready_since.is_none();
            works && self::scale_set(&vm) == scale_set && !instances.iter().any(|it| is(it, &vm))
        });
        if !lacks {
            return Ok(instances);
        }
        let message = "the list of VMs lacks some whose Nodes are ready: not believed";
        Err(AzureError::new(spotpool_azure::Class::Transient, "ListNotWhole", message))
    }
}

/// What a Node shows of its VM.
pub fn signs(node: &Node) -> Signs {
    let ready = conditions(node).find(|condition| condition.type_ == "Ready");
    let not_ready = ready.filter(|condition| condition.status != "True");
    Signs {
        not_ready_since: not_ready
            .map(|it| it.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0)),
        shut_down: taints(node).any(|taint| taint.key == names::SHUTDOWN_TAINT),
    }
}

/// The scale set of a VM, or the VM itself where it is in none: what is listed in one request.
fn scale_set(vm: &VmId) -> String {
    vm.scale_set().unwrap_or_else(|| vm.vm()).to_ascii_lowercase()
}

fn is(instance: &Instance, vm: &VmId) -> bool {
    match vm.scale_set() {
        Some(_) => instance.instance_id.as_deref() == Some(vm.vm()),
        None => instance.name.eq_ignore_ascii_case(vm.vm()),
    }
}

fn vm_state(instance: &Instance) -> VmState {
    match instance.power {
        PowerState::Deallocated => VmState::Deallocated,
        PowerState::Stopped | PowerState::Unknown if instance.provisioning_state == "Failed" => {
            VmState::Failed
        }
        _ => VmState::Alive,
    }
}
