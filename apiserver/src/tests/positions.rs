//! Where lists, reads and watches begin: every form of resourceVersion and its companions, allowed or not.
#![allow(clippy::too_many_lines, reason = "the tables are the tests")]

use super::*;
use crate::verbs::limit::WATCHES_PER_USER_MAX;

/// A namespace with two objects, a third one written later, and the revision between.
async fn history() -> (Server, String) {
    let server = Server::with_namespace().await;
    for name in ["one", "two"] {
        server.post(CONFIG_MAPS, &config_map(name)).await.ok(201);
    }
    let list = server.get(CONFIG_MAPS).await.ok(200);
    let at = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    server.post(CONFIG_MAPS, &config_map("later")).await.ok(201);
    (server, at)
}

#[tokio::test]
async fn lists_in_every_form() {
    let (server, at) = history().await;
    let first = server.get(&format!("{CONFIG_MAPS}?limit=1")).await.ok(200);
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    let all: &[&str] = &["later", "one", "two"];
    let then: &[&str] = &["one", "two"];
    let newest = "resourceVersionMatch=NotOlderThan";
    let exact = "resourceVersionMatch=Exact";
    let fine: &[(&str, String, &[&str])] = &[
        ("nothing asked: the newest state", String::new(), all),
        ("an empty version is none", "resourceVersion=".into(), all),
        ("zero: any state", "resourceVersion=0".into(), all),
        ("a version: not older", format!("resourceVersion={at}"), all),
        ("said so", format!("resourceVersion={at}&{newest}"), all),
        (
            "zero, not older",
            format!("resourceVersion=0&{newest}"),
            all,
        ),
        (
            "exactly that state",
            format!("resourceVersion={at}&{exact}"),
            then,
        ),
        (
            "a limit makes a version exact",
            format!("resourceVersion={at}&limit=9"),
            then,
        ),
        (
            "unless said otherwise",
            format!("resourceVersion={at}&{newest}&limit=9"),
            all,
        ),
        (
            "zero with a limit: any state",
            "resourceVersion=0&limit=9".into(),
            all,
        ),
        (
            "a page that goes on",
            format!("continue={token}"),
            &["one", "two"],
        ),
        (
            "a page that goes on, with zero",
            format!("continue={token}&resourceVersion=0"),
            &["one", "two"],
        ),
        ("a limit of zero is none", "limit=0".into(), all),
        (
            "an empty match is none",
            "resourceVersionMatch=".into(),
            all,
        ),
    ];
    for (name, query, expected) in fine {
        let list = server.get(&format!("{CONFIG_MAPS}?{query}")).await.ok(200);
        assert_eq!(&names(&list), expected, "case: {name}");
    }
    let refused: &[(&str, String, u16, &str)] = &[
        (
            "a match without a version",
            exact.into(),
            422,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "exactly zero",
            format!("resourceVersion=0&{exact}"),
            422,
            "is forbidden for resourceVersion \"0\"",
        ),
        (
            "another match",
            format!("resourceVersion={at}&resourceVersionMatch=Newest"),
            422,
            "supported values: \"Exact\", \"NotOlderThan\", \"\"",
        ),
        (
            "no number",
            "resourceVersion=abc".into(),
            422,
            "resourceVersion",
        ),
        (
            "a negative number",
            "resourceVersion=-1".into(),
            422,
            "resourceVersion",
        ),
        (
            "a state that is not there yet",
            "resourceVersion=999999999".into(),
            504,
            "Too large resource version: 999999999, current: ",
        ),
        (
            "exactly a state that is not there yet",
            format!("resourceVersion=999999999&{exact}"),
            504,
            "Too large resource version",
        ),
        (
            "a page and a version",
            format!("continue={token}&resourceVersion={at}"),
            400,
            "specifying resource version is not allowed when using continue",
        ),
        (
            "a page and a match",
            format!("continue={token}&resourceVersion={at}&{exact}"),
            422,
            "resourceVersionMatch is forbidden when continue is provided",
        ),
        (
            "a page that is none",
            "continue=abc".into(),
            400,
            "continue key is not valid",
        ),
        (
            "initial events of a list",
            "sendInitialEvents=true".into(),
            422,
            "sendInitialEvents is forbidden for list",
        ),
        (
            "a limit that is no number",
            "limit=many".into(),
            400,
            "invalid syntax",
        ),
    ];
    for (name, query, code, text) in refused {
        let (found, _, message) = server
            .get(&format!("{CONFIG_MAPS}?{query}"))
            .await
            .failure();
        assert_eq!(found, *code, "case: {name}: {message}");
        assert!(message.contains(text), "case: {name}: {message}");
    }
    // So that client-go's reflectors know what to do about it.
    let late = server
        .get(&format!("{CONFIG_MAPS}?resourceVersion=999999999"))
        .await
        .json();
    assert_eq!(
        (&late["reason"], &late["details"]["causes"][0]["reason"]),
        (&json!("Timeout"), &json!("ResourceVersionTooLarge"))
    );
    forget_the_beginning(&server).await;
    let (code, reason, message) = server
        .get(&format!("{CONFIG_MAPS}?resourceVersion=1&{exact}"))
        .await
        .failure();
    assert_eq!((code, reason.as_str()), (410, "Expired"), "{message}");
    assert!(message.contains("too old"), "{message}");
}

