//! What a manifest is: which of the ways to ship Wasm in a registry, or an image for Linux. Pure.

use oci_client::manifest::{ImageIndexEntry, OciDescriptor, OciImageManifest};
use serde::Deserialize;

use super::ImageConfig;

const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const SPIN_CONFIG: &str = "application/vnd.fermyon.spin.application.v1+config";
/// Layers that are one Wasm file, neither packed nor compressed.
const WASM_LAYERS: [&str; 3] = [
    "application/wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
];
/// Annotations by which other runtimes are told that a Linux-looking image holds Wasm.
const VARIANT_ANNOTATIONS: [&str; 2] = ["module.wasm.image/variant", "run.oci.handler"];

/// How to get the program out of an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The layer with this position is the Wasm file.
    Raw(usize),
    /// A file system of tar layers, with a Wasm file at the entrypoint.
    Files(ImageConfig),
    /// An image for Linux.
    Oci,
}

/// Why a manifest that says it holds Wasm cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FormatError {
    #[error("it is a Spin application: it needs Spin's own host, not only WASI")]
    Spin,
    #[error(
        "it has {0} Wasm layers, of which a runtime could run only one; push one component per image"
    )]
    Layers(usize),
    #[error("its configuration is not valid: {0}")]
    Config(String),
    #[error("it has no entrypoint and no command, so none of its files can be chosen")]
    NoEntrypoint,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ConfigFile {
    os: String,
    architecture: String,
    config: Option<RunConfig>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
}

fn is_wasm_layer(layer: &OciDescriptor) -> bool {
    WASM_LAYERS.contains(&layer.media_type.as_str())
}

/// Whether the configuration must be read to judge the manifest.
pub(super) fn needs_config(manifest: &OciImageManifest) -> bool {
    manifest.config.media_type != WASM_CONFIG && !manifest.layers.iter().any(is_wasm_layer)
}

/// Judges a manifest: by the config's media type, then the layers', then platform, then annotations, then the entrypoint's name.
/// `config` is its configuration, where [`needs_config`] asks for it.
pub(super) fn shape(
    manifest: &OciImageManifest,
    config: Option<&[u8]>,
) -> Result<Shape, FormatError> {
    if manifest
        .layers
        .iter()
        .chain([&manifest.config])
        .any(|part| part.media_type == SPIN_CONFIG)
    {
        return Err(FormatError::Spin);
    }
    let wasm_layers = manifest
        .layers
        .iter()
        .filter(|layer| is_wasm_layer(layer))
        .count();
    if manifest.config.media_type == WASM_CONFIG || wasm_layers > 0 {
        // An artifact's first layer is the program; more than one Wasm layer is reserved by its specification.
        return match (wasm_layers, manifest.layers.len()) {
            (1, _) => Ok(Shape::Raw(
                manifest
                    .layers
                    .iter()
                    .position(is_wasm_layer)
                    .expect("counted just now"),
            )),
            (0, 1) => Ok(Shape::Raw(0)),
            (_, layers) => Err(FormatError::Layers(layers)),
        };
    }
    let file: ConfigFile = match config {
        Some(bytes) => {
            serde_json::from_slice(bytes).map_err(|err| FormatError::Config(err.to_string()))?
        }
        None => ConfigFile::default(),
    };
    let run = file.config.unwrap_or_default();
    let config = ImageConfig {
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        working_dir: run.working_dir.unwrap_or_default(),
    };
    let program = config.entrypoint.first().or(config.cmd.first());
    let annotated = || {
        let annotations = manifest.annotations.iter().flatten();
        annotations
            .into_iter()
            .any(|(key, value)| VARIANT_ANNOTATIONS.contains(&key.as_str()) && !value.is_empty())
    };
    let named = || program.is_some_and(|program| program.ends_with(".wasm"));
    if is_wasm_platform(&file.os, &file.architecture) || annotated() || named() {
        return if program.is_some() {
            Ok(Shape::Files(config))
        } else {
            Err(FormatError::NoEntrypoint)
        };
    }
    Ok(Shape::Oci)
}

fn is_wasm_platform(os: &str, architecture: &str) -> bool {
    matches!(
        os.to_ascii_lowercase().as_str(),
        "wasi" | "wasip1" | "wasip2"
    ) || matches!(
        architecture.to_ascii_lowercase().as_str(),
        "wasm" | "wasm32"
    )
}

/// Whether images for `architecture`, as Go names it, run on this machine.
pub(crate) fn is_host_architecture(architecture: &str) -> bool {
    let here = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    architecture.eq_ignore_ascii_case(here)
}

