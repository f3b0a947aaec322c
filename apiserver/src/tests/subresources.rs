use super::*;

const PODS: &str = "/api/v1/namespaces/a/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/a/deployments";

async fn with_deployment() -> Server {
    let server = Server::with_namespace().await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec =
        json!({"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    server
        .post(
            DEPLOYMENTS,
            &json!({"metadata": {"name": "d"}, "spec": spec}),
        )
        .await
        .ok(201);
    server
}

#[tokio::test]
async fn scale_reads_and_writes_the_replicas() {
    let server = with_deployment().await;
    let path = format!("{DEPLOYMENTS}/d/scale");
    let scale = server.get(&path).await.ok(200);
    assert_eq!(
        (scale["kind"].as_str(), scale["apiVersion"].as_str()),
        (Some("Scale"), Some("autoscaling/v1"))
    );
    assert_eq!(
        (
            scale["spec"]["replicas"].as_i64(),
            scale["status"]["selector"].as_str()
        ),
        (Some(2), Some("a=b"))
    );
    let mut wanted = scale.clone();
    wanted["spec"]["replicas"] = 3.into();
    assert_eq!(
        server.put(&path, &wanted).await.ok(200)["spec"]["replicas"],
        3
    );
    assert_eq!(
        server.put(&path, &wanted).await.failure().0,
        409,
        "the scale has the object's resourceVersion"
    );
    assert_eq!(
        server
            .merge(&path, &json!({"spec": {"replicas": 4}}))
            .await
            .ok(200)["spec"]["replicas"],
        4
    );
    let deployment = server.get(&format!("{DEPLOYMENTS}/d")).await.ok(200);
    assert_eq!(
        (
            deployment["spec"]["replicas"].as_i64(),
            deployment["metadata"]["generation"].as_i64()
        ),
        (Some(4), Some(3))
    );
    assert_eq!(
        server
            .get(&format!("{DEPLOYMENTS}/x/scale"))
            .await
            .failure()
            .0,
        404
    );
}

#[tokio::test]
async fn an_applied_scale_respects_the_owners_of_the_replicas() {
    let server = with_deployment().await;
    let scale = |replicas: i64| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": replicas}});
    let path = format!("{DEPLOYMENTS}/d/scale?fieldManager=scaler");
    let (code, reason, message) = server.apply(&path, &scale(7)).await.failure();
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert!(
        message.contains("using apps/v1: .spec.replicas"),
        "{message}"
    );
    let forced = server
        .apply(&format!("{path}&force=true"), &scale(7))
        .await
        .ok(200);
    assert_eq!(forced["spec"]["replicas"], 7);
    let again = server.apply(&path, &scale(7)).await.ok(200);
    assert_eq!(
        again["metadata"]["resourceVersion"], forced["metadata"]["resourceVersion"],
        "the same scale again writes nothing"
    );
    let deployment = server.get(&format!("{DEPLOYMENTS}/d")).await.ok(200);
    let entry = &deployment["metadata"]["managedFields"][0];
    assert_eq!(
        (entry["manager"].as_str(), entry["subresource"].as_str()),
        (Some("scaler"), Some("scale"))
    );
    assert_eq!(entry["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let server = Server::with_namespace().await;
    server.post(PODS, &pod("p")).await.ok(201);
    let binding =
        |node: &str| json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}});
    let bound = server
        .post(&format!("{PODS}/p/binding"), &binding("n"))
        .await
        .ok(201);
    assert_eq!(
        (bound["kind"].as_str(), bound["status"].as_str()),
        (Some("Status"), Some("Success"))
    );
    let pod_now = server.get(&format!("{PODS}/p")).await.ok(200);
    assert_eq!(pod_now["spec"]["nodeName"], "n");
    let conditions = pod_now["status"]["conditions"].as_array().unwrap();
    assert!(
        conditions
            .iter()
            .any(|one| one["type"] == "PodScheduled" && one["status"] == "True")
    );
    let (code, _, message) = server
        .post(&format!("{PODS}/p/binding"), &binding("m"))
        .await
        .failure();
    assert_eq!(code, 409);
    assert!(
        message.contains("pod p is already assigned to node \"n\""),
        "{message}"
    );
    server.post(PODS, &pod("q")).await.ok(201);
    let other = json!({"metadata": {"name": "q"}, "target": {"name": "n"}});
    server
        .post("/api/v1/namespaces/a/bindings", &other)
        .await
        .ok(201);
    assert_eq!(
        server.get(&format!("{PODS}/q")).await.ok(200)["spec"]["nodeName"],
        "n"
    );
}

#[tokio::test]
async fn evictions_respect_budgets() {
    let server = Server::with_namespace().await;
    let mut running = pod("p");
    running["metadata"]["labels"] = json!({"app": "x"});
    running["spec"]["nodeName"] = "n".into();
    server.post(PODS, &running).await.ok(201);
    server
        .merge(
            &format!("{PODS}/p/status"),
            &json!({"status": {"phase": "Running"}}),
        )
        .await
        .ok(200);
    let budgets = "/apis/policy/v1/namespaces/a/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}});
    server.post(budgets, &budget).await.ok(201);
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let path = format!("{PODS}/p/eviction");
    let refused = server.post(&path, &eviction).await;
    assert_eq!(
        (refused.code, refused.failure().1.as_str()),
        (429, "TooManyRequests")
    );
    assert_eq!(
        refused.json()["details"]["causes"][0]["reason"],
        "DisruptionBudget"
    );
    let allows = |allowed: i64| {
        json!({"status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1,
            "expectedPods": 2}})
    };
    let status = format!("{budgets}/b/status");
    server.merge(&status, &allows(0)).await.ok(200);
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    server
        .merge(&format!("{PODS}/p/status"), &ready)
        .await
        .ok(200);
    let refused = server.post(&path, &eviction).await.json();
    assert_eq!(
        refused["details"]["causes"][0]["message"],
        "The disruption budget b needs 1 healthy pods and has 1 currently"
    );
    server.merge(&status, &allows(1)).await.ok(200);
    server.post(&path, &eviction).await.ok(201);
    let budget = server.get(&format!("{budgets}/b")).await.ok(200);
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["p"].is_string());
    let evicted = server.get(&format!("{PODS}/p")).await.ok(200);
    assert!(evicted["metadata"]["deletionTimestamp"].is_string());
    let conditions = evicted["status"]["conditions"].as_array().unwrap();
    let target = conditions
        .iter()
        .find(|one| one["type"] == "DisruptionTarget");
    assert_eq!(target.unwrap()["reason"], "EvictionByEvictionAPI");
}

