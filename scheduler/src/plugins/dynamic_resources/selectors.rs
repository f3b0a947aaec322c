//! The selectors of classes and requests, compiled once for many Pods.

use std::collections::HashMap;
use std::sync::Arc;

use cox_api::cel::device::{Attribute, DeviceValue, Selector, SelectorError};
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute, DeviceSelector};
use parking_lot::Mutex;

/// A cluster has few classes and many claims that are alike; when there are more, all are compiled anew.
const COMPILED_MAX: usize = 64;

type Compiled = Arc<Result<Selector, SelectorError>>;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Selectors(Mutex<HashMap<String, Compiled>>);

impl Selectors {
    fn compiled(&self, source: &str) -> Compiled {
        let mut known = self.0.lock();
        if let Some(found) = known.get(source) {
            return Arc::clone(found);
        }
        if known.len() >= COMPILED_MAX {
            known.clear();
        }
        let compiled = Arc::new(Selector::compile(source));
        known.insert(source.to_owned(), Arc::clone(&compiled));
        compiled
    }

    /// Whether a driver's device meets them all.
    pub(super) fn all_match(
        &self,
        selectors: &[DeviceSelector],
        (driver, device): (&str, &Device),
    ) -> Result<bool, String> {
        if selectors.is_empty() {
            return Ok(true);
        }
        let runtime =
            |index: usize, why: String| format!("selector #{index}: CEL runtime error: {why}");
        let value = value(driver, device).map_err(|why| runtime(0, why))?;
        for (index, selector) in selectors.iter().enumerate() {
            let Some(cel) = &selector.cel else {
                return Err(format!(
                    "selector #{index}: CEL expression empty (unsupported selector type?)"
                ));
            };
            let matched = match &*self.compiled(&cel.expression) {
                Ok(selector) => selector.matches(&value),
                Err(error) => return Err(format!("selector #{index}: CEL compile error: {error}")),
            };
            if !matched.map_err(|why| runtime(index, why))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn value(driver: &str, device: &Device) -> Result<DeviceValue, String> {
    let attributes = device.attributes.iter().flatten();
    let capacity = device.capacity.iter().flatten();
    DeviceValue::new(
        driver,
        device.allow_multiple_allocations.unwrap_or(false),
        attributes.map(|(name, own)| (name.as_str(), attribute(own))),
        capacity.map(|(name, own)| (name.as_str(), own.value.0.as_str())),
    )
}

fn attribute(written: &DeviceAttribute) -> Attribute<'_> {
    let int = written.int.map(Attribute::Int);
    int.or(written.bool.map(Attribute::Bool))
        .or(written.string.as_deref().map(Attribute::Text))
        .or(written.version.as_deref().map(Attribute::Version))
        .unwrap_or(Attribute::Unknown)
}
