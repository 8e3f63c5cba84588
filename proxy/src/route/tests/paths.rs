use std::borrow::Cow;

use super::super::path::{after_prefix, normal_prefix, normalise, replace_prefix};
use super::{for_seeds, random_path};

#[test]
fn spellings_of_one_path_are_one() {
    for (path, normal) in [
        ("/a/../admin", "/admin"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/./admin", "/admin"),
        ("/../../admin", "/admin"),
        ("//admin", "/admin"),
        ("/admin//", "/admin/"),
        ("/a//../admin", "/admin"),
        ("/%61dmin", "/admin"),
        ("/a/%2e%2E/admin", "/admin"),
        ("/a/.%2e/admin", "/admin"),
        ("/a%2fb", "/a%2Fb"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/%252e%252e/x", "/%252e%252e/x"),
        ("/100%", "/100%25"),
        ("/%%32e/x", "/%252e/x"),
        ("/..", "/"),
        ("*", "*"),
        ("", ""),
    ] {
        assert_eq!(normalise(path), normal, "{path}");
    }
}

#[test]
fn usual_paths_are_not_copied() {
    for path in ["/", "/orders", "/orders/17/", "/.well-known/x", "/a/...", "/a/..b", "/a%20b/%2F", "*"] {
        assert!(matches!(normalise(path), Cow::Borrowed(_)), "{path}");
    }
}

#[test]
fn normal_paths_stay_normal_and_have_no_way_up() {
    for_seeds(5000, |rng| {
        let path = random_path(rng);
        let normal = normalise(&path);
        assert_eq!(normalise(&normal), normal, "{path}");
        assert!(!normal.contains("//"), "{path}: {normal}");
        assert!(!normal.split('/').any(|segment| matches!(segment, "." | "..")), "{path}: {normal}");
        assert!(normal.starts_with('/'), "{path}: {normal}");
    });
}

/// The examples of `PathPrefix` in the Gateway API.
#[test]
fn prefixes_are_whole_elements() {
    for (path, prefix, rest) in [
        ("/abc", "/abc", Some("")),
        ("/abc/", "/abc", Some("/")),
        ("/abc/def", "/abc", Some("/def")),
        ("/abcd", "/abc", None),
        ("/abc", "/abc/", Some("")),
        ("/abc", "/", Some("/abc")),
        ("/", "/", Some("/")),
        ("/ABC", "/abc", None),
        ("*", "/", Some("*")),
    ] {
        assert_eq!(after_prefix(path, &normal_prefix(prefix)), rest, "{path} {prefix}");
    }
}

/// The table of `replacePrefixMatch` in the Gateway API, then what it leaves open.
#[test]
fn prefixes_are_replaced() {
    for (path, prefix, replacement, replaced) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/foo//bar//baz", "/foo", "/xyz", "/xyz/bar//baz"),
        ("/foo/caf%c3%a9/%41", "/foo", "/xyz", "/xyz/caf%c3%a9/%41"),
        ("/x/../foo/a//b", "/foo", "/xyz", "/xyz/a/b"),
        ("/%66oo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/a/%2e./b", "/foo", "/xyz", "/xyz/b"),
    ] {
        let prefix = normal_prefix(prefix);
        assert_eq!(replace_prefix(path, &prefix, replacement).unwrap(), replaced, "{path} {prefix}");
    }
    assert_eq!(replace_prefix("/food", "/foo", "/xyz"), None);
    assert_eq!(replace_prefix("*", "", "/xyz"), None);
}

#[test]
fn a_replaced_path_stays_below_its_replacement() {
    for_seeds(5000, |rng| {
        let path = random_path(rng);
        let prefix = ["", "/a", "/foo", "/a/b"][rng.usize(..4)];
        let matches = after_prefix(&normalise(&path), prefix).is_some();
        let replaced = replace_prefix(&path, prefix, "/new/root/");
        assert_eq!(replaced.is_some(), matches, "{path} {prefix}");
        if let Some(replaced) = replaced {
            assert!(after_prefix(&normalise(&replaced), "/new/root").is_some(), "{path} {prefix} {replaced}");
        }
    });
}
