//! What is picked for claims, by tables; and what the plugin does with it, Pod after Pod.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cox_client::TestClock;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use serde_json::{Value, json};

use super::allocate::{Allocated, Allocator, Failure};
use super::claims::results;
use super::*;
use crate::devices::DeviceObjects;
use crate::fixture::{no_volumes, node_object, pod_object};
use crate::plugins::default_profile;
use crate::{BackoffLimits, Core, Decision};

const DRIVER: &str = "dra.example.com";

fn of<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

/// `name key=value ...`: a number or text is an attribute, `mem=` a capacity, `taint=` a taint, `takes=` an amount of the
/// counter `cards/slots`, `shared` may be allocated more than once, `on=` names its node, `waits` has to be made ready.
fn device(text: &str) -> Value {
    let mut words = text.split_whitespace();
    let mut device = json!({"name": words.next().unwrap()});
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("mem", amount) => device["capacity"]["mem"]["value"] = amount.into(),
            ("taint", effect) => device["taints"] = json!([{"key": "bad", "effect": effect}]),
            ("takes", amount) => {
                let counters = json!({"slots": {"value": amount}});
                device["consumesCounters"] = json!([{"counterSet": "cards", "counters": counters}]);
            }
            ("shared", _) => device["allowMultipleAllocations"] = true.into(),
            ("on", node) => device["nodeName"] = node.into(),
            ("waits", _) => {
                device["bindingConditions"] = json!(["Attached"]);
                device["bindingFailureConditions"] = json!(["Broken"]);
                device["bindsToNode"] = true.into();
            }
            (name, value) => {
                device["attributes"][name] = match value.parse::<i64>() {
                    Ok(number) => json!({"int": number}),
                    Err(_) => json!({"string": value}),
                };
            }
        }
    }
    device
}

/// `where pool[@generation[/slices]]`, where: `*`, `per-device`, `label=value`, `counters` or the name of a node. Names count up
/// along a list of slices.
fn slice(number: usize, text: &str, devices: &[&str]) -> Arc<ResourceSlice> {
    let (place, pool) = text.split_once(' ').unwrap();
    let (pool, generation) = pool.split_once('@').unwrap_or((pool, "1"));
    let (generation, count) = generation.split_once('/').unwrap_or((generation, "1"));
    let number_of = |text: &str| text.parse::<i64>().unwrap();
    let devices: Vec<Value> = devices.iter().map(|text| device(text)).collect();
    let mut spec = json!({
        "driver": DRIVER, "devices": devices,
        "pool": {"name": pool, "generation": number_of(generation), "resourceSliceCount": number_of(count)},
    });
    match place.split_once('=') {
        Some((key, value)) => {
            let expressions = json!([{"key": key, "operator": "In", "values": [value]}]);
            spec["nodeSelector"] =
                json!({"nodeSelectorTerms": [{"matchExpressions": expressions}]});
        }
        None if place == "*" => spec["allNodes"] = true.into(),
        None if place == "per-device" => spec["perDeviceNodeSelection"] = true.into(),
        None if place == "counters" => {
            spec["sharedCounters"] =
                json!([{"name": "cards", "counters": {"slots": {"value": "4"}}}]);
            spec["allNodes"] = true.into();
        }
        None => spec["nodeName"] = place.into(),
    }
    of(json!({"metadata": {"name": format!("slice-{number:02}")}, "spec": spec}))
}

/// `name [count|all] [admin] [mem=amount] [tolerates] [if=expression without spaces]`; alternatives after `|`.
fn request(text: &str) -> Value {
    let mut alternatives = text.split('|').map(str::trim);
    let head = alternatives.next().unwrap();
    let one = |text: &str| {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap();
        let mut wanted =
            json!({"deviceClassName": "class", "allocationMode": "ExactCount", "count": 1});
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("all", _) => {
                    wanted["allocationMode"] = "All".into();
                    wanted["count"] = Value::Null;
                }
                ("admin", _) => wanted["adminAccess"] = true.into(),
                ("mem", amount) => wanted["capacity"] = json!({"requests": {"mem": amount}}),
                ("tolerates", _) => wanted["tolerations"] = json!([{"operator": "Exists"}]),
                ("if", expression) => {
                    wanted["selectors"] = json!([{"cel": {"expression": expression}}]);
                }
                (count, _) => wanted["count"] = count.parse::<i64>().unwrap().into(),
            }
        }
        (name.to_owned(), wanted)
    };
    let rest: Vec<Value> = alternatives
        .map(|text| {
            let (name, mut wanted) = one(text);
            wanted["name"] = name.into();
            wanted
        })
        .collect();
    if rest.is_empty() {
        let (name, wanted) = one(head);
        return json!({"name": name, "exactly": wanted});
    }
    json!({"name": head, "firstAvailable": rest})
}

/// `same=` and `distinct=` name an attribute, the rest are requests.
fn claim(name: &str, requests: &[&str]) -> Value {
    let (mut wanted, mut constraints) = (Vec::new(), Vec::new());
    for text in requests {
        match text.split_once('=') {
            Some(("same", attribute)) => {
                constraints.push(json!({"matchAttribute": format!("{DRIVER}/{attribute}")}));
            }
            Some(("distinct", attribute)) => {
                constraints.push(json!({"distinctAttribute": format!("{DRIVER}/{attribute}")}));
            }
            _ => wanted.push(request(text)),
        }
    }
    json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "1"},
        "spec": {"devices": {"requests": wanted, "constraints": constraints}},
    })
}

