//! Compiles `api.proto` with the protoc that the crate `protoc-bin-vendored` carries: nothing has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=api.proto");
    let mut prost = tonic_prost_build::Config::new();
    prost.protoc_executable(protoc_bin_vendored::protoc_bin_path()?);
    tonic_prost_build::configure()
        .build_transport(true)
        .compile_with_config(prost, &["api.proto"], &["."])?;
    Ok(())
}
