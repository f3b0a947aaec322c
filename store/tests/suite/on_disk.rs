//! What holds for a folder on a disk: it survives, it is checked, and it is never silently emptied.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cox_store::{Durability, Op, OpenError, Precondition, Revision, Store};

use crate::bed::{Bed, LengthIndexer, Using, body, show};

fn open_error(bed: &Bed) -> OpenError {
    match Store::open(bed.config.clone(), Arc::new(LengthIndexer)) {
        Ok(store) => panic!("opened with {} objects", store.snapshot().count("pods", "")),
        Err(error) => error,
    }
}

async fn filled(bed: &Bed) {
    let store = bed.open();
    for number in 0..200 {
        Using(&store)
            .put(&format!("pods/a/{number}"), &"x".repeat(number * 40))
            .await;
    }
    store.close().await;
}

#[tokio::test]
async fn everything_comes_back_after_closing() {
    let bed = Bed::sled();
    let store = bed.open();
    let using = Using(&store);
    using.put("pods/a", "1").await;
    using.put("services/specs", "2").await;
    using.put("pods/big", &"x".repeat(1024 * 1024)).await;
    using.put("pods/gone", &"x".repeat(20_000)).await;
    using.delete("pods/gone").await.unwrap();
    let revision = using.put_lazily("leases/n", "3").await;
    let before = store.snapshot();
    store.close().await;

    let store = bed.open();
    let after = store.snapshot();
    assert_eq!(after.revision(), revision);
    for resource in ["pods", "services", "leases"] {
        assert_eq!(show(&after, resource), show(&before, resource));
    }
    let object = after.get("pods", "a").unwrap();
    assert_eq!(object.created, before.get("pods", "a").unwrap().created);
    assert_eq!(
        &*object.attrs.labels[0].0, "length",
        "attributes are found again by the indexer"
    );
    assert!(
        store.watch("pods", revision).is_ok(),
        "a watch goes on where the store was closed"
    );
    assert!(store.watch("pods", Revision(revision.0 - 1)).is_err());
    store.close().await;
}

/// What a power cut at this moment would leave.
fn copy_of(bed: &Bed) -> Bed {
    let copy = Bed::sled();
    copy_dir(bed.dir(), copy.dir());
    copy
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn lazy_config() -> Bed {
    let mut bed = Bed::sled();
    bed.config.lazy_interval = Duration::from_secs(3600);
    bed
}

#[tokio::test]
async fn lazy_writes_do_not_touch_the_disk() {
    let bed = lazy_config();
    let store = bed.open();
    let using = Using(&store);
    using.put("pods/a", "1").await;
    let on_disk = || ["db", "journal-0", "journal-1"].map(|name| fs::read(bed.dir().join(name)));
    let before = on_disk().map(Result::unwrap);
    for _ in 0..500 {
        using.put_lazily("leases/a", "1").await;
    }
    assert!(on_disk().map(Result::unwrap) == before);
    let revision = store.snapshot().revision();
    let after_cut = copy_of(&bed).open();
    assert_eq!(
        Using(&after_cut).list("leases"),
        "",
        "a lost renewal heals by itself"
    );
    assert!(
        after_cut.snapshot().revision() >= revision,
        "but its revision is not given out again"
    );
}

#[tokio::test]
async fn a_durable_write_takes_lazy_ones_along() {
    let bed = lazy_config();
    let store = bed.open();
    let using = Using(&store);
    using.put_lazily("leases/a", &"x".repeat(20_000)).await;
    using.put_lazily("leases/b", "1").await;
    using.put("pods/a", "1").await;
    assert_eq!(
        Using(&copy_of(&bed).open()).list("leases").len(),
        "a= b=1".len() + 20_000
    );
    using.put_lazily("leases/a", "2").await;
    using
        .write("leases/b", Precondition::None, Op::Delete, Durability::Lazy)
        .await
        .unwrap();
    using.put_lazily("leases/c", "1").await;
    using
        .write("leases/c", Precondition::None, Op::Delete, Durability::Lazy)
        .await
        .unwrap();
    using.put("pods/a", "2").await;
    assert_eq!(Using(&copy_of(&bed).open()).list("leases"), "a=2");
}

#[tokio::test]
async fn a_lazy_write_reaches_the_disk_after_its_interval() {
    let mut bed = Bed::sled();
    bed.config.lazy_interval = Duration::from_millis(1);
    let store = bed.open();
    Using(&store).put_lazily("leases/a", "1").await;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        // A copy taken while the thread writes may be torn; the next one will not be.
        let copy = copy_of(&bed);
        let opened = Store::open(copy.config.clone(), Arc::new(LengthIndexer));
        if opened.is_ok_and(|store| Using(&store).list("leases") == "a=1") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "never written");
    }
}