fn class() -> Arc<DeviceClass> {
    let selectors = json!([{"cel": {"expression": format!("device.driver == '{DRIVER}'")}}]);
    of(json!({"metadata": {"name": "class"}, "spec": {"selectors": selectors}}))
}

fn held(devices: &[&str]) -> Allocated {
    let results: Vec<Value> = devices
        .iter()
        .map(|text| {
            let mut words = text.split_whitespace();
            let (pool, device) = words.next().unwrap().split_once('/').unwrap();
            let mut result =
                json!({"driver": DRIVER, "pool": pool, "device": device, "request": "r"});
            for word in words {
                match word.split_once('=') {
                    Some((_, amount)) => {
                        result["consumedCapacity"] = json!({"mem": amount});
                        result["shareID"] = "share".into();
                    }
                    None => result["adminAccess"] = true.into(),
                }
            }
            result
        })
        .collect();
    let mut allocated = Allocated::default();
    allocated.add(&serde_json::from_value(json!({"devices": {"results": results}})).unwrap());
    allocated
}

type Slices<'a> = &'a [(&'a str, &'a [&'a str])];

fn allocate(
    slices: Slices<'_>,
    taken: &[&str],
    claims: &[Value],
) -> Result<Option<Vec<AllocationResult>>, Failure> {
    let slices = slices.iter().enumerate();
    let slices = slices.map(|(number, (text, devices))| slice(number, text, devices));
    let classes = BTreeMap::from([("class".to_owned(), class())]);
    let allocator = Allocator::new(slices.collect(), classes, held(taken), Arc::default());
    let claims: Vec<Arc<ResourceClaim>> = claims.iter().cloned().map(of).collect();
    let mut shares = 0;
    let node = node_object("n label=zone=a");
    allocator.allocate(&node, &claims, &mut || {
        shares += 1;
        format!("share-{shares}")
    })
}

/// `request=pool/device`, claims apart by `;`.
fn picked(slices: Slices<'_>, taken: &[&str], claims: &[&[&str]]) -> String {
    let claims: Vec<Value> = claims.iter().map(|requests| claim("c", requests)).collect();
    match allocate(slices, taken, &claims) {
        Ok(Some(all)) => {
            let all = all.iter().map(|own| {
                let own = results(own).iter().map(|result| {
                    let share = result.consumed_capacity.iter().flatten();
                    let share: String = share.map(|(_, own)| format!(" {}", own.0)).collect();
                    format!(
                        "{}={}/{}{share}",
                        result.request, result.pool, result.device
                    )
                });
                own.collect::<Vec<_>>().join(",")
            });
            all.collect::<Vec<_>>().join("; ")
        }
        Ok(None) => "-".to_owned(),
        Err(Failure::Node(why) | Failure::Claims(why)) => why,
    }
}

struct Case<'a> {
    name: &'a str,
    slices: Slices<'a>,
    held: &'a [&'a str],
    claims: &'a [&'a [&'a str]],
    picked: &'a str,
}

fn check(cases: &[Case<'_>]) {
    for case in cases {
        let found = picked(case.slices, case.held, case.claims);
        assert_eq!(found, case.picked, "case: {}", case.name);
    }
}

macro_rules! cases {
    ($($name:literal: $slices:expr, $held:expr, $claims:expr => $picked:literal;)*) => {
        check(&[$(Case { name: $name, slices: $slices, held: $held, claims: $claims, picked: $picked }),*])
    };
}

#[test]
fn devices_of_the_node_are_picked_in_order() {
    cases! {
        "one": &[("n p", &["a", "b"])], &[], &[&["r"]] => "r=p/a";
        "the next, if one is held": &[("n p", &["a", "b"])], &["p/a"], &[&["r"]] => "r=p/b";
        "an administrator holds nothing": &[("n p", &["a", "b"])], &["p/a admin"], &[&["r"]] => "r=p/a";
        "administrators get what is held": &[("n p", &["a"])], &["p/a"], &[&["r admin"]] => "r=p/a";
        "but nothing twice": &[("n p", &["a"])], &[], &[&["r 2 admin"]] => "-";
        "two of one request": &[("n p", &["a", "b"])], &[], &[&["r 2"]] => "r=p/a,r=p/b";
        "too many": &[("n p", &["a", "b"])], &[], &[&["r 3"]] => "-";
        "two claims": &[("n p", &["a", "b"])], &[], &[&["r"], &["r"]] => "r=p/a; r=p/b";
        "of another node": &[("m p", &["a"])], &[], &[&["r"]] => "-";
        "of all nodes": &[("* p", &["a"])], &[], &[&["r"]] => "r=p/a";
        "of nodes with a label": &[("zone=a p", &["a"])], &[], &[&["r"]] => "r=p/a";
        "of nodes with another label": &[("zone=b p", &["a"])], &[], &[&["r"]] => "-";
        "each device its own place": &[("per-device p", &["a on=m", "b on=n"])], &[], &[&["r"]] => "r=p/b";
        "pools by name": &[("n q", &["a"]), ("n p", &["a"])], &[], &[&["r"]] => "r=p/a";
        "what has to be waited for comes last": &[("n p", &["a waits"]), ("n q", &["a"])], &[], &[&["r 2"]] => "r=q/a,r=p/a";
        "no requests, no devices": &[], &[], &[&[]] => "";
    }
}

#[test]
fn pools_are_whole_or_nothing() {
    cases! {
        "the newest generation": &[("n p@1", &["a"]), ("n p@2", &["b"])], &[], &[&["r"]] => "r=p/b";
        "a slice is missing": &[("n p@1/2", &["a"])], &[], &[&["r"]] => "-";
        "another pool is whole": &[("n p@1/2", &["a"]), ("n q", &["b"])], &[], &[&["r"]] => "r=q/b";
        "the rest is elsewhere": &[("n p@1/2", &["a"]), ("m p@1/2", &["b"])], &[], &[&["r"]] => "r=p/a";
        "a newer generation is elsewhere": &[("n p@1/2", &["a"]), ("m p@2/2", &["b"])], &[], &[&["r"]] => "-";
        "one name twice": &[("n p@1/2", &["a"]), ("n p@1/2", &["a"])], &[], &[&["r"]] => "invalid resource pools were encountered";
        "all of an incomplete pool": &[("n p@1/2", &["a"])], &[], &[&["r all"]] =>
            "claim default/c, request r: asks for all devices, but resource pool dra.example.com/p is currently being updated";
        "all of an invalid pool": &[("n p", &["a", "a"])], &[], &[&["r all"]] =>
            "claim default/c, request r: asks for all devices, but resource pool dra.example.com/p is currently invalid";
    }
}

#[test]
fn all_means_all() {
    cases! {
        "all": &[("n p", &["a", "b"]), ("n q", &["c"])], &[], &[&["r all"]] => "r=p/a,r=p/b,r=q/c";
        "all that are selected": &[("n p", &["a model=x", "b model=y"])], &[],
            &[&["r all if=device.attributes['dra.example.com'].model=='y'"]] => "r=p/b";
        "one of all is held": &[("n p", &["a", "b"])], &["p/a"], &[&["r all"]] => "-";
        "none": &[("m p", &["a"])], &[], &[&["r all"]] => "-";
        "all for an administrator": &[("n p", &["a", "b"])], &["p/a"], &[&["r all admin"]] => "r=p/a,r=p/b";
        "all cannot be the same": &[("n p", &["a model=x", "b model=y"])], &[], &[&["r all", "same=model"]] =>
            "claim default/c, request r: cannot add device dra.example.com/p/b because a claim constraint would not be satisfied";
    }
    let names: Vec<String> = (0..33).map(|number| format!("d{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(
        picked(&[("n p", &names)], &[], &[&["r all"]]),
        "claim default/c: number of requested devices 33 exceeds the claim limit of 32"
    );
}

#[test]
fn selectors_select_and_errors_are_told() {
    cases! {
        "an attribute": &[("n p", &["a index=1", "b index=2"])], &[], &[&["r if=device.attributes['dra.example.com'].index>1"]] => "r=p/b";
        "a capacity": &[("n p", &["a mem=1Gi", "b mem=4Gi"])], &[],
            &[&["r if=device.capacity['dra.example.com'].mem.isGreaterThan(quantity('2Gi'))"]] => "r=p/b";
        "a missing attribute": &[("n p", &["a"])], &[], &[&["r if=device.attributes['dra.example.com'].index>1"]] =>
            "claim default/c: selector #0: CEL runtime error: no such key: index";
        "it does not compile": &[("n p", &["a"])], &[], &[&["r if=device.nothing"]] =>
            "claim default/c: selector #0: CEL compile error: compilation failed: ERROR: <input>:1:1: undefined field 'nothing'\n | device.nothing";
    }
}

#[test]
fn constraints_hold_and_picks_are_taken_back_for_them() {
    let two: Slices<'_> = &[("n p", &["a numa=1", "b numa=2", "c numa=2"])];
    cases! {
        "the same value": two, &[], &[&["r", "s", "same=numa"]] => "r=p/b,s=p/c";
        "within one request": two, &[], &[&["r 2", "same=numa"]] => "r=p/b,r=p/c";
        "distinct values": two, &[], &[&["r", "s", "distinct=numa"]] => "r=p/a,s=p/b";
        "not so many distinct ones": two, &[], &[&["r 3", "distinct=numa"]] => "-";
        "devices that lack it": &[("n p", &["a", "b numa=1"])], &[], &[&["r", "same=numa"]] => "r=p/b";
        "an earlier claim gives way": &[("n p", &["a numa=1", "b"])], &[], &[&["r"], &["r", "same=numa"]] => "r=p/b; r=p/a";
    }
}

#[test]
fn alternatives_are_tried_in_order() {
    let slices: Slices<'_> = &[("n p", &["a size=1", "b size=1", "c size=2"])];
    cases! {
        "the first that can be had": slices, &[],
            &[&["r|big if=device.attributes['dra.example.com'].size==3|small 2 if=device.attributes['dra.example.com'].size==1"]] =>
            "r/small=p/a,r/small=p/b";
        "the first, if it can": slices, &[], &[&["r|big if=device.attributes['dra.example.com'].size==2|small"]] => "r/big=p/c";
        "a later request makes it give way": slices, &[], &[&["r|three 3|two 2", "s"]] => "r/two=p/a,r/two=p/b,s=p/c";
        "too many devices for the first": slices, &[], &[&["r|many 33|one"]] => "r/one=p/a";
    }
}

#[test]
fn taints_keep_devices_back() {
    cases! {
        "not tolerated": &[("n p", &["a taint=NoSchedule", "b taint=NoExecute"])], &[], &[&["r"]] => "-";
        "tolerated": &[("n p", &["a taint=NoSchedule"])], &[], &[&["r tolerates"]] => "r=p/a";
        "without effect": &[("n p", &["a taint=None"])], &[], &[&["r"]] => "r=p/a";
    }
}

#[test]
fn partitions_share_counters() {
    let parts: Slices<'_> = &[
        ("counters p@1/2", &[]),
        (
            "n p@1/2",
            &["whole takes=4", "half1 takes=2", "half2 takes=2", "free"],
        ),
    ];
    cases! {
        "the whole card": parts, &[], &[&["r"]] => "r=p/whole";
        "nothing beside it": parts, &[], &[&["r 2"]] => "r=p/whole,r=p/free";
        "a half is held": parts, &["p/half1"], &[&["r 2"]] => "r=p/half2,r=p/free";
        "both halves": parts, &["p/free"], &[&["r 2"]] => "r=p/half1,r=p/half2";
        "held elsewhere": &[("counters p@1/3", &[]), ("n p@1/3", &["a takes=3"]), ("m p@1/3", &["b takes=3"])], &["p/b"], &[&["r"]] => "-";
        "counters that do not exist": &[("n p", &["a takes=1"])], &[], &[&["r"]] => "invalid resource pools were encountered";
    }
}

#[test]
fn shared_devices_are_shared_as_far_as_they_go() {
    let shared: Slices<'_> = &[("n p", &["a shared mem=10"])];
    cases! {
        "a part": shared, &[], &[&["r mem=4"]] => "r=p/a 4";
        "two parts": shared, &[], &[&["r mem=4", "s mem=6"]] => "r=p/a 4,s=p/a 6";
        "too much together": shared, &[], &[&["r mem=4", "s mem=7"]] => "-";
        "others have parts": shared, &["p/a mem=8"], &[&["r mem=3"]] => "-";
        "what is left": shared, &["p/a mem=8"], &[&["r mem=2"]] => "r=p/a 2";
        "all, if nothing is said": shared, &[], &[&["r"]] => "r=p/a 10";
        "not twice for one request": shared, &[], &[&["r 2 mem=1"]] => "-";
        "a whole device has to be big enough": &[("n p", &["a mem=1", "b mem=3"])], &[], &[&["r mem=2"]] => "r=p/b";
    }
    let claims = [claim("c", &["r mem=4", "s mem=6"])];
    let found = allocate(shared, &[], &claims).unwrap().unwrap();
    let shares: Vec<_> = results(&found[0])
        .iter()
        .map(|own| own.share_id.as_deref())
        .collect();
    assert_eq!(shares, [Some("share-1"), Some("share-2")]);
}

#[test]
fn results_say_where_and_how_devices_are_used() {
    let place = |slices: Slices<'_>| {
        let found = allocate(slices, &[], &[claim("c", &["r"])])
            .unwrap()
            .unwrap();
        serde_json::to_value(&found[0].node_selector).unwrap()
    };
    let only =
        json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]);
    assert_eq!(place(&[("n p", &["a"])])["nodeSelectorTerms"], only);
    assert_eq!(place(&[("* p", &["a"])]), Value::Null);
    assert_eq!(place(&[("* p", &["a waits"])])["nodeSelectorTerms"], only);
    let zone = json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]);
    assert_eq!(place(&[("zone=a p", &["a"])])["nodeSelectorTerms"], zone);

    let opaque = |what: &str| json!({"driver": DRIVER, "parameters": {"what": what}});
    let mut configured = (*class()).clone();
    configured.spec.config = serde_json::from_value(json!([{"opaque": opaque("class")}])).unwrap();
    let mut wanting = claim("c", &["r", "s|x|y", "t"]);
    wanting["spec"]["devices"]["config"] = json!([
        {"opaque": opaque("all")},
        {"opaque": opaque("chosen"), "requests": ["s/x"]},
        {"opaque": opaque("not chosen"), "requests": ["s/y"]},
    ]);
    let allocator = Allocator::new(
        vec![slice(0, "n p", &["a", "b", "c waits"])],
        BTreeMap::from([("class".to_owned(), Arc::new(configured))]),
        Allocated::default(),
        Arc::default(),
    );
    let found = allocator.allocate(&node_object("n"), &[of(wanting)], &mut String::new);
    let found = serde_json::to_value(found.unwrap().unwrap()).unwrap();
    assert_eq!(
        found[0]["devices"]["config"],
        json!([
            {"source": "FromClass", "requests": ["r", "s/x", "t"], "opaque": opaque("class")},
            {"source": "FromClaim", "opaque": opaque("all")},
            {"source": "FromClaim", "requests": ["s/x"], "opaque": opaque("chosen")},
        ])
    );
    assert_eq!(
        found[0]["devices"]["results"][2]["bindingConditions"],
        json!(["Attached"])
    );
}

