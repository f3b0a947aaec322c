//! ResourceQuota: nothing is made that would bring a namespace over what its quotas allow.
//!
//! A charge is written into `status.used` of each quota before the object is, with the quota's revision as precondition, so that
//! no number of creators at any number of servers gets past a limit together. Creators of one namespace that come at the same
//! time are charged in one write. What was charged for an object that failed afterwards the controller gives back.

use std::collections::HashMap;
use std::sync::Arc;

use cox_api::meta;
use cox_api::quota;
use cox_api::status::ApiStatus;
use cox_api::totals::{self, Amounts, amounts};
use cox_store::{CommitError, Object, Precondition, Snapshot};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::decoded::stored;
use super::{Operation, Request};
use crate::registry::{Registry, decode_stored};

const PREFIX: &str = "resourcequotas";
/// Attempts at one quota while other servers write it too.
const RACE_ATTEMPTS: usize = 256;
/// How often a creator lines up again when whoever charged for it went away.
const TURNS_MAX: usize = 4;

/// The creators that wait, by namespace.
#[derive(Debug, Default)]
pub(super) struct Charges {
    queues: Mutex<HashMap<String, Arc<Line>>>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: Mutex<Vec<Waiter>>,
    turn: tokio::sync::Mutex<()>,
}

type Answer = Result<(), String>;

#[derive(Debug)]
struct Waiter {
    charge: Charge,
    answer: oneshot::Sender<Answer>,
}

/// One object that is to be paid for.
#[derive(Clone, Debug)]
struct Charge {
    group: String,
    plural: String,
    object: Value,
    /// What it was before, if it was stored.
    old: Option<Value>,
    /// What it uses that only other objects can tell.
    beside: Amounts,
    dry_run: bool,
}

impl Charges {
    pub(super) async fn validate(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        snapshot: &Snapshot,
    ) -> Result<(), ApiStatus> {
        if request.namespace.is_empty() || !is_charged(request) {
            return Ok(());
        }
        let prefix = format!("{}/", request.namespace);
        if snapshot.range(PREFIX, &prefix, None).next().is_none() {
            return Ok(());
        }
        let Some(object) = &request.object else {
            return Ok(());
        };
        let taken = request.operation == Operation::Create
            && snapshot
                .get(
                    &request.entry.prefix,
                    &format!("{prefix}{}", meta::name(object)),
                )
                .is_some();
        if taken {
            // The write will find that out, and nothing need be given back.
            return Ok(());
        }
        let charge = Charge {
            group: request.resource.group.clone(),
            plural: request.resource.plural.clone(),
            object: object.clone(),
            old: request.old.cloned(),
            beside: of_classes(request, object, snapshot),
            dry_run: request.dry_run,
        };
        let answer = self.charged(registry, request.namespace, charge).await?;
        answer.map_err(|why| request.forbidden(why))
    }

    async fn charged(
        &self,
        registry: &Registry,
        namespace: &str,
        charge: Charge,
    ) -> Result<Answer, ApiStatus> {
        let line = Arc::clone(self.queues.lock().entry(namespace.to_owned()).or_default());
        let mut outcome = Err(ApiStatus::internal("resource quota evaluation timed out"));
        for _ in 0..TURNS_MAX {
            let (answer, mut answered) = oneshot::channel();
            let charge = charge.clone();
            line.waiting.lock().push(Waiter { charge, answer });
            let turn = line.turn.lock().await;
            if let Ok(answer) = answered.try_recv() {
                outcome = Ok(answer);
                break;
            }
            let batch = std::mem::take(&mut *line.waiting.lock());
            charge_all(registry, namespace, batch).await?;
            drop(turn);
            if let Ok(answer) = answered.await {
                outcome = Ok(answer);
                break;
            }
        }
        let mut queues = self.queues.lock();
        // This one's and the map's: nobody else is in line.
        if Arc::strong_count(&line) == 2 {
            queues.remove(namespace);
        }
        outcome
    }
}

