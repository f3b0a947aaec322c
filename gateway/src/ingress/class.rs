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
/// On our class: it was the default, until another one was.
const GAVE_WAY: &str = "coxswain.dev/gave-way";
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

/// Whether our class has to change: `Some(false)` when another one is the default too, `Some(true)` when none is and ours gave way.
pub(crate) fn default_due(classes: &[Arc<IngressClass>]) -> Option<bool> {
    let is_named = |class: &&Arc<IngressClass>| class.metadata.name.as_deref() == Some(NAME);
    let ours = classes.iter().find(is_named)?;
    let rival = classes
        .iter()
        .any(|class| !is_named(&class) && is_default(class));
    let annotations = ours.metadata.annotations.as_ref();
    let gave_way = annotations.is_some_and(|all| all.contains_key(GAVE_WAY));
    match (is_default(ours), rival) {
        (true, true) => Some(false),
        (false, false) if gave_way => Some(true),
        _ => None,
    }
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

/// Gives way to another default class, or takes the place back when that is gone.
pub(crate) async fn set_default(client: &kube::Client, default: bool) -> Result<(), kube::Error> {
    let api: Api<IngressClass> = Api::all(client.clone());
    let gave_way = (!default).then_some("true");
    let patch =
        json!({"metadata": {"annotations": {DEFAULT: default.to_string(), GAVE_WAY: gave_way}}});
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
    }

    #[test]
    fn another_default_goes_before_ours() {
        let mut gave_way = IngressClass::clone(&class("coxswain", CONTROLLER, false));
        gave_way
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(GAVE_WAY.into(), "true".into());
        let (ours, gave_way) = (class("coxswain", CONTROLLER, true), Arc::new(gave_way));
        let chosen = class("coxswain", CONTROLLER, false);
        let (default, other) = (class("nginx", "x", true), class("nginx", "x", false));
        for (case, classes, expected) in [
            ("ours alone", vec![&ours, &other], None),
            ("another one appears", vec![&ours, &default], Some(false)),
            ("it is the default now", vec![&gave_way, &default], None),
            ("it is gone", vec![&gave_way, &other], Some(true)),
            ("the user wanted none", vec![&chosen, &other], None),
            ("ours is gone", vec![&default], None),
        ] {
            let classes: Vec<_> = classes.into_iter().cloned().collect();
            assert_eq!(default_due(&classes), expected, "{case}");
        }
    }
}
