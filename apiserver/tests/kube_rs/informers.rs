//! Watchers and reflectors, in both ways to begin, across restarts of the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fmt::Debug;
use std::hash::Hash;

use super::home::{Home, PATIENCE, Running, soon};

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(
        json!({"metadata": {"name": name, "labels": {"of": "test"}}, "data": {"k": "v"}}),
    )
    .unwrap()
}

async fn maps(running: &Running) -> Api<ConfigMap> {
    Api::default_namespaced(running.client().await)
}

/// A reflector that runs until it is dropped, and how often it began anew.
struct Informer<K: Resource + 'static>
where
    K::DynamicType: Hash + Eq,
{
    store: reflector::Store<K>,
    lists: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl<K> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    fn run(api: Api<K>, config: Config) -> Self {
        let (store, writer) = reflector::store();
        let lists = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lists);
        let stream = watcher(api, config)
            .default_backoff()
            .inspect(move |event| {
                if matches!(event, Ok(Event::Init)) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
        let task = tokio::spawn(reflector(writer, stream).for_each(|_| std::future::ready(())));
        Informer { store, lists, task }
    }

    async fn shows(&self, expected: &[&str]) {
        let what = format!("the informer to show {expected:?}");
        soon(&what, async || {
            let mut names: Vec<String> = self
                .store
                .state()
                .iter()
                .map(|object| object.name_any())
                .collect();
            names.sort();
            names == expected
        })
        .await;
    }
}

impl<K: Resource + 'static> Drop for Informer<K>
where
    K::DynamicType: Hash + Eq,
{
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn informers_go_on_where_they_were_or_begin_anew() {
    for streaming in [false, true] {
        let home = Home::new();
        let running = home.serve().await;
        let address = running.server.addr();
        let api = maps(&running).await;
        for name in ["a", "b", "c"] {
            api.create(&PostParams::default(), &map(name))
                .await
                .unwrap();
        }
        let config = || {
            let config = Config::default().labels("of=test").page_size(2);
            if streaming {
                Config {
                    page_size: None,
                    ..config
                }
                .streaming_lists()
            } else {
                config
            }
        };
        let full = Informer::run(api.clone(), config());
        let metadata = Informer::<PartialObjectMeta<ConfigMap>>::run(
            Api::default_namespaced(running.client().await),
            config(),
        );
        full.shows(&["a", "b", "c"]).await;
        metadata.shows(&["a", "b", "c"]).await;

        // The server comes back with its history: whoever watched goes on.
        let store = running.halt().await;
        let running = home.serve_at(address, store).await;
        let api = maps(&running).await;
        api.create(&PostParams::default(), &map("d")).await.unwrap();
        api.delete("a", &DeleteParams::default()).await.unwrap();
        full.shows(&["b", "c", "d"]).await;
        metadata.shows(&["b", "c", "d"]).await;
        assert_eq!(
            full.lists.load(Ordering::Relaxed),
            1,
            "nothing was missed, so nothing had to be listed (streaming: {streaming})"
        );

        // It comes back from its disk and has forgotten the history: whoever watched an older state lists again.
        running.halt().await.close().await;
        let store = home.open();
        let running = home.serve_at(address, store).await;
        let api = maps(&running).await;
        api.delete("b", &DeleteParams::default()).await.unwrap();
        full.shows(&["c", "d"]).await;
        metadata.shows(&["c", "d"]).await;
        drop((full, metadata));
        running.stop().await;
    }
}

#[tokio::test]
async fn a_stop_ends_watches_without_an_error() {
    let home = Home::new();
    let running = home.serve().await;
    let api = maps(&running).await;
    let params = WatchParams::default().timeout(290);
    let mut events = api.watch(&params, "0").await.unwrap().boxed();
    api.create(&PostParams::default(), &map("a")).await.unwrap();
    let seen = async {
        while let Some(event) = events.try_next().await.unwrap() {
            if matches!(&event, WatchEvent::Added(map) if map.name_any() == "a") {
                return;
            }
        }
        panic!("ended before the event");
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap();
    running.cancel();
    let rest = tokio::time::timeout(PATIENCE, events.try_next())
        .await
        .unwrap();
    assert!(matches!(rest, Ok(None)), "{rest:?}");
    running.stop().await;
}
