//! A guest of WASI 0.3: a command that tries what a Pod's network allows, or (feature `service`) a wasi:http service.
//!
//! The command: `serve ADDRESS PORT` (TCP) and `echo [ADDRESS] PORT` (UDP) answer one peer with who it is and where it came; `listen` and
//! `listen6` listen without binding and print where; `get HOST PORT` and `send HOST PORT` print such an answer; `bind ADDRESS PORT` prints what it got;
//! `fetch AUTHORITY PATH` asks a web server; `read PATH` prints a file; `hello` prints a line; `spin` never ends.

#[cfg(not(feature = "service"))]
mod command;
#[cfg(feature = "service")]
mod service;
