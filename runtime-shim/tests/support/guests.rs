//! Small guests as Wasm text.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "shared by test files that each use a part"
)]

/// A preview-1 module whose `_start` is `body`, with the usual imports. Memory: one page, `data` at 64, an iovec over it at 0.
pub fn module(data: &str, body: &str) -> String {
    let len = data.len();
    let escaped: String = data.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\40\00\00\00\{low:02x}\{high:02x}\00\00")
            (data (i32.const 64) "{escaped}")
            (func $print (param $fd i32)
                (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 32))))
            ;; Waits for the number of nanoseconds: one subscription of the monotonic clock at 40000.
            (func $sleep (param $nanos i64)
                (i32.store8 (i32.const 40008) (i32.const 0))
                (i32.store (i32.const 40016) (i32.const 1))
                (i64.store (i32.const 40024) (local.get $nanos))
                (drop (call $poll (i32.const 40000) (i32.const 41000) (i32.const 1) (i32.const 42000))))
            (func (export "_start") {body}))"#,
        low = len & 0xff,
        high = len >> 8,
    )
}

pub fn hello() -> String {
    module(
        "hello\n",
        "(call $print (i32.const 1)) (call $print (i32.const 2))",
    )
}

pub fn exits(code: i32) -> String {
    module("", &format!("(call $exit (i32.const {code}))"))
}

pub fn burns() -> String {
    module("burning\n", "(call $print (i32.const 1)) (loop $l (br $l))")
}

pub fn sleeps() -> String {
    module(
        "sleeping\n",
        "(call $print (i32.const 1)) (loop $l (call $sleep (i64.const 3600000000000)) (br $l))",
    )
}

pub fn traps() -> String {
    module("", "unreachable")
}

/// Grows its memory page by page until that fails, then spins.
pub fn hoards() -> String {
    module(
        "",
        "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (call $exit (i32.const 7))",
    )
}

/// Writes `times` times a kilobyte of lines.
pub fn floods(times: u32) -> String {
    let line = "0123456789abcde\n".repeat(64);
    module(
        &line,
        &format!(
            "(local $n i32) (local.set $n (i32.const {times}))
             (loop $l (call $print (i32.const 1)) (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"
        ),
    )
}

/// A component whose `wasi:cli/run` returns ok or err.
pub fn component(ok: bool) -> String {
    format!(
        r#"(component
            (core module $m (func (export "run") (result i32) (i32.const {}))) 
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance $cli (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $cli)))"#,
        i32::from(!ok)
    )
}

/// A component that wants what no host here has.
pub fn wants_the_moon() -> &'static str {
    r#"(component
        (import "acme:moon/landing@1.0.0" (instance (export "land" (func))))
        (import "wasi:keyvalue/store@0.2.0-draft" (instance))
        (core module $m (func (export "run") (result i32) (i32.const 0)))
        (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $cli (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $cli)))"#
}

/// A wasi:http component; the path of the request says what it does.
pub fn http() -> &'static str {
    include_str!("http_guest.wat")
}

/// Without arguments it prints a line and waits; with arguments it copies stdin to stdout to its end, says `done` on stderr and
/// exits with the number of its arguments after the first.
pub fn copies() -> &'static str {
    include_str!("copy_guest.wat")
}
