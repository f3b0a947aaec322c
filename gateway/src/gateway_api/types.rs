//! The kinds of the Gateway API that are served, as far as they are read. Statuses stay trees: others write into them too.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) const GROUP: &str = "gateway.networking.k8s.io";

macro_rules! kind {
    ($type:ident, $plural:literal, $version:literal, $scope:ty, $spec:ty) => {
        #[derive(Clone, Debug, Default, Deserialize, Serialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(crate) struct $type {
            pub(crate) metadata: ObjectMeta,
            pub(crate) spec: $spec,
            pub(crate) status: Value,
        }

        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = $scope;

            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                stringify!($type).into()
            }
            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                GROUP.into()
            }
            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                $version.into()
            }
            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

type Cluster = kube::core::ClusterResourceScope;
type Namespaced = kube::core::NamespaceResourceScope;

kind!(GatewayClass, "gatewayclasses", "v1", Cluster, ClassSpec);
kind!(Gateway, "gateways", "v1", Namespaced, GatewaySpec);
kind!(HTTPRoute, "httproutes", "v1", Namespaced, RouteSpec);
kind!(GRPCRoute, "grpcroutes", "v1", Namespaced, GrpcSpec);
kind!(
    ReferenceGrant,
    "referencegrants",
    "v1beta1",
    Namespaced,
    GrantSpec
);

macro_rules! part {
    ($($name:ident { $($field:ident: $type:ty),* $(,)? })*) => { $(
        #[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(crate) struct $name {
            $(
                #[serde(skip_serializing_if = "is_default")]
                pub(crate) $field: $type,
            )*
        }
    )* };
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

part! {
    ClassSpec { controller_name: String }
    GatewaySpec { gateway_class_name: String, listeners: Vec<Listener> }
    Listener {
        name: String,
        hostname: Option<String>,
        port: u16,
        protocol: String,
        tls: Option<ListenerTls>,
        allowed_routes: Option<AllowedRoutes>,
    }
    ListenerTls { mode: Option<String>, certificate_refs: Vec<ObjectRef> }
    AllowedRoutes { namespaces: Option<AllowedNamespaces>, kinds: Vec<RouteKind> }
    AllowedNamespaces { from: Option<String>, selector: Option<LabelSelector> }
    RouteKind { group: Option<String>, kind: String }
    ObjectRef { group: Option<String>, kind: Option<String>, namespace: Option<String>, name: String }
    RouteSpec { parent_refs: Vec<ParentRef>, hostnames: Vec<String>, rules: Vec<Rule> }
    GrpcSpec { parent_refs: Vec<ParentRef>, hostnames: Vec<String>, rules: Vec<GrpcRule> }
    GrpcRule { matches: Vec<GrpcMatch>, filters: Vec<Filter>, backend_refs: Vec<BackendRef> }
    GrpcMatch { method: Option<GrpcMethod>, headers: Vec<ValueSpec> }
    GrpcMethod { r#type: Option<String>, service: Option<String>, method: Option<String> }
    ParentRef {
        group: Option<String>,
        kind: Option<String>,
        namespace: Option<String>,
        name: String,
        section_name: Option<String>,
        port: Option<u16>,
    }
    Rule { matches: Vec<RouteMatch>, filters: Vec<Filter>, backend_refs: Vec<BackendRef>, timeouts: Option<Timeouts> }
    RouteMatch { path: Option<PathSpec>, headers: Vec<ValueSpec>, query_params: Vec<ValueSpec>, method: Option<String> }
    ValueSpec { r#type: Option<String>, name: String, value: String }
    Timeouts { request: Option<String>, backend_request: Option<String> }
    BackendRef {
        group: Option<String>,
        kind: Option<String>,
        namespace: Option<String>,
        name: String,
        port: Option<i32>,
        weight: Option<u32>,
        filters: Vec<Filter>,
    }
    PathSpec { r#type: Option<String>, value: Option<String> }
    Filter {
        r#type: String,
        request_header_modifier: HeaderModifier,
        response_header_modifier: HeaderModifier,
        request_redirect: RedirectSpec,
        url_rewrite: RewriteSpec,
        request_mirror: MirrorSpec,
        cors: CorsSpec,
    }
    MirrorSpec { backend_ref: BackendRef, percent: Option<u32>, fraction: Option<Fraction> }
    Fraction { numerator: u32, denominator: Option<u32> }
    CorsSpec {
        allow_origins: Vec<String>,
        allow_credentials: Option<bool>,
        allow_methods: Vec<String>,
        allow_headers: Vec<String>,
        expose_headers: Vec<String>,
        max_age: Option<u64>,
    }
    HeaderModifier { set: Vec<NamedValue>, add: Vec<NamedValue>, remove: Vec<String> }
    NamedValue { name: String, value: String }
    RedirectSpec {
        scheme: Option<String>,
        hostname: Option<String>,
        path: Option<PathModifier>,
        port: Option<u16>,
        status_code: Option<u16>,
    }
    RewriteSpec { hostname: Option<String>, path: Option<PathModifier> }
    PathModifier { r#type: String, replace_full_path: Option<String>, replace_prefix_match: Option<String> }
    GrantSpec { from: Vec<GrantFrom>, to: Vec<GrantTo> }
    GrantFrom { group: String, kind: String, namespace: String }
    GrantTo { group: String, kind: String, name: Option<String> }
}

/// Labels, as they hang on namespaces.
pub(crate) type Labels = BTreeMap<String, String>;
