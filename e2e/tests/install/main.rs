//! `docs/install/README.md` from top to bottom, as a new user would: each of its commands, by bash, in the order in which they
//! stand there, on a real control plane. Only endpoints are others, `az` is played by a script, and programs run where Pods would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod audit;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, Node, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Identity, PoolSpec};
use spotpool_azure_sim::tokens::{AuthPatch, ClientSpec, GrantedAction};
use spotpool_e2e::objects::{marks, object};
use spotpool_e2e::world::SYSTEM_NAMESPACE;
use spotpool_e2e::{Agents, Operator, Stage, World, WorldOptions, eventually, installed, run};
use spotpool_e2e_cluster::Tools;

const PAGE: &str = include_str!("../../../docs/install/README.md");
const ISSUER: &str = "https://kubernetes.default.svc";

/// Commands of the page, by the heading under which they stand, in order.
fn steps() -> Vec<(String, String)> {
    let (mut heading, mut steps, mut open) = (String::new(), Vec::new(), None);
    for line in PAGE.lines() {
        match (&mut open, line) {
            (None, "```sh") => open = Some(String::new()),
            (Some(_), "```") => steps.push((heading.clone(), open.take().unwrap())),
            (Some(block), _) => block.extend([line, "\n"]),
            (None, _) => {
                if let Some(title) = line.strip_prefix("## ") {
                    title.clone_into(&mut heading);
                }
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    steps
}

/// A person's shell, in a copy of this repository.
struct Shell {
    home: tempfile::TempDir,
    env: Vec<(&'static str, String)>,
}

impl Shell {
    /// `helm` is told where Azure is, and that nobody but the harness ends an agent's Pod; `cargo install` has nothing left to build.
    async fn new(world: &World, cluster: &Value, endpoints: &[String]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let bin = home.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let script = |name: &str, text: &str| {
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        };
        script("az", include_str!("az"));
        let helm = Tools::helm().await.unwrap();
        let sets: String = endpoints.iter().flat_map(|set| [" --set ", set]).collect();
        script(
            "helm",
            &format!(
                "#!/bin/bash\n\
                 case \"$1 $2\" in 'install spotpool') set -- \"$@\"{sets};; esac\n\
                 exec {} \"$@\"\n",
                helm.display()
            ),
        );
        script(
            "cargo",
            &format!(
                "#!/bin/bash\n\
                 [ \"$1\" = install ] && [ -f \"${{@: -1}}/Cargo.toml\" ] || exit 2\n\
                 ln -s {} \"$(dirname \"$0\")/kubectl-spotpool\"\n",
                world.programs.kubectl_plugin.display()
            ),
        );
        symlink(world.cluster.kubectl(), bin.join("kubectl")).unwrap();
        let env = vec![
            ("AZ_CLUSTER", cluster.to_string()),
            ("AZ_STATE", home.path().join("az.json").display().to_string()),
            ("HOME", home.path().display().to_string()),
            ("KUBECONFIG", world.cluster.admin_kubeconfig().display().to_string()),
            ("PATH", format!("{}:/usr/bin:/bin", bin.display())),
        ];
        Self { home, env }
    }

    /// Runs what a person pastes: variables stay for what comes next.
    fn paste(&self, block: &str) -> Result<String, String> {
        let variables = self.home.path().join("variables");
        let variables = variables.display();
        let script = format!(
            "[ ! -f {variables} ] || . {variables}\nset -euo pipefail -o allexport\n{block}\nexport -p >{variables}\n"
        );
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let output = Command::new("bash")
            .args(["-c", &script])
            .current_dir(root)
            .env_clear()
            .envs(self.env.iter().cloned())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout) + &text(&output.stderr);
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    /// What Azure was asked for.
    fn azure(&self) -> Azure {
        let state: PathBuf = self.home.path().join("az.json");
        serde_json::from_slice(&fs::read(state).unwrap()).unwrap()
    }
}

/// What the page has made in Azure.
#[derive(Deserialize)]
struct Azure {
    webhook: bool,
    credentials: Vec<BTreeMap<String, String>>,
    assignments: Vec<GrantedAction>,
}

/// What `az` knows of the cluster.
fn cluster(identity: &Identity) -> Value {
    let Identity { subscription, resource_group, cluster, node_resource_group, .. } = identity;
    json!({"subscription": subscription, "resourceGroup": resource_group, "name": cluster,
        "id": format!("/subscriptions/{subscription}/resourceGroups/{resource_group}\
            /providers/Microsoft.ContainerService/managedClusters/{cluster}"),
        "nodeResourceGroup": node_resource_group, "oidcIssuerProfile": {"issuerUrl": ISSUER}})
}

/// Azure lets in whom the page has let in, for what it has given them.
async fn open_azure(world: &World, azure: Azure) {
    assert!(azure.webhook, "nothing would put tokens into Pods");
    let [credential] = azure.credentials.as_slice() else { panic!("one credential") };
    let client = ClientSpec {
        issuer: Some(credential["issuer"].clone()),
        subject: Some(credential["subject"].clone()),
        audience: credential["audience"].clone(),
        ..ClientSpec::default()
    };
    let auth = AuthPatch {
        require_token: Some(true),
        clients: Some(vec![client]),
        granted: Some(azure.assignments),
        ..AuthPatch::default()
    };
    world.sim.change_auth(&auth).await.unwrap();
}

/// The operator as its Pods would run: with what the webhook of workload identity puts into a Pod of that ServiceAccount.
async fn start_operator(stage: &Stage<'_>) -> Operator {
    let said = |key: &str| stage.world.sim_said[key].as_str().unwrap().to_owned();
    let accounts: Api<ServiceAccount> = Api::namespaced(stage.world.client.clone(), SYSTEM_NAMESPACE);
    let account = accounts.get("spotpool-operator").await.unwrap();
    let request: TokenRequest = object(json!({"metadata": {}, "spec":
        {"audiences": ["api://AzureADTokenExchange"], "expirationSeconds": 3600}}))
    .unwrap();
    let answer =
        accounts.create_token_request("spotpool-operator", &PostParams::default(), &request).await.unwrap();
    let file = |name: &str, text: String| {
        let path = stage.world.cluster.dir().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let token = file("azure-identity-token", answer.status.unwrap().token);
    let ca = file("azure-ca.pem", said("caPem"));
    let env = [
        ("AZURE_CLIENT_ID", account.annotations()["azure.workload.identity/client-id"].clone()),
        ("AZURE_TENANT_ID", said("tenantId")),
        ("AZURE_AUTHORITY_HOST", said("authorityHost")),
        ("AZURE_FEDERATED_TOKEN_FILE", token),
        ("CA_BUNDLE", ca),
    ];
    installed::operator(stage, &[], &env).await.unwrap()
}

/// Objects of the whole cluster that are named after us.
fn left(shell: &Shell) -> Vec<String> {
    let kinds = "clusterroles,clusterrolebindings,customresourcedefinitions,validatingadmissionpolicies,\
        validatingadmissionpolicybindings,flowschemas,prioritylevelconfigurations,namespaces";
    let names = shell.paste(&format!("kubectl get {kinds} --output name")).unwrap();
    names.lines().filter(|name| name.contains("spotpool")).map(str::to_owned).collect()
}

#[test]
fn the_page_from_top_to_bottom_installs_upgrades_and_leaves_nothing() {
    run(async {
        let mut options = WorldOptions { agents: false, install: false, ..WorldOptions::default() };
        let folder = tempfile::tempdir().unwrap();
        options.cluster.audit_log = true;
        options.cluster.apiserver_args =
            vec![format!("--audit-policy-file={}", audit::policy(&folder).display())];
        let mut world = World::start(options).await.unwrap();
        let identity = world.sim.state().await.unwrap().identity;
        let endpoints = [
            format!("azure.endpoint={}", world.sim_said["tlsUrl"].as_str().unwrap()),
            format!("azure.pricesEndpoint={}/api/retail/prices", world.sim.base_url()),
            "agent.podAnnotations.kwok-stop-after=never".to_owned(),
        ];
        let shell = Shell::new(&world, &cluster(&identity), &endpoints).await;
        // The agent pools that the page's SpotPool names, as a user would put in their own.
        let size = "Standard_D4s_v5";
        let pools = [
            PoolSpec::spot("spota", size, 2),
            PoolSpec::spot("spotb", size, 1),
            PoolSpec::regular("ondemand", size, 2),
        ];
        let bare = Stage::at(&world, SYSTEM_NAMESPACE);
        bare.agent_pools(&pools).await.unwrap();

        let mut operator = None;
        let mut done = Vec::new();
        for (heading, block) in steps() {
            // A user's own names.
            let block =
                block.replace("my-group", &identity.resource_group).replace("my-cluster", &identity.cluster);
            if heading == "Uninstall" {
                // What there is to take off: an operator that acts, and has marked its nodes.
                let stage = Stage::at(&world, SYSTEM_NAMESPACE);
                acts(&stage, &shell).await;
                audit::tells_who_did_it(&stage).await;
            }
            let said = shell.paste(&block).unwrap_or_else(|said| panic!("{heading}:\n{block}\n{said}"));
            eprintln!("== {heading}\n{block}{said}");
            if block.contains("helm install spotpool ") {
                assert!(!said.contains("MISSING") && !said.contains("WRONG"), "{said}");
                open_azure(&world, shell.azure()).await;
                let agents = Agents::start(
                    world.cluster.clone(),
                    world.sim.clone(),
                    &world.programs.node_agent,
                    Vec::new(),
                );
                world.agents = Some(agents.await.unwrap());
                let stage = Stage::at(&world, SYSTEM_NAMESPACE);
                operator = Some(start_operator(&stage).await);
                for pool in &pools {
                    stage.nodes_ready(&pool.name, pool.count as usize).await.unwrap();
                }
                follow_notes(&shell, &said);
            }
            if block.contains("kind: SpotPool") {
                let generation =
                    "kubectl get spotpool workers -n $NAMESPACE -o jsonpath={.metadata.generation}";
                assert_eq!(shell.paste(generation).unwrap(), "1", "Helm prints the page's SpotPool");
            }
            done.push(heading);
        }
        done.dedup();
        assert_eq!(
            done,
            [
                "",
                "1. An identity",
                "2. A namespace",
                "3. The charts",
                "4. The first SpotPool",
                "Upgrade",
                "Uninstall"
            ],
            "the whole page"
        );
        operator.expect("the page installs").stop().await.unwrap();

        let nodes: Api<Node> = Api::all(world.client.clone());
        for node in nodes.list(&ListParams::default()).await.unwrap() {
            assert_eq!(marks(&node), Vec::<String>::new(), "{}", node.name_any());
        }
        let namespaces: Api<Namespace> = Api::all(world.client.clone());
        eventually("the namespace to be gone", async || {
            Ok(namespaces.get_opt(SYSTEM_NAMESPACE).await?.is_none().then_some(()))
        })
        .await
        .unwrap();
        assert_eq!(left(&shell), Vec::<String>::new());
        world.stop().await.unwrap();
    });
}

/// What Helm says to do next works as it is printed, and its SpotPool is the page's.
fn follow_notes(shell: &Shell, notes: &str) {
    let (_, commands) = notes.split_once("See that it runs:\n").unwrap();
    let commands: String =
        commands.lines().filter_map(|line| line.strip_prefix("  ")).flat_map(|line| [line, "\n"]).collect();
    assert!(
        commands.contains("rollout status daemonset") && commands.contains("kind: SpotPool"),
        "{commands}"
    );
    let said = shell.paste(&commands).unwrap_or_else(|said| panic!("{commands}\n{said}"));
    assert!(said.contains("workers created"), "{said}");
}

/// The page's SpotPool explains itself, and acts once it may: with the rights in Azure that the page has given, and no others.
async fn acts(stage: &Stage<'_>, shell: &Shell) {
    let observed =
        stage.status_is("workers", "4 in sight", |status| status.ready_replicas >= 4).await.unwrap();
    assert!(observed.fallback.nodes == 0);
    // An agent that a busy machine kept from answering its probe is ready with the next.
    let said = eventually("the doctor to find nothing", async || {
        let said = shell.paste("kubectl spotpool doctor && kubectl spotpool explain workers");
        said.map(Some).map_err(anyhow::Error::msg)
    });
    let said = said.await.unwrap();
    assert!(said.contains("Observe"), "{said}");
    let act = "kubectl patch spotpool workers --namespace $NAMESPACE --type=json \
        --patch '[{\"op\": \"remove\", \"path\": \"/spec/mode\"}, {\"op\": \"replace\", \"path\": \"/spec/replicas\", \"value\": 6}]'";
    shell.paste(act).unwrap();
    stage.status_is("workers", "6 ready", |status| status.ready_replicas == 6).await.unwrap();
    let auth = stage.world.sim.auth().await.unwrap();
    assert_eq!(auth.refused, []);
}
