//! The status of a ResourceClaim: what was allocated, for whom it is reserved, and what drivers tell of the devices.

use super::FieldError;
use super::conditions;
use super::devices::{
    Requests, at_most, opaque, pool_name, raw_object, reference, request_names, requests_of,
};
use super::node::{Errors, Node};
use super::selector::node_selector;
use super::storage::driver_name;
use crate::names;
use std::collections::HashSet;
use std::net::IpAddr;

const RESERVED_MAX: usize = 256;
const RESULTS_MAX: usize = 32;
/// Those of the class and those of the claim.
const CONFIGS_MAX: usize = 64;
const CONDITIONS_MAX: usize = 8;
const BINDING_CONDITIONS_MAX: usize = 4;
const ADDRESSES_MAX: usize = 16;
const DATA_BYTES_MAX: usize = 10 * 1024;
const INTERFACE_NAME_BYTES_MAX: usize = 256;
const HARDWARE_ADDRESS_BYTES_MAX: usize = 128;

/// Rules of a ResourceClaim's status.
pub(super) fn claim_status(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (status, before) = (new.get("status"), old.get("status"));
    reserved_for(&status, errors);
    device_statuses(&status, errors);
    if status.len("reservedFor") > 0 {
        let list = status.get("reservedFor");
        if !status.has("allocation") {
            list.forbidden("may not be specified when `allocated` is not set", errors);
        } else if new.get("metadata").has("deletionTimestamp") {
            let known: Vec<_> = before.items("reservedFor").map(|user| user.value).collect();
            if status
                .items("reservedFor")
                .any(|user| !known.contains(&user.value))
            {
                let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
                list.forbidden(why, errors);
            }
        }
    }
    let Some(allocation) = status.some("allocation") else {
        return;
    };
    if before.has("allocation") {
        status.same(&before, "allocation", errors);
    } else {
        let claim = new.get("spec");
        let claim = claim.get("devices");
        self::allocation(&allocation, &request_names(&claim), errors);
    }
}

fn reserved_for(status: &Node<'_>, errors: &mut Errors) {
    if at_most(status, "reservedFor", RESERVED_MAX, errors) {
        return;
    }
    let mut taken = HashSet::new();
    for user in status.items("reservedFor") {
        for field in ["resource", "name", "uid"] {
            user.need(field, errors);
        }
        if !taken.insert(user.text("uid")) {
            errors.push(FieldError::duplicate(user.path(), user.text("uid")));
        }
    }
}

/// What tells one allocated device from another: driver, pool, device and, where several share it, the share.
fn identity(device: &Node<'_>) -> String {
    let mut id = ["driver", "pool", "device"]
        .map(|field| device.text(field))
        .join("/");
    if !device.text("shareID").is_empty() {
        id.push('/');
        id.push_str(device.text("shareID"));
    }
    id
}

fn device_statuses(status: &Node<'_>, errors: &mut Errors) {
    let allocation = status.get("allocation");
    let devices = allocation.get("devices");
    let allocated: HashSet<String> = devices
        .items("results")
        .map(|result| identity(&result))
        .collect();
    let mut taken = HashSet::new();
    for device in status.items("devices") {
        names_of(&device, errors);
        let id = identity(&device);
        if !allocated.contains(&id) {
            let why = "must be an allocated device in the claim";
            errors.push(FieldError::invalid(device.path(), id.as_str(), why));
        }
        at_most(&device, "conditions", CONDITIONS_MAX, errors);
        conditions::all(&device, errors);
        if let Some(data) = device.some("data") {
            raw_object(&data, DATA_BYTES_MAX, errors);
        }
        if let Some(network) = device.some("networkData") {
            network_data(&network, errors);
        }
        if !taken.insert(id.clone()) {
            errors.push(FieldError::duplicate(device.path(), id));
        }
    }
}

/// The names that say which device it is.
fn names_of(device: &Node<'_>, errors: &mut Errors) {
    driver_name(&device.get("driver"), errors);
    pool_name(&device.get("pool"), errors);
    device.get("device").check(names::dns_label, errors);
    if let Some(share) = device.some("shareID")
        && !is_uuid(share.as_text())
    {
        let why = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters";
        share.invalid(why, errors);
    }
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(hex))
}

