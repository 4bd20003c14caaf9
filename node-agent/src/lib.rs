//! The node agent, but for its program's wiring: on every node, watches Azure's notices for its VM, and drains the
//! node by the deadline. A library so that benches and fuzz targets can reach its rooms.
//!
//! ```text
//! imds ─► document ─┐
//! npd (of the Node) ┴► notice (decides) ─► agent ─► flow ──────► marks, edit ─► node (writes)
//!                                            ▲  └─► voluntary ─► spotpool-drain (evicts)
//!                      watch of Node, pods ──┘       └─► relay, telling (hooks, notify), announce, condition, metrics, trace
//! ```

pub mod agent;
pub mod announce;
pub mod args;
pub mod claim;
pub mod condition;
pub mod context;
pub mod document;
pub mod flow;
pub mod hooks;
pub mod imds;
pub mod metrics;
pub mod notice;
pub mod notify;
pub mod relay;
pub mod telling;
pub mod trace;
pub mod voluntary;

pub use spotpool_drain::{edit, marks, node, npd, time};
