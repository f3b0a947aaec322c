//! What the kubelet has asked for and the client has not yet come for: each answer of CRI's Exec, Attach and PortForward names a
//! secret that is good once and for a short time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

/// How long a client may take to come.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// Requests that may be outstanding, as in other runtimes.
const OUTSTANDING_MAX: usize = 1000;

/// Which streams of a command or container the client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A command in a container.
    Exec {
        container: String,
        cmd: Vec<String>,
        wanted: Wanted,
    },
    /// A container's own streams.
    Attach { container: String, wanted: Wanted },
    /// Ports of a Pod; a client that speaks SPDY names them itself.
    PortForward { sandbox: String, ports: Vec<u16> },
}

impl Asked {
    /// The first part of the URL's path.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// Too many clients were announced and did not come.
#[derive(Debug, thiserror::Error)]
#[error("maximum number of in-flight requests exceeded")]
pub(crate) struct TooMany;

#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<String, (Instant, Asked)>>);

impl Tokens {
    /// A new secret for a request.
    pub(crate) fn issue(&self, asked: Asked, now: Instant) -> Result<String, TooMany> {
        let mut outstanding = self.0.lock();
        outstanding.retain(|_, (until, _)| *until > now);
        if outstanding.len() >= OUTSTANDING_MAX {
            return Err(TooMany);
        }
        // 122 random bits from the operating system.
        let token = Uuid::new_v4().simple().to_string();
        outstanding.insert(token.clone(), (now + GOOD_FOR, asked));
        Ok(token)
    }

    /// What a secret stands for; it is good no longer.
    pub(crate) fn redeem(&self, token: &str, now: Instant) -> Option<Asked> {
        let (until, asked) = self.0.lock().remove(token)?;
        (until > now).then_some(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        Asked::PortForward {
            sandbox: "s".into(),
            ports: vec![],
        }
    }

    #[test]
    fn a_token_is_good_once_and_for_a_minute() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue(asked(), now).unwrap();
        assert_eq!(tokens.redeem("another", now), None);
        assert_eq!(tokens.redeem(&token, now), Some(asked()));
        assert_eq!(tokens.redeem(&token, now), None);
        let late = tokens.issue(asked(), now).unwrap();
        assert_eq!(tokens.redeem(&late, now + GOOD_FOR), None);
    }

    #[test]
    fn outstanding_requests_are_bounded() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        for _ in 0..OUTSTANDING_MAX {
            tokens.issue(asked(), now).unwrap();
        }
        assert!(tokens.issue(asked(), now).is_err());
        tokens.issue(asked(), now + GOOD_FOR).unwrap();
    }
}
