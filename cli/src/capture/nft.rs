//! The rules as nftables has them: one table of our own, replaced as a whole in one transaction, and
//! what `nft -j list table` says of it. Pure.

use serde_json::Value;

use super::rules::{Plan, Range, Rule, Way};

/// Family and name of the table.
pub(crate) const TABLE: [&str; 2] = ["inet", "outrigger"];
/// Before destination NAT of others (-100, which is also that of iptables): the first to translate a
/// connection wins.
const PRIORITY: i64 = -110;

/// Makes the table what the plan says, whatever it was, when given to `nft -f -`. To delete a table
/// that is not there is an error, hence the empty one first.
pub(crate) fn install(plan: &Plan) -> String {
    let [family, name] = TABLE;
    let mut script =
        format!("table {family} {name}\ndelete table {family} {name}\ntable {family} {name} {{\n");
    for way in Way::BOTH {
        script.push_str(&format!(
            "\tchain {} {{\n\t\ttype nat hook {} priority {PRIORITY}; policy accept;\n",
            way.name(),
            hook(way)
        ));
        for rule in plan.rules(way) {
            script.push_str(&format!("\t\t{}\n", text(rule, way)));
        }
        script.push_str("\t}\n");
    }
    script.push_str("}\n");
    script
}

/// Takes the table away.
pub(crate) fn remove() -> String {
    format!("delete table {} {}\n", TABLE[0], TABLE[1])
}

const fn hook(way: Way) -> &'static str {
    match way {
        Way::Outbound => "output",
        Way::Inbound => "prerouting",
    }
}

const fn interface(way: Way) -> &'static str {
    match way {
        Way::Outbound => "oifname",
        Way::Inbound => "iifname",
    }
}

fn text(rule: Rule, way: Way) -> String {
    match rule {
        Rule::Loopback => format!("{} \"lo\" return", interface(way)),
        Rule::Forwarded => "fib daddr type != local return".to_owned(),
        Rule::Uid(uid) => format!("meta skuid {uid} return"),
        Rule::Port(port) => format!("tcp dport {port} return"),
        Rule::Range(range) => {
            let family = if range.is_ipv4() { "ip" } else { "ip6" };
            format!("{family} daddr {range} return")
        }
        Rule::Capture(port) => format!("tcp flags & (fin|syn|rst|ack) == syn redirect to :{port}"),
    }
}

/// The rules of one way in a listing of the table. A rule that is none of ours is told as it is
/// listed; so is a chain that is not where it should be.
///
/// # Errors
/// What is there and should not be, or is missing.
pub(crate) fn read(listing: &Value, way: Way) -> Result<Vec<Rule>, String> {
    let objects = listing["nftables"].as_array().map_or(&[][..], Vec::as_slice);
    let Some(chain) = objects.iter().map(|object| &object["chain"]).find(|chain| chain["name"] == way.name())
    else {
        return Err(format!("there is no chain {}", way.name()));
    };
    if chain["type"] != "nat" || chain["hook"] != hook(way) || chain["prio"] != PRIORITY {
        return Err(format!("the chain {} is not where it should be: {chain}", way.name()));
    }
    objects
        .iter()
        .map(|object| &object["rule"])
        .filter(|rule| rule["chain"] == way.name())
        .map(|listed| {
            rule(&listed["expr"], way)
                .ok_or_else(|| format!("the chain {} has a rule not ours: {}", way.name(), listed["expr"]))
        })
        .collect()
}

/// One rule as it is listed: a match and a verdict.
fn rule(expressions: &Value, way: Way) -> Option<Rule> {
    let [condition, verdict] = expressions.as_array()?.as_slice() else { return None };
    let condition = &condition["match"];
    let (left, right) = (&condition["left"], &condition["right"]);
    if let Some(port) = verdict["redirect"]["port"].as_u64() {
        // Versions of nft differ in how they list the mask of the flags.
        let first_segment = right == "syn" && left.to_string().contains("\"flags\"");
        return if first_segment { Some(Rule::Capture(u16::try_from(port).ok()?)) } else { None };
    }
    if !verdict.as_object()?.contains_key("return") {
        return None;
    }
    let local = left["fib"]["result"] == "type" && right == "local" && condition["op"] == "!=";
    if local {
        return Some(Rule::Forwarded);
    }
    if condition["op"] != "==" {
        return None;
    }
    if left["meta"]["key"] == interface(way) && right == "lo" {
        return Some(Rule::Loopback);
    }
    if left["meta"]["key"] == "skuid" {
        return Some(Rule::Uid(u32::try_from(right.as_u64()?).ok()?));
    }
    match (left["payload"]["protocol"].as_str()?, left["payload"]["field"].as_str()?) {
        ("tcp", "dport") => Some(Rule::Port(u16::try_from(right.as_u64()?).ok()?)),
        ("ip" | "ip6", "daddr") => range(right).map(Rule::Range),
        _ => None,
    }
}

fn range(listed: &Value) -> Option<Range> {
    if let Some(one) = listed.as_str() {
        return one.parse().ok();
    }
    let prefix = &listed["prefix"];
    let bits = u8::try_from(prefix["len"].as_u64()?).ok()?;
    Range::new(prefix["addr"].as_str()?.parse().ok()?, bits)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rules::tests::plan;
    use super::*;

    #[test]
    fn the_whole_table_is_replaced_in_one_transaction() {
        let script = install(&plan());
        assert!(
            script.starts_with("table inet outrigger\ndelete table inet outrigger\ntable inet outrigger {\n")
        );
        let lines: Vec<_> = script.lines().map(str::trim).collect();
        let expected = [
            "chain outbound {",
            "type nat hook output priority -110; policy accept;",
            "oifname \"lo\" return",
            "meta skuid 1337 return",
            "tcp dport 53 return",
            "tcp dport 443 return",
            "tcp dport 8443 return",
            "ip daddr 10.96.0.1/32 return",
            "ip6 daddr fd00:1::/64 return",
            "tcp flags & (fin|syn|rst|ack) == syn redirect to :15001",
            "}",
            "chain inbound {",
            "type nat hook prerouting priority -110; policy accept;",
            "iifname \"lo\" return",
            "fib daddr type != local return",
            "tcp dport 22 return",
            "tcp dport 15008 return",
            "tcp dport 15020 return",
            "tcp dport 9100 return",
            "tcp flags & (fin|syn|rst|ack) == syn redirect to :15006",
            "}",
        ];
        assert_eq!(lines[3..lines.len() - 1], expected);
    }

    #[test]
    fn what_others_put_into_the_table_is_noticed() {
        let chain = json!({"chain": {"name": "outbound", "type": "nat", "hook": "output", "prio": -110}});
        let rule = |expr: Value| json!({"rule": {"chain": "outbound", "expr": expr}});
        let lo = json!({"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "lo"}});
        let listing = |rule: Value| json!({"nftables": [chain, rule]});
        let ours = rule(json!([lo, {"return": null}]));
        assert_eq!(read(&listing(ours), Way::Outbound), Ok(vec![Rule::Loopback]));
        for foreign in [
            json!([{"accept": null}]),
            json!([lo, {"accept": null}]),
            json!([lo, {"counter": {}}, {"return": null}]),
        ] {
            assert!(read(&listing(rule(foreign.clone())), Way::Outbound).is_err(), "{foreign}");
        }
        let elsewhere = json!({"nftables": [{"chain": {"name": "outbound", "type": "nat", "hook": "input", "prio": -110}}]});
        assert!(read(&elsewhere, Way::Outbound).is_err());
        assert!(read(&json!({"nftables": []}), Way::Outbound).is_err());
    }
}
