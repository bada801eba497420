//! Mount paths without mount namespaces: where a pod says `/data`, its processes are told the volume's folder.

/// The mounts of one container: what its `mountPath`s are on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathMap {
    /// Mount path and the path that stands for it, the longest mount path first.
    mounts: Vec<(String, String)>,
}

impl PathMap {
    /// Mount paths lose their trailing slashes. A mount of `/` itself cannot be told apart from any absolute path,
    /// so it is left out, and [`PathMap::mapped`] does not know it.
    pub fn new(mounts: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut mounts: Vec<(String, String)> = mounts
            .into_iter()
            .map(|(path, target)| (path.trim_end_matches('/').to_owned(), target))
            .filter(|(path, _)| path.starts_with('/'))
            .collect();
        mounts.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        mounts.dedup_by(|(a, _), (b, _)| a == b);
        Self { mounts }
    }

    /// What stands for the mount at exactly `path`.
    pub fn mapped(&self, path: &str) -> Option<&str> {
        let path = path.trim_end_matches('/');
        self.mounts.iter().find(|(mount, _)| mount == path).map(|(_, target)| target.as_str())
    }

    /// `text` with each mount path in it replaced, wherever it stands as a whole path or as the front of one:
    /// in `--dir=/data/x`, in `/bin:/data/bin` and in `cd /data && ls`, not in `/database` or `/srv/data`.
    pub fn apply(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        let mut before = None;
        while let Some(next) = rest.chars().next() {
            let hit = if next == '/' && !before.is_some_and(continues_path) {
                self.mounts.iter().find(|(mount, _)| {
                    rest.strip_prefix(mount.as_str())
                        .is_some_and(|after| after.chars().next().is_none_or(ends_name))
                })
            } else {
                None
            };
            let taken = match hit {
                Some((mount, target)) => {
                    out.push_str(target);
                    mount.len()
                }
                None => {
                    out.push(next);
                    next.len_utf8()
                }
            };
            let (head, tail) = rest.split_at(taken);
            before = head.chars().next_back();
            rest = tail;
        }
        out
    }
}

/// A character after which a slash goes on with a path instead of beginning one.
fn continues_path(before: char) -> bool {
    before.is_alphanumeric() || "_-./~})]*@%$".contains(before)
}

/// A character that cannot be part of the name that a mount path ends with.
fn ends_name(after: char) -> bool {
    !(after.is_alphanumeric() || "_-.~".contains(after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map() -> PathMap {
        PathMap::new(
            [
                ("/data/", "/v/data"),
                ("/data/cache", "/v/cache"),
                ("/tmp", "/v/tmp"),
                ("/", "/v/root"),
            ]
            .map(|(a, b)| (a.to_owned(), b.to_owned())),
        )
    }

    #[test]
    fn whole_paths_and_their_fronts_are_replaced() {
        for (text, wanted) in [
            ("/data", "/v/data"),
            ("/data/", "/v/data/"),
            ("/data/cache/x", "/v/cache/x"),
            ("/data/cached", "/v/data/cached"),
            ("--dir=/data/x", "--dir=/v/data/x"),
            ("/bin:/data/bin:/tmp", "/bin:/v/data/bin:/v/tmp"),
            ("cd /data && cp '/tmp/a' \"/data\"", "cd /v/data && cp '/v/tmp/a' \"/v/data\""),
            (
                "/database /srv/data ./data $HOME/data ${X}/data $(X)/data",
                "/database /srv/data ./data $HOME/data ${X}/data $(X)/data",
            ),
            ("http://localhost:8888/data", "http://localhost:8888/data"),
            ("/data.old /data-2", "/data.old /data-2"),
            ("größe=/data", "größe=/v/data"),
            ("/", "/"),
        ] {
            assert_eq!(map().apply(text), wanted);
        }
    }

    #[test]
    fn a_mount_is_found_with_and_without_its_slash() {
        assert_eq!(map().mapped("/data/"), Some("/v/data"));
        assert_eq!(map().mapped("/dat"), None);
    }

    proptest! {
        #[test]
        fn nothing_changes_without_mounts(text in ".*") {
            prop_assert_eq!(PathMap::default().apply(&text), text);
        }

        #[test]
        fn what_was_put_in_is_not_replaced_again(tail in "[a-z/]{0,10}") {
            // The folder's own path begins with a mount path, as under a data directory in /tmp.
            let map = PathMap::new([("/tmp".to_owned(), "/tmp/pod/tmp".to_owned())]);
            let text = format!("/tmp/{tail}");
            let mapped = map.apply(&text);
            prop_assert_eq!(mapped, format!("/tmp/pod/tmp/{tail}"));
        }

        #[test]
        fn any_text_keeps_its_length_but_for_the_mounts(text in "[/a-z:= .-]{0,40}") {
            let same = PathMap::new([("/data".to_owned(), "/data".to_owned())]);
            prop_assert_eq!(same.apply(&text), text);
        }
    }
}
