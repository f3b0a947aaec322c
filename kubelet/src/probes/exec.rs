//! Exec probes: a command in the container ends with 0. Hooks run their commands through here too.

use super::{Found, shorten};
use crate::cri::client::{CriError, Runtime};
use crate::cri::env::expand;
use crate::pod::ContainerId;
use k8s_openapi::api::core::v1::Container;
use std::time::Duration;

/// The command with `$(VAR)` replaced by those variables of the container that are plain text, as upstream does for probes.
#[must_use]
pub fn command(words: &[String], container: &Container) -> Vec<String> {
    let lookup = |name: &str| {
        let found = container.env.iter().flatten().find(|var| var.name == name);
        found.and_then(|var| var.value.as_deref())
    };
    words.iter().map(|word| expand(word, lookup)).collect()
}

/// How a command in a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    /// Standard output, then standard error.
    pub output: String,
}

/// Runs a command in a container to its end; a zero timeout is none.
pub async fn run(
    runtime: &Runtime,
    id: &ContainerId,
    command: Vec<String>,
    timeout: Duration,
) -> Result<Ended, CriError> {
    let answer = runtime.exec_sync(id, command, timeout).await?;
    let mut output = answer.stdout;
    output.extend(answer.stderr);
    Ok(Ended {
        code: answer.exit_code,
        output: shorten(&output),
    })
}

pub(super) async fn probe(
    runtime: &Runtime,
    id: &ContainerId,
    command: Vec<String>,
    timeout: Duration,
) -> Result<Found, String> {
    let shown = command.join(" ");
    match run(runtime, id, command, timeout).await {
        Ok(ended) if ended.code == 0 => Ok(Found::Success),
        Ok(ended) => Ok(Found::Failure(ended.output)),
        Err(error) if error.is_timeout() => Ok(Found::Failure(format!(
            "command timed out: \"{shown}\" timed out after {}s",
            timeout.as_secs()
        ))),
        Err(error) => Err(error.to_string()),
    }
}
