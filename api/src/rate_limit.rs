//! How many requests a client may make: as many a second as is set, and a burst of them at once (a GCRA bucket).
//!
//! A client is its API key, or without one that is good an address; behind trusted proxies it is the one that these forward
//! for (`forwarded`). An IPv6 client is its /64 network, of which it may use any address.

mod forwarded;

use std::net::IpAddr;
use std::num::NonZeroU32;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use ipnet::{IpNet, Ipv6Net};

use crate::keys::Caller;

/// Whose requests are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Client {
    Key(Caller),
    Network(IpAddr),
}

type Limiter = RateLimiter<Client, DefaultKeyedStateStore<Client>, DefaultClock, StateInformationMiddleware>;

/// What is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitSettings {
    /// Requests a second of one client; unlimited when `None`.
    pub per_second: Option<NonZeroU32>,
    /// Requests at once; as many as a second's when `None`.
    pub burst: Option<NonZeroU32>,
    /// Proxies whose `X-Forwarded-For` and `Forwarded` are believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// Counts the requests of each client.
pub(crate) struct RateLimit {
    limiter: Limiter,
    limit: u32,
    window: u32,
    proxies: Vec<IpNet>,
}

/// How a client stands after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    limit: u32,
    /// Seconds in which a client that has used up its burst has all of it again.
    window: u32,
    remaining: u32,
    /// Seconds until there is room for one more; 0 while there is.
    pub(crate) retry_after: u64,
}

impl RateLimit {
    /// `None` when nothing is limited.
    pub(crate) fn new(settings: &RateLimitSettings) -> Option<Self> {
        let per_second = settings.per_second?;
        let burst = settings.burst.unwrap_or(per_second);
        let limiter = RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst)).with_middleware();
        let (limit, window) = (burst.get(), burst.get().div_ceil(per_second.get()));
        Some(Self { limiter, limit, window, proxies: settings.trusted_proxies.clone() })
    }

    /// Counts a request.
    ///
    /// # Errors
    /// When it is one too many: how the client stands that must wait.
    pub(crate) fn count(
        &self,
        headers: &HeaderMap,
        peer: IpAddr,
        caller: Option<&Caller>,
    ) -> Result<Standing, Standing> {
        let client = match caller {
            Some(caller) => Client::Key(caller.clone()),
            None => Client::Network(network(self.client(headers, peer))),
        };
        let standing = |remaining, retry_after| {
            let Self { limit, window, .. } = *self;
            Standing { limit, window, remaining, retry_after }
        };
        match self.limiter.check_key(&client) {
            Ok(state) => Ok(standing(state.remaining_burst_capacity(), 0)),
            Err(not_until) => {
                let wait = not_until.wait_time_from(DefaultClock::default().now()).as_secs_f64();
                Err(standing(0, (wait.ceil() as u64).max(1)))
            }
        }
    }

    /// Forgets clients that have been quiet for so long that they stand as new ones do.
    pub(crate) fn forget_quiet(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }

    /// The nearest address that no trusted proxy has.
    fn client(&self, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        forwarded::client(headers, peer, |address| self.proxies.iter().any(|net| net.contains(address)))
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => Ipv6Net::new(v6, 64).map_or(address, |net| net.network().into()),
        v4 => v4,
    }
}

impl Standing {
    /// Tells the client (draft-ietf-httpapi-ratelimit-headers).
    pub(crate) fn tell(self, headers: &mut HeaderMap) {
        let Self { limit, window, remaining, retry_after } = self;
        let fields = [
            ("ratelimit-policy", format!("\"client\";q={limit};w={window}")),
            // At least one a second is allowed, so that there is one more after a second at the latest, if there are not all.
            ("ratelimit", format!("\"client\";r={remaining};t={}", retry_after.max(1))),
        ];
        for (name, text) in fields {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn limit(per_second: u32, burst: u32, proxies: &[&str]) -> RateLimit {
        RateLimit::new(&RateLimitSettings {
            per_second: NonZeroU32::new(per_second),
            burst: NonZeroU32::new(burst),
            trusted_proxies: proxies.iter().map(|net| net.parse().unwrap()).collect(),
        })
        .unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_is_let_through_and_no_more_and_each_client_has_its_own() {
        let limit = limit(1, 3, &[]);
        let count = |peer| limit.count(&HeaderMap::new(), ip(peer), None);
        let (begun, mut let_through) = (Instant::now(), Vec::new());
        let refused = loop {
            match count("192.0.2.1") {
                Ok(standing) => let_through.push(standing),
                Err(standing) => break standing,
            }
        };
        // One more for each second that this took, which on a busy machine may be some.
        let more = begun.elapsed().as_secs() as u32;
        assert!((3..=3 + more).contains(&(let_through.len() as u32)), "{let_through:?} in {more} s");
        for (least, standing) in [2, 1, 0].into_iter().zip(let_through) {
            let remaining = standing.remaining;
            assert!((least..=least + more).contains(&remaining), "{remaining} instead of {least} in {more} s");
            assert_eq!(standing, Standing { limit: 3, window: 3, remaining, retry_after: 0 });
        }
        assert_eq!(refused, Standing { limit: 3, window: 3, remaining: 0, retry_after: 1 });
        assert!(count("192.0.2.2").is_ok());
    }

    #[test]
    fn a_client_behind_a_trusted_proxy_is_counted_by_its_own_address() {
        let limit = limit(1, 1, &["10.0.0.0/8"]);
        for name in ["x-forwarded-for", "forwarded"] {
            let mut headers = HeaderMap::new();
            headers.insert(
                name,
                HeaderValue::from_static(if name == "forwarded" { "for=192.0.2.9" } else { "192.0.2.9" }),
            );
            assert_eq!(limit.client(&headers, ip("10.0.0.1")), ip("192.0.2.9"), "{name}");
            assert_eq!(
                limit.client(&headers, ip("192.0.2.1")),
                ip("192.0.2.1"),
                "{name}: the peer is no proxy of ours"
            );
        }
    }

    #[test]
    fn a_client_is_told_what_it_has_left_and_until_when() {
        for (remaining, retry_after, told) in [(49, 0, r#""client";r=49;t=1"#), (0, 3, r#""client";r=0;t=3"#)] {
            let mut headers = HeaderMap::new();
            Standing { limit: 50, window: 10, remaining, retry_after }.tell(&mut headers);
            assert_eq!(
                (&headers["ratelimit"], &headers["ratelimit-policy"]),
                (&told.parse().unwrap(), &r#""client";q=50;w=10"#.parse().unwrap())
            );
        }
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        assert_eq!(network(ip("2001:db8:1:2:3:4:5:6")), network(ip("2001:db8:1:2::1")));
        assert_ne!(network(ip("2001:db8:1:3::1")), network(ip("2001:db8:1:2::1")));
    }
}
