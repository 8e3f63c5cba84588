//! The rules as iptables and ip6tables have them: two chains of our own in the nat table, filled and
//! hooked in by one `iptables-restore --noflush`, and what `iptables-save` says of them. Pure.

use super::rules::{Plan, Range, Rule, Way};

/// Empty chains that mark what was not there before us: the nat table, its OUTPUT, its PREROUTING.
/// iptables of the nftables kind makes them as they are needed.
const MARKS: [&str; 3] = ["OUTRIGGER_NO_TABLE", "OUTRIGGER_NO_OUTPUT", "OUTRIGGER_NO_PREROUTING"];

/// Which addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The program, or with `-save` and `-restore` its siblings.
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    const fn has(self, range: Range) -> bool {
        matches!((self, range.is_ipv4()), (Self::V4, true) | (Self::V6, false))
    }
}

/// What the nat table has of ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Found {
    /// Lines of `iptables-save` that hook our chains in or out.
    jumps: Vec<String>,
    /// The same that fill them.
    rules: Vec<String>,
    /// Our chains, marks among them.
    chains: Vec<String>,
    /// Marks of what is not there.
    absent: Vec<&'static str>,
}

/// What is in force: a way each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InForce {
    pub(crate) outbound: Vec<Rule>,
    pub(crate) inbound: Vec<Rule>,
}

const fn chain(way: Way) -> &'static str {
    match way {
        Way::Outbound => "OUTRIGGER_OUTPUT",
        Way::Inbound => "OUTRIGGER_PREROUTING",
    }
}

const fn hook(way: Way) -> &'static str {
    match way {
        Way::Outbound => "OUTPUT",
        Way::Inbound => "PREROUTING",
    }
}

fn jump(way: Way) -> String {
    format!("{} -p tcp -j {}", hook(way), chain(way))
}

impl Found {
    /// Reads what `iptables-save` printed: asked for `-t nat` it shows that table where there is none.
    /// `listing` is how nft lists the table, where it does.
    pub(crate) fn read(saved: &str, listing: Option<&str>) -> Self {
        let table = saved.lines().any(|line| line == "*nat");
        let there = |chain: &str| {
            let head = format!("chain {chain} {{");
            table && listing.is_none_or(|listing| listing.lines().any(|line| line.trim() == head))
        };
        let there = [table, there("OUTPUT"), there("PREROUTING")];
        let absent = MARKS.into_iter().zip(there).filter(|(_, there)| !there).map(|(mark, _)| mark);
        let mut found = Self { absent: absent.collect(), ..Self::default() };
        let saved = saved.lines().skip_while(|line| *line != "*nat").take_while(|line| *line != "COMMIT");
        let ours = |name: &str| MARKS.contains(&name) || Way::BOTH.iter().any(|way| name == chain(*way));
        for line in saved {
            if let Some(name) = line.strip_prefix(':').and_then(|line| line.split(' ').next()) {
                if ours(name) {
                    found.chains.push(name.to_owned());
                }
            } else if let Some(rule) = line.strip_prefix("-A ") {
                if rule.split(' ').next().is_some_and(ours) {
                    found.rules.push(rule.to_owned());
                } else if rule.split(' ').skip_while(|word| *word != "-j").nth(1).is_some_and(ours) {
                    found.jumps.push(rule.to_owned());
                }
            }
        }
        found
    }

    /// Whether there is anything of ours.
    pub(crate) fn is_any(&self) -> bool {
        !self.chains.is_empty()
    }

    /// Built-in chains that were made for us.
    pub(crate) fn made(&self) -> impl Iterator<Item = &str> {
        self.chains
            .iter()
            .filter_map(|chain| chain.strip_prefix("OUTRIGGER_NO_"))
            .filter(|chain| *chain != "TABLE")
    }

    /// Whether the nat table was.
    pub(crate) fn made_table(&self) -> bool {
        self.chains.iter().any(|chain| chain == MARKS[0])
    }

    /// Makes our chains what the plan says, whatever they were. Hooked in first, since the first rule to
    /// translate a connection wins.
    pub(crate) fn install(&self, plan: &Plan, family: Family) -> String {
        let mut script = "*nat\n".to_owned();
        // A chain that is named is made, or emptied.
        for way in Way::BOTH {
            script.push_str(&format!(":{} - [0:0]\n", chain(way)));
        }
        // Once ours are there, so is what they need.
        for mark in self.absent.iter().filter(|_| !self.is_any()) {
            script.push_str(&format!(":{mark} - [0:0]\n"));
        }
        for way in Way::BOTH {
            for rule in plan.rules(way) {
                if let Some(text) = text(rule, way, family) {
                    script.push_str(&format!("-A {} {text}\n", chain(way)));
                }
            }
        }
        let wanted = Way::BOTH.map(jump);
        if self.jumps.iter().any(|jump| !wanted.contains(jump)) || self.jumps.len() > wanted.len() {
            script.push_str(&self.unhook());
            script.push_str(&wanted.map(|jump| hook_in(&jump)).concat());
        } else {
            let missing = wanted.iter().filter(|jump| !self.jumps.contains(jump));
            script.push_str(&missing.map(|jump| hook_in(jump)).collect::<String>());
        }
        script.push_str("COMMIT\n");
        script
    }

