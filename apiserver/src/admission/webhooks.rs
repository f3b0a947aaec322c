//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: servers of the user's that change and judge requests.
//!
//! Input: the configurations in the store, a request. Output: the changed object or a refusal; warnings and audit annotations
//! into the request's notes. Mutating webhooks are called one after the other, ordered by configuration; validating ones all
//! at the same time.

mod call;
mod hook;

use cox_api::cel::{Budget, Cel};
use cox_api::patch;
use cox_api::status::ApiStatus;
use cox_store::Snapshot;
use futures::future::join_all;
use serde_json::Value;

use super::configured::Configured;
use super::expressions::{self, REQUEST_COST_MAX};
use super::matching::{self, Matched, Shown};
use super::{Operation, Request};
use crate::auth::Authorizer;
use crate::registry::Registry;
use call::{CallError, Verdict};
use hook::Hook;

/// All webhooks.
#[derive(Debug)]
pub(super) struct Webhooks {
    mutating: Configured<Vec<Hook>>,
    validating: Configured<Vec<Hook>>,
}

impl Default for Webhooks {
    fn default() -> Self {
        Webhooks {
            mutating: Configured::new("mutatingwebhookconfigurations"),
            validating: Configured::new("validatingwebhookconfigurations"),
        }
    }
}

/// What a mutating pass did.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// Hooks that were called and want to be called again when others change the object afterwards; the place of each in the
    /// order, and whether somebody did.
    called: Vec<(usize, usize, bool)>,
    /// Some hook changed the object.
    pub(super) changed: bool,
}

impl Pass {
    /// Something other than a webhook changed the object.
    pub(super) fn object_changed(&mut self) {
        for (_, _, again) in &mut self.called {
            *again = true;
        }
    }

    fn wants_again(&self, at: (usize, usize)) -> bool {
        let mut called = self.called.iter();
        called.any(|(configuration, hook, again)| (*configuration, *hook) == at && *again)
    }
}

impl Webhooks {
    /// Whether there are any.
    pub(super) fn are_configured(&self, snapshot: &Snapshot) -> bool {
        let of_kind = |kind: &Configured<Vec<Hook>>| !kind.at(snapshot, Hook::read_all).is_empty();
        of_kind(&self.mutating) || of_kind(&self.validating)
    }

    /// Calls the mutating webhooks; of a second round only those that the first one left over.
    pub(super) async fn mutate(
        &self,
        registry: &Registry,
        authorizer: &Authorizer,
        snapshot: &Snapshot,
        request: &mut Request<'_>,
        first: Option<&Pass>,
    ) -> Result<Pass, ApiStatus> {
        let configurations = self.mutating.at(snapshot, Hook::read_all);
        let mut pass = Pass::default();
        if configurations.is_empty() || matching::is_exempt(request) {
            return Ok(pass);
        }
        for (at, hooks) in configurations.iter().enumerate() {
            for (number, hook) in hooks.iter().enumerate() {
                if first.is_some_and(|first| !first.wants_again((at, number))) {
                    continue;
                }
                let Some(matched) = meant(registry, authorizer, hook, request).await? else {
                    continue;
                };
                let changed = mutate_by(registry, hook, &matched, request).await?;
                if changed {
                    pass.changed = true;
                    pass.object_changed();
                }
                if hook.reinvoked {
                    pass.called.push((at, number, false));
                }
            }
        }
        Ok(pass)
    }

    /// Calls the validating webhooks.
    pub(super) async fn validate(
        &self,
        registry: &Registry,
        authorizer: &Authorizer,
        snapshot: &Snapshot,
        request: &Request<'_>,
    ) -> Result<(), ApiStatus> {
        let configurations = self.validating.at(snapshot, Hook::read_all);
        if configurations.is_empty() || matching::is_exempt(request) {
            return Ok(());
        }
        let hooks = configurations.iter().flat_map(|hooks| hooks.iter());
        let mut calls = Vec::new();
        for hook in hooks {
            if let Some(matched) = meant(registry, authorizer, hook, request).await? {
                calls.push(async move {
                    let verdict = ask(registry, hook, &matched, request).await;
                    settle(hook, verdict, request).map(|_| ())
                });
            }
        }
        // All are asked, so that each has its say in the warnings; the first refusal is answered.
        join_all(calls).await.into_iter().collect()
    }
}

