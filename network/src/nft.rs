//! What the node's tables of nftables have in common: their content as data, the script that changes one content into another, and
//! the programs that are run.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What a table holds beside its fixed frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ruleset {
    /// Rules by chain.
    pub(crate) chains: BTreeMap<String, Vec<String>>,
    /// Declarations by set.
    pub(crate) sets: BTreeMap<String, String>,
    /// By map or set and key: the value, empty in sets.
    pub(crate) elements: BTreeMap<(Cow<'static, str>, String), String>,
}

/// What could not be done in the kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    #[error("{0} cannot be run: {1}")]
    Run(&'static str, #[source] io::Error),
    #[error("{0} refused: {1}")]
    Refused(&'static str, String),
}

pub(crate) fn line(text: &mut String, content: &str) {
    text.push_str(content);
    text.push('\n');
}

/// A short name that is the same in every process of this version.
pub(crate) fn short(what: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    format!("{:012x}", hasher.finish() >> 16)
}

/// The script that makes `new` of `old`: what is used by others goes last and comes first.
pub(crate) fn difference(table: &str, old: &Ruleset, new: &Ruleset) -> String {
    let mut text = String::new();
    for ((map, key), value) in &old.elements {
        if new.elements.get(&(map.clone(), key.clone())) != Some(value) {
            line(
                &mut text,
                &format!("delete element {table} {map} {{ {key} }}"),
            );
        }
    }
    for (set, declared) in &new.sets {
        if !old.sets.contains_key(set) {
            line(&mut text, &format!("add set {table} {set} {declared}"));
        }
    }
    for chain in new
        .chains
        .keys()
        .filter(|chain| !old.chains.contains_key(*chain))
    {
        line(&mut text, &format!("add chain {table} {chain}"));
    }
    for (chain, rules) in &old.chains {
        if new.chains.get(chain) != Some(rules) {
            line(&mut text, &format!("flush chain {table} {chain}"));
        }
    }
    for (chain, rules) in &new.chains {
        if old.chains.get(chain) == Some(rules) {
            continue;
        }
        for rule in rules {
            line(&mut text, &format!("add rule {table} {chain} {rule}"));
        }
    }
    for chain in old
        .chains
        .keys()
        .filter(|chain| !new.chains.contains_key(*chain))
    {
        line(&mut text, &format!("delete chain {table} {chain}"));
    }
    for set in old.sets.keys().filter(|set| !new.sets.contains_key(*set)) {
        line(&mut text, &format!("delete set {table} {set}"));
    }
    for ((map, key), value) in &new.elements {
        if old.elements.get(&(map.clone(), key.clone())) != Some(value) {
            let value = if value.is_empty() {
                String::new()
            } else {
                format!(" : {value}")
            };
            line(
                &mut text,
                &format!("add element {table} {map} {{ {key}{value} }}"),
            );
        }
    }
    text
}

/// The script that removes a table; none there is fine.
pub(crate) fn removal(table: &str) -> String {
    format!("add table {table}\ndelete table {table}\n")
}

/// Removes tables; none there is fine.
pub(crate) async fn remove(
    netns: Option<&str>,
    tables: impl IntoIterator<Item = String>,
) -> Result<(), NftError> {
    let script: Vec<String> = tables.into_iter().map(|table| removal(&table)).collect();
    run_in(netns, "nft", &["-f", "-"], &script.concat()).await
}

/// Whether a program is there to be run.
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .any(|dir| dir.join(name).is_file())
}

/// Runs a program with `input`.
pub(crate) async fn run(program: &'static str, args: &[&str], input: &str) -> Result<(), NftError> {
    output(program, args, input).await.map(drop)
}

/// The same in a network namespace of that name, where there is one.
pub(crate) async fn run_in(
    netns: Option<&str>,
    program: &'static str,
    args: &[&str],
    input: &str,
) -> Result<(), NftError> {
    output_in(netns, program, args, input).await.map(drop)
}

/// What a program prints in a network namespace of that name, where there is one.
pub(crate) async fn output_in(
    netns: Option<&str>,
    program: &'static str,
    args: &[&str],
    input: &str,
) -> Result<String, NftError> {
    let Some(name) = netns else {
        return output(program, args, input).await;
    };
    let inside = [&["netns", "exec", name, program], args].concat();
    output("ip", &inside, input).await
}

/// Runs a program with `input` and answers what it prints.
pub(crate) async fn output(
    program: &'static str,
    args: &[&str],
    input: &str,
) -> Result<String, NftError> {
    let output = finish(program, args, input).await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(1000).collect();
    Err(NftError::Refused(program, said))
}

/// What a program prints, whether or not it could do all that it was asked.
pub(crate) async fn partial_output(
    program: &'static str,
    args: &[&str],
    input: &str,
) -> Result<String, NftError> {
    let output = finish(program, args, input).await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn finish(
    program: &'static str,
    args: &[&str],
    input: &str,
) -> Result<std::process::Output, NftError> {
    let failed = |error| NftError::Run(program, error);
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    // Both at once: a program that prints while it reads must not wait for us.
    let feed = async move {
        match stdin {
            Some(mut stdin) => stdin.write_all(input.as_bytes()).await,
            None => Ok(()),
        }
    };
    let (fed, output) = tokio::join!(feed, child.wait_with_output());
    let output = output.map_err(failed)?;
    match fed {
        // It ended before it had read everything: its own words say why.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error)),
        Err(_) | Ok(()) => Ok(output),
    }
}
