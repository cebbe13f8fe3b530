//! Whether this machine's firewall accepts the tunnel's datagrams and forwards its packets. It is read from
//! `nft -json`, which also shows the rules of iptables.

use std::fmt;
use std::path::Path;

use qvpn_api::Config;
use serde_json::Value;

use super::command::json;
use super::finding::Finding;

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let (first, last) = ports(config);
    let text =
        if first == last { format!("UDP port {first}") } else { format!("UDP ports {first} to {last}") };
    let tunnel = &config.interface.name;
    let Some(rules) = json("nft", &["-json".to_owned(), "list".to_owned(), "ruleset".to_owned()]) else {
        return vec![Finding::unknown(
            "firewall",
            format!(
                "the firewall can't be read here (it needs root and nft); it must accept {text} in both \
                 directions, and forward packets of {tunnel}"
            ),
            "sudo nft list ruleset",
        )];
    };
    let outer = match closed_chain(&rules, "input", |rule| names_port(rule, u64::from(first))) {
        None => Finding::ok("firewall", format!("no nftables chain of this machine blocks {text}")),
        Some(chain) => Finding::warning(
            "firewall",
            format!("the chain {chain} drops unmatched packets, and no rule names {text}"),
            chain.opened(first, last),
        ),
    };
    let inner = match closed_chain(&rules, "forward", |rule| names_device(rule, tunnel)) {
        None => Finding::ok("forward", format!("no nftables chain drops packets that {tunnel} forwards")),
        Some(chain) => Finding::warning(
            "forward",
            format!(
                "the chain {chain} drops unmatched packets, and no rule names {tunnel}, so only this \
                 machine itself can use the tunnel"
            ),
            chain.forwarding(tunnel),
        ),
    };
    vec![outer, inner]
}

/// A chain of nftables.
#[derive(Debug, PartialEq)]
struct Chain {
    family: String,
    table: String,
    name: String,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

impl Chain {
    fn of(item: &Value, name: &str) -> Option<Self> {
        let word = |key: &str| item[key].as_str().map(str::to_owned);
        Some(Self { family: word("family")?, table: word("table")?, name: word(name)? })
    }

    fn is_of_firewalld(&self) -> bool {
        self.table == "firewalld"
    }

    fn is_of_ufw(&self) -> bool {
        ["INPUT", "FORWARD"].contains(&self.name.as_str()) && Path::new("/usr/sbin/ufw").exists()
    }

    /// Returns the command that opens these UDP ports. A program that owns its table would overwrite our
    /// rule, so its own command is used.
    fn opened(&self, first: u16, last: u16) -> String {
        let ports =
            |between: char| if first == last { first.to_string() } else { format!("{first}{between}{last}") };
        if self.is_of_firewalld() {
            let ports = ports('-');
            return format!("firewall-cmd --permanent --add-port={ports}/udp && firewall-cmd --reload");
        }
        if self.is_of_ufw() {
            return format!("ufw allow {}/udp", ports(':'));
        }
        format!("nft insert rule {self} udp dport {} accept", ports('-'))
    }

