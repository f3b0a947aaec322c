use super::*;
use futures::StreamExt;
use std::io::Write;

/// A log of `count` lines; every third comes in two parts, every fourth goes to stderr.
fn sample(count: usize) -> (String, Vec<String>) {
    let (mut file, mut lines) = (String::new(), Vec::new());
    for n in 0..count {
        let stream = if n % 4 == 3 { "stderr" } else { "stdout" };
        let time = format!("2026-01-01T00:00:{:02}.{:09}Z", n / 10, n % 10);
        if n % 3 == 2 {
            file.push_str(&format!("{time} {stream} P line \n{time} {stream} F {n}\n"));
        } else {
            file.push_str(&format!("{time} {stream} F line {n}\n"));
        }
        lines.push(format!("line {n}\n"));
    }
    (file, lines)
}

async fn read(file: &str, query: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, file).unwrap();
    let now = "2026-01-01T00:01:00Z".parse().unwrap();
    let options = Options::parse(query, now).unwrap();
    let mut chunks = follow(path, options, Box::pin(std::future::ready(())))
        .await
        .unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = chunks.next().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    String::from_utf8(all).unwrap()
}

#[test]
fn options_table() {
    let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
    let parse = |query: &str| Options::parse(query, now);
    assert_eq!(parse("").unwrap(), Options::default());
    let all =
        parse("follow=true&tailLines=5&timestamps=1&limitBytes=9&previous=false&stream=Stderr")
            .unwrap();
    assert!(all.follow && all.timestamps && !all.previous);
    assert_eq!(
        (all.tail_lines, all.limit_bytes, all.stream),
        (Some(5), Some(9), Some("stderr"))
    );
    assert_eq!(
        parse("sinceSeconds=60").unwrap().since,
        "2026-01-01T00:00:00Z".parse().ok()
    );
    let encoded = parse("sinceTime=2026-01-01T01%3A00%3A00%2B01%3A00").unwrap();
    assert_eq!(encoded.since, "2026-01-01T00:00:00Z".parse().ok());
    assert_eq!(
        parse("tailLines=-1").unwrap_err().0,
        "invalid value \"-1\" for tailLines"
    );
    assert!(parse("sinceTime=yesterday").is_err());
}

#[tokio::test]
async fn the_whole_log_is_its_lines() {
    let (file, lines) = sample(50);
    assert_eq!(read(&file, "").await, lines.concat());
    assert_eq!(
        read(&file, "follow=true").await,
        lines.concat(),
        "following a log that is over ends"
    );
    assert_eq!(read("", "").await, "");
}

#[tokio::test]
async fn tail_is_a_suffix_for_every_length() {
    // Whole lines only: upstream's tail counts the parts of a broken line one by one, and so does ours.
    let lines: Vec<String> = (0..40)
        .map(|n| format!("{}\n", "x".repeat(n * 700)))
        .collect();
    let file: String = lines
        .iter()
        .map(|line| format!("2026-01-01T00:00:00Z stdout F {line}"))
        .collect();
    for tail in [0, 1, 2, 7, 39, 40, 41, 1000] {
        let expected = lines[lines.len().saturating_sub(tail)..].concat();
        assert!(
            read(&file, &format!("tailLines={tail}")).await == expected,
            "tail {tail}"
        );
    }
}

#[tokio::test]
async fn since_keeps_what_is_not_older() {
    let (file, lines) = sample(60);
    for (query, first) in [
        ("sinceTime=2026-01-01T00:00:02Z", 20),
        ("sinceSeconds=55", 50),
        ("sinceSeconds=1", 60),
    ] {
        assert_eq!(read(&file, query).await, lines[first..].concat(), "{query}");
    }
}

#[tokio::test]
async fn limits_timestamps_and_streams() {
    let (file, lines) = sample(20);
    let whole = lines.concat();
    for limit in [0, 1, 6, 7, 50, whole.len(), whole.len() + 5] {
        let expected = &whole[..limit.min(whole.len())];
        assert_eq!(
            read(&file, &format!("limitBytes={limit}")).await,
            expected,
            "limit {limit}"
        );
    }
    let stamped = read(&file, "timestamps=true&tailLines=1").await;
    assert_eq!(stamped, "2026-01-01T00:00:01.000000009Z line 19\n");
    let errors = read(&file, "stream=Stderr").await;
    assert_eq!(
        errors,
        [3, 7, 11, 15, 19].map(|n| lines[n].clone()).concat()
    );
}

#[tokio::test]
async fn following_survives_a_rotation_and_ends_with_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let line = |n: usize| format!("2026-01-01T00:00:00Z stdout F line {n}\n");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(line(0).as_bytes()).unwrap();
    let (over_tx, over_rx) = tokio::sync::oneshot::channel::<()>();
    let over = Box::pin(async move { over_rx.await.unwrap() });
    let options = Options {
        follow: true,
        ..Options::default()
    };
    let mut chunks = follow(path.clone(), options, over).await.unwrap();
    assert_eq!(chunks.next().await.unwrap().unwrap(), "line 0\n");
    let writer = tokio::task::spawn_blocking(move || {
        file.write_all(line(1).as_bytes()).unwrap();
        std::fs::rename(&path, path.with_extension("log.1")).unwrap();
        // The runtime finishes its line in the renamed file before it opens the new one.
        file.write_all(line(2).as_bytes()).unwrap();
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(line(3).as_bytes()).unwrap();
        over_tx.send(()).unwrap();
    });
    let mut rest = Vec::new();
    while let Some(chunk) = chunks.next().await {
        rest.extend_from_slice(&chunk.unwrap());
    }
    writer.await.unwrap();
    assert_eq!(String::from_utf8(rest).unwrap(), "line 1\nline 2\nline 3\n");
}