/// xorshift, from a seed.
fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

#[test]
fn whatever_is_asked_for_no_device_is_given_twice_and_constraints_hold() {
    let (mut solved, mut hopeless) = (0, 0);
    for seed in 1..400_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let devices: Vec<String> = (0..random(&mut state, 7))
            .map(|number| format!("d{number} numa={}", random(&mut state, 3)))
            .collect();
        let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
        let (low, high) = devices.split_at(devices.len() / 2);
        let constraint = ["same=numa", "distinct=numa"][usize::from(seed % 2 == 0)];
        let requests: Vec<Vec<String>> = (0..1 + random(&mut state, 2))
            .map(|_| {
                let requests = 0..1 + random(&mut state, 2);
                let requests =
                    requests.map(|number| format!("r{number} {}", 1 + random(&mut state, 2)));
                requests.chain([constraint.to_owned()]).collect()
            })
            .collect();
        let claims: Vec<Value> = requests
            .iter()
            .map(|own| claim("c", &own.iter().map(String::as_str).collect::<Vec<_>>()))
            .collect();
        let slices: Slices<'_> = &[("n p", low), ("* q", high)];
        let Some(found) = allocate(slices, &["p/d0"], &claims).unwrap() else {
            hopeless += 1;
            continue;
        };
        solved += 1;
        assert_eq!(
            found,
            allocate(slices, &["p/d0"], &claims).unwrap().unwrap(),
            "seed {seed} is decided in two ways"
        );
        let mut given = BTreeSet::from([("p".to_owned(), "d0".to_owned())]);
        for (own, wanted) in found.iter().zip(&requests) {
            let wanted: usize = wanted[..wanted.len() - 1]
                .iter()
                .map(|text| text.split_once(' ').unwrap().1.parse::<usize>().unwrap())
                .sum();
            assert_eq!(results(own).len(), wanted, "seed {seed}");
            let mut values = BTreeSet::new();
            for result in results(own) {
                let new = given.insert((result.pool.clone(), result.device.clone()));
                assert!(new, "seed {seed}: {} is given twice", result.device);
                let text = devices.iter().find(|text| {
                    text.split_once(' ')
                        .is_some_and(|(name, _)| name == result.device)
                });
                values.insert(text.unwrap().split_once(' ').unwrap().1);
            }
            let expected = if seed % 2 == 0 { wanted } else { 1 };
            assert_eq!(values.len(), expected, "seed {seed}: {constraint}");
        }
    }
    assert!(
        solved > 50 && hopeless > 50,
        "{solved} solved, {hopeless} hopeless"
    );
}

