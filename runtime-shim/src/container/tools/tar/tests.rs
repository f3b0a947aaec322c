//! The tool against its real uses and against what a hostile archive or guest may try.

use super::*;
use crate::engine::Preopen;

struct Pod {
    dir: tempfile::TempDir,
    mounts: Vec<Preopen>,
}

impl Pod {
    /// `/data` is writable, `/data/nested` another folder, `/ro` read-only.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = |guest: &str, name: &str, readonly| {
            let host = dir.path().join(name);
            std::fs::create_dir(&host).unwrap();
            Preopen {
                host,
                guest: guest.into(),
                readonly,
            }
        };
        let mounts = vec![
            mount("/data", "data", false),
            mount("/data/nested", "nested", false),
            mount("/ro", "ro", true),
        ];
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        Self { dir, mounts }
    }

    fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn tar(&self, args: &str, stdin: &[u8]) -> (i32, Vec<u8>, String) {
        let root = Root::new(&self.mounts, None);
        let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(&args, &root, &mut &*stdin, &mut out, &mut err);
        (code, out, String::from_utf8(err).unwrap())
    }
}

/// An archive with members that no good tool would write.
fn archive(members: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, content) in members {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        let data: &[u8] = if is_link {
            header.set_link_name_literal(content).unwrap();
            b""
        } else {
            content.as_bytes()
        };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn words_of_a_command() {
    let parse = |text: &str| {
        let args: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Request::parse(&args)
    };
    let request = parse("-xmf - -C /data").unwrap();
    assert_eq!(request.action, Some(Action::Extract));
    assert!(request.keeps_no_time);
    assert_eq!(request.dir.as_deref(), Some("/data"));
    let request = parse("--no-same-permissions --no-same-owner -xmf -").unwrap();
    assert_eq!((request.action, request.dir), (Some(Action::Extract), None));
    assert_eq!(parse("cf - /data/a b").unwrap().paths, ["/data/a", "b"]);
    assert_eq!(parse("-c -f - -- -x").unwrap().paths, ["-x"]);
    for wrong in ["", "cf", "cf file", "tf -", "czf -", "--delete -f -"] {
        assert!(parse(wrong).is_err(), "case: {wrong}");
    }
}

#[test]
fn what_goes_out_comes_in_again() {
    let pod = Pod::new();
    let long = format!("data/{}", "long".repeat(40));
    std::fs::create_dir_all(pod.host("data/sub")).unwrap();
    std::fs::write(pod.host("data/sub/file"), vec![7; 300_000]).unwrap();
    std::fs::write(pod.host(&long), "long name").unwrap();
    std::fs::write(pod.host("nested/inner"), "from another mount").unwrap();
    std::os::unix::fs::symlink("sub/file", pod.host("data/link")).unwrap();
    let (code, out, err) = pod.tar("cf - /data", b"");
    assert_eq!((code, err.as_str()), (0, ""));
    let other = Pod::new();
    let (code, _, err) = other.tar("-xmf - -C /data", &out);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        std::fs::read(other.host("data/data/sub/file")).unwrap(),
        vec![7; 300_000]
    );
    let inner = std::fs::read_to_string(other.host("data/data/nested/inner")).unwrap();
    assert_eq!(inner, "from another mount");
    let name = other.host("data").join(&long);
    assert_eq!(std::fs::read_to_string(name).unwrap(), "long name");
    let link = std::fs::read_link(other.host("data/data/link")).unwrap();
    assert_eq!(link, Path::new("sub/file"));
    assert_eq!(
        pod.tar("cf - sub/file -C /data", b"").0,
        0,
        "relative to -C"
    );
}

#[test]
fn what_is_missing_is_said() {
    let pod = Pod::new();
    let (code, _, err) = pod.tar("cf - /data/none /etc/passwd", b"");
    assert_eq!(code, 2);
    assert!(
        err.contains("tar: /data/none: Cannot stat: No such file or directory"),
        "{err}"
    );
    assert!(err.contains("tar: /etc/passwd: Cannot stat"), "{err}");
    let (code, _, err) = pod.tar("xf - -C /nowhere", b"");
    assert_eq!(code, 2);
    assert!(err.contains("/nowhere: Cannot open"), "{err}");
    assert_eq!(pod.tar("xf - -C /data", b"not a tar archive at all").0, 2);
}

