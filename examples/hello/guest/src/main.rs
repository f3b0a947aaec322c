//! A command that prints a greeting and stays: the smallest Pod worth looking at.

use std::time::Duration;

fn main() {
    let name = std::env::args().nth(1).unwrap_or_else(|| "world".into());
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "a Pod".into());
    println!("Hello, {name}! This is a Wasm component in {host}.");
    for minutes in 1.. {
        std::thread::sleep(Duration::from_secs(60));
        println!("still here after {minutes} min");
    }
}
