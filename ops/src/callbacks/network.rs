//! Networks, and which addresses are out of bounds for callbacks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network in CIDR form (RFC 4632), such as `10.0.0.0/8`. Where an address is written alone, that address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    length: u8,
}

impl Network {
    const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Self {
        Self { first: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), length }
    }

    const fn v6(first: u128, length: u8) -> Self {
        Self { first: IpAddr::V6(Ipv6Addr::from_bits(first)), length }
    }

    /// Its first address.
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// How many bits its addresses begin with alike.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Whether the address is in it. An IPv4 address is in no IPv6 network, whichever way it could be written.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                (first.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.length)
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                (first.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.length)
            }
            _ => false,
        }
    }

    /// Whether the address is the network's first one: no bit is set behind the length, which is possible.
    fn is_whole(&self) -> bool {
        let first = match self.first {
            IpAddr::V4(first) => first.to_bits().trailing_zeros() + u32::from(self.length) >= 32,
            IpAddr::V6(first) => first.to_bits().trailing_zeros() + u32::from(self.length) >= 128,
        };
        first && self.length <= longest(self.first)
    }
}

const fn longest(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Not a network: no address, a length that is too long, or bits of the address set behind the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoNetwork;

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => {
                let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
                (address, Some(length.parse().ok().filter(|_| digits).ok_or(NoNetwork)?))
            }
            None => (text, None),
        };
        let first: IpAddr = address.parse().map_err(|_| NoNetwork)?;
        let network = Self { first, length: length.unwrap_or(longest(first)) };
        Some(network).filter(Self::is_whole).ok_or(NoNetwork)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

/// What callbacks may not reach unless the operator allows it. IANA's registries of special-purpose addresses (RFC 6890),
/// but for the parts of them that are ordinary addresses of the internet.
const OUT_OF_BOUNDS: &[(Network, &str)] = &[
    (Network::v4(0, 0, 0, 0, 8), "an unspecified address"),
    (Network::v4(10, 0, 0, 0, 8), "an address of a private network"),
    (Network::v4(100, 64, 0, 0, 10), "an address behind a carrier's NAT"),
    (Network::v4(127, 0, 0, 0, 8), "a loopback address"),
    // Also where clouds keep a machine's credentials.
    (Network::v4(169, 254, 0, 0, 16), "a link-local address"),
    (Network::v4(172, 16, 0, 0, 12), "an address of a private network"),
    (Network::v4(192, 0, 0, 0, 24), "an address reserved for protocols"),
    (Network::v4(192, 0, 2, 0, 24), "an address of documentation"),
    (Network::v4(192, 88, 99, 0, 24), "a relay's address (6to4)"),
    (Network::v4(192, 168, 0, 0, 16), "an address of a private network"),
    (Network::v4(198, 18, 0, 0, 15), "an address of benchmarks"),
    (Network::v4(198, 51, 100, 0, 24), "an address of documentation"),
    (Network::v4(203, 0, 113, 0, 24), "an address of documentation"),
    (Network::v4(224, 0, 0, 0, 4), "a multicast address"),
    (Network::v4(240, 0, 0, 0, 4), "a reserved address"),
    // A public address that means the host itself on every machine in Azure.
    (Network::v4(168, 63, 129, 16, 32), "an address of the cloud's own services"),
    // The order tells what is named: the smaller network first.
    (Network::v6(0, 128), "an unspecified address"),
    (Network::v6(1, 128), "a loopback address"),
    (MAPPED, "an IPv4 address in IPv6"),
    (COMPATIBLE, "an IPv4 address in IPv6"),
    (NAT64, "a translated IPv4 address (NAT64)"),
    (Network::v6(0xfc00 << 112, 7), "an address of a private network"),
    (Network::v6(0xfe80 << 112, 10), "a link-local address"),
    (Network::v6(0xff00 << 112, 8), "a multicast address"),
    (Network::v6(0x2001 << 112, 32), "a tunnelled address (Teredo)"),
    // With benchmarks (2001:2::/48) and ORCHID (2001:10::/28, 2001:20::/28).
    (Network::v6(0x2001 << 112, 23), "an address reserved for protocols"),
    (Network::v6(0x2001_0db8 << 96, 32), "an address of documentation"),
    (SIX_TO_FOUR, "a tunnelled address (6to4)"),
    (Network::v6(0x3fff << 112, 20), "an address of documentation"),
];

