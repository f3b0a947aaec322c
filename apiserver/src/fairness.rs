//! API priority and fairness: which requests run now, which wait, which are turned away, so that one mad client starves nobody.
//!
//! A request is classified by the FlowSchemas, in order of their precedence, into a flow of a priority level. A level has seats of
//! its own; above what it lends, nobody can take them. Requests that find no seat wait in one of a few queues that their flow's
//! hash deals them ([`queues`]), and the queues take turns. What is exempt passes without a lock and without an allocation.
//!
//! Configuration is the FlowSchemas and PriorityLevelConfigurations in the store; [`run`] follows them and says in the schemas'
//! status whether their level exists.

pub(crate) mod defaults;
mod follow;
mod queues;
mod schema;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use cox_api::status::ApiStatus;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::oneshot;

pub(crate) use follow::{run, take_over};

use crate::auth::Attributes;
use queues::{Arrival, Levels, Limits, Refusal};
use schema::{Distinguisher, Schema};

/// Requests that run at the same time, over all levels that are not exempt.
const SEATS: usize = 600;

/// Where a class of requests goes.
#[derive(Debug)]
struct Class {
    schema: Schema,
    /// None for what is exempt.
    level: Option<Arc<str>>,
    schema_uid: HeaderValue,
    level_uid: HeaderValue,
}

/// All classes, first the one that is asked first.
#[derive(Debug, Default)]
struct Classes(Vec<Class>);

/// Seats and queues of all levels, and the classes that lead to them.
#[derive(Debug)]
pub(crate) struct Fairness {
    classes: ArcSwap<Classes>,
    levels: Mutex<Levels>,
    next_id: AtomicU64,
    rejected: AtomicU64,
    patience: Duration,
}

/// Says in an answer how its request was classified. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Classified {
    schema_uid: HeaderValue,
    level_uid: HeaderValue,
}

impl Classified {
    /// Upstream's headers.
    pub(crate) fn mark(&self, headers: &mut HeaderMap) {
        headers.insert("x-kubernetes-pf-flowschema-uid", self.schema_uid.clone());
        headers.insert("x-kubernetes-pf-prioritylevel-uid", self.level_uid.clone());
    }
}

/// Leave to run. Gives its seats back when dropped.
#[derive(Debug)]
pub(crate) struct Seat<'a> {
    taken: Option<(&'a Fairness, Arc<str>, usize)>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if let Some((fairness, level, width)) = &self.taken {
            fairness.levels.lock().leave(level, *width);
        }
    }
}

impl Fairness {
    /// The default classes. A request may wait for a quarter of the time that it may take, as upstream has it.
    pub(crate) fn new(request_timeout: Duration) -> Self {
        let fairness = Self {
            classes: ArcSwap::default(),
            levels: Mutex::new(Levels::new(SEATS)),
            next_id: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            patience: request_timeout / 4,
        };
        fairness.configure(&[], &[]);
        fairness
    }

    /// Takes over a new configuration. The mandatory objects count also where they are missing.
    fn configure(&self, schemas: &[Value], levels: &[Value]) {
        let levels = with_mandatory(levels, defaults::levels());
        let mut classes: Vec<Class> = with_mandatory(schemas, defaults::schemas())
            .iter()
            .filter_map(|object| class(object, &levels))
            .collect();
        classes.sort_by(|a, b| a.schema.order().cmp(&b.schema.order()));
        let limits = levels.iter().filter_map(|level| {
            Some((
                Arc::from(level["metadata"]["name"].as_str()?),
                Limits::read(level)?,
            ))
        });
        self.levels.lock().configure(limits);
        self.classes.store(Arc::new(Classes(classes)));
    }

