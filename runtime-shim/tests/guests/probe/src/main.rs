//! Tries what a container allows, one thing per run, and prints one line: what it got, or `error` with the reason.
//!
//! `say TEXT`, `exit CODE`, `args`, `config KEY`, `config` (all), `read PATH`, `write PATH TEXT`, `list PATH`, `symlink TARGET PATH`, `link FROM TO`,
//! `rename FROM TO`, `flip PATH TARGET N` (folder and link in turns), `storm PATH N` (reads again and again, prints what differed),
//! `fill PATH MIB`, `sleep MILLIS`, `beat MILLIS N` (sleeps N times and prints how late it woke, in microseconds), `spin`.

#![feature(wasi_ext, wasip2)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

mod config {
    wit_bindgen::generate!({
        inline: "
            package wasi:config@0.2.0-rc.1;
            interface store {
                variant error { upstream(string), io(string) }
                get: func(key: string) -> result<option<string>, error>;
                get-all: func() -> result<list<tuple<string, string>>, error>;
            }
            world imports { import store; }
        ",
    });
    pub use wasi::config::store::{get, get_all};
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    if let Err(text) = act(&words, &args) {
        println!("error {text}");
        std::process::exit(1);
    }
}

fn act(words: &[&str], args: &[String]) -> Result<(), String> {
    match words {
        ["say", text] => println!("{text}"),
        ["exit", code] => wasip2::cli::exit::exit_with_code(code.parse().map_err(show)?),
        ["args", ..] => println!("{args:?}"),
        ["config"] => println!("{:?}", config::get_all().map_err(show)?),
        ["config", key] => println!("{:?}", config::get(key).map_err(show)?),
        ["read", path] => println!("{}", fs::read_to_string(path).map_err(show)?.trim_end()),
        ["write", path, text] => fs::write(path, text).map_err(show)?,
        ["list", path] => {
            let names: Result<BTreeSet<_>, _> =
                fs::read_dir(path).map_err(show)?.map(|entry| entry.map(|entry| entry.file_name())).collect();
            println!("{:?}", names.map_err(show)?);
        }
        ["symlink", target, path] => std::os::wasi::fs::symlink_path(target, path).map_err(show)?,
        ["link", from, to] => fs::hard_link(from, to).map_err(show)?,
        ["rename", from, to] => fs::rename(from, to).map_err(show)?,
        ["flip", path, target, times] => flip(path, target, times.parse().map_err(show)?),
        ["storm", path, times] => storm(path, times.parse().map_err(show)?),
        ["fill", path, mebibytes] => fill(path, mebibytes.parse().map_err(show)?)?,
        ["sleep", millis] => std::thread::sleep(Duration::from_millis(millis.parse().map_err(show)?)),
        ["beat", millis, times] => beat(millis.parse().map_err(show)?, times.parse().map_err(show)?),
        ["spin"] => loop {
            std::hint::spin_loop();
        },
        other => return Err(format!("unknown arguments {other:?}")),
    }
    Ok(())
}

fn show(err: impl std::fmt::Debug) -> String {
    format!("{err:?}")
}

/// A folder with a harmless file, and a link to `target`, by the same name in turns.
fn flip(path: &str, target: &str, times: u32) {
    for _ in 0..times {
        // Each of these may lose its race, which is the point.
        fs::create_dir(path).ok();
        fs::write(format!("{path}/file"), "harmless").ok();
        fs::remove_file(format!("{path}/file")).ok();
        fs::remove_dir(path).ok();
        std::os::wasi::fs::symlink_path(target, path).ok();
        fs::remove_file(path).ok();
    }
}

fn storm(path: &str, times: u32) {
    let mut seen = BTreeSet::new();
    for _ in 0..times {
        if let Ok(text) = fs::read_to_string(path) {
            seen.insert(text);
        }
    }
    println!("{seen:?}");
}

fn fill(path: &str, mebibytes: u32) -> Result<(), String> {
    let mut file = fs::File::create(path).map_err(show)?;
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..mebibytes {
        file.write_all(&piece).map_err(show)?;
    }
    Ok(())
}

fn beat(millis: u64, times: u32) {
    let period = Duration::from_millis(millis);
    let mut late: Vec<u128> = (0..times)
        .map(|_| {
            let begin = Instant::now();
            std::thread::sleep(period);
            begin.elapsed().saturating_sub(period).as_micros()
        })
        .collect();
    late.sort_unstable();
    let at = |share: usize| late[(late.len() * share / 100).min(late.len() - 1)];
    println!("p50 {} p99 {} max {}", at(50), at(99), late[late.len() - 1]);
}
