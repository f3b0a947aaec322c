//! What drivers say of their devices' health. A word holds for a time, as long as its driver says; then nothing is known any more.

use super::health_proto::dra_resource_health_client::DraResourceHealthClient;
use super::health_proto::{DeviceHealth, HealthStatus, NodeWatchResourcesRequest};
use super::plan::{Device, State};
use crate::affected::Affected;
use crate::csi::text;
use k8s_openapi::api::core::v1::ResourceHealth;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;

/// How long a word holds that says nothing of it: upstream's.
const HOLDS: Duration = Duration::from_secs(30);
/// No word holds longer.
const HOLDS_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest message, in bytes: upstream's.
const MESSAGE_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    health: &'static str,
    message: Option<String>,
    until: Instant,
}

/// By pool and device.
type OfDriver = BTreeMap<(String, String), Word>;

/// What is known of devices' health.
#[derive(Debug)]
pub(super) struct Health {
    words: Mutex<BTreeMap<String, OfDriver>>,
    /// Tells who uses a device.
    state: Arc<Mutex<State>>,
    affected: Arc<Affected>,
}

impl Health {
    pub(super) fn new(state: Arc<Mutex<State>>, affected: Arc<Affected>) -> Self {
        Self {
            words: Mutex::default(),
            state,
            affected,
        }
    }

    fn words(&self) -> MutexGuard<'_, BTreeMap<String, OfDriver>> {
        self.words
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// What a Pod's status says of a device.
    pub(super) fn of(&self, driver: &str, device: &Device) -> ResourceHealth {
        let words = self.words();
        let key = (device.pool.clone(), device.name.clone());
        let word = words.get(driver).and_then(|all| all.get(&key));
        let word = word.filter(|word| word.until > Instant::now());
        let name = || format!("{driver}/{}/{}", device.pool, device.name);
        ResourceHealth {
            health: Some(word.map_or("Unknown", |word| word.health).to_owned()),
            message: word.and_then(|word| word.message.clone()),
            resource_id: device.cdi.first().cloned().unwrap_or_else(name),
        }
    }

    /// Hears a driver until its stream ends; answers why it did.
    pub(super) async fn follow(&self, driver: &str, channel: Channel) -> String {
        let mut client = DraResourceHealthClient::new(channel);
        let mut lists = match client
            .node_watch_resources(NodeWatchResourcesRequest {})
            .await
        {
            Ok(lists) => lists.into_inner(),
            Err(status) => return text(status),
        };
        loop {
            let until = self.first_end(driver);
            let ends = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                list = lists.message() => match list {
                    Ok(Some(list)) => self.heard(driver, list.devices),
                    Ok(None) => return "the stream has ended".to_owned(),
                    Err(status) => return text(status),
                },
                // Only waits.
                () = ends => self.ended(driver, Instant::now()),
            }
        }
    }

    /// All that a driver says now. What it does not name any more holds until its time.
    fn heard(&self, driver: &str, devices: Vec<DeviceHealth>) {
        let now = Instant::now();
        let mut words = self.words();
        let known = words.entry(driver.to_owned()).or_default();
        let mut changed = BTreeSet::new();
        for said in devices {
            let (word, device) = (word(&said, now), said.device.unwrap_or_default());
            let key = (device.pool_name, device.device_name);
            let before = known.insert(key.clone(), word.clone());
            let is_news =
                before.is_none_or(|one| (one.health, one.message) != (word.health, word.message));
            if is_news {
                changed.insert(key);
            }
        }
        drop(words);
        self.tell(driver, &changed);
    }

    fn first_end(&self, driver: &str) -> Option<Instant> {
        let words = self.words();
        words.get(driver)?.values().map(|word| word.until).min()
    }

    /// Takes back what holds no longer.
    fn ended(&self, driver: &str, now: Instant) {
        let mut ended = BTreeSet::new();
        if let Some(known) = self.words().get_mut(driver) {
            known.retain(|key, word| {
                let holds = word.until > now;
                if !holds {
                    ended.insert(key.clone());
                }
                holds
            });
        }
        self.tell(driver, &ended);
    }

    /// The driver has gone.
    pub(super) fn forget(&self, driver: &str) {
        let known = self.words().remove(driver).unwrap_or_default();
        self.tell(driver, &known.into_keys().collect());
    }

    fn tell(&self, driver: &str, devices: &BTreeSet<(String, String)>) {
        if devices.is_empty() {
            return;
        }
        let state = self
            .state
            .lock()
            .expect("no panic happens while this lock is held");
        let is_it = |device: &Device| devices.contains(&(device.pool.clone(), device.name.clone()));
        self.affected.add(state.users(driver, is_it));
    }
}