/// Chooses from an index: Wasm first (WASI 0.2 before preview 1), else the Linux image, which the caller then names as such.
pub(super) fn choose(entries: &[ImageIndexEntry]) -> Option<String> {
    let rank = |entry: &ImageIndexEntry| {
        let platform = entry.platform.as_ref()?;
        let (os, architecture) = (platform.os.to_string(), platform.architecture.to_string());
        match (
            is_wasm_platform(&os, &architecture),
            os.to_ascii_lowercase().as_str(),
        ) {
            (true, "wasip2") => Some(0),
            (true, _) => Some(1),
            (false, "linux") if is_host_architecture(&architecture) => Some(2),
            (false, _) => None,
        }
    };
    let ranked = entries
        .iter()
        .filter_map(|entry| Some((rank(entry)?, entry)));
    ranked
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, entry)| entry.digest.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(config: &str, layers: &[&str]) -> OciImageManifest {
        let part = |media_type: &&str| OciDescriptor {
            media_type: (*media_type).to_owned(),
            ..OciDescriptor::default()
        };
        OciImageManifest {
            config: part(&config),
            layers: layers.iter().map(part).collect(),
            ..OciImageManifest::default()
        }
    }

    const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const TAR: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    /// Name, config media type, layer media types, configuration, verdict.
    type Case<'a> = (
        &'a str,
        &'a str,
        &'a [&'a str],
        &'a str,
        Result<Shape, FormatError>,
    );

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn every_known_way_to_ship_wasm() {
        let at = |entry: &str| ImageConfig {
            entrypoint: vec![entry.into()],
            ..ImageConfig::default()
        };
        let cases: [Case<'_>; 10] = [
            (
                "CNCF artifact",
                WASM_CONFIG,
                &["application/wasm"],
                "",
                Ok(Shape::Raw(0)),
            ),
            (
                "artifact with two layers",
                WASM_CONFIG,
                &["application/wasm", "application/wasm"],
                "",
                Err(FormatError::Layers(2)),
            ),
            (
                "runwasi",
                OCI_CONFIG,
                &[WASM_LAYERS[1]],
                "",
                Ok(Shape::Raw(0)),
            ),
            (
                "oras",
                "application/vnd.oci.empty.v1+json",
                &["text/plain", "application/wasm"],
                "",
                Ok(Shape::Raw(1)),
            ),
            (
                "spin",
                OCI_CONFIG,
                &[WASM_LAYERS[2], SPIN_CONFIG],
                "",
                Err(FormatError::Spin),
            ),
            (
                "buildx wasi/wasm",
                OCI_CONFIG,
                &[TAR],
                r#"{"os":"wasi","architecture":"wasm","config":{"Entrypoint":["/app.wasm"]}}"#,
                Ok(Shape::Files(at("/app.wasm"))),
            ),
            (
                "wasi without entrypoint",
                OCI_CONFIG,
                &[TAR],
                r#"{"os":"wasi","architecture":"wasm"}"#,
                Err(FormatError::NoEntrypoint),
            ),
            (
                "a .wasm in a Linux image",
                OCI_CONFIG,
                &[TAR],
                r#"{"os":"linux","architecture":"amd64","config":{"Entrypoint":["/app.wasm"]}}"#,
                Ok(Shape::Files(at("/app.wasm"))),
            ),
            (
                "nginx",
                OCI_CONFIG,
                &[TAR],
                r#"{"os":"linux","architecture":"amd64","config":{"Cmd":["nginx"],"Env":null}}"#,
                Ok(Shape::Oci),
            ),
            (
                "broken config",
                OCI_CONFIG,
                &[TAR],
                "{",
                Err(FormatError::Config(
                    "EOF while parsing an object at line 1 column 1".into(),
                )),
            ),
        ];
        for (case, config_type, layers, config, expected) in cases {
            let manifest = manifest(config_type, layers);
            let config = needs_config(&manifest).then_some(config.as_bytes());
            assert_eq!(shape(&manifest, config), expected, "case: {case}");
        }
    }

    #[test]
    fn an_index_gives_its_wasm_image() {
        let entries: Vec<ImageIndexEntry> = serde_json::from_str(
            r#"[{"mediaType":"m","digest":"l","size":1,"platform":{"os":"linux","architecture":"amd64"}},
                {"mediaType":"m","digest":"1","size":1,"platform":{"os":"wasi","architecture":"wasm"}},
                {"mediaType":"m","digest":"2","size":1,"platform":{"os":"wasip2","architecture":"wasm"}},
                {"mediaType":"m","digest":"u","size":1}]"#,
        )
        .unwrap();
        assert_eq!(choose(&entries).as_deref(), Some("2"));
        assert_eq!(choose(&entries[..2]).as_deref(), Some("1"));
        assert_eq!(choose(&entries[..1]).as_deref(), Some("l"));
        assert_eq!(choose(&entries[3..]), None);
    }
}
