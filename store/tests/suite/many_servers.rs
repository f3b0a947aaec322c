//! What etcd adds: several stores over one cluster, values of other servers, members that come and go.

use std::time::Duration;

use cox_store::{CommitError, Identity, OpenError, Store, Tls, WatchError, WatchItem};

use crate::bed::{Bed, LengthIndexer, Using, body, next, show, take};
use crate::etcd_kit::Cluster;

#[tokio::test]
async fn what_one_writes_the_others_see_in_the_same_order() {
    let Some(bed) = Bed::etcd("what_one_writes_the_others_see_in_the_same_order") else {
        return;
    };
    let (one, two) = (bed.open(), bed.open());
    let start = two.snapshot().revision();
    let mut watch = two.watch("pods", start).unwrap();
    let first = Using(&one).put("pods/a", "1").await;
    let swapped = Using(&two).swap("pods/a", first, "2").await.unwrap();
    assert!(swapped.revision > first);
    let refused = Using(&one).swap("pods/a", first, "3").await;
    assert!(
        matches!(&refused, Err(CommitError::Conflict(object)) if body(object) == "2"),
        "{refused:?}"
    );
    assert_eq!(
        Using(&one).list("pods"),
        "a=2",
        "who was refused finds the reason in the next snapshot"
    );
    Using(&one).delete("pods/a").await.unwrap();
    let gone = Using(&two).swap("pods/a", swapped.revision, "4").await;
    assert!(matches!(gone, Err(CommitError::NotFound(_))), "{gone:?}");
    assert_eq!(Using(&two).list("pods"), "");
    assert_eq!(take(&mut watch, 3).await, "+a=1 ~a=2 -a=2");
    let again = Using(&two).create("pods/a", "5").await.unwrap();
    let exists = Using(&one).create("pods/a", "6").await;
    assert!(
        matches!(exists, Err(CommitError::Exists(object)) if object.revision == again.revision)
    );
}

