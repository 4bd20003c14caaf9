//! The commands and manifests of the pages, as a reader would paste them: installed as the README says, on a real control plane,
//! with the simulator in Azure's place and programs where Pods would run. The README comes first, leaving last.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Stdio;

use kube::ResourceExt;
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_e2e::world::SYSTEM_NAMESPACE;
use spotpool_e2e::{Agents, Operator, Stage, World, WorldOptions, installed, run};
use spotpool_e2e_cluster::Tools;
use tokio::process::Command;

use crate::fences::{Block, blocks};
use crate::{cargo, files, root};

const LEAVING: &str = "docs/how-to/leave.md";
const STRICTLY: &str =
    "kubectl apply --server-side --force-conflicts --dry-run=server --validate=strict -f -";

/// A reader's shell, in a copy of this repository.
struct Reader {
    home: tempfile::TempDir,
    env: Vec<(&'static str, String)>,
    /// A node on spot.
    node: String,
}

impl Reader {
    async fn new(world: &World, sets: &[String]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let at = |path: &str| home.path().join(path);
        for folder in ["bin", "repository", ".local/share/bash-completion/completions"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for entry in fs::read_dir(root()).unwrap() {
            let entry = entry.unwrap();
            symlink(entry.path(), at("repository").join(entry.file_name())).unwrap();
        }
        let helm = Tools::helm().await.unwrap();
        let sets: String = sets.iter().flat_map(|set| [" --set ", set]).collect();
        let script = format!(
            "#!/bin/bash\ncase \"$1 $2\" in 'install spotpool') set -- \"$@\"{sets};; esac\nexec {} \"$@\"\n",
            helm.display()
        );
        fs::write(at("bin/helm"), script).unwrap();
        fs::set_permissions(at("bin/helm"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let programs = world.programs.operator.parent().unwrap();
        for (name, path) in [
            ("kubectl", world.cluster.kubectl().to_owned()),
            ("kubectl-spotpool", world.programs.kubectl_plugin.clone()),
            ("promtool", Tools::promtool().await.unwrap()),
            ("spotpool-lab", programs.join("spotpool-lab")),
        ] {
            symlink(path, at("bin").join(name)).unwrap();
        }
        fs::copy(world.cluster.admin_kubeconfig(), at("kubeconfig")).unwrap();
        let env = vec![
            ("HOME", home.path().display().to_string()),
            ("KUBECONFIG", at("kubeconfig").display().to_string()),
            ("PATH", format!("{}:/usr/bin:/bin", at("bin").display())),
        ];
        Self { home, env, node: String::new() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.home.path().join("repository").join(path)
    }

    /// What a reader has, who has followed the pages so far.
    async fn has(&self, readme: &Value) {
        let write = |path: &str, text: String| fs::write(self.at(path), text).unwrap();
        write("spotpool.yaml", readme.to_string());
        symlink(root().join("charts/spotpool/examples/workload-identity.yaml"), self.at("values.yaml"))
            .unwrap();
        symlink(root().join("docs/examples/workloads"), self.at("deploy")).unwrap();
        fs::create_dir(self.at("spotpool")).unwrap();
        for rules in ["recording.yaml", "alerts.yaml"] {
            symlink(root().join("charts/spotpool/rules").join(rules), self.at("spotpool").join(rules))
                .unwrap();
        }
        self.does(&format!("kubectl config set-context --current --namespace {SYSTEM_NAMESPACE}")).await;
        self.does("kubectl apply -f docs/examples/hpa.yaml && kubectl run worker-0 --image=worker").await;
    }

    async fn paste(&self, commands: &str, stdin: &str) -> Result<String, String> {
        let mut command = Command::new("timeout");
        command.args(["60", "bash", "-euo", "pipefail", "-c", commands]).current_dir(self.at(""));
        command.env_clear().envs(self.env.iter().cloned()).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let _ = tokio::io::AsyncWriteExt::write_all(&mut pipe, stdin.as_bytes()).await;
        drop(pipe);
        let output = child.wait_with_output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout) + &text(&output.stderr);
        if output.status.success() { Ok(said) } else { Err(format!("{} {said}", output.status)) }
    }

    async fn does(&self, commands: &str) -> String {
        self.paste(commands, "").await.unwrap_or_else(|said| panic!("{commands}: {said}"))
    }

    /// With a reader's own names in the place of the page's.
    fn own(&self, command: &str) -> String {
        let own = |word: &str| match word {
            "NAME" => "workers".to_owned(),
            "NAMESPACE" => SYSTEM_NAMESPACE.to_owned(),
            // Where cargo builds is said by its settings.
            word if word.ends_with("target/debug/spotpool-lab") => "spotpool-lab".to_owned(),
            word if word.starts_with("aks-") && word.contains("-vmss") => self.node.clone(),
            word => word.to_owned(),
        };
        command
            .split_inclusive([' ', '\n'])
            .map(|word| {
                let (word, end) = word.split_at(word.trim_end().len());
                own(word) + end
            })
            .collect()
    }

    /// Every example that people copy: taken strictly by the API server, and nothing in it that lint calls an error.
    async fn takes_the_examples(&self) -> Vec<String> {
        // The demo's is for a namespace that the demo makes.
        let mut commands = vec![
            "kubectl create namespace demo --dry-run=client -o yaml | kubectl apply -f -".to_owned(),
            "kubectl spotpool lint -f docs/examples".to_owned(),
        ];
        commands.extend(files("docs/examples/*.yaml").iter().map(|file| format!("{STRICTLY} <{file}")));
        let mut failed = Vec::new();
        for command in commands {
            failed.extend(self.paste(&command, "").await.err().map(|said| format!("{command}: {said}")));
        }
        failed
    }

    /// Runs a block, or has the API server judge it.
    async fn follows(&self, block: &Block) -> Result<(), String> {
        if block.language == "yaml" {
            return self.is_taken(block).await;
        }
        let commands: Vec<String> =
            block.commands().iter().flat_map(|it| of_no_workspace(it)).map(|it| self.own(&it)).collect();
        self.paste(&commands.join("\n"), "").await.map(|_| ())
    }

    async fn is_taken(&self, block: &Block) -> Result<(), String> {
        if block.words.first().is_some_and(|word| word == "prometheus") {
            fs::write(self.at("prometheus.yml"), &block.text).unwrap();
            return self.paste("promtool check config prometheus.yml", "").await.map(|_| ());
        }
        for document in serde_yaml_ng::Deserializer::from_str(&block.text) {
            let document: Value =
                serde::Deserialize::deserialize(document).map_err(|error| format!("{error}"))?;
            let whole = whole(document, block.words.first().map(String::as_str));
            if whole["kind"] == "EvictionDrill" && block.words.is_empty() {
                fs::write(self.at("game-day.yaml"), whole.to_string()).unwrap();
            }
            self.paste(STRICTLY, &whole.to_string()).await?;
        }
        Ok(())
    }
}

/// Commands that [`cargo`] answers for are not run.
fn of_no_workspace(commands: &str) -> Vec<String> {
    if commands.lines().all(|line| !cargo::is_of_the_workspace(line)) {
        return vec![commands.to_owned()];
    }
    commands.lines().filter(|line| !cargo::is_of_the_workspace(line)).map(str::to_owned).collect()
}

/// A page may show a part of an object: the fence says of which kind.
fn whole(part: Value, kind: Option<&str>) -> Value {
    let metadata = json!({"name": "part", "namespace": SYSTEM_NAMESPACE});
    let mut whole = match kind {
        None => return part,
        Some("SpotPool") => {
            json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool", "metadata": metadata,
            "spec": {"replicas": 4, "agentPools": [{"name": "spotd8a", "maxNodes": 8}]}})
        }
        Some("EvictionDrill") => {
            json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "EvictionDrill", "metadata": metadata,
            "spec": {"target": {"spotPool": "workers"}, "amount": {"count": 1},
                "limits": {"maxNodes": 1, "minReadyUnits": 1, "namespaces": ["web"]}}})
        }
        Some(_) => json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"containers": [{"name": "part", "image": "part"}]}}),
    };
    let (place, part) = match (kind, part.get("spec")) {
        (Some("Container"), _) => ("/spec/containers/0", part),
        (Some("Pod"), _) => ("/metadata", part["metadata"].clone()),
        (_, Some(spec)) => ("/spec", spec.clone()),
        (_, None) => ("/spec", part),
    };
    let place = whole.pointer_mut(place).unwrap().as_object_mut().unwrap();
    place.extend(part.as_object().unwrap().clone());
    whole
}

