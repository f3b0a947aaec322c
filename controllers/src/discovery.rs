//! Which resources the API server serves, for the controllers that handle all of them. One call for all groups where the
//! server has aggregated discovery, one per group otherwise.

use kube::discovery::{ApiCapabilities, ApiResource, Discovery, Scope, verbs};

/// One resource, in the version that is best to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    operations: Vec<String>,
}

/// Everything that is served.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    /// Each kind once.
    pub(crate) preferred: Vec<Served>,
    /// Each kind in each version.
    pub(crate) all: Vec<Served>,
}

impl Served {
    fn new((resource, capabilities): (ApiResource, ApiCapabilities)) -> Self {
        let namespaced = capabilities.scope == Scope::Namespaced;
        Self {
            resource,
            namespaced,
            operations: capabilities.operations,
        }
    }

    pub(crate) fn supports(&self, verb: &str) -> bool {
        self.operations.iter().any(|operation| operation == verb)
    }

    /// Can be followed and deleted.
    pub(crate) fn is_collectable(&self) -> bool {
        [verbs::LIST, verbs::WATCH, verbs::DELETE]
            .iter()
            .all(|verb| self.supports(verb))
    }
}

impl Catalog {
    /// Asks the server.
    pub(crate) async fn discover(client: &kube::Client) -> Result<Self, kube::Error> {
        let discovery = match Discovery::new(client.clone()).run_aggregated().await {
            Ok(discovery) => discovery,
            Err(error) => {
                tracing::debug!(error = %cox_client::runner::chain(&error), "No aggregated discovery");
                Discovery::new(client.clone()).run().await?
            }
        };
        let mut catalog = Self::default();
        for group in discovery.groups_alphabetical() {
            catalog
                .preferred
                .extend(group.resources_by_stability().into_iter().map(Served::new));
            for version in group.versions() {
                catalog.all.extend(
                    group
                        .versioned_resources(version)
                        .into_iter()
                        .map(Served::new),
                );
            }
        }
        catalog.preferred.sort_by(|a, b| key(a).cmp(&key(b)));
        Ok(catalog)
    }

    /// The resource of a kind, as owner references name it.
    pub(crate) fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Served> {
        self.all.iter().find(|served| {
            served.resource.kind == kind && served.resource.api_version == api_version
        })
    }
}

fn key(served: &Served) -> (&str, &str) {
    (&served.resource.group, &served.resource.plural)
}
