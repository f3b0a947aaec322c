//! Bootstrap tokens: short secrets by which new machines introduce themselves, kept as Secrets of their own type in `kube-system`.

use std::sync::Arc;

use base64::Engine;
use cox_api::meta;
use cox_store::Snapshot;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::UserInfo;
use super::tokens::TokenError;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

/// `abcdef.0123456789abcdef` in its two parts; none for any other form.
pub(super) fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let fits = |part: &str, len: usize| {
        part.len() == len
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (fits(id, 6) && fits(secret, 16)).then_some((id, secret))
}

/// The user that the token is, if its Secret says so now.
pub(super) fn check(
    snapshot: &Snapshot,
    (id, secret): (&str, &str),
    now_secs: i64,
) -> Result<Arc<UserInfo>, TokenError> {
    let path = format!("kube-system/bootstrap-token-{id}");
    let object = snapshot
        .get("secrets", &path)
        .ok_or(TokenError::Signature)?;
    let object: Value = serde_json::from_slice(&object.json).map_err(|_| TokenError::Malformed)?;
    let data = |key: &str| {
        let encoded = object["data"][key].as_str()?;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .ok()?;
        String::from_utf8(bytes).ok()
    };
    // Compared by digest, so that the time it takes tells nothing.
    let same = |key: &str, given: &str| {
        data(key).is_some_and(|stored| Sha256::digest(stored) == Sha256::digest(given))
    };
    if object["type"] != TYPE
        || meta::is_deleting(&object)
        || !same("token-id", id)
        || !same("token-secret", secret)
    {
        return Err(TokenError::Signature);
    }
    if let Some(expiration) = data("expiration") {
        // What is no time has passed.
        let ends = expiration
            .parse::<Timestamp>()
            .map_or(i64::MIN, Timestamp::as_second);
        if ends < now_secs {
            return Err(TokenError::Expired);
        }
    }
    if data("usage-bootstrap-authentication").as_deref() != Some("true") {
        return Err(TokenError::Signature);
    }
    let extra = data("auth-extra-groups").unwrap_or_default();
    let extra: Vec<&str> = extra.split(',').filter(|group| !group.is_empty()).collect();
    if !extra.iter().all(|group| is_bootstrap_group(group)) {
        return Err(TokenError::Malformed);
    }
    let groups = std::iter::once(GROUP).chain(extra);
    Ok(Arc::new(UserInfo::new(
        format!("system:bootstrap:{id}"),
        groups,
    )))
}

fn is_bootstrap_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else {
        return false;
    };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    rest.len() <= 256
        && rest.bytes().all(|b| plain(b) || b == b':' || b == b'-')
        && rest.bytes().last().is_some_and(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{put, store};

    const NOW: i64 = 1_800_000_000;

    fn secret(changes: &Value) -> Value {
        let mut texts = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:edge"});
        for (key, value) in changes.as_object().unwrap() {
            texts[key] = value.clone();
        }
        let data: serde_json::Map<_, _> = texts
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| {
                let encoded =
                    base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap());
                (key.clone(), Value::from(encoded))
            })
            .collect();
        json!({"metadata": {"namespace": "kube-system", "name": "bootstrap-token-abcdef"}, "type": TYPE, "data": data})
    }

    #[tokio::test]
    async fn a_token_is_what_its_secret_says() {
        let token = parts("abcdef.0123456789abcdef").unwrap();
        for (name, changes, good) in [
            ("as it should be", json!({}), true),
            (
                "not over yet",
                json!({"expiration": "2030-01-01T00:00:00Z"}),
                true,
            ),
            ("over", json!({"expiration": "2020-01-01T00:00:00Z"}), false),
            ("over at no time", json!({"expiration": "tomorrow"}), false),
            (
                "for signing only",
                json!({"usage-bootstrap-authentication": "false"}),
                false,
            ),
            (
                "another secret",
                json!({"token-secret": "fedcba9876543210"}),
                false,
            ),
            ("another id inside", json!({"token-id": "fedcba"}), false),
            (
                "in a group that is none",
                json!({"auth-extra-groups": "system:masters"}),
                false,
            ),
        ] {
            let store = store();
            put(&store, "secrets", &secret(&changes)).await;
            let checked = check(&store.snapshot(), token, NOW);
            assert_eq!(checked.is_ok(), good, "case: {name}");
            if let Ok(user) = checked {
                assert_eq!(user.name, "system:bootstrap:abcdef");
                assert!(user.in_group(GROUP) && user.in_group("system:bootstrappers:edge"));
            }
        }
        let store = store();
        let mut other = secret(&json!({}));
        other["type"] = "Opaque".into();
        put(&store, "secrets", &other).await;
        assert!(
            check(&store.snapshot(), token, NOW).is_err(),
            "a Secret of another type"
        );
    }

    #[test]
    fn only_short_plain_tokens_are_bootstrap_tokens() {
        for token in [
            "abcdef.0123456789abcde",
            "ABCDEF.0123456789abcdef",
            "a.b.c",
            "abcdef0123456789abcdef",
            "",
        ] {
            assert!(parts(token).is_none(), "{token}");
        }
    }
}
