//! Whom proxies forward for: `X-Forwarded-For`, and `Forwarded` (RFC 7239).
//!
//! A proxy that adds to one of the two passes the other on as the client sent it, so neither is better than the other.
//! Where a request has both, only as much counts as they agree on: who makes one up gains nothing.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::{FORWARDED, HeaderValue};

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The nearest address that no trusted proxy has: what lies behind it, or behind what is no address, anybody can claim.
pub(super) fn client(headers: &HeaderMap, peer: IpAddr, is_proxy: impl Fn(&IpAddr) -> bool) -> IpAddr {
    // A socket for both families has its IPv4 peers as IPv6 addresses.
    let peer = peer.to_canonical();
    if !is_proxy(&peer) {
        return peer;
    }
    let plain = trail(headers.get_all(X_FORWARDED_FOR).iter(), |line| Some(addresses(line)), &is_proxy);
    let standard = trail(headers.get_all(FORWARDED).iter(), elements, &is_proxy);
    let believed = match (headers.contains_key(X_FORWARDED_FOR), headers.contains_key(FORWARDED)) {
        (true, true) => {
            plain.into_iter().zip(standard).take_while(|(one, other)| one == other).last().map(|(one, _)| one)
        }
        (true, false) => plain.last().copied(),
        (false, _) => standard.last().copied(),
    };
    believed.unwrap_or(peer)
}

/// The addresses of these lines, nearest first, as far as trusted proxies have written them.
fn trail<'a>(
    lines: impl DoubleEndedIterator<Item = &'a HeaderValue>,
    read: impl Fn(&str) -> Option<Vec<Option<IpAddr>>>,
    is_proxy: &impl Fn(&IpAddr) -> bool,
) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let lines = lines.rev().map(|line| read(&String::from_utf8_lossy(line.as_bytes())));
    // A line that can't be read is an entry that is no address.
    let entries = lines.flat_map(|line| line.unwrap_or_else(|| vec![None]).into_iter().rev());
    for address in entries.map_while(|entry| entry) {
        found.push(address);
        if !is_proxy(&address) {
            break;
        }
    }
    found
}

/// The entries of a line of `X-Forwarded-For`.
fn addresses(line: &str) -> Vec<Option<IpAddr>> {
    line.split(',').map(|entry| address(entry.trim())).collect()
}

/// An address; some proxies add the port, and IPv6 stands in brackets then.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|with_port| with_port.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

/// Whom each element of a line of `Forwarded` is for: `None` where it does not say, or says `unknown` or a name that the
/// proxy has made up. `None` for a line that is not well-formed: where a quote that a client left open ends is a guess.
fn elements(line: &str) -> Option<Vec<Option<IpAddr>>> {
    let (mut found, mut current, mut rest) = (Vec::new(), None, line);
    loop {
        // Elements and pairs may be empty.
        let pair = rest.trim_start_matches([' ', '\t']);
        rest = if pair.starts_with([',', ';']) || pair.is_empty() {
            pair
        } else {
            let (name, value) = pair.split_once('=')?;
            let (value, behind) = value_of(value)?;
            if name.eq_ignore_ascii_case("for") && current.replace(address(&value)).is_some() {
                return None;
            }
            behind.trim_start_matches([' ', '\t'])
        };
        match rest.bytes().next() {
            Some(b';') => {}
            Some(b',') => found.push(current.take().flatten()),
            Some(_) => return None,
            None => {
                found.push(current.flatten());
                return Some(found);
            }
        }
        rest = &rest[1..];
    }
}

