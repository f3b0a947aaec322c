//! Merges the cluster's context into the user's kubeconfig, touching nothing but the entries named `cox`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::paths::write_private;

/// Name of the context, the cluster and the user in the kubeconfig.
pub(crate) const CONTEXT: &str = "cox";

/// Where kubectl looks: the first file of KUBECONFIG, else ~/.kube/config.
pub(crate) fn user_path() -> Option<PathBuf> {
    if let Some(list) = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty()) {
        return std::env::split_paths(&list).find(|path| !path.as_os_str().is_empty());
    }
    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"))
}

/// Puts the `cox` entries of `ours` into the file at `path` and makes its context the current one.
///
/// A file that cannot be read as a kubeconfig is left as it is, with an error that says so.
pub(crate) fn merge_into(path: &Path, ours: &str) -> Result<()> {
    let existing = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(err) => return Err(err).with_context(|| format!("{} cannot be read", path.display())),
    };
    let merged =
        merged(&existing, ours).with_context(|| format!("{} was left alone", path.display()))?;
    if merged == existing {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    write_private(path, &merged)
}

/// The text of `existing` with the entries of `ours` in it.
fn merged(existing: &str, ours: &str) -> Result<String> {
    let ours: Value =
        serde_saphyr::from_str(ours).context("the cluster's own kubeconfig does not parse")?;
    if existing.trim().is_empty() {
        return Ok(serde_saphyr::to_string(&ours)?);
    }
    let mut config: Value = serde_saphyr::from_str(existing)
        .context("it is not a kubeconfig: it does not parse as YAML")?;
    let Some(fields) = config.as_object_mut() else {
        bail!("it is not a kubeconfig: it holds no mapping")
    };
    for list in ["clusters", "users", "contexts"] {
        for entry in ours[list].as_array().into_iter().flatten() {
            upsert_named(fields, list, entry)?;
        }
    }
    fields.insert("current-context".into(), json!(CONTEXT));
    fields.entry("apiVersion").or_insert_with(|| json!("v1"));
    fields.entry("kind").or_insert_with(|| json!("Config"));
    Ok(serde_saphyr::to_string(&config)?)
}

fn upsert_named(config: &mut Map<String, Value>, list: &str, entry: &Value) -> Result<()> {
    let entries = config.entry(list).or_insert_with(|| json!([]));
    if entries.is_null() {
        *entries = json!([]);
    }
    let Some(entries) = entries.as_array_mut() else {
        bail!("it is not a kubeconfig: {list} is not a list")
    };
    match entries.iter_mut().find(|old| old["name"] == entry["name"]) {
        Some(old) => *old = entry.clone(),
        None => entries.push(entry.clone()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "apiVersion: v1\nkind: Config\ncurrent-context: cox\nclusters: [{name: cox, cluster: {server: 'https://127.0.0.1:6443'}}]\n\
                        users: [{name: cox, user: {token: new}}]\ncontexts: [{name: cox, context: {cluster: cox, user: cox}}]\n";

    fn merge(existing: &str) -> Value {
        serde_saphyr::from_str(&merged(existing, OURS).unwrap()).unwrap()
    }

    #[test]
    fn an_empty_file_becomes_ours() {
        assert_eq!(merge("")["current-context"], "cox");
        assert_eq!(
            merge("\n")["clusters"][0]["cluster"]["server"],
            "https://127.0.0.1:6443"
        );
    }

    #[test]
    fn other_clusters_stay_and_old_entries_of_ours_are_replaced() {
        let config = merge(
            "apiVersion: v1\nkind: Config\npreferences: {colors: true}\nclusters:\n- {name: prod, cluster: {server: 'https://prod'}}\nusers:\n\
             - {name: cox, user: {token: old}}\n- {name: prod, user: {token: p}}\ncontexts: null\ncurrent-context: prod\n",
        );
        assert_eq!(config["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(config["users"][0]["user"]["token"], "new");
        assert_eq!(config["users"][1]["user"]["token"], "p");
        assert_eq!(config["contexts"][0]["name"], "cox");
        assert_eq!(config["preferences"]["colors"], true);
        assert_eq!(config["current-context"], "cox");
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        for text in ["- a list\n", "clusters: {a: b}\n", "{ not yaml"] {
            std::fs::write(&path, text).unwrap();
            let refusal = format!("{:#}", merge_into(&path, OURS).unwrap_err());
            assert!(
                refusal.contains("was left alone: it is not a kubeconfig"),
                "{refusal}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn merging_twice_changes_nothing() {
        let once = merged("", OURS).unwrap();
        assert_eq!(merged(&once, OURS).unwrap(), once);
    }
}
