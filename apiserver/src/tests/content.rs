use super::*;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

#[tokio::test]
async fn tables_are_made_for_objects_and_lists() {
    let server = Server::with_namespace().await;
    server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    for path in [CONFIG_MAPS.to_owned(), format!("{CONFIG_MAPS}/c")] {
        let table = server.get_as(&path, TABLE).await.ok(200);
        assert_eq!(
            (table["kind"].as_str(), table["apiVersion"].as_str()),
            (Some("Table"), Some("meta.k8s.io/v1"))
        );
        assert_eq!(
            table["columnDefinitions"][0]["name"], "Name",
            "case: {path}"
        );
        let row = table["rows"].as_array().unwrap().last().unwrap();
        assert_eq!(row["cells"][0], "c", "case: {path}");
        assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(row["object"]["metadata"]["name"], "c");
        assert!(table["metadata"]["resourceVersion"].is_string());
    }
    let whole = server
        .get_as(&format!("{CONFIG_MAPS}/c?includeObject=Object"), TABLE)
        .await
        .ok(200);
    assert_eq!(whole["rows"][0]["object"]["data"]["k"], "v");
    let none = server
        .get_as(&format!("{CONFIG_MAPS}/c?includeObject=None"), TABLE)
        .await
        .ok(200);
    assert_eq!(none["rows"][0]["object"], Value::Null);
}

#[tokio::test]
async fn partial_metadata_has_nothing_but_metadata() {
    let server = Server::with_namespace().await;
    let created = server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    let one = server
        .get_as(&format!("{CONFIG_MAPS}/c"), METADATA)
        .await
        .ok(200);
    assert_eq!(
        one,
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": created["metadata"]})
    );
    let list = server.get_as(CONFIG_MAPS, METADATA_LIST).await.ok(200);
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(names(&list).last(), Some(&"c"));
}

