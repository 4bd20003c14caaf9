//! Budgets on the wire: Azure's limits are kept by asking less, not by being refused.

use serde_json::{Value, json};
use spotpool_azure::{AgentPools, Class, Operations, Urgency, WriteBudget};

use crate::scripted::{Asked, ENDPOINT, POOLS, Scripted, answer, list, ok, pool, read, seconds};

/// When an eviction comes, a write must be left.
#[tokio::test(start_paused = true)]
async fn routine_writes_are_refused_here_while_emergencies_go_out() {
    let scripted = Scripted::new(|_| ok(&Value::Null));
    let (arm, before) = (scripted.arm(), read(pool("spota", json!({}))).await);
    let now = "2026-11-21T07:00:00Z".parse().unwrap();
    arm.restore_write_budget("spota", WriteBudget { left: 7, at: now });
    let mut refused = 0;
    for count in 0..10 {
        if let Err(error) = arm.scale(&before, count, Urgency::Routine).await {
            assert_eq!(
                (error.class, error.code.as_str(), error.status),
                (Class::Throttled, "LocalBudget", 0)
            );
            assert!(error.is_local() && !error.outcome_unknown() && error.retry_after.is_some());
            refused += 1;
        }
    }
    assert_eq!((refused, scripted.asked().len()), (8, 2));
    assert_eq!(arm.write_budget("spota").left, 5);
    for _ in 0..5 {
        arm.scale(&before, 9, Urgency::Emergency).await.unwrap();
    }
    assert_eq!(arm.scale(&before, 9, Urgency::Emergency).await.unwrap_err().code, "LocalBudget");
    tokio::time::advance(seconds(61)).await;
    arm.scale(&before, 9, Urgency::Emergency).await.unwrap();
}

