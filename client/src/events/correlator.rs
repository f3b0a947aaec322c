//! Decides what becomes of an occurrence: a new Event object, one more count on an earlier one, or nothing. Pure: the time
//! comes with the occurrence.
//!
//! The rules and numbers are upstream's: the same text about the same object raises the count; more than ten different texts
//! with the same reason within ten minutes are combined into one event; each object may cause a burst of 25 events and one
//! more every five minutes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::Occurrence;

const SIMILAR_MAX: usize = 10;
const SIMILAR_WINDOW_SECS: i64 = 600;
const BURST: f64 = 25.0;
const REFILL_PER_SEC: f64 = 1.0 / 300.0;
const REMEMBERED_MAX: usize = 4096;

/// What is to be written.
#[derive(Debug)]
pub(super) enum Decision {
    /// Too much: nothing.
    Drop,
    /// A new object.
    Create(Box<Event>),
    /// The object exists: raise its count. Holds the whole event in case it is gone.
    Count(Box<Event>),
}

#[derive(Debug)]
pub(super) struct Correlator {
    source: EventSource,
    similar: Remembered<SimilarKey, Similar>,
    written: Remembered<EventKey, Written>,
    budgets: Remembered<ObjectKey, Budget>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ObjectKey {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    api_version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SimilarKey {
    object: ObjectKey,
    kind: &'static str,
    reason: String,
}

/// `text` is `None` for the combined event of a similar group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct EventKey {
    similar: SimilarKey,
    text: Option<(String, String)>,
}

#[derive(Debug)]
struct Similar {
    texts: HashSet<String>,
    last: Timestamp,
}

#[derive(Clone, Debug)]
struct Written {
    name: String,
    count: i32,
    first: Timestamp,
}

#[derive(Debug)]
struct Budget {
    tokens: f64,
    at: Timestamp,
}

impl Correlator {
    pub(super) fn new(source: EventSource) -> Self {
        Self {
            source,
            similar: Remembered::new(),
            written: Remembered::new(),
            budgets: Remembered::new(),
        }
    }

    pub(super) fn decide(&mut self, occurrence: Occurrence) -> Decision {
        let now = occurrence.at;
        let object = ObjectKey {
            kind: occurrence.object.kind.clone().unwrap_or_default(),
            namespace: occurrence.object.namespace.clone().unwrap_or_default(),
            name: occurrence.object.name.clone().unwrap_or_default(),
            uid: occurrence.object.uid.clone().unwrap_or_default(),
            api_version: occurrence.object.api_version.clone().unwrap_or_default(),
        };
        let similar = SimilarKey {
            object: object.clone(),
            kind: occurrence.kind.as_str(),
            reason: occurrence.reason.clone(),
        };
        let mut event = self.event(&occurrence);
        let key = if self.is_flood(&similar, &occurrence.message, now) {
            event.message = Some(format!(
                "(combined from similar events): {}",
                occurrence.message
            ));
            EventKey {
                similar,
                text: None,
            }
        } else {
            let field_path = occurrence.object.field_path.unwrap_or_default();
            EventKey {
                similar,
                text: Some((field_path, occurrence.message)),
            }
        };
        let seen_before = self.count(key, &mut event, now);
        if !self.spend(object, now) {
            Decision::Drop
        } else if seen_before {
            Decision::Count(Box::new(event))
        } else {
            Decision::Create(Box::new(event))
        }
    }