#[test]
fn hopeless_searches_end() {
    let names: Vec<String> = (0..60)
        .map(|number| format!("d{number:02} numa={number}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let found = picked(
        &[("n p", &names)],
        &[],
        &[&["r 8"], &["r 8"], &["r 2", "same=numa"]],
    );
    assert_eq!(found, "node n: timed out trying to allocate devices");
}

/// Objects that tests change as they go.
#[derive(Default)]
struct World(Mutex<DeviceObjects>);

impl World {
    fn put_claim(&self, claim: Value) {
        let claim: Arc<ResourceClaim> = of(claim);
        let mut objects = self.0.lock().unwrap();
        objects
            .claims
            .retain(|own| own.metadata.name != claim.metadata.name);
        objects.claims.push(claim);
    }
}

impl Devices for World {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        self.0.lock().unwrap().claim(namespace, name)
    }

    fn claims(&self) -> Vec<Arc<ResourceClaim>> {
        self.0.lock().unwrap().claims()
    }

    fn slices(&self) -> Vec<Arc<ResourceSlice>> {
        self.0.lock().unwrap().slices()
    }

    fn class(&self, name: &str) -> Option<Arc<DeviceClass>> {
        self.0.lock().unwrap().class(name)
    }

    fn classes(&self) -> Vec<Arc<DeviceClass>> {
        self.0.lock().unwrap().classes()
    }
}