#[tokio::test]
async fn an_unhealthy_pod_goes_without_a_charge_where_the_budget_says_so() {
    let server = Server::with_namespace().await;
    let mut sick = pod("p");
    sick["metadata"]["labels"] = json!({"app": "x"});
    server.post(PODS, &sick).await.ok(201);
    let running = json!({"status": {"phase": "Running"}});
    server
        .merge(&format!("{PODS}/p/status"), &running)
        .await
        .ok(200);
    let budgets = "/apis/policy/v1/namespaces/a/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": {"app": "x"}}}});
    server.post(budgets, &budget).await.ok(201);
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let path = format!("{PODS}/p/eviction");
    server
        .post(budgets, &{
            let mut second = budget.clone();
            second["metadata"]["name"] = "c".into();
            second
        })
        .await
        .ok(201);
    assert_eq!(server.post(&path, &eviction).await.code, 500);
    server.delete(&format!("{budgets}/c")).await.ok(200);
    server.post(&path, &eviction).await.ok(201);
}

#[tokio::test]
async fn logs_say_why_there_are_none() {
    let server = Server::with_namespace().await;
    server.post(PODS, &pod("p")).await.ok(201);
    let empty = server.get(&format!("{PODS}/p/log")).await;
    assert_eq!((empty.code, empty.text().as_str()), (200, ""));
    assert_eq!(
        server
            .get(&format!("{PODS}/p/log?container=x"))
            .await
            .failure()
            .0,
        400
    );
    assert_eq!(server.get(&format!("{PODS}/x/log")).await.failure().0, 404);
    let mut placed = pod("q");
    placed["spec"]["nodeName"] = "n".into();
    server.post(PODS, &placed).await.ok(201);
    assert_eq!(
        server.get(&format!("{PODS}/q/log")).await.failure().2,
        "nodes \"n\" not found"
    );
}

