//! Network namespaces: machines of a test's own, each with addresses, rules and processes of its own.
//!
//! Root is needed. Everything is named after the test's process and goes when it is dropped.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// One network namespace, with its loopback interface up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it; one of the same name, left by a process that was killed and had the same id, goes.
    ///
    /// # Panics
    /// Without root, or where there are no network namespaces: what this tests cannot be tested then.
    pub fn create(name: &str) -> Self {
        let namespace = Self { name: name.to_owned() };
        namespace.remove();
        ip(&format!("netns add {name}"));
        namespace.ip("link set lo up");
        namespace
    }

    /// What runs a command in it.
    pub fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// Its name, for commands of `ip`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command of `ip` in it.
    ///
    /// # Panics
    /// When it fails.
    pub fn ip(&self, args: &str) {
        ip(&format!("-n {} {args}", self.name));
    }

    fn remove(&self) {
        let _gone_already = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Runs `ip` of iproute2; words are separated by single blanks.
///
/// # Panics
/// When it fails.
pub fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run ip of iproute2: {error}"));
    assert!(
        output.status.success(),
        "ip {args}: {}; these tests need root and network namespaces",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

/// A network that joins the test and its hosts, IPv4 and IPv6. It is a bridge in a namespace of its
/// own, so that no rule of the machine has a say.
#[derive(Debug)]
pub struct Network {
    switch: Namespace,
    id: u16,
    /// The test's own end.
    link: String,
    hosts: u8,
}

/// Networks made by this process.
static NETWORKS: AtomicU16 = AtomicU16::new(0);
/// The test's own number on the network.
const TEST: u8 = 1;

impl Network {
    /// An empty one.
    ///
    /// # Panics
    /// As [`Namespace::create`].
    pub fn create() -> Self {
        let pid = std::process::id();
        let nth = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let id = u16::try_from((pid + u32::from(nth) * 4093) % (1 << 14)).expect("14 bits");
        let (switch, link) = (Namespace::create(&format!("og-{id}-switch")), format!("og{id}t"));
        let _of_a_killed_process = Command::new("ip").args(["link", "del", &link]).output();
        switch.ip("link add switch type bridge");
        switch.ip("link set switch up");
        let network = Self { switch, id, link, hosts: TEST };
        let link = &network.link;
        ip(&format!("link add {link} type veth peer name test netns {}", network.switch.name()));
        ip(&format!("addr add {}/24 dev {link}", network.v4(TEST)));
        ip(&format!("addr add {}/64 dev {link} nodad", network.v6(TEST)));
        ip(&format!("link set {link} up"));
        network.plug("test");
        network
    }

    /// Another machine on it.
    pub fn host(&mut self, name: &str) -> Host {
        self.hosts += 1;
        let (v4, v6) = (self.v4(self.hosts), self.v6(self.hosts));
        let namespace = Namespace::create(&format!("og-{}-{name}", self.id));
        self.switch.ip(&format!("link add {name} type veth peer name eth0 netns {}", namespace.name()));
        self.plug(name);
        for order in [
            format!("addr add {v4}/24 dev eth0"),
            format!("addr add {v6}/64 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            // What is nowhere has a route, as in a pod: virtual addresses are looked up before they are
            // redirected.
            format!("route add default via {}", self.v4(TEST)),
            format!("-6 route add default via {}", self.v6(TEST)),
        ] {
            namespace.ip(&order);
        }
        Host { namespace, v4, v6 }
    }

    fn plug(&self, link: &str) {
        self.switch.ip(&format!("link set {link} master switch"));
        self.switch.ip(&format!("link set {link} up"));
    }

    /// RFC 6598's range, which is nobody's own.
    fn v4(&self, host: u8) -> Ipv4Addr {
        let [high, low] = self.id.to_be_bytes();
        Ipv4Addr::new(100, 64 | high, low, host)
    }

    /// RFC 4193's range.
    fn v6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd6f, 0x6720, self.id, 0, 0, 0, 0, host.into())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _gone_already = Command::new("ip").args(["link", "del", &self.link]).output();
    }
}

/// A machine: a namespace with an address of each kind.
#[derive(Debug)]
pub struct Host {
    /// Where its processes run.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Host {
    /// What runs a command on it as another user, who may nothing that root may.
    pub fn prefix_as(&self, uid: u32) -> Vec<String> {
        let mut prefix = self.namespace.prefix();
        let user = ["setpriv", &format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups"];
        prefix.extend(user.map(str::to_owned));
        // The kernel ends it with the thread of the test.
        prefix.extend(["--pdeathsig", "KILL", "--"].map(str::to_owned));
        prefix
    }

    /// A command on it.
    pub fn command(&self, prefix: &[String], words: &[&str]) -> Command {
        let mut all = prefix.iter().map(String::as_str).chain(words.iter().copied());
        let mut command = Command::new(all.next().expect("a prefix is not empty"));
        command.args(all).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, as root.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, words: &[&str]) -> Output {
        let output = self.command(&self.namespace.prefix(), words).output();
        output.unwrap_or_else(|error| panic!("cannot run {words:?}: {error}"))
    }

    /// The same as another user.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run_as(&self, uid: u32, words: &[&str]) -> Output {
        let output = self.command(&self.prefix_as(uid), words).output();
        output.unwrap_or_else(|error| panic!("cannot run {words:?}: {error}"))
    }
}
