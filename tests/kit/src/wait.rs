//! Waiting for conditions instead of sleeping, and saying aloud what could not be tested.

use std::fmt::Debug;
use std::io::Write;
use std::time::{Duration, Instant};

/// How long a condition may take before the test fails; generous, because machines that run tests are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Tries until the answer is `Ok`, and fails with the last refusal after [`PATIENCE`].
///
/// # Panics
/// When the condition does not come true in time.
#[track_caller]
pub fn eventually<T, E: Debug>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(refusal) => assert!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} for: {what}; last: {refusal:#?}"
            ),
        }
        pause();
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the one place where tests wait between two looks at another process"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// Says that a test cannot run here, and why. In CI that is a failure.
///
/// # Panics
/// With `CI` set: there every component must be present.
pub fn skip(test: &str, reason: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "{test} cannot run: {reason}"
    );
    if let Some(path) = std::env::var_os("COX_TEST_SKIPS") {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .expect("the list of skips can be written");
        writeln!(file, "{test}: {reason}").expect("the list of skips can be written");
    }
}
