//! Who asks, and whether they may.
//!
//! Owns authentication (client certificates, service account, bootstrap and OpenID Connect tokens, a webhook for others, anonymous),
//! impersonation, authorization (RBAC, nodes, webhooks) and the review resources that ask about them. Inputs: request heads, the peer of a connection, the store.
//! Outputs: a [`UserInfo`], a [`Decision`], review objects. It never writes to the store, with one exception that is a
//! controller: the aggregation of cluster roles.

pub mod aggregation;
mod attributes;
mod authenticator;
pub mod authorization;
mod authorizer;
mod bootstrap_tokens;
mod bound;
mod impersonate;
mod node;
pub mod oidc;
pub mod rbac;
mod remembered;
mod remote;
pub mod reviews;
#[cfg(test)]
mod tests;
pub mod token_request;
pub mod token_webhook;
pub mod tokens;
mod user;
mod webhook;

pub use attributes::{Attributes, Decision};
pub use authenticator::{Authenticator, Verified};
pub use authorizer::{Authorizer, forbidden};
pub use remote::RemoteError;
pub use user::{
    ANONYMOUS, AUTHENTICATED, MASTERS, NODE_PREFIX, NODES, Peer, SERVICE_ACCOUNT_PREFIX,
    UNAUTHENTICATED, UserInfo,
};
