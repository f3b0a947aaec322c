//! What admission charged lately: objects of which the charge is written but which may not be there yet.

use std::collections::HashMap;
use std::time::Duration;

use cox_api::totals::{self, Amounts};
use cox_client::runner::ObjectName;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Between a charge and its object lies one write.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// Charges by quota.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    quotas: Mutex<HashMap<ObjectName, Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    used: Amounts,
    charges: Vec<(Instant, Amounts)>,
}

impl Ledger {
    /// A quota as it was seen; what it says more than before was charged now.
    pub(super) fn saw(&self, key: &ObjectName, used: &Amounts, now: Instant) {
        let mut quotas = self.quotas.lock();
        let seen = quotas.entry(key.clone()).or_default();
        let mut more = used.clone();
        for (name, amount) in &mut more {
            if let Some(before) = seen.used.get(name) {
                *amount = *amount - *before;
            }
        }
        more.retain(|_, amount| !amount.is_zero() && !amount.is_negative());
        seen.used.clone_from(used);
        seen.charges
            .retain(|(at, _)| now.duration_since(*at) < ON_ITS_WAY);
        if !more.is_empty() {
            seen.charges.push((now, more));
        }
    }

    /// The controller is about to write this itself: no charge.
    pub(super) fn wrote(&self, key: &ObjectName, used: &Amounts) {
        self.quotas.lock().entry(key.clone()).or_default().used = used.clone();
    }

    pub(super) fn forget(&self, key: &ObjectName) {
        self.quotas.lock().remove(key);
    }

    /// What may be on its way, and when all of it must have come.
    pub(super) fn pending(
        &self,
        key: &ObjectName,
        current: &Amounts,
        now: Instant,
    ) -> (Amounts, Option<Duration>) {
        self.saw(key, current, now);
        let quotas = self.quotas.lock();
        let charges = quotas.get(key).map_or(&[][..], |seen| &seen.charges);
        let mut sum = Amounts::new();
        for (_, more) in charges {
            totals::add(&mut sum, more);
        }
        let last = charges.last().map(|(at, _)| *at + ON_ITS_WAY - now);
        (sum, last)
    }
}

#[cfg(test)]
mod tests {
    use cox_api::totals::amounts;
    use serde_json::json;

    use super::*;

    #[test]
    fn charges_are_remembered_until_their_objects_must_be_there() {
        let (ledger, key, now) = (
            Ledger::default(),
            ObjectName::namespaced("ns", "quota"),
            Instant::now(),
        );
        let of = |pods: &str| amounts(&json!({"pods": pods}));
        ledger.wrote(&key, &of("2"));
        ledger.saw(&key, &of("2"), now);
        assert_eq!(ledger.pending(&key, &of("2"), now), (Amounts::new(), None));
        let later = now + Duration::from_secs(1);
        ledger.saw(&key, &of("5"), later);
        assert_eq!(
            ledger.pending(&key, &of("5"), later + Duration::from_secs(1)),
            (of("3"), Some(Duration::from_secs(4)))
        );
        let after = later + ON_ITS_WAY;
        assert_eq!(
            ledger.pending(&key, &of("5"), after),
            (Amounts::new(), None)
        );
    }
}
