//! What the runtime shim has to know of Services (and, by `policy/table.rs`, of policies): a file beside its sockets, written anew as a whole when something changed.
//!
//! The shim looks at it when a guest connects: a file of another inode is another table. So it needs no connection to the API
//! server and none to this process, finds the table after its own restart, and keeps the last one when this process is gone.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::plan::{Protocol, Rule};

/// The file's content. `runtime-shim/src/network/services.rs` reads it.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Table<'a> {
    services: Vec<Row<'a>>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Row<'a> {
    protocol: &'static str,
    addresses: Vec<SocketAddr>,
    affinity_secs: Option<u32>,
    endpoints: &'a [SocketAddr],
}

/// Writes the table where it differs from the last one.
#[derive(Debug)]
pub(crate) struct TableFile {
    path: PathBuf,
    last: Vec<u8>,
}

impl TableFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            last: Vec::new(),
        }
    }

    /// `dns` is where this node answers for the cluster's DNS.
    pub(crate) fn write(&mut self, rules: &[Arc<Rule>], dns: Option<SocketAddr>) -> io::Result<()> {
        self.replace(render(rules, dns))
    }

    /// Writes a content that is rendered already.
    pub(crate) fn replace(&mut self, content: Vec<u8>) -> io::Result<()> {
        if content == self.last {
            return Ok(());
        }
        replace(&self.path, &content)?;
        self.last = content;
        Ok(())
    }
}

/// Is this one answered by the node itself?
pub(crate) fn is_dns(rule: &Rule) -> bool {
    rule.name.starts_with("kube-system/kube-dns:dns")
}

fn render(rules: &[Arc<Rule>], dns: Option<SocketAddr>) -> Vec<u8> {
    let own = dns.map(|addr| [addr]);
    let rows = rules.iter().filter(|rule| rule.protocol != Protocol::Sctp);
    let services = rows
        .map(|rule| Row {
            protocol: rule.protocol.name(),
            addresses: rule.cluster.iter().chain(&rule.external).copied().collect(),
            affinity_secs: rule.affinity_secs,
            endpoints: match &own {
                Some(own) if is_dns(rule) && rule.endpoints.is_empty() => own,
                Some(_) | None => &rule.endpoints,
            },
        })
        .collect();
    serde_json::to_vec(&Table { services }).unwrap_or_default()
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    io::Write::write_all(&mut file, content)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_table_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.json");
        let mut file = TableFile::new(path.clone());
        file.write(&[], None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"services\":[]}");
        fs::remove_file(&path).unwrap();
        file.write(&[], None).unwrap();
        assert!(!path.exists());
    }
}