fn network_data(network: &Node<'_>, errors: &mut Errors) {
    for (field, most) in [
        ("interfaceName", INTERFACE_NAME_BYTES_MAX),
        ("hardwareAddress", HARDWARE_ADDRESS_BYTES_MAX),
    ] {
        if network.text(field).len() > most {
            errors.push(FieldError::too_long(network.get(field).path(), most));
        }
    }
    if at_most(network, "ips", ADDRESSES_MAX, errors) {
        return;
    }
    for address in network.items("ips") {
        match canonical(address.as_text()) {
            None => address.invalid(
                "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)",
                errors,
            ),
            Some(right) if right != address.as_text() => {
                address.invalid(format!("must be in canonical form ({right:?})"), errors);
            }
            Some(_) => {}
        }
    }
    network.unique_texts("ips", errors);
}

/// An address with the length of its prefix, as it should be written. Zeros in front of numbers are read as Go's old parser does.
fn canonical(text: &str) -> Option<String> {
    let (address, bits) = text.split_once('/')?;
    let bits: u8 = bits.parse().ok()?;
    let plain: Vec<String> = address
        .split('.')
        .map(|part| match part.trim_start_matches('0') {
            "" if !part.is_empty() => "0".to_owned(),
            rest => rest.to_owned(),
        })
        .collect();
    let address = if address.contains(':') {
        address.to_owned()
    } else {
        plain.join(".")
    };
    let address: IpAddr = address.parse().ok()?;
    let (address, bits) = match address {
        IpAddr::V4(_) if bits > 32 => return None,
        IpAddr::V6(_) if bits > 128 => return None,
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) if bits > 32 => (IpAddr::V4(four), bits.saturating_sub(96)),
            Some(four) => (IpAddr::V4(four), bits),
            None => (address, bits),
        },
        IpAddr::V4(_) => (address, bits),
    };
    Some(format!("{address}/{bits}"))
}

/// Rules of a new allocation. One that is stored is never looked at again: rules have become tighter.
fn allocation(allocation: &Node<'_>, requests: &Requests<'_>, errors: &mut Errors) {
    let devices = allocation.get("devices");
    if !at_most(&devices, "results", RESULTS_MAX, errors) {
        for result in devices.items("results") {
            reference(&result.get("request"), requests, errors);
            names_of(&result, errors);
            binding_conditions(&result, errors);
        }
    }
    if !at_most(&devices, "config", CONFIGS_MAX, errors) {
        for config in devices.items("config") {
            config
                .get("source")
                .one_of(&["FromClaim", "FromClass"], errors);
            requests_of(&config, requests, errors);
            opaque(&config, errors);
        }
    }
    if let Some(selector) = allocation.some("nodeSelector") {
        node_selector(&selector, errors);
    }
}

/// Conditions that a device must have, and those that it must not have, before a Pod is bound: both or neither.
pub(super) fn binding_conditions(device: &Node<'_>, errors: &mut Errors) {
    let (wanted, failures) = ("bindingConditions", "bindingFailureConditions");
    for list in [wanted, failures] {
        if !at_most(device, list, BINDING_CONDITIONS_MAX, errors) {
            for condition in device.items(list) {
                condition.check(names::qualified_name, errors);
            }
        }
    }
    device.unique_texts(wanted, errors);
    device.unique_texts(failures, errors);
    let known: HashSet<&str> = device.items(wanted).map(|one| one.as_text()).collect();
    for failure in device.items(failures) {
        if known.contains(failure.as_text()) {
            failure.invalid(
                "bindingFailureConditions must not overlap with bindingConditions",
                errors,
            );
        }
    }
    match (device.len(wanted), device.len(failures)) {
        (0, 1..) => device.get(wanted).invalid(
            "bindingConditions are required to use bindingFailureConditions",
            errors,
        ),
        (1.., 0) => device.get(failures).invalid(
            "bindingFailureConditions are required to use bindingConditions",
            errors,
        ),
        _ => {}
    }
}
