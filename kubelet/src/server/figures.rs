//! `/stats/summary`, `/metrics/resource` and `/configz`.

use super::{Body, Routes, text};
use crate::stats::{self, Figures, prometheus, summary};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

impl Routes {
    async fn figures(&self) -> Result<Figures, String> {
        let machine = self.machine.look(&self.config.data_dir, self.clock.now());
        let pods = self.dispatcher.pods();
        stats::collect(&self.runtime, &self.config.node_name, machine, pods)
            .await
            .map_err(|error| error.to_string())
    }

    pub(super) async fn summary(&self) -> Response<Body> {
        match self.figures().await {
            Ok(figures) => json_answer(&summary::summary(&figures)),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error),
        }
    }

    pub(super) async fn resource_metrics(&self) -> Response<Body> {
        let figures = self.figures().await;
        if let Err(error) = &figures {
            tracing::debug!(error, "Figures could not be collected");
        }
        text(StatusCode::OK, &prometheus::resource(figures.as_ref().ok()))
    }

    /// The configuration that this kubelet runs with, in upstream's words where there are some.
    pub(super) fn configz(&self) -> Response<Body> {
        let config = &self.config;
        let dns: Vec<String> = config.cluster_dns.iter().map(ToString::to_string).collect();
        json_answer(&json!({ "kubeletconfig": {
            "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "address": config.listen.ip().to_string(), "port": config.listen.port(),
            "staticPodPath": config.static_pod_dir, "podCIDR": config.pod_cidrs.join(","), "maxPods": config.max_pods,
            "clusterDNS": dns, "clusterDomain": config.cluster_domain,
            "containerLogMaxSize": config.log_size_max.to_string(), "containerLogMaxFiles": config.log_files_max,
            "containerRuntimeEndpoint": format!("unix://{}", config.cri_socket.display()),
            "podLogsDir": config.log_dir, "maxParallelImagePulls": config.parallel_pulls,
            "runtimeRequestTimeout": format!("{}s", config.runtime_timeout.as_secs()),
        } }))
    }
}

fn json_answer(value: &Value) -> Response<Body> {
    let mut response = text(StatusCode::OK, &value.to_string());
    let json = HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}
