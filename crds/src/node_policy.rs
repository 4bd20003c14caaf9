//! What an agent needs to know of the SpotPool that its node belongs to.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::duration::Duration;
use crate::skew::known_or;
use crate::spot_pool::{BlockedByPdb, Drain, EventResponse, Events, Mode};

// Words of a newer operator: each stands for what is done where nothing is said, and the rest of the policy holds.
fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
    known_or(deserializer, Mode::default())
}
fn blocked_by_pdb<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BlockedByPdb, D::Error> {
    known_or(deserializer, BlockedByPdb::default())
}
fn events<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Events, D::Error> {
    let mut said = Map::<String, Value>::deserialize(deserializer)?;
    let is_known = |text: &str| text.parse::<EventResponse>().is_ok() || text.parse::<Duration>().is_ok();
    said.retain(|_, value| value.as_str().is_none_or(is_known));
    serde_json::from_value(Value::Object(said)).map_err(serde::de::Error::custom)
}

/// Value of annotation `spotpool.dev/policy`. The operator writes it when its content changes; where it
/// is absent or unreadable the agent's flags hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePolicy {
    /// Name of the SpotPool.
    pub pool: String,
    /// Its namespace.
    pub namespace: String,
    /// Its mode. The agent handles a Preempt in both.
    #[serde(deserialize_with = "mode")]
    pub mode: Mode,
    /// How to drain.
    pub drain: DrainPolicy,
    /// What to do about Azure's events.
    #[serde(default, deserialize_with = "events")]
    pub events: Events,
    /// Hash of the rest, for a quick comparison.
    pub hash: String,
}

/// How an agent drains its node under a notice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainPolicy {
    /// What becomes of pods that a disruption budget holds.
    #[serde(deserialize_with = "blocked_by_pdb")]
    pub blocked_by_pdb: BlockedByPdb,
    /// How long after the notice a blocked pod is deleted.
    pub escalate_after: Duration,
    /// Time kept free before the deadline.
    pub reserve: Duration,
}

impl NodePolicy {
    /// The policy of a SpotPool for its nodes.
    pub fn new(pool: &str, namespace: &str, mode: Mode, drain: &Drain, events: &Events) -> Self {
        let drain = DrainPolicy::from(drain);
        // FNV-1a: the same in every build, unlike the standard library's hasher.
        let text = format!("{pool}\n{namespace}\n{mode:?}\n{drain:?}\n{events:?}");
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self {
            pool: pool.into(),
            namespace: namespace.into(),
            mode,
            drain,
            events: events.clone(),
            hash: format!("{hash:016x}"),
        }
    }
}

impl From<&Drain> for DrainPolicy {
    fn from(drain: &Drain) -> Self {
        Self {
            blocked_by_pdb: drain.blocked_by_pdb,
            escalate_after: drain.escalate_after,
            reserve: drain.reserve,
        }
    }
}
