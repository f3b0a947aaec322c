;; Without arguments: prints "ready" and waits for ever. With arguments: copies stdin to stdout to its end, prints "done" to stderr
;; and exits with the number of arguments after the first.
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 100) "ready\n")
  (data (i32.const 110) "done\n")

  ;; Writes all of a buffer; exits with 9 when nobody reads it.
  (func $write (param $fd i32) (param $at i32) (param $len i32)
    (loop $more
      (if (i32.eqz (local.get $len)) (then (return)))
      (i32.store (i32.const 16) (local.get $at))
      (i32.store (i32.const 20) (local.get $len))
      (if (call $fd_write (local.get $fd) (i32.const 16) (i32.const 1) (i32.const 24))
        (then (call $exit (i32.const 9))))
      (local.set $at (i32.add (local.get $at) (i32.load (i32.const 24))))
      (local.set $len (i32.sub (local.get $len) (i32.load (i32.const 24))))
      (br $more)))

  (func (export "_start")
    (local $argc i32)
    (drop (call $args (i32.const 32) (i32.const 36)))
    (local.set $argc (i32.load (i32.const 32)))
    (if (i32.le_u (local.get $argc) (i32.const 1))
      (then
        (call $write (i32.const 1) (i32.const 100) (i32.const 6))
        (loop $wait
          (i32.store8 (i32.const 40008) (i32.const 0))
          (i32.store (i32.const 40016) (i32.const 1))
          (i64.store (i32.const 40024) (i64.const 3600000000000))
          (drop (call $poll (i32.const 40000) (i32.const 41000) (i32.const 1) (i32.const 42000)))
          (br $wait))))
    (block $end
      (loop $read
        (i32.store (i32.const 0) (i32.const 65536))
        (i32.store (i32.const 4) (i32.const 32768))
        (br_if $end (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br_if $end (i32.eqz (i32.load (i32.const 8))))
        (call $write (i32.const 1) (i32.const 65536) (i32.load (i32.const 8)))
        (br $read)))
    (call $write (i32.const 2) (i32.const 110) (i32.const 5))
    (call $exit (i32.sub (local.get $argc) (i32.const 2)))))
