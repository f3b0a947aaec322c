//! The IngressClass `coxswain`: made once, and the default for Ingresses that name no class as long as no other class is.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

/// What we call ourselves in `spec.controller`.
pub(crate) const CONTROLLER: &str = "coxswain.dev/ingress";
const NAME: &str = "coxswain";
const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// How Ingresses named their class before there were classes.
const OLD: &str = "kubernetes.io/ingress.class";

/// Whether an Ingress is for us.
pub(crate) fn is_ours(ingress: &Ingress, classes: &[Arc<IngressClass>]) -> bool {
    let named = ingress
        .spec
        .as_ref()
        .and_then(|spec| spec.ingress_class_name.as_deref());
    let Some(named) = named else {
        let annotations = ingress.metadata.annotations.as_ref();
        return annotations
            .and_then(|all| all.get(OLD))
            .is_some_and(|class| class == NAME);
    };
    classes.iter().any(|class| {
        class.metadata.name.as_deref() == Some(named)
            && class
                .spec
                .as_ref()
                .and_then(|spec| spec.controller.as_deref())
                == Some(CONTROLLER)
    })
}

fn is_default(class: &IngressClass) -> bool {
    let annotations = class.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(DEFAULT))
        .is_some_and(|value| value == "true")
}

/// Whether our class has to give up being the default: another one is.
pub(crate) fn has_rival(classes: &[Arc<IngressClass>]) -> bool {
    let name = |class: &IngressClass| class.metadata.name.as_deref() == Some(NAME);
    let ours = classes.iter().any(|class| name(class) && is_default(class));
    ours && classes
        .iter()
        .any(|class| !name(class) && is_default(class))
}

/// Makes the class, where there is none of its name.
pub(crate) async fn ensure(client: &kube::Client) -> Result<(), kube::Error> {
    let api: Api<IngressClass> = Api::all(client.clone());
    let known = api.list(&kube::api::ListParams::default()).await?.items;
    if known
        .iter()
        .any(|class| class.metadata.name.as_deref() == Some(NAME))
    {
        return Ok(());
    }
    let default = !known.iter().any(is_default);
    let class = json!({
        "metadata": {"name": NAME, "annotations": {DEFAULT: default.to_string()}},
        "spec": {"controller": CONTROLLER},
    });
    let class: IngressClass = serde_json::from_value(class).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &class).await {
        Ok(_) => Ok(()),
        Err(error) if cox_client::is_already_exists(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Gives way to another default class.
pub(crate) async fn yield_default(client: &kube::Client) -> Result<(), kube::Error> {
    let api: Api<IngressClass> = Api::all(client.clone());
    let patch = json!({"metadata": {"annotations": {DEFAULT: "false"}}});
    api.patch(NAME, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, controller: &str, default: bool) -> Arc<IngressClass> {
        let class = json!({"metadata": {"name": name, "annotations": {DEFAULT: default.to_string()}},
            "spec": {"controller": controller}});
        Arc::new(serde_json::from_value(class).unwrap())
    }

    #[test]
    fn whose_an_ingress_is() {
        let classes = [
            class("coxswain", CONTROLLER, true),
            class("mine", CONTROLLER, false),
            class("nginx", "k8s.io/ingress-nginx", false),
        ];
        for (case, spec, annotation, expected) in [
            (
                "our class",
                json!({"ingressClassName": "coxswain"}),
                "",
                true,
            ),
            (
                "another class of ours",
                json!({"ingressClassName": "mine"}),
                "",
                true,
            ),
            (
                "somebody else's",
                json!({"ingressClassName": "nginx"}),
                "",
                false,
            ),
            (
                "a class that is not there",
                json!({"ingressClassName": "gone"}),
                "",
                false,
            ),
            (
                "none: it was made before there was a default",
                json!({}),
                "",
                false,
            ),
            ("as in old times", json!({}), "coxswain", true),
            (
                "as in old times, somebody else's",
                json!({}),
                "nginx",
                false,
            ),
        ] {
            let ingress = json!({"metadata": {"annotations": {OLD: annotation}}, "spec": spec});
            let ingress: Ingress = serde_json::from_value(ingress).unwrap();
            assert_eq!(is_ours(&ingress, &classes), expected, "{case}");
        }
        assert!(!has_rival(&classes));
        assert!(has_rival(&[
            class("coxswain", CONTROLLER, true),
            class("nginx", "x", true)
        ]));
        assert!(!has_rival(&[
            class("coxswain", CONTROLLER, false),
            class("nginx", "x", true)
        ]));
    }
}
