//! What a request is about, as far as authorization cares.

use super::UserInfo;

/// The question to an authorizer. For a request about resources `resource` is set and `path` is not looked at; for any
/// other request (`/healthz`, `/version`) `resource` is empty.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Who asks.
    pub user: &'a UserInfo,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, …; the lower-case HTTP method
    /// for requests that are not about resources.
    pub verb: &'a str,
    /// The API group; empty for the core group.
    pub group: &'a str,
    /// The API version.
    pub version: &'a str,
    /// The resource's plural name.
    pub resource: &'a str,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// The object's name, or empty (lists, creates).
    pub name: &'a str,
    /// The namespace, or empty (cluster-wide).
    pub namespace: &'a str,
    /// The URL path, for requests that are not about resources.
    pub path: &'a str,
    /// The field selector of list, watch and deletecollection as sent, or empty.
    pub field_selector: &'a str,
    /// The label selector of the same, as sent, or empty.
    pub label_selector: &'a str,
}

impl<'a> Attributes<'a> {
    /// A question about a URL path.
    pub fn for_path(user: &'a UserInfo, verb: &'a str, path: &'a str) -> Self {
        Self {
            user,
            verb,
            group: "",
            version: "",
            resource: "",
            subresource: "",
            name: "",
            namespace: "",
            path,
            field_selector: "",
            label_selector: "",
        }
    }

    /// A question about a resource; narrow it by setting the other fields.
    pub fn for_resource(
        user: &'a UserInfo,
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
    ) -> Self {
        Self {
            group,
            resource,
            ..Self::for_path(user, verb, "")
        }
    }

    /// Whether this is about a resource and not a URL path.
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }
}

/// An authorizer's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Refuse with 403; the text (may be empty) follows upstream's sentence about what was asked.
    Deny(String),
    /// Nobody allows it, and somebody who might could not be asked: why not.
    Failed(String),
}

impl Decision {
    /// Whether the answer is yes.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow)
    }
}