    /// Classifies a request and waits until it may run.
    ///
    /// # Cancel safety
    /// Who gives up waiting leaves the queue.
    pub(crate) async fn admit(
        &self,
        attributes: &Attributes<'_>,
        width: impl FnOnce() -> usize,
    ) -> (Option<Classified>, Result<Seat<'_>, ApiStatus>) {
        let (classified, place) = {
            let classes = self.classes.load();
            let found = classes
                .0
                .iter()
                .find(|class| class.schema.matches(attributes));
            let Some(class) = found else {
                return (None, Ok(Seat { taken: None }));
            };
            let classified = Classified {
                schema_uid: class.schema_uid.clone(),
                level_uid: class.level_uid.clone(),
            };
            let Some(level) = &class.level else {
                return (Some(classified), Ok(Seat { taken: None }));
            };
            let flow = flow(&class.schema, attributes);
            (classified, (Arc::clone(level), flow))
        };
        let seat = self.seat(place.0, place.1, width().max(1)).await;
        (Some(classified), seat)
    }

    async fn seat(&self, level: Arc<str>, flow: u64, width: usize) -> Result<Seat<'_>, ApiStatus> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (seated_tx, seated_rx) = oneshot::channel();
        let arrival = self
            .levels
            .lock()
            .arrive(&level, flow, width, id, seated_tx);
        let refusal = match arrival {
            Arrival::Seated => {
                return Ok(Seat {
                    taken: Some((self, level, width)),
                });
            }
            Arrival::Refused(refusal) => refusal,
            Arrival::Waiting => {
                let waiting = Waiting {
                    fairness: self,
                    level: &level,
                    id,
                    width,
                    over: false,
                };
                if waiting.wait(seated_rx, self.patience).await {
                    return Ok(Seat {
                        taken: Some((self, level, width)),
                    });
                }
                Refusal::TimedOut
            }
        };
        self.rejected.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(level = &*level, ?refusal, "Request turned away");
        Err(ApiStatus::too_many_requests(
            "too many requests, please try again later",
            1,
        ))
    }

    /// Requests turned away since the start.
    fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Name, seats, seats in use and requests waiting of each level.
    fn figures(&self) -> Vec<(Arc<str>, usize, usize, usize)> {
        self.levels.lock().figures()
    }

    /// Prometheus' text, with upstream's names.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        let figures = self.figures();
        type Figure = fn(&(Arc<str>, usize, usize, usize)) -> usize;
        let gauges: [(&str, Figure); 3] = [
            ("nominal_limit_seats", |level| level.1),
            ("current_executing_seats", |level| level.2),
            ("current_inqueue_requests", |level| level.3),
        ];
        for (name, figure) in gauges {
            text.push_str(&format!("# TYPE apiserver_flowcontrol_{name} gauge\n"));
            for level in &figures {
                let (name_of, value) = (&level.0, figure(level));
                text.push_str(&format!(
                    "apiserver_flowcontrol_{name}{{priority_level=\"{name_of}\"}} {value}\n"
                ));
            }
        }
        let rejected = self.rejected();
        text.push_str(&format!(
            "# TYPE apiserver_flowcontrol_rejected_requests_total counter\napiserver_flowcontrol_rejected_requests_total {rejected}\n"
        ));
        text
    }
}

/// A request in a queue. Leaves it when dropped.
struct Waiting<'a> {
    fairness: &'a Fairness,
    level: &'a Arc<str>,
    id: u64,
    width: usize,
    over: bool,
}

impl Waiting<'_> {
    async fn wait(mut self, seated_rx: oneshot::Receiver<()>, patience: Duration) -> bool {
        let seated = tokio::time::timeout(patience, seated_rx).await;
        if matches!(seated, Ok(Ok(()))) {
            self.over = true;
            return true;
        }
        // It may have been seated this very moment.
        let mut levels = self.fairness.levels.lock();
        self.over = true;
        !levels.give_up(self.level, self.id)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut levels = self.fairness.levels.lock();
        if !levels.give_up(self.level, self.id) {
            levels.leave(self.level, self.width);
        }
    }
}

fn class(object: &Value, levels: &[Value]) -> Option<Class> {
    let schema = Schema::read(object)?;
    // Without its level a schema does not count.
    let level = levels
        .iter()
        .find(|level| level["metadata"]["name"] == *schema.level)?;
    let uid = |object: &Value| {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""))
    };
    let limited = level["spec"]["type"] == "Limited";
    Some(Class {
        level: limited.then(|| Arc::from(&*schema.level)),
        schema_uid: uid(object),
        level_uid: uid(level),
        schema,
    })
}

