//! The public keys of a provider: from a file, or found by its discovery document.
//!
//! Keys are read again when a token is signed by one that is not known, so whoever rotates them needs to tell nobody.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::RwLock;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;

use super::OidcError;
use crate::auth::remote::Remote;
use crate::outside::Trust;

/// A provider is not asked more often than this for keys that a token makes up.
const ASK_EVERY: Duration = Duration::from_secs(10);
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// A public key of the provider.
#[derive(Debug)]
struct Key {
    id: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
}

/// Where keys come from.
#[derive(Debug)]
enum Source {
    File(PathBuf),
    Discovery {
        document: Box<Remote>,
        issuer: String,
        trust: Trust,
    },
}

/// The keys of one provider.
#[derive(Debug)]
pub(super) struct Keys {
    source: Source,
    known: RwLock<Vec<Key>>,
    /// Of a file its time, of a discovery the moment; locked while somebody reads.
    read: tokio::sync::Mutex<(Option<SystemTime>, Option<Instant>)>,
}

impl Keys {
    /// Those of a file, which must hold some.
    pub(super) fn of_file(path: &Path) -> Result<Self, OidcError> {
        let written = written(path);
        let known = read_file(path).map_err(|reason| OidcError::Keys {
            path: path.to_owned(),
            reason,
        })?;
        Ok(Self {
            source: Source::File(path.to_owned()),
            known: RwLock::new(known),
            read: tokio::sync::Mutex::new((written, None)),
        })
    }

    /// Those that a discovery document leads to; it is read with the first token.
    pub(super) fn discovered(
        issuer: &str,
        document: &str,
        trust: Trust,
    ) -> Result<Self, OidcError> {
        let document = Box::new(Remote::at(document, &trust)?);
        Ok(Self {
            source: Source::Discovery {
                document,
                issuer: issuer.to_owned(),
                trust,
            },
            known: RwLock::default(),
            read: tokio::sync::Mutex::default(),
        })
    }

    /// Whether one of the keys has signed it.
    pub(super) async fn check(
        &self,
        alg: &str,
        key_id: Option<&str>,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), String> {
        let holds = || {
            let known = self.known.read();
            let fits =
                |key: &&Key| key_id.is_none() || key.id.is_none() || key.id.as_deref() == key_id;
            let mut fitting = known.iter().filter(fits);
            fitting.any(|key| key.material.verifies(alg, signed, signature))
        };
        if holds() {
            return Ok(());
        }
        let asked = Instant::now();
        self.read_again(asked).await?;
        if holds() {
            return Ok(());
        }
        Err("no key of the provider has signed it".to_owned())
    }

    async fn read_again(&self, asked: Instant) -> Result<(), String> {
        let mut read = self.read.lock().await;
        match &self.source {
            Source::File(path) => {
                if written(path) == read.0 {
                    return Ok(());
                }
                let now = written(path);
                *self.known.write() = read_file(path)?;
                read.0 = now;
            }
            Source::Discovery {
                document,
                issuer,
                trust,
            } => {
                if read
                    .1
                    .is_some_and(|last| last > asked || last.elapsed() < ASK_EVERY)
                {
                    return Ok(());
                }
                // Also a failure counts: whoever sends tokens does not decide how often the provider is asked.
                read.1 = Some(Instant::now());
                let found = discover(document, issuer, trust).await.inspect_err(|why| {
                    tracing::warn!(%issuer, %why, "The keys of the OpenID provider cannot be read");
                })?;
                *self.known.write() = found;
            }
        }
        Ok(())
    }
}

async fn discover(document: &Remote, issuer: &str, trust: &Trust) -> Result<Vec<Key>, String> {
    let found = document.get(ASK_TIMEOUT).await?;
    if found["issuer"] != *issuer {
        return Err(format!(
            "the discovery document is of the issuer {}, not {issuer:?}",
            found["issuer"]
        ));
    }
    let place = found["jwks_uri"]
        .as_str()
        .ok_or("the discovery document has no jwks_uri")?;
    let set = Remote::at(place, trust).map_err(|error| error.to_string())?;
    if set.is_plain() {
        return Err(format!("jwks_uri {place:?} is not https"));
    }
    parse(&set.get(ASK_TIMEOUT).await?)
}

impl Material {
    fn verifies(&self, alg: &str, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa { n, e } => {
                let parameters = match alg {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                RsaPublicKeyComponents { n, e }
                    .verify(parameters, signed, signature)
                    .is_ok()
            }
            Self::P256(point) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point);
                alg == "ES256" && key.verify(signed, signature).is_ok()
            }
            Self::P384(point) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point);
                alg == "ES384" && key.verify(signed, signature).is_ok()
            }
        }
    }
}

/// Algorithms that are known here.
pub(super) const ALGORITHMS: [&str; 8] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384",
];

fn written(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|meta| meta.modified())
        .ok()
}

fn read_file(path: &Path) -> Result<Vec<Key>, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    parse(&serde_json::from_slice(&text).map_err(|error| error.to_string())?)
}

fn parse(set: &Value) -> Result<Vec<Key>, String> {
    let keys = set["keys"].as_array().into_iter().flatten();
    let keys: Vec<Key> = keys.filter_map(key).collect();
    if keys.is_empty() {
        return Err("it holds no RSA, P-256 or P-384 key".to_owned());
    }
    Ok(keys)
}

/// A key of a set; none for kinds that are not used here.
fn key(value: &Value) -> Option<Key> {
    let bytes = |field: &str| URL_SAFE_NO_PAD.decode(value[field].as_str()?).ok();
    let point = |len: usize| {
        let (x, y) = (bytes("x")?, bytes("y")?);
        (x.len() == len && y.len() == len).then(|| [&[4][..], &x, &y].concat())
    };
    if value["use"]
        .as_str()
        .is_some_and(|purpose| purpose != "sig")
    {
        return None;
    }
    let material = match (value["kty"].as_str()?, value["crv"].as_str()) {
        ("RSA", _) => Material::Rsa {
            n: bytes("n")?,
            e: bytes("e")?,
        },
        ("EC", Some("P-256")) => Material::P256(point(32)?),
        ("EC", Some("P-384")) => Material::P384(point(48)?),
        _ => return None,
    };
    Some(Key {
        id: value["kid"].as_str().map(str::to_owned),
        material,
    })
}