#[tokio::test]
async fn watches_speak_tables_and_metadata_too() {
    let server = Server::with_namespace().await;
    for (accept, kind) in [(TABLE, "Table"), (METADATA, "PartialObjectMetadata")] {
        let request = Request::get(format!("{CONFIG_MAPS}?watch=true"))
            .header("accept", accept)
            .body(Full::default())
            .unwrap();
        let mut events = Events {
            body: server.open(request).await.into_body(),
            buffer: Vec::new(),
        };
        server
            .post(CONFIG_MAPS, &json!({"metadata": {"generateName": "x-"}}))
            .await
            .ok(201);
        assert_eq!(events.next().await.unwrap()["object"]["kind"], kind);
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_not_acceptable() {
    let server = Server::with_namespace().await;
    let (code, reason, message) = server.get_as(CONFIG_MAPS, "text/html").await.failure();
    assert_eq!((code, reason.as_str()), (406, "NotAcceptable"));
    assert_eq!(
        message,
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
    let (code, reason, _) = server
        .with_body("POST", CONFIG_MAPS, "image/png", "x")
        .await
        .failure();
    assert_eq!((code, reason.as_str()), (415, "UnsupportedMediaType"));
}

#[tokio::test]
async fn long_answers_are_compressed_when_asked() {
    let server = Server::with_namespace().await;
    let mut large = config_map("large");
    large["data"]["k"] = "text ".repeat(60_000).into();
    server.post(CONFIG_MAPS, &large).await.ok(201);
    let ask = |path: String| {
        Request::get(path)
            .header("accept-encoding", "gzip")
            .body(Full::default())
            .unwrap()
    };
    for path in [format!("{CONFIG_MAPS}/large"), CONFIG_MAPS.to_owned()] {
        let packed = server.send(ask(path.clone())).await;
        assert_eq!(packed.headers["content-encoding"], "gzip", "case: {path}");
        let plain: Value =
            serde_json::from_reader(flate2::read::GzDecoder::new(&packed.body[..])).unwrap();
        assert_eq!(plain, server.get(&path).await.ok(200), "case: {path}");
    }
    let short = server.send(ask("/api/v1/namespaces/a".to_owned())).await;
    assert_eq!(short.headers.get("content-encoding"), None);
}

#[tokio::test]
async fn events_are_one_resource_in_two_groups() {
    let server = Server::with_namespace().await;
    let event = json!({
        "metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p", "namespace": "a"}, "note": "hello", "reason": "R",
        "type": "Normal", "action": "Act", "reportingController": "c", "reportingInstance": "i",
        "eventTime": "2026-01-01T00:00:00.000000Z",
    });
    let path = "/apis/events.k8s.io/v1/namespaces/a/events";
    let created = server.post(path, &event).await.ok(201);
    assert_eq!(
        (created["apiVersion"].as_str(), created["note"].as_str()),
        (Some("events.k8s.io/v1"), Some("hello"))
    );
    let core = server.get("/api/v1/namespaces/a/events/e").await.ok(200);
    assert_eq!(
        (core["apiVersion"].as_str(), core["message"].as_str()),
        (Some("v1"), Some("hello"))
    );
    assert_eq!(core["involvedObject"]["name"], "p");
    assert_eq!(
        core["metadata"]["resourceVersion"],
        created["metadata"]["resourceVersion"]
    );
    let list = server.get(path).await.ok(200);
    assert_eq!(list["items"][0]["note"], "hello");
    let of_pod = server
        .get("/api/v1/namespaces/a/events?fieldSelector=involvedObject.name%3Dp")
        .await
        .ok(200);
    assert_eq!(names(&of_pod), ["e"]);
    let patched = server
        .merge(
            &format!("{path}/e"),
            &json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}}),
        )
        .await
        .ok(200);
    assert_eq!(patched["series"]["count"], 2);
    let (code, _, message) = server
        .merge(&format!("{path}/e"), &json!({"note": "again"}))
        .await
        .failure();
    assert_eq!(code, 422, "what an event says does not change");
    assert!(message.contains("message: Invalid value"), "{message}");
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// A protobuf answer as the object that its JSON would be.
fn decoded(group: &str, version: &str, kind: &str, body: &[u8]) -> Value {
    let schema = cox_api::schema::builtin();
    let type_id = schema.kind_type(group, version, kind).unwrap();
    cox_api::codec::decode_proto(schema, type_id, body)
        .unwrap()
        .value
}

#[tokio::test]
async fn protobuf_is_spoken_both_ways() {
    let server = Server::with_namespace().await;
    let schema = cox_api::schema::builtin();
    let type_id = schema.kind_type("", "v1", "ConfigMap").unwrap();
    let body = cox_api::codec::encode_proto(schema, type_id, &config_map("c"));
    let request = Request::post(CONFIG_MAPS)
        .header("content-type", PROTOBUF)
        .header("accept", PROTOBUF)
        .body(Full::new(body.into()))
        .unwrap();
    let created = server.send(request).await;
    assert_eq!(
        (
            created.code,
            created.headers["content-type"].to_str().unwrap()
        ),
        (201, PROTOBUF)
    );
    let json = server.get(&format!("{CONFIG_MAPS}/c")).await.ok(200);
    assert_eq!(decoded("", "v1", "ConfigMap", &created.body), json);

    let list = server.get_as(CONFIG_MAPS, PROTOBUF).await;
    let list = decoded("", "v1", "ConfigMapList", &list.body);
    let plain = server.get(CONFIG_MAPS).await.ok(200);
    assert_eq!(list["metadata"], plain["metadata"]);
    assert_eq!(names(&list), names(&plain));

    let missing = server
        .get_as(&format!("{CONFIG_MAPS}/none"), PROTOBUF)
        .await;
    assert_eq!(missing.code, 404);
    assert_eq!(
        decoded("", "v1", "Status", &missing.body)["reason"],
        "NotFound"
    );

    let metadata = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let list = server.get_as(CONFIG_MAPS, &metadata).await;
    let list = decoded("meta.k8s.io", "v1", "PartialObjectMetadataList", &list.body);
    assert_eq!(names(&list), names(&plain));
}

