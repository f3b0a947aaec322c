//! FlowSchemas: which requests they mean. Pure, and without allocations where requests are matched.

use cox_api::meta::strings;
use serde_json::Value;

use crate::auth::Attributes;

/// By what the requests of a schema are told apart into flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distinguisher {
    /// All are one flow.
    None,
    User,
    Namespace,
}

/// A FlowSchema as requests are matched with it.
#[derive(Debug)]
pub(super) struct Schema {
    pub(super) name: String,
    pub(super) level: String,
    pub(super) distinguisher: Distinguisher,
    precedence: i64,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

#[derive(Debug)]
struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

const ALL: &str = "*";

impl Schema {
    /// None for what validation would not have let in.
    pub(super) fn read(object: &Value) -> Option<Self> {
        let spec = &object["spec"];
        let distinguisher = match spec["distinguisherMethod"]["type"].as_str() {
            Some("ByUser") => Distinguisher::User,
            Some("ByNamespace") => Distinguisher::Namespace,
            _ => Distinguisher::None,
        };
        Some(Self {
            name: object["metadata"]["name"].as_str()?.to_owned(),
            level: spec["priorityLevelConfiguration"]["name"]
                .as_str()?
                .to_owned(),
            distinguisher,
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            rules: list(&spec["rules"]).map(Rule::read).collect(),
        })
    }

    /// Schemas are asked in this order.
    pub(super) fn order(&self) -> (i64, &str) {
        (self.precedence, &self.name)
    }

    /// Whether the schema means this request.
    pub(super) fn matches(&self, attributes: &Attributes<'_>) -> bool {
        self.rules.iter().any(|rule| rule.matches(attributes))
    }
}

impl Rule {
    fn read(rule: &Value) -> Self {
        Self {
            subjects: list(&rule["subjects"]).filter_map(Subject::read).collect(),
            resources: list(&rule["resourceRules"])
                .map(|rule| ResourceRule {
                    verbs: strings(&rule["verbs"]),
                    groups: strings(&rule["apiGroups"]),
                    resources: strings(&rule["resources"]),
                    namespaces: strings(&rule["namespaces"]),
                    cluster_scope: rule["clusterScope"] == true,
                })
                .collect(),
            paths: list(&rule["nonResourceRules"])
                .map(|rule| PathRule {
                    verbs: strings(&rule["verbs"]),
                    paths: strings(&rule["nonResourceURLs"]),
                })
                .collect(),
        }
    }

    fn matches(&self, attributes: &Attributes<'_>) -> bool {
        let means = if attributes.is_resource() {
            self.resources.iter().any(|rule| rule.matches(attributes))
        } else {
            self.paths.iter().any(|rule| rule.matches(attributes))
        };
        means && self.subjects.iter().any(|subject| subject.is(attributes))
    }
}

impl Subject {
    fn read(subject: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match subject["kind"].as_str()? {
            "User" => text(&subject["user"]["name"]).map(Self::User),
            "Group" => text(&subject["group"]["name"]).map(Self::Group),
            "ServiceAccount" => Some(Self::ServiceAccount {
                namespace: text(&subject["serviceAccount"]["namespace"])?,
                name: text(&subject["serviceAccount"]["name"])?,
            }),
            _ => None,
        }
    }