fn word(said: &DeviceHealth, now: Instant) -> Word {
    let seconds = u64::try_from(said.health_check_timeout_seconds).unwrap_or(0);
    let holds = match seconds {
        0 => HOLDS,
        seconds => Duration::from_secs(seconds),
    };
    Word {
        health: match said.health() {
            HealthStatus::Unknown => "Unknown",
            HealthStatus::Healthy => "Healthy",
            HealthStatus::Unhealthy => "Unhealthy",
        },
        message: Some(shortened(&said.message)).filter(|message| !message.is_empty()),
        until: now + holds.min(HOLDS_MAX),
    }
}

fn shortened(message: &str) -> String {
    if message.len() <= MESSAGE_MAX {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(MESSAGE_MAX - 3);
    format!("{}...", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::super::health_proto::DeviceIdentifier;
    use super::super::plan::Needed;
    use super::*;

    fn said(health: HealthStatus, message: &str, seconds: i64) -> DeviceHealth {
        DeviceHealth {
            device: Some(DeviceIdentifier {
                pool_name: "node".to_owned(),
                device_name: "0".to_owned(),
            }),
            health: health.into(),
            last_updated_time: 0,
            health_check_timeout_seconds: seconds,
            message: message.to_owned(),
        }
    }

    #[test]
    fn a_word_holds_for_its_time_and_wakes_those_whom_it_concerns() {
        let device = Device {
            pool: "node".to_owned(),
            name: "0".to_owned(),
            cdi: vec!["v.com/c=0".to_owned()],
            ..Device::default()
        };
        let state = Arc::new(Mutex::new(State::default()));
        let key = ("ns".to_owned(), "c".to_owned());
        let needed = Needed {
            key: key.clone(),
            uid: "c".to_owned(),
            drivers: ["d".to_owned()].into(),
        };
        state.lock().unwrap().refer("pod", &[needed]).unwrap();
        let devices = vec![device.clone()];
        state.lock().unwrap().prepared(&key, "d", devices);
        let affected = Arc::new(Affected::default());
        let health = Health::new(state, affected.clone());
        let of = |health: &Health| health.of("d", &device);
        assert_eq!(of(&health).health.as_deref(), Some("Unknown"));
        assert_eq!(of(&health).resource_id, "v.com/c=0");
        health.heard("d", vec![said(HealthStatus::Unhealthy, "too hot", 0)]);
        assert_eq!(of(&health).health.as_deref(), Some("Unhealthy"));
        assert_eq!(of(&health).message.as_deref(), Some("too hot"));
        assert_eq!(affected.taken(), ["pod".to_owned()].into());
        health.heard("d", vec![said(HealthStatus::Unhealthy, "too hot", 0)]);
        assert!(affected.taken().is_empty(), "no news");
        let until = health.first_end("d").unwrap();
        health.ended("d", until);
        assert_eq!(of(&health).health.as_deref(), Some("Unknown"));
        assert_eq!(affected.taken(), ["pod".to_owned()].into());
        assert_eq!(health.first_end("d"), None);
    }

    #[test]
    fn hostile_words_are_cut_to_size() {
        let long = "ü".repeat(MESSAGE_MAX);
        let now = Instant::now();
        let word = word(&said(HealthStatus::Healthy, &long, i64::MAX), now);
        let message = word.message.unwrap();
        assert!(message.len() <= MESSAGE_MAX && message.ends_with("..."));
        assert_eq!(word.until, now + HOLDS_MAX);
        let negative = super::word(&said(HealthStatus::Healthy, "", -1), now);
        assert_eq!((negative.message, negative.until), (None, now + HOLDS));
    }
}
