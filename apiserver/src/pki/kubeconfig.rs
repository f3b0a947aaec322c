//! The text of a kubeconfig with everything inside it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::PemPair;

/// A kubeconfig with one cluster, one user and one context, all named `cox`, and all credentials inline.
pub fn render(server_url: &str, ca_pem: &str, pair: &PemPair) -> String {
    let ca = STANDARD.encode(ca_pem);
    let certificate = STANDARD.encode(&pair.certificate);
    let key = STANDARD.encode(&pair.key);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: cox
  cluster:
    certificate-authority-data: {ca}
    server: {server_url}
contexts:
- name: cox
  context:
    cluster: cox
    user: cox
current-context: cox
preferences: {{}}
users:
- name: cox
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
"
    )
}
