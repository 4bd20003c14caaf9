//! Many nodes that lose their VMs in the same instant, as when a whole size of VMs is taken back.

use std::time::Duration;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use spotpool_crds::eviction::Phase;
use spotpool_crds::spot_pool::BlockedByPdb;
use spotpool_e2e::run;

use crate::corner::{Corner, shared};
use crate::matrix::Pods;
use crate::oracle::{Oracle, Terms, no_promise_is_broken};

const NODES: u32 = 24;

#[test]
fn nodes_noticed_in_the_same_instant_are_all_emptied_and_do_not_knock_in_step() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "crowd", NODES).await;
        let all = Pods::on_each(&corner).await;
        for node in &corner.nodes {
            corner.policy(node, BlockedByPdb::DeleteAtDeadline, Duration::from_secs(8)).await;
        }
        let oracle = Oracle::watching(&corner).await;
        let nodes: Vec<&str> = corner.nodes.iter().map(String::as_str).collect();
        let event = corner.evict(&nodes, Duration::from_secs(40)).await.remove(0);
        let terms = Terms { reserve: Duration::from_secs(4), ..Terms::PLAIN };
        let findings = join_all(nodes.iter().map(|node| {
            let oracle = &oracle;
            async move { (*node, oracle.judge(node, event.scheduled_at, terms).await) }
        }))
        .await;
        for (node, finding) in &findings {
            assert_eq!(finding.ended.len(), 3, "{node}: {finding:?}");
            assert_eq!(finding.notice.as_ref().unwrap().phase, Phase::Drained);
        }
        no_promise_is_broken(&corner, &findings).await;

        // What each got, but for what goes beside the drain.
        let mut knocks: Vec<(Timestamp, &str)> = Vec::new();
        for (node, pods) in nodes.iter().zip(&all) {
            let asked = corner.asked(node);
            let asked: Vec<_> = asked.iter().filter(|asked| asked.at >= event.scheduled_at).collect();
            let of_drain = asked.iter().filter(|asked| {
                let is_beside = ["events.k8s.io/events", "pods/status"].contains(&asked.resource.as_str());
                asked.code < 300 && !is_beside && asked.verb != "watch"
            });
            let of_drain = of_drain.count();
            assert!(of_drain <= pods.free.len() + 1 + 6, "{node}: {of_drain} requests: {asked:#?}");
            let knocked: Vec<Timestamp> =
                asked.iter().filter(|asked| asked.code == 429).map(|asked| asked.at).collect();
            assert!(knocked.len() >= 2, "{node} knocked {} times", knocked.len());
            knocks.extend(knocked.into_iter().skip(1).map(|at| (at, *node)));
        }
        // After the first time, at no moment do half of them knock together; a machine that pauses may make it seem so
        // for a while.
        knocks.sort();
        let moment = SignedDuration::from_millis(50);
        let together = knocks.iter().enumerate().filter(|(index, (at, _))| {
            let near = knocks[*index..].iter().take_while(|(other, _)| other.duration_since(*at) < moment);
            near.count() * 2 > nodes.len()
        });
        let (together, all) = (together.count(), knocks.len());
        println!("{all} knocks by {} agents, {together} of them together", nodes.len());
        assert!(together * 3 < all, "{together} of {all} knocks were in step");
    });
}