    fn is(&self, attributes: &Attributes<'_>) -> bool {
        let user = attributes.user;
        match self {
            Self::User(name) => name == ALL || *name == user.name,
            Self::Group(name) => name == ALL || user.in_group(name),
            Self::ServiceAccount { namespace, name } => user
                .service_account_name()
                .is_some_and(|(of, account)| namespace == of && (name == ALL || name == account)),
        }
    }
}

impl ResourceRule {
    fn matches(&self, attributes: &Attributes<'_>) -> bool {
        let in_scope = if attributes.namespace.is_empty() {
            self.cluster_scope
        } else {
            has(&self.namespaces, attributes.namespace)
        };
        in_scope
            && has(&self.verbs, attributes.verb)
            && has(&self.groups, attributes.group)
            && self.resources.iter().any(|one| {
                one == ALL || is_resource(one, attributes.resource, attributes.subresource)
            })
    }
}

/// `pods` or `pods/log`.
fn is_resource(text: &str, resource: &str, subresource: &str) -> bool {
    match text.split_once('/') {
        None => text == resource && subresource.is_empty(),
        Some((of, sub)) => of == resource && sub == subresource,
    }
}

impl PathRule {
    fn matches(&self, attributes: &Attributes<'_>) -> bool {
        let is = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => attributes.path.starts_with(start),
            None => pattern == attributes.path,
        };
        has(&self.verbs, attributes.verb) && self.paths.iter().any(is)
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == ALL || one == wanted)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::UserInfo;
    use serde_json::json;

    fn schema(subject: Value, rule: Value) -> Schema {
        let key = if rule["nonResourceURLs"].is_array() {
            "nonResourceRules"
        } else {
            "resourceRules"
        };
        let object = json!({"metadata": {"name": "s"}, "spec": {
            "priorityLevelConfiguration": {"name": "l"}, "rules": [{"subjects": [subject], key: [rule]}]}});
        Schema::read(&object).unwrap()
    }

    #[test]
    fn matching_table() {
        let everything = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true});
        let namespaced = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"], "namespaces": ["a"]});
        let any_user = json!({"kind": "User", "user": {"name": "*"}});
        let account =
            json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "a", "name": "*"}});
        let group = json!({"kind": "Group", "group": {"name": "devs"}});
        let healthz = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/openapi/*"]});
        let bob = UserInfo::new("bob", ["devs"]);
        let robot = UserInfo::service_account("a", "robot", "");
        let pods = |user, namespace| Attributes {
            namespace,
            ..Attributes::for_resource(user, "get", "", "pods")
        };
        let logs = Attributes {
            subresource: "log",
            ..pods(&bob, "a")
        };
        let exec = Attributes {
            subresource: "exec",
            ..pods(&bob, "a")
        };
        let cases: &[(&str, &Value, &Value, Attributes<'_>, bool)] = &[
            (
                "anybody, anything",
                &any_user,
                &everything,
                pods(&bob, "a"),
                true,
            ),
            (
                "cluster scope is a scope of its own",
                &any_user,
                &namespaced,
                pods(&bob, ""),
                false,
            ),
            (
                "the namespace",
                &any_user,
                &namespaced,
                pods(&bob, "a"),
                true,
            ),
            (
                "another namespace",
                &any_user,
                &namespaced,
                pods(&bob, "b"),
                false,
            ),
            (
                "a subresource that is named",
                &any_user,
                &namespaced,
                logs,
                true,
            ),
            ("one that is not", &any_user, &namespaced, exec, false),
            ("a group", &group, &everything, pods(&bob, "a"), true),
            (
                "not in the group",
                &group,
                &everything,
                pods(&robot, "a"),
                false,
            ),
            (
                "any service account of a namespace",
                &account,
                &everything,
                pods(&robot, "b"),
                true,
            ),
            (
                "a user is no service account",
                &account,
                &everything,
                pods(&bob, "a"),
                false,
            ),
            (
                "a path",
                &any_user,
                &healthz,
                Attributes::for_path(&bob, "get", "/healthz"),
                true,
            ),
            (
                "below a path",
                &any_user,
                &healthz,
                Attributes::for_path(&bob, "get", "/openapi/v3"),
                true,
            ),
            (
                "another path",
                &any_user,
                &healthz,
                Attributes::for_path(&bob, "get", "/healthz/x"),
                false,
            ),
            (
                "paths are not resources",
                &any_user,
                &everything,
                Attributes::for_path(&bob, "get", "/healthz"),
                false,
            ),
        ];
        for (name, subject, rule, attributes, expected) in cases {
            let schema = schema((*subject).clone(), (*rule).clone());
            assert_eq!(schema.matches(attributes), *expected, "case: {name}");
        }
    }
}
