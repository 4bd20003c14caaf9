//! Pictures of the README are drawn from what a run of the demo has written.

use spotpool_e2e::picture::Account;

use crate::root;

#[test]
fn the_picture_of_an_eviction_is_drawn_from_a_run_of_the_demo() {
    let file = |name: &str| root().join("docs/images").join(name);
    let account: Account =
        serde_json::from_str(&std::fs::read_to_string(file("eviction.json")).unwrap()).unwrap();
    let drawn = account.draw();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(file("eviction.svg"), &drawn).unwrap();
    }
    let committed = std::fs::read_to_string(file("eviction.svg")).unwrap();
    assert!(
        drawn == committed,
        "docs/images/eviction.svg is not of eviction.json: UPDATE=1 cargo test -p spotpool-e2e --test docs"
    );
    // What it would be wrong to show: a run in which a budget was broken or a pod was lost.
    assert!(account.service.ready.iter().all(|(_, ready)| *ready >= account.service.budget));
}
