//! What is captured, whichever program puts it in force: two ordered lists of rules, and back from
//! those lists to the options they were made of. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;

/// DNS over TCP: an application must be able to resolve names whatever becomes of the sidecar.
const DNS: u16 = 53;
/// SSH to this machine: who captures by mistake must be able to come back and mend it.
const SSH: u16 = 22;

/// What the redirect is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Plan {
    /// Where the sidecar takes the application's connections.
    pub(crate) outbound_port: u16,
    /// Where it takes connections to the application that do not come over the mesh.
    pub(crate) inbound_port: u16,
    /// Where other sidecars connect.
    pub(crate) mesh_port: u16,
    /// Where its health and metrics are.
    pub(crate) admin_port: u16,
    /// The user id the sidecar runs as.
    pub(crate) uid: u32,
    /// Ports the application connects to without the sidecar.
    pub(crate) exclude_outbound_ports: Vec<u16>,
    /// Ports of the application that are reached without the sidecar.
    pub(crate) exclude_inbound_ports: Vec<u16>,
    /// Addresses the application connects to without the sidecar.
    pub(crate) exclude_ranges: Vec<Range>,
}

/// One rule. The first one that applies to a connection decides; only TCP's first segment (SYN) is
/// looked at, so that connections older than the rules, which the kernel may not have tracked, are
/// never taken for new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Over the loopback interface: not captured.
    Loopback,
    /// Not addressed to this machine, which only forwards it: not captured.
    Forwarded,
    /// Made by this user: not captured.
    Uid(u32),
    /// To this TCP port: not captured.
    Port(u16),
    /// To these addresses: not captured.
    Range(Range),
    /// Anything else goes to this port of this machine.
    Capture(u16),
}

/// Which way a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Made here.
    Outbound,
    /// Arriving here.
    Inbound,
}

impl Way {
    pub(crate) const BOTH: [Self; 2] = [Self::Outbound, Self::Inbound];

    /// For people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

impl Plan {
    /// The rules of one way, in order.
    pub(crate) fn rules(&self, way: Way) -> Vec<Rule> {
        match way {
            Way::Outbound => {
                let mut rules = vec![Rule::Loopback, Rule::Uid(self.uid), Rule::Port(DNS)];
                rules.extend(self.exclude_outbound_ports.iter().copied().map(Rule::Port));
                rules.extend(self.exclude_ranges.iter().copied().map(Rule::Range));
                rules.push(Rule::Capture(self.outbound_port));
                rules
            }
            Way::Inbound => {
                let own = [SSH, self.mesh_port, self.admin_port];
                let mut rules = vec![Rule::Loopback, Rule::Forwarded];
                rules.extend(
                    own.into_iter().chain(self.exclude_inbound_ports.iter().copied()).map(Rule::Port),
                );
                rules.push(Rule::Capture(self.inbound_port));
                rules
            }
        }
    }

    /// The plan that these rules carry out, if they are the whole of one.
    pub(crate) fn of(outbound: &[Rule], inbound: &[Rule]) -> Option<Self> {
        let (
            &[Rule::Loopback, Rule::Uid(uid), Rule::Port(DNS), ref open @ .., Rule::Capture(outbound_port)],
            &[
                Rule::Loopback,
                Rule::Forwarded,
                Rule::Port(SSH),
                Rule::Port(mesh_port),
                Rule::Port(admin_port),
                ref closed @ ..,
                Rule::Capture(inbound_port),
            ],
        ) = (outbound, inbound)
        else {
            return None;
        };
        let ports = |rules: &[Rule]| {
            rules
                .iter()
                .filter_map(|rule| if let Rule::Port(port) = rule { Some(*port) } else { None })
                .collect()
        };
        let plan = Self {
            outbound_port,
            inbound_port,
            mesh_port,
            admin_port,
            uid,
            exclude_outbound_ports: ports(open),
            exclude_inbound_ports: ports(closed),
            exclude_ranges: open
                .iter()
                .filter_map(|rule| if let Rule::Range(range) = rule { Some(*range) } else { None })
                .collect(),
        };
        // Whatever does not belong there is lost above.
        (plan.rules(Way::Outbound) == outbound && plan.rules(Way::Inbound) == inbound).then_some(plan)
    }

    /// The same with ports and ranges sorted and named once, so that equal wishes give equal rules.
    #[must_use]
    pub(crate) fn normal(mut self) -> Self {
        for ports in [&mut self.exclude_outbound_ports, &mut self.exclude_inbound_ports] {
            ports.sort_unstable();
            ports.dedup();
        }
        self.exclude_ranges.sort_unstable();
        self.exclude_ranges.dedup();
        self
    }
}

/// A range of addresses, as `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    /// The first address.
    first: IpAddr,
    /// Leading bits that must agree: up to 32, or 128 for IPv6.
    bits: u8,
}

impl Range {
    /// The range of which `address` is a part; nothing when the address has fewer bits.
    pub(crate) fn new(address: IpAddr, bits: u8) -> Option<Self> {
        let first = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32u32.checked_sub(bits.into())?).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128u32.checked_sub(bits.into())?).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
        };
        Some(Self { first, bits })
    }

    pub(crate) const fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a range of addresses; write 10.0.0.0/8, fd00::/8 or one address");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        Self::new(address, bits.unwrap_or(whole)).ok_or_else(wrong)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl Serialize for Range {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A plan that says something everywhere.
    pub(crate) fn plan() -> Plan {
        Plan {
            outbound_port: 15001,
            inbound_port: 15006,
            mesh_port: 15008,
            admin_port: 15020,
            uid: 1337,
            exclude_outbound_ports: vec![443, 8443],
            exclude_inbound_ports: vec![9100],
            exclude_ranges: ["10.96.0.1/32", "fd00:1::/64"].map(|range| range.parse().unwrap()).to_vec(),
        }
    }

    #[test]
    fn rules_tell_the_plan_they_were_made_of() {
        let bare = Plan {
            exclude_outbound_ports: vec![],
            exclude_inbound_ports: vec![],
            exclude_ranges: vec![],
            ..plan()
        };
        for plan in [plan(), bare] {
            assert_eq!(Plan::of(&plan.rules(Way::Outbound), &plan.rules(Way::Inbound)), Some(plan));
        }
    }

    #[test]
    fn a_rule_more_or_less_is_no_plan() {
        let (outbound, inbound) = (plan().rules(Way::Outbound), plan().rules(Way::Inbound));
        for missing in [0, 1, 2, outbound.len() - 1] {
            let mut rules = outbound.clone();
            rules.remove(missing);
            assert_eq!(Plan::of(&rules, &inbound), None, "without {:?}", outbound[missing]);
        }
        for missing in [0, 1, inbound.len() - 1] {
            let mut rules = inbound.clone();
            rules.remove(missing);
            assert_eq!(Plan::of(&outbound, &rules), None, "without {:?}", inbound[missing]);
        }
        let mut rules = outbound;
        rules.insert(3, Rule::Uid(0));
        assert_eq!(Plan::of(&rules, &inbound), None);
        assert_eq!(Plan::of(&[], &inbound), None);
    }

    #[test]
    fn ranges_are_read_and_shown_by_their_first_address() {
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::1/8", "fd00::/8"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Range>().unwrap().to_string(), shown);
        }
        for wrong in ["10.0.0.0/33", "fd00::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1", "all", ""] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }
}
