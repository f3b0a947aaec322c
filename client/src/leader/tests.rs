use super::*;
use crate::TestClock;
use crate::testing::FakeServer;

fn config(identity: &str) -> Config {
    Config::new("kube-system", "chief", identity)
}

fn clock() -> Arc<TestClock> {
    Arc::new(TestClock::starting_at(
        "2026-01-01T00:00:00Z".parse().unwrap(),
    ))
}

fn held_by(identity: &str, transitions: i32) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

#[test]
fn who_may_write_the_lease() {
    let now = Timestamp::UNIX_EPOCH;
    let cases = [
        ("nobody ever held it", None, false, Some(0)),
        ("given back", Some(held_by("", 3)), false, Some(4)),
        (
            "ours: renew without a transition",
            Some(held_by("me", 3)),
            false,
            Some(3),
        ),
        ("another's and fresh", Some(held_by("you", 3)), false, None),
        (
            "another's and expired",
            Some(held_by("you", 3)),
            true,
            Some(4),
        ),
    ];
    for (name, present, expired, transitions) in cases {
        let written = match plan(present.as_ref(), expired, &config("me"), now) {
            Step::Write(spec) => spec.lease_transitions,
            Step::Wait => None,
        };
        assert_eq!(written, transitions, "case: {name}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_second_candidate_takes_over_when_the_first_one_stops_renewing() {
    let server = FakeServer::default();
    let first = tokio::spawn(lead(
        server.client(),
        config("a"),
        clock(),
        CancellationToken::new(),
        |_| std::future::pending::<()>(),
    ));
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/chief";
    let held = async {
        while server.get(path).is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), held)
        .await
        .expect("the lease is taken");
    let died = Instant::now();
    first.abort();
    let ended = lead(
        server.client(),
        config("b"),
        clock(),
        CancellationToken::new(),
        |_| async {},
    )
    .await;
    assert_eq!(ended, Ended::Finished);
    assert!(
        died.elapsed() >= Duration::from_secs(15),
        "took over after {:?}",
        died.elapsed()
    );
    assert_eq!(
        server.get(path).unwrap()["spec"]["holderIdentity"],
        "",
        "a finished leader gives the lease back"
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_was_taken_stops_its_work() {
    let server = FakeServer::default();
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/chief";
    let thief = server.clone();
    let ended = lead(
        server.client(),
        config("a"),
        clock(),
        CancellationToken::new(),
        |leading| async move {
            let mut lease = thief.get(path).unwrap();
            lease["spec"]["holderIdentity"] = "thief".into();
            thief.put(path, lease);
            leading.cancelled().await;
        },
    )
    .await;
    assert_eq!(ended, Ended::Lost);
    assert_eq!(server.get(path).unwrap()["spec"]["holderIdentity"], "thief");
}