const TIMEOUT: Duration = Duration::from_secs(600);

/// Nodes `n` and `m`, each with a device of its own.
fn core() -> (Core, Arc<World>, DynamicResources) {
    let world = Arc::new(World::default());
    {
        let mut objects = world.0.lock().unwrap();
        objects.classes.push(class());
        objects.slices.push(slice(0, "n pn", &["a"]));
        objects.slices.push(slice(1, "m pm", &["a"]));
    }
    let clock = TestClock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
    let plugin = DynamicResources::new(Arc::clone(&world) as _, Arc::new(clock), TIMEOUT);
    let limits = BackoffLimits {
        initial: Duration::from_secs(1),
        max: Duration::from_secs(10),
    };
    let profile = default_profile(&no_volumes(), &plugin);
    let mut core = Core::new("default-scheduler", profile, limits, 1);
    for node in ["n cpu=4", "m cpu=4"] {
        core.node_applied(&node_object(node), Duration::ZERO);
    }
    (core, world, plugin)
}

fn pod_with(name: &str, claim: &str) -> Arc<k8s_openapi::api::core::v1::Pod> {
    let mut pod = (*pod_object(name)).clone();
    let own = json!([{"name": "own", "resourceClaimName": claim}]);
    pod.spec.as_mut().unwrap().resource_claims = serde_json::from_value(own).unwrap();
    Arc::new(pod)
}