#[test]
fn nothing_is_written_outside_of_mounts_or_into_read_only_ones() {
    use EntryType::{Block, Directory, Fifo, Link, Regular, Symlink};
    type Entry<'a> = (&'a str, EntryType, &'a str);
    let cases: &[(&str, &str, &[Entry<'_>])] = &[
        ("..", "/data", &[("../secret", Regular, "x")]),
        (
            ".. in the middle",
            "/data",
            &[("a/../../secret", Regular, "x")],
        ),
        (
            "an absolute name is taken as relative",
            "/ro",
            &[("/secret", Regular, "x")],
        ),
        ("a link up", "/data", &[("l", Symlink, "../secret")]),
        (
            "an absolute link",
            "/data",
            &[("l", Symlink, "/etc/passwd")],
        ),
        (
            "a link that climbs in two steps",
            "/data",
            &[("a", Directory, ""), ("a/l", Symlink, "../../x")],
        ),
        ("a hard link", "/data", &[("l", Link, "../secret")]),
        ("a device", "/data", &[("d", Block, "")]),
        ("a pipe", "/data", &[("p", Fifo, "")]),
        ("a read-only mount", "/ro", &[("f", Regular, "x")]),
        (
            "a read-only mount by its name",
            "/",
            &[("ro/f", Regular, "x")],
        ),
        (
            "outside of all mounts",
            "/",
            &[("etc/passwd", Regular, "x")],
        ),
        ("in place of a mount", "/data", &[("nested", Symlink, "x")]),
    ];
    for (case, dir, members) in cases {
        let pod = Pod::new();
        let mut all = members.to_vec();
        // What is good in the same archive is written all the same.
        if *dir == "/data" {
            all.push(("good", Regular, "good"));
        }
        let (code, _, err) = pod.tar(&format!("-xmf - -C {dir}"), &archive(&all));
        assert_eq!(code, 2, "case: {case}: {err}");
        assert_eq!(
            std::fs::read_to_string(pod.host("secret")).unwrap(),
            "secret",
            "case: {case}"
        );
        assert_eq!(
            std::fs::read_dir(pod.host("ro")).unwrap().count(),
            0,
            "case: {case}"
        );
        assert!(pod.host("nested").is_dir(), "case: {case}");
        if *dir == "/data" {
            assert_eq!(
                std::fs::read_to_string(pod.host("data/good")).unwrap(),
                "good",
                "case: {case}"
            );
        }
    }
}

#[test]
fn links_that_a_guest_made_lead_nowhere() {
    let pod = Pod::new();
    std::os::unix::fs::symlink(pod.dir.path(), pod.host("data/out")).unwrap();
    std::os::unix::fs::symlink("../secret", pod.host("data/up")).unwrap();
    let members = archive(&[
        ("out/secret", EntryType::Regular, "changed"),
        ("out/new/file", EntryType::Regular, "new"),
        ("up", EntryType::Regular, "own"),
    ]);
    let (code, _, err) = pod.tar("-xmf - -C /data", &members);
    assert_eq!(code, 2);
    assert!(err.contains("it leads out of the mount"), "{err}");
    assert_eq!(
        std::fs::read_to_string(pod.host("secret")).unwrap(),
        "secret"
    );
    assert!(!pod.host("new").exists());
    assert_eq!(
        std::fs::read_to_string(pod.host("data/up")).unwrap(),
        "own",
        "replaced, not followed"
    );
    let (code, out, _) = pod.tar("cf - /data/out/secret", b"");
    assert_eq!(code, 2);
    assert!(!out.windows(6).any(|bytes| bytes == b"secret"));
}

#[test]
fn set_uid_bits_and_huge_names_are_not_taken() {
    use std::os::unix::fs::PermissionsExt;
    let pod = Pod::new();
    let (code, _, _) = pod.tar(
        "-xmf - -C /data",
        &archive(&[("f", EntryType::Regular, "x")]),
    );
    assert_eq!(code, 0);
    let mode = std::fs::metadata(pod.host("data/f"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o755);
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_path("././@LongLink").unwrap();
    header.set_size(u64::from(u32::MAX));
    header.set_cksum();
    let (code, _, err) = pod.tar("-xmf - -C /data", header.as_bytes());
    assert_eq!(code, 2);
    assert!(err.contains("too long"), "{err}");
}
