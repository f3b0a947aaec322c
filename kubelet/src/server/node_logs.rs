//! `/logs/`: the files of the node's own log folder, as upstream shows `/var/log`.

use super::{Body, stream, text};
use http::{HeaderValue, Response, StatusCode};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use tokio_stream::StreamExt;
use tokio_util::io::ReaderStream;

const ROOT: &str = "/var/log";

/// Lists a folder or sends a file.
pub(super) async fn answer(rest: &str) -> Response<Body> {
    let Some(path) = inside(Path::new(ROOT), rest) else {
        return text(StatusCode::NOT_FOUND, "404 page not found");
    };
    if path.is_dir() {
        return list(&path);
    }
    match tokio::fs::File::open(&path).await {
        Ok(file) => stream(Box::pin(ReaderStream::new(file).map(|chunk| chunk))),
        Err(error) => text(StatusCode::FORBIDDEN, &error.to_string()),
    }
}

/// The path below the root, if that is where it leads; links out of it are not followed.
fn inside(root: &Path, rest: &str) -> Option<PathBuf> {
    let root = root.canonicalize().ok()?;
    let path = root.join(rest.trim_matches('/')).canonicalize().ok()?;
    path.starts_with(&root).then_some(path)
}

fn list(folder: &Path) -> Response<Body> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            format!("{}{slash}", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    let mut page = String::from("<!doctype html>\n<pre>\n");
    for name in names {
        let shown = name
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('"', "&quot;");
        writeln!(page, "<a href=\"{shown}\">{shown}</a>").expect("writing to a String cannot fail");
    }
    page.push_str("</pre>\n");
    let mut response = text(StatusCode::OK, &page);
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, html);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_of_the_folder_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("log/sub")).unwrap();
        std::fs::write(dir.path().join("log/sub/file"), "").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("log/out")).unwrap();
        let root = dir.path().join("log");
        assert!(inside(&root, "sub/file").is_some() && inside(&root, "").is_some());
        for path in ["../..", "out/passwd", "absent", "sub/../../x"] {
            assert_eq!(inside(&root, path), None, "{path}");
        }
    }
}
