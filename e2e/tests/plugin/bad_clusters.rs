//! Clusters that the plugin can do nothing with: one helpful sentence, exit code 1.

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use spotpool_e2e::objects::{apply, create, object};
use spotpool_e2e::{Profile, Programs, eventually, run};
use spotpool_e2e_cluster::{Cluster, ClusterOptions};

use crate::{Plugin, is_one_sentence};

const CRD: &str = include_str!("../../../crds/yaml/spotpools.yaml");

#[test]
fn a_cluster_that_does_not_know_spot_pools_or_the_user_is_told_of_in_one_sentence() {
    run(async {
        let programs = Programs::build(Profile::Dev).await.unwrap();
        let mut options = ClusterOptions::default();
        options.kwok = false;
        let cluster = Cluster::start(options).await.unwrap();
        let client = cluster.client().await.unwrap();
        let plugin = Plugin::new(&programs.kubectl_plugin, cluster.admin_kubeconfig());
        for line in ["status", "watch", "explain p", "timeline", "failback p --now", "status p -o json"] {
            is_one_sentence(&plugin.run(line).await, "does not know SpotPools: install");
        }
        // That is what the doctor is for.
        let doctor = plugin.run("doctor").await;
        assert_eq!((doctor.code, doctor.err.as_str()), (1, ""), "{doctor:?}");
        assert!(doctor.out.contains("fail  crd:") && doctor.out.contains("agents-installed"), "{doctor:?}");

        apply(&client, CRD, |_| ()).await.unwrap();
        // It is served a moment later.
        eventually("an empty list", async || {
            let said = plugin.run("status").await;
            Ok((said.code == 0).then(|| assert_eq!(said.out, "No SpotPools.\n")))
        })
        .await
        .unwrap();
        is_one_sentence(&plugin.run("status p").await, "there is no SpotPool p: there is none at all here");

        // Somebody who may do nothing.
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        create(&accounts, json!({"metadata": {"name": "nobody"}})).await.unwrap();
        let request: TokenRequest = object(json!({"metadata": {}, "spec": {"audiences": []}})).unwrap();
        let answer = accounts.create_token_request("nobody", &PostParams::default(), &request).await.unwrap();
        let path = cluster.dir().join("nobody.kubeconfig");
        cluster
            .service_account_kubeconfig("default", "nobody", &answer.status.unwrap().token, &path)
            .unwrap();
        let nobody = Plugin::new(&programs.kubectl_plugin, &path);
        for line in ["status", "status p -n team", "watch", "explain p", "timeline", "doctor", "status -A"] {
            is_one_sentence(&nobody.run(line).await, "you may not list spotpools.spotpool.dev in ");
        }
        let denied = nobody.run("status p -n team").await;
        assert!(denied.err.contains("kubectl auth can-i list spotpools.spotpool.dev -n team"), "{denied:?}");

        // Somebody who is not known at all.
        cluster.service_account_kubeconfig("default", "nobody", "not.a.token", &path).unwrap();
        is_one_sentence(&nobody.run("status").await, "sign in again");

        // Nobody is there.
        let admin = std::fs::read_to_string(cluster.admin_kubeconfig()).unwrap();
        std::fs::write(&path, admin.replace(cluster.server_url(), "https://127.0.0.1:9")).unwrap();
        is_one_sentence(&nobody.run("status").await, "cannot reach the cluster at https://127.0.0.1:9");

        // No setting that could work is code 2, and says which.
        std::fs::write(&path, "{").unwrap();
        for (line, wanted) in
            [("status", "kubeconfig"), ("status --context nowhere", "kubeconfig"), ("stats", "'status'")]
        {
            let said = nobody.run(line).await;
            assert_eq!(said.code, 2, "{said:?}");
            assert!(said.err.contains(wanted), "`{line}`: {said:?}");
        }
        let script = nobody.ok("completion bash").await;
        assert!(script.contains("kubectl-spotpool"), "it needs no cluster");
        cluster.stop().await.unwrap();
    });
}