/// Agents and the operator of the chart that a page has installed.
async fn programs(world: &mut World) -> Operator {
    let agents =
        Agents::start(world.cluster.clone(), world.sim.clone(), &world.programs.node_agent, Vec::new());
    world.agents = Some(agents.await.unwrap());
    let identity = world.sim.state().await.unwrap().identity;
    let instead = [
        format!("--subscription-id={}", identity.subscription),
        format!("--resource-group={}", identity.resource_group),
        format!("--cluster-name={}", identity.cluster),
        "--azure-credential=none".to_owned(),
    ];
    let stage = Stage::at(world, SYSTEM_NAMESPACE);
    installed::operator(&stage, &instead, &[]).await.unwrap()
}

/// Blocks that are run here, in the order in which a reader would come to them.
fn ours() -> Vec<Block> {
    let mut ours: Vec<Block> = blocks().into_iter().filter(Block::is_ours).collect();
    ours.sort_by_key(|block| (block.page == LEAVING, block.page != "README.md"));
    ours
}

#[test]
fn every_command_and_manifest_of_the_pages_works() {
    run(async {
        let mut world =
            World::start(WorldOptions { agents: false, install: false, ..WorldOptions::default() })
                .await
                .unwrap();
        let sets = [
            format!("azure.endpoint={}", world.sim.base_url()),
            format!("azure.pricesEndpoint={}/api/retail/prices", world.sim.base_url()),
            "agent.podAnnotations.kwok-stop-after=never".to_owned(),
        ];
        let mut reader = Reader::new(&world, &sets).await;
        let pools = [
            PoolSpec::spot("spotd8a", "Standard_D8s_v5", 2),
            PoolSpec::spot("spotd8b", "Standard_D8as_v5", 2),
            PoolSpec::regular("regd8", "Standard_D8s_v5", 0),
        ];
        let bare = Stage::at(&world, SYSTEM_NAMESPACE);
        bare.agent_pools(&pools).await.unwrap();
        reader.node = bare.nodes("spotd8a").await.unwrap()[0].name_any();

        let (mut failed, mut ran, mut operator) = (Vec::new(), 0, None);
        let blocks = ours();
        let readme = blocks.iter().find(|it| it.language == "yaml").unwrap();
        let readme: Value = serde_yaml_ng::from_str(&readme.text).unwrap();
        for block in &blocks {
            if operator.is_some() && block.text.contains("kubectl spotpool cleanup") {
                // "Once neither is installed any more."
                reader.does("helm uninstall spotpool").await;
            }
            if operator.is_some() {
                reader
                    .paste("kubectl apply --server-side --force-conflicts -f spotpool.yaml", "")
                    .await
                    .unwrap();
            }
            eprintln!("== {} {}\n{}", block.page, block.language, block.text);
            if let Err(said) = reader.follows(block).await {
                failed.push(format!("{}:\n{}{said}", block.page, block.text));
            }
            ran += 1;
            if operator.is_none() && block.text.contains("helm install spotpool ") {
                operator = Some(programs(&mut world).await);
                reader.has(&readme).await;
                failed.extend(reader.takes_the_examples().await);
            }
        }
        assert!(ran > 40, "{ran}");
        assert!(failed.is_empty(), "{} of {ran} failed:\n{}", failed.len(), failed.join("\n"));
        operator.expect("the README installs").stop().await.unwrap();
        world.stop().await.unwrap();
    });
}

#[test]
fn a_part_of_an_object_is_made_whole() {
    let part = |text: &str, kind| whole(serde_yaml_ng::from_str(text).unwrap(), Some(kind));
    assert_eq!(part("fallback: {maxNodes: 3}", "SpotPool")["spec"]["fallback"]["maxNodes"], 3);
    assert_eq!(part("spec: {costTags: [team]}", "SpotPool")["spec"]["replicas"], 4);
    assert_eq!(part("env: []", "Container")["spec"]["containers"][0]["image"], "part");
}
