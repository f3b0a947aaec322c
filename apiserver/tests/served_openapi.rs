//! Whatever the served OpenAPI documents name is asked for, with parameters and bodies made along their schemas and a part of them
//! wrong on purpose: no answer is the server's fault, none keeps its client waiting, and the server does not grow.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "an integration test: a story that fails by panicking"
)]

#[allow(dead_code, reason = "the other users of this module need more of it")]
#[path = "kube_rs/home.rs"]
mod home;

use std::time::Duration;

use futures::StreamExt;
use home::Home;
use http::{Method, Request, StatusCode};
use kube::Client;
use kube::client::Body;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

const SEED: u64 = 36;
/// Passes over all operations. The first fills the store and the server's tables, the second finds what is left of it.
const PASSES: usize = 4;
/// How long an answer may take. Watches are asked to end after a second.
const PATIENCE: Duration = Duration::from_secs(60);
const AT_ONCE: usize = 8;
/// What the process may grow by after the second pass: noise of the allocator, not of requests (over a thousand in each pass).
const GROWTH_MB_MAX: u64 = 48;
/// Values that are wrong, in percent; one of these in each request.
const WRONG: [u32; 3] = [0, 0, 4];
/// Optional fields that are set, in percent; one of these in each request.
const OPTIONAL: [u32; 3] = [0, 15, 50];
const DEPTH_MAX: u32 = 9;

const TEXTS: [&str; 12] = [
    "",
    "a",
    "default",
    "A b",
    "../..",
    "10.0.0.1",
    "1Gi",
    "ä\u{0}\"",
    "aGk=",
    "app=web,x!=y",
    "metadata.name=a",
    "2026-01-02T03:04:05Z",
];
const NUMBERS: [i64; 8] = [0, 1, -1, 80, 65_536, i64::MAX, i64::MIN, 2_147_483_648];

/// What decides about one request.
struct Dice {
    rng: StdRng,
    wrong: u32,
    optional: u32,
}

/// One operation of the documents.
struct Operation {
    path: String,
    method: Method,
    parameters: Vec<Value>,
    body: Option<Value>,
    schemas: std::sync::Arc<Value>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_that_the_documents_allow_or_nearly_allow_fails_in_the_server() {
    let running = Home::new().serve().await;
    let client = running.client().await;
    let operations = operations(&client).await;
    assert!(operations.len() > 700, "{} operations", operations.len());
    let mut resident = Vec::new();
    for pass in 0..PASSES {
        let answers: Vec<Result<StatusCode, String>> =
            futures::stream::iter(operations.iter().enumerate())
                .map(|(number, operation)| {
                    let seed = SEED + (pass * 1_000_000 + number) as u64;
                    ask(&client, operation, Dice::new(seed))
                })
                .buffer_unordered(AT_ONCE)
                .collect()
                .await;
        let faults: Vec<&String> = answers
            .iter()
            .filter_map(|one| one.as_ref().err())
            .collect();
        assert!(faults.is_empty(), "pass {pass} of seed {SEED}: {faults:#?}");
        let does = |status: &StatusCode| status.is_success();
        let done = answers
            .iter()
            .flatten()
            .filter(|status| does(status))
            .count();
        // Otherwise the requests are so wrong that nothing behind the first check is reached.
        assert!(
            done > operations.len() / 8,
            "{done} requests were carried out"
        );
        resident.push(resident_mb());
    }
    let grown = resident[PASSES - 1].saturating_sub(resident[1]);
    assert!(
        grown <= GROWTH_MB_MAX,
        "MB after each pass of the same operations: {resident:?}"
    );
    running.stop().await;
}

/// All operations of all documents.
async fn operations(client: &Client) -> Vec<Operation> {
    let index = get(client, "/openapi/v3").await;
    let mut all = Vec::new();
    for document in index["paths"].as_object().unwrap().values() {
        let document = get(client, document["serverRelativeURL"].as_str().unwrap()).await;
        let schemas = std::sync::Arc::new(document["components"]["schemas"].clone());
        for (path, item) in document["paths"].as_object().unwrap() {
            let shared = item["parameters"].as_array().cloned().unwrap_or_default();
            for (method, operation) in item.as_object().unwrap() {
                // Not operations: what all of them share. Proxies lead out of the server.
                if method == "parameters" || path.contains("/proxy") {
                    continue;
                }
                let own = operation["parameters"].as_array().cloned();
                all.push(Operation {
                    path: path.clone(),
                    method: method.to_uppercase().parse().unwrap(),
                    parameters: shared
                        .iter()
                        .cloned()
                        .chain(own.into_iter().flatten())
                        .collect(),
                    body: operation.get("requestBody").cloned(),
                    schemas: std::sync::Arc::clone(&schemas),
                });
            }
        }
    }
    all
}

async fn get(client: &Client, path: &str) -> Value {
    let request = Request::get(path).body(Vec::new()).unwrap();
    client.request(request).await.unwrap()
}

/// Asks once.
///
/// # Errors
/// What was wrong with the answer.
async fn ask(client: &Client, operation: &Operation, mut dice: Dice) -> Result<StatusCode, String> {
    let (uri, content_type, body) = operation.make(&mut dice);
    let what = format!(
        "{} {uri} {}",
        operation.method,
        String::from_utf8_lossy(&body)
    );
    let mut request = Request::builder()
        .method(operation.method.clone())
        .uri(&uri);
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    let accept = [
        "application/json",
        "*/*",
        "application/vnd.kubernetes.protobuf",
        "application/yaml",
    ];
    request = request.header("accept", dice.pick(&accept));
    let answer = async {
        let response = client
            .send(request.body(Body::from(body)).unwrap())
            .await
            .unwrap();
        let status = response.status();
        let mut chunks = http_body_util::BodyStream::new(response.into_body());
        while let Some(chunk) = chunks.next().await {
            chunk.unwrap();
        }
        status
    };
    let Ok(status) = tokio::time::timeout(PATIENCE, answer).await else {
        return Err(format!("no end after {PATIENCE:?}: {what}"));
    };
    // There is no node here: what asks a kubelet says so.
    let asks_kubelet = ["/log", "/exec", "/attach", "/portforward"];
    let may_fail = asks_kubelet.iter().any(|end| operation.path.ends_with(end));
    let fails = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
    if fails && !may_fail {
        return Err(format!("{status}: {what}"));
    }
    Ok(status)
}

impl Dice {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Dice {
            wrong: *WRONG.choose(&mut rng).unwrap(),
            optional: *OPTIONAL.choose(&mut rng).unwrap(),
            rng,
        }
    }