    fn event(&self, occurrence: &Occurrence) -> Event {
        let object = &occurrence.object;
        let now = Some(Time(occurrence.at));
        let name = format!(
            "{}.{:x}",
            object.name.as_deref().unwrap_or_default(),
            occurrence.at.as_nanosecond()
        );
        let namespace = object
            .namespace
            .clone()
            .filter(|namespace| !namespace.is_empty());
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
                ..ObjectMeta::default()
            },
            involved_object: object.clone(),
            reason: Some(occurrence.reason.clone()),
            message: Some(occurrence.message.clone()),
            type_: Some(occurrence.kind.as_str().to_owned()),
            source: Some(self.source.clone()),
            reporting_component: self.source.component.clone(),
            reporting_instance: Some(self.source.host.clone().unwrap_or_default()),
            first_timestamp: now.clone(),
            last_timestamp: now,
            count: Some(1),
            ..Event::default()
        }
    }

    /// Whether so many different texts of this kind came lately that this one goes into the combined event.
    fn is_flood(&mut self, key: &SimilarKey, text: &str, now: Timestamp) -> bool {
        let group = self.similar.entry(key.clone(), || Similar {
            texts: HashSet::new(),
            last: now,
        });
        if seconds(group.last, now) > SIMILAR_WINDOW_SECS {
            group.texts.clear();
        }
        group.last = now;
        if group.texts.len() < SIMILAR_MAX || group.texts.contains(text) {
            group.texts.insert(text.to_owned());
        }
        group.texts.len() >= SIMILAR_MAX
    }

    /// Remembers the event; returns whether it was there before, then with its name, count and first time.
    fn count(&mut self, key: EventKey, event: &mut Event, now: Timestamp) -> bool {
        let name = event.metadata.name.clone().unwrap_or_default();
        let written = self.written.entry(key, || Written {
            name,
            count: 0,
            first: now,
        });
        written.count = written.count.saturating_add(1);
        event.metadata.name = Some(written.name.clone());
        event.count = Some(written.count);
        event.first_timestamp = Some(Time(written.first));
        written.count > 1
    }

    fn spend(&mut self, object: ObjectKey, now: Timestamp) -> bool {
        let budget = self.budgets.entry(object, || Budget {
            tokens: BURST,
            at: now,
        });
        #[allow(
            clippy::cast_precision_loss,
            reason = "whole seconds since the last event are far below 2^52"
        )]
        let refill = seconds(budget.at, now).max(0) as f64 * REFILL_PER_SEC;
        if refill > 0.0 {
            budget.tokens = (budget.tokens + refill).min(BURST);
            budget.at = now;
        }
        let enough = budget.tokens >= 1.0;
        if enough {
            budget.tokens -= 1.0;
        }
        enough
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> i64 {
    to.as_second() - from.as_second()
}

/// A map that forgets its oldest entries beyond a bound.
#[derive(Debug)]
struct Remembered<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Clone + Eq + Hash, V> Remembered<K, V> {
    fn new() -> Self {
        Self {
            entries: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    fn entry(&mut self, key: K, value: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&key) {
            if self.order.len() >= REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        self.entries.entry(key).or_insert_with(value)
    }
}

#[cfg(test)]
mod tests {
    use super::super::EventType;
    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;

    fn occurrence(message: &str, at_secs: i64) -> Occurrence {
        let object = ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some("ns".to_owned()),
            name: Some("p".to_owned()),
            uid: Some("u".to_owned()),
            ..ObjectReference::default()
        };
        let at = Timestamp::from_second(1_800_000_000 + at_secs).unwrap();
        Occurrence {
            object,
            kind: EventType::Warning,
            reason: "Failed".to_owned(),
            message: message.to_owned(),
            at,
        }
    }

    fn correlator() -> Correlator {
        Correlator::new(EventSource {
            component: Some("kubelet".to_owned()),
            host: Some("n1".to_owned()),
        })
    }

    #[test]
    fn the_same_event_again_raises_the_count_and_keeps_name_and_first_time() {
        let mut correlator = correlator();
        let Decision::Create(first) = correlator.decide(occurrence("boom", 0)) else {
            panic!("must create")
        };
        let Decision::Count(second) = correlator.decide(occurrence("boom", 7)) else {
            panic!("must count")
        };
        assert_eq!(
            first.metadata.name.as_deref().unwrap(),
            format!("p.{:x}", 1_800_000_000_000_000_000_u64)
        );
        assert_eq!(
            (first.metadata.name, first.first_timestamp),
            (second.metadata.name, second.first_timestamp.clone())
        );
        assert_eq!(second.count, Some(2));
        assert!(second.last_timestamp > second.first_timestamp);
    }

    #[test]
    fn from_the_tenth_different_text_on_events_are_combined() {
        let mut correlator = correlator();
        let mut combined = Vec::new();
        for i in 0..12 {
            match correlator.decide(occurrence(&format!("try {i}"), i)) {
                Decision::Create(event) | Decision::Count(event) => {
                    if event
                        .message
                        .as_deref()
                        .unwrap()
                        .starts_with("(combined from similar events): ")
                    {
                        combined.push((i, event.count));
                    }
                }
                Decision::Drop => panic!("within the burst"),
            }
        }
        assert_eq!(combined, [(9, Some(1)), (10, Some(2)), (11, Some(3))]);
        let Decision::Create(event) = correlator.decide(occurrence("later", 1000)) else {
            panic!("must create")
        };
        assert_eq!(
            event.message.as_deref(),
            Some("later"),
            "after ten quiet minutes texts stand alone again"
        );
    }

    #[test]
    fn an_object_gets_a_burst_of_25_and_then_one_in_five_minutes() {
        let mut correlator = correlator();
        let mut written = |at| !matches!(correlator.decide(occurrence("boom", at)), Decision::Drop);
        assert!((0..25).all(|_| written(0)));
        assert!(!written(0));
        assert!(!written(100));
        assert!(written(301));
        assert!(!written(302));
    }
}
