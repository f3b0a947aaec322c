//! Says in the status of each ResourceQuota what its namespace uses.
//!
//! Watched: quotas, device classes, pods, and the metadata of every kind that some quota counts. Written: `status.hard` and `status.used`. Admission
//! charges a quota before an object is there, so a lower figure is written only as far as no recent charge can be for an object
//! that is still on its way. What was charged for nothing comes back that way, too.

mod ledger;
mod plan;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cox_api::quota;
use cox_api::totals::{Amounts, amounts};
use cox_client::runner::{ObjectName, Queue, Verdict};
use cox_client::tasks::TaskScope;
use cox_client::{BoxError, Informer, Sink, Source, reflect};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use k8s_openapi::api::resource::v1::DeviceClass;
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

use crate::context::{Context, Loop};
use crate::discovery::Catalog;
use ledger::Ledger;

/// Objects that change are many; what they use is looked at this long after.
const PAUSE: Duration = Duration::from_secs(1);
/// Definitions that come later are found then.
const REDISCOVERY_PAUSE: Duration = Duration::from_secs(30);

/// A kind by group and plural.
type Kind = (String, String);

struct Controller {
    context: Context,
    quotas: Informer<ResourceQuota>,
    classes: Informer<DeviceClass>,
    pods: Informer<Pod>,
    queue: Queue<ObjectName>,
    ledger: Arc<Ledger>,
    catalog: tokio::sync::Mutex<Option<(Instant, Arc<Catalog>)>>,
    watched: Mutex<HashMap<Kind, ()>>,
    scope: TaskScope,
}

pub(crate) async fn run(context: Context) {
    let quotas = context.informers.of::<ResourceQuota>();
    let classes = context.informers.of::<DeviceClass>();
    let pods = context.informers.of::<Pod>();
    let ledger = Arc::new(Ledger::default());
    let mut frame = Loop::new("resourcequota");
    let notes = Arc::clone(&ledger);
    frame.feed(&quotas, move |quota, keys| {
        let key = ObjectName::of(quota);
        notes.saw(&key, &used_of(quota), Instant::now());
        keys.push(key);
    });
    let known = quotas.clone();
    // What a class stands for decides what claims use.
    frame.feed(&classes, move |_, keys| {
        let all = known.list();
        keys.extend(all.iter().map(|quota| ObjectName::of(&**quota)));
    });
    frame.needs(&pods);
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        scope: TaskScope::new("resourcequota", &cancel),
        queue: frame.queue().clone(),
        context,
        quotas,
        classes,
        pods,
        ledger,
        catalog: tokio::sync::Mutex::default(),
        watched: Mutex::default(),
    });
    let reconcile = move |key: ObjectName| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    };
    frame.run(2, reconcile, cancel).await;
}

fn used_of(quota: &ResourceQuota) -> Amounts {
    let used = quota
        .status
        .as_ref()
        .and_then(|status| status.used.as_ref());
    used.and_then(|used| serde_json::to_value(used).ok())
        .map_or_else(Amounts::new, |used| amounts(&used))
}

impl Controller {
    async fn reconcile(self: &Arc<Self>, key: &ObjectName) -> Verdict {
        let Some(found) = self.quotas.get(Some(&key.namespace), &key.name) else {
            self.ledger.forget(key);
            return Verdict::Done;
        };
        match self.update(key, &found).await {
            Ok(verdict) => verdict,
            Err(error) => Verdict::Backoff(error),
        }
    }