    /// Takes away what is ours.
    pub(crate) fn remove(&self) -> String {
        let chains =
            |order: &str| self.chains.iter().map(|chain| format!("{order} {chain}\n")).collect::<String>();
        format!("*nat\n{}{}{}COMMIT\n", self.unhook(), chains("-F"), chains("-X"))
    }

    fn unhook(&self) -> String {
        self.jumps.iter().map(|jump| format!("-D {jump}\n")).collect()
    }

    /// What is in force.
    ///
    /// # Errors
    /// What is there and should not be, or is missing.
    pub(crate) fn rules(&self, family: Family) -> Result<InForce, String> {
        for way in Way::BOTH {
            let count = self.jumps.iter().filter(|found| **found == jump(way)).count();
            if count != 1 {
                return Err(format!("{} has {count} jumps to {}", hook(way), chain(way)));
            }
        }
        if self.jumps.len() != Way::BOTH.len() {
            return Err(format!("our chains are used elsewhere, too: {}", self.jumps.join("; ")));
        }
        let of = |way: Way| {
            let rules = self.rules.iter().filter_map(|rule| rule.strip_prefix(chain(way))?.strip_prefix(' '));
            rules
                .map(|rule| {
                    parse(rule, way, family)
                        .ok_or_else(|| format!("{} has a rule not ours: {rule}", chain(way)))
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(InForce { outbound: of(Way::Outbound)?, inbound: of(Way::Inbound)? })
    }
}

fn hook_in(jump: &str) -> String {
    let (chain, rule) = jump.split_once(' ').unwrap_or((jump, ""));
    format!("-I {chain} 1 {rule}\n")
}

/// A rule exactly as `iptables-save` prints it; nothing if it is of the other family.
fn text(rule: Rule, way: Way, family: Family) -> Option<String> {
    let interface = match way {
        Way::Outbound => "-o",
        Way::Inbound => "-i",
    };
    Some(match rule {
        Rule::Loopback => format!("{interface} lo -j RETURN"),
        Rule::Forwarded => "-m addrtype ! --dst-type LOCAL -j RETURN".to_owned(),
        Rule::Uid(uid) => format!("-m owner --uid-owner {uid} -j RETURN"),
        Rule::Port(port) => format!("-p tcp -m tcp --dport {port} -j RETURN"),
        Rule::Range(range) if family.has(range) => format!("-d {range} -j RETURN"),
        Rule::Range(_) => return None,
        Rule::Capture(port) => {
            format!("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j REDIRECT --to-ports {port}")
        }
    })
}

/// The rule that is printed so.
fn parse(line: &str, way: Way, family: Family) -> Option<Rule> {
    let between = |start: &str, end: &str| line.strip_prefix(start)?.strip_suffix(end);
    let number = |start: &str, end: &str| between(start, end)?.parse::<u32>().ok();
    let rule = match line {
        "-o lo -j RETURN" | "-i lo -j RETURN" => Rule::Loopback,
        "-m addrtype ! --dst-type LOCAL -j RETURN" => Rule::Forwarded,
        _ => {
            let port = number("-p tcp -m tcp --dport ", " -j RETURN");
            let capture = number("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j REDIRECT --to-ports ", "");
            let uid = number("-m owner --uid-owner ", " -j RETURN");
            match (uid, port, capture) {
                (Some(uid), ..) => Rule::Uid(uid),
                (_, Some(port), _) => Rule::Port(u16::try_from(port).ok()?),
                (.., Some(port)) => Rule::Capture(u16::try_from(port).ok()?),
                (None, None, None) => Rule::Range(between("-d ", " -j RETURN")?.parse().ok()?),
            }
        }
    };
    // Interfaces are printed by way, ranges by family.
    (text(rule, way, family).as_deref() == Some(line)).then_some(rule)
}

/// The plan both families carry out together.
pub(crate) fn plan(v4: &InForce, v6: Option<&InForce>) -> Option<Plan> {
    let mut outbound = v4.outbound.clone();
    if let Some(v6) = v6 {
        let is_range = |rule: &&Rule| matches!(rule, Rule::Range(_));
        let others =
            |rules: &[Rule]| rules.iter().filter(|rule| !is_range(rule)).copied().collect::<Vec<_>>();
        if others(&v4.outbound) != others(&v6.outbound) || v4.inbound != v6.inbound {
            return None;
        }
        let last = outbound.len().checked_sub(1)?;
        outbound.splice(last..last, v6.outbound.iter().filter(is_range).copied());
    }
    Plan::of(&outbound, &v4.inbound)
}

#[cfg(test)]
mod tests {
    use super::super::rules::tests::plan as example;
    use super::*;

    /// What `iptables-save` prints after `script` on an otherwise foreign table.
    fn saved(script: &str) -> String {
        let foreign = "-A OUTPUT -d 192.0.2.1/32 -p tcp -j DNAT --to-destination 192.0.2.2\n";
        let lines = script.lines().filter(|line| !line.starts_with('*') && *line != "COMMIT");
        let lines = lines
            .map(|line| line.replace("-I OUTPUT 1", "-A OUTPUT").replace("-I PREROUTING 1", "-A PREROUTING"));
        format!("*nat\n:OUTPUT ACCEPT [0:0]\n{}\n{foreign}COMMIT\n", lines.collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn what_is_installed_is_read_back() {
        let fresh = Found::read("", None);
        let [v4, v6] =
            Family::BOTH.map(|family| Found::read(&saved(&fresh.install(&example(), family)), None));
        let v4 = v4.rules(Family::V4).unwrap();
        let v6 = v6.rules(Family::V6).unwrap();
        assert_eq!(plan(&v4, Some(&v6)), Some(example()));
        assert_eq!(plan(&v4, None).unwrap().exclude_ranges, [example().exclude_ranges[0]]);
        let mut other = v6;
        other.inbound.remove(2);
        assert_eq!(plan(&v4, Some(&other)), None);
    }

    #[test]
    fn chains_are_hooked_in_once_and_out_as_they_are_found() {
        let once = Found::read("", None).install(&example(), Family::V4);
        assert_eq!(once.matches("-I ").count(), 2, "{once}");
        let found = Found::read(&saved(&once), None);
        assert!(found.is_any() && found.made_table());
        assert_eq!(found.made().collect::<Vec<_>>(), ["OUTPUT", "PREROUTING"]);
        let twice = found.install(&example(), Family::V4);
        assert_eq!(twice.matches("-I ").count(), 0, "{twice}");
        let remove = found.remove();
        for line in [
            "-D OUTPUT -p tcp -j OUTRIGGER_OUTPUT",
            "-D PREROUTING -p tcp -j OUTRIGGER_PREROUTING",
            "-X OUTRIGGER_OUTPUT",
            "-X OUTRIGGER_PREROUTING",
            "-X OUTRIGGER_NO_TABLE",
        ] {
            assert!(remove.lines().any(|found| found == line), "{line} in {remove}");
        }
        assert!(!remove.contains("192.0.2.1"));
        let foreign = "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
        let foreign = |listing| Found::read(foreign, listing).install(&example(), Family::V4);
        assert!(!foreign(None).contains("OUTRIGGER_NO_"));
        let marked = foreign(Some("table ip nat {\n\tchain OUTPUT {\n"));
        assert_eq!(marked.matches("OUTRIGGER_NO_").count(), 1, "{marked}");
        assert!(marked.contains("OUTRIGGER_NO_PREROUTING"));
    }

    #[test]
    fn a_jump_more_or_a_foreign_rule_is_told() {
        let text = saved(&Found::read("", None).install(&example(), Family::V4));
        for (change, told) in [
            (text.replace("COMMIT", "-A OUTPUT -p tcp -j OUTRIGGER_OUTPUT\nCOMMIT"), "2 jumps"),
            (text.replace("-A OUTPUT -p tcp -j OUTRIGGER_OUTPUT", ""), "0 jumps"),
            (text.replace("COMMIT", "-A POSTROUTING -j OUTRIGGER_OUTPUT\nCOMMIT"), "elsewhere"),
            (text.replace("COMMIT", "-A OUTRIGGER_OUTPUT -j ACCEPT\nCOMMIT"), "not ours: -j ACCEPT"),
        ] {
            let found = Found::read(&change, None);
            assert!(found.rules(Family::V4).unwrap_err().contains(told), "{told}");
            // Installed again, there is one jump each.
            let again = found.install(&example(), Family::V4);
            let balance = found.jumps.len() + again.matches("-I ").count() - again.matches("-D ").count();
            assert_eq!(balance, 2, "{again}");
        }
    }
}
