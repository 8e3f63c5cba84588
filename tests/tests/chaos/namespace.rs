//! A network namespace of the test's own, joined to the machine by a pair of virtual interfaces.

use std::net::Ipv4Addr;
use std::process::Command;

use outrigger_tests::netns;

/// Removed when dropped, with its interfaces.
pub(crate) struct Namespace {
    namespace: netns::Namespace,
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
        let link = format!("og{id}");
        remove(&link);
        let namespace = netns::Namespace::create(&format!("og-{id}"));
        let namespace = Self { namespace, link, here: address(1), there: address(2) };
        let (name, link, peer) = (namespace.namespace.name(), &namespace.link, "uplink");
        netns::ip(&format!("link add {link} type veth peer name {peer} netns {name}"));
        netns::ip(&format!("addr add {}/30 dev {link}", namespace.here));
        netns::ip(&format!("link set {link} up"));
        namespace.namespace.ip(&format!("addr add {}/30 dev {peer}", namespace.there));
        namespace.namespace.ip(&format!("link set {peer} up"));
        namespace
    }

    /// What runs a command in it.
    pub(crate) fn prefix(&self) -> Vec<String> {
        self.namespace.prefix()
    }

    /// Drops every packet in both directions: each end sends to a link-layer address nobody has, so that
    /// frames are neither accepted nor answered. Needs no firewall in the kernel.
    pub(crate) fn drop_packets(&self) {
        let nobody = "lladdr 02:00:00:00:00:01 nud permanent";
        netns::ip(&format!("neigh replace {} {nobody} dev {}", self.there, self.link));
        self.namespace.ip(&format!("neigh replace {} {nobody} dev uplink", self.here));
    }

    /// Lets them through again.
    pub(crate) fn carry_packets(&self) {
        netns::ip(&format!("neigh del {} dev {}", self.there, self.link));
        self.namespace.ip(&format!("neigh del {} dev uplink", self.here));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.link);
    }
}

fn remove(link: &str) {
    let _gone_already = Command::new("ip").args(["link", "del", link]).output();
}