    async fn update(
        self: &Arc<Self>,
        key: &ObjectName,
        found: &ResourceQuota,
    ) -> Result<Verdict, BoxError> {
        let object = serde_json::to_value(found)?;
        let hard = amounts(&object["spec"]["hard"]);
        let computed = self.computed(&object, &hard).await?;
        let current = amounts(&object["status"]["used"]);
        let (pending, settles) = self.ledger.pending(key, &current, Instant::now());
        let used = plan::used(&hard, &current, &computed, &pending);
        let again = settles.filter(|_| used != computed);
        if plan::is_settled(&object["status"], &hard, &used) {
            return Ok(again.map_or(Verdict::Done, Verdict::After));
        }
        let mut next = found.clone();
        next.status = Some(serde_json::from_value(plan::status(&hard, &used))?);
        self.ledger.wrote(key, &used);
        let api = self.context.api::<ResourceQuota>(&key.namespace);
        match api
            .replace_status(&key.name, &PostParams::default(), &next)
            .await
        {
            Ok(_) => Ok(again.map_or(Verdict::Done, Verdict::After)),
            // Whoever wrote meanwhile has queued it again.
            Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => {
                Ok(Verdict::Done)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What the namespace uses of what the quota limits, as the server says now.
    async fn computed(
        self: &Arc<Self>,
        quota: &Value,
        hard: &Amounts,
    ) -> Result<Amounts, BoxError> {
        let kinds: BTreeSet<Kind> = hard
            .keys()
            .flat_map(|name| quota::counted_kinds(name))
            .collect();
        let namespace = quota["metadata"]["namespace"].as_str().unwrap_or_default();
        let mut sum = Amounts::new();
        for (group, plural) in kinds {
            let Some(resource) = self.resource(&group, &plural).await? else {
                continue;
            };
            self.follow(&group, &plural, &resource);
            let client = self.context.client();
            let params = ListParams::default();
            let now = self.context.clock.now();
            if plan::needs_bodies(&group, &plural) || plan::has_scopes(quota) {
                let api = Api::<DynamicObject>::namespaced_with(client, namespace, &resource);
                let listed = api.list(&params).await?.items.into_iter();
                let objects: Vec<Value> =
                    listed.map(serde_json::to_value).collect::<Result<_, _>>()?;
                for object in &objects {
                    if quota::matches(quota, hard, &group, &plural, object) {
                        let used = quota::usage(&group, &plural, object, now);
                        cox_api::totals::add(&mut sum, &used);
                        if (group.as_str(), plural.as_str())
                            == ("resource.k8s.io", "resourceclaims")
                        {
                            let beside = self.of_classes(namespace, object, &objects)?;
                            cox_api::totals::add(&mut sum, &beside);
                        }
                    }
                }
            } else {
                let api = Api::<DynamicObject>::namespaced_with(client, namespace, &resource);
                let count = api.list_metadata(&params).await?.items.len();
                plan::count(&mut sum, &group, &plural, count);
            }
        }
        Ok(sum)
    }

    /// What a claim uses of extended resources that its classes of devices stand for, beyond what its Pod pays for.
    fn of_classes(
        &self,
        namespace: &str,
        claim: &Value,
        claims: &[Value],
    ) -> Result<Amounts, BoxError> {
        let extended = |class: &str| {
            let class = self.classes.get(None, class)?;
            class.spec.extended_resource_name.clone()
        };
        let owner = quota::extended_owner(claim);
        let pod = owner.and_then(|(name, _)| self.pods.get(Some(namespace), name));
        let pod = pod.map(|pod| serde_json::to_value(&*pod)).transpose()?;
        let paying = pod.filter(|pod| quota::is_paid_by(claim, pod, claims.iter()));
        let now = self.context.clock.now();
        let paid = paying.map(|pod| quota::usage("", "pods", &pod, now));
        Ok(quota::extended_usage(
            claim,
            extended,
            &paid.unwrap_or_default(),
        ))
    }

    /// The resource as it is served, if it is.
    async fn resource(&self, group: &str, plural: &str) -> Result<Option<ApiResource>, BoxError> {
        let mut cached = self.catalog.lock().await;
        let find = |catalog: &Catalog| {
            let mut all = catalog.preferred.iter();
            all.find(|served| {
                served.namespaced
                    && served.resource.group == group
                    && served.resource.plural == plural
            })
            .map(|served| served.resource.clone())
        };
        if let Some((at, catalog)) = &*cached {
            let found = find(catalog);
            if found.is_some() || at.elapsed() < REDISCOVERY_PAUSE {
                return Ok(found);
            }
        }
        let catalog = Arc::new(Catalog::discover(&self.context.client()).await?);
        let found = find(&catalog);
        *cached = Some((Instant::now(), catalog));
        Ok(found)
    }

    /// Watches a kind from now on.
    fn follow(self: &Arc<Self>, group: &str, plural: &str, resource: &ApiResource) {
        let kind = (group.to_owned(), plural.to_owned());
        if self.watched.lock().insert(kind.clone(), ()).is_some() {
            return;
        }
        let api =
            Api::<PartialObjectMeta<DynamicObject>>::all_with(self.context.client(), resource);
        let follower = Follower {
            bodies: plan::needs_bodies(group, plural),
            kind,
            quotas: self.quotas.clone(),
            queue: self.queue.clone(),
        };
        let cancel = self.scope.cancellation().clone();
        self.scope.spawn("resourcequota-monitor", async move {
            let source = Source {
                api,
                field_selector: None,
            };
            reflect(&source, &follower, &cancel).await;
        });
    }
}

/// Queues the quotas of a namespace when something in it changes.
struct Follower {
    kind: Kind,
    /// What its objects use stands in their bodies, so that changes matter and not only deletions.
    bodies: bool,
    quotas: Informer<ResourceQuota>,
    queue: Queue<ObjectName>,
}

impl Follower {
    fn tell(&self, namespace: &str, delay: Duration) {
        for found in self.quotas.list_in(namespace) {
            let hard = found.spec.as_ref().and_then(|spec| spec.hard.as_ref());
            let names = hard.into_iter().flat_map(|hard| hard.keys());
            let (group, plural) = &self.kind;
            if names
                .into_iter()
                .any(|name| quota::concerns(group, plural, name))
            {
                let key = ObjectName::of(found.as_ref());
                if delay.is_zero() {
                    self.queue.add(key);
                } else {
                    self.queue.add_after(key, delay);
                }
            }
        }
    }
}

impl Sink<PartialObjectMeta<DynamicObject>> for Follower {
    fn replace(&self, _objects: Vec<PartialObjectMeta<DynamicObject>>, _revision: u64) {
        let namespaces: BTreeSet<String> = self
            .quotas
            .list()
            .iter()
            .filter_map(|quota| quota.namespace())
            .collect();
        for namespace in namespaces {
            self.tell(&namespace, PAUSE);
        }
    }

    fn apply(&self, object: PartialObjectMeta<DynamicObject>) {
        if self.bodies {
            self.tell(
                object.metadata.namespace.as_deref().unwrap_or_default(),
                PAUSE,
            );
        }
    }

    fn delete(&self, object: PartialObjectMeta<DynamicObject>) {
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        self.tell(namespace, Duration::ZERO);
    }

    fn progress(&self, _revision: u64) {}
}
