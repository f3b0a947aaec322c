//! Container logs in the CRI format: what guests write, line by line, with time and stream, into the file that the kubelet reads.
//!
//! A guest's bytes are framed where they are written and wait in a buffer of bounded size; one thread writes the buffers of all
//! containers to their files. A guest that writes faster than the disk waits: a gigabyte of logs needs the buffer and no more.
//! Files are open only while something is written (an idle container costs no descriptor); `reopen` follows a rotation.

mod format;
mod stream;
mod writer;

pub(crate) use format::Stream;
pub(crate) use stream::{Capture, LogStream};
pub(crate) use writer::{ContainerLog, LogWriter};
