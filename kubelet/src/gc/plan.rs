//! Which images go. Pure.

use cox_cri::v1;
use jiff::{SignedDuration, Timestamp};
use std::collections::{HashMap, HashSet};

/// What is remembered of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) first_seen: Timestamp,
    pub(super) last_used: Timestamp,
}

/// How many bytes have to be freed: above `high` percent of use, down to `low`.
pub(super) fn to_free(capacity: u64, available: u64, high: u8, low: u8) -> u64 {
    if capacity == 0 {
        return 0;
    }
    let used = capacity.saturating_sub(available);
    let share = |percent: u8| {
        u64::try_from(u128::from(capacity) * u128::from(percent) / 100).unwrap_or(u64::MAX)
    };
    if used < share(high) {
        0
    } else {
        used.saturating_sub(share(low))
    }
}

/// The images that containers have, dead ones too: a restart would want them back.
fn used(images: &[v1::Image], containers: &[v1::Container]) -> HashSet<String> {
    let names: HashSet<&str> = containers
        .iter()
        .flat_map(|container| {
            let spec = container
                .image
                .as_ref()
                .map_or("", |spec| spec.image.as_str());
            [
                container.image_ref.as_str(),
                container.image_id.as_str(),
                spec,
            ]
        })
        .filter(|name| !name.is_empty())
        .collect();
    let is_used = |image: &&v1::Image| {
        names.contains(image.id.as_str())
            || image
                .repo_tags
                .iter()
                .chain(&image.repo_digests)
                .any(|name| names.contains(name.as_str()))
    };
    images
        .iter()
        .filter(is_used)
        .map(|image| image.id.clone())
        .collect()
}

/// Takes in what there is now.
pub(super) fn remember(
    known: &mut HashMap<String, Known>,
    images: &[v1::Image],
    containers: &[v1::Container],
    now: Timestamp,
) {
    let used = used(images, containers);
    known.retain(|id, _| images.iter().any(|image| image.id == *id));
    for image in images {
        let entry = known.entry(image.id.clone()).or_insert(Known {
            first_seen: now,
            last_used: Timestamp::UNIX_EPOCH,
        });
        if used.contains(&image.id) {
            entry.last_used = now;
        }
    }
}

/// The images to remove, with their sizes, until enough is freed: those used longest ago first.
pub(super) fn victims(
    known: &HashMap<String, Known>,
    images: &[v1::Image],
    containers: &[v1::Container],
    wanted: u64,
    age_min: SignedDuration,
    now: Timestamp,
) -> Vec<(String, u64)> {
    let used = used(images, containers);
    let mut candidates: Vec<(&v1::Image, Known)> = images
        .iter()
        .filter(|image| !image.pinned && !used.contains(&image.id))
        .filter_map(|image| Some((image, *known.get(&image.id)?)))
        .filter(|(_, known)| now.duration_since(known.first_seen) >= age_min)
        .collect();
    candidates.sort_by_key(|(image, known)| (known.last_used, known.first_seen, image.id.clone()));
    let mut freed = 0;
    let mut chosen = Vec::new();
    for (image, _) in candidates {
        if freed >= wanted {
            break;
        }
        freed += image.size;
        chosen.push((image.id.clone(), image.size));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, size: u64) -> v1::Image {
        v1::Image {
            id: id.into(),
            repo_tags: vec![format!("{id}:tag")],
            size,
            ..v1::Image::default()
        }
    }

    fn container(image: &str) -> v1::Container {
        v1::Container {
            image_ref: image.into(),
            ..v1::Container::default()
        }
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    #[test]
    fn space_table() {
        assert_eq!(to_free(100, 20, 85, 80), 0);
        assert_eq!(to_free(100, 15, 85, 80), 5);
        assert_eq!(to_free(100, 0, 85, 80), 20);
        assert_eq!(to_free(0, 0, 85, 80), 0);
    }

    #[test]
    fn the_longest_unused_go_first_and_only_as_many_as_needed() {
        let images = [
            image("old", 10),
            image("new", 10),
            image("used", 10),
            v1::Image {
                pinned: true,
                ..image("pinned", 10)
            },
        ];
        let mut known = HashMap::new();
        remember(&mut known, &images[..1], &[container("old")], at(0));
        remember(
            &mut known,
            &images,
            &[container("new"), container("used:tag")],
            at(100),
        );
        let containers = [container("used:tag")];
        let chosen = |wanted, age| {
            let chosen = victims(
                &known,
                &images,
                &containers,
                wanted,
                SignedDuration::from_secs(age),
                at(110),
            );
            chosen
                .into_iter()
                .map(|(id, _)| id)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(chosen(5, 0), "old");
        assert_eq!(chosen(u64::MAX, 0), "old new");
        assert_eq!(chosen(u64::MAX, 60), "old", "the new one is too young");
        assert_eq!(chosen(0, 0), "");
    }
}