fn at(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn decide(core: &mut Core, now: Duration) -> String {
    let decisions = std::iter::from_fn(|| core.next(now)).map(|decision| match decision {
        Decision::Bind { pod, .. } => format!("{} bound", pod.uid),
        Decision::Unschedulable { pod, message } => format!("{}: {message}", pod.uid),
    });
    decisions.collect::<Vec<_>>().join("; ")
}

fn claim_event(core: &mut Core, name: &str, now: Duration) {
    core.devices_changed(ClusterEvents::DEVICE_CLAIM, Some(("default", name)), now);
}

#[test]
fn pods_wait_for_their_claims() {
    let (mut core, world, _) = core();
    core.pod_applied(&pod_with("p", "c"), at(0));
    let none = "p: 0/2 nodes are available: resourceclaim.resource.k8s.io \"c\" not found.";
    assert_eq!(decide(&mut core, at(0)), none);
    claim_event(&mut core, "other", at(2));
    assert_eq!(
        decide(&mut core, at(2)),
        "",
        "that is not the claim that it waits for"
    );
    world.put_claim(claim("c", &["r"]));
    claim_event(&mut core, "c", at(3));
    assert_eq!(decide(&mut core, at(3)), "p bound");
}

#[test]
fn a_claim_made_for_a_pod_must_be_its_own() {
    let (mut core, world, _) = core();
    let mut pod = (*pod_object("p")).clone();
    let own = json!([{"name": "own", "resourceClaimTemplateName": "t"}]);
    pod.spec.as_mut().unwrap().resource_claims = serde_json::from_value(own).unwrap();
    core.pod_applied(&Arc::new(pod.clone()), at(0));
    assert_eq!(
        decide(&mut core, at(0)),
        "",
        "as long as it is not made nothing is said, as of a gate"
    );
    world.put_claim(claim("made", &["r"]));
    let status = json!([{"name": "own", "resourceClaimName": "made"}]);
    pod.status.get_or_insert_default().resource_claim_statuses =
        serde_json::from_value(status).unwrap();
    core.pod_applied(&Arc::new(pod), at(2));
    assert_eq!(
        decide(&mut core, at(2)),
        "p: 0/2 nodes are available: ResourceClaim default/made was not created for Pod default/p (Pod is not owner)."
    );
    let mut made = claim("made", &["r"]);
    made["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p", "controller": true}]);
    world.put_claim(made);
    claim_event(&mut core, "made", at(9));
    assert_eq!(decide(&mut core, at(9)), "p bound");
}

#[test]
fn what_one_pod_was_promised_no_other_gets_until_it_is_given_back() {
    let (mut core, world, plugin) = core();
    for number in 0..3 {
        world.put_claim(claim(&format!("c{number}"), &["r"]));
        core.pod_applied(
            &pod_with(&format!("p{number}"), &format!("c{number}")),
            at(0),
        );
    }
    let Some(Decision::Bind { pod, node }) = core.next(at(0)) else {
        panic!("not bound")
    };
    assert_eq!(plugin.planned("p0").unwrap().node, node);
    assert_eq!(
        decide(&mut core, at(0)),
        "p1 bound; p2: 0/2 nodes are available: 2 cannot allocate all claims."
    );
    core.bind_failed(&pod, &node, at(1));
    core.pod_deleted("p0", at(1));
    core.devices_changed(ClusterEvents::DEVICE_CLAIM, None, at(2));
    assert_eq!(decide(&mut core, at(2)), "p2 bound");
}

#[test]
fn what_was_written_is_set_aside_until_it_is_seen() {
    let (mut core, world, plugin) = core();
    world.0.lock().unwrap().slices.pop();
    for number in 0..2 {
        world.put_claim(claim(&format!("c{number}"), &["r"]));
        core.pod_applied(
            &pod_with(&format!("p{number}"), &format!("c{number}")),
            at(0),
        );
    }
    let Some(Decision::Bind { pod, .. }) = core.next(at(0)) else {
        panic!("not bound")
    };
    let planned = plugin.planned("p0").unwrap();
    let mut written = (*planned.claims[0].claim).clone();
    written.status.get_or_insert_default().allocation = planned.claims[0].allocation.clone();
    written.metadata.resource_version = Some("7".into());
    let mut emptied = written.clone();
    plugin.written(&pod, &Arc::new(written));
    core.bound("p0");
    let full = "p1: 0/2 nodes are available: 2 cannot allocate all claims.";
    assert_eq!(decide(&mut core, at(0)), full, "written, and not seen");
    emptied.status = None;
    emptied.metadata.resource_version = Some("8".into());
    world.put_claim(serde_json::to_value(emptied).unwrap());
    core.devices_changed(ClusterEvents::DEVICE_CLAIM, None, at(2));
    assert_eq!(decide(&mut core, at(2)), "p1 bound", "seen, and given back");
}

