//! The name of a template: a short hash of its contents that is a valid label value and part of a name. Pure.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use sha2::{Digest, Sha256};

/// The label that keeps the pods of one template apart from those of another.
pub(super) const LABEL: &str = "pod-template-hash";

/// No vowels and nothing that looks like something else: a hash never spells a word.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const LEN: usize = 10;

/// Depends on the template and on how often this hash collided before.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut hasher = Sha256::new();
    // Maps are sorted and fields come in one order, so equal templates have equal texts.
    let text =
        serde_json::to_vec(template).expect("a template that came as JSON can be written as JSON");
    hasher.update(text);
    hasher.update(collisions.to_be_bytes());
    let digest = hasher.finalize();
    digest
        .iter()
        .take(LEN)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}

/// Whether two templates describe the same pods; the hash label does not count.
pub(super) fn is_same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    without_hash(a) == without_hash(b)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template
        .metadata
        .as_mut()
        .and_then(|meta| meta.labels.as_mut())
    {
        labels.remove(LABEL);
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn template(labels: &[(&str, &str)]) -> PodTemplateSpec {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let metadata = ObjectMeta {
            labels: Some(labels),
            ..ObjectMeta::default()
        };
        PodTemplateSpec {
            metadata: Some(metadata),
            spec: None,
        }
    }

    #[test]
    fn equal_templates_have_equal_hashes_and_collisions_change_them() {
        let (a, b) = (
            template(&[("x", "1"), ("y", "2")]),
            template(&[("y", "2"), ("x", "1")]),
        );
        assert_eq!(template_hash(&a, 0), template_hash(&b, 0));
        assert_ne!(template_hash(&a, 0), template_hash(&a, 1));
        assert_ne!(
            template_hash(&a, 0),
            template_hash(&template(&[("x", "2")]), 0)
        );
        assert_eq!(template_hash(&a, 0).len(), 10);
    }

    #[test]
    fn the_hash_label_does_not_make_a_template_different() {
        assert!(is_same_template(
            &template(&[("x", "1")]),
            &template(&[("x", "1"), (LABEL, "abc")])
        ));
        assert!(!is_same_template(
            &template(&[("x", "1")]),
            &template(&[("x", "2"), (LABEL, "abc")])
        ));
    }
}