/// What a claim uses of extended resources that its classes of devices stand for, beyond what its Pod pays for.
fn of_classes(request: &Request<'_>, claim: &Value, snapshot: &Snapshot) -> Amounts {
    if !request.is("resource.k8s.io", "resourceclaims") {
        return Amounts::new();
    }
    let extended = |class: &str| {
        let class = stored(snapshot, "deviceclasses", class)?;
        class["spec"]["extendedResourceName"]
            .as_str()
            .map(str::to_owned)
    };
    let in_namespace = |name: &str| format!("{}/{name}", request.namespace);
    let pod = quota::extended_owner(claim)
        .and_then(|(name, _)| stored(snapshot, "pods", &in_namespace(name)));
    let paid = pod.map_or_else(Amounts::new, |pod| {
        let all = in_namespace("");
        let claims = snapshot.range(&request.entry.prefix, &all, None);
        let others: Vec<Value> = claims
            .filter_map(|claim| serde_json::from_slice(&claim.json).ok())
            .collect();
        if quota::is_paid_by(claim, &pod, others.iter()) {
            quota::usage("", "pods", &pod, Timestamp::now())
        } else {
            Amounts::new()
        }
    });
    quota::extended_usage(claim, extended, &paid)
}

/// Whether the request can change what a namespace uses.
fn is_charged(request: &Request<'_>) -> bool {
    let resource = request.resource;
    match (
        resource.group.as_str(),
        resource.plural.as_str(),
        request.operation,
        request.subresource,
    ) {
        ("" | "events.k8s.io", "events", _, _) => false,
        (_, _, Operation::Create, "") => true,
        ("", "pods", Operation::Update, "resize") => true,
        ("", "pods", Operation::Update, "") => {
            let bounded = |pod: &Value| !pod["spec"]["activeDeadlineSeconds"].is_null();
            let pair = request.object.as_ref().zip(request.old);
            pair.is_some_and(|(new, old)| bounded(new) != bounded(old))
        }
        ("", "services" | "persistentvolumeclaims", Operation::Update, "") => true,
        _ => false,
    }
}

/// A quota as it is being charged.
struct Account {
    object: Arc<Object>,
    quota: Value,
    hard: Amounts,
    used: Amounts,
}

impl Account {
    fn read(object: &Arc<Object>) -> Result<Self, ApiStatus> {
        let quota = decode_stored(&object.json)?;
        Ok(Account {
            object: Arc::clone(object),
            hard: amounts(&quota["status"]["hard"]),
            used: amounts(&quota["status"]["used"]),
            quota,
        })
    }

    /// What the charge adds to this quota: nothing when the quota is not about it. The error says why it may not.
    fn owed(&self, charge: &Charge, now: Timestamp) -> Result<Amounts, String> {
        let Charge { group, plural, .. } = charge;
        let is_about =
            |object: &Value| quota::matches(&self.quota, &self.hard, group, plural, object);
        if !is_about(&charge.object) {
            return Ok(Amounts::new());
        }
        let name = meta::name(&self.quota);
        let limited = || {
            let names = self.hard.keys().map(String::as_str);
            names.filter(|name| quota::concerns(group, plural, name))
        };
        if plural == "pods"
            && group.is_empty()
            && let Some(unsaid) = quota::unsaid(&charge.object, limited())
        {
            return Err(format!("failed quota: {name}: must specify {unsaid}"));
        }
        if limited().any(|one| !self.used.contains_key(one)) {
            let names: Vec<&str> = limited().collect();
            return Err(format!(
                "status unknown for quota: {name}, resources: {}",
                names.join(",")
            ));
        }
        let mut owed = quota::usage(group, plural, &charge.object, now);
        totals::add(&mut owed, &charge.beside);
        if let Some(old) = charge.old.as_ref().filter(|old| is_about(old)) {
            for (name, before) in quota::usage(group, plural, old, now) {
                if let Some(amount) = owed.get_mut(&name) {
                    *amount = *amount - before;
                }
            }
        }
        owed.retain(|name, amount| {
            self.hard.contains_key(name) && !amount.is_zero() && !amount.is_negative()
        });
        let mut after = owed.clone();
        totals::add(&mut after, &masked(&self.used, &owed));
        let over = |name: &String| after[name] > self.hard[name];
        let exceeded: Amounts = owed
            .iter()
            .filter(|(name, _)| over(name))
            .map(|(name, amount)| (name.clone(), *amount))
            .collect();
        if exceeded.is_empty() {
            return Ok(owed);
        }
        Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            quota::shown(&exceeded),
            quota::shown(&masked(&self.used, &exceeded)),
            quota::shown(&masked(&self.hard, &exceeded)),
        ))
    }

    fn charged(&self) -> Value {
        let mut quota = self.quota.clone();
        if !quota["status"].is_object() {
            quota["status"] = json!({});
        }
        quota["status"]["used"] = totals::to_list(&self.used);
        quota
    }
}

