//! A stand-in for the parts of Azure that SpotPool speaks to.
//!
//! One [`server::Server`] plays one AKS managed cluster: the ARM `agentPools` API, a metadata
//! service (IMDS) for every virtual machine, and, through a Kubernetes client, the Node objects that
//! the kubelets and the cloud-controller-manager of those machines would make and remove. A control
//! API under `/sim/` evicts machines, takes capacity away and breaks things on purpose;
//! [`client::SimClient`] is its typed client.
//!
//! The layers, inside out:
//!
//! - [`model`]: the state machine. No I/O and no clock: `now` is an argument. [`switches`] say how hostile it is,
//!   [`failures`] and [`refusal`] how it says no, [`scenario`] what happens to it when.
//! - [`arm`] with Azure Compute, [`imds`], [`control`]: HTTP in front of it, each a thin translation.
//! - [`tokens`], [`market`] with [`prices`], [`resource_graph`] and [`placement`]: what is beside the cluster, each
//!   its state and its HTTP.
//! - [`nodes`], [`upkeep`], [`node_policy`]: Kubernetes beside it, a level-triggered loop from machines to Node
//!   objects.
//! - [`sim`]: the model behind a lock, and the task that moves it on in real time.
//! - [`server`], [`client`]: sockets.

pub mod api;
pub mod arm;
pub mod body;
pub mod client;
mod compute;
pub mod control;
pub mod dice;
pub mod events;
pub mod failures;
pub mod faults;
pub mod imds;
pub mod market;
pub mod model;
pub mod names;
pub mod node_policy;
pub mod nodes;
pub mod placement;
pub mod prices;
pub mod refusal;
pub mod reply;
pub mod resource_graph;
pub mod scenario;
pub mod server;
pub mod sim;
pub mod switches;
pub mod tls;
pub mod tokens;
pub mod upkeep;