#[tokio::test]
async fn many_servers_count_to_a_hundred_together() {
    let Some(bed) = Bed::etcd("many_servers_count_to_a_hundred_together") else {
        return;
    };
    let stores = [bed.open(), bed.open(), bed.open()];
    Using(&stores[0]).put("pods/counter", "0").await;
    let count = |store: Store, times: usize| async move {
        let mut done = 0;
        while done < times {
            let snapshot = store.current().await.unwrap();
            let object = snapshot.get("pods", "counter").unwrap();
            let next = body(&object).parse::<u64>().unwrap() + 1;
            match Using(&store)
                .swap("pods/counter", object.revision, &next.to_string())
                .await
            {
                Ok(_) => done += 1,
                Err(CommitError::Conflict(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let tasks: Vec<_> = stores
        .iter()
        .flat_map(|store| [store.clone(), store.clone()])
        .map(|store| tokio::spawn(count(store, 17)))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for store in &stores {
        let object = store.current().await.unwrap().get("pods", "counter");
        assert_eq!(body(&object.unwrap()), "102");
    }
}

#[tokio::test]
async fn values_of_other_servers_are_read_at_start_and_later() {
    let Some(mut bed) = Bed::etcd("values_of_other_servers_are_read_at_start_and_later") else {
        return;
    };
    bed.cluster().put("/registry/pods/a/before", b"plain:1");
    bed.cluster()
        .put("/registry/ranges/serviceips", b"nobody's object");
    bed.cluster().put("other/key", b"x");
    let store = bed.open();
    assert_eq!(Using(&store).list("pods"), "a/before=1");
    let object = store.snapshot().get("pods", "a/before").unwrap();
    assert_eq!(&*object.attrs.labels[0].0, "length");
    let mut watch = store.watch("pods", store.snapshot().revision()).unwrap();
    bed.cluster().put("other/key", b"y");
    bed.cluster().put("/registry/pods/a/later", b"plain:2");
    bed.cluster().etcdctl(&["del", "/registry/pods/a/before"]);
    assert_eq!(take(&mut watch, 2).await, "+a/later=2 -a/before=1");
    let ours = Using(&store).put("pods/a/later", "3").await;
    let raw = bed
        .cluster()
        .etcdctl(&["get", "--print-value-only", "/registry/pods/a/later"]);
    assert_eq!(
        String::from_utf8(raw).unwrap().trim_end(),
        r#"{"rv":"","body":"3"}"#,
        "the revision is etcd's to say"
    );
    let json = bed
        .cluster()
        .etcdctl(&["get", "-w", "json", "/registry/pods/a/later"]);
    let json = String::from_utf8(json).unwrap();
    assert!(
        json.contains(&format!(r#""mod_revision":{ours}"#)),
        "{json}"
    );
}

#[tokio::test]
async fn a_value_that_is_not_understood_is_named() {
    let Some(mut bed) = Bed::etcd("a_value_that_is_not_understood_is_named") else {
        return;
    };
    bed.cluster().put("/registry/pods/a/bad", b"\x01\x02");
    let error = Store::open(bed.config.clone(), std::sync::Arc::new(LengthIndexer))
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(&error, OpenError::Value { key, .. } if key == "/registry/pods/a/bad"),
        "{error}"
    );
    bed.cluster().etcdctl(&["del", "/registry/pods/a/bad"]);
    let store = bed.open();
    bed.cluster().put("/registry/pods/a/bad", b"\x01\x02");
    bed.cluster().put("/registry/pods/a/good", b"plain:1");
    let at = store.current().await.unwrap();
    assert_eq!(show(&at, "pods"), "a/good=1", "one bad write stops nothing");
}

#[tokio::test]
async fn keys_under_a_lease_go_together_when_it_ends() {
    let Some(mut bed) = Bed::etcd("keys_under_a_lease_go_together_when_it_ends") else {
        return;
    };
    let store = bed.open();
    let start = store.snapshot().revision();
    let granted = String::from_utf8(bed.cluster().etcdctl(&["lease", "grant", "600"])).unwrap();
    let lease = granted.split(' ').nth(1).unwrap().to_owned();
    for name in ["1", "2", "3"] {
        let key = format!("/registry/pods/event/{name}");
        bed.cluster()
            .etcdctl(&["put", "--lease", &lease, &key, "plain:x"]);
    }
    let mut watch = store.watch("pods", start).unwrap();
    assert_eq!(
        take(&mut watch, 3).await,
        "+event/1=x +event/2=x +event/3=x"
    );
    bed.cluster().etcdctl(&["lease", "revoke", &lease]);
    let mut revisions = Vec::new();
    for _ in 0..3 {
        match watch.next().await.unwrap() {
            WatchItem::Event(event) => revisions.push(event.revision),
            WatchItem::Progress(_) => panic!("nobody asked"),
        }
    }
    assert!(
        revisions.iter().all(|one| *one == revisions[0]),
        "{revisions:?}"
    );
    assert_eq!(Using(&store).list("pods"), "");
}

/// Carries bytes to a member until it is cut.
async fn forward(listener: tokio::net::TcpListener, to: String) {
    let mut running = tokio::task::JoinSet::new();
    loop {
        let (mut here, _) = listener.accept().await.unwrap();
        let to = to.clone();
        running.spawn(async move {
            let mut there = tokio::net::TcpStream::connect(to).await.unwrap();
            tokio::io::copy_bidirectional(&mut here, &mut there)
                .await
                .ok();
        });
    }
}

#[tokio::test]
async fn what_was_compacted_behind_a_cut_line_is_read_anew_and_watches_begin_again() {
    let name = "what_was_compacted_behind_a_cut_line_is_read_anew_and_watches_begin_again";
    let Some(mut bed) = Bed::etcd(name) else {
        return;
    };
    let member = bed.cluster().endpoint(0).replace("http://", "");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let line = tokio::spawn(forward(listener, member.clone()));
    bed.etcd_config(|config| config.endpoints = vec![format!("http://{address}")]);
    let config = bed.config.clone();
    let opened = tokio::task::spawn_blocking(|| {
        Store::open(config, std::sync::Arc::new(LengthIndexer)).unwrap()
    });
    let store = opened.await.unwrap();
    Using(&store).put("pods/a", "1").await;
    Using(&store).put("pods/gone", "1").await;
    let mut watch = store.watch("pods", store.snapshot().revision()).unwrap();
    line.abort();
    assert!(line.await.unwrap_err().is_cancelled());

    bed.cluster().put("/registry/pods/b", b"plain:1");
    bed.cluster().etcdctl(&["del", "/registry/pods/gone"]);
    bed.cluster().put("/registry/pods/b", b"plain:2");
    let json = bed
        .cluster()
        .etcdctl(&["get", "-w", "json", "/registry/pods/b"]);
    let json = String::from_utf8(json).unwrap();
    let revision: String = json
        .split(r#""mod_revision":"#)
        .nth(1)
        .unwrap()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    bed.cluster().etcdctl(&["compact", &revision]);
    assert_eq!(
        Using(&store).list("pods"),
        "a=1 gone=1",
        "nothing is known of it yet"
    );

    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let line = tokio::spawn(forward(listener, member));
    let at = store.current().await.unwrap();
    assert_eq!(show(&at, "pods"), "a=1 b=2");
    assert!(matches!(watch.next().await, Err(WatchError::Lagged)));
    let mut watch = store.watch("pods", at.revision()).unwrap();
    Using(&store).put("pods/a", "2").await;
    assert_eq!(next(&mut watch).await, "~a=2");
    line.abort();
}

#[tokio::test]
async fn compaction_keeps_the_last_interval() {
    let Some(mut bed) = Bed::etcd("compaction_keeps_the_last_interval") else {
        return;
    };
    bed.etcd_config(|config| config.compact_interval = Duration::from_millis(100));
    let stores = [bed.open(), bed.open()];
    let first = Using(&stores[0]).put("pods/a", "1").await;
    let mut compacted = false;
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !compacted && std::time::Instant::now() < deadline {
        Using(&stores[0]).put("pods/a", "2").await;
        let revision = first.0.to_string();
        let output = std::process::Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &bed.cluster().endpoint(0)])
            .args(["get", "--rev", &revision, "/registry/pods/a"])
            .output()
            .unwrap();
        compacted = String::from_utf8_lossy(&output.stderr).contains("compacted");
    }
    assert!(compacted, "the first revision is forgotten");
    for store in &stores {
        let at = store.current().await.unwrap();
        assert_eq!(show(&at, "pods"), "a=2");
    }
}

#[tokio::test]
async fn a_restarted_etcd_loses_nothing_and_watches_go_on() {
    let Some(mut bed) = Bed::etcd("a_restarted_etcd_loses_nothing_and_watches_go_on") else {
        return;
    };
    let store = bed.open();
    let mut watch = store.watch("pods", store.snapshot().revision()).unwrap();
    Using(&store).put("pods/a", "1").await;
    bed.cluster().kill(0);
    let waiting = tokio::spawn({
        let store = store.clone();
        async move {
            loop {
                match Using(&store).create("pods/b", "2").await {
                    Ok(_) | Err(CommitError::Exists(_)) => return,
                    Err(CommitError::Unknown(_) | CommitError::Unavailable(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    assert_eq!(
        Using(&store).list("pods"),
        "a=1",
        "reads of what is known go on"
    );
    bed.cluster().run(0);
    waiting.await.unwrap();
    Using(&store).put("pods/a", "3").await;
    assert_eq!(take(&mut watch, 3).await, "+a=1 +b=2 ~a=3");
}

#[tokio::test]
async fn a_member_that_is_killed_or_paused_stops_nobody_for_long() {
    let name = "a_member_that_is_killed_or_paused_stops_nobody_for_long";
    let Some(mut bed) = Bed::etcd_members(name, 3) else {
        return;
    };
    let store = bed.open();
    let mut watch = store.watch("pods", store.snapshot().revision()).unwrap();
    let mut number = 0;
    for member in 0..3 {
        for pause in [true, false] {
            if pause {
                bed.cluster().pause(member);
            } else {
                bed.cluster().kill(member);
            }
            for _ in 0..5 {
                number += 1;
                let text = number.to_string();
                // A write that nobody can tell the fate of is tried again by its caller.
                while let Err(error) = Using(&store)
                    .write(
                        "pods/a",
                        cox_store::Precondition::None,
                        cox_store::Op::Put(crate::bed::new_object(&text)),
                        cox_store::Durability::Durable,
                    )
                    .await
                {
                    assert!(
                        matches!(error, CommitError::Unknown(_) | CommitError::Unavailable(_)),
                        "{error}"
                    );
                }
                let at = store.current().await.unwrap();
                assert_eq!(show(&at, "pods"), format!("a={text}"));
            }
            if pause {
                bed.cluster().resume(member);
            } else {
                bed.cluster().run(member);
            }
        }
    }
    let mut last = 0;
    while last < number {
        let event = next(&mut watch).await;
        let seen: u64 = event.split('=').nth(1).unwrap().parse().unwrap();
        assert!(seen >= last && seen <= last + 1, "{event} after {last}");
        last = seen;
    }
}

#[tokio::test]
async fn nobody_at_the_address_is_said_clearly() {
    let mut bed = Bed::memory();
    let config = cox_store::EtcdConfig::new(vec!["https://127.0.0.1:1".to_owned()]);
    bed.config.backend = cox_store::Backend::Etcd(config);
    let error = Store::open(bed.config.clone(), std::sync::Arc::new(LengthIndexer))
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("--etcd-cafile"), "{error}");
}

/// Certificates of an authority of its own, as files: authority, server, client.
fn certificates(dir: &std::path::Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::from_params(&params, &key);
    std::fs::write(dir.join("ca.crt"), ca.pem()).unwrap();
    for (name, names) in [("server", vec!["127.0.0.1".to_owned()]), ("client", vec![])] {
        let own = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let cert = params.signed_by(&own, &issuer).unwrap();
        std::fs::write(dir.join(format!("{name}.crt")), cert.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), own.serialize_pem()).unwrap();
    }
}

#[tokio::test]
async fn tls_needs_the_right_authority_and_the_right_certificate() {
    let name = "tls_needs_the_right_authority_and_the_right_certificate";
    if !crate::etcd_kit::installed(name) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (own, foreign) = (dir.path().join("own"), dir.path().join("foreign"));
    for dir in [&own, &foreign] {
        std::fs::create_dir(dir).unwrap();
        certificates(dir);
    }
    let file = |name: &str| own.join(name).display().to_string();
    let cluster = Cluster::start_with(
        1,
        &[
            &format!("--cert-file={}", file("server.crt")),
            &format!("--key-file={}", file("server.key")),
            &format!("--trusted-ca-file={}", file("ca.crt")),
            "--client-cert-auth",
        ],
    );
    let open = |ca: &std::path::Path, client: Option<&std::path::Path>| {
        let mut config = cox_store::EtcdConfig::new(cluster.endpoints());
        config.tls = Some(Tls {
            ca_file: ca.join("ca.crt"),
            identity: client.map(|dir| Identity {
                cert_file: dir.join("client.crt"),
                key_file: dir.join("client.key"),
            }),
        });
        let config = cox_store::Config::new(cox_store::Backend::Etcd(config));
        Store::open(config, std::sync::Arc::new(LengthIndexer))
    };
    let store = open(&own, Some(&own)).unwrap();
    Using(&store).create("pods/a", "1").await.unwrap();
    for (case, ca, client) in [
        ("a foreign authority", &foreign, Some(&own)),
        ("a foreign certificate", &own, Some(&foreign)),
        ("no certificate", &own, None),
    ] {
        let refused = open(ca, client.map(std::path::PathBuf::as_path));
        assert!(
            matches!(refused, Err(OpenError::Etcd { .. })),
            "case: {case}"
        );
    }
}

/// etcd keeps 128 events for a watch; one that has missed the next is looked after every 100 ms, and all writes here wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writes_at_once_do_not_make_etcds_watch_a_slow_one() {
    let Some(mut bed) = Bed::etcd("many_writes_at_once_do_not_make_etcds_watch_a_slow_one") else {
        return;
    };
    let store = bed.open();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..500 {
        let store = store.clone();
        writers.spawn(async move {
            for number in 0..20 {
                let key = format!("pods/{writer}-{number}");
                Using(&store).create(&key, "x").await.unwrap();
            }
        });
    }
    let (mut looks, mut slow) = (0, 0.0_f64);
    while !writers.is_empty() {
        let name = "etcd_debugging_mvcc_slow_watcher_total";
        slow = slow.max(tokio::task::block_in_place(|| {
            bed.cluster().figure(0, name)
        }));
        looks += 1;
        while let Some(done) = writers.try_join_next() {
            done.unwrap();
        }
    }
    assert!(looks > 10, "looked only {looks} times");
    assert!(slow < 1.0, "slow watches");
}