    /// Returns the command that accepts the tunnel's forwarded packets.
    fn forwarding(&self, tunnel: &str) -> String {
        if self.is_of_firewalld() {
            return format!(
                "firewall-cmd --permanent --zone=trusted --add-interface={tunnel} && firewall-cmd \
                 --reload # and the LAN's interface, or a policy between both zones"
            );
        }
        if self.is_of_ufw() {
            return format!("ufw route allow in on {tunnel} && ufw route allow out on {tunnel}");
        }
        format!(
            "nft insert rule {self} iifname {tunnel} accept && nft insert rule {self} oifname {tunnel} \
             accept"
        )
    }
}

fn ports(config: &Config) -> (u16, u16) {
    let first = config.interface.listen_port;
    (first, first.saturating_add(u16::from(config.interface.lanes) - 1))
}

/// Returns a chain of this hook that drops unmatched packets, by its policy or by a last rule, unless some
/// rule of the ruleset is `known`.
fn closed_chain(ruleset: &Value, hook: &str, known: impl Fn(&Value) -> bool) -> Option<Chain> {
    let items = ruleset["nftables"].as_array()?;
    // Our own filter mentions the port and lets it through, which says nothing about other chains.
    let foreign = |object: &&Value| !object["table"].as_str().is_some_and(|name| name.starts_with("qvpn-"));
    let rules = || items.iter().filter_map(|item| item.get("rule")).filter(foreign);
    if rules().any(|rule| known(&rule["expr"])) {
        return None;
    }
    let drops_the_rest = |chain: &Chain| {
        let of_it = rules().filter(|rule| Chain::of(rule, "chain").as_ref() == Some(chain));
        // There is no condition before the verdict.
        let mut first = of_it.filter_map(|rule| rule["expr"].as_array()?.first());
        first.any(|verdict| verdict.get("drop").is_some() || verdict.get("reject").is_some())
    };
    let chains = items.iter().filter_map(|item| item.get("chain")).filter(foreign);
    let chains = chains.filter(|chain| chain["hook"] == hook);
    let mut chains = chains.filter_map(|item| Some((Chain::of(item, "name")?, item["policy"] == "drop")));
    chains.find(|(chain, by_policy)| *by_policy || drops_the_rest(chain)).map(|(chain, _)| chain)
}

/// Whether `value` contains a number, or a range around it, anywhere.
fn names_port(value: &Value, n: u64) -> bool {
    match value {
        Value::Number(number) => number.as_u64() == Some(n),
        Value::Array(list) => list.iter().any(|item| names_port(item, n)),
        Value::Object(map) => {
            let in_range = map.get("range").and_then(Value::as_array).is_some_and(|range| {
                let end = |i: usize| range.get(i).and_then(Value::as_u64);
                end(0).is_some_and(|a| a <= n) && end(1).is_some_and(|b| n <= b)
            });
            in_range || map.values().any(|item| names_port(item, n))
        }
        _ => false,
    }
}

/// Whether `value` contains an interface, or a pattern that matches it, anywhere.
fn names_device(value: &Value, device: &str) -> bool {
    match value {
        Value::String(text) => {
            text == device
                || text.strip_suffix('*').is_some_and(|begin| !begin.is_empty() && device.starts_with(begin))
        }
        Value::Array(list) => list.iter().any(|item| names_device(item, device)),
        Value::Object(map) => map.values().any(|item| names_device(item, device)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_firewall_that_names_the_port_is_open() {
        let input = |table: &str, name: &str, policy: &str| {
            json!({"chain": {
                "family": "inet", "table": table, "name": name, "hook": "input", "policy": policy,
            }})
        };
        let rule = |table: &str, chain: &str, expr: Value| {
            let rule = json!({"family": "inet", "table": table, "chain": chain, "expr": expr});
            json!({"rule": rule})
        };
        let port = |right: Value| {
            let left = json!({"payload": {"protocol": "udp", "field": "dport"}});
            json!([{"match": {"op": "==", "left": left, "right": right}}, {"accept": null}])
        };
        let chain =
            |table: &str, name: &str| Chain { family: "inet".into(), table: table.into(), name: name.into() };
        let shut =
            |rules: Value| closed_chain(&json!({"nftables": rules}), "input", |rule| names_port(rule, 51820));
        let by_policy = input("filter", "input", "drop");
        let closed = Some(chain("filter", "input"));
        assert_eq!(shut(json!([by_policy])), closed);
        let ssh = rule("filter", "input", port(json!(22)));
        assert_eq!(shut(json!([by_policy, ssh])), closed);
        for open in [json!(51820), json!({"range": [51000, 52000]}), json!({"set": [22, 51820]})] {
            let rules = json!([by_policy, rule("filter", "input", port(open.clone()))]);
            assert_eq!(shut(rules), None, "{open}");
        }
        assert_eq!(shut(json!([])), None);

        // As with firewalld: the policy accepts and the last rule rejects; a rule with a condition blocks
        // nothing.
        let named = input("firewalld", "filter_INPUT", "accept");
        let state = json!({"ct": {"key": "state"}});
        let invalid = json!([{"match": {"op": "in", "left": state, "right": "invalid"}}, {"drop": null}]);
        let invalid = rule("firewalld", "filter_INPUT", invalid);
        let rest = rule(
            "firewalld",
            "filter_INPUT",
            json!([{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]),
        );
        assert_eq!(shut(json!([named, invalid])), None);
        let found = shut(json!([named, invalid, rest]));
        assert_eq!(found, Some(chain("firewalld", "filter_INPUT")));
        let fix = "firewall-cmd --permanent --add-port=51820-51823/udp && firewall-cmd --reload";
        assert_eq!(found.unwrap().opened(51820, 51823), fix);
        assert_eq!(chain("a", "b").opened(51820, 51820), "nft insert rule inet a b udp dport 51820 accept");
    }

    #[test]
    fn a_firewall_that_names_the_tunnel_lets_it_forward() {
        let chain = json!({"chain": {
            "family": "ip", "table": "filter", "name": "fwd", "hook": "forward", "policy": "drop",
        }});
        let rule = |device: &str| {
            let left = json!({"meta": {"key": "iifname"}});
            let expr = json!([{"match": {"op": "==", "left": left, "right": device}}, {"accept": null}]);
            json!({"rule": {"family": "ip", "table": "filter", "chain": "fwd", "expr": expr}})
        };
        let shut = |rules: Value| {
            closed_chain(&json!({"nftables": rules}), "forward", |rule| names_device(rule, "qvpn0"))
        };
        let found = shut(json!([chain, rule("eth0"), rule("*"), rule("qvpn1*")])).unwrap();
        let fix = "nft insert rule ip filter fwd iifname qvpn0 accept && nft insert rule ip filter fwd \
         oifname qvpn0 accept";
        assert_eq!(found.forwarding("qvpn0"), fix);
        for named in ["qvpn0", "qvpn*"] {
            assert_eq!(shut(json!([chain, rule(named)])), None, "{named}");
        }
    }
}
