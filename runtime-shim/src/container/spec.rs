//! From CRI's container configuration and the image to what the guest gets: arguments, environment, port. Pure.

use std::collections::HashMap;
use std::path::PathBuf;

use cox_cri::v1::ContainerConfig;
use serde::Deserialize;

use crate::engine::Preopen;
use crate::error::VerbError;
use crate::images::{Digest, Image};

/// Where a wasi:http component listens when its container names no port.
const HTTP_PORT_DEFAULT: u16 = 8080;
/// Set by our kubelet.
const HTTP_PORT_ANNOTATION: &str = "coxswain.dev/http-port";
/// On a Pod: mount paths, separated by commas, whose files are its containers' wasi:config.
const CONFIG_ANNOTATION: &str = "coxswain.dev/wasi-config";
/// Set by upstream's kubelet: the container's ports as JSON.
const PORTS_ANNOTATION: &str = "io.kubernetes.container.ports";

/// Which Wasm file runs, with what `argv`. The Pod's command goes before the image's entrypoint, its args before the image's cmd.
pub(crate) fn program(
    image: &Image,
    command: &[String],
    args: &[String],
) -> Result<(Digest, Vec<String>), VerbError> {
    let mut argv = if command.is_empty() {
        image.config.entrypoint.clone()
    } else {
        command.to_vec()
    };
    if !args.is_empty() {
        argv.extend_from_slice(args);
    } else if command.is_empty() {
        argv.extend_from_slice(&image.config.cmd);
    }
    if image.files.is_empty() {
        // The image is its program, so a command names it and the arguments alone follow the image's name.
        if command.is_empty() && image.config.entrypoint.is_empty() {
            argv.insert(0, image.program_name.clone());
        }
        return Ok((image.entry.clone(), argv));
    }
    let program = argv.first().ok_or_else(|| {
        VerbError::Invalid(format!(
            "{} has no entrypoint and the container no command",
            image.name()
        ))
    })?;
    match image.file(program) {
        Some(digest) => Ok((digest.clone(), argv)),
        None => Err(VerbError::Start(format!(
            "{program:?} is not a Wasm file in {}",
            image.name()
        ))),
    }
}

/// The environment: the image's, overridden by the container's; each name once.
pub(crate) fn environment(
    image: &Image,
    config: &ContainerConfig,
    hostname: &str,
) -> Vec<(String, String)> {
    let from_image = image
        .config
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='));
    let host = (!hostname.is_empty()).then_some(("HOSTNAME", hostname));
    let mut env: Vec<(String, String)> = from_image
        .chain(host)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    env.extend(config.envs.iter().map(|pair| {
        (
            pair.key.clone(),
            String::from_utf8_lossy(&pair.value).into_owned(),
        )
    }));
    let last: HashMap<String, usize> = env
        .iter()
        .enumerate()
        .map(|(at, (name, _))| (name.clone(), at))
        .collect();
    let mut at = 0;
    env.retain(|(name, _)| {
        at += 1;
        last[name] == at - 1
    });
    env
}

/// What the container declares, each name once, the last one as the kubelet means it.
pub(crate) fn declared(config: &ContainerConfig) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    for pair in &config.envs {
        let value = String::from_utf8_lossy(&pair.value).into_owned();
        match env.iter_mut().find(|(name, _)| *name == pair.key) {
            Some((_, known)) => *known = value,
            None => env.push((pair.key.clone(), value)),
        }
    }
    env
}

/// The folders of wasi:config: those of the named mounts that this container has.
pub(crate) fn config_folders(
    annotations: &HashMap<String, String>,
    preopens: &[Preopen],
) -> Vec<PathBuf> {
    let named = annotations
        .get(CONFIG_ANNOTATION)
        .map_or("", String::as_str);
    let paths = named
        .split(',')
        .map(|path| path.trim().trim_end_matches('/'));
    paths
        .filter_map(|path| {
            let mount = preopens
                .iter()
                .find(|preopen| preopen.guest.trim_end_matches('/') == path);
            mount.map(|preopen| preopen.host.clone())
        })
        .collect()
}

/// The working folder that the guest is told.
pub(crate) fn working_dir(image: &Image, config: &ContainerConfig) -> Option<String> {
    [&config.working_dir, &image.config.working_dir]
        .into_iter()
        .find(|dir| !dir.is_empty())
        .cloned()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    container_port: u16,
    #[serde(default)]
    protocol: String,
}