#[tokio::test]
async fn nothing_goes_into_files_that_are_not_synced() {
    let bed = Bed::sled();
    let store = bed.open();
    for round in 0..3 {
        for number in 0..40_usize {
            let len = [10, 4_990, 100_000, 1024 * 1024][(number + round) % 4];
            Using(&store)
                .put(&format!("pods/{number:0200}"), &"x".repeat(len))
                .await;
        }
    }
    assert_eq!(fs::read_dir(bed.dir().join("blobs")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_folder_in_use_is_refused_and_free_once_closed() {
    let bed = Bed::sled();
    let store = bed.open();
    let error = open_error(&bed);
    assert!(matches!(&error, OpenError::Locked { .. }), "{error}");
    assert!(
        error.to_string().contains("in use by another process"),
        "{error}"
    );
    store.close().await;
    bed.open().close().await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_refused() {
    let mut bed = Bed::sled();
    let file = bed.dir().with_file_name("file");
    fs::write(&file, "").unwrap();
    bed.config.backend = cox_store::Backend::Sled {
        dir: file.join("store"),
    };
    let error = open_error(&bed);
    assert!(matches!(&error, OpenError::Access { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("must exist on a disk with free space and be writable"),
        "{error}"
    );
}

#[tokio::test]
async fn another_format_is_refused() {
    let bed = Bed::sled();
    filled(&bed).await;
    fs::write(bed.dir().join("FORMAT"), "coxswain store 9\n").unwrap();
    let error = open_error(&bed).to_string();
    assert!(
        error.contains("has format 9") && error.contains("use the version of the program"),
        "{error}"
    );
}

#[tokio::test]
async fn damage_is_named_and_left_as_it_is() {
    type Damage = fn(&Path);
    let cases: &[(&str, Damage)] = &[
        ("the database is empty", |dir| {
            fs::write(dir.join("db"), "").unwrap()
        }),
        ("the database is gone", |dir| {
            fs::remove_file(dir.join("db")).unwrap()
        }),
        ("all of sled's files are gone", |dir| {
            fs::remove_file(dir.join("db")).unwrap();
            snapshots(dir)
                .iter()
                .for_each(|path| fs::remove_file(path).unwrap());
        }),
        ("the database is zeros", |dir| {
            overwrite(dir, |bytes| bytes.fill(0))
        }),
        ("the database is noise", |dir| {
            overwrite(dir, |bytes| {
                bytes
                    .iter_mut()
                    .zip(0_u32..)
                    .for_each(|(byte, at)| *byte = (at.wrapping_mul(2_654_435_761) >> 24) as u8)
            });
        }),
        ("the database is cut in half", |dir| {
            let path = dir.join("db");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("one byte in each block is flipped", |dir| {
            overwrite(dir, |bytes| {
                bytes
                    .chunks_mut(4096)
                    .for_each(|block| block[block.len() / 2] ^= 0x55)
            });
        }),
        ("the format names nothing", |dir| {
            fs::write(dir.join("FORMAT"), "???").unwrap()
        }),
    ];
    for (name, damage) in cases {
        let bed = Bed::sled();
        filled(&bed).await;
        damage(bed.dir());
        let error = open_error(&bed);
        let text = error.to_string();
        assert!(
            matches!(error, OpenError::Damaged { .. }),
            "case: {name}: {text}"
        );
        assert!(
            text.contains("is damaged: ") && text.contains("Put back a backup"),
            "case: {name}: {text}"
        );
        assert!(
            matches!(open_error(&bed), OpenError::Damaged { .. }),
            "case: {name}: the second attempt"
        );
    }
}

fn snapshots(dir: &Path) -> Vec<std::path::PathBuf> {
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    names
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("snap")
        })
        .collect()
}

fn overwrite(dir: &Path, change: impl Fn(&mut [u8])) {
    let path = dir.join("db");
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
}

#[tokio::test]
async fn a_missing_index_of_sled_is_made_again() {
    let bed = Bed::sled();
    filled(&bed).await;
    snapshots(bed.dir())
        .iter()
        .for_each(|path| fs::remove_file(path).unwrap());
    let store = bed.open();
    assert_eq!(store.snapshot().count("pods", "a/"), 200);
    assert_eq!(
        body(&store.snapshot().get("pods", "a/7").unwrap()).len(),
        280
    );
}

#[tokio::test]
async fn a_cut_or_zeroed_end_loses_nothing_or_is_named() {
    let bed = Bed::sled();
    filled(&bed).await;
    let bytes = fs::read(bed.dir().join("db")).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let mut named = 0;
    for lost in [1, 100, 4096, 5000, 65_536, 300_000, 600_000] {
        for zeroed in [false, true] {
            let copy = copy_of(&bed);
            let mut bytes = bytes.clone();
            let start = end.saturating_sub(lost);
            if zeroed {
                bytes[start..].fill(0);
            } else {
                bytes.truncate(start);
            }
            fs::write(copy.dir().join("db"), bytes).unwrap();
            match Store::open(copy.config.clone(), Arc::new(LengthIndexer)) {
                Ok(store) => {
                    assert_eq!(store.snapshot().count("pods", ""), 200, "{lost} bytes lost")
                }
                Err(error) => {
                    assert!(
                        matches!(error, OpenError::Damaged { .. }),
                        "{lost} bytes lost: {error}"
                    );
                    named += 1;
                }
            }
        }
    }
    assert!(named > 4, "the larger losses cannot be harmless");
}

/// Four rounds over the same keys, more than both journals hold; some keys go, one is large.
async fn several_laps(store: &Store, mut seen: impl AsyncFnMut(u64)) {
    for number in 0..240_u64 {
        let path = format!("pods/a/{}", number % 60);
        if number % 7 == 6 {
            // It may not be there yet.
            Using(store).delete(&path).await.ok();
        } else {
            let len = if number % 60 == 13 {
                1024 * 1024
            } else {
                60_000
            };
            let body = char::from(b'a' + u8::try_from(number % 26).unwrap()).to_string();
            Using(store).put(&path, &body.repeat(len)).await;
        }
        seen(number).await;
    }
}

#[tokio::test]
async fn a_power_cut_at_any_moment_loses_nothing() {
    let bed = Bed::sled();
    let store = bed.open();
    let mut checked = 0;
    several_laps(&store, async |number| {
        if number % 16 != 0 {
            return;
        }
        let expected = show(&store.snapshot(), "pods");
        // Cut twice: what the first start does not write must not be missing for the second.
        let mut copy = copy_of(&bed);
        for _ in 0..2 {
            let opened = Store::open(copy.config.clone(), Arc::new(LengthIndexer));
            // While sled takes something over, a copy may be torn in a way that no crash leaves it.
            let Ok(opened) = opened else { return };
            assert!(
                show(&opened.snapshot(), "pods") == expected,
                "write {number}"
            );
            Using(&opened).put("nodes/after", "1").await;
            copy = copy_of(&copy);
        }
        checked += 1;
    })
    .await;
    assert!(checked > 7, "only {checked} of 15 copies could be opened");
    let expected = show(&store.snapshot(), "pods");
    store.close().await;
    assert!(show(&bed.open().snapshot(), "pods") == expected);
    let left: u64 = ["journal-0", "journal-1"]
        .iter()
        .map(|name| fs::metadata(bed.dir().join(name)).unwrap().len())
        .sum();
    assert_eq!(left, 0, "a closed store is sled alone");
}

/// sled takes over the journal that is full while the other one is written: until it has, neither can be missed.
fn wait_until_one_journal_is_spare(bed: &Bed) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let spare = |name: &&str| {
        let copy = copy_of(bed);
        fs::write(copy.dir().join(name), "").unwrap();
        Store::open(copy.config.clone(), Arc::new(LengthIndexer)).is_ok()
    };
    while !["journal-0", "journal-1"].iter().any(spare) {
        assert!(
            std::time::Instant::now() < deadline,
            "sled takes over neither journal"
        );
    }
}

#[tokio::test]
async fn a_journal_that_is_cut_zeroed_or_gone_loses_nothing_or_is_named() {
    type Damage = fn(&mut Vec<u8>);
    let bed = Bed::sled();
    let store = bed.open();
    several_laps(&store, async |_| {}).await;
    wait_until_one_journal_is_spare(&bed);
    let expected = show(&store.snapshot(), "pods");
    let mut named = 0;
    let damages: [Damage; 3] = [
        |bytes| bytes.truncate(100_000),
        |bytes| bytes.fill(0),
        |bytes| bytes.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1),
    ];
    for name in ["journal-0", "journal-1"] {
        for damage in damages {
            let copy = copy_of(&bed);
            let path = copy.dir().join(name);
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();
            match Store::open(copy.config.clone(), Arc::new(LengthIndexer)) {
                Ok(opened) => assert!(show(&opened.snapshot(), "pods") == expected, "{name}"),
                Err(error) => {
                    assert!(
                        matches!(error, OpenError::Damaged { .. }),
                        "{name}: {error}"
                    );
                    named += 1;
                }
            }
        }
    }
    assert_eq!(
        named, 3,
        "only the journal that is written cannot be spared"
    );
}
