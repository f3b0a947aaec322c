//! The policy file: rules, the first of which that means a request decides.

use std::path::{Path, PathBuf};

use cox_api::codec;
use cox_api::meta::strings;
use serde_json::Value;

use crate::auth::Attributes;

/// Why a policy is not used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// No such file, or not readable.
    #[error("the audit policy {} cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It does not say what it should.
    #[error("the audit policy is wrong: {0}")]
    Wrong(String),
}

/// How much is written of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "None" => Some(Self::None),
            "Metadata" => Some(Self::Metadata),
            "Request" => Some(Self::Request),
            "RequestResponse" => Some(Self::RequestResponse),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    const ALL: [Self; 4] = [
        Self::RequestReceived,
        Self::ResponseStarted,
        Self::ResponseComplete,
        Self::Panic,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::RequestReceived => 1,
            Self::ResponseStarted => 2,
            Self::ResponseComplete => 4,
            Self::Panic => 8,
        }
    }
}

/// What a rule wants of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) level: Level,
    omitted_stages: u8,
    pub(super) omit_managed_fields: bool,
}

impl Wanted {
    pub(super) fn omits(self, stage: Stage) -> bool {
        self.omitted_stages & stage.bit() != 0
    }
}

#[derive(Debug)]
struct Rule {
    wanted: Wanted,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    paths: Vec<String>,
}

#[derive(Debug)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

/// All rules.
#[derive(Debug)]
pub(super) struct Policy(Vec<Rule>);

impl Policy {
    pub(super) fn load(path: &Path) -> Result<Self, PolicyError> {
        let text = std::fs::read(path).map_err(|source| PolicyError::Read {
            path: path.to_owned(),
            source,
        })?;
        let value =
            codec::yaml_value(&text).map_err(|error| PolicyError::Wrong(error.to_string()))?;
        Self::read(&value).map_err(PolicyError::Wrong)
    }

    fn read(value: &Value) -> Result<Self, String> {
        if value["kind"] != "Policy" || value["apiVersion"] != "audit.k8s.io/v1" {
            return Err("must be a Policy of audit.k8s.io/v1".to_owned());
        }
        let rules = value["rules"].as_array().filter(|rules| !rules.is_empty());
        let rules = rules.ok_or("rules: at least one is needed")?;
        let omitted = stages(&value["omitStages"], "omitStages")?;
        let omit_managed_fields = value["omitManagedFields"] == true;
        let rules = rules.iter().enumerate().map(|(at, rule)| {
            Rule::read(rule, omitted, omit_managed_fields)
                .map_err(|why| format!("rules[{at}].{why}"))
        });
        rules.collect::<Result<_, _>>().map(Self)
    }

    /// What the first rule that means the request wants; nothing if that wants none of it.
    pub(super) fn wanted(&self, attributes: &Attributes<'_>) -> Option<Wanted> {
        let rule = self.0.iter().find(|rule| rule.means(attributes))?;
        (rule.wanted.level > Level::None).then_some(rule.wanted)
    }
}

impl Rule {
    fn read(rule: &Value, omitted: u8, omit_managed_fields: bool) -> Result<Self, String> {
        let level = rule["level"].as_str().and_then(Level::parse);
        let resources = list(&rule["resources"]).map(|one| GroupResources {
            group: one["group"].as_str().unwrap_or_default().to_owned(),
            resources: strings(&one["resources"]),
            names: strings(&one["resourceNames"]),
        });
        let rule = Self {
            wanted: Wanted {
                level: level.ok_or("level: must be None, Metadata, Request or RequestResponse")?,
                omitted_stages: omitted | stages(&rule["omitStages"], "omitStages")?,
                omit_managed_fields: rule["omitManagedFields"]
                    .as_bool()
                    .unwrap_or(omit_managed_fields),
            },
            users: strings(&rule["users"]),
            groups: strings(&rule["userGroups"]),
            verbs: strings(&rule["verbs"]),
            resources: resources.collect(),
            namespaces: strings(&rule["namespaces"]),
            paths: strings(&rule["nonResourceURLs"]),
        };
        let of_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
        if of_resources && !rule.paths.is_empty() {
            return Err("nonResourceURLs: rules cannot apply to both regular resources and non-resource URLs".to_owned());
        }
        Ok(rule)
    }

    fn means(&self, attributes: &Attributes<'_>) -> bool {
        let any =
            |list: &[String], is: &dyn Fn(&String) -> bool| list.is_empty() || list.iter().any(is);
        any(&self.users, &|name| *name == attributes.user.name)
            && any(&self.groups, &|group| attributes.user.in_group(group))
            && any(&self.verbs, &|verb| verb == attributes.verb)
            && self.means_what(attributes)
    }

    fn means_what(&self, attributes: &Attributes<'_>) -> bool {
        if !attributes.is_resource() {
            let of_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
            return !of_resources
                && (self.paths.is_empty()
                    || self.paths.iter().any(|path| is_path(path, attributes.path)));
        }
        if !self.paths.is_empty() {
            return false;
        }
        let in_namespace = self.namespaces.is_empty()
            || self
                .namespaces
                .iter()
                .any(|one| one == attributes.namespace);
        in_namespace
            && (self.resources.is_empty() || self.resources.iter().any(|one| one.mean(attributes)))
    }
}

