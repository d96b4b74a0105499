//! Which virtual host a request is for: exact domain, then the longest suffix wildcard, then the
//! longest prefix wildcard, then `*`. Host names compare without case.

use crate::model::{RouteConfig, VirtualHost};
use smallvec::SmallVec;
use std::sync::Arc;

/// The virtual host for an authority.
pub fn choose<'a>(config: &'a RouteConfig, authority: &[u8]) -> Option<&'a Arc<VirtualHost>> {
    let host = if config.ignore_port_in_host_matching { without_port(authority) } else { authority };
    let found = if host.is_empty() { None } else { by_domain(config, host) };
    found.or(config.default_virtual_host).and_then(|index| config.virtual_hosts.get(index))
}

fn by_domain(config: &RouteConfig, host: &[u8]) -> Option<usize> {
    let mut lower: SmallVec<[u8; 128]> = SmallVec::from_slice(host);
    lower.make_ascii_lowercase();
    let exact = std::str::from_utf8(&lower).ok().and_then(|host| config.exact_domains.get(host)).copied();
    exact.or_else(|| by_suffix(config, &lower)).or_else(|| by_prefix(config, &lower))
}

// A wildcard stands for at least one character.
fn by_suffix(config: &RouteConfig, host: &[u8]) -> Option<usize> {
    let fits = |domain: &str| {
        let suffix = domain.strip_prefix('*').unwrap_or(domain).as_bytes();
        host.len() > suffix.len() && host.ends_with(suffix)
    };
    config.suffix_domains.iter().find(|(domain, _)| fits(domain)).map(|(_, index)| *index)
}

fn by_prefix(config: &RouteConfig, host: &[u8]) -> Option<usize> {
    let fits = |domain: &str| {
        let prefix = domain.strip_suffix('*').unwrap_or(domain).as_bytes();
        host.len() > prefix.len() && host.starts_with(prefix)
    };
    config.prefix_domains.iter().find(|(domain, _)| fits(domain)).map(|(_, index)| *index)
}

/// The host without its port; brackets of an IPv6 address stay.
pub fn without_port(host: &[u8]) -> &[u8] {
    port_start(host).map_or(host, |start| &host[..start])
}

/// The port of a host, if it has one that is a number.
pub fn port(host: &[u8]) -> Option<u32> {
    let digits = &host[port_start(host)? + 1..];
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn port_start(host: &[u8]) -> Option<usize> {
    let colon = host.iter().rposition(|byte| *byte == b':')?;
    let in_brackets = host.iter().rposition(|byte| *byte == b']').is_some_and(|end| end > colon);
    (!in_brackets).then_some(colon)
}

/// What `strip_any_host_port` and `strip_matching_host_port` leave of an authority: `Some` when the
/// port goes. `listener_port` limits it to that port.
pub fn stripped(authority: &[u8], listener_port: Option<u16>) -> Option<&[u8]> {
    let port = port(authority)?;
    let fits = listener_port.is_none_or(|wanted| u32::from(wanted) == port);
    fits.then(|| without_port(authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RouteConfig {
        let host = |name: &str| Arc::new(VirtualHost { name: name.into(), ..VirtualHost::default() });
        RouteConfig {
            virtual_hosts: ["main", "suffix", "longer", "start", "any"].map(host).to_vec(),
            exact_domains: [("example.test".into(), 0), ("example.test:8080".into(), 0)].into(),
            suffix_domains: vec![("*.longer.suffix.test".into(), 2), ("*.suffix.test".into(), 1)],
            prefix_domains: vec![("start.*".into(), 3)],
            ..RouteConfig::default()
        }
    }

    fn chosen(config: &RouteConfig, authority: &str) -> String {
        choose(config, authority.as_bytes()).map_or("-".into(), |host| host.name.clone())
    }

    #[test]
    fn the_most_specific_domain_wins() {
        let config = config();
        for (authority, expected) in [
            ("example.test", "main"),
            ("EXAMPLE.test", "main"),
            ("example.test:8080", "main"),
            ("example.test:9", "-"),
            ("x.suffix.test", "suffix"),
            ("x.longer.suffix.test", "longer"),
            (".suffix.test", "-"),
            ("start.anything", "start"),
            ("start.", "-"),
            ("elsewhere.test", "-"),
        ] {
            assert_eq!(chosen(&config, authority), expected, "{authority}");
        }
    }

    #[test]
    fn the_port_is_ignored_where_asked() {
        let config = RouteConfig { ignore_port_in_host_matching: true, ..config() };
        assert_eq!(chosen(&config, "example.test:9"), "main");
    }

    #[test]
    fn the_default_takes_every_other_host_also_none() {
        let config = RouteConfig { default_virtual_host: Some(4), ..config() };
        assert_eq!(chosen(&config, "elsewhere.test"), "any");
        assert_eq!(chosen(&config, ""), "any");
    }

    #[test]
    fn a_port_is_stripped_but_not_an_ipv6_address() {
        assert_eq!(stripped(b"a:80", None), Some(&b"a"[..]));
        assert_eq!(stripped(b"a:80", Some(81)), None);
        assert_eq!(stripped(b"[::1]", None), None);
        assert_eq!(stripped(b"[::1]:80", Some(80)), Some(&b"[::1]"[..]));
        assert_eq!(stripped(b"a:x", None), None);
    }
}