#[tokio::test]
async fn protobuf_watches_send_frames_with_their_length() {
    let server = Server::with_namespace().await;
    let request = Request::get(format!("{CONFIG_MAPS}?watch=true&allowWatchBookmarks=true"))
        .header("accept", PROTOBUF)
        .body(Full::default())
        .unwrap();
    let response = server.open(request).await;
    assert_eq!(
        response.headers()["content-type"],
        "application/vnd.kubernetes.protobuf;stream=watch"
    );
    server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    let mut body = response.into_body();
    let mut read: Vec<u8> = Vec::new();
    let mut events = Vec::new();
    while events.len() < 2 {
        let frame = body.frame().await.unwrap().unwrap();
        read.extend_from_slice(&frame.into_data().unwrap());
        while read.len() >= 4 {
            let len = u32::from_be_bytes(read[..4].try_into().unwrap()) as usize;
            if read.len() < 4 + len {
                break;
            }
            let event: Vec<u8> = read.drain(..4 + len).skip(4).collect();
            events.push(event);
        }
    }
    assert!(events[0].starts_with(b"\x0a\x08BOOKMARK\x12"));
    assert!(events[1].starts_with(b"\x0a\x05ADDED\x12"));
    let at = events[1]
        .windows(4)
        .position(|four| four == b"k8s\0")
        .unwrap();
    let added = decoded("", "v1", "ConfigMap", &events[1][at..]);
    assert_eq!(added, server.get(&format!("{CONFIG_MAPS}/c")).await.ok(200));
}

#[tokio::test]
async fn yaml_is_answered_but_not_streamed() {
    let server = Server::with_namespace().await;
    let created = server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    let answer = server
        .get_as(&format!("{CONFIG_MAPS}/c"), "application/yaml")
        .await;
    assert_eq!(answer.headers["content-type"], "application/yaml");
    assert_eq!(cox_api::codec::yaml_value(&answer.body).unwrap(), created);
    let (code, _, message) = server
        .get_as(&format!("{CONFIG_MAPS}?watch=true"), "application/yaml")
        .await
        .yaml_failure();
    assert_eq!(code, 406);
    assert!(
        message.ends_with(
            "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
        ),
        "{message}"
    );
}

#[tokio::test]
async fn lists_and_objects_have_metadata_forms_of_their_own() {
    let server = Server::with_namespace().await;
    let (code, _, message) = server.get_as(CONFIG_MAPS, METADATA).await.failure();
    assert_eq!(
        (code, message.as_str()),
        (
            406,
            "you requested PartialObjectMetadata, but the requested object is a list (*v1.ConfigMapList)"
        )
    );
    let (code, _, message) = server
        .get_as("/api/v1/namespaces/a", METADATA_LIST)
        .await
        .failure();
    assert_eq!(
        (code, message.as_str()),
        (
            406,
            "you requested PartialObjectMetadataList, but the requested object is not a list (*v1.Namespace)"
        )
    );
}

#[tokio::test]
async fn a_watch_of_tables_tells_its_columns_once() {
    let server = Server::with_namespace().await;
    let request = Request::get(format!("{CONFIG_MAPS}?watch=true"))
        .header("accept", TABLE)
        .body(Full::default())
        .unwrap();
    let mut events = Events {
        body: server.open(request).await.into_body(),
        buffer: Vec::new(),
    };
    for name in ["c", "d"] {
        server.post(CONFIG_MAPS, &config_map(name)).await.ok(201);
    }
    let first = events.next().await.unwrap();
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    let second = events.next().await.unwrap();
    assert_eq!(second["object"]["columnDefinitions"], Value::Null);
    assert_eq!(second["object"]["rows"][0]["cells"][0], "d");
}

#[tokio::test]
async fn questions_have_no_table() {
    let server = Server::new().await;
    let request = Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
        .header("content-type", "application/json")
        .header("accept", TABLE)
        .body(Full::from(
            json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}}).to_string(),
        ))
        .unwrap();
    assert_eq!(server.send(request).await.failure().0, 406);
}
