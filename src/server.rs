//! `cox server`: the control plane alone. Nodes join with `cox agent` and credentials made by `cox kubeconfig --node NAME`.

use anyhow::Result;

use crate::cli::ServerArgs;
use crate::components::Components;
use crate::console::Console;
use crate::control_plane::ControlPlane;
use crate::paths::Paths;
use crate::signals;

/// Runs until Ctrl-C, or until a component fails.
pub(crate) async fn run(args: ServerArgs) -> Result<()> {
    let paths = Paths::resolve(&args.common)?;
    let _lock = paths.take()?;
    let flags = (&args.listen, &args.ranges);
    let plane = ControlPlane::start(&paths, flags, cox_apiserver::SERVICE_CIDR, None).await?;
    let mut components = Components::new();
    plane.run_components(&mut components);
    Console::stdout().line(&format!(
        "✓ control plane is ready at {}, kubeconfig {}",
        plane.url,
        paths.kubeconfig().display()
    ));
    let outcome = tokio::select! {
        () = signals::terminated() => Ok(()),
        error = components.first_end() => Err(error),
    };
    components.stop().await;
    plane.stop().await;
    outcome
}
