//! The Gateway API: its kinds, who of them is ours, and their statuses. Routes go into the same table as those of Ingresses.

pub(crate) mod compile;
mod conditions;
mod crds;
mod grpc;
mod hostnames;
mod status;
mod types;

use std::sync::Arc;
use std::time::Duration;

use cox_client::{Cached, Clock, Informer, Informers, Subscription};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::resolve::Resolver;
use crate::table::Table;
use compile::{Input, Kind, Output, place};
pub(crate) use status::Served;
use types::{GRPCRoute, Gateway, GatewayClass, HTTPRoute, ReferenceGrant};

/// What we call ourselves in GatewayClasses and in the statuses of routes.
pub(crate) const CONTROLLER: &str = "coxswain.dev/gateway";
const NAME: &str = "coxswain";
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What is watched: the first two from the start, the others from the first Gateway on.
#[derive(Debug)]
pub(crate) struct GatewayApi {
    client: Client,
    clock: Arc<dyn Clock>,
    informers: Informers,
    classes: Informer<GatewayClass>,
    gateways: Informer<Gateway>,
    class_changes: Subscription<GatewayClass>,
    gateway_changes: Subscription<Gateway>,
    more: Option<More>,
    output: Output,
}

/// A client that prints as nothing.
struct Client(kube::Client);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

#[derive(Debug)]
struct More {
    routes: Informer<HTTPRoute>,
    grpc_routes: Informer<GRPCRoute>,
    grants: Informer<ReferenceGrant>,
    namespaces: Informer<Namespace>,
    route_changes: Subscription<HTTPRoute>,
    grpc_route_changes: Subscription<GRPCRoute>,
    grant_changes: Subscription<ReferenceGrant>,
    namespace_changes: Subscription<Namespace>,
}

