//! What can go wrong with the cluster's keys and certificates. Each text names the file and says how to mend it.

use std::path::{Path, PathBuf};

/// An error of the cluster's public key infrastructure.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The folder could not be made or protected.
    #[error("cannot use the key folder {}: make it writable for this user or choose another data folder", .path.display())]
    Directory {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file exists but cannot be read.
    #[error("cannot read {}: make it readable for this user", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}: free space there or make the folder writable", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} is damaged ({what}): {mend}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What the user can do.
        mend: &'static str,
    },
    /// A certificate could not be made.
    #[error("cannot issue a certificate for {subject}")]
    Issue {
        /// The common name asked for.
        subject: String,
        /// What the certificate library said.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate signing request that cannot be made or signed.
    #[error("the certificate request cannot be used: {reason}")]
    Request {
        /// What is wrong with it.
        reason: String,
    },
    /// More groups than one certificate carries.
    #[error(
        "cannot issue a certificate for {subject}: {groups} groups were asked for, a certificate carries two at most"
    )]
    TooManyGroups {
        /// The common name asked for.
        subject: String,
        /// How many groups were asked for.
        groups: usize,
    },
    /// rustls refused the material.
    #[error("cannot set up TLS from {}", .path.display())]
    Tls {
        /// The certificate file.
        path: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
}

/// The mend for anything of the certificate authority.
pub(super) const MEND_CA: &str = "restore it from a backup, or remove the key folder: a new cluster CA is made then, and \
     every kubeconfig and node certificate must be issued again";
/// The mend for the service account key.
pub(super) const MEND_SA: &str = "restore it from a backup, or remove it: a new key is made then, and service account tokens \
     issued before are refused until they are renewed";

pub(super) fn damaged(path: &Path, what: impl Into<String>, mend: &'static str) -> PkiError {
    PkiError::Damaged {
        path: path.to_owned(),
        what: what.into(),
        mend,
    }
}
