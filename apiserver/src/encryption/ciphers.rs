//! The ciphers, with the bytes around the text as upstream lays them out: an initial vector or nonce, then the sealed text.

use aes::{Aes128, Aes192, Aes256};
use aes_gcm::AesGcm;
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockDecryptMut as _, BlockEncryptMut as _, KeyIvInit as _};
use crypto_secretbox::XSalsa20Poly1305;
use rand::RngCore as _;

/// What is done with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cipher {
    AesCbc,
    AesGcm,
    SecretBox,
}

impl Cipher {
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "aescbc" => Some(Self::AesCbc),
            "aesgcm" => Some(Self::AesGcm),
            "secretbox" => Some(Self::SecretBox),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::AesCbc => "aescbc",
            Self::AesGcm => "aesgcm",
            Self::SecretBox => "secretbox",
        }
    }

    pub(super) fn lengths(self) -> &'static str {
        match self {
            Self::AesCbc | Self::AesGcm => "must be of 16, 24 or 32 bytes",
            Self::SecretBox => "must be of 32 bytes",
        }
    }
}

/// A key with its cipher. Shows nothing of itself.
pub(super) struct Key {
    /// What values that it sealed begin with.
    pub(super) prefix: Vec<u8>,
    cipher: Keyed,
}

enum Keyed {
    Cbc(Vec<u8>),
    Gcm128(Box<AesGcm<Aes128, U12>>),
    Gcm192(Box<AesGcm<Aes192, U12>>),
    Gcm256(Box<AesGcm<Aes256, U12>>),
    SecretBox(Box<XSalsa20Poly1305>),
}

const IV_LEN: usize = 16;
const GCM_NONCE_LEN: usize = 12;
const BOX_NONCE_LEN: usize = 24;

const DAMAGED: &str = "what is kept of it is not what was sealed";

impl Key {
    /// None if the secret is not of a right length.
    pub(super) fn new(cipher: Cipher, name: &str, secret: &[u8]) -> Option<Self> {
        let keyed = match (cipher, secret.len()) {
            (Cipher::AesCbc, 16 | 24 | 32) => Keyed::Cbc(secret.to_vec()),
            (Cipher::AesGcm, 16) => Keyed::Gcm128(Box::new(AesGcm::new_from_slice(secret).ok()?)),
            (Cipher::AesGcm, 24) => Keyed::Gcm192(Box::new(AesGcm::new_from_slice(secret).ok()?)),
            (Cipher::AesGcm, 32) => Keyed::Gcm256(Box::new(AesGcm::new_from_slice(secret).ok()?)),
            (Cipher::SecretBox, 32) => {
                Keyed::SecretBox(Box::new(XSalsa20Poly1305::new_from_slice(secret).ok()?))
            }
            _ => return None,
        };
        Some(Self {
            prefix: format!("k8s:enc:{}:v1:{name}:", cipher.name()).into_bytes(),
            cipher: keyed,
        })
    }

    /// Prefix, nonce and sealed text. `place` is where the value is kept; AES-GCM covers it.
    pub(super) fn seal(&self, plain: &[u8], place: &[u8]) -> Vec<u8> {
        let nonce_len = match &self.cipher {
            Keyed::Cbc(_) => IV_LEN,
            Keyed::Gcm128(_) | Keyed::Gcm192(_) | Keyed::Gcm256(_) => GCM_NONCE_LEN,
            Keyed::SecretBox(_) => BOX_NONCE_LEN,
        };
        let mut nonce = [0; BOX_NONCE_LEN];
        let nonce = &mut nonce[..nonce_len];
        rand::rng().fill_bytes(nonce);
        let payload = Payload {
            msg: plain,
            aad: place,
        };
        let sealed = match &self.cipher {
            Keyed::Cbc(secret) => Ok(cbc_encrypt(secret, nonce, plain)),
            Keyed::Gcm128(key) => key.encrypt((&*nonce).into(), payload),
            Keyed::Gcm192(key) => key.encrypt((&*nonce).into(), payload),
            Keyed::Gcm256(key) => key.encrypt((&*nonce).into(), payload),
            Keyed::SecretBox(key) => key.encrypt((&*nonce).into(), plain),
        };
        let sealed = sealed.expect("objects are far smaller than what a cipher takes");
        [&self.prefix, &*nonce, &sealed].concat()
    }

    /// The text of what stands behind the prefix.
    pub(super) fn open(&self, sealed: &[u8], place: &[u8]) -> Result<Vec<u8>, String> {
        let cut = |at: usize| sealed.split_at_checked(at).ok_or(DAMAGED);
        let covered = |msg| Payload { msg, aad: place };
        let opened = match &self.cipher {
            Keyed::Cbc(secret) => {
                let (iv, text) = cut(IV_LEN)?;
                return cbc_decrypt(secret, iv, text).ok_or_else(|| DAMAGED.to_owned());
            }
            Keyed::Gcm128(key) => {
                let (nonce, text) = cut(GCM_NONCE_LEN)?;
                key.decrypt(nonce.into(), covered(text))
            }
            Keyed::Gcm192(key) => {
                let (nonce, text) = cut(GCM_NONCE_LEN)?;
                key.decrypt(nonce.into(), covered(text))
            }
            Keyed::Gcm256(key) => {
                let (nonce, text) = cut(GCM_NONCE_LEN)?;
                key.decrypt(nonce.into(), covered(text))
            }
            Keyed::SecretBox(key) => {
                let (nonce, text) = cut(BOX_NONCE_LEN)?;
                key.decrypt(nonce.into(), text)
            }
        };
        opened.map_err(|_| DAMAGED.to_owned())
    }
}

fn cbc_encrypt(secret: &[u8], iv: &[u8], plain: &[u8]) -> Vec<u8> {
    const RIGHT: &str = "the lengths were checked";
    match secret.len() {
        16 => cbc::Encryptor::<Aes128>::new_from_slices(secret, iv)
            .expect(RIGHT)
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
        24 => cbc::Encryptor::<Aes192>::new_from_slices(secret, iv)
            .expect(RIGHT)
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
        _ => cbc::Encryptor::<Aes256>::new_from_slices(secret, iv)
            .expect(RIGHT)
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
    }
}

fn cbc_decrypt(secret: &[u8], iv: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    match secret.len() {
        16 => cbc::Decryptor::<Aes128>::new_from_slices(secret, iv)
            .ok()?
            .decrypt_padded_vec_mut::<Pkcs7>(text)
            .ok(),
        24 => cbc::Decryptor::<Aes192>::new_from_slices(secret, iv)
            .ok()?
            .decrypt_padded_vec_mut::<Pkcs7>(text)
            .ok(),
        _ => cbc::Decryptor::<Aes256>::new_from_slices(secret, iv)
            .ok()?
            .decrypt_padded_vec_mut::<Pkcs7>(text)
            .ok(),
    }
}