fn allocated_to(node: &str, uids: &[&str]) -> Value {
    let mut own = claim("c", &["r"]);
    let reserved: Vec<Value> = uids
        .iter()
        .map(|uid| json!({"resource": "pods", "name": uid, "uid": uid}))
        .collect();
    own["status"] = json!({"reservedFor": reserved, "allocation": {
        "devices": {"results": [{"request": "r", "driver": DRIVER, "pool": format!("p{node}"), "device": "a"}]},
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]},
    }});
    own
}

#[test]
fn an_allocated_claim_decides_where_its_pods_go() {
    let (mut core, world, plugin) = core();
    world.put_claim(allocated_to("m", &["other"]));
    core.pod_applied(&pod_with("p", "c"), at(0));
    let Some(Decision::Bind { pod, node }) = core.next(at(0)) else {
        panic!("not bound")
    };
    assert_eq!(&*node, "m");
    let planned = plugin.planned("p").unwrap();
    assert!(planned.claims[0].allocation.is_none() && !planned.claims[0].is_reserved);
    assert!(plugin.take_follow_ups(&pod).is_empty());
}

#[test]
fn devices_that_keep_a_pod_off_all_nodes_are_given_back_if_nobody_else_has_them() {
    for (users, expected) in [(&[][..], true), (&["p"], true), (&["p", "other"], false)] {
        let (mut core, world, plugin) = core();
        world.put_claim(allocated_to("gone", users));
        core.pod_applied(&pod_with("p", "c"), at(0));
        let Some(Decision::Unschedulable { pod, message }) = core.next(at(0)) else {
            panic!("it has a node")
        };
        assert_eq!(
            message,
            "0/2 nodes are available: 2 resourceclaim not available on the node."
        );
        let follow_ups = plugin.take_follow_ups(&pod);
        let given_back = matches!(&follow_ups[..], [FollowUp::Deallocate(_)]);
        assert_eq!(given_back, expected, "reserved for {users:?}");
    }
}

#[test]
fn a_selector_that_fails_on_one_node_keeps_the_pod_off_all() {
    let (mut core, world, _) = core();
    world.0.lock().unwrap().slices[0] = slice(0, "n pn", &["a index=1"]);
    world.put_claim(claim(
        "c",
        &["r if=device.attributes['dra.example.com'].index==1"],
    ));
    core.pod_applied(&pod_with("p", "c"), at(0));
    let why = "p: running \"DynamicResources\" filter plugin: claim default/c: selector #0: CEL runtime error: no such key: index";
    assert_eq!(decide(&mut core, at(0)), why);
    world.0.lock().unwrap().slices.pop();
    core.devices_changed(ClusterEvents::DEVICE_SLICE, None, at(2));
    assert_eq!(decide(&mut core, at(2)), "p bound");
}

#[test]
fn a_node_with_an_earlier_alternative_is_better() {
    for (first, node) in [("1", "n"), ("2", "m")] {
        let (mut core, world, _) = core();
        {
            let mut objects = world.0.lock().unwrap();
            objects.slices[0] = slice(0, "n pn", &["a index=1"]);
            objects.slices[1] = slice(1, "m pm", &["a index=2"]);
        }
        let first = format!("r|x if=device.attributes['dra.example.com'].index=={first}|y");
        world.put_claim(claim("c", &[&first]));
        core.pod_applied(&pod_with("p", "c"), at(0));
        let Some(Decision::Bind { node: found, .. }) = core.next(at(0)) else {
            panic!("not bound")
        };
        assert_eq!(&*found, node);
    }
}

#[test]
fn a_class_that_is_missing_is_named() {
    let (mut core, world, _) = core();
    world.0.lock().unwrap().classes.clear();
    world.put_claim(claim("c", &["r", "s|x|y"]));
    core.pod_applied(&pod_with("p", "c"), at(0));
    assert_eq!(
        decide(&mut core, at(0)),
        "p: 0/2 nodes are available: request r: device class class does not exist."
    );
}

