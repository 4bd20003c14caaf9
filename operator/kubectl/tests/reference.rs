//! The reference says what the program does. `UPDATE=1` writes it anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[test]
fn the_reference_is_what_the_command_line_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/kubectl-spotpool.md");
    let page = spotpool_kubectl::reference::page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == page, "{path} is not what the program says: UPDATE=1 cargo test -p spotpool-kubectl");
}
