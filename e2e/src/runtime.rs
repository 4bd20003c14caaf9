//! One async runtime for all tests of a binary: what they share (clients, agents) outlives each of them.

use std::sync::LazyLock;

use tokio::runtime::Runtime;

#[expect(clippy::expect_used, reason = "without a runtime no test can run")]
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("an async runtime"));

/// Runs a test to its end.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    RUNTIME.block_on(test)
}