    fn percent(&mut self, chance: u32) -> bool {
        self.rng.random_range(0..100) < chance
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from.choose(&mut self.rng).unwrap().clone()
    }
}

impl Operation {
    /// Address, content type and body of a request.
    fn make(&self, dice: &mut Dice) -> (String, Option<String>, Vec<u8>) {
        let mut path = self.path.clone();
        let mut query = Vec::new();
        for parameter in &self.parameters {
            let name = parameter["name"].as_str().unwrap();
            if parameter["in"] == "path" {
                let text = if dice.percent(dice.wrong) {
                    dice.pick(&TEXTS[1..])
                } else if name == "namespace" {
                    "default"
                } else {
                    "a"
                };
                path = path.replace(&format!("{{{name}}}"), &escaped(text));
            } else if !["watch", "timeoutSeconds", "dryRun"].contains(&name)
                && dice.percent(2 * dice.wrong)
            {
                let value = self.value(&parameter["schema"], DEPTH_MAX, dice);
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                query.push(format!("{name}={}", escaped(&text)));
            }
        }
        query.push("timeoutSeconds=1".to_owned());
        if self.method == Method::GET && dice.percent(12) {
            query.push("watch=true".to_owned());
        }
        // What would lead later requests out of the server, or hold them up, is not stored.
        let groups = ["admissionregistration", "apiregistration", "flowcontrol"];
        if groups.iter().any(|group| self.path.contains(group)) {
            query.push("dryRun=All".to_owned());
        }
        let uri = format!("{path}?{}", query.join("&"));
        let Some(body) = self
            .body
            .as_ref()
            .and_then(|body| body["content"].as_object())
        else {
            return (uri, None, Vec::new());
        };
        let types: Vec<&String> = body.keys().collect();
        let mut content_type = dice.pick(&types).clone();
        let schema = &body[&content_type]["schema"];
        if content_type == "*/*" {
            "application/json".clone_into(&mut content_type);
        }
        let mut value = self.value(schema, DEPTH_MAX, dice);
        if content_type.contains("json-patch") {
            value = json!([{"op": "add", "path": "/metadata/labels", "value": value}]);
        }
        // A name that is found again by the other operations.
        if let Some(metadata) = value
            .pointer_mut("/metadata")
            .and_then(Value::as_object_mut)
        {
            metadata.insert("name".to_owned(), json!("a"));
        }
        (uri, Some(content_type), value.to_string().into_bytes())
    }

    /// A value along a schema, mostly.
    fn value(&self, schema: &Value, depth: u32, dice: &mut Dice) -> Value {
        if dice.percent(dice.wrong) {
            return anything(dice);
        }
        if let Some(name) = schema["$ref"]
            .as_str()
            .or_else(|| schema["allOf"][0]["$ref"].as_str())
        {
            let name = name.rsplit('/').next().unwrap();
            return self.value(&self.schemas[name], depth, dice);
        }
        if let Some(values) = schema["enum"].as_array() {
            return dice.pick(values);
        }
        match schema["type"].as_str() {
            Some("string") if schema["format"] == "date-time" => json!("2026-01-02T03:04:05Z"),
            Some("string") => json!(dice.pick(&TEXTS)),
            Some("integer") => json!(dice.pick(&NUMBERS)),
            Some("number") => json!(1.5),
            Some("boolean") => json!(dice.percent(50)),
            Some("array") if depth > 0 => {
                let one = |_| self.value(&schema["items"], depth - 1, dice);
                (0..2).map(one).collect()
            }
            Some("array") => json!([]),
            Some("object") if depth == 0 => json!({}),
            Some("object") => self.object(schema, depth - 1, dice),
            // A quantity, or a number or text.
            _ => dice.pick(&[json!("1Gi"), json!(80), json!("25%")]),
        }
    }

    fn object(&self, schema: &Value, depth: u32, dice: &mut Dice) -> Value {
        let required = schema["required"].as_array();
        let is_required =
            |name: &str| required.is_some_and(|all| all.iter().any(|one| one == name));
        let mut object = Map::new();
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            if is_required(name) || dice.percent(dice.optional) {
                object.insert(name.clone(), self.value(schema, depth, dice));
            }
        }
        if schema["additionalProperties"].is_object() && dice.percent(dice.optional) {
            let key = dice.pick(&TEXTS).to_owned();
            object.insert(
                key,
                self.value(&schema["additionalProperties"], depth, dice),
            );
        }
        Value::Object(object)
    }
}

fn anything(dice: &mut Dice) -> Value {
    let (number, text) = (dice.pick(&NUMBERS), dice.pick(&TEXTS));
    let all = [
        Value::Null,
        json!(true),
        json!(number),
        json!(1.5),
        json!(text),
        json!([]),
        json!({"x": [1]}),
    ];
    dice.pick(&all)
}

/// Text in a URL.
fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// Megabytes of memory of this process: server and client.
fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().unwrap();
    kilobytes / 1024
}
