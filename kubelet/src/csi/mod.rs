//! Volumes of CSI drivers: which drivers are on the node, and the calls that bring a volume into a Pod's folder and out again.
//!
//! | module | holds |
//! | --- | --- |
//! | `plugins` | drivers make themselves known in `plugins_registry`; the Node and its CSINode tell of them |
//! | `calls` | gRPC over a driver's socket |
//! | `plan` | what is said to a driver, from the API's objects; pure |
//! | `attached` | waiting for the attacher, and telling which attached volumes are in use |
//! | `grow` | volumes that were made larger |
//! | `mount` | staging and publishing, and the way back from what was written down beside the mount |

mod attached;
mod calls;
mod grow;
mod mount;
mod plan;
pub(crate) mod plugins;

#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod proto {
    //! Messages and services of drivers.
    tonic::include_proto!("csi.v1");
}

#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod registration {
    //! Messages and service by which plugins register.
    tonic::include_proto!("pluginregistration");
}

pub(crate) use calls::{channel, connect_until, stream_channel, text};
pub(crate) use mount::Occasion;
pub(crate) use plan::Wanted;

use crate::files;
use calls::Driver;
use cox_client::Informer;
use k8s_openapi::api::core::v1::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

/// The drivers of a node, and the volumes that they have mounted.
#[derive(Debug)]
pub struct Csi {
    /// `<data_dir>/plugins/kubernetes.io/csi`: where volumes are staged.
    staging: PathBuf,
    /// `<data_dir>/pods`.
    pods: PathBuf,
    node: String,
    /// The Node object: it names what is attached.
    node_object: Informer<Node>,
    /// Attached volumes that are in use here, as the Node names them.
    in_use: tokio::sync::watch::Sender<BTreeSet<String>>,
    drivers: Mutex<BTreeMap<String, Driver>>,
    /// Of notes about volumes.
    pub(crate) writes: files::Writes,
    /// One volume at a time is staged or unstaged.
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl Csi {
    /// No driver is known yet.
    #[must_use]
    pub fn new(data_dir: &std::path::Path, node: &str, node_object: Informer<Node>) -> Arc<Self> {
        let csi = Self {
            node_object,
            in_use: tokio::sync::watch::Sender::new(BTreeSet::new()),
            staging: data_dir.join("plugins/kubernetes.io/csi"),
            pods: data_dir.join("pods"),
            node: node.to_owned(),
            drivers: Mutex::default(),
            writes: files::Writes::default(),
            one_at_a_time: tokio::sync::Mutex::default(),
        };
        csi.see_what_is_in_use();
        Arc::new(csi)
    }

    fn drivers(&self) -> MutexGuard<'_, BTreeMap<String, Driver>> {
        self.drivers
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// A driver by its name, or upstream's sentence that there is none.
    fn driver(&self, name: &str) -> Result<Driver, String> {
        self.drivers().get(name).cloned().ok_or_else(|| {
            format!("driver name {name} not found in the list of registered CSI drivers")
        })
    }
}
