//! Counters of the server itself, in Prometheus' text form, under upstream's names.
//!
//! Requests are counted by verb, resource and code in a map behind a short lock; everything else is an atomic.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::registry::EntryRef;
use crate::registry::catalog::Row;
use crate::request::RequestInfo;

/// Upper bounds of the duration buckets, in seconds.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0,
];

/// All counters.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<Series, Counts>>,
    in_flight: [AtomicI64; 2],
    watches: Arc<Watches>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Watches {
    open: AtomicI64,
    events: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    verb: &'static str,
    group: Label,
    version: Label,
    resource: Label,
    subresource: Label,
    code: u16,
}

/// Borrowed for built-in kinds, so that counting allocates nothing for them.
type Label = Cow<'static, str>;

/// Group, version, resource and subresource.
fn label_values(entry: Option<&EntryRef>, subresource: &str) -> [Label; 4] {
    match entry.map(|entry| &entry.resource) {
        None => std::array::from_fn(|_| Label::Borrowed("")),
        Some(Row::Builtin(resource)) => [
            &*resource.group,
            &*resource.version,
            &*resource.plural,
            resource
                .subresource(subresource)
                .map_or("", |sub| &sub.name),
        ]
        .map(Label::Borrowed),
        Some(resource) => [
            &*resource.group,
            &*resource.version,
            &*resource.plural,
            resource
                .subresource(subresource)
                .map_or("", |sub| &sub.name),
        ]
        .map(|text| Label::Owned(text.to_owned())),
    }
}

#[derive(Debug, Default)]
struct Counts {
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
}

/// Counts one open watch until it is dropped.
#[derive(Debug)]
pub(crate) struct WatchGauge(Arc<Watches>);

impl WatchGauge {
    /// So many events were sent.
    pub(crate) fn sent(&self, events: u64) {
        self.0.events.fetch_add(events, Ordering::Relaxed);
    }
}

impl Drop for WatchGauge {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one request in flight until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight<'a>(&'a AtomicI64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// A watch begins.
    #[must_use]
    pub(crate) fn watch_started(&self) -> WatchGauge {
        self.watches.open.fetch_add(1, Ordering::Relaxed);
        WatchGauge(Arc::clone(&self.watches))
    }

    /// A request begins.
    #[must_use]
    pub(crate) fn request_started(&self, mutating: bool) -> InFlight<'_> {
        let gauge = &self.in_flight[usize::from(mutating)];
        gauge.fetch_add(1, Ordering::Relaxed);
        InFlight(gauge)
    }

    /// A request was refused because too many wait.
    pub(crate) fn request_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was answered (a watch: opened). Only names from the resource table become labels, so that clients cannot
    /// make series.
    pub(crate) fn answered(
        &self,
        info: &RequestInfo<'_>,
        entry: Option<&EntryRef>,
        code: u16,
        took: Duration,
    ) {
        let [group, version, resource, subresource] = label_values(entry, info.subresource);
        let series = Series {
            verb: info.verb,
            group,
            version,
            resource,
            subresource,
            code,
        };
        let seconds = took.as_secs_f64();
        let mut requests = self.requests.lock();
        let counts = requests.entry(series).or_default();
        counts.count += 1;
        counts.seconds += seconds;
        if let Some(at) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            counts.buckets[at] += 1;
        }
    }

    /// The page, with the store's revision.
    #[must_use]
    pub(crate) fn render(&self, revision: u64) -> String {
        let mut page = String::with_capacity(16 * 1024);
        self.render_into(&mut page, revision)
            .expect("writing to a string cannot fail");
        page
    }

    fn render_into(&self, page: &mut String, revision: u64) -> std::fmt::Result {
        let requests = self.requests.lock();
        head(
            page,
            "apiserver_request_total",
            "counter",
            "Requests answered, by verb, resource and code.",
        )?;
        for (series, counts) in requests.iter() {
            writeln!(
                page,
                "apiserver_request_total{{{}}} {}",
                labels(series),
                counts.count
            )?;
        }
        head(
            page,
            "apiserver_request_duration_seconds",
            "histogram",
            "Time to answer, by verb, resource and code.",
        )?;
        for (series, counts) in requests.iter() {
            let labels = labels(series);
            let mut below = 0;
            for (bound, count) in BUCKETS.iter().zip(counts.buckets) {
                below += count;
                writeln!(
                    page,
                    "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {below}"
                )?;
            }
            writeln!(
                page,
                "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}",
                counts.count
            )?;
            writeln!(
                page,
                "apiserver_request_duration_seconds_sum{{{labels}}} {}",
                counts.seconds
            )?;
            writeln!(
                page,
                "apiserver_request_duration_seconds_count{{{labels}}} {}",
                counts.count
            )?;
        }
        drop(requests);
        self.render_gauges(page, revision)
    }

    fn render_gauges(&self, page: &mut String, revision: u64) -> std::fmt::Result {
        head(
            page,
            "apiserver_current_inflight_requests",
            "gauge",
            "Requests being answered.",
        )?;
        for (kind, gauge) in ["readOnly", "mutating"].iter().zip(&self.in_flight) {
            let count = gauge.load(Ordering::Relaxed);
            writeln!(
                page,
                "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {count}"
            )?;
        }
        let single = [
            (
                "apiserver_dropped_requests_total",
                "counter",
                "Requests refused because too many waited.",
                self.dropped.load(Ordering::Relaxed),
            ),
            (
                "apiserver_longrunning_requests",
                "gauge",
                "Open watches.",
                self.watches
                    .open
                    .load(Ordering::Relaxed)
                    .max(0)
                    .unsigned_abs(),
            ),
            (
                "apiserver_watch_events_total",
                "counter",
                "Events sent to watches.",
                self.watches.events.load(Ordering::Relaxed),
            ),
            (
                "cox_store_revision",
                "gauge",
                "Revision of the newest write.",
                revision,
            ),
        ];
        for (name, kind, help, value) in single {
            head(page, name, kind, help)?;
            writeln!(page, "{name} {value}")?;
        }
        Ok(())
    }
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) -> std::fmt::Result {
    writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

fn labels(series: &Series) -> String {
    let Series {
        verb,
        group,
        version,
        resource,
        subresource,
        code,
    } = series;
    let verb = verb.to_uppercase();
    format!(
        "verb=\"{verb}\",group=\"{group}\",version=\"{version}\",resource=\"{resource}\",subresource=\"{subresource}\",code=\"{code}\""
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::catalog;

    #[test]
    fn requests_are_counted_and_rendered() {
        let metrics = Metrics::default();
        let entry = catalog::builtin()
            .entry("", "v1", "pods")
            .map(EntryRef::Builtin);
        let info = RequestInfo::parse(
            &http::Method::GET,
            "/api/v1/namespaces/a/pods/b",
            false,
            None,
        );
        metrics.answered(&info, entry.as_ref(), 200, Duration::from_micros(300));
        metrics.answered(&info, entry.as_ref(), 200, Duration::from_millis(3));
        let watch = metrics.watch_started();
        let page = metrics.render(7);
        let labels = "verb=\"GET\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"\",code=\"200\"";
        for line in [
            format!("apiserver_request_total{{{labels}}} 2"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"0.0005\"}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"0.005\"}} 2"),
            "apiserver_longrunning_requests 1".to_owned(),
            "cox_store_revision 7".to_owned(),
        ] {
            assert!(
                page.lines().any(|one| one == line),
                "no line {line} in\n{page}"
            );
        }
        drop(watch);
        assert!(
            metrics
                .render(7)
                .contains("apiserver_longrunning_requests 0")
        );
    }
}
