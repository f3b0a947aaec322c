//! Each plugin by a table of requests.
