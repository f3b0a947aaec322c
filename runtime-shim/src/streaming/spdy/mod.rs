//! SPDY/3.1, as much of it as Kubernetes' streaming uses, on the server's side.
//!
//! `frame` is the codec without I/O, `headers` the compressed header blocks, `connection` the driver over a socket. Limits hold
//! everywhere: sizes of frames and headers, streams per connection, bytes that wait.

mod connection;
mod dictionary;
mod frame;
mod headers;

pub(crate) use connection::{Accepted, Incoming, Resetter, connection};
