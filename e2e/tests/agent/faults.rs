//! An apiserver and a metadata service on their bad days: the trouble begins before the notice, and the drain is judged by
//! the oracle like any other.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use spotpool_azure_sim::api::{Fault, FaultAction, FaultTarget};
use spotpool_crds::eviction::Phase;
use spotpool_crds::spot_pool::BlockedByPdb;
use spotpool_e2e::gateway::{Gateway, On, Trouble};
use spotpool_e2e::run;
use spotpool_e2e::wire::{OpenWire, Wire};

use crate::corner::{Corner, Looks, shared};
use crate::matrix::{Pods, evict};
use crate::oracle::{Oracle, Terms, no_promise_is_broken};

/// What the apiserver does.
enum Ill {
    Wire(Wire),
    Gateway(On, Trouble),
    /// The token is another, and the last one is not good any more.
    Rotated,
}

enum Between {
    Wire(OpenWire),
    Gateway(Gateway),
}

#[test]
fn whatever_ails_the_apiserver_every_pod_ends_in_time() {
    run(async {
        let world = shared().await;
        let refuse = |status, retry_after| Trouble::Refuse { status, retry_after };
        let (seconds, to_the_end) = (Duration::from_secs, Duration::from_mins(5));
        // What it is, how long it lasts, and how many requests may run into it.
        let rows = [
            (
                "answers two seconds late",
                Ill::Gateway(On::Everything, Trouble::Late(seconds(2))),
                to_the_end,
                60,
            ),
            ("asks to wait", Ill::Gateway(On::Everything, refuse(429, Some(1))), seconds(3), 60),
            ("internal errors", Ill::Gateway(On::Everything, refuse(500, None)), seconds(3), 120),
            ("holds all requests", Ill::Gateway(On::Everything, Trouble::Hold), seconds(6), 60),
            ("breaks off its answers", Ill::Gateway(On::Everything, Trouble::Break), seconds(4), 150),
            ("breaks off watches", Ill::Gateway(On::Watches, Trouble::Break), to_the_end, 200),
            ("versions too old to watch", Ill::Gateway(On::Watches, Trouble::Expire), seconds(5), 150),
            ("tells late of changes", Ill::Gateway(On::Watches, Trouble::Mute), seconds(8), 60),
            ("another token", Ill::Rotated, to_the_end, 60),
            ("a dead wire", Ill::Wire(Wire::Dead), seconds(6), 0),
            ("a torn wire", Ill::Wire(Wire::Torn), seconds(4), 0),
        ];
        let corner = Corner::set(&world, "badapi", rows.len() as u32).await;
        corner.daemon_set("logs", &corner.nodes[0]).await;
        Pods::on_each(&corner).await;
        let between = join_all(corner.nodes.iter().zip(&rows).map(|(node, (_, ill, ..))| {
            let corner = &corner;
            async move {
                match ill {
                    Ill::Wire(_) => Between::Wire(corner.wire(node).await),
                    Ill::Gateway(..) | Ill::Rotated => Between::Gateway(corner.gateway(node).await),
                }
            }
        }))
        .await;
        let oracle = Oracle::watching(&corner).await;
        let rows = corner.nodes.iter().zip(&between).zip(&rows);
        let findings = rows.map(|((node, between), &(name, ref ill, lasts, most))| {
            let (corner, oracle) = (&corner, &oracle);
            async move {
                match (between, ill) {
                    (Between::Wire(wire), Ill::Wire(how)) => wire.becomes(*how),
                    (Between::Gateway(gateway), Ill::Gateway(on, trouble)) => {
                        gateway.begin(on.clone(), trouble.clone());
                    }
                    (Between::Gateway(gateway), _) => {
                        let last = corner.agents().token(node).unwrap();
                        corner.agents().renew_token(node).await.unwrap();
                        gateway.begin(On::Token(last), Trouble::Refuse { status: 401, retry_after: None });
                    }
                    (Between::Wire(_), _) => unreachable!("made for each other"),
                }
                let noticed = evict(corner, node, Duration::from_secs(30)).await;
                // Answers may be lost, and what was on its way may arrive late.
                let terms = Terms { slack: Duration::from_secs(9), may_ask_again: true, ..Terms::PLAIN };
                let judged = oracle.judge(node, noticed, terms);
                let passes = async {
                    // How long a fault lasts is the fault.
                    tokio::time::sleep(lasts).await;
                    match between {
                        Between::Wire(wire) => wire.becomes(Wire::Sound),
                        Between::Gateway(gateway) => gateway.end(),
                    }
                    std::future::pending::<()>().await;
                };
                let mut finding = tokio::select! {
                    finding = judged => finding,
                    () = passes => unreachable!("pending"),
                };
                if finding.ended.len() != 3
                    || finding.notice.as_ref().map(|it| it.phase) != Some(Phase::Drained)
                {
                    finding.faults.push(format!("three pods were to end: {finding:?}"));
                }
                if let Between::Gateway(gateway) = between {
                    let struck = gateway.times();
                    println!("{name}: {struck} requests");
                    if struck == 0 {
                        finding.faults.push("the trouble struck nothing".to_owned());
                    } else if struck > most {
                        finding.faults.push(format!("{struck} requests to an apiserver in trouble"));
                    }
                }
                (name, finding)
            }
        });
        let findings = join_all(findings).await;
        no_promise_is_broken(&corner, &findings).await;
    });
}