/// The port a wasi:http component listens on: the container's first TCP port.
pub(crate) fn http_port(annotations: &HashMap<String, String>) -> Result<u16, VerbError> {
    if let Some(port) = annotations.get(HTTP_PORT_ANNOTATION) {
        return port.parse().map_err(|_| {
            VerbError::Invalid(format!(
                "annotation {HTTP_PORT_ANNOTATION}: {port:?} is not a port"
            ))
        });
    }
    let Some(ports) = annotations.get(PORTS_ANNOTATION) else {
        return Ok(HTTP_PORT_DEFAULT);
    };
    let ports: Vec<ContainerPort> = serde_json::from_str(ports)
        .map_err(|err| VerbError::Invalid(format!("annotation {PORTS_ANNOTATION}: {err}")))?;
    let tcp = ports
        .iter()
        .find(|port| matches!(port.protocol.as_str(), "" | "TCP"));
    Ok(tcp.map_or(HTTP_PORT_DEFAULT, |port| port.container_port))
}

#[cfg(test)]
mod tests {
    use cox_cri::v1::KeyValue;

    use super::*;

    fn image(files: &[&str], entrypoint: &[&str], cmd: &[&str]) -> Image {
        let strings = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        Image {
            id: Digest::of(b"image"),
            tags: vec!["cox.local/app:latest".into()],
            digests: Vec::new(),
            entry: Digest::of(b"entry"),
            program_name: "app".into(),
            files: files
                .iter()
                .map(|file| ((*file).to_owned(), Digest::of(file.as_bytes())))
                .collect(),
            config: crate::images::ImageConfig {
                entrypoint: strings(entrypoint),
                cmd: strings(cmd),
                env: strings(&["PATH=/bin", "A=image"]),
                working_dir: String::new(),
            },
            size: 0,
            pinned: false,
        }
    }

    #[test]
    fn arguments() {
        let strings = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let artifact = image(&[], &[], &[]);
        let packed = image(&["/app.wasm", "/tool.wasm"], &["/app.wasm"], &["serve"]);
        let cases = [
            (
                "an artifact is called by its name",
                &artifact,
                "",
                "",
                "app",
            ),
            ("args follow the name", &artifact, "", "-v x", "app -v x"),
            ("a command replaces it", &artifact, "other", "x", "other x"),
            ("entrypoint and cmd", &packed, "", "", "/app.wasm serve"),
            ("args replace cmd", &packed, "", "check", "/app.wasm check"),
            ("a command drops cmd", &packed, "tool.wasm", "", "tool.wasm"),
        ];
        for (case, image, command, args, expected) in cases {
            let (_, argv) = program(image, &strings(command), &strings(args)).unwrap();
            assert_eq!(argv, strings(expected), "case: {case}");
        }
        assert_eq!(
            program(&packed, &strings("tool.wasm"), &[]).unwrap().0,
            Digest::of(b"/tool.wasm")
        );
        let err = program(&packed, &strings("/bin/sh -c x"), &[])
            .unwrap_err()
            .to_string();
        assert_eq!(
            err,
            "\"/bin/sh\" is not a Wasm file in cox.local/app:latest"
        );
    }

    #[test]
    fn the_pods_environment_wins() {
        let pair = |key: &str, value: &str| KeyValue {
            key: key.into(),
            value: value.as_bytes().to_vec(),
        };
        let config = ContainerConfig {
            envs: vec![pair("A", "pod"), pair("B", "1"), pair("B", "2")],
            ..ContainerConfig::default()
        };
        let env = environment(&image(&[], &[], &[]), &config, "pod-0");
        let text: Vec<String> = env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(text, ["PATH=/bin", "HOSTNAME=pod-0", "A=pod", "B=2"]);
    }

    #[test]
    fn configuration_comes_from_the_named_mounts_that_a_container_has() {
        let preopen = |guest: &str, host: &str| Preopen {
            host: host.into(),
            guest: guest.into(),
            readonly: true,
        };
        let preopens = [
            preopen("/etc/app/", "/host/app"),
            preopen("/data", "/host/data"),
        ];
        let named = |value: &str| HashMap::from([(CONFIG_ANNOTATION.to_owned(), value.to_owned())]);
        let folders = |value: &str| config_folders(&named(value), &preopens);
        assert_eq!(
            folders("/data, /etc/app,/other"),
            [PathBuf::from("/host/data"), "/host/app".into()]
        );
        assert!(folders("").is_empty() && config_folders(&HashMap::new(), &preopens).is_empty());
    }

    #[test]
    fn the_http_port() {
        let with = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(http_port(&HashMap::new()).unwrap(), 8080);
        assert_eq!(http_port(&with(HTTP_PORT_ANNOTATION, "80")).unwrap(), 80);
        let ports = r#"[{"name":"dns","containerPort":53,"protocol":"UDP"},{"containerPort":3000,"protocol":"TCP"}]"#;
        assert_eq!(http_port(&with(PORTS_ANNOTATION, ports)).unwrap(), 3000);
        assert!(http_port(&with(HTTP_PORT_ANNOTATION, "http")).is_err());
    }
}
