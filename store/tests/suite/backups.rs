//! Backups: taken while the store works, restored and checked when it is stopped.

use std::sync::Arc;

use cox_store::backup::{self, BackupError};
use cox_store::{ObjectKey, OpenError, Revision, Sealer, Unsealed};

use crate::bed::{Bed, Using, show};

fn plain() -> Arc<dyn Sealer> {
    Arc::new(Unsealed)
}

/// Turns every bit around, and says so.
#[derive(Debug)]
struct Inverted;

impl Sealer for Inverted {
    fn seal(&self, _: &ObjectKey, json: &[u8]) -> Option<Vec<u8>> {
        let inverted = json.iter().map(|byte| !byte);
        Some(b"sealed:".iter().copied().chain(inverted).collect())
    }

    fn unseal(&self, _: &ObjectKey, kept: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let Some(inverted) = kept.strip_prefix(b"sealed:") else {
            return Err("not sealed".to_owned());
        };
        Ok(Some(inverted.iter().map(|byte| !byte).collect()))
    }
}

#[tokio::test]
async fn a_backup_of_a_working_store_is_restored_in_its_place() {
    let bed = Bed::sled();
    let store = bed.open();
    let using = Using(&store);
    for number in 0..300 {
        using
            .put(&format!("pods/a/{number}"), &"x".repeat(number * 30))
            .await;
    }
    using.put("services/specs", "1").await;
    let saved = backup::encode(&store.snapshot(), &Unsealed);
    let before = show(&store.snapshot(), "pods");
    let created = store.snapshot().get("pods", "a/7").unwrap().created;
    let last = using.put("pods/a/7", "lost later").await;
    store.close().await;
    std::fs::write(bed.dir().join("db"), "noise").unwrap();
    let error = backup::check(bed.dir(), plain()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");

    let (summary, kept) = backup::restore(bed.dir(), &saved, &plain()).unwrap();
    assert_eq!(summary.objects, 301);
    assert!(kept.unwrap().join("db").exists(), "what was there is kept");
    assert_eq!(backup::check(bed.dir(), plain()).unwrap(), summary);
    let store = bed.open();
    assert_eq!(show(&store.snapshot(), "pods"), before);
    assert_eq!(
        store.snapshot().get("pods", "a/7").unwrap().created,
        created
    );
    assert!(
        store.snapshot().revision() > last,
        "revisions that were seen do not come back"
    );
    assert!(
        store.watch("pods", last).is_err(),
        "who saw more than is there lists again"
    );
    Using(&store).put("pods/b", "1").await;
    store.close().await;
}

#[tokio::test]
async fn a_damaged_backup_changes_nothing() {
    let bed = Bed::sled();
    let store = bed.open();
    Using(&store).put("pods/a", "1").await;
    let saved = backup::encode(&store.snapshot(), &Unsealed);
    Using(&store).put("pods/a", "2").await;
    store.close().await;
    for (name, damaged) in [
        ("empty", Vec::new()),
        ("something else", b"{}".to_vec()),
        ("cut", saved[..saved.len() - 1].to_vec()),
        ("cut in half", saved[..saved.len() / 2].to_vec()),
        ("a flipped bit", {
            let mut saved = saved.clone();
            saved[30] ^= 1;
            saved
        }),
    ] {
        let error = backup::restore(bed.dir(), &damaged, &plain()).unwrap_err();
        assert!(
            matches!(error, BackupError::Damaged(_)),
            "case: {name}: {error}"
        );
    }
    let store = bed.open();
    assert_eq!(Using(&store).list("pods"), "a=2");
    store.close().await;
}

#[tokio::test]
async fn compaction_keeps_everything_and_takes_less_room() {
    let bed = Bed::sled();
    let store = bed.open();
    let kept = ["a", "b", "c"].map(|name| format!("pods/{name}"));
    let gone: Vec<String> = (0..100)
        .map(|number| format!("pods/gone{number}"))
        .collect();
    for path in kept.iter().chain(&gone) {
        Using(&store).put(path, &"x".repeat(90_000)).await;
    }
    for path in &gone {
        Using(&store).delete(path).await.unwrap();
    }
    let (before, revision) = (show(&store.snapshot(), "pods"), store.snapshot().revision());
    store.close().await;
    let (summary, had, has) = backup::compact(bed.dir(), &plain()).unwrap();
    assert_eq!((summary.objects, summary.revision), (3, revision));
    assert!(has < had, "{had} bytes before, {has} after");
    let store = bed.open();
    assert_eq!(show(&store.snapshot(), "pods"), before);
    assert_eq!(store.snapshot().revision(), revision);
    assert_eq!(
        std::fs::read_dir(bed.dir().parent().unwrap())
            .unwrap()
            .count(),
        1,
        "nothing is left beside it"
    );
    store.close().await;
}

#[tokio::test]
async fn a_store_that_works_cannot_be_touched_and_one_that_is_not_there_is_not_made() {
    let bed = Bed::sled();
    let error = backup::check(bed.dir(), plain()).unwrap_err();
    assert!(matches!(error, OpenError::Access { .. }), "{error}");
    assert!(!bed.dir().exists());
    let store = bed.open();
    for error in [
        backup::check(bed.dir(), plain()).unwrap_err(),
        match backup::compact(bed.dir(), &plain()).unwrap_err() {
            BackupError::Open(error) => error,
            other => panic!("{other}"),
        },
    ] {
        assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    }
    store.close().await;
}

#[tokio::test]
async fn what_is_sealed_is_sealed_on_disk_and_in_backups_and_nowhere_else() {
    let mut beds = vec![Bed::sled()];
    beds.extend(Bed::etcd(
        "what_is_sealed_is_sealed_on_disk_and_in_backups_and_nowhere_else",
    ));
    for mut bed in beds {
        bed.config.sealer = Arc::new(Inverted);
        let store = bed.open();
        let secret = "a very secret text";
        for len in [0, 4_900, 20_000] {
            let text = format!("{secret}{}", "x".repeat(len));
            let written = Using(&store)
                .create(&format!("pods/{len}"), &text)
                .await
                .unwrap();
            assert!(String::from_utf8_lossy(&written.object.json).contains(secret));
        }
        Using(&store).put("pods/20000", secret).await;
        Using(&store).delete("pods/4900").await.unwrap();
        let shown = show(&store.snapshot(), "pods");
        let saved = backup::encode(&store.snapshot(), &Inverted);
        store.close().await;
        let holds = |bytes: &[u8]| {
            bytes
                .windows(secret.len())
                .any(|part| part == secret.as_bytes())
        };
        assert!(!holds(&saved));
        let again = bed.open();
        assert_eq!(show(&again.snapshot(), "pods"), shown);
        again.close().await;
        if matches!(bed.config.backend, cox_store::Backend::Etcd(_)) {
            assert!(!holds(&bed.cluster().etcdctl(&[
                "get",
                "--prefix",
                "/registry"
            ])));
            continue;
        }
        assert!(!holds(&std::fs::read(bed.dir().join("db")).unwrap()));
        let sealer: Arc<dyn Sealer> = Arc::new(Inverted);
        let (summary, _) = backup::restore(bed.dir(), &saved, &sealer).unwrap();
        assert_eq!(summary.objects, 2);
        let restored = bed.open();
        assert_eq!(show(&restored.snapshot(), "pods"), shown);
        assert!(restored.snapshot().revision() > Revision(1_000_000));
        restored.close().await;
        let error = backup::check(bed.dir(), plain());
        assert!(error.is_ok(), "records are whole whoever reads them");
    }
}