/// A token or a quoted string without its quotes, and what stands behind it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (token, behind) = text.split_at(text.find([',', ';', ' ', '\t']).unwrap_or(text.len()));
        return (!token.contains('"')).then(|| (token.to_owned(), behind));
    };
    let (mut value, mut letters) = (String::new(), quoted.chars());
    loop {
        match letters.next()? {
            '"' => return Some((value, letters.as_str())),
            '\\' => value.push(letters.next()?),
            letter => value.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The client of a request over `peer` with these lines, where 10.0.0.0/8 is trusted.
    fn client_over(peer: &str, lines: &[(&'static str, &str)]) -> IpAddr {
        let mut headers = HeaderMap::new();
        for (name, line) in lines {
            headers.append(*name, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        client(&headers, ip(peer), |address| matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10))
    }

    fn plain(lines: &[&str], peer: &str) -> IpAddr {
        client_over(peer, &lines.iter().map(|line| ("x-forwarded-for", *line)).collect::<Vec<_>>())
    }

    fn standard(lines: &[&str]) -> IpAddr {
        client_over("10.0.0.1", &lines.iter().map(|line| ("forwarded", *line)).collect::<Vec<_>>())
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        assert_eq!(plain(&["203.0.113.9"], "192.0.2.1"), ip("192.0.2.1"), "somebody claims to be another");
        assert_eq!(plain(&["203.0.113.9"], "10.0.0.1"), ip("203.0.113.9"));
        assert_eq!(plain(&["198.51.100.1, 203.0.113.9", "10.0.0.2"], "10.0.0.1"), ip("203.0.113.9"));
        assert_eq!(plain(&["198.51.100.1", "203.0.113.9:4711"], "10.0.0.1"), ip("203.0.113.9"));
        assert_eq!(plain(&["[2001:db8::1]:4711"], "10.0.0.1"), ip("2001:db8::1"));
        assert_eq!(plain(&["203.0.113.9"], "::ffff:10.0.0.1"), ip("203.0.113.9"), "a socket for both families");
        assert_eq!(plain(&["nonsense"], "10.0.0.1"), ip("10.0.0.1"));
        assert_eq!(plain(&["198.51.100.1", "\u{e9}, 203.0.113.9"], "10.0.0.1"), ip("203.0.113.9"));
        assert_eq!(plain(&["198.51.100.1", "\u{e9}"], "10.0.0.1"), ip("10.0.0.1"), "what is behind it can be made up");
        assert_eq!(plain(&[], "10.0.0.1"), ip("10.0.0.1"));
    }

    #[test]
    fn the_standard_header_says_the_same() {
        for (line, client) in [
            ("for=192.0.2.43", "192.0.2.43"),
            ("For=\"192.0.2.43:47011\"", "192.0.2.43"),
            ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=\"[2001:db8::1]\"", "2001:db8::1"),
            ("proto=http;by=10.0.0.1 ; FOR=192.0.2.43", "192.0.2.43"),
            ("for=198.51.100.1, for=192.0.2.43, for=10.0.0.2", "192.0.2.43"),
            ("for=192.0.2.43;host=\"a,b;c\\\"\", for=10.0.0.2;proto=https", "192.0.2.43"),
            // The rest could be made up: the proxy that hides somebody counts as the client.
            ("for=198.51.100.1, for=_hidden, for=10.0.0.2", "10.0.0.2"),
            ("for=198.51.100.1, for=unknown", "10.0.0.1"),
            ("for=198.51.100.1, for=\"_SEVKISEK\"", "10.0.0.1"),
            ("for=198.51.100.1, proto=http", "10.0.0.1"),
            ("for=198.51.100.1,", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(standard(&[line]), ip(client), "{line}");
        }
        assert_eq!(standard(&["for=198.51.100.1", "for=192.0.2.43", "for=10.0.0.2"]), ip("192.0.2.43"));
    }

    #[test]
    fn a_line_that_is_not_well_formed_ends_the_walk() {
        for begun in
            ["for=\"", "for=198.51.100.1, for=\"x", "for=198.51.100.1;host=\"", "for=1;for=2", "nonsense", "for"]
        {
            // As a proxy adds to a line that a client has begun.
            for added in ["for=192.0.2.43", "for=\"192.0.2.43:80\"", "for=\"[2001:db8::1]\";by=\"[2001:db8::2]\""] {
                let line = format!("{begun}, {added}");
                assert_eq!(standard(&[&line]), ip("10.0.0.1"), "{line}");
                assert_eq!(standard(&[&line, "for=192.0.2.43"]), ip("192.0.2.43"), "{line}");
            }
        }
    }

    #[test]
    fn of_two_headers_that_differ_neither_makes_a_client() {
        let both = |plain, standard| client_over("10.0.0.1", &[("x-forwarded-for", plain), ("forwarded", standard)]);
        assert_eq!(both("192.0.2.43", "for=192.0.2.43"), ip("192.0.2.43"));
        assert_eq!(both("198.51.100.1, 192.0.2.43, 10.0.0.2", "for=192.0.2.43, for=10.0.0.2"), ip("192.0.2.43"));
        assert_eq!(both("192.0.2.43", "for=198.51.100.1"), ip("10.0.0.1"), "one of them is made up");
        assert_eq!(both("192.0.2.43, 10.0.0.2", "for=198.51.100.1, for=10.0.0.2"), ip("10.0.0.2"));
        assert_eq!(both("192.0.2.43", "for=_hidden"), ip("10.0.0.1"));
        assert_eq!(both("192.0.2.43", ""), ip("10.0.0.1"));
    }
}
