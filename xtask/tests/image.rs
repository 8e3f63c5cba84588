//! The container image as `cargo xtask image` made it: `OUTRIGGER_TEST_IMAGE` names the OCI archive.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// An unpacked image.
struct Image {
    /// What `podman build` wrote about it.
    config: Value,
    /// Names of everything in its layers, as tar lists them.
    entries: Vec<String>,
    /// Its layers, unpacked.
    root: PathBuf,
    _directory: TempDir,
}

impl Image {
    /// None, with a note, where nobody asked for the image to be tested; a panic where somebody did.
    fn open() -> Option<Self> {
        let archive =
            std::env::var_os("OUTRIGGER_TEST_IMAGE").map(PathBuf::from).filter(|path| path.exists());
        let Some(archive) = archive else {
            assert!(
                std::env::var_os("OUTRIGGER_TEST_REQUIRED").is_none(),
                "OUTRIGGER_TEST_IMAGE names no file"
            );
            eprintln!("not tested: no image; `cargo xtask test` builds one");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let (unpacked, root) = (directory.path().join("archive"), directory.path().join("root"));
        fs::create_dir(&unpacked).unwrap();
        fs::create_dir(&root).unwrap();
        run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&unpacked));

        let index = json(&unpacked.join("index.json"));
        let manifest = json(&blob(&unpacked, &index["manifests"][0]["digest"]));
        let config = json(&blob(&unpacked, &manifest["config"]["digest"]));
        let mut entries = Vec::new();
        for layer in manifest["layers"].as_array().expect("layers") {
            let layer = blob(&unpacked, &layer["digest"]);
            let list = run(Command::new("tar").arg("-tzf").arg(&layer));
            entries.extend(String::from_utf8(list.stdout).unwrap().lines().map(str::to_owned));
            run(Command::new("tar").arg("-xzpf").arg(&layer).arg("-C").arg(&root));
        }
        Some(Self { config, entries, root, _directory: directory })
    }

    /// Runs the image's entry point as its user, with an empty environment, in a root that holds nothing else.
    fn start(&self, arguments: &[&str]) -> Output {
        let mut chroot = Command::new("chroot");
        chroot.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        chroot.arg(format!("--userspec={}", self.text("/config/User"))).arg(&self.root);
        run(chroot.arg(self.text("/config/Entrypoint/0")).args(arguments))
    }

    fn text(&self, pointer: &str) -> &str {
        self.config.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer}"))
    }
}

/// The file of a blob, by its digest `sha256:…`.
fn blob(archive: &Path, digest: &Value) -> PathBuf {
    let (algorithm, hash) = digest.as_str().expect("a digest").split_once(':').expect("algorithm:hash");
    archive.join("blobs").join(algorithm).join(hash)
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn image_holds_the_binary_and_nothing_else() {
    let Some(image) = Image::open() else { return };
    assert_eq!(image.entries, ["outrigger"]);
}

#[test]
fn image_is_not_root_and_starts_the_binary() {
    let Some(image) = Image::open() else { return };
    assert_eq!(image.text("/config/User"), "65532:65532");
    assert_eq!(image.config["config"]["Entrypoint"], serde_json::json!(["/outrigger"]));
    assert_eq!(image.text("/config/Labels/org.opencontainers.image.licenses"), "Apache-2.0");
    assert_eq!(image.text("/config/Labels/org.opencontainers.image.version"), env!("CARGO_PKG_VERSION"));
}

#[test]
fn binary_asks_for_no_dynamic_linker() {
    let Some(image) = Image::open() else { return };
    // ldd says so in words, and with an exit code that differs between static and static-pie.
    let ldd = Command::new("ldd").env("LC_ALL", "C").arg(image.root.join("outrigger")).output().unwrap();
    let said = [ldd.stdout, ldd.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("statically linked") || said.contains("not a dynamic executable"), "{said}");
}

#[test]
fn binary_starts_in_an_empty_root_as_the_images_user() {
    let Some(image) = Image::open() else { return };
    let version = image.start(&["version"]);
    let said = String::from_utf8(version.stdout).unwrap();
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
}
