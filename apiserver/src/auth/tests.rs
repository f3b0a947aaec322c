//! Tokens, certificates, impersonation and nodes.
