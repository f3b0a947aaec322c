//! One program, three roles: `init` fills a volume from a ConfigMap, `write` appends to it, `read` prints what arrives.
//!
//! The volume is mounted at /data, the ConfigMap at /config.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

const SHARED: &str = "/data/lines.txt";

fn main() -> std::io::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("init") => init(),
        Some("write") => write(),
        Some("read") => read(),
        other => {
            eprintln!("files: the first argument must be init, write or read, not {other:?}");
            std::process::exit(1)
        }
    }
}

fn init() -> std::io::Result<()> {
    let greeting = fs::read_to_string("/config/greeting")?;
    fs::write(SHARED, format!("{}\n", greeting.trim_end()))?;
    println!("init: wrote the greeting");
    Ok(())
}

fn write() -> std::io::Result<()> {
    for count in 1.. {
        let mut file = OpenOptions::new().append(true).open(SHARED)?;
        // In one piece: the reader may look between two writes.
        file.write_all(format!("line {count} from the writer\n").as_bytes())?;
        println!("wrote line {count}");
        std::thread::sleep(Duration::from_secs(5));
    }
    Ok(())
}

fn read() -> std::io::Result<()> {
    let mut seen = 0;
    loop {
        // Opened anew each time: a WASI stream that has reached the end of its file stays at that end.
        let mut file = fs::File::open(SHARED)?;
        file.seek(SeekFrom::Start(seen))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            print!("read: {line}");
            seen += line.len() as u64;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}
