//! From the claims of a token to a user: which claims or expressions give name, groups, uid and extra, and what must hold of both.

use std::collections::BTreeMap;

use cox_api::cel::admission::{Gives, compile};
use cox_api::cel::{Budget, CALL_COST_MAX, Cel, Expression, Type, builtin};
use serde_json::{Value, json};

use crate::auth::UserInfo;

/// Where a part of the user comes from.
#[derive(Clone, Debug)]
pub(super) enum From {
    /// A claim, with something put before its value.
    Claim { name: String, prefix: String },
    /// An expression over the claims.
    Expression(Expression),
}

/// What must hold of the claims.
#[derive(Clone, Debug)]
pub(super) enum ClaimRule {
    Equals { claim: String, value: String },
    Expression(Rule),
}

/// An expression that must give true.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    expression: Expression,
    message: String,
}

/// From claims to a user.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    pub(super) name: From,
    pub(super) groups: Option<From>,
    pub(super) uid: Option<From>,
    pub(super) extra: Vec<(String, Expression)>,
    pub(super) claim_rules: Vec<ClaimRule>,
    pub(super) user_rules: Vec<Rule>,
}

/// An expression over `claims`.
pub(super) fn over_claims(source: &str, gives: Gives) -> Result<Expression, String> {
    compile(source, &[("claims", Type::Dyn)], gives)?;
    Expression::parse(source)
}

impl Rule {
    pub(super) fn over_claims(source: &str, message: &str) -> Result<Self, String> {
        Ok(Self {
            expression: over_claims(source, Gives::Bool)?,
            message: message.to_owned(),
        })
    }

    /// A rule over `user`.
    pub(super) fn over_user(source: &str, message: &str) -> Result<Self, String> {
        let schema = cox_api::schema::builtin();
        let user = schema.type_named("k8s.io/api/authentication/v1.UserInfo");
        let user = user.map_or(Type::Dyn, |id| builtin::type_of(schema, id));
        compile(source, &[("user", user)], Gives::Bool)?;
        Ok(Self {
            expression: Expression::parse(source)?,
            message: message.to_owned(),
        })
    }

    fn check(&self, variable: &str, value: &Cel) -> Result<(), String> {
        let variables = [(variable, value.clone())];
        let given = self
            .expression
            .evaluate(&variables, &mut Budget::new(CALL_COST_MAX));
        match given {
            Ok(Cel::Bool(true)) => Ok(()),
            Ok(_) if self.message.is_empty() => Err(format!(
                "validation expression '{}' failed",
                self.expression.source()
            )),
            Ok(_) => Err(format!(
                "validation expression '{}' failed: {}",
                self.expression.source(),
                self.message
            )),
            Err(error) => Err(format!("{}: {error}", self.expression.source())),
        }
    }
}

impl Mapping {
    /// The user whom the claims make; `system:authenticated` is not among the groups yet.
    pub(super) fn user(&self, claims: &Value) -> Result<UserInfo, String> {
        let cel = Cel::from_json(claims);
        for rule in &self.claim_rules {
            match rule {
                ClaimRule::Expression(rule) => rule.check("claims", &cel)?,
                ClaimRule::Equals { claim, value } if claims[claim.as_str()] == **value => {}
                ClaimRule::Equals { claim, .. } => {
                    return Err(format!("the claim {claim:?} is not as required"));
                }
            }
        }
        let mut user = UserInfo {
            name: self.name(claims, &cel)?,
            ..UserInfo::default()
        };
        if let Some(groups) = &self.groups {
            user.groups = match groups {
                From::Claim { name, prefix } => {
                    let groups = texts(&claims[name.as_str()]).ok_or("its groups are no texts")?;
                    groups.iter().map(|one| format!("{prefix}{one}")).collect()
                }
                From::Expression(expression) => {
                    texts(&evaluate(expression, &cel)?).ok_or("its groups are no texts")?
                }
            };
        }
        if let Some(uid) = &self.uid {
            let given = match uid {
                From::Claim { name, .. } => claims[name.as_str()].clone(),
                From::Expression(expression) => evaluate(expression, &cel)?,
            };
            given
                .as_str()
                .ok_or("its uid is no text")?
                .clone_into(&mut user.uid);
        }
        for (key, expression) in &self.extra {
            let values = texts(&evaluate(expression, &cel)?);
            let mut values = values.ok_or_else(|| format!("its extra {key:?} is no texts"))?;
            values.retain(|value| !value.is_empty());
            if !values.is_empty() {
                user.extra.insert(key.clone(), values);
            }
        }
        self.check_user(&user)?;
        Ok(user)
    }

    fn name(&self, claims: &Value, cel: &Cel) -> Result<String, String> {
        let (claim, prefix) = match &self.name {
            From::Claim { name, prefix } => (name, prefix),
            From::Expression(expression) => {
                let given = evaluate(expression, cel)?;
                let name = given.as_str().filter(|name| !name.is_empty());
                return Ok(name.ok_or("its user name is empty")?.to_owned());
            }
        };
        let name = claims[claim.as_str()]
            .as_str()
            .filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("it has no claim {claim:?}"))?;
        if claim == "email"
            && claims
                .get("email_verified")
                .is_some_and(|verified| *verified != true)
        {
            return Err("its email is not verified".to_owned());
        }
        Ok(format!("{prefix}{name}"))
    }

    fn check_user(&self, user: &UserInfo) -> Result<(), String> {
        if self.user_rules.is_empty() {
            return Ok(());
        }
        let extra: BTreeMap<_, _> = user.extra.iter().collect();
        let user = Cel::from_json(&json!({
            "username": user.name, "uid": user.uid, "groups": user.groups, "extra": extra,
        }));
        self.user_rules
            .iter()
            .try_for_each(|rule| rule.check("user", &user))
    }
}

fn evaluate(expression: &Expression, claims: &Cel) -> Result<Value, String> {
    let given = expression.evaluate(
        &[("claims", claims.clone())],
        &mut Budget::new(CALL_COST_MAX),
    );
    let given = given.map_err(|error| format!("{}: {error}", expression.source()))?;
    // An optional that has nothing is nothing.
    Ok(given.to_json().unwrap_or_default())
}

/// One text, many, or none; none at all for anything else.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(text) if text.is_empty() => Some(Vec::new()),
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    }
}
