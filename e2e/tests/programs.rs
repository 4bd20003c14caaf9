//! Programs that are started wrongly: exit code 2, and one line that says which flag and why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use spotpool_e2e::{Profile, Programs, run};

/// Arguments beside which one is wrong, and the flag that the message must name.
type Case<'a> = (&'a [&'a str], &'a str);

async fn refuses(program: &Path, usual: &[&str], cases: &[Case<'_>]) {
    for (args, flag) in cases {
        // Nothing from the environment: each flag has a variable of its name.
        let mut command = tokio::process::Command::new(program);
        command.args(usual).args(*args).env_clear().kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_mins(1), command.output()).await;
        let output = output.unwrap_or_else(|_| panic!("{args:?} is taken for good")).unwrap();
        let (said, out) =
            (String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert!(said.contains(flag), "{args:?}: {said}");
        assert!(said.starts_with(program.file_name().unwrap().to_str().unwrap()), "{said}");
        assert_eq!(out, "", "{args:?}");
    }
}

#[test]
fn a_node_agent_with_a_wrong_flag_says_which() {
    run(async {
        let programs = Programs::build(Profile::Dev).await.unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().to_string();
        let usual = ["--node-name=n", "--listen=127.0.0.1:0", "--notice-listen=127.0.0.1:0"];
        refuses(&programs.node_agent, &[], &[(&[], "--node-name"), (&["--nodename=n"], "--nodename")]).await;
        let relay = ["--node-name=n", "--listen=127.0.0.1:0"];
        let admin = ["--node-name=n", "--notice-listen=127.0.0.1:0"];
        refuses(
            &programs.node_agent,
            &relay,
            &[
                (&["--notice-listen=9437"], "--notice-listen"),
                (&["--notice-listen", &taken], "--notice-listen"),
            ],
        )
        .await;
        refuses(
            &programs.node_agent,
            &admin,
            &[(&["--listen=nowhere:x"], "--listen"), (&["--listen", &taken], "--listen")],
        )
        .await;
        refuses(
            &programs.node_agent,
            &usual,
            &[
                (&["--imds-endpoint=https://169.254.169.254"], "--imds-endpoint"),
                (&["--imds-endpoint=169.254.169.254"], "--imds-endpoint"),
                (&["--poll-interval=10ms"], "--poll-interval"),
                (&["--poll-interval=often"], "--poll-interval"),
                (&["--escalate-after=11m"], "--escalate-after"),
                (&["--drain-reserve=21s"], "--drain-reserve"),
                (&["--blocked-by-pdb=Maybe"], "--blocked-by-pdb"),
                (&["--log-format=xml"], "--log-format"),
                (&["--log-level=!loud"], "--log-level"),
                (&["--tls-cert-file=/nonexistent/crt", "--tls-key-file=/nonexistent/key"], "--tls-cert-file"),
                (&["--tls-cert-file=/nonexistent/crt"], "--tls-key-file"),
                (&["--kubeconfig=/nonexistent/config"], "--kubeconfig"),
                // Not in a cluster: it says what to give.
                (&[], "--kubeconfig"),
                (&["surplus"], "surplus"),
            ],
        )
        .await;
    });
}

#[test]
fn an_operator_with_a_wrong_flag_says_which() {
    run(async {
        let programs = Programs::build(Profile::Dev).await.unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().to_string();
        let cluster = ["--subscription-id=s", "--resource-group=g", "--cluster-name=c"];
        let azure = ["--azure-credential=none", "--azure-endpoint=http://127.0.0.1:1"];
        let listen = "--listen=127.0.0.1:0";
        let but = |flag: &str| -> Vec<&str> {
            let all = cluster.iter().chain(&azure).chain([&listen]);
            all.filter(|argument| !argument.starts_with(&format!("{flag}="))).copied().collect()
        };
        let cases: &[Case<'_>] = &[
            (&["--azure-endpoint=nowhere"], "--azure-endpoint"),
            (&["--azure-endpoint=http://192.0.2.1"], "--azure-endpoint"),
            (&["--azure-credential=password"], "--azure-credential"),
            (&["--cost-label=cost centre"], "--cost-label"),
            (&["--currency=euro"], "--currency"),
            (&["--listen=nowhere"], "--listen"),
            (&["--listen", &taken], "--listen"),
            (&[], "--subscription-id"),
            (&[], "--resource-group"),
            (&[], "--cluster-name"),
            (&["--azure-cloud=Mars"], "--azure-cloud"),
            (&["--azure-cloud=China"], "--azure-cloud"),
            (&["--azure-api-version=latest"], "--azure-api-version"),
            (
                &["--azure-credential=workload-identity", "--azure-endpoint=http://192.0.2.1"],
                "--azure-endpoint",
            ),
            (&["--leader-election=perhaps"], "--leader-election"),
            (&["--lease-duration=1s"], "--lease-duration"),
            (&["--agent-grace=never"], "--agent-grace"),
            (&["--log-format=xml"], "--log-format"),
            (&["--log-level=!loud"], "--log-level"),
            (&["--tls-cert-file=/nonexistent/crt", "--tls-key-file=/nonexistent/key"], "--tls-cert-file"),
            (&["--kubeconfig=/nonexistent/config"], "--kubeconfig"),
            (&["--replicas=2"], "--replicas"),
        ];
        for case in cases {
            let usual: Vec<&str> = but(case.1)
                .into_iter()
                .filter(|usual| {
                    let flag = usual.split('=').next().unwrap_or_default();
                    !case.0.iter().any(|argument| argument.starts_with(&format!("{flag}=")))
                })
                .collect();
            refuses(&programs.operator, &usual, std::slice::from_ref(case)).await;
        }
    });
}

#[test]
fn a_simulator_with_a_wrong_flag_says_which() {
    run(async {
        let programs = Programs::build(Profile::Dev).await.unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().to_string();
        refuses(
            &programs.azure_sim,
            &["serve"],
            &[(&[], "--kubeconfig"), (&["--kubeconfig=/nonexistent/config"], "--kubeconfig")],
        )
        .await;
        refuses(
            &programs.azure_sim,
            &["serve", "--no-kubernetes"],
            &[
                (&["--boot-time=-1s"], "--boot-time"),
                (&["--boot-time=soon"], "--boot-time"),
                (&["--pool=spota"], "--pool"),
                (&["--pool=Bad Name=Standard_D4s_v5"], "--pool"),
                (&["--listen=nowhere"], "--listen"),
                (&["--listen", &taken], "--listen"),
                (&["--log-level=!loud"], "--log-level"),
                (&["--count-follows-evictions=perhaps"], "--count-follows-evictions"),
                (&["--colour"], "--colour"),
            ],
        )
        .await;
        refuses(&programs.azure_sim, &["list"], &[(&[], "--sim-url")]).await;
    });
}
