//! What devices of a claim must have in common, or must not. Pure.

use k8s_openapi::api::resource::v1::{Device, DeviceAttribute, DeviceConstraint};

use super::pools::DeviceId;

/// The names of a request and of its alternative.
pub(super) type Names<'a> = (&'a str, Option<&'a str>);

/// A device that was picked, and for which request.
pub(super) type Seen<'a> = (Names<'a>, (&'a DeviceId, &'a Device));

/// A constraint as it was written.
#[derive(Debug)]
pub(super) struct Constraint<'a> {
    /// Empty: all.
    requests: &'a [String],
    attribute: &'a str,
    wants_same: bool,
}

impl<'a> Constraint<'a> {
    /// None for a kind that is not known here.
    pub(super) fn of(written: &'a DeviceConstraint) -> Option<Self> {
        let (same, distinct) = (&written.match_attribute, &written.distinct_attribute);
        Some(Self {
            requests: written.requests.as_deref().unwrap_or_default(),
            attribute: same.as_ref().or(distinct.as_ref())?,
            wants_same: same.is_some(),
        })
    }

    fn is_about(&self, (request, alternative): Names<'_>) -> bool {
        let is_it = |own: &String| {
            own == request
                || alternative
                    .is_some_and(|alternative| own.split_once('/') == Some((request, alternative)))
        };
        self.requests.is_empty() || self.requests.iter().any(is_it)
    }

    /// Whether a device can be picked beside those that were.
    pub(super) fn holds(
        &self,
        names: Names<'_>,
        (id, device): (&DeviceId, &Device),
        with: &[Seen<'_>],
    ) -> bool {
        if !self.is_about(names) {
            return true;
        }
        let Some(own) = attribute(device, id, self.attribute) else {
            return false;
        };
        let mut others = with.iter().filter(|(names, _)| self.is_about(*names));
        others.all(|(_, (id, device))| {
            attribute(device, id, self.attribute).is_some_and(|other| match known(own) {
                true => (value(own) == value(other)) == self.wants_same,
                false => false,
            })
        })
    }
}

type Value<'a> = (Option<&'a str>, Option<i64>, Option<bool>, Option<&'a str>);

/// Values of different types differ.
fn value(attribute: &DeviceAttribute) -> Value<'_> {
    (
        attribute.string.as_deref(),
        attribute.int,
        attribute.bool,
        attribute.version.as_deref(),
    )
}

fn known(attribute: &DeviceAttribute) -> bool {
    value(attribute) != (None, None, None, None)
}

/// Names without a domain have that of the driver.
fn attribute<'a>(device: &'a Device, id: &DeviceId, name: &str) -> Option<&'a DeviceAttribute> {
    let all = device.attributes.as_ref()?;
    all.get(name).or_else(|| {
        let (domain, own) = name.split_once('/')?;
        (domain == id.driver).then(|| all.get(own))?
    })
}
