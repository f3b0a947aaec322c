//! Publishes the cluster CA as the ConfigMap `kube-root-ca.crt` in each namespace: Pods mount it beside their token to know
//! the API server.
//!
//! Watched: namespaces; config maps of that name. Written: the missing ones, and those whose data differ. Invariant: each
//! namespace that is not being deleted has it, with exactly the cluster CA in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ObjectMeta, PostParams};

use crate::context::{Context, Loop};
use crate::serviceaccount::{is_active, is_settled};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "The CA certificate of this cluster's API server, for clients that reach it by its addresses inside the cluster.";

struct Publisher {
    context: Context,
    namespaces: Informer<Namespace>,
    config_maps: Informer<ConfigMap>,
    root_ca_pem: String,
}

pub(crate) async fn run(context: Context, root_ca_pem: String) {
    let namespaces = context.informers.of::<Namespace>();
    let config_maps = context
        .informers
        .of_selected::<ConfigMap>(&format!("metadata.name={NAME}"));
    let mut frame = Loop::new("root-ca-cert-publisher");
    frame.feed(&namespaces, |namespace, keys| {
        keys.push(ObjectName::of(namespace))
    });
    frame.feed(&config_maps, |config_map, keys| {
        keys.extend(
            config_map
                .metadata
                .namespace
                .as_deref()
                .map(ObjectName::cluster),
        );
    });
    let cancel = context.cancel.clone();
    let publisher = Arc::new(Publisher {
        context,
        namespaces,
        config_maps,
        root_ca_pem,
    });
    let reconcile = move |key: ObjectName| {
        let publisher = publisher.clone();
        async move { publisher.reconcile(&key.name).await }
    };
    frame.run(2, reconcile, cancel).await;
}

/// What a namespace's ConfigMap needs.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Create(ConfigMap),
    Replace(ConfigMap),
}

impl Publisher {
    async fn reconcile(&self, namespace: &str) -> Verdict {
        if !self
            .namespaces
            .get(None, namespace)
            .is_some_and(|namespace| is_active(&namespace))
        {
            return Verdict::Done;
        }
        let present = self.config_maps.get(Some(namespace), NAME);
        let api = self.context.api::<ConfigMap>(namespace);
        let result = match plan(namespace, present.as_deref(), &self.root_ca_pem) {
            Plan::Nothing => return Verdict::Done,
            Plan::Create(config_map) => api.create(&PostParams::default(), &config_map).await,
            Plan::Replace(config_map) => {
                api.replace(NAME, &PostParams::default(), &config_map).await
            }
        };
        match result {
            Ok(_) => Verdict::Done,
            Err(error) if is_settled(&error) => Verdict::Done,
            Err(error) => Verdict::Backoff(error.into()),
        }
    }
}

fn plan(namespace: &str, present: Option<&ConfigMap>, root_ca_pem: &str) -> Plan {
    let data = BTreeMap::from([("ca.crt".to_owned(), root_ca_pem.to_owned())]);
    let description = (
        "kubernetes.io/description".to_owned(),
        DESCRIPTION.to_owned(),
    );
    match present {
        Some(present) if present.data.as_ref() == Some(&data) && present.binary_data.is_none() => {
            Plan::Nothing
        }
        Some(present) => {
            let mut metadata = present.metadata.clone();
            metadata
                .annotations
                .get_or_insert_default()
                .extend([description]);
            Plan::Replace(ConfigMap {
                metadata,
                data: Some(data),
                ..ConfigMap::default()
            })
        }
        None => {
            let metadata = ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(namespace.to_owned()),
                annotations: Some(BTreeMap::from([description])),
                ..ObjectMeta::default()
            };
            Plan::Create(ConfigMap {
                metadata,
                data: Some(data),
                ..ConfigMap::default()
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_ca_is_left_alone_and_a_changed_one_is_put_right() {
        let Plan::Create(published) = plan("ns", None, "PEM") else {
            panic!("must create")
        };
        assert_eq!(plan("ns", Some(&published), "PEM"), Plan::Nothing);
        assert!(matches!(
            plan("ns", Some(&published), "OTHER"),
            Plan::Replace(_)
        ));
        let mut edited = published;
        edited
            .data
            .as_mut()
            .unwrap()
            .insert("extra".to_owned(), "x".to_owned());
        let Plan::Replace(mended) = plan("ns", Some(&edited), "PEM") else {
            panic!("must replace")
        };
        assert_eq!(mended.data.unwrap().len(), 1);
    }
}