#[test]
fn devices_that_failed_or_are_overdue_are_not_available() {
    let condition = |type_: &str| {
        json!([{"driver": DRIVER, "pool": "pn", "device": "a", "conditions": [
            {"type": type_, "status": "True", "reason": "Said", "message": "so", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}])
    };
    let cases = [
        ("ready", condition("Attached"), "2025-12-31T00:00:00Z", true),
        ("still time", Value::Null, "2025-12-31T23:55:00Z", true),
        ("overdue", Value::Null, "2025-12-31T23:40:00Z", false),
        ("failed", condition("Broken"), "2025-12-31T23:59:00Z", false),
    ];
    for (name, devices, since, expected) in cases {
        let (mut core, world, _) = core();
        let mut own = allocated_to("n", &[]);
        let held = &mut own["status"]["allocation"];
        held["allocationTimestamp"] = since.into();
        held["devices"]["results"][0]["bindingConditions"] = json!(["Attached"]);
        held["devices"]["results"][0]["bindingFailureConditions"] = json!(["Broken"]);
        own["status"]["devices"] = devices;
        world.put_claim(own);
        core.pod_applied(&pod_with("p", "c"), at(0));
        assert_eq!(
            decide(&mut core, at(0)) == "p bound",
            expected,
            "case: {name}"
        );
    }
}

fn gpu_class() -> Arc<DeviceClass> {
    let mut class = (*class()).clone();
    class.spec.extended_resource_name = Some("example.com/gpu".into());
    Arc::new(class)
}

#[test]
fn devices_stand_in_for_extended_resources() {
    let (mut core, world, plugin) = core();
    core.pod_applied(&pod_object("p gpu=1"), at(0));
    let lacks = "p: 0/2 nodes are available: 2 Insufficient example.com/gpu.";
    assert_eq!(decide(&mut core, at(0)), lacks);
    world.0.lock().unwrap().classes = vec![gpu_class()];
    core.devices_changed(ClusterEvents::DEVICE_CLASS, None, at(2));
    let Some(Decision::Bind { pod, node }) = core.next(at(2)) else {
        panic!("not bound")
    };
    let planned = plugin.planned("p").unwrap();
    assert!(planned.claims.is_empty());
    let own = planned.extended.unwrap();
    assert_eq!(results(&own.allocation)[0].request, "container-0-request-0");
    assert_eq!(own.mappings[0].resource_name, "example.com/gpu");
    let meta = &own.claim.metadata;
    assert_eq!(meta.generate_name.as_deref(), Some("p-extended-resources-"));
    assert_eq!(meta.owner_references.as_ref().unwrap()[0].uid, "p");

    core.pod_applied(&pod_object("both gpu=1"), at(3));
    core.pod_applied(&pod_object("none gpu=1"), at(3));
    let full = "0/2 nodes are available: 2 cannot allocate all claims.";
    assert_eq!(
        decide(&mut core, at(3)),
        format!("both bound; none: {full}")
    );

    // It was made, and the binding fails: it has to go, and its device is free.
    let mut made = (*own.claim).clone();
    made.metadata.name = Some("made".into());
    made.metadata.uid = Some("uid-made".into());
    plugin.made(&pod, &Arc::new(made));
    core.bind_failed(&pod, &node, at(4));
    assert!(
        matches!(&plugin.take_follow_ups(&pod)[..], [FollowUp::Delete(own)] if own.metadata.name.as_deref() == Some("made"))
    );
    core.pod_deleted("p", at(4));
    core.devices_changed(ClusterEvents::DEVICE_CLAIM, None, at(9));
    assert_eq!(decide(&mut core, at(9)), "none bound");
}

#[test]
fn a_node_that_has_the_resource_itself_needs_no_devices() {
    let (mut core, world, plugin) = core();
    world.0.lock().unwrap().classes = vec![gpu_class()];
    world.0.lock().unwrap().slices.clear();
    core.node_applied(&node_object("own cpu=4 gpu=1"), at(0));
    core.pod_applied(&pod_object("p gpu=1"), at(0));
    core.pod_applied(&pod_object("q gpu=1"), at(0));
    assert_eq!(
        decide(&mut core, at(0)),
        "p bound; q: 0/3 nodes are available: 1 Insufficient example.com/gpu, 2 cannot allocate all claims."
    );
    assert!(plugin.planned("p").is_none());
}

#[test]
fn what_an_earlier_attempt_made_goes_first() {
    let (mut core, world, plugin) = core();
    world.0.lock().unwrap().classes = vec![gpu_class()];
    let mut earlier = claim("earlier", &["r"]);
    earlier["metadata"]["annotations"] =
        json!({"resource.kubernetes.io/extended-resource-claim": "true"});
    earlier["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p", "controller": true}]);
    world.put_claim(earlier);
    core.pod_applied(&pod_object("p gpu=1"), at(0));
    let Some(Decision::Unschedulable { pod, message }) = core.next(at(0)) else {
        panic!("it has a node")
    };
    let why = "0/2 nodes are available: 2 cannot schedule extended resource claim.";
    assert_eq!(message, why);
    assert!(matches!(
        &plugin.take_follow_ups(&pod)[..],
        [FollowUp::Delete(_)]
    ));
    world.0.lock().unwrap().claims.clear();
    core.devices_changed(ClusterEvents::DEVICE_CLAIM, None, at(2));
    assert_eq!(decide(&mut core, at(2)), "p bound");
}

#[test]
fn the_newest_class_stands_behind_a_resource() {
    let named = |name: &str, made: &str, resource: Option<&str>| {
        of(
            json!({"metadata": {"name": name, "creationTimestamp": made}, "spec": {"extendedResourceName": resource}}),
        )
    };
    let gpu = Some("example.com/gpu");
    let objects = DeviceObjects {
        classes: vec![
            named("old", "2026-01-01T00:00:00Z", gpu),
            named("b", "2026-01-02T00:00:00Z", gpu),
            named("a", "2026-01-02T00:00:00Z", gpu),
            named("plain", "2026-01-03T00:00:00Z", None),
        ],
        ..DeviceObjects::default()
    };
    let cases = [
        ("example.com/gpu", Some("a")),
        ("deviceclass.resource.kubernetes.io/plain", Some("plain")),
        ("deviceclass.resource.kubernetes.io/none", None),
        ("example.com/other", None),
    ];
    for (resource, expected) in cases {
        let found = extended::class_of(resource, &objects);
        let name = found.and_then(|class| class.metadata.name.clone());
        assert_eq!(name.as_deref(), expected, "{resource}");
    }
}
