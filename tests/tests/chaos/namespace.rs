//! A network namespace of the test's own, joined to the machine by a pair of virtual interfaces.

use std::net::Ipv4Addr;
use std::process::Command;

/// Removed when dropped, with its interfaces.
pub(crate) struct Namespace {
    name: String,
    link: String,
    /// This end's address.
    pub(crate) here: Ipv4Addr,
    /// The other end's.
    pub(crate) there: Ipv4Addr,
}

impl Namespace {
    /// # Panics
    /// Without root, or where there are no network namespaces: what this tests cannot be tested then.
    pub(crate) fn create() -> Self {
        let id = std::process::id();
        // RFC 2544's range for tests of networks.
        let [high, low] = u16::try_from(id % (1 << 14)).unwrap().to_be_bytes();
        let address =
            |host| Ipv4Addr::new(198, 18 + (high >> 5), (high << 3) | (low >> 5), (low << 3) | host);
        let namespace =
            Self { name: format!("og-{id}"), link: format!("og{id}"), here: address(1), there: address(2) };
        // Of a process that was killed and had the same id.
        namespace.remove();
        let (name, link, peer) = (&namespace.name, &namespace.link, "uplink");
        ip(&format!("netns add {name}"));
        ip(&format!("link add {link} type veth peer name {peer} netns {name}"));
        ip(&format!("addr add {}/30 dev {link}", namespace.here));
        ip(&format!("link set {link} up"));
        for order in [
            format!("addr add {}/30 dev {peer}", namespace.there),
            format!("link set {peer} up"),
            "link set lo up".to_owned(),
        ] {
            ip(&format!("-n {name} {order}"));
        }
        namespace
    }

    /// What runs a command in it.
    pub(crate) fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// Drops every packet in both directions: each end sends to a link-layer address nobody has, so that
    /// frames are neither accepted nor answered. Needs no firewall in the kernel.
    pub(crate) fn drop_packets(&self) {
        let nobody = "lladdr 02:00:00:00:00:01 nud permanent";
        ip(&format!("neigh replace {} {nobody} dev {}", self.there, self.link));
        ip(&format!("-n {} neigh replace {} {nobody} dev uplink", self.name, self.here));
    }

    fn remove(&self) {
        for args in [["link", "del", &self.link], ["netns", "del", &self.name]] {
            let _gone_already = Command::new("ip").args(args).output();
        }
    }

    /// Lets them through again.
    pub(crate) fn carry_packets(&self) {
        ip(&format!("neigh del {} dev {}", self.there, self.link));
        ip(&format!("-n {} neigh del {} dev uplink", self.name, self.here));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run ip of iproute2: {error}"));
    assert!(
        output.status.success(),
        "ip {args}: {}; these tests need root and network namespaces",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}