fn with_mandatory(objects: &[Value], defaults: Vec<Value>) -> Vec<Value> {
    let mut all = objects.to_vec();
    for default in defaults {
        let name = &default["metadata"]["name"];
        let missing = !objects
            .iter()
            .any(|object| object["metadata"]["name"] == *name);
        if missing
            && (objects.is_empty() || defaults::is_mandatory(name.as_str().unwrap_or_default()))
        {
            all.push(default);
        }
    }
    all
}

/// A number for who sends the request, as far as its schema tells senders apart.
fn flow(schema: &Schema, attributes: &Attributes<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    schema.name.hash(&mut hasher);
    match schema.distinguisher {
        Distinguisher::None => {}
        Distinguisher::User => attributes.user.name.hash(&mut hasher),
        Distinguisher::Namespace => attributes.namespace.hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::UserInfo;
    use serde_json::json;

    fn attributes<'a>(user: &'a UserInfo, verb: &'a str, resource: &'a str) -> Attributes<'a> {
        Attributes {
            namespace: "default",
            ..Attributes::for_resource(user, verb, "", resource)
        }
    }

    async fn admit<'a>(fairness: &'a Fairness, user: &UserInfo) -> Result<Seat<'a>, ApiStatus> {
        fairness
            .admit(&attributes(user, "list", "pods"), || 1)
            .await
            .1
    }

    #[tokio::test]
    async fn exempt_requests_take_no_seat() {
        let fairness = Fairness::new(Duration::from_secs(60));
        let admin = UserInfo::new("admin", ["system:masters"]);
        let mut seats = Vec::new();
        for _ in 0..2 * SEATS {
            seats.push(admit(&fairness, &admin).await.unwrap());
        }
        assert!(
            fairness
                .figures()
                .iter()
                .all(|(_, _, in_use, _)| *in_use == 0)
        );
    }

    #[tokio::test]
    async fn a_mad_client_is_turned_away_and_starves_nobody() {
        let fairness = Arc::new(Fairness::new(Duration::from_secs(60)));
        let mad = UserInfo::new("mad", []);
        let mut tasks = Vec::new();
        for _ in 0..3000 {
            let (fairness, mad) = (Arc::clone(&fairness), mad.clone());
            tasks.push(tokio::spawn(async move {
                match admit(&fairness, &mad).await {
                    Ok(_seat) => std::future::pending::<()>().await,
                    Err(status) => {
                        assert_eq!(status.code, 429);
                        assert_eq!(status.details.unwrap().retry_after_secs, Some(1));
                    }
                }
            }));
        }
        while fairness.rejected() < 1000 {
            tokio::task::yield_now().await;
        }
        let node = UserInfo::new("system:node:n1", ["system:nodes"]);
        let seat = admit(&fairness, &node).await;
        assert!(seat.is_ok(), "a node has seats of its own");
        let scheduler = UserInfo::new("system:kube-scheduler", []);
        assert!(admit(&fairness, &scheduler).await.is_ok());
        for task in tasks {
            task.abort();
        }
    }

    #[tokio::test]
    async fn a_quiet_client_gets_its_turn_among_a_flood_of_the_same_level() {
        let fairness = Arc::new(Fairness::new(Duration::from_secs(60)));
        let (mad, quiet) = (UserInfo::new("mad", []), UserInfo::new("quiet", []));
        // All seats that the level can get, then a full hand of queues.
        let mut held = Vec::new();
        let waiting = |fairness: &Fairness| -> usize {
            fairness
                .figures()
                .iter()
                .map(|(_, _, _, waiting)| waiting)
                .sum()
        };
        let mut flood = Vec::new();
        loop {
            let attempt = {
                let (fairness, mad) = (Arc::clone(&fairness), mad.clone());
                tokio::spawn(async move {
                    let seat = admit(&fairness, &mad).await.map(std::mem::forget);
                    seat.is_ok()
                })
            };
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            if attempt.is_finished() {
                if !attempt.await.unwrap() {
                    break;
                }
                held.push(());
            } else {
                flood.push(attempt);
            }
        }
        assert!(waiting(&fairness) >= 50, "{}", waiting(&fairness));
        let turn = {
            let (fairness, quiet) = (Arc::clone(&fairness), quiet.clone());
            tokio::spawn(
                async move { admit(&fairness, &quiet).await.map(std::mem::forget).is_ok() },
            )
        };
        tokio::task::yield_now().await;
        let mut freed = 0;
        while !turn.is_finished() {
            fairness.levels.lock().leave("global-default", 1);
            freed += 1;
            tokio::task::yield_now().await;
            assert!(freed < 40, "the quiet one waits behind the flood");
        }
        assert!(turn.await.unwrap());
        flood.into_iter().for_each(|task| task.abort());
    }

    #[tokio::test]
    async fn schemas_and_levels_of_the_store_are_taken_over() {
        let fairness = Fairness::new(Duration::from_millis(40));
        let level = json!({"metadata": {"name": "tiny", "uid": "level-uid"},
            "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 0, "limitResponse": {"type": "Reject"}}}});
        let schema = json!({"metadata": {"name": "bob", "uid": "schema-uid"},
            "spec": {"priorityLevelConfiguration": {"name": "tiny"}, "matchingPrecedence": 5, "rules": [{
                "subjects": [{"kind": "User", "user": {"name": "bob"}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}]}]}});
        let dangling = json!({"metadata": {"name": "lost", "uid": "x"},
            "spec": {"priorityLevelConfiguration": {"name": "nobody"}, "matchingPrecedence": 1, "rules": schema["spec"]["rules"]}});
        fairness.configure(&[schema, dangling], &[level]);
        let bob = UserInfo::new("bob", []);
        let (classified, seat) = fairness.admit(&attributes(&bob, "get", "pods"), || 1).await;
        let mut headers = HeaderMap::new();
        classified.unwrap().mark(&mut headers);
        assert_eq!(headers["x-kubernetes-pf-flowschema-uid"], "schema-uid");
        assert_eq!(headers["x-kubernetes-pf-prioritylevel-uid"], "level-uid");
        assert_eq!(
            seat.unwrap_err().code,
            429,
            "a level without a share has no seat"
        );
        let eve = UserInfo::new("eve", []);
        let (_, seat) = fairness.admit(&attributes(&eve, "get", "pods"), || 1).await;
        assert!(
            seat.is_ok(),
            "others go to catch-all, which is always there"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_turned_away_and_who_goes_leaves_the_queue() {
        let fairness = Fairness::new(Duration::from_secs(60));
        let level = json!({"metadata": {"name": "tiny"},
            "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 1, "lendablePercent": 0, "borrowingLimitPercent": 0,
                "limitResponse": {"type": "Queue", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 9}}}}});
        fairness.configure(&[], std::slice::from_ref(&level));
        let tiny: Arc<str> = "tiny".into();
        let seats = fairness
            .figures()
            .iter()
            .find(|one| one.0 == tiny)
            .unwrap()
            .1;
        let mut held = Vec::new();
        for _ in 0..seats {
            held.push(fairness.seat(tiny.clone(), 1, 1).await.unwrap());
        }
        assert_eq!(
            fairness.seat(tiny.clone(), 1, 1).await.unwrap_err().code,
            429
        );
        {
            let waiting = fairness.seat(tiny.clone(), 1, 1);
            assert!(futures::poll!(std::pin::pin!(waiting)).is_pending());
        }
        let figures = |fairness: &Fairness| {
            fairness
                .figures()
                .into_iter()
                .find(|one| &*one.0 == "tiny")
                .unwrap()
        };
        assert_eq!(figures(&fairness).3, 0, "nobody waits any more");
        drop(held);
        assert_eq!(figures(&fairness).2, 0, "all seats are free again");
    }
}
