//! Which requests a webhook or a policy is about: rules, selectors, and the version in which it wants to see objects.

use std::borrow::Cow;

use cox_api::meta;
use cox_api::selector::LabelSelector;
use cox_api::status::ApiStatus;
use serde_json::Value;

use super::{Operation, Request, items};
use crate::registry::{Entry, EntryRef, Registry};

/// The resources of this group that say what is admitted are not judged by what they say.
const OWN_GROUP: &str = "admissionregistration.k8s.io";

/// What a webhook or a policy matches, read once.
#[derive(Clone, Debug)]
pub(super) struct Matcher {
    rules: Vec<Value>,
    excluded: Vec<Value>,
    /// Other versions of a resource count as the ones that the rules name.
    equivalent: bool,
    namespaces: Option<LabelSelector>,
    objects: Option<LabelSelector>,
    /// A selector that does not parse: nothing can be said.
    broken: Option<String>,
}

/// A match: the resource in the version in which objects are to be shown.
#[derive(Debug)]
pub(super) struct Matched(pub(super) Option<EntryRef>);

impl Operation {
    /// As rules name it.
    pub(super) fn text(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// Nobody is asked about the objects by which admission is set up.
pub(super) fn is_exempt(request: &Request<'_>) -> bool {
    request.resource.group == OWN_GROUP
        && matches!(
            request.resource.plural.as_str(),
            "validatingwebhookconfigurations"
                | "mutatingwebhookconfigurations"
                | "validatingadmissionpolicies"
                | "validatingadmissionpolicybindings"
                | "mutatingadmissionpolicies"
                | "mutatingadmissionpolicybindings"
        )
}

impl Matcher {
    /// Of an object with `matchPolicy`, selectors, and rules in a field of that name.
    pub(super) fn read(constraints: &Value, rules: &str) -> Self {
        let mut broken = None;
        let mut selector = |field: &str| {
            let value = constraints.get(field).filter(|value| !value.is_null())?;
            match LabelSelector::from_value(value) {
                Ok(selector) if selector.is_empty() => None,
                Ok(selector) => Some(selector),
                Err(error) => {
                    broken = Some(error.to_string());
                    None
                }
            }
        };
        let (namespaces, objects) = (selector("namespaceSelector"), selector("objectSelector"));
        Matcher {
            rules: items(&constraints[rules]).cloned().collect(),
            excluded: items(&constraints["excludeResourceRules"])
                .cloned()
                .collect(),
            equivalent: constraints["matchPolicy"] != "Exact",
            namespaces,
            objects,
            broken,
        }
    }

    /// Has no rules: of a binding, that means everything its policy matches.
    pub(super) fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Whether the request is meant.
    pub(super) fn matches(
        &self,
        registry: &Registry,
        request: &Request<'_>,
    ) -> Result<Option<Matched>, ApiStatus> {
        let Some(matched) = self.by_rules(registry, request, &self.rules) else {
            return Ok(None);
        };
        if self.by_rules(registry, request, &self.excluded).is_some() {
            return Ok(None);
        }
        if self.selects(registry, request)? {
            Ok(Some(matched))
        } else {
            Ok(None)
        }
    }

    /// Whether both selectors take the request.
    pub(super) fn selects(
        &self,
        registry: &Registry,
        request: &Request<'_>,
    ) -> Result<bool, ApiStatus> {
        if let Some(why) = &self.broken {
            return Err(ApiStatus::internal(why));
        }
        Ok(self.selects_namespace(registry, request)? && self.selects_object(request))
    }

    /// As rules alone decide; no rules exclude nothing.
    pub(super) fn excludes(&self, registry: &Registry, request: &Request<'_>) -> bool {
        self.by_rules(registry, request, &self.excluded).is_some()
    }

    fn by_rules(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        rules: &[Value],
    ) -> Option<Matched> {
        let own = &request.entry.resource;
        if rules
            .iter()
            .any(|rule| rule_matches(rule, request, &own.group, &own.version))
        {
            return Some(Matched(None));
        }
        if !self.equivalent {
            return None;
        }
        let others = equivalents(registry, request.entry);
        rules.iter().find_map(|rule| {
            let other = others.iter().find(|other| {
                rule_matches(
                    rule,
                    request,
                    &other.resource.group,
                    &other.resource.version,
                )
            });
            other.map(|other| Matched(Some(other.clone())))
        })
    }

    fn selects_namespace(
        &self,
        registry: &Registry,
        request: &Request<'_>,
    ) -> Result<bool, ApiStatus> {
        let Some(selector) = &self.namespaces else {
            return Ok(true);
        };
        let of_namespaces = is_namespaces(request);
        if request.namespace.is_empty() && !of_namespaces {
            return Ok(true);
        }
        let name = if of_namespaces {
            request.name
        } else {
            request.namespace
        };
        let coming = of_namespaces
            && matches!(request.operation, Operation::Create | Operation::Update)
            && request.subresource.is_empty();
        let namespace = if coming {
            request.object.as_ref().map(Cow::Borrowed)
        } else {
            registry.value("", "namespaces", "", name).map(Cow::Owned)
        };
        match namespace {
            Some(namespace) => Ok(has_labels(selector, &namespace)),
            None => Err(ApiStatus::not_found("", "namespaces", name)),
        }
    }

    fn selects_object(&self, request: &Request<'_>) -> bool {
        let Some(selector) = &self.objects else {
            return true;
        };
        let objects = request.object.as_ref().into_iter().chain(request.old);
        objects
            .into_iter()
            .any(|object| object["metadata"].is_object() && has_labels(selector, object))
    }
}

fn has_labels(selector: &LabelSelector, object: &Value) -> bool {
    let labels: Vec<(&str, &str)> = meta::labels(object).collect();
    selector.matches(labels.iter().copied())
}

fn is_namespaces(request: &Request<'_>) -> bool {
    request.resource.group.is_empty() && request.resource.plural == "namespaces"
}

/// The same resource in other versions and groups.
fn equivalents(registry: &Registry, entry: &Entry) -> Vec<EntryRef> {
    let differs = |other: &Entry| other.api_version != entry.api_version;
    if entry.custom.is_some() {
        let present = registry.customs().present().entries().into_iter();
        let same = present.filter(|other| other.prefix == entry.prefix && differs(other));
        return same.map(EntryRef::Custom).collect();
    }
    let all = registry.catalog().entries().iter();
    let same = all.filter(|other| other.prefix == entry.prefix && differs(other));
    same.map(EntryRef::Builtin).collect()
}

fn rule_matches(rule: &Value, request: &Request<'_>, group: &str, version: &str) -> bool {
    let has =
        |field: &str, wanted: &str| items(&rule[field]).any(|one| one == "*" || one == wanted);
    let cluster_scoped = is_namespaces(request) || request.namespace.is_empty();
    let in_scope = match rule["scope"].as_str() {
        Some("Namespaced") => !cluster_scoped,
        Some("Cluster") => cluster_scoped,
        _ => true,
    };
    in_scope
        && has("operations", request.operation.text())
        && has("apiGroups", group)
        && has("apiVersions", version)
        && items(&rule["resources"])
            .filter_map(Value::as_str)
            .any(|one| {
                let (plural, sub) = one.split_once('/').unwrap_or((one, ""));
                (plural == "*" || plural == request.resource.plural)
                    && (sub == "*" || sub == request.subresource)
            })
        && (rule["resourceNames"].as_array().is_none_or(Vec::is_empty)
            || items(&rule["resourceNames"]).any(|one| one == request.name))
}

/// Shows objects in a version, and takes them back from it.
pub(super) struct Shown<'e> {
    entry: &'e Entry,
    registry: &'e Registry,
    /// What the request carries is not the object itself but something about it.
    other: Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    No,
    Scale,
    Yes,
}

impl<'e> Shown<'e> {
    pub(super) fn new(registry: &'e Registry, request: &Request<'e>, matched: &'e Matched) -> Self {
        let other = match (request.subresource, &request.object) {
            ("scale", _) => Other::Scale,
            ("", _) => Other::No,
            (_, Some(object)) if object["kind"] != request.resource.kind.as_str() => Other::Yes,
            _ => Other::No,
        };
        Shown {
            entry: matched.0.as_deref().unwrap_or(request.entry),
            registry,
            other,
        }
    }