/// `::ffff:0:0/96` (RFC 4291 §2.5.5.2).
const MAPPED: Network = Network::v6(0xffff_0000_0000, 96);
/// `::/96` (RFC 4291 §2.5.5.1).
const COMPATIBLE: Network = Network::v6(0, 96);
/// `64:ff9b::/96` (RFC 6052 §2.1).
const NAT64: Network = Network::v6(0x0064_ff9b << 96, 96);
/// `2002::/16` (RFC 3056 §2).
const SIX_TO_FOUR: Network = Network::v6(0x2002 << 112, 16);
/// All that is assigned as ordinary addresses of the internet: nothing outside of it is one.
const GLOBAL: Network = Network::v6(0x2000 << 112, 3);

/// The IPv4 address that an IPv6 one leads to.
fn inside(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = address.to_bits();
    let at = |shift: u32| u32::try_from((bits >> shift) & u128::from(u32::MAX)).ok().map(Ipv4Addr::from_bits);
    let within = |network: Network| network.contains(address.into());
    if within(MAPPED) || within(NAT64) || (within(COMPATIBLE) && bits > 1) {
        at(0)
    } else if within(SIX_TO_FOUR) {
        at(80)
    } else {
        None
    }
}

/// What an address is that callbacks may not reach, in words; `None` if they may reach it. An IPv6 address that leads to
/// an IPv4 one must be within bounds itself, and so must be the other.
pub fn out_of_bounds(address: IpAddr, allowed: &[Network]) -> Option<&'static str> {
    let fault = if allowed.iter().any(|network| network.contains(address)) {
        None
    } else {
        let listed = OUT_OF_BOUNDS.iter().find(|(network, _)| network.contains(address)).map(|(_, what)| *what);
        listed.or_else(|| (address.is_ipv6() && !GLOBAL.contains(address)).then_some("a reserved address"))
    };
    fault.or_else(|| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => out_of_bounds(inside(address)?.into(), allowed),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|_| panic!("{text} is an address"))
    }

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| text.parse().unwrap_or_else(|_| panic!("{text} is a network"))).collect()
    }

    #[test]
    fn each_special_range_is_out_of_bounds_from_its_first_address_to_its_last_and_not_beyond() {
        // First, last, and what is just outside: "" where that is special too.
        let ranges = [
            ("0.0.0.0", "0.255.255.255", "", "1.0.0.0"),
            ("10.0.0.0", "10.255.255.255", "9.255.255.255", "11.0.0.0"),
            ("100.64.0.0", "100.127.255.255", "100.63.255.255", "100.128.0.0"),
            ("127.0.0.0", "127.255.255.255", "126.255.255.255", "128.0.0.0"),
            ("168.63.129.16", "168.63.129.16", "168.63.129.15", "168.63.129.17"),
            ("169.254.0.0", "169.254.255.255", "169.253.255.255", "169.255.0.0"),
            ("172.16.0.0", "172.31.255.255", "172.15.255.255", "172.32.0.0"),
            ("192.0.0.0", "192.0.0.255", "191.255.255.255", "192.0.1.0"),
            ("192.0.2.0", "192.0.2.255", "192.0.1.255", "192.0.3.0"),
            ("192.88.99.0", "192.88.99.255", "192.88.98.255", "192.88.100.0"),
            ("192.168.0.0", "192.168.255.255", "192.167.255.255", "192.169.0.0"),
            ("198.18.0.0", "198.19.255.255", "198.17.255.255", "198.20.0.0"),
            ("198.51.100.0", "198.51.100.255", "198.51.99.255", "198.51.101.0"),
            ("203.0.113.0", "203.0.113.255", "203.0.112.255", "203.0.114.0"),
            ("224.0.0.0", "255.255.255.255", "223.255.255.255", ""),
            ("::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", "2000::"),
            ("::ffff:8.8.8.8", "::ffff:8.8.8.8", "", ""),
            ("64:ff9b::8.8.8.8", "64:ff9b::8.8.8.8", "", ""),
            ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "", ""),
            ("100::", "100::ffff:ffff:ffff:ffff", "", ""),
            ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2000:ffff::", "2001:200::"),
            ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db7:ffff::", "2001:db9::"),
            ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:ffff::", "2003::"),
            ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3ffe:ffff::", "3fff:1000::"),
            ("4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:ffff::", ""),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", ""),
            ("fe80::1", "febf:ffff::", "", ""),
            ("fec0::", "feff:ffff::", "", ""),
            ("ff00::", "ff02::1", "", ""),
        ];
        for (first, last, before, after) in ranges {
            for inside in [first, last] {
                assert!(out_of_bounds(address(inside), &[]).is_some(), "{inside} is within bounds");
            }
            for outside in [before, after].into_iter().filter(|outside| !outside.is_empty()) {
                assert_eq!(out_of_bounds(address(outside), &[]), None, "{outside}");
            }
        }
        for public in ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:800::200e"] {
            assert_eq!(out_of_bounds(address(public), &[]), None, "{public}");
        }
    }

    #[test]
    fn what_is_allowed_can_be_reached_and_nothing_beside_it() {
        let allowed = networks(&["10.1.0.0/16", "127.0.0.1", "fd00::/8"]);
        for yes in ["10.1.0.0", "10.1.255.255", "127.0.0.1", "fd12::1"] {
            assert_eq!(out_of_bounds(address(yes), &allowed), None, "{yes}");
        }
        for no in ["10.0.255.255", "10.2.0.0", "127.0.0.2", "fc00::1", "::1", "::ffff:127.0.0.1", "64:ff9b::10.1.0.1"] {
            assert!(out_of_bounds(address(no), &allowed).is_some(), "{no} is within bounds");
        }
    }

    #[test]
    fn an_address_that_leads_to_another_one_is_judged_by_both() {
        // Behind a NAT64 every receiver has such an address; allowing it opens no private network.
        let allowed = networks(&["64:ff9b::/96", "::ffff:0:0/96", "2002::/16"]);
        for yes in ["64:ff9b::1.1.1.1", "::ffff:1.1.1.1", "2002:0101:0101::1"] {
            assert_eq!(out_of_bounds(address(yes), &allowed), None, "{yes}");
        }
        for no in ["64:ff9b::10.0.0.1", "::ffff:127.0.0.1", "2002:7f00:0001::1", "2002:0a00:0001::1", "::10.0.0.1"] {
            assert!(out_of_bounds(address(no), &allowed).is_some(), "{no} is within bounds");
        }
        let all_of_ipv6 = networks(&["::/0"]);
        assert!(out_of_bounds(address("::127.0.0.1"), &all_of_ipv6).is_some());
        assert_eq!(out_of_bounds(address("::1"), &all_of_ipv6), None);
    }

    #[test]
    fn a_network_is_read_as_it_is_shown_and_half_a_network_is_none() {
        for (text, shown) in [("10.0.0.0/8", "10.0.0.0/8"), ("10.0.0.1", "10.0.0.1/32"), ("FD00::/8", "fd00::/8")] {
            assert_eq!(text.parse::<Network>().expect("a network").to_string(), shown);
        }
        for no in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.0/+8",
            "10/8",
            "::/129",
            "fd00::1/8",
            "a/8",
            "::/8/8",
        ] {
            assert_eq!(no.parse::<Network>(), Err(NoNetwork), "{no}");
        }
        assert!("0.0.0.0/0".parse::<Network>().expect("everything").contains(address("255.255.255.255")));
    }

    proptest! {
        #[test]
        fn a_network_contains_what_begins_with_its_bits(bits: u32, other: u32, length in 0_u8..=32) {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            let network = Network { first: Ipv4Addr::from_bits(bits & mask).into(), length };
            prop_assert!(network.is_whole());
            prop_assert_eq!(network.to_string().parse(), Ok(network));
            prop_assert!(network.contains(Ipv4Addr::from_bits(bits).into()));
            prop_assert_eq!(network.contains(Ipv4Addr::from_bits(other).into()), other & mask == bits & mask);
        }

        #[test]
        fn what_the_standard_library_knows_as_not_public_is_out_of_bounds(bits: u32, wide: u128) {
            let v4 = Ipv4Addr::from_bits(bits);
            let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast()
                || v4.is_documentation() || v4.is_unspecified() || v4.is_multicast();
            prop_assert!(!special || out_of_bounds(v4.into(), &[]).is_some(), "{}", v4);
            for hidden in [v4.to_ipv6_mapped(), v4.to_ipv6_compatible()] {
                prop_assert!(out_of_bounds(hidden.into(), &[]).is_some(), "{}", hidden);
            }
            let v6 = Ipv6Addr::from_bits(wide);
            let special = v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unique_local()
                || v6.is_unicast_link_local();
            prop_assert!(!special || out_of_bounds(v6.into(), &[]).is_some(), "{}", v6);
        }

        #[test]
        fn allowing_more_never_forbids(bits: u128, allowed: u128, length in 0_u8..=128) {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            let more = [Network { first: Ipv6Addr::from_bits(allowed & mask).into(), length }];
            let address = IpAddr::from(Ipv6Addr::from_bits(bits));
            prop_assert!(out_of_bounds(address, &[]).is_some() || out_of_bounds(address, &more).is_none());
        }
    }
}