impl GatewayApi {
    /// Makes the definitions and our class where they are missing, and begins to watch.
    pub(crate) async fn start(
        client: kube::Client,
        informers: Informers,
        clock: Arc<dyn Clock>,
    ) -> Self {
        while let Err(error) = prepare(&client).await {
            tracing::debug!(%error, "The Gateway API cannot be served yet");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        let (classes, gateways) = (informers.of(), informers.of());
        Self {
            class_changes: classes.subscribe(),
            gateway_changes: gateways.subscribe(),
            client: Client(client),
            clock,
            informers,
            classes,
            gateways,
            more: None,
            output: Output::default(),
        }
    }

    /// Waits for a change.
    ///
    /// # Cancel safety
    /// A change is taken only when it is returned.
    pub(crate) async fn changed(&mut self) {
        let further = async {
            let Some(more) = &mut self.more else {
                return std::future::pending().await;
            };
            tokio::select! {
                Some(_) = more.route_changes.next() => {}
                Some(_) = more.grpc_route_changes.next() => {}
                Some(_) = more.grant_changes.next() => {}
                Some(_) = more.namespace_changes.next() => {}
                else => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(_) = self.class_changes.next() => {}
            Some(_) = self.gateway_changes.next() => {}
            () = further => {}
        }
    }

    /// Whether something has to be served.
    pub(crate) fn is_used(&self) -> bool {
        !self.ours().is_empty()
    }

    /// Watches the rest, once there is a Gateway.
    pub(crate) async fn watch_more(&mut self) {
        if self.more.is_some() || !self.is_used() {
            return;
        }
        let routes = self.informers.of::<HTTPRoute>();
        let grpc_routes = self.informers.of::<GRPCRoute>();
        let grants = self.informers.of::<ReferenceGrant>();
        let namespaces = self.informers.of::<Namespace>();
        tokio::join!(
            routes.synced(),
            grpc_routes.synced(),
            grants.synced(),
            namespaces.synced()
        );
        self.more = Some(More {
            route_changes: routes.subscribe(),
            grpc_route_changes: grpc_routes.subscribe(),
            grant_changes: grants.subscribe(),
            namespace_changes: namespaces.subscribe(),
            routes,
            grpc_routes,
            grants,
            namespaces,
        });
    }

    fn ours(&self) -> Vec<Arc<Gateway>> {
        let classes = self.classes.list();
        let is_ours = |gateway: &Arc<Gateway>| {
            let name = Some(&gateway.spec.gateway_class_name);
            let mut named = classes
                .iter()
                .filter(|class| class.metadata.name.as_ref() == name);
            named.any(|class| class.spec.controller_name == CONTROLLER)
        };
        let mut ours: Vec<_> = self.gateways.list().into_iter().filter(is_ours).collect();
        by_age(&mut ours);
        ours
    }

    /// Adds routes to the table.
    pub(crate) fn compile(&mut self, table: &mut Table, resolver: &Resolver<'_>) {
        let gateways = self.ours();
        let Some(more) = &self.more else {
            return;
        };
        let (routes, grpc_routes) = (more.routes.list(), more.grpc_routes.list());
        let grants = more.grants.list();
        let labels = |name: &str| {
            let namespace = more.namespaces.get(None, name);
            namespace
                .and_then(|namespace| namespace.metadata.labels.clone())
                .unwrap_or_default()
        };
        let input = Input {
            gateways: &gateways,
            routes: &routes,
            grpc_routes: &grpc_routes,
            grants: &grants,
            labels: &labels,
        };
        self.output = compile::add(table, &input, resolver);
    }

    /// Writes what statuses have to say. Whether something could not be written.
    pub(crate) async fn write_status(&self, served: &Served<'_>) -> bool {
        let now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut failed = false;
        for class in self.classes.list() {
            if class.spec.controller_name == CONTROLLER {
                let wished = status::class(&class, &now);
                failed |= self.write(&*class, &class.status, wished).await;
            }
        }
        // Routes first: who reads of an attached route at its Gateway finds the route told.
        let states = |kind: Kind, meta: &ObjectMeta| {
            let known = self.output.routes.get(&(kind, place(meta)));
            known.map(Vec::as_slice).unwrap_or_default()
        };
        for route in self.more.iter().flat_map(|more| more.routes.list()) {
            let states = states(Kind::Http, &route.metadata);
            let wished = status::route(&route.metadata, &route.status, states, &now);
            failed |= self.write(&*route, &route.status, wished).await;
        }
        for route in self.more.iter().flat_map(|more| more.grpc_routes.list()) {
            let states = states(Kind::Grpc, &route.metadata);
            let wished = status::route(&route.metadata, &route.status, states, &now);
            failed |= self.write(&*route, &route.status, wished).await;
        }
        for gateway in self.ours() {
            let key = place(&gateway.metadata);
            let Some(listeners) = self.output.gateways.get(&key) else {
                continue;
            };
            let wished = status::gateway(&gateway, listeners, served, &now);
            failed |= self.write(&*gateway, &gateway.status, wished).await;
        }
        failed
    }

    /// Writes one status, where it differs.
    async fn write<K>(&self, object: &K, present: &Value, wished: Value) -> bool
    where
        K: Cached,
    {
        if wished.is_null() || *present == wished {
            return false;
        }
        let meta = object.meta();
        let (namespace, name) = (
            meta.namespace.as_deref(),
            meta.name.as_deref().unwrap_or_default(),
        );
        // Informers know kinds without their scope: the path is put together here.
        let resource = kube::api::ApiResource::erase::<K>(&());
        let client = self.client.0.clone();
        let api: Api<kube::api::DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let patch = Patch::Merge(json!({ "status": wished }));
        match api
            .patch_status(name, &PatchParams::default(), &patch)
            .await
        {
            Ok(_) => false,
            Err(error) if cox_client::is_not_found(&error) => false,
            Err(error) => {
                tracing::debug!(name, %error, "A status of the Gateway API was not written");
                true
            }
        }
    }
}

/// The oldest first.
pub(crate) fn by_age<K: Cached>(all: &mut [Arc<K>]) {
    all.sort_by_cached_key(|object| age(object.meta()));
}

/// By creation, and where that is the same by place.
fn age(meta: &ObjectMeta) -> impl Ord + use<> {
    let created = meta.creation_timestamp.as_ref().map(|at| at.0);
    (created, meta.namespace.clone(), meta.name.clone())
}

async fn prepare(client: &kube::Client) -> Result<(), kube::Error> {
    crds::ensure(client).await?;
    let api: Api<GatewayClass> = Api::all(client.clone());
    if api.get_opt(NAME).await?.is_some() {
        return Ok(());
    }
    let class = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": NAME},
        "spec": {"controllerName": CONTROLLER, "description": "Built into the cluster"}});
    let resource = kube::api::ApiResource::erase::<GatewayClass>(&());
    let api: Api<kube::api::DynamicObject> = Api::all_with(client.clone(), &resource);
    let class = serde_json::from_value(class).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &class).await {
        Err(error) if !cox_client::is_already_exists(&error) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}
