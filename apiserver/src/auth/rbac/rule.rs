//! One policy rule: what it allows, and whether it covers another.

use serde::{Deserialize, Serialize};

use crate::auth::Attributes;

/// Stands for everything in each list of a rule.
const ALL: &str = "*";

/// A rule of a Role or ClusterRole.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// What may be done.
    pub verbs: Vec<String>,
    /// In which API groups; empty text is the core group.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_empty"
    )]
    pub api_groups: Vec<String>,
    /// To which resources (`pods`, `pods/log`, `*/scale`).
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_empty"
    )]
    pub resources: Vec<String>,
    /// To which objects; empty is all of them.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_empty"
    )]
    pub resource_names: Vec<String>,
    /// On which URL paths; a `*` at the end stands for any rest.
    #[serde(
        rename = "nonResourceURLs",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_empty"
    )]
    pub non_resource_urls: Vec<String>,
}

fn null_as_empty<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl PolicyRule {
    /// Whether the rule allows what is asked.
    pub fn allows(&self, asked: &Attributes<'_>) -> bool {
        if !holds(&self.verbs, asked.verb) {
            return false;
        }
        if !asked.is_resource() {
            return self
                .non_resource_urls
                .iter()
                .any(|pattern| path_matches(pattern, asked.path));
        }
        holds(&self.api_groups, asked.group)
            && self
                .resources
                .iter()
                .any(|one| resource_matches(one, asked.resource, asked.subresource))
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|name| name == asked.name))
    }

    /// Whether everything this rule's single part `asked` grants is granted by this rule. `asked` comes from
    /// [`PolicyRule::parts`].
    fn covers_part(&self, asked: &Part<'_>) -> bool {
        match *asked {
            Part::Path { verb, path } => {
                holds(&self.verbs, verb)
                    && self
                        .non_resource_urls
                        .iter()
                        .any(|pattern| path_matches(pattern, path))
            }
            Part::Resource {
                verb,
                group,
                resource,
                name,
            } => {
                let (plain, sub) = resource.split_once('/').unwrap_or((resource, ""));
                holds(&self.verbs, verb)
                    && holds(&self.api_groups, group)
                    && self
                        .resources
                        .iter()
                        .any(|one| resource_matches(one, plain, sub))
                    && match name {
                        None => self.resource_names.is_empty(),
                        Some(name) => {
                            self.resource_names.is_empty()
                                || self.resource_names.iter().any(|one| one == name)
                        }
                    }
            }
        }
    }

    /// The rule taken apart into single grants.
    fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    if self.resource_names.is_empty() {
                        parts.push(Part::Resource {
                            verb,
                            group,
                            resource,
                            name: None,
                        });
                    }
                    for name in &self.resource_names {
                        parts.push(Part::Resource {
                            verb,
                            group,
                            resource,
                            name: Some(name),
                        });
                    }
                }
            }
            parts.extend(
                self.non_resource_urls
                    .iter()
                    .map(|path| Part::Path { verb, path }),
            );
        }
        parts
    }
}

/// One verb on one thing.
#[derive(Clone, Copy, Debug)]
enum Part<'a> {
    Resource {
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
        name: Option<&'a str>,
    },
    Path {
        verb: &'a str,
        path: &'a str,
    },
}

/// The parts of `asked` that no rule of `held` covers, as rules of one verb and one thing each; empty when nothing is missing.
pub(super) fn uncovered(held: &[PolicyRule], asked: &[PolicyRule]) -> Vec<PolicyRule> {
    let mut missing: Vec<PolicyRule> = asked
        .iter()
        .flat_map(PolicyRule::parts)
        .filter(|part| !held.iter().any(|rule| rule.covers_part(part)))
        .map(|part| match part {
            Part::Resource {
                verb,
                group,
                resource,
                name,
            } => PolicyRule {
                verbs: vec![verb.to_owned()],
                api_groups: vec![group.to_owned()],
                resources: vec![resource.to_owned()],
                resource_names: name.map(str::to_owned).into_iter().collect(),
                non_resource_urls: Vec::new(),
            },
            Part::Path { verb, path } => PolicyRule {
                verbs: vec![verb.to_owned()],
                non_resource_urls: vec![path.to_owned()],
                ..PolicyRule::default()
            },
        })
        .collect();
    missing.sort();
    missing.dedup();
    missing
}

/// Joins rules that differ in their verbs alone, and writes one line for each, as upstream's messages have them.
pub(super) fn describe(rules: &[PolicyRule]) -> String {
    let mut joined: Vec<PolicyRule> = Vec::new();
    for rule in rules {
        let same_thing = joined.iter_mut().find(|other| {
            other.api_groups == rule.api_groups
                && other.resources == rule.resources
                && other.resource_names == rule.resource_names
                && other.non_resource_urls == rule.non_resource_urls
        });
        match same_thing {
            Some(other) => other.verbs.extend(rule.verbs.iter().cloned()),
            None => joined.push(rule.clone()),
        }
    }
    let lines: Vec<String> = joined.iter().map(describe_one).collect();
    lines.join("\n")
}

fn describe_one(rule: &PolicyRule) -> String {
    let lists = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.resource_names),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> = lists
        .iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(name, values)| {
            let quoted: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
            format!("{name}:[{}]", quoted.join(" "))
        })
        .collect();
    format!("{{{}}}", parts.join(", "))
}

fn holds(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == ALL || one == wanted)
}

/// `*` is every resource and subresource, `*/scale` is the scale of every resource; `pods` does not hold `pods/log`.
fn resource_matches(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == ALL {
        return true;
    }
    match pattern.split_once('/') {
        None => subresource.is_empty() && pattern == resource,
        Some((plain, sub)) => {
            !subresource.is_empty() && sub == subresource && (plain == ALL || plain == resource)
        }
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}
