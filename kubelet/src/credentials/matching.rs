//! Which images a key of a docker configuration or a plugin's pattern stands for: globs per part of the host, a port that must be
//! the same where one is named, a path that the image's begins with.

/// An image's name with its registry and without tag and digest: `nginx:1` is `docker.io/library/nginx`.
pub(super) fn whole_name(image: &str) -> String {
    let image = image.split('@').next().unwrap_or(image);
    let untagged = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    };
    match untagged.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            format!("{}/{path}", hub(host))
        }
        Some(_) => format!("docker.io/{untagged}"),
        None => format!("docker.io/library/{untagged}"),
    }
}

/// A key as docker writes them: without scheme, and without the API's version where a path begins.
pub(super) fn pattern_of(key: &str) -> String {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = ["v1", "v2"]
        .iter()
        .find_map(|version| match path.strip_prefix(version) {
            Some("") => Some(""),
            Some(rest) => rest.strip_prefix('/'),
            None => None,
        })
        .unwrap_or(path)
        .trim_end_matches('/');
    let host = hub(host);
    if path.is_empty() {
        host.to_owned()
    } else {
        format!("{host}/{path}")
    }
}

/// All the names that Docker Hub goes by.
fn hub(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// Whether a pattern stands for an image, both as the functions above write them.
pub(super) fn fits(pattern: &str, image: &str) -> bool {
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (image_host, image_path) = image.split_once('/').unwrap_or((image, ""));
    let port_of = |host: &str| host.rsplit_once(':').map(|(_, port)| port.to_owned());
    let name_of = |host: &str| {
        host.rsplit_once(':')
            .map_or(host, |(name, _)| name)
            .to_owned()
    };
    if let Some(port) = port_of(pattern_host)
        && port_of(image_host) != Some(port)
    {
        return false;
    }
    let (pattern_name, image_name) = (name_of(pattern_host), name_of(image_host));
    let (wanted, given): (Vec<&str>, Vec<&str>) = (
        pattern_name.split('.').collect(),
        image_name.split('.').collect(),
    );
    wanted.len() == given.len()
        && wanted
            .iter()
            .zip(&given)
            .all(|(wanted, given)| glob(wanted, given))
        && image_path.starts_with(pattern_path)
}

/// `*` is any text within a part, `?` one letter.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut read) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while read < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(letter) if *letter == '?' || *letter == text[read] => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((back, from)) = star else {
                    return false;
                };
                star = Some((back, from + 1));
                at = back + 1;
                read = from + 1;
            }
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_out() {
        for (image, whole) in [
            ("nginx", "docker.io/library/nginx"),
            ("library/nginx:1", "docker.io/library/nginx"),
            ("ghcr.io/a/b@sha256:1", "ghcr.io/a/b"),
            ("localhost/a:1", "localhost/a"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a"),
            ("127.0.0.1:5000/a:2@sha256:1", "127.0.0.1:5000/a"),
        ] {
            assert_eq!(whole_name(image), whole, "{image}");
        }
    }

    #[test]
    fn patterns_as_upstream_documents_them() {
        for (pattern, image, expected) in [
            (
                "123.dkr.ecr.us-east-1.amazonaws.com",
                "123.dkr.ecr.us-east-1.amazonaws.com/x",
                true,
            ),
            ("*.azurecr.io", "me.azurecr.io/x", true),
            ("*.io", "me.azurecr.io/x", false),
            ("k8s.*", "k8s.gcr/x", true),
            ("app*.k8s.io", "app7.k8s.io/x", true),
            ("a*b*c.io", "axxbyyc.io/x", true),
            ("a*b*c.io", "axxbyy.io/x", false),
            ("registry.io:8080/path", "registry.io:8080/path/x", true),
            ("registry.io:8080/path", "registry.io/path/x", false),
            ("registry.io/path", "registry.io:8080/path/x", true),
            ("registry.io/path", "registry.io/other", false),
        ] {
            assert_eq!(
                fits(&pattern_of(pattern), image),
                expected,
                "{pattern} and {image}"
            );
        }
    }
}