impl GroupResources {
    fn mean(&self, attributes: &Attributes<'_>) -> bool {
        let named = self.names.is_empty() || self.names.iter().any(|name| name == attributes.name);
        let is =
            |pattern: &String| is_resource(pattern, attributes.resource, attributes.subresource);
        self.group == attributes.group
            && named
            && (self.resources.is_empty() || self.resources.iter().any(is))
    }
}

/// `pods`, `pods/log`, `pods/*`, `*/scale` or `*`.
fn is_resource(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match pattern.split_once('/') {
        None => pattern == resource && subresource.is_empty(),
        Some(("*", sub)) => sub == subresource,
        Some((of, "*")) => of == resource,
        Some((of, sub)) => of == resource && sub == subresource,
    }
}

/// A path, or the beginning of one and a star.
fn is_path(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => pattern == path,
    }
}

fn stages(value: &Value, place: &str) -> Result<u8, String> {
    let mut bits = 0;
    for name in strings(value) {
        let stage = Stage::ALL.iter().find(|stage| stage.name() == name);
        bits |= stage
            .ok_or_else(|| format!("{place}: {name:?} is no stage"))?
            .bit();
    }
    Ok(bits)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::UserInfo;
    use serde_json::json;

    fn level(rules: Value, attributes: &Attributes<'_>) -> &'static str {
        let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules});
        let policy = Policy::read(&policy).unwrap();
        policy
            .wanted(attributes)
            .map_or("None", |wanted| wanted.level.name())
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn the_first_rule_that_means_a_request_decides() {
        let bob = UserInfo::new("bob", ["devs"]);
        let pods = Attributes {
            namespace: "a",
            name: "web",
            ..Attributes::for_resource(&bob, "get", "", "pods")
        };
        let log = Attributes {
            subresource: "log",
            ..pods
        };
        let path = Attributes::for_path(&bob, "get", "/healthz/ping");
        let cases: &[(&str, Value, Attributes<'_>, &str)] = &[
            (
                "no rule means it",
                json!([{"level": "Request", "users": ["eve"]}]),
                pods,
                "None",
            ),
            (
                "the first",
                json!([{"level": "Request"}, {"level": "Metadata"}]),
                pods,
                "Request",
            ),
            (
                "a group",
                json!([{"level": "Request", "userGroups": ["devs"]}]),
                pods,
                "Request",
            ),
            (
                "a verb",
                json!([{"level": "Request", "verbs": ["list"]}, {"level": "Metadata"}]),
                pods,
                "Metadata",
            ),
            (
                "a resource",
                json!([{"level": "Request", "resources": [{"group": "", "resources": ["pods"]}]}]),
                pods,
                "Request",
            ),
            (
                "not its subresource",
                json!([{"level": "Request", "resources": [{"resources": ["pods"]}]}]),
                log,
                "None",
            ),
            (
                "any subresource",
                json!([{"level": "Request", "resources": [{"resources": ["pods/*"]}]}]),
                log,
                "Request",
            ),
            (
                "of any resource",
                json!([{"level": "Request", "resources": [{"resources": ["*/log"]}]}]),
                log,
                "Request",
            ),
            (
                "everything of a group",
                json!([{"level": "Request", "resources": [{"group": ""}]}]),
                log,
                "Request",
            ),
            (
                "another group",
                json!([{"level": "Request", "resources": [{"group": "apps"}]}]),
                pods,
                "None",
            ),
            (
                "a name",
                json!([{"level": "Request", "resources": [{"resources": ["pods"], "resourceNames": ["db"]}]}]),
                pods,
                "None",
            ),
            (
                "a namespace",
                json!([{"level": "Request", "namespaces": ["b"]}, {"level": "Metadata", "namespaces": ["a"]}]),
                pods,
                "Metadata",
            ),
            (
                "a path",
                json!([{"level": "Request", "nonResourceURLs": ["/healthz*"]}]),
                path,
                "Request",
            ),
            (
                "a path is no resource",
                json!([{"level": "Request", "nonResourceURLs": ["*"]}]),
                pods,
                "None",
            ),
            (
                "a resource is no path",
                json!([{"level": "Request", "resources": [{"group": ""}]}]),
                path,
                "None",
            ),
        ];
        for (name, rules, attributes, expected) in cases {
            assert_eq!(level(rules.clone(), attributes), *expected, "case: {name}");
        }
    }

    #[test]
    fn stages_of_policy_and_rule_add_up() {
        let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata", "omitStages": ["Panic"]}]});
        let bob = UserInfo::new("bob", []);
        let policy = Policy::read(&policy).unwrap();
        let wanted = policy
            .wanted(&Attributes::for_path(&bob, "get", "/"))
            .unwrap();
        let omitted: Vec<&str> = Stage::ALL
            .iter()
            .filter(|stage| wanted.omits(**stage))
            .map(|stage| stage.name())
            .collect();
        assert_eq!(omitted, ["RequestReceived", "Panic"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (rules, expected) in [
            (json!([]), "at least one"),
            (json!([{"level": "All"}]), "rules[0].level"),
            (
                json!([{"level": "None", "omitStages": ["Never"]}]),
                "rules[0].omitStages",
            ),
            (
                json!([{"level": "None", "namespaces": ["a"], "nonResourceURLs": ["/"]}]),
                "rules[0].nonResourceURLs",
            ),
        ] {
            let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules});
            let error = Policy::read(&policy).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
