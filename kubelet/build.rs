//! Compiles the messages of CSI drivers, device plugins, drivers of dynamic resources, plugin registration and pod resources with the protoc of the crate `protoc-bin-vendored`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut prost = tonic_prost_build::Config::new();
    prost.protoc_executable(protoc_bin_vendored::protoc_bin_path()?);
    let files = [
        "proto/csi.proto",
        "proto/registration.proto",
        "proto/deviceplugin.proto",
        "proto/podresources.proto",
        "proto/dra.proto",
        "proto/dra_health.proto",
    ];
    tonic_prost_build::configure().compile_with_config(prost, &files, &["proto"])?;
    Ok(())
}
