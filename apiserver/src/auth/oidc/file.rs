//! Upstream's AuthenticationConfiguration: issuers of tokens with their mappings, and who may come without any credentials.

use std::collections::HashSet;
use std::path::Path;

use cox_api::cel::admission::Gives;
use serde::Deserialize;

use super::mapping::{ClaimRule, From, Mapping, Rule, over_claims};
use super::{Issuer, Provider};
use crate::auth::tokens::ISSUER;
use crate::config_file::{self, ConfigError};
use crate::outside::Trust;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    jwt: Vec<Jwt>,
    anonymous: Option<OfAnonymous>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfAnonymous {
    enabled: bool,
    #[serde(default)]
    conditions: Vec<AtPath>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AtPath {
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Jwt {
    issuer: IssuerOfFile,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimRuleOfFile>,
    claim_mappings: Mappings,
    #[serde(default)]
    user_validation_rules: Vec<UserRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct IssuerOfFile {
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: Option<String>,
    #[serde(default)]
    certificate_authority: String,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    audience_match_policy: String,
    #[serde(default)]
    egress_selector_type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClaimRuleOfFile {
    #[serde(default)]
    claim: String,
    #[serde(default)]
    required_value: String,
    #[serde(default)]
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserRule {
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mappings {
    username: Part,
    #[serde(default)]
    groups: Part,
    #[serde(default)]
    uid: Part,
    #[serde(default)]
    extra: Vec<Extra>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    #[serde(default)]
    claim: String,
    prefix: Option<String>,
    #[serde(default)]
    expression: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Extra {
    key: String,
    value_expression: String,
}

/// What the file says of requests without credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::auth) enum Anonymous {
    /// They are let in, as far as authorization lets them.
    Everywhere,
    /// They are let in at these paths.
    At(Vec<String>),
}

/// The issuers of a file, and what it says of requests without credentials, if anything.
pub(in crate::auth) fn read(path: &Path) -> Result<(Vec<Issuer>, Option<Anonymous>), ConfigError> {
    let file: File = config_file::read(
        path,
        "AuthenticationConfiguration",
        &["v1", "v1beta1", "v1alpha1"],
    )?;
    understood(file).map_err(|reason| ConfigError::File {
        path: path.to_owned(),
        reason,
    })
}

fn understood(file: File) -> Result<(Vec<Issuer>, Option<Anonymous>), String> {
    let anonymous = match file.anonymous {
        None => None,
        Some(OfAnonymous {
            enabled: false,
            conditions,
        }) if !conditions.is_empty() => {
            return Err(
                "anonymous.conditions: enabled should be set to true when conditions are defined"
                    .to_owned(),
            );
        }
        Some(OfAnonymous { enabled: false, .. }) => Some(Anonymous::At(Vec::new())),
        Some(OfAnonymous { conditions, .. }) if conditions.is_empty() => {
            Some(Anonymous::Everywhere)
        }
        Some(OfAnonymous { conditions, .. }) => Some(Anonymous::At(
            conditions.into_iter().map(|one| one.path).collect(),
        )),
    };
    let (mut urls, mut documents) = (HashSet::new(), HashSet::new());
    let mut issuers = Vec::new();
    for (at, jwt) in file.jwt.into_iter().enumerate() {
        let place = format!("jwt[{at}]");
        if !urls.insert(jwt.issuer.url.clone()) {
            return Err(format!("{place}.issuer.url: it is there already"));
        }
        if let Some(document) = &jwt.issuer.discovery_url
            && !documents.insert(document.clone())
        {
            return Err(format!("{place}.issuer.discoveryURL: it is there already"));
        }
        issuers.push(issuer(jwt).map_err(|why| format!("{place}.{why}"))?);
    }
    Ok((issuers, anonymous))
}

fn issuer(jwt: Jwt) -> Result<Issuer, String> {
    let mapping = mapping(&jwt)?;
    let given = jwt.issuer;
    check_url(&given.url).map_err(|why| format!("issuer.url: {why}"))?;
    if given.url == ISSUER {
        return Err("issuer.url: it is the issuer of service account tokens".to_owned());
    }
    let document = match &given.discovery_url {
        None => format!(
            "{}/.well-known/openid-configuration",
            given.url.trim_end_matches('/')
        ),
        Some(document) => {
            check_url(document).map_err(|why| format!("issuer.discoveryURL: {why}"))?;
            if document.trim_end_matches('/') == given.url.trim_end_matches('/') {
                return Err("issuer.discoveryURL: must be different from URL".to_owned());
            }
            document.clone()
        }
    };
    if given.audiences.is_empty() || given.audiences.iter().any(String::is_empty) {
        return Err("issuer.audiences: at least one is needed, and none may be empty".to_owned());
    }
    match given.audience_match_policy.as_str() {
        "MatchAny" => {}
        "" if given.audiences.len() == 1 => {}
        "" => {
            return Err(
                "issuer.audienceMatchPolicy: must be MatchAny for multiple audiences".to_owned(),
            );
        }
        _ => return Err("issuer.audienceMatchPolicy: must be empty or MatchAny".to_owned()),
    }
    if !given.egress_selector_type.is_empty() {
        return Err("issuer.egressSelectorType: there are no egress selectors".to_owned());
    }
    let trust = match given.certificate_authority.as_str() {
        "" => Trust::System,
        pem => Trust::Authorities(pem.as_bytes().to_vec()),
    };
    Issuer::new(Provider {
        keys: super::keys::Keys::discovered(&given.url, &document, trust)
            .map_err(|error| format!("issuer: {error}"))?,
        url: given.url,
        audiences: given.audiences,
        mapping,
        algorithms: super::keys::ALGORITHMS.map(str::to_owned).to_vec(),
    })
    .map_err(|error| error.to_string())
}

fn check_url(url: &str) -> Result<(), String> {
    let uri: http::Uri = url.parse().map_err(|_| format!("{url:?} is no URL"))?;
    if uri.scheme_str() != Some("https") {
        return Err("URL scheme must be https".to_owned());
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err("URL must not contain a username or password".to_owned());
    }
    if url.contains('?') {
        return Err("URL must not contain a query".to_owned());
    }
    if url.contains('#') {
        return Err("URL must not contain a fragment".to_owned());
    }
    Ok(())
}

fn mapping(jwt: &Jwt) -> Result<Mapping, String> {
    let mut claim_rules = Vec::new();
    for (at, rule) in jwt.claim_validation_rules.iter().enumerate() {
        let place = format!("claimValidationRules[{at}]");
        claim_rules.push(claim_rule(rule).map_err(|why| format!("{place}: {why}"))?);
    }
    let mut user_rules = Vec::new();
    for (at, rule) in jwt.user_validation_rules.iter().enumerate() {
        let compiled = Rule::over_user(&rule.expression, &rule.message)
            .map_err(|why| format!("userValidationRules[{at}].expression: {why}"))?;
        user_rules.push(compiled);
    }
    let given = &jwt.claim_mappings;
    let name = part(&given.username, Gives::Text, true)
        .map_err(|why| format!("claimMappings.username{why}"))?;
    let name = name.ok_or("claimMappings.username: claim or expression is required")?;
    check_email(jwt)?;
    let groups = part(&given.groups, Gives::Any, true)
        .map_err(|why| format!("claimMappings.groups{why}"))?;
    if given.uid.prefix.is_some() {
        return Err("claimMappings.uid: it has no prefix".to_owned());
    }
    let uid =
        part(&given.uid, Gives::Text, false).map_err(|why| format!("claimMappings.uid{why}"))?;
    let mut extra: Vec<(String, _)> = Vec::new();
    for (at, one) in given.extra.iter().enumerate() {
        let place = format!("claimMappings.extra[{at}]");
        check_extra_key(&one.key).map_err(|why| format!("{place}.key: {why}"))?;
        if extra.iter().any(|(key, _)| *key == one.key) {
            return Err(format!("{place}.key: it is there already"));
        }
        let expression = over_claims(&one.value_expression, Gives::Any)
            .map_err(|why| format!("{place}.valueExpression: {why}"))?;
        extra.push((one.key.clone(), expression));
    }
    Ok(Mapping {
        name,
        groups,
        uid,
        extra,
        claim_rules,
        user_rules,
    })
}

fn claim_rule(rule: &ClaimRuleOfFile) -> Result<ClaimRule, String> {
    match (rule.claim.as_str(), rule.expression.as_str()) {
        ("", "") => Err("claim or expression is required".to_owned()),
        ("", source) if rule.required_value.is_empty() => {
            Rule::over_claims(source, &rule.message).map(ClaimRule::Expression)
        }
        (claim, "") if rule.message.is_empty() => Ok(ClaimRule::Equals {
            claim: claim.to_owned(),
            value: rule.required_value.clone(),
        }),
        _ => Err("claim and requiredValue can't be set when expression and message are".to_owned()),
    }
}

fn part(part: &Part, gives: Gives, prefixed: bool) -> Result<Option<From>, String> {
    match (part.claim.as_str(), part.expression.as_str()) {
        ("", "") if part.prefix.is_some() => Err(".prefix: there is no claim".to_owned()),
        ("", "") => Ok(None),
        ("", source) => {
            if part.prefix.is_some() {
                return Err(".prefix: may not be specified when expression is set".to_owned());
            }
            let expression =
                over_claims(source, gives).map_err(|why| format!(".expression: {why}"))?;
            Ok(Some(From::Expression(expression)))
        }
        (claim, "") => {
            let prefix = part.prefix.clone();
            if prefix.is_none() && prefixed {
                return Err(
                    ".prefix: prefix is required when claim is set. It can be set to an empty string to disable prefixing"
                        .to_owned(),
                );
            }
            Ok(Some(From::Claim {
                name: claim.to_owned(),
                prefix: prefix.unwrap_or_default(),
            }))
        }
        _ => Err(": claim and expression can't both be set".to_owned()),
    }
}

/// Whoever takes the name from an email must look at whether it is verified.
fn check_email(jwt: &Jwt) -> Result<(), String> {
    let mappings = &jwt.claim_mappings;
    if !names_claim(&mappings.username.expression, "email") {
        return Ok(());
    }
    let rules = jwt.claim_validation_rules.iter();
    let extra = mappings.extra.iter();
    let looked = std::iter::once(mappings.username.expression.as_str())
        .chain(rules.map(|rule| rule.expression.as_str()))
        .chain(extra.map(|one| one.value_expression.as_str()))
        .any(|source| names_claim(source, "email_verified"));
    if looked {
        return Ok(());
    }
    Err(
        "claimMappings.username.expression: claims.email_verified must be used in claimMappings.username.expression or \
         claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in \
         claimMappings.username.expression"
            .to_owned(),
    )
}

/// Whether an expression names `claims.NAME`, as a field, an optional one, or by index.
fn names_claim(source: &str, name: &str) -> bool {
    let compact: String = source.split_whitespace().collect();
    let forms = [
        format!("claims.{name}"),
        format!("claims.?{name}"),
        format!("claims[\"{name}\"]"),
        format!("claims['{name}']"),
    ];
    forms.iter().any(|form| {
        compact.match_indices(form.as_str()).any(|(at, _)| {
            let after = compact[at + form.len()..].chars().next();
            form.ends_with(']') || !after.is_some_and(|one| one.is_alphanumeric() || one == '_')
        })
    })
}

fn check_extra_key(key: &str) -> Result<(), String> {
    if key != key.to_lowercase() {
        return Err("must be lowercase".to_owned());
    }
    let (domain, path) = key
        .split_once('/')
        .filter(|(_, path)| !path.is_empty())
        .ok_or("must be a domain-prefixed path (such as \"acme.io/foo\")")?;
    if !cox_api::names::dns_subdomain(domain).is_empty() {
        return Err(format!("{domain:?} is no DNS subdomain"));
    }
    let reserved = ["k8s.io", "kubernetes.io"];
    if reserved
        .iter()
        .any(|one| domain == *one || domain.ends_with(&format!(".{one}")))
    {
        return Err(
            "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use".to_owned(),
        );
    }
    if path.contains(char::is_whitespace) {
        return Err("must be a path".to_owned());
    }
    Ok(())
}