#[tokio::test]
async fn parts_of_pods_are_updated_apart() {
    let server = Server::with_namespace().await;
    let mut asking = pod("p");
    asking["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "200m"}});
    let created = server.post(PODS, &asking).await.ok(201);
    let mut resized = created.clone();
    resized["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}});
    resized["spec"]["containers"][0]["image"] = "not-this-way".into();
    let answer = server
        .put(&format!("{PODS}/p/resize"), &resized)
        .await
        .ok(200);
    assert_eq!(
        answer["spec"]["containers"][0]["resources"]["requests"]["cpu"],
        "100m"
    );
    assert_eq!(answer["spec"]["containers"][0]["image"], "i");
    let mut debugged = answer.clone();
    debugged["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "d"}]);
    let answer = server
        .put(&format!("{PODS}/p/ephemeralcontainers"), &debugged)
        .await
        .ok(200);
    assert_eq!(answer["spec"]["ephemeralContainers"][0]["name"], "debug");
}

#[tokio::test]
async fn a_pod_and_its_init_containers_are_resized() {
    let server = Server::with_namespace().await;
    let mut asking = pod("p");
    asking["spec"]["resources"] = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}});
    asking["spec"]["initContainers"] =
        json!([{"name": "i", "image": "i", "resources": {"requests": {"cpu": "100m"}}}]);
    let created = server.post(PODS, &asking).await.ok(201);
    let resize = format!("{PODS}/p/resize");
    let mut wanted = created.clone();
    wanted["spec"]["resources"]["requests"]["cpu"] = "1500m".into();
    wanted["spec"]["initContainers"][0]["resources"]["requests"]["cpu"] = "200m".into();
    let resized = server.put(&resize, &wanted).await.ok(200);
    assert_eq!(
        resized["spec"]["resources"],
        json!({"requests": {"cpu": "1500m"}, "limits": {"cpu": "2"}})
    );
    assert_eq!(
        resized["spec"]["initContainers"][0]["resources"]["requests"]["cpu"],
        "200m"
    );
    let generation = |pod: &Value| pod["metadata"]["generation"].as_i64();
    assert_eq!(
        generation(&resized),
        generation(&created).map(|before| before + 1)
    );
    let mut removed = resized.clone();
    removed["spec"]["resources"] = Value::Null;
    let (code, _, message) = server.put(&resize, &removed).await.failure();
    assert_eq!(code, 422);
    assert!(
        message.contains("pod-level resources cannot be removed"),
        "{message}"
    );
}

#[tokio::test]
async fn questions_about_permission_are_answered() {
    let server = Server::with_namespace().await;
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "a"}}});
    let answer = server
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &review,
        )
        .await
        .ok(201);
    assert_eq!(answer["status"]["allowed"], true);
    let me = server
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &json!({}),
        )
        .await
        .ok(201);
    assert_eq!(me["status"]["userInfo"]["username"], "admin");
    let account = json!({"metadata": {"name": "robot"}});
    server
        .post("/api/v1/namespaces/a/serviceaccounts", &account)
        .await
        .ok(201);
    let token = server
        .post(
            "/api/v1/namespaces/a/serviceaccounts/robot/token",
            &json!({"spec": {"audiences": []}}),
        )
        .await
        .ok(201);
    assert!(
        token["status"]["token"]
            .as_str()
            .unwrap()
            .split('.')
            .count()
            == 3
    );
}