#[tokio::test]
async fn reads_of_one_object() {
    let (server, at) = history().await;
    let then = format!("?resourceVersion={at}");
    let cases = [
        ("", 200),
        ("?resourceVersion=0", 200),
        (then.as_str(), 200),
        ("?resourceVersion=999999999", 504),
        ("?resourceVersion=x", 422),
    ];
    for (query, code) in cases {
        assert_eq!(
            server.get(&format!("{CONFIG_MAPS}/one{query}")).await.code,
            code,
            "case: {query}"
        );
    }
}

#[tokio::test]
async fn watches_in_every_form() {
    let (server, at) = history().await;
    let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let state: &[&str] = &["ADDED later", "ADDED one", "ADDED two"];
    let marked: &[&str] = &["ADDED later", "ADDED one", "ADDED two", "BOOKMARK -"];
    // What comes before the event of an object that is written after the watch was opened.
    let fine: &[(&str, String, &[&str])] = &[
        ("nothing asked: the state first", String::new(), state),
        ("zero: the state first", "resourceVersion=0".into(), state),
        (
            "a version: what came after it",
            format!("resourceVersion={at}"),
            &["ADDED later"],
        ),
        (
            "initial events, with their end marked",
            format!("{initial}&allowWatchBookmarks=true"),
            marked,
        ),
        (
            "initial events from zero",
            format!("{initial}&allowWatchBookmarks=true&resourceVersion=0"),
            marked,
        ),
        (
            "initial events not older than",
            format!("{initial}&allowWatchBookmarks=true&resourceVersion={at}"),
            marked,
        ),
        ("initial events without bookmarks", initial.into(), state),
        (
            "no initial events",
            "sendInitialEvents=false&resourceVersionMatch=NotOlderThan".into(),
            &[],
        ),
        (
            "no initial events, from zero",
            "sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=0".into(),
            &[],
        ),
        (
            "no initial events, after a version",
            format!(
                "sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion={at}"
            ),
            &["ADDED later"],
        ),
        (
            "a limit says nothing to a watch",
            format!("resourceVersion={at}&limit=1"),
            &["ADDED later"],
        ),
    ];
    for (number, (name, query, expected)) in fine.iter().enumerate() {
        let mut events = server
            .watch(&format!(
                "{CONFIG_MAPS}?watch=1&fieldSelector=metadata.name!=mark&{query}"
            ))
            .await;
        let mut labelled_events = server
            .watch(&format!(
                "{CONFIG_MAPS}?watch=1&labelSelector=app=case{number}&{query}"
            ))
            .await;
        let object = labelled("mark", &format!("case{number}"));
        server.post(CONFIG_MAPS, &object).await.ok(201);
        for expected in *expected {
            assert_eq!(&events.short().await, expected, "case: {name}");
        }
        if expected.contains(&"BOOKMARK -") {
            assert_eq!(labelled_events.short().await, "BOOKMARK -", "case: {name}");
        }
        assert_eq!(labelled_events.short().await, "ADDED mark", "case: {name}");
        server.delete(&format!("{CONFIG_MAPS}/mark")).await.ok(200);
    }
    let refused: &[(&str, &str, u16, &str)] = &[
        (
            "initial events without a match",
            "sendInitialEvents=true",
            422,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (
            "initial events exactly",
            "sendInitialEvents=true&resourceVersionMatch=Exact&resourceVersion=1",
            422,
            "supported values: \"NotOlderThan\"",
        ),
        (
            "a match alone",
            "resourceVersionMatch=NotOlderThan",
            422,
            "forbidden for watch unless sendInitialEvents is provided",
        ),
        ("no number", "resourceVersion=abc", 422, "resourceVersion"),
        (
            "a time that is no number",
            "timeoutSeconds=soon",
            400,
            "invalid syntax",
        ),
    ];
    for (name, query, code, text) in refused {
        let (found, _, message) = server
            .get(&format!("{CONFIG_MAPS}?watch=1&{query}"))
            .await
            .failure();
        assert_eq!(found, *code, "case: {name}: {message}");
        assert!(message.contains(text), "case: {name}: {message}");
    }
    let errors: &[(&str, &str, u16, &str)] = &[
        (
            "after a state that is gone",
            "resourceVersion=1",
            410,
            "Expired",
        ),
        (
            "after a state that is not there yet",
            "resourceVersion=999999999",
            504,
            "Timeout",
        ),
        (
            "initial events of a state that is not there yet",
            &format!("{initial}&resourceVersion=999999999"),
            504,
            "Timeout",
        ),
    ];
    forget_the_beginning(&server).await;
    for (name, query, code, reason) in errors {
        let mut events = server
            .watch(&format!("{CONFIG_MAPS}?watch=1&{query}"))
            .await;
        let event = events.next().await.unwrap();
        assert_eq!(
            (
                &event["type"],
                &event["object"]["code"],
                &event["object"]["reason"]
            ),
            (&json!("ERROR"), &json!(code), &json!(reason)),
            "case: {name}"
        );
        assert_eq!(events.next().await, None, "case: {name}: it ends");
    }
}

/// Writes so much that the store does not know its first events any more.
async fn forget_the_beginning(server: &Server) {
    for at in 0..40_000 {
        let value =
            json!({"metadata": {"name": "busy", "namespace": "a"}, "data": {"k": at.to_string()}});
        server
            .server
            .registry()
            .put("", "configmaps", value)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_user_has_so_many_watches_and_no_more() {
    let server = Server::with_namespace().await;
    let watch = || {
        server.open(
            Request::get("/api/v1/nodes?watch=1")
                .body(Full::default())
                .unwrap(),
        )
    };
    let mut open = Vec::new();
    for _ in 0..WATCHES_PER_USER_MAX {
        open.push(watch().await);
    }
    let answer = server.get("/api/v1/nodes?watch=1").await;
    assert_eq!(answer.headers["retry-after"], "10");
    let (code, reason, message) = answer.failure();
    assert_eq!((code, reason.as_str()), (429, "TooManyRequests"));
    assert_eq!(
        message,
        format!("user has {WATCHES_PER_USER_MAX} watches open, which is the limit")
    );
    open.pop();
    assert_eq!(
        watch().await.status(),
        StatusCode::OK,
        "one that ended makes room"
    );
}