/// The hour after a restart must not be worse than the hour before.
#[tokio::test(start_paused = true)]
async fn a_restart_does_not_burn_the_bucket() {
    let scripted = Scripted::new(|_| ok(&Value::Null));
    let before = read(pool("spota", json!({}))).await;
    let mut sent = 0;
    let mut saved = None;
    for _ in 0..20 {
        let arm = scripted.arm();
        if let Some(saved) = saved {
            arm.restore_write_budget("spota", saved);
        }
        for _ in 0..3 {
            sent += u32::from(arm.scale(&before, 4, Urgency::Emergency).await.is_ok());
        }
        saved = Some(arm.write_budget("spota"));
        tokio::time::advance(seconds(10)).await;
    }
    // 10 assumed, and one a minute for 200 s.
    assert_eq!(sent, 13);
    assert_eq!(scripted.asked().len(), 13);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed_for_what_it_was_said_of() {
    let scripted = Scripted::new(|asked| match asked.method {
        http::Method::GET => {
            answer(429, &[("Retry-After", "42")], &json!({"code": "Throttled", "message": "slow"}))
        }
        _ => ok(&Value::Null),
    });
    let (arm, before) = (scripted.arm(), read(pool("spota", json!({}))).await);
    let error = arm.list().await.unwrap_err();
    assert_eq!((error.class, error.status, error.retry_after), (Class::Throttled, 429, Some(seconds(42))));
    let local = arm.list().await.unwrap_err();
    assert_eq!(local.code, "LocalBudget");
    assert!(local.retry_after.unwrap() >= seconds(42));
    assert_eq!(scripted.asked().len(), 1);
    assert_eq!(arm.machines("spota").await.unwrap_err().code, "LocalBudget", "the same bucket");
    arm.scale(&before, 5, Urgency::Emergency).await.unwrap();
    tokio::time::advance(seconds(80)).await;
    assert_eq!(arm.list().await.unwrap_err().status, 429, "asked again after it");
}

/// Forty clusters share one bucket of Azure's: one that reads as fast as it can takes a share only.
#[tokio::test(start_paused = true)]
async fn reads_wait_for_their_turn() {
    let scripted = Scripted::new(|_| ok(&list(&[])));
    let arm = scripted.arm();
    let start = tokio::time::Instant::now();
    for _ in 0..100 {
        arm.list().await.unwrap();
    }
    let took = start.elapsed();
    assert!(took >= seconds(4 * 80), "{took:?}");
    assert!(took <= seconds(4 * 90), "{took:?}");
    // What reads leave is for deleting machines.
    for _ in 0..4 {
        arm.delete_machines("spota", &["m".into()]).await.unwrap();
    }
    assert_eq!(arm.delete_machines("spota", &["m".into()]).await.unwrap_err().code, "LocalBudget");
}

/// Who confirms what it is about to write would find a list that had to wait too old, read again, and wait again, for ever.
#[tokio::test(start_paused = true)]
async fn what_was_read_is_as_old_as_its_request_and_not_as_the_wait_for_its_turn() {
    let scripted = Scripted::new(|_| ok(&list(&[pool("spota", json!({}))])));
    let arm = scripted.arm();
    let (start, first) = (tokio::time::Instant::now(), arm.list().await.unwrap().remove(0).read_at);
    for _ in 0..100 {
        let read = arm.list().await.unwrap().remove(0).read_at;
        // Answers take no time here.
        assert_eq!(read.duration_since(first).unsigned_abs(), start.elapsed());
    }
    assert!(start.elapsed() >= seconds(60), "they had to wait");
}

#[tokio::test(start_paused = true)]
async fn operations_have_a_budget_of_their_own() {
    let url = "https://management.azure.com/operations/1?x=1";
    let scripted = Scripted::new(move |asked| match asked.method {
        http::Method::PUT => answer(200, &[("azure-asyncoperation", url)], &Value::Null),
        _ => ok(&json!({"status": "InProgress"})),
    });
    let (arm, before) = (scripted.arm(), read(pool("spota", json!({}))).await);
    let operation = arm.scale(&before, 5, Urgency::Emergency).await.unwrap().operation.unwrap();
    let mut answered = 0;
    for _ in 0..100 {
        answered += u32::from(arm.operation(&operation).await.is_ok());
    }
    assert_eq!(answered, 60);
    arm.list().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn arms_own_count_of_what_is_left_is_believed() {
    let scripted = Scripted::new(|_| {
        answer(200, &[("x-ms-ratelimit-remaining-subscription-writes", "2")], &Value::Null)
    });
    let (arm, before) = (scripted.arm(), read(pool("spota", json!({}))).await);
    arm.scale(&before, 5, Urgency::Routine).await.unwrap();
    assert_eq!(arm.write_budget("spota").left, 2);
    assert_eq!(arm.scale(&before, 5, Urgency::Routine).await.unwrap_err().code, "LocalBudget");
}

/// Azure comes back from an outage: so do all operators, but not in the same second.
#[tokio::test(start_paused = true)]
async fn reads_pause_during_an_outage_and_writes_do_not() {
    let scripted = Scripted::new(|_| answer(503, &[], &Value::Null));
    let (arm, before) = (scripted.arm(), read(pool("spota", json!({}))).await);
    assert_eq!(arm.list().await.unwrap_err().status, 503);
    assert_eq!(arm.list().await.unwrap_err().status, 503);
    for _ in 0..20 {
        let _ = arm.list().await;
        tokio::time::advance(seconds(1)).await;
    }
    assert!(scripted.asked().len() <= 6, "{}", scripted.asked().len());
    assert_eq!(arm.scale(&before, 5, Urgency::Emergency).await.unwrap_err().status, 503);
}

/// One page of machines, of `pages`, with the link to the next.
fn page_of_machines(asked: &Asked, pages: u32) -> (u32, Value) {
    let page = asked.url.split("page=").nth(1).map_or(0, |page| page.parse().unwrap());
    let mut body = json!({"value": [{"name": format!("machine{page}")}]});
    if page + 1 < pages {
        body["nextLink"] = json!(format!("{ENDPOINT}{POOLS}/spota/machines?page={}", page + 1));
    }
    (page, body)
}

/// Nothing is asked of an agent pool whose machines are not known: one of many pages must be known some day, and the
/// others must not wait for it.
#[tokio::test(start_paused = true)]
async fn a_list_of_many_pages_comes_to_its_end_and_lets_others_pass() {
    const PAGES: u32 = 40;
    let scripted = Scripted::new(|asked| {
        let of_machines = asked.path().ends_with("/machines");
        ok(&if of_machines { page_of_machines(asked, PAGES).1 } else { list(&[]) })
    });
    let arm = scripted.arm();
    let lists = async {
        for _ in 0..12 {
            arm.list().await.unwrap();
            tokio::time::sleep(seconds(15)).await;
        }
    };
    let (machines, ()) = tokio::join!(arm.machines("spota"), lists);
    assert_eq!(machines.unwrap().len(), PAGES as usize);
    assert_eq!(scripted.asked().len(), PAGES as usize + 12, "no page is read twice");
}

/// All pages before it would be read again, out of a bucket that forty clusters share.
#[tokio::test(start_paused = true)]
async fn a_page_that_azure_does_not_give_is_asked_for_again() {
    let mut refusals = 0;
    let scripted = Scripted::new(move |asked| {
        let (page, body) = page_of_machines(asked, 4);
        refusals += u32::from(page == 2);
        match (page, refusals) {
            (2, 1) => answer(429, &[("Retry-After", "20")], &json!({"code": "Throttled", "message": "slow"})),
            (2, 2) => answer(503, &[], &Value::Null),
            _ => ok(&body),
        }
    });
    let start = tokio::time::Instant::now();
    let machines = scripted.arm().machines("spota").await.unwrap();
    let names: Vec<&str> = machines.iter().map(|machine| machine.name.as_str()).collect();
    assert_eq!(names, ["machine0", "machine1", "machine2", "machine3"]);
    assert!(start.elapsed() >= seconds(20), "Azure's word is kept");
    assert_eq!(scripted.asked().len(), 6);

    let gone = Scripted::new(|asked| match page_of_machines(asked, 3) {
        (1, _) => answer(503, &[], &Value::Null),
        (_, body) => ok(&body),
    });
    assert_eq!(gone.arm().machines("spota").await.unwrap_err().status, 503, "not for ever");
    assert_eq!(gone.asked().len(), 6);
}
