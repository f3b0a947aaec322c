//! Many clients, and a store that is killed, torn, filled up and cut off while they work: some order must explain all that they saw.
//!
//! `COX_STORE_ROUNDS` says how often, `COX_STORE_SEED` repeats a run. Starts itself as the process to be killed, so it has a
//! `main` of its own, which understands as much of the test harness's arguments as `cargo test` and `cargo nextest` need.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::too_many_lines,
    unreachable_pub,
    reason = "a program for tests: it reports on its standard output and fails by panicking"
)]

mod client;
#[path = "../etcd_kit/mod.rs"]
mod etcd_kit;
mod history;
mod on_etcd;
mod on_power;
mod on_sled;
mod record;

use std::path::Path;
use std::sync::Arc;

const TESTS: &[(&str, fn())] = &[
    (
        "the_checker_knows_right_from_wrong",
        history::the_checker_knows_right_from_wrong,
    ),
    (
        "histories_are_linear_whenever_the_process_is_killed",
        on_sled::histories_are_linear_whenever_the_process_is_killed,
    ),
    (
        "a_full_disk_loses_nothing_that_was_acknowledged",
        on_sled::a_full_disk_loses_nothing_that_was_acknowledged,
    ),
    (
        "histories_are_linear_whatever_happens_to_a_member",
        on_etcd::histories_are_linear_whatever_happens_to_a_member,
    ),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().expect("a number");
    match words[..] {
        ["victim", dir, group, seed] => {
            let tell = Arc::new(on_sled::Print);
            return on_sled::victim(Path::new(dir), number(group), number(seed), tell);
        }
        ["victim", dir, group, seed, port] => {
            let tell = Arc::new(on_power::Port::open(Path::new(port)));
            return on_sled::victim(Path::new(dir), number(group), number(seed), tell);
        }
        ["power", kernel, initrd] => {
            return on_power::histories_are_linear_whenever_the_power_goes(kernel, initrd);
        }
        _ => {}
    }
    if words.contains(&"--list") {
        if !words.contains(&"--ignored") {
            TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return;
    }
    let filters: Vec<&&str> = words.iter().filter(|word| !word.starts_with('-')).collect();
    for (name, test) in TESTS {
        if filters.is_empty() || filters.iter().any(|filter| name.contains(**filter)) {
            test();
            println!("test {name} ... ok");
        }
    }
}
