//! Which routes, rules and blocks follow from a config.

use super::*;

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|s| s.parse().unwrap()).collect()
}

fn plan(list: &[&str], table: Table, fwmark: u32) -> RoutePlan {
    RoutePlan::new("qvpn0", nets(list), table, fwmark, 51820).unwrap()
}

fn described(plan: &RoutePlan) -> Vec<String> {
    plan.blocks().chain(plan.routes()).map(|r| r.describe("qvpn0")).collect()
}

#[test]
fn each_prefix_gets_a_route_and_a_worse_block_in_one_table() {
    let plan = plan(&["10.20.3.4/16", "fd20::/48"], Table::Auto, 0);
    assert_eq!(
        described(&plan),
        [
            "unreachable 10.20.0.0/16 table 29046 metric 1",
            "-6 unreachable fd20::/48 table 29046 metric 2",
            "10.20.0.0/16 dev qvpn0 table 29046 metric 0",
            "-6 fd20::/48 dev qvpn0 table 29046 metric 1",
        ]
    );
    let rules: Vec<String> = plan.rules().iter().map(ToString::to_string).collect();
    assert_eq!(
        rules,
        [
            "not fwmark 0x71760000/0xffff0000 lookup 29046 priority 113",
            "-6 not fwmark 0x71760000/0xffff0000 lookup 29046 priority 113",
        ]
    );
    assert_eq!(plan.fwmark(), OWN_MARK);
    assert!(plan.needs_src_valid_mark());
}

#[test]
fn default_routes_leave_link_local_and_multicast_alone() {
    let plan = plan(&["0.0.0.0/0", "::/0", "10.0.0.0/8"], Table::Auto, 0);
    assert_eq!(
        described(&plan)[..8],
        [
            "unreachable 0.0.0.0/0 table 29046 metric 1",
            "unreachable 10.0.0.0/8 table 29046 metric 1",
            "-6 unreachable ::/0 table 29046 metric 2",
            "throw 224.0.0.0/4 table 29046 metric 1",
            "throw 255.255.255.255/32 table 29046 metric 1",
            "throw 169.254.0.0/16 table 29046 metric 1",
            "-6 throw fe80::/10 table 29046 metric 2",
            "-6 throw ff00::/8 table 29046 metric 2",
        ]
    );
}

#[test]
fn a_mark_of_the_config_passes_by_a_rule_of_its_own() {
    let plan = plan(&["::/0"], Table::Auto, 0x77);
    assert_eq!((plan.fwmark(), plan.fwmark_mask()), (0x77, u32::MAX));
    assert!(!plan.needs_src_valid_mark());
    let rules: Vec<String> = plan.rules().iter().map(ToString::to_string).collect();
    assert_eq!(
        rules,
        [
            "-6 nop priority 114",
            "-6 fwmark 0x77 goto 114 priority 112",
            "-6 not fwmark 0x71760000/0xffff0000 lookup 29046 priority 113",
        ]
    );
}

#[test]
fn a_table_number_takes_all_and_off_takes_none() {
    let numbered = plan(&["0.0.0.0/0", "10.1.0.0/16"], Table::Id(77), 0);
    assert!(numbered.blocks().chain(numbered.routes()).all(|r| r.table == 77));
    assert!(numbered.rules().is_empty());
    assert_eq!(numbered.filtered().count(), 0, "the operator's rules decide what goes there");
    let off = plan(&["0.0.0.0/0"], Table::Off, 5);
    assert_eq!(off.blocks().count() + off.routes().count() + off.rules().len(), 0);
    assert_eq!((off.fwmark(), off.filtered().count()), (5, 0));
}

#[test]
fn protect_is_the_last_resort_where_others_make_the_routes() {
    let off = plan(&["10.20.0.0/16"], Table::Off, 0).with_protect(nets(&["10.64.0.0/10", "fd00::/8"]));
    assert_eq!(
        described(&off),
        ["unreachable 10.64.0.0/10 metric 4294967295", "-6 unreachable fd00::/8 metric 4294967295"]
    );
    assert_eq!(off.filtered().collect::<Vec<_>>(), nets(&["10.64.0.0/10", "fd00::/8"]));
}

