//! By the clock.

use kube::api::{Patch, PatchParams};
use serde_json::json;
use spotpool_crds::drill::DrillPhase;
use spotpool_e2e::{OperatorOptions, run};

use crate::{EVICTIONS, drill, drill_is, drills, whole, world};

#[test]
fn a_drill_runs_by_its_schedule_and_rests_when_told() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let (stage, operator) = whole(world().await, "timed", 1, &OperatorOptions::default()).await.unwrap();
        let spec = json!({"amount": {"all": true}, "notice": "5s", "schedule": {"cron": "* * * * *"}});
        drill(&stage, "d", spec).await.unwrap();
        let waits =
            drill_is(&stage, "d", "it to wait for its time", |it| it.next_run_at.is_some()).await.unwrap();
        assert!(waits.run.is_none() && waits.message.starts_with("runs next at "), "{waits:?}");
        let ready = waits.conditions.iter().find(|it| it.type_ == "Ready").unwrap();
        assert_eq!(ready.status, "True", "waiting for its time is as it should be");
        let at = waits.next_run_at.unwrap().0;
        let status =
            drill_is(&stage, "d", "its run", |it| it.phase == Some(DrillPhase::Succeeded)).await.unwrap();
        let began = status.run.unwrap().started_at.unwrap().0;
        assert!((0..10).contains(&began.duration_since(at).as_secs()), "{began} for {at}");
        assert_eq!(status.next_run_at.unwrap().0.duration_since(at).as_secs(), 60);
        let rest = Patch::Merge(json!({"spec": {"schedule": {"suspend": true}}}));
        drills(&stage).patch("d", &PatchParams::default(), &rest).await.unwrap();
        drill_is(&stage, "d", "it to rest", |it| it.next_run_at.is_none()).await.unwrap();
        operator.stop().await.unwrap();
    });
}