fn masked(amounts: &Amounts, names: &Amounts) -> Amounts {
    let kept = amounts.iter().filter(|(name, _)| names.contains_key(*name));
    kept.map(|(name, amount)| (name.clone(), *amount)).collect()
}

/// Charges all that wait, in their order, and answers each.
async fn charge_all(
    registry: &Registry,
    namespace: &str,
    batch: Vec<Waiter>,
) -> Result<(), ApiStatus> {
    let now = registry.now();
    let mut accounts = Vec::new();
    for object in registry.list("", PREFIX, namespace) {
        accounts.push(Account::read(&object)?);
    }
    let mut answers: Vec<Answer> = Vec::with_capacity(batch.len());
    for waiter in &batch {
        answers.push(try_charge(&mut accounts, &waiter.charge, now));
    }
    for account in &accounts {
        write_charges(registry, account, &batch, &mut answers, now).await?;
    }
    for (waiter, answer) in batch.into_iter().zip(answers) {
        // Who has gone needs no answer.
        if waiter.answer.send(answer).is_err() {
            tracing::trace!(namespace, "Somebody who was charged has gone");
        }
    }
    Ok(())
}

/// Charges all accounts or none.
fn try_charge(accounts: &mut [Account], charge: &Charge, now: Timestamp) -> Answer {
    let owed: Vec<Amounts> = accounts
        .iter()
        .map(|account| account.owed(charge, now))
        .collect::<Result<_, _>>()?;
    if !charge.dry_run {
        for (account, owed) in accounts.iter_mut().zip(&owed) {
            totals::add(&mut account.used, owed);
        }
    }
    Ok(())
}

/// Writes one quota. When somebody else wrote it meanwhile, what fits is found out again on what is there now.
async fn write_charges(
    registry: &Registry,
    planned: &Account,
    batch: &[Waiter],
    answers: &mut [Answer],
    now: Timestamp,
) -> Result<(), ApiStatus> {
    let entry = registry
        .catalog()
        .stored("", PREFIX)
        .ok_or_else(|| ApiStatus::internal("no resource quotas"))?;
    let (namespace, name) = (
        meta::namespace(&planned.quota).to_owned(),
        meta::name(&planned.quota).to_owned(),
    );
    let mut object = Arc::clone(&planned.object);
    let mut next = planned.charged();
    for _ in 0..RACE_ATTEMPTS {
        if next["status"]["used"] == decode_stored(&object.json)?["status"]["used"] {
            return Ok(());
        }
        let at = Precondition::Revision(object.revision);
        match registry
            .commit_put(entry, &namespace, &name, &next, at)
            .await
        {
            Ok(_) => return Ok(()),
            Err(CommitError::Conflict(_) | CommitError::Exists(_)) => {}
            // The quota is gone, and with it its limits.
            Err(CommitError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(crate::refuse::commit(entry, &name, error)),
        }
        let Some(present) = registry.object("", PREFIX, &namespace, &name) else {
            return Ok(());
        };
        let mut account = Account::read(&present)?;
        for (waiter, answer) in batch.iter().zip(answers.iter_mut()) {
            if answer.is_ok() {
                *answer = try_charge(std::slice::from_mut(&mut account), &waiter.charge, now);
            }
        }
        (object, next) = (present, account.charged());
    }
    Err(ApiStatus::conflict("", PREFIX, &name))
}
