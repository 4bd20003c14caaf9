//! Which SpotPool an agent pool belongs to when several name it.

use jiff::Timestamp;

/// One SpotPool's claim.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// `namespace/name`.
    pub spot_pool: String,
    /// When it was created: the oldest wins.
    pub created: Option<Timestamp>,
    /// Breaks ties.
    pub uid: &'a str,
    /// The agent pools that it names.
    pub agent_pools: Vec<&'a str>,
}

/// The older SpotPool that has `agent_pool`, if `uid` is not the one.
pub fn claimed_by<'a>(claims: &'a [Claim<'a>], agent_pool: &str, uid: &str) -> Option<&'a str> {
    claims
        .iter()
        .filter(|claim| claim.agent_pools.contains(&agent_pool))
        // One without a creation time is not in the cluster yet: youngest.
        .min_by_key(|claim| (claim.created.unwrap_or(Timestamp::MAX), claim.uid))
        .filter(|claim| claim.uid != uid)
        .map(|claim| claim.spot_pool.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_keeps_it() {
        let claim = |name: &str, second, uid, agent_pools| Claim {
            spot_pool: format!("batch/{name}"),
            created: Some(Timestamp::from_second(second).unwrap()),
            uid,
            agent_pools,
        };
        let claims = [claim("young", 20, "a", vec!["x", "y"]), claim("old", 10, "b", vec!["x"])];
        assert_eq!(claimed_by(&claims, "x", "a"), Some("batch/old"));
        assert_eq!(claimed_by(&claims, "x", "b"), None);
        assert_eq!(claimed_by(&claims, "y", "a"), None);
        let twins = [claim("one", 10, "a", vec!["x"]), claim("two", 10, "b", vec!["x"])];
        assert_eq!(claimed_by(&twins, "x", "b"), Some("batch/one"));
        assert_eq!(claimed_by(&twins, "x", "a"), None);
    }
}
