//! How a session tells its client the end: the `v1.Status` of protocol version 4 and later, a line of text before that.

use serde_json::json;

use crate::error::VerbError;

/// How a session ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The command's exit code; 0 too when an attached container ended.
    Exit(i32),
    /// It could not be served.
    Failed(String),
}

impl From<Result<i32, VerbError>> for End {
    fn from(result: Result<i32, VerbError>) -> Self {
        match result {
            Ok(code) => Self::Exit(code),
            Err(err) => Self::Failed(err.to_string()),
        }
    }
}

impl End {
    /// The bytes of the error stream.
    pub(crate) fn message(&self, as_status: bool) -> Vec<u8> {
        match (self, as_status) {
            (Self::Exit(0), false) => Vec::new(),
            (Self::Exit(code), false) => exit_text(*code).into_bytes(),
            (Self::Failed(text), false) => text.clone().into_bytes(),
            (Self::Exit(0), true) => json!({"metadata": {}, "status": "Success"})
                .to_string()
                .into_bytes(),
            (Self::Exit(code), true) => json!({
                "metadata": {},
                "status": "Failure",
                "message": exit_text(*code),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })
            .to_string()
            .into_bytes(),
            (Self::Failed(text), true) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {text}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": text}]},
                "code": 500,
            })
            .to_string()
            .into_bytes(),
        }
    }
}

fn exit_text(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit code {code}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_find_the_exit_code_in_the_causes() {
        let value: serde_json::Value = serde_json::from_slice(&End::Exit(3).message(true)).unwrap();
        assert_eq!(value["reason"], "NonZeroExitCode");
        assert_eq!(
            value["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "3"})
        );
        let value: serde_json::Value = serde_json::from_slice(&End::Exit(0).message(true)).unwrap();
        assert_eq!(value["status"], "Success");
        let failed = End::Failed("no such program".into());
        let value: serde_json::Value = serde_json::from_slice(&failed.message(true)).unwrap();
        assert_eq!(
            (value["reason"].as_str(), value["code"].as_u64()),
            (Some("InternalError"), Some(500))
        );
        assert_eq!(failed.message(false), b"no such program");
        assert_eq!(End::Exit(0).message(false), b"");
    }
}