#[test]
fn whatever_ails_the_metadata_service_the_drain_is_made_and_is_not_undone() {
    run(async {
        let world = shared().await;
        // Twice what is read of a document; in the simulator's own protocol it is four times as much.
        let two_megabytes = vec![0; 2 * 1024 * 1024];
        // Ails it at the notice, or while a budget holds the drain up.
        let rows = [
            ("slow first answer", FaultAction::Delay { time: Duration::from_secs(12) }),
            ("being serviced", FaultAction::status(410)),
            ("throttling", FaultAction::status(429)),
            ("out of order", FaultAction::status(500)),
            ("garbage", FaultAction::body("\u{1}<html>[{\"Events\": ]}")),
            ("two megabytes", FaultAction::body(two_megabytes)),
            ("hanging up", FaultAction::Drop),
            ("starting over", FaultAction::body(json!({"DocumentIncarnation": 0, "Events": []}).to_string())),
        ];
        let corner = Corner::set(&world, "badimds", 2 * rows.len() as u32).await;
        let all = Pods::on_each(&corner).await;
        for node in &corner.nodes {
            corner.policy(node, BlockedByPdb::DeleteAtDeadline, Duration::from_secs(12)).await;
        }
        let oracle = Oracle::watching(&corner).await;
        let rows = rows.iter().flat_map(|row| [(row, false), (row, true)]);
        let findings =
            corner.nodes.iter().zip(&all).zip(rows).map(|((node, pods), ((name, action), is_draining))| {
                let (corner, oracle) = (&corner, &oracle);
                async move {
                    let is_first = matches!(action, FaultAction::Delay { .. });
                    let ail = async || {
                        let target = FaultTarget::scheduled_events(Some(node));
                        let fault = Fault { target, times: is_first.then_some(1), action: action.clone() };
                        let fault = corner.sim().add_fault(&fault).await.unwrap();
                        if is_first {
                            corner.agents().process(node).unwrap().kill().unwrap();
                        }
                        fault
                    };
                    let memory = corner.resident_kib(node);
                    let (noticed, fault) = if is_draining {
                        let noticed = evict(corner, node, Duration::from_secs(40)).await;
                        corner.phase_is(node, Phase::Draining).await;
                        corner.gone(&pods.free).await;
                        (noticed, ail().await)
                    } else {
                        let fault = ail().await;
                        (evict(corner, node, Duration::from_secs(40)).await, fault)
                    };
                    // How long a fault lasts is the fault.
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    if is_draining {
                        let looks = corner.look(node).await;
                        assert!(looks.is_marked(), "{name}: {looks:?}");
                    }
                    let grown = corner.resident_kib(node).saturating_sub(memory);
                    assert!(grown < 12 * 1024, "{name}: {grown} KiB more");
                    // It may have struck as often as it should, and be over.
                    let _ = corner.sim().clear_fault(fault).await;
                    let terms = Terms { reserve: Duration::from_secs(4), ..Terms::PLAIN };
                    let mut finding = oracle.judge(node, noticed, terms).await;
                    if finding.ended.len() != 3 {
                        finding.faults.push(format!("three pods were to end: {finding:?}"));
                    }
                    let versions = oracle.versions(node);
                    let marked = versions.iter().position(Looks::is_marked).unwrap_or_default();
                    if !versions[marked..].iter().all(Looks::is_marked) {
                        finding.faults.push("it was given back".to_owned());
                    }
                    (format!("{name}, {}", if is_draining { "in a drain" } else { "at the notice" }), finding)
                }
            });
        let findings = join_all(findings).await;
        no_promise_is_broken(&corner, &findings).await;
    });
}
