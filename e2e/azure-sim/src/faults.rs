//! Which fault, if any, strikes a request.

use crate::api::{ActiveFault, Fault, FaultAction, FaultTarget};

/// A request as faults see it.
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// To ARM.
    Arm {
        /// HTTP method.
        method: &'a str,
        /// Path.
        path: &'a str,
    },
    /// To the metadata service of a machine.
    Imds {
        /// Node name.
        node: &'a str,
        /// Path below the machine's own address.
        path: &'a str,
    },
    /// To the token endpoint.
    Tokens,
    /// To Retail Prices.
    Prices,
}

/// Faults in force, oldest first; the oldest that matches strikes.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    active: Vec<ActiveFault>,
    last_id: u64,
}

impl Faults {
    /// Puts a fault in force and answers its id.
    pub fn add(&mut self, fault: Fault) -> u64 {
        self.last_id += 1;
        self.active.push(ActiveFault { id: self.last_id, fault, struck: 0 });
        self.last_id
    }

    /// Clears one; false when it is not there (any more).
    pub fn clear(&mut self, id: u64) -> bool {
        let before = self.active.len();
        self.active.retain(|active| active.id != id);
        self.active.len() < before
    }

    /// Clears all.
    pub fn clear_all(&mut self) {
        self.active.clear();
    }

    /// Those in force.
    pub fn active(&self) -> &[ActiveFault] {
        &self.active
    }

    /// The action for this request, counted against the fault's `times`.
    pub fn strike(&mut self, request: Request<'_>) -> Option<FaultAction> {
        let place = self.active.iter().position(|active| matches(&active.fault.target, request))?;
        let active = &mut self.active[place];
        active.struck += 1;
        let action = active.fault.action.clone();
        if let Some(times) = &mut active.fault.times {
            *times = times.saturating_sub(1);
            if *times == 0 {
                self.active.remove(place);
            }
        }
        Some(action)
    }
}

fn matches(target: &FaultTarget, request: Request<'_>) -> bool {
    match (target, request) {
        (FaultTarget::Arm { method, path_contains }, Request::Arm { method: asked, path }) => {
            method.as_deref().is_none_or(|method| method.eq_ignore_ascii_case(asked))
                && contains(path_contains.as_deref(), path)
        }
        (FaultTarget::Imds { node, path_contains }, Request::Imds { node: asked, path }) => {
            node.as_deref().is_none_or(|node| node == asked) && contains(path_contains.as_deref(), path)
        }
        (FaultTarget::Tokens {}, Request::Tokens) | (FaultTarget::Prices {}, Request::Prices) => true,
        _ => false,
    }
}

fn contains(part: Option<&str>, path: &str) -> bool {
    part.is_none_or(|part| path.to_ascii_lowercase().contains(&part.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUT: Request<'_> = Request::Arm { method: "PUT", path: "/x/agentPools/spota" };

    fn fault(target: FaultTarget, times: Option<u32>, status: u16) -> Fault {
        Fault { target, times, action: FaultAction::status(status) }
    }

    #[test]
    fn strikes_as_often_as_told_and_oldest_first() {
        let mut faults = Faults::default();
        faults.add(fault(FaultTarget::arm("put", "/agentpools/spota"), Some(2), 500));
        let lasting = faults.add(fault(FaultTarget::arm("PUT", ""), None, 503));
        assert_eq!(faults.strike(PUT), Some(FaultAction::status(500)));
        assert_eq!(faults.strike(PUT), Some(FaultAction::status(500)));
        assert_eq!(faults.strike(PUT), Some(FaultAction::status(503)));
        assert_eq!(faults.active()[0].struck, 1);
        assert!(faults.clear(lasting));
        assert!(!faults.clear(lasting));
        assert_eq!(faults.strike(PUT), None);
    }

    #[test]
    fn keeps_to_its_surface_method_and_node() {
        let mut faults = Faults::default();
        faults.add(fault(FaultTarget::scheduled_events(Some("n1")), None, 410));
        faults.add(fault(FaultTarget::arm("GET", ""), None, 500));
        assert_eq!(faults.strike(PUT), None);
        assert_eq!(faults.strike(Request::Imds { node: "n2", path: "/metadata/scheduledevents" }), None);
        assert_eq!(
            faults.strike(Request::Imds { node: "n1", path: "/metadata/scheduledevents" }),
            Some(FaultAction::status(410))
        );
        assert_eq!(faults.strike(Request::Imds { node: "n1", path: "/metadata/instance/compute" }), None);
    }
}