#[test]
fn the_prefixes_of_a_removed_peer_stay_blocked_until_they_are_released() {
    let old = plan(&["10.20.0.0/16", "10.30.0.0/16", "10.40.0.0/16"], Table::Auto, 0);
    let new = plan(&["10.20.0.0/17", "10.0.0.0/11", "10.40.0.0/16"], Table::Auto, 0).keeping(&old);
    // 10.20.0.0/16 and 10.30.0.0/16 lie in 10.0.0.0/11, which a peer now has.
    assert_eq!(new.protect().len(), 0);
    let new = plan(&["10.20.0.0/17"], Table::Auto, 0).keeping(&old);
    assert_eq!(
        new.protect().iter().copied().collect::<Vec<_>>(),
        nets(&["10.20.0.0/16", "10.30.0.0/16", "10.40.0.0/16"])
    );
    assert!(described(&new).contains(&"unreachable 10.30.0.0/16 table 29046 metric 1".to_owned()));
    let released = new.releasing(&nets(&["10.30.0.0/16", "10.20.0.0/17"]));
    assert_eq!(
        released.protect().iter().copied().collect::<Vec<_>>(),
        nets(&["10.20.0.0/16", "10.40.0.0/16"])
    );
    let back = plan(&["10.20.0.0/16"], Table::Auto, 0).keeping(&released);
    assert_eq!(back.protect().iter().copied().collect::<Vec<_>>(), nets(&["10.40.0.0/16"]));
}

#[test]
fn an_mtu_stays_on_its_prefixes_and_above_ipv6s_minimum() {
    let plan = plan(&["10.1.0.0/16", "10.2.0.0/16", "fd01::/64"], Table::Auto, 0)
        .with_mtu(&nets(&["10.1.0.0/16", "fd01::/64", "10.9.0.0/16"]), Some(1200));
    let mtus: Vec<_> = plan.routes().map(|r| r.mtu).collect();
    assert_eq!(mtus, [Some(1200), None, Some(1280)]);
    assert!(plan.blocks().all(|r| r.mtu.is_none()));
}

#[test]
fn what_cannot_work_is_refused_with_words() {
    for name in ["", "a name", "sixteen-letters-", "..", "a/b", "a:b"] {
        let error = RoutePlan::new(name, [], Table::Auto, 0, 1).unwrap_err();
        assert_eq!(error, PlanError::InterfaceName(name.to_owned()));
    }
    for n in [0, 253, 255, GUARD_TABLE] {
        let error = RoutePlan::new("q", [], Table::Id(n), 0, 1).unwrap_err();
        assert_eq!(error, PlanError::ReservedTable(n));
    }
}

#[test]
fn the_port_of_a_kme_is_read_from_its_url() {
    let cases = [
        ("https://kme:8443", Some(8443)),
        ("https://[fd00::1]:99/api", Some(99)),
        ("https://[fd00::1]", Some(443)),
        ("https://kme/v1:2", Some(443)),
    ];
    for (url, port) in cases {
        assert_eq!(port_of(url), port, "{url}");
    }
}

#[test]
fn under_kernel_routes_tunnel_addresses_are_protected() {
    let key = "qvpn1-UqPFxf26QCxGqk1wiKfZx0Kxb+3jT49b63iPWVAbF2tw2xyJrx7Ogo\
         U1cpBpGXHe9rN17iNWKKSWARmubkuEbr6oe40Wmjg9EhJguZfDLJo=";
    let text = |routes: &str| {
        format!(
            "[interface]\nroutes = \"{routes}\"\n[[peer]]\nname = \"b\"\npublic_key = \"{key}\"\n\
             qkd = \"off\"\nallowed_ips = [\"10.20.0.0/16\"]\n\
             tunnel_address = [\"10.77.0.2\", \"fd77::2\", \"fe80::2\"]\n"
        )
    };
    let plan = |routes| {
        let config = Config::parse("/etc/qvpn/qvpn0.toml".as_ref(), &text(routes)).unwrap();
        RoutePlan::of(&config).unwrap().allowed().collect::<Vec<_>>()
    };
    assert_eq!(plan("config"), nets(&["10.20.0.0/16"]));
    assert_eq!(plan("kernel"), nets(&["10.20.0.0/16", "10.77.0.2/32", "fd77::2/128"]));
}
