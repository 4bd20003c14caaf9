//! What both programs share: flags, logs, traces, the Kubernetes client, the admin server, and how they end.

pub mod admin;
pub mod args;
pub mod catalogue;
pub mod client;
pub mod exit;
pub mod otlp;
pub mod places;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod trace;
