//! Labels and annotations that upstream's kubelet puts on sandboxes and containers, and that we find our own by.

/// Label: the Pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the Pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the Pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: the container's name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: identity of the container's definition.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// Annotation: the attempt number.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: where the container may leave its last words.
pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: whether the log stands in for missing last words.
pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: the container's ports as JSON; a wasi:http component listens on the first one.
pub const PORTS: &str = "io.kubernetes.container.ports";
/// Annotation: the Pod's grace period.
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Key of the verbose image status that says what an image holds: `wasm` or `oci`.
pub const IMAGE_KIND: &str = "coxswain.dev/image-kind";
