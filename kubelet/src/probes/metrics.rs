//! Counts probes and their time, as `/metrics/probes` shows them.

use crate::pod::probe::ProbeKind;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Duration;

/// Upper bounds of the histogram, in seconds: the usual ones of Prometheus.
const BUCKETS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Who was probed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probed {
    pub kind: ProbeKind,
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
}

#[derive(Clone, Debug, Default)]
struct Counters {
    successful: u64,
    failed: u64,
    unknown: u64,
    buckets: [u64; BUCKETS.len()],
    timed: u64,
    seconds: f64,
}

/// The counters of a kubelet.
#[derive(Debug, Default)]
pub struct ProbeMetrics {
    counters: Mutex<BTreeMap<Probed, Counters>>,
}

impl ProbeMetrics {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Probed, Counters>> {
        self.counters
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// Counts one probe; `None`: it could not be made.
    pub fn count(&self, who: Probed, result: Option<bool>, took: Duration) {
        let mut all = self.lock();
        let counters = all.entry(who).or_default();
        match result {
            Some(true) => {
                counters.successful += 1;
                let seconds = took.as_secs_f64();
                counters.timed += 1;
                counters.seconds += seconds;
                for (count, bound) in counters.buckets.iter_mut().zip(BUCKETS) {
                    *count += u64::from(seconds <= bound);
                }
            }
            Some(false) => counters.failed += 1,
            None => counters.unknown += 1,
        }
    }

    /// Forgets a Pod that is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().retain(|who, _| who.uid != uid);
    }

    /// All counters in the text format of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::from(
            "# HELP prober_probe_total [BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.\n\
             # TYPE prober_probe_total counter\n",
        );
        let all = self.lock();
        for (who, counters) in all.iter() {
            let results = [
                ("failed", counters.failed),
                ("successful", counters.successful),
                ("unknown", counters.unknown),
            ];
            for (result, count) in results.into_iter().filter(|(_, count)| *count > 0) {
                let labels = format!(
                    "container=\"{}\",namespace=\"{}\",pod=\"{}\",pod_uid=\"{}\",probe_type=\"{}\",result=\"{result}\"",
                    who.container,
                    who.namespace,
                    who.pod,
                    who.uid,
                    who.kind.title(),
                );
                put(
                    &mut text,
                    &format!("prober_probe_total{{{labels}}} {count}"),
                );
            }
        }
        text.push_str(
            "# HELP prober_probe_duration_seconds [ALPHA] Duration in seconds for a probe response.\n\
             # TYPE prober_probe_duration_seconds histogram\n",
        );
        for (who, counters) in all.iter().filter(|(_, counters)| counters.timed > 0) {
            let labels = format!(
                "container=\"{}\",namespace=\"{}\",pod=\"{}\",probe_type=\"{}\"",
                who.container,
                who.namespace,
                who.pod,
                who.kind.title(),
            );
            let name = "prober_probe_duration_seconds";
            for (count, bound) in counters.buckets.iter().zip(BUCKETS) {
                put(
                    &mut text,
                    &format!("{name}_bucket{{{labels},le=\"{bound}\"}} {count}"),
                );
            }
            put(
                &mut text,
                &format!("{name}_bucket{{{labels},le=\"+Inf\"}} {}", counters.timed),
            );
            put(
                &mut text,
                &format!("{name}_sum{{{labels}}} {}", counters.seconds),
            );
            put(
                &mut text,
                &format!("{name}_count{{{labels}}} {}", counters.timed),
            );
        }
        text
    }
}

fn put(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a string takes what is written to it");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_apart_and_forgotten_with_the_pod() {
        let metrics = ProbeMetrics::default();
        let who = Probed {
            kind: ProbeKind::Liveness,
            namespace: "n".into(),
            pod: "p".into(),
            uid: "u".into(),
            container: "c".into(),
        };
        metrics.count(who.clone(), Some(true), Duration::from_millis(20));
        metrics.count(who.clone(), Some(true), Duration::from_millis(20));
        metrics.count(who, Some(false), Duration::from_millis(1));
        let text = metrics.text();
        let line = "prober_probe_total{container=\"c\",namespace=\"n\",pod=\"p\",pod_uid=\"u\",probe_type=\"Liveness\",result=";
        assert!(
            text.contains(&format!("{line}\"successful\"}} 2\n")),
            "{text}"
        );
        assert!(text.contains(&format!("{line}\"failed\"}} 1\n")), "{text}");
        assert!(
            text.contains("le=\"0.01\"} 0\n") && text.contains("le=\"0.025\"} 2\n"),
            "{text}"
        );
        metrics.forget("u");
        assert!(!metrics.text().contains("pod_uid"));
    }
}
