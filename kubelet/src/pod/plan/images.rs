//! Images of containers that are about to start: when to ask for them, and what shows while they are not to be had.

use super::{Plan, PlanInput, Step, Waiting};
use crate::pod::history::{ImageState, Retry};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

/// How long `ErrImagePull` shows before it reads `ImagePullBackOff`.
pub(super) const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_secs(2);

/// Asks for the image if it is due; says why the container waits if it is not to be had. True when it is there.
pub(super) fn plan_image(input: PlanInput<'_>, container: &Container, plan: &mut Plan) -> bool {
    let image = container.image.as_deref().unwrap_or_default();
    match input
        .history
        .containers
        .get(&container.name)
        .map(|history| &history.image)
    {
        Some(ImageState::Resolved(_)) => true,
        None | Some(ImageState::Unknown) => {
            plan.steps.push(Step::ResolveImage {
                container: container.name.clone(),
            });
            false
        }
        Some(ImageState::Failed {
            reason,
            retry,
            failed_at,
        }) => {
            let (shown, until) = image_waiting(image, reason, retry, *failed_at, input.now);
            plan.waiting.insert(container.name.clone(), shown);
            if retry.is_due(input.now) {
                plan.steps.push(Step::ResolveImage {
                    container: container.name.clone(),
                });
            } else {
                plan.wake(until.min(retry.not_before));
            }
            false
        }
    }
}

/// What shows while an image is not to be had, and until when that is so.
pub(super) fn image_waiting(
    image: &str,
    reason: &str,
    retry: &Retry,
    failed_at: Timestamp,
    now: Timestamp,
) -> (Waiting, Timestamp) {
    let turns = failed_at
        .saturating_add(PULL_ERROR_SHOWN)
        .unwrap_or(Timestamp::MAX);
    if reason != "ErrImagePull" || now < turns {
        let waiting = Waiting {
            reason: reason.to_owned(),
            message: Some(retry.message.clone()),
        };
        return (
            waiting,
            if reason == "ErrImagePull" {
                turns
            } else {
                retry.not_before
            },
        );
    }
    let message = format!(
        "Back-off pulling image \"{image}\": ErrImagePull: {}",
        retry.message
    );
    (
        Waiting {
            reason: "ImagePullBackOff".into(),
            message: Some(message),
        },
        retry.not_before,
    )
}
