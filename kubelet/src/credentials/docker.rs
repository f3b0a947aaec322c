//! Docker's configuration files, on the node and in pull secrets.

use std::path::Path;

use base64::Engine;
use cox_cri::v1::AuthConfig;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Map, Value};

use super::Keyring;

/// Takes over what a pull secret holds, in either of its forms; one that does not parse holds nothing.
pub(super) fn add_secret(keyring: &mut Keyring, secret: &Secret) {
    let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
    let auths = if let Some(bytes) = data(".dockerconfigjson") {
        auths_of(&bytes.0)
    } else {
        data(".dockercfg").and_then(|bytes| serde_json::from_slice(&bytes.0).ok())
    };
    add(keyring, auths);
}

/// Takes over a `config.json`, if there is one.
pub(super) async fn add_file(keyring: &mut Keyring, path: &Path) {
    match tokio::fs::read(path).await {
        Ok(bytes) => {
            let auths = auths_of(&bytes);
            if auths.is_none() {
                tracing::warn!(path = %path.display(), "A docker configuration has no \"auths\" and is of no use for pulls");
            }
            add(keyring, auths);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "A docker configuration cannot be read");
        }
    }
}

fn auths_of(bytes: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice::<Value>(bytes)
        .ok()?
        .get_mut("auths")?
        .take()
    {
        Value::Object(auths) => Some(auths),
        _ => None,
    }
}

fn add(keyring: &mut Keyring, auths: Option<Map<String, Value>>) {
    for (key, entry) in auths.into_iter().flatten() {
        if let Some(auth) = credential(&key, &entry) {
            keyring.add(&key, auth);
        }
    }
}

fn credential(key: &str, entry: &Value) -> Option<AuthConfig> {
    let text = |name: &str| {
        entry
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (mut username, mut password) = (text("username"), text("password"));
    let identity_token = text("identitytoken");
    let packed = text("auth");
    if username.is_empty() && !packed.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(packed)
            .ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (user, secret) = decoded.split_once(':')?;
        (username, password) = (user.to_owned(), secret.trim_end_matches('\0').to_owned());
    }
    // An entry without anything in it is what `docker login` leaves where a helper program keeps the password.
    if username.is_empty() && identity_token.is_empty() {
        return None;
    }
    Some(AuthConfig {
        username,
        password,
        server_address: key.to_owned(),
        identity_token,
        ..AuthConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn packed(text: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    #[test]
    fn only_the_registry_s_own_credentials_are_used() {
        let config = json!({"auths": {
            "https://ghcr.io/v2/": {"auth": packed("me:hu:sh")},
            "https://index.docker.io/v1/": {"username": "you", "password": "pw"},
            "quay.io": {}}});
        let secret: Secret = serde_json::from_value(
            json!({"data": {".dockerconfigjson": packed(&config.to_string())}}),
        )
        .unwrap();
        let mut keyring = Keyring::default();
        add_secret(&mut keyring, &secret);
        let found = |image| {
            let found = keyring.lookup(image).into_iter();
            found
                .map(|auth| (auth.username, auth.password))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            found("ghcr.io/a/b"),
            [("me".to_owned(), "hu:sh".to_owned())]
        );
        assert_eq!(found("nginx"), [("you".to_owned(), "pw".to_owned())]);
        assert_eq!(found("quay.io/x"), []);
    }

    #[test]
    fn the_older_form_of_a_secret() {
        let config = json!({"reg.example.com": {"auth": packed("me:pw")}});
        let secret: Secret =
            serde_json::from_value(json!({"data": {".dockercfg": packed(&config.to_string())}}))
                .unwrap();
        let mut keyring = Keyring::default();
        add_secret(&mut keyring, &secret);
        assert_eq!(keyring.lookup("reg.example.com/x").len(), 1);
    }
}