/// Whether a webhook is to be asked, after its rules, selectors and conditions.
async fn meant(
    registry: &Registry,
    authorizer: &Authorizer,
    hook: &Hook,
    request: &Request<'_>,
) -> Result<Option<Matched>, ApiStatus> {
    let Some(matched) = hook.matcher.matches(registry, request)? else {
        return Ok(None);
    };
    if hook.conditions.is_empty() {
        return Ok(Some(matched));
    }
    let shown = Shown::new(registry, request, &matched);
    let form = |value: Option<&Value>| {
        let shown = &shown;
        let value = value.cloned();
        async move {
            match value {
                Some(value) => shown.show(&value).await,
                None => Ok(Value::Null),
            }
        }
    };
    let (object, old) = (
        form(request.object.as_ref()).await?,
        form(request.old).await?,
    );
    let asked = expressions::request_value(request, shown.entry());
    let variables = [
        ("object", Cel::from_json(&object)),
        ("oldObject", Cel::from_json(&old)),
        ("request", Cel::from_json(&asked)),
        (
            "authorizer",
            expressions::Asking::new(authorizer, request).value(),
        ),
    ];
    let mut budget = Budget::new(REQUEST_COST_MAX);
    match expressions::all_hold(&hook.conditions, &variables, &mut budget) {
        Ok(true) => Ok(Some(matched)),
        Ok(false) => Ok(None),
        Err(why) if hook.fails_closed => Err(request.forbidden(why)),
        Err(why) => {
            tracing::warn!(webhook = %hook.name, why, "Match conditions failed; the webhook is passed over");
            Ok(None)
        }
    }
}

async fn ask(
    registry: &Registry,
    hook: &Hook,
    matched: &Matched,
    request: &Request<'_>,
) -> Result<Verdict, CallError> {
    let shown = Shown::new(registry, request, matched);
    let review = call::review(&shown, request).await?;
    call::send(registry, hook, review).await
}

/// What a verdict means: a patch to be applied, or a refusal.
fn settle(
    hook: &Hook,
    verdict: Result<Verdict, CallError>,
    request: &Request<'_>,
) -> Result<Option<Value>, ApiStatus> {
    let verdict = match verdict {
        Ok(verdict) => verdict,
        Err(CallError::Refused(status)) => return Err(status),
        Err(CallError::Failed(why)) if hook.fails_closed => {
            let why = format!("failed calling webhook {:?}: {why}", hook.name);
            return Err(ApiStatus::internal(why));
        }
        Err(CallError::Failed(why)) => {
            tracing::warn!(webhook = %hook.name, why, "Webhook failed; it is passed over");
            let key = "failed-open.validation.webhook.admission.k8s.io/round_0_index_0";
            request.notes.audit(key, hook.name.as_str());
            return Ok(None);
        }
    };
    for (key, value) in verdict.annotations {
        request.notes.audit(format!("{}/{key}", hook.name), value);
    }
    for warning in verdict.warnings {
        request.notes.warn(warning);
    }
    match verdict.refused {
        Some(status) => Err(status),
        None => Ok(verdict.patch),
    }
}

/// Lets one webhook change the object. Says whether it did.
async fn mutate_by(
    registry: &Registry,
    hook: &Hook,
    matched: &Matched,
    request: &mut Request<'_>,
) -> Result<bool, ApiStatus> {
    let verdict = ask(registry, hook, matched, request).await;
    let Some(operations) = settle(hook, verdict, request)? else {
        return Ok(false);
    };
    if request.operation == Operation::Delete {
        let why = "admission webhook attempted to modify the object, which is not supported for this operation";
        return Err(ApiStatus::internal(why));
    }
    let Some(object) = &request.object else {
        return Ok(false);
    };
    let shown = Shown::new(registry, request, matched);
    let patched = patch::json_patch(&shown.show(object).await?, &operations)
        .map_err(|error| ApiStatus::internal(error.to_string()))?;
    let next = shown.take_back(request, patched).await?;
    let changed = *object != next;
    request.object = Some(next);
    Ok(changed)
}
