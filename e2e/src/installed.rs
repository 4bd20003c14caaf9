//! What helm has installed, with real programs in the place of its Pods.

use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use spotpool_e2e_cluster::{Program, free_port};

use crate::stage::LEASE;
use crate::world::SYSTEM_NAMESPACE;
use crate::{Operator, Stage, eventually};

/// Starts the operator with the arguments of the installed Deployment, but for its lease, and waits until it is ready.
/// `instead` has arguments that take the place of those of the same flag, for what is elsewhere here than in a Pod.
pub async fn operator(stage: &Stage<'_>, instead: &[String], env: &[(&str, String)]) -> Result<Operator> {
    let deployments: Api<Deployment> = Api::namespaced(stage.world.client.clone(), SYSTEM_NAMESPACE);
    let deployment = deployments.get("spotpool-operator").await?;
    let spec = deployment.spec.and_then(|spec| spec.template.spec).context("a Deployment without Pods")?;
    let args =
        spec.containers.first().and_then(|container| container.args.clone()).context("no arguments")?;
    let port = free_port()?;
    let here = [format!("--listen=127.0.0.1:{port}"), LEASE.join("=")];
    let flag = |arg: &str| arg.split_once('=').map(|(flag, _)| flag.to_owned());
    let args = args.into_iter().map(|arg| {
        let mut instead = instead.iter().chain(&here);
        instead.find(|other| flag(other) == flag(&arg)).cloned().unwrap_or(arg)
    });
    let mut program = Program::new("operator of the chart", &stage.world.programs.operator)
        .arg("--kubeconfig")
        .arg(stage.operator_kubeconfig().await?)
        .args(args)
        .env("POD_NAME", "chart")
        .env("POD_NAMESPACE", SYSTEM_NAMESPACE)
        .log(stage.log("chart"));
    for (name, value) in env {
        program = program.env(*name, value);
    }
    let process = Arc::new(program.spawn()?);
    let operator = Operator { process, admin_url: format!("http://127.0.0.1:{port}") };
    eventually("the operator to be ready", async || {
        operator.process.check_running()?;
        Ok(operator.is_ready().await.then_some(()))
    })
    .await?;
    Ok(operator)
}
