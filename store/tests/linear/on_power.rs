//! sled in a machine that is switched off in the middle of writes: an emulated one, whose disk keeps what was flushed, and of what came
//! after the last flush any part, in any order, and torn. `tests/vm/power` makes what it boots.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use crate::client::{self, Random, Tell};
use crate::on_sled::{self, judge};
use crate::record::Record;

const SECTOR: u64 = 512;
const DISK_LEN: &str = "400M";
/// A machine that says nothing for so long has failed.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// Tells the world outside of the machine, and waits until it has heard: what is begun or acknowledged is known before the power goes.
pub struct Port(Mutex<File>);

impl Port {
    pub fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path);
        Self(Mutex::new(file.expect("the machine has the port")))
    }
}

impl Tell for Port {
    fn tell(&self, line: String) {
        let mut port = self.0.lock().expect("nobody panics here");
        port.write_all(format!("{line}\n").as_bytes())
            .and_then(|()| port.read_exact(&mut [0]))
            .expect("somebody listens");
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

fn boot(kernel: &str, initrd: &str, dir: &Path, words: &str) -> Child {
    let (disk, log, port) = (dir.join("disk"), dir.join("log"), dir.join("port"));
    let node = |driver: &str, path: &Path, name: &str| {
        format!("driver={driver},filename={},node-name={name}", text(path))
    };
    let chardev = format!("socket,id=port,path={}", text(&port));
    let append = format!("console=ttyS0 panic=-1 quiet {words}");
    Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-cpu", "max", "-m", "512", "-smp", "2"])
        .args(["-nographic", "-no-reboot", "-net", "none"])
        .args(["-kernel", kernel, "-initrd", initrd, "-append", &append])
        .args(["-blockdev", &node("file", &disk, "disk")])
        .args(["-blockdev", &node("file", &log, "log")])
        .args([
            "-blockdev",
            "driver=blklogwrites,node-name=logged,file=disk,log=log,log-sector-size=512,log-super-update-interval=1",
        ])
        .args(["-device", "virtio-blk-pci,drive=logged"])
        .args(["-device", "virtio-serial-pci", "-chardev", &chardev])
        .args(["-device", "virtserialport,chardev=port,name=port"])
        .stdin(Stdio::null())
        .stdout(File::create(dir.join("console")).expect("a file"))
        .spawn()
        .expect("qemu")
}

/// Lets the machine write, and switches it off after so many lines.
fn run_and_switch_off(child: &mut Child, listener: &UnixListener, after: u64) -> Record {
    let (stream, _) = listener.accept().expect("qemu calls");
    stream.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let mut back = stream.try_clone().expect("both ways");
    let mut record = Record::default();
    // The last line is not answered: whatever it is about, the power goes in the middle of it.
    for (number, line) in (1..=after).zip(BufReader::new(stream).lines()) {
        record.line(&line.expect("the machine tells what it does"));
        if number < after {
            back.write_all(b".").expect("it listens");
        }
    }
    child.kill().expect("it is ours");
    child.wait().expect("it ran");
    record
}

/// What the disk holds after the power went: see the module's head. The log is that of Linux' dm-log-writes.
fn after_the_cut(before: &Path, log: &Path, random: &mut Random) -> (usize, usize) {
    let log = File::open(log).expect("a log");
    let disk = File::options().write(true).open(before).expect("a disk");
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        log.read_exact_at(&mut bytes, at).expect("the log is whole");
        bytes
    };
    let number = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    };
    const FLUSH: u64 = 1;
    const DISCARD: u64 = 4;
    let entries = number(&read(0, 32), 16);
    let mut at = SECTOR;
    let mut writes = Vec::new();
    let mut flushed = 0;
    for _ in 0..entries {
        let entry = read(at, 32);
        let (sector, sectors, flags) = (number(&entry, 0), number(&entry, 8), number(&entry, 16));
        at += SECTOR;
        if flags & FLUSH != 0 {
            flushed = writes.len();
        }
        // What is discarded holds nothing that anybody may miss.
        if sectors > 0 && flags & DISCARD == 0 {
            writes.push((sector, sectors, at));
            at += sectors * SECTOR;
        }
    }
    let mut late: Vec<_> = writes.split_off(flushed);
    let lost = late.len();
    for at in (1..late.len()).rev() {
        late.swap(
            at,
            usize::try_from(random.below(at as u64 + 1)).expect("small"),
        );
    }
    late.truncate(usize::try_from(random.below(lost as u64 + 1)).expect("small"));
    if let Some((_, sectors, _)) = late.last_mut() {
        *sectors = random.below(*sectors + 1);
    }
    for (sector, sectors, from) in writes.iter().chain(&late) {
        let bytes = read(*from, usize::try_from(sectors * SECTOR).expect("small"));
        disk.write_all_at(&bytes, sector * SECTOR).expect("written");
    }
    (flushed, lost)
}

/// A disk that is let go in the end, also when the judge panics.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        on_sled::let_go(self.0);
    }
}

/// `COX_STORE_ROUNDS` cuts (10 if it says nothing), each of a machine that goes on with what the one before left.
pub fn histories_are_linear_whenever_the_power_goes(kernel: &str, initrd: &str) {
    let seed = client::number("COX_STORE_SEED", client::fresh_seed());
    let rounds = client::number("COX_STORE_ROUNDS", 10);
    println!("seed {seed}, {rounds} rounds");
    let mut random = Random::new(seed);
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let path = |name: &str| dir.join(name);
    let (disk, before, mounted) = (path("disk"), path("before"), path("mounted"));
    std::fs::create_dir(&mounted).expect("a folder");
    run("truncate", &["-s", DISK_LEN, text(&disk)]);
    run("mkfs.ext4", &["-q", "-F", text(&disk)]);
    let mut settled = BTreeMap::new();
    let (mut acknowledged, mut writes, mut unflushed) = (0, 0, 0);
    for group in 0..rounds {
        run("cp", &["--sparse=always", text(&disk), text(&before)]);
        File::create(path("log")).expect("a log");
        let listener = UnixListener::bind(path("port")).expect("a socket");
        let words = format!(
            "cox.group={group} cox.seed={}",
            seed.wrapping_add(group * 1000)
        );
        let mut child = boot(kernel, initrd, dir, &words);
        let record = run_and_switch_off(&mut child, &listener, 20 + random.below(1500));
        std::fs::remove_file(path("port")).expect("a socket");
        acknowledged += record.acknowledged;
        let (flushed, late) = after_the_cut(&before, &path("log"), &mut random);
        writes += flushed;
        unflushed += late;
        std::fs::rename(&before, &disk).expect("a file");
        run("mount", &["-o", "loop", text(&disk), text(&mounted)]);
        let _mounted = Mounted(&mounted);
        judge(&mounted.join("store"), group, record, &mut settled, seed);
    }
    println!(
        "{acknowledged} acknowledged operations before {rounds} cuts: all explained; {writes} writes of the disk flushed, {unflushed} not, of which any part came through"
    );
}
