//! The container image as `cargo xtask image` made it: `OUTRIGGER_TEST_IMAGE` names the OCI archive.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

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

    /// The image's entry point as its user, with an empty environment, in a root that holds nothing else.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut chroot = Command::new("chroot");
        chroot.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        chroot.arg(format!("--userspec={}", self.text("/config/User"))).arg(&self.root);
        chroot.arg(self.text("/config/Entrypoint/0")).args(arguments);
        chroot
    }

    /// A directory for data, as a volume would be: the image's user may write there, and nowhere else.
    fn volume(&self, name: &str) {
        let directory = self.root.join(name);
        fs::create_dir(&directory).unwrap();
        run(Command::new("chown").arg(self.text("/config/User")).arg(&directory));
    }

    fn text(&self, pointer: &str) -> &str {
        self.config.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer}"))
    }
}

/// A process of the image that serves, killed when dropped.
struct Serving {
    child: Child,
    /// What it said when it was ready.
    said: Value,
}

impl Serving {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut serving = Self { child, said: Value::Null };
        serving.said =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{command:?} said {line:?}: {error}"));
        serving
    }

    fn address(&self, name: &str) -> &str {
        self.said[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.said))
    }

    /// Waits until `/ready` of the port of this name answers 200.
    fn ready(&self, name: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut answer = String::new();
            let mut stream = TcpStream::connect(self.address(name)).unwrap();
            stream.write_all(b"GET /ready HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
            stream.read_to_string(&mut answer).unwrap();
            if answer.starts_with("HTTP/1.1 200 ") {
                return;
            }
            assert!(Instant::now() < deadline, "not ready: {answer}");
            std::thread::yield_now();
        }
    }

    /// Ends it as a container runtime does.
    fn stop(mut self) {
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]));
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
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
    let version = run(&mut image.command(&["version"]));
    let said = String::from_utf8(version.stdout).unwrap();
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
}

#[test]
fn registry_and_sidecar_serve_in_an_empty_root() {
    let Some(image) = Image::open() else { return };
    image.volume("data");
    let any = "127.0.0.1:0";
    let mut registry = image.command(&["registry", "--output", "json"]);
    registry.env("OUTRIGGER_DATA_DIR", "/data/registry");
    registry.env("OUTRIGGER_GRPC_LISTEN", any).env("OUTRIGGER_HTTP_LISTEN", any);
    let registry = Serving::start(&mut registry);
    registry.ready("http");

    let mut token = image.command(&["token", "--namespace", "shop", "--account", "front"]);
    token.env("OUTRIGGER_REGISTRY", registry.address("grpc"));
    let token = run(token.env("OUTRIGGER_IDENTITY", "/data/registry/admin"));
    let token = String::from_utf8(token.stdout).unwrap();
    let mut sidecar = image.command(&["proxy", "--output", "json"]);
    sidecar.env("OUTRIGGER_REGISTRY_ADDRESS", registry.address("grpc"));
    sidecar.env("OUTRIGGER_JOIN_TOKEN", token.trim());
    for listener in ["OUTBOUND", "MESH", "ADMIN"] {
        sidecar.env(format!("OUTRIGGER_{listener}_LISTEN"), any);
    }
    let sidecar = Serving::start(&mut sidecar);
    sidecar.ready("admin");
    sidecar.stop();
    registry.stop();
}
