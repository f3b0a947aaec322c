//! Keys on disk: kept, protected, renewed, and told apart from damage.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

fn pki(dir: &Path) -> Pki {
    Pki::load_or_create(dir).expect("a fresh folder")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it exists").permissions().mode() & 0o777
}

fn chain(pair: &PemPair) -> Vec<CertificateDer<'static>> {
    vec![first_certificate(&pair.certificate).expect("one certificate")]
}

#[test]
fn keys_are_private_and_kept() {
    let home = tempfile::tempdir().expect("tempdir");
    let dir = home.path().join("deep/pki");
    let first = pki(&dir);
    first.serving(&[]).expect("serving pair");
    assert_eq!(mode(&dir), 0o700);
    for entry in fs::read_dir(&dir).expect("the folder") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    fs::set_permissions(dir.join("ca.key"), fs::Permissions::from_mode(0o644)).expect("chmod");
    let second = pki(&dir);
    assert_eq!(
        mode(&dir.join("ca.key")),
        0o600,
        "rights that were too wide are taken away"
    );
    assert_eq!(first.ca_pem(), second.ca_pem());
    assert_eq!(
        first.service_account_pkcs8(),
        second.service_account_pkcs8()
    );
    assert_eq!(
        first.serving(&[]).expect("pair"),
        second.serving(&[]).expect("pair")
    );
}

#[test]
fn the_serving_certificate_is_issued_again_only_when_it_must_be() {
    let home = tempfile::tempdir().expect("tempdir");
    let pki = pki(home.path());
    let now = OffsetDateTime::now_utc();
    let first = pki.serving(&[]).expect("pair");
    assert_eq!(
        pki.serving_at(&[], now + Duration::days(300))
            .expect("pair"),
        first,
        "far from its end: kept"
    );
    let wider = pki
        .serving(&["10.1.2.3".into(), "cox.example".into()])
        .expect("pair");
    assert_ne!(wider, first, "a missing name");
    assert_eq!(
        pki.serving(&["cox.example".into()]).expect("pair"),
        wider,
        "more names than asked for: kept"
    );
    let renewed = pki
        .serving_at(&[], now + Duration::days(340))
        .expect("pair");
    assert_ne!(renewed, wider, "near its end");
    fs::write(home.path().join("apiserver.crt"), "rubbish").expect("write");
    assert_ne!(
        pki.serving(&[])
            .expect("a damaged serving certificate heals"),
        renewed
    );
}

#[test]
fn serving_names_are_in_the_certificate() {
    let home = tempfile::tempdir().expect("tempdir");
    let pair = pki(home.path())
        .serving(&["192.168.7.9".into()])
        .expect("pair");
    let der = first_certificate(&pair.certificate).expect("pem");
    let (_, certificate) = X509Certificate::from_der(&der).expect("der");
    for name in [
        "localhost",
        "127.0.0.1",
        "::1",
        "10.96.0.1",
        "kubernetes.default.svc.cluster.local",
        "192.168.7.9",
    ] {
        assert!(carries_name(&certificate, name), "{name}");
    }
    assert!(!carries_name(&certificate, "elsewhere"));
}

#[test]
fn damage_is_told_and_nothing_is_overwritten() {
    let cases: &[(&str, &str, &str)] = &[
        (
            "a truncated CA key",
            "ca.key",
            "-----BEGIN PRIVATE KEY-----\nMIG",
        ),
        ("a CA certificate that is none", "ca.crt", "hello"),
        ("an empty service account key", "sa.key", ""),
    ];
    for (case, file, content) in cases {
        let home = tempfile::tempdir().expect("tempdir");
        pki(home.path());
        fs::write(home.path().join(file), content).expect("write");
        let error = Pki::load_or_create(home.path()).expect_err(case);
        let text = error.to_string();
        assert!(matches!(error, PkiError::Damaged { .. }), "{case}: {text}");
        assert!(
            text.contains(file) && text.contains("restore it from a backup"),
            "{case}: {text}"
        );
        assert_eq!(
            fs::read_to_string(home.path().join(file)).expect("kept"),
            *content,
            "{case}"
        );
    }
}

#[test]
fn half_of_an_authority() {
    let home = tempfile::tempdir().expect("tempdir");
    let first = pki(home.path());
    fs::remove_file(home.path().join("ca.crt")).expect("remove");
    let healed = pki(home.path());
    assert_ne!(
        first.ca_pem(),
        healed.ca_pem(),
        "a key alone gets a certificate, as after a crash between the two"
    );
    let issued = healed.issue_admin().expect("pair");
    healed
        .verify_client(&chain(&issued), UnixTime::now())
        .expect("issued under the new certificate");

    fs::remove_file(home.path().join("ca.key")).expect("remove");
    let text = Pki::load_or_create(home.path())
        .expect_err("a certificate alone is damage")
        .to_string();
    assert!(text.contains("ca.key"), "{text}");

    let other = tempfile::tempdir().expect("tempdir");
    pki(other.path());
    fs::copy(other.path().join("ca.key"), home.path().join("ca.key")).expect("copy");
    let text = Pki::load_or_create(home.path())
        .expect_err("a foreign key is damage")
        .to_string();
    assert!(text.contains("does not belong to ca.key"), "{text}");
}

#[test]
fn client_chains_are_judged() {
    let home = tempfile::tempdir().expect("tempdir");
    let ours = pki(home.path());
    let other = tempfile::tempdir().expect("tempdir");
    let foreign = pki(other.path());
    let now = UnixTime::now();
    let later =
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_secs() + 366 * 86_400));

    let client = ours.issue_client("jane", &["dev", "ops"]).expect("pair");
    ours.verify_client(&chain(&client), now)
        .expect("our own client");
    ours.verify_client(&chain(&client), later)
        .expect_err("an expired client");
    foreign
        .verify_client(&chain(&client), now)
        .expect_err("a client of another cluster");
    ours.verify_client(&[], now).expect_err("no certificate");
    let serving = ours.serving(&[]).expect("pair");
    ours.verify_client(&chain(&serving), now)
        .expect_err("a serving certificate is no client's");
    let node = ours.issue_node("n1", &["127.0.0.1".into()]).expect("pair");
    ours.verify_client(&chain(&node), now)
        .expect("a node is a client too");
    let error = ours
        .issue_client("jane", &["a", "b", "c"])
        .expect_err("three groups");
    assert!(matches!(error, PkiError::TooManyGroups { groups: 3, .. }));
}

#[test]
fn secrets_do_not_print() {
    let home = tempfile::tempdir().expect("tempdir");
    let pki = pki(home.path());
    let pair = pki.issue_admin().expect("pair");
    assert!(!format!("{pair:?} {pki:?}").contains("PRIVATE KEY"));
    let text = pki.kubeconfig("https://127.0.0.1:6443", &pair);
    assert!(
        text.contains("server: https://127.0.0.1:6443\n")
            && text.contains("current-context: cox\n")
    );
}

#[test]
fn the_tls_configuration_offers_both_protocols() {
    let home = tempfile::tempdir().expect("tempdir");
    let pki = pki(home.path());
    let serving = pki.serving(&[]).expect("serving pair");
    let config = pki.server_config(&serving).expect("configuration");
    assert_eq!(
        config.alpn_protocols,
        [b"h2".to_vec(), b"http/1.1".to_vec()]
    );
}
