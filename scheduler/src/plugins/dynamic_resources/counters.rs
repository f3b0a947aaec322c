//! What devices of a pool take of the counters that they share. Pure.

use std::collections::{BTreeMap, HashMap};

use cox_api::quantity::Quantity;
use k8s_openapi::api::resource::v1::Device;

use super::allocate::Allocated;
use super::capacity::amount;
use super::pools::{self, DeviceId, Pool};

/// Amounts by counter set and counter.
type Left<'a> = BTreeMap<(&'a str, &'a str), Quantity>;

/// What is left of the counters of each pool.
#[derive(Debug)]
pub(super) struct Counters<'a> {
    left: HashMap<usize, Left<'a>>,
}

impl<'a> Counters<'a> {
    /// After what claims hold.
    pub(super) fn new(pools: &[Pool<'a>], allocated: &Allocated) -> Self {
        let counting = pools.iter().enumerate();
        let counting = counting.filter(|(_, pool)| !pool.counters.is_empty());
        let left = counting.map(|(index, pool)| {
            let counters = pool.counters.iter().flat_map(|(set, own)| {
                let counters = own.counters.iter();
                counters.map(|(name, counter)| ((*set, name.as_str()), amount(&counter.value)))
            });
            let mut left: Left<'a> = counters.collect();
            for slice in pool.slices.iter().chain(&pool.elsewhere) {
                for device in pools::devices(slice) {
                    let id = DeviceId {
                        driver: pool.driver.to_owned(),
                        pool: pool.name.to_owned(),
                        device: device.name.clone(),
                    };
                    if allocated.has(&id) {
                        take(&mut left, device);
                    }
                }
            }
            (index, left)
        });
        Self {
            left: left.collect(),
        }
    }

    /// Whether all counters of the pool last for these devices.
    pub(super) fn have<'d>(&self, pool: usize, devices: impl Iterator<Item = &'d Device>) -> bool {
        let Some(left) = self.left.get(&pool) else {
            return true;
        };
        let mut left = left.clone();
        devices.for_each(|device| take(&mut left, device));
        left.values().all(|left| !left.is_negative())
    }
}

fn take(left: &mut Left<'_>, device: &Device) {
    for taken in device.consumes_counters.iter().flatten() {
        for (name, counter) in &taken.counters {
            let key = (taken.counter_set.as_str(), name.as_str());
            let known = left.iter_mut().find(|(known, _)| **known == key);
            if let Some((_, left)) = known {
                *left = *left - amount(&counter.value);
            }
        }
    }
}