    /// The resource in the version that is shown.
    pub(super) fn entry(&self) -> &'e Entry {
        self.entry
    }

    /// The form that is shown.
    pub(super) async fn show(&self, value: &Value) -> Result<Value, ApiStatus> {
        match (self.other, &self.entry.custom) {
            (Other::Yes, _) => Ok(value.clone()),
            (Other::Scale, _) => Ok(self.entry.scale_of(value).unwrap_or_default()),
            (Other::No, None) => Ok(self.entry.from_storage(value.clone())),
            (Other::No, Some(_)) => self.registry.in_entry(self.entry, value.clone()).await,
        }
    }

    /// The form that the request works on, of what was shown and then changed.
    pub(super) async fn take_back(
        &self,
        request: &Request<'_>,
        changed: Value,
    ) -> Result<Value, ApiStatus> {
        let own = request.entry;
        match self.other {
            Other::Yes => Ok(changed),
            Other::Scale => {
                let mut object = request.object.clone().unwrap_or_default();
                own.set_scale(&mut object, &changed);
                Ok(object)
            }
            Other::No => {
                let decoded = self
                    .entry
                    .canonicalize(changed)
                    .map_err(|error| ApiStatus::internal(error.to_string()))?;
                let value = self.entry.to_storage(decoded.value);
                let mut value = self.registry.in_entry(own, value).await?;
                own.apply_defaults(&mut value);
                Ok(value)
            }
        }
    }
}
