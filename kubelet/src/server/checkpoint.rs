//! `POST /checkpoint/NAMESPACE/POD/CONTAINER`: has the runtime write an archive of a running container below the kubelet's folder.

use super::streams::{Named, Refused, pairs};
use super::{Body, Routes, text};
use http::{Response, StatusCode};
use std::time::Duration;

impl Routes {
    pub(super) async fn checkpoint(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
        query: &str,
    ) -> Response<Body> {
        match self
            .write_checkpoint(namespace, name, container, query)
            .await
        {
            Ok(file) => {
                let json = serde_json::json!({ "items": [file] }).to_string();
                let mut response = text(StatusCode::OK, &json);
                let kind = http::HeaderValue::from_static("application/json");
                response
                    .headers_mut()
                    .insert(http::header::CONTENT_TYPE, kind);
                response
            }
            Err(Refused(status, message)) => text(
                status,
                &format!("checkpointing of {namespace}/{name}/{container} failed ({message})"),
            ),
        }
    }

    async fn write_checkpoint(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
        query: &str,
    ) -> Result<String, Refused> {
        let timeout = timeout(query)?;
        let pod = Named {
            namespace,
            name,
            uid: None,
        };
        let id = self.container(pod, container).await?;
        let folder = self.config.data_dir.join("checkpoints");
        let failed = |error: std::io::Error| {
            let message = format!("{} cannot be made: {error}", folder.display());
            Refused(StatusCode::INTERNAL_SERVER_ERROR, message)
        };
        let mut builder = tokio::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&folder).await.map_err(failed)?;
        // As upstream names them.
        let file = folder.join(format!(
            "checkpoint-{name}_{namespace}-{container}-{}.tar",
            self.clock.now()
        ));
        self.runtime.checkpoint(id, &file, timeout).await?;
        Ok(file.display().to_string())
    }
}

/// The seconds that the client gives; none: as long as it takes.
fn timeout(query: &str) -> Result<Duration, Refused> {
    let Some((_, value)) = pairs(query).find(|(key, _)| key == "timeout") else {
        return Ok(Duration::ZERO);
    };
    let secs = value.parse().map_err(|_| {
        let message = format!("cannot parse value of timeout parameter: {value:?}");
        Refused(StatusCode::BAD_REQUEST, message)
    })?;
    Ok(Duration::from_secs(secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_number_of_seconds() {
        assert_eq!(timeout("").unwrap(), Duration::ZERO);
        assert_eq!(timeout("timeout=60").unwrap(), Duration::from_mins(1));
        assert!(timeout("timeout=soon").is_err());
    }
}
