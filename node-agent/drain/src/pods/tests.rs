use super::*;
use serde_json::json;

fn read(pod: serde_json::Value) -> Pod {
    let watched: WatchedPod = serde_json::from_value(pod.clone()).unwrap();
    let whole: core::Pod = serde_json::from_value(pod).unwrap();
    let read = watched.read().unwrap();
    assert_eq!(Pod::from_object(&whole).as_ref(), Some(&read));
    read
}

#[test]
fn knows_which_pods_a_drain_leaves_alone() {
    let owner = |kind: &str, controller: bool| json!([{"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "u", "controller": controller}]);
    let meta = |extra: serde_json::Value| {
        let mut meta = json!({"name": "p", "namespace": "n", "uid": "1"});
        meta.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        meta
    };
    for (pod, exempt) in [
        (json!({"metadata": meta(json!({}))}), None),
        (json!({"metadata": meta(json!({"ownerReferences": owner("ReplicaSet", true)}))}), None),
        (
            json!({"metadata": meta(json!({"ownerReferences": owner("DaemonSet", true)}))}),
            Some(Exempt::DaemonSet),
        ),
        (json!({"metadata": meta(json!({"ownerReferences": owner("DaemonSet", false)}))}), None),
        (
            json!({"metadata": meta(json!({"annotations": {MIRROR_ANNOTATION: "x", "other": "y"}}))}),
            Some(Exempt::Mirror),
        ),
        (json!({"metadata": meta(json!({})), "status": {"phase": "Succeeded"}}), Some(Exempt::Finished)),
        (json!({"metadata": meta(json!({})), "status": {"phase": "Failed"}}), Some(Exempt::Finished)),
        (json!({"metadata": meta(json!({})), "status": {"phase": "Pending"}}), None),
    ] {
        assert_eq!(read(pod.clone()).exempt, exempt, "{pod}");
    }
}

#[test]
fn reads_grace_and_whether_a_pod_ends_already() {
    let pod = read(json!({"metadata": {"name": "p", "namespace": "n", "uid": "1",
        "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"terminationGracePeriodSeconds": 5, "containers": []}}));
    assert_eq!((pod.grace.as_secs(), pod.terminating), (5, true));
    assert_eq!(read(json!({"metadata": {"name": "p", "namespace": "n", "uid": "1"}})).grace.as_secs(), 30);
}

#[test]
fn reads_what_its_owner_wants_of_a_drain() {
    let pod = read(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "1", "labels": {"app": "web", "spotpool.dev/drain-order": "last"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": "u", "controller": true}],
            "annotations": {"spotpool.dev/notify": "true", "spotpool.dev/deadline": "soon", "spotpool.dev/hook": ":8080/x", "spotpool.dev/hook-timeout": "5s",
                "spotpool.dev/blocked-by-pdb": "Leave", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {"containers": [], "priorityClassName": "system-cluster-critical", "hostNetwork": true},
        "status": {"podIP": "10.1.2.3", "startTime": "2026-01-01T00:00:00Z"},
    }));
    assert_eq!(pod.controller, Some(Controller { kind: "ReplicaSet".into(), uid: "u".into() }));
    assert_eq!(pod.labels["app"], "web");
    assert_eq!(pod.tier, Tier::Last);
    assert!(pod.notify && !pod.is_unmanaged() && pod.unreadable.is_none());
    assert_eq!(pod.told.as_deref(), Some("soon"));
    assert_eq!((pod.hook.as_deref(), pod.hook_timeout.as_deref()), (Some(":8080/x"), Some("5s")));
    assert_eq!(pod.blocked_by_pdb, Some(BlockedByPdb::Leave));
    assert_eq!(pod.ip, Some(IpAddr::from([10, 1, 2, 3])));
    assert!(pod.host_network);
    assert_eq!(pod.started, Some("2026-01-01T00:00:00Z".parse().unwrap()));
    assert!(!pod.is_of_job());
}

#[test]
fn a_pod_that_says_nothing_wants_nothing_and_nonsense_counts_as_nothing() {
    let of = |annotations: serde_json::Value, spec: serde_json::Value| {
        read(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "1", "annotations": annotations}, "spec": spec}),
        )
    };
    let plain = of(json!(null), json!({"containers": []}));
    assert!(plain.is_unmanaged() && plain.tier == Tier::Ordinary && !plain.notify && !plain.local_storage);
    let odd = of(
        json!({"spotpool.dev/blocked-by-pdb": "leave", "spotpool.dev/notify": "yes"}),
        json!({"containers": [], "priority": 1_999_999_999}),
    );
    assert!(odd.blocked_by_pdb.is_none() && !odd.notify && odd.tier == Tier::Ordinary);
    assert_eq!(odd.unreadable.as_deref(), Some(r#"spotpool.dev/blocked-by-pdb: "leave""#));
    let delete = of(
        json!({"spotpool.dev/blocked-by-pdb": "DeleteAtDeadline"}),
        json!({"containers": [], "priority": 2_000_000_000}),
    );
    assert_eq!(
        (delete.blocked_by_pdb, delete.tier),
        (Some(BlockedByPdb::DeleteAtDeadline), Tier::SystemCritical)
    );
}

#[test]
fn what_is_on_the_nodes_disk_is_lost_with_the_pod() {
    for (volume, lost) in [
        (json!({"name": "v", "emptyDir": {}}), true),
        (json!({"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}), true),
        (json!({"name": "v", "emptyDir": {"medium": "Memory"}}), false),
        (json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}), false),
    ] {
        let pod = read(json!({"metadata": {"name": "p", "namespace": "n", "uid": "1"},
            "spec": {"containers": [], "volumes": [volume.clone()]}}));
        assert_eq!(pod.local_storage, lost, "{volume}");
    }
}
