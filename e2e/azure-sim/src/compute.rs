//! Azure Compute, as far as the machines of agent pools go: instances, their views, `simulateEviction`, `start`.

use axum::response::Response;
use http::Method;
use serde_json::json;

use crate::arm::{self, Call};
use crate::model::ComputeName;
use crate::refusal::Refusal;
use crate::reply;
use crate::sim::Sim;

/// api-versions before this one are not served: `simulateEviction` came with it.
const OLDEST: &str = "2020-06-01";

/// What a path below `Microsoft.Compute` means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// Instances of a scale set.
    Instances(String),
    /// Machines that belong to none.
    Machines,
    /// One machine, and what of it: itself, `instanceview`, `simulateeviction`, `start`.
    Machine(ComputeName, String),
}

impl Route {
    /// Reads the segments below the provider.
    pub(crate) fn parse(segments: &[&str]) -> Option<Self> {
        let lower: Vec<String> = segments.iter().map(|segment| segment.to_lowercase()).collect();
        let shape: Vec<&str> = lower.iter().map(String::as_str).collect();
        let what = |below: &[&str]| match below {
            [] => Some(String::new()),
            [what] => Some((*what).to_owned()),
            _ => None,
        };
        match shape.as_slice() {
            ["virtualmachinescalesets", _, "virtualmachines"] => {
                Some(Self::Instances(segments[1].to_owned()))
            }
            ["virtualmachinescalesets", _, "virtualmachines", id, below @ ..] => {
                let name = ComputeName::Instance { scale_set: segments[1].to_owned(), id: id.parse().ok()? };
                Some(Self::Machine(name, what(below)?))
            }
            ["virtualmachines"] => Some(Self::Machines),
            ["virtualmachines", _, below @ ..] => {
                Some(Self::Machine(ComputeName::Machine(segments[1].to_owned()), what(below)?))
            }
            _ => None,
        }
    }
}

/// Answers a request to Compute.
pub(crate) fn respond(sim: &Sim, call: &Call, route: &Route) -> Result<Response, Refusal> {
    let version = call.query("api-version").unwrap_or_default();
    if version.len() != OLDEST.len() || version.as_str() < OLDEST {
        return Err(sim.look(|cloud, _| Refusal::no_version(&cloud.identity, &version, &[OLDEST])));
    }
    let view = call.query("$expand").is_some_and(|wanted| wanted.eq_ignore_ascii_case("instanceView"));
    match (&call.method, route) {
        (&Method::GET, Route::Instances(scale_set)) => {
            let (instances, identity) =
                sim.look(|cloud, _| (cloud.instances(scale_set, view), cloud.identity.clone()));
            let instances = instances.ok_or_else(|| {
                Refusal::wrapped(
                    404,
                    "ResourceNotFound",
                    format!(
                        "The Resource 'Microsoft.Compute/virtualMachineScaleSets/{scale_set}' under resource group '{}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
                        identity.node_resource_group
                    ),
                )
            })?;
            Ok(reply::json_body(200, &json!({"value": instances})))
        }
        (&Method::GET, Route::Machines) => {
            let machines = sim.look(|cloud, _| cloud.virtual_machines(view));
            Ok(reply::json_body(200, &json!({"value": machines})))
        }
        (&Method::GET, Route::Machine(name, what)) if what.is_empty() => {
            let (machine, identity) =
                sim.look(|cloud, _| (cloud.instance_of(name, view), cloud.identity.clone()));
            machine.map(|machine| reply::json_body(200, &machine)).ok_or_else(|| name.not_found(&identity))
        }
        (&Method::GET, Route::Machine(name, what)) if what == "instanceview" => {
            let (machine, identity) =
                sim.look(|cloud, _| (cloud.instance_of(name, true), cloud.identity.clone()));
            machine
                .map(|machine| reply::json_body(200, &machine["properties"]["instanceView"]))
                .ok_or_else(|| name.not_found(&identity))
        }
        (&Method::POST, Route::Machine(name, what)) if what == "simulateeviction" => {
            sim.change(|cloud, now| cloud.simulate_eviction(name, now))?;
            Ok(reply::raw(204, &std::collections::BTreeMap::new(), Vec::new()))
        }
        (&Method::POST, Route::Machine(name, what)) if what == "start" => {
            let (accepted, identity) =
                sim.change(|cloud, now| (cloud.start_machine(name, now), cloud.identity.clone()));
            let mut response = reply::raw(202, &std::collections::BTreeMap::new(), Vec::new());
            let url = arm::operation_url(&call.base(), &identity, "operations", &accepted?)
                .replace("Microsoft.ContainerService", "Microsoft.Compute");
            reply::set(&mut response, "azure-asyncoperation", &url);
            Ok(response)
        }
        (method, _) => Err(Refusal::wrapped(
            405,
            "MethodNotAllowed",
            format!("The requested resource does not support http method '{method}'."),
        )),
    }
}
