//! Settings of distributed tracing, by the names of the OpenTelemetry specification. Without an endpoint nothing is traced.

use clap::Args;
use hyper::Uri;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::{Checks, Secret, text};

/// What OTLP adds to the endpoint that all signals share (OTLP specification, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";

/// The tracing part of a command line.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Tracing")]
pub struct TraceArgs {
    /// Collector that spans are sent to, as OTLP over HTTP; `/v1/traces` is added. Without it nothing is traced
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otel_exporter_otlp_endpoint: Option<String>,
    /// The same for spans alone, taken as it is
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value_name = "URL")]
    pub otel_exporter_otlp_traces_endpoint: Option<String>,
    /// Headers for the collector, as `name=value,name=value`, the values percent-encoded
    #[arg(long, env = "OTEL_EXPORTER_OTLP_HEADERS", value_name = "LIST")]
    pub otel_exporter_otlp_headers: Option<Secret>,
    /// What this service is called in traces; the program's name when absent
    #[arg(long, env = "OTEL_SERVICE_NAME", value_name = "NAME")]
    pub otel_service_name: Option<String>,
    /// Attributes of everything this process sends, as `name=value,name=value`, the values percent-encoded
    #[arg(long, env = "OTEL_RESOURCE_ATTRIBUTES", value_name = "LIST")]
    pub otel_resource_attributes: Option<String>,
    /// Which traces are recorded: `always_on`, `always_off`, `traceidratio`, or with `parentbased_` in front as the
    /// caller has decided, and so only where there is none
    #[arg(long, env = "OTEL_TRACES_SAMPLER", default_value = "parentbased_always_on", value_name = "NAME")]
    pub otel_traces_sampler: String,
    /// Share of the traces that a traceidratio sampler records, from 0 to 1
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", default_value = "1", value_name = "RATIO")]
    pub otel_traces_sampler_arg: String,
}

/// Where spans go, and which.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// Where they are posted.
    pub endpoint: Uri,
    /// What is sent with them, to say who posts. The values are marked as sensitive, so that none is printed.
    pub headers: HeaderMap,
    /// What this service is called, if not as its program.
    pub service_name: Option<String>,
    /// What else is said of it.
    pub attributes: Vec<(String, String)>,
    /// Which traces are recorded.
    pub sampling: Sampling,
}

/// Which traces are recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sampling {
    /// As the caller has decided, where there is one.
    pub parent_based: bool,
    /// Share of the others, from 0 to 1.
    pub ratio: f64,
}

impl TraceArgs {
    /// Types the settings; `None` where nothing is to be traced.
    pub fn check(&self, checks: &mut Checks) -> Option<TraceSettings> {
        let headers = self.otel_exporter_otlp_headers.as_ref();
        let headers =
            headers.and_then(|raw| checks.take_secret("OTEL_EXPORTER_OTLP_HEADERS", raw.expose(), header_map));
        let attributes = self.otel_resource_attributes.as_deref();
        let attributes = attributes.map(|raw| checks.take("OTEL_RESOURCE_ATTRIBUTES", raw, pairs));
        let name = self.otel_service_name.as_deref();
        let service_name = name.map(|raw| checks.take("OTEL_SERVICE_NAME", raw, text));
        let sampling = self.sampling(checks);
        let endpoint = self.endpoint(checks)?;
        Some(TraceSettings {
            endpoint,
            headers: headers.unwrap_or_default(),
            service_name,
            attributes: attributes.unwrap_or_default(),
            sampling,
        })
    }

    fn endpoint(&self, checks: &mut Checks) -> Option<Uri> {
        let all = self.otel_exporter_otlp_endpoint.as_deref();
        // Not shown when wrong: what is wrong with it may be a password.
        let all = all.map(|raw| checks.take_secret("OTEL_EXPORTER_OTLP_ENDPOINT", raw, |raw| endpoint(raw, PATH)));
        let own = self.otel_exporter_otlp_traces_endpoint.as_deref();
        let own = own.map(|raw| checks.take_secret("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raw, |raw| endpoint(raw, "")));
        own.or(all).flatten()
    }

    fn sampling(&self, checks: &mut Checks) -> Sampling {
        let ratio = checks.take("OTEL_TRACES_SAMPLER_ARG", &self.otel_traces_sampler_arg, ratio);
        checks.take("OTEL_TRACES_SAMPLER", &self.otel_traces_sampler, |raw| {
            let (parent_based, name) = raw.strip_prefix("parentbased_").map_or((false, raw), |name| (true, name));
            let ratio = match name {
                "always_on" => 1.0,
                "always_off" => 0.0,
                "traceidratio" => ratio,
                _ => {
                    return Err(
                        "must be always_on, always_off or traceidratio, or one of these after parentbased_".into()
                    );
                }
            };
            Ok(Sampling { parent_based, ratio })
        })
    }
}

fn endpoint(raw: &str, path: &str) -> Result<Uri, String> {
    let uri: Option<Uri> =
        format!("{}{path}", if path.is_empty() { raw } else { raw.trim_end_matches('/') }).parse().ok();
    let is_http = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    let uri = uri.filter(|uri| is_http(uri) && uri.query().is_none());
    let uri = uri.ok_or("must be a URL such as http://localhost:4318")?;
    let login = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if login { Err("must not hold a login; OTEL_EXPORTER_OTLP_HEADERS is for those".into()) } else { Ok(uri) }
}

fn ratio(raw: &str) -> Result<f64, String> {
    let number = raw.trim().parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "must be a number from 0 to 1".into())
}

/// `name=value,name=value`, the values percent-encoded, as in a `baggage` header (W3C Baggage, section 3.3).
fn pairs(raw: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |item: &str| {
        let (name, value) = item.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?.into_owned();
        Some((name.trim().to_owned(), value)).filter(|(name, _)| !name.is_empty())
    };
    let items = raw.split(',').map(str::trim).filter(|item| !item.is_empty());
    let pairs: Option<_> = items.map(pair).collect();
    pairs.ok_or_else(|| "must be a list such as name=value,name=value, its values percent-encoded".into())
}

fn header_map(raw: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs(raw)? {
        let wrong = || "must hold names and values that can stand in an HTTP header".to_owned();
        let name = HeaderName::try_from(name).map_err(|_| wrong())?;
        let mut value = HeaderValue::try_from(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> TraceArgs {
        TraceArgs {
            otel_exporter_otlp_endpoint: Some("http://collector:4318".into()),
            otel_traces_sampler: "parentbased_always_on".into(),
            otel_traces_sampler_arg: "1".into(),
            ..TraceArgs::default()
        }
    }

    fn checked(args: &TraceArgs) -> Result<Option<TraceSettings>, String> {
        let mut checks = Checks::default();
        let settings = args.check(&mut checks);
        checks.finish(settings).map_err(|errors| errors.to_string())
    }

    #[test]
    fn without_an_endpoint_nothing_is_traced() {
        assert!(checked(&TraceArgs { otel_exporter_otlp_endpoint: None, ..args() }).unwrap().is_none());
    }

    #[test]
    fn the_shared_endpoint_gets_a_path_and_that_of_spans_alone_is_taken_as_it_is() {
        let of = |args: &TraceArgs| checked(args).unwrap().unwrap().endpoint.to_string();
        assert_eq!(of(&args()), "http://collector:4318/v1/traces");
        let slash = TraceArgs { otel_exporter_otlp_endpoint: Some("https://c/otlp/".into()), ..args() };
        assert_eq!(of(&slash), "https://c/otlp/v1/traces");
        let own = TraceArgs { otel_exporter_otlp_traces_endpoint: Some("http://other/spans".into()), ..slash };
        assert_eq!(of(&own), "http://other/spans");
    }

    #[test]
    fn samplers_have_the_names_of_the_specification() {
        let of = |name: &str, ratio: &str| {
            let args = TraceArgs { otel_traces_sampler: name.into(), otel_traces_sampler_arg: ratio.into(), ..args() };
            checked(&args).map(|settings| settings.unwrap().sampling)
        };
        assert_eq!(of("always_off", "1"), Ok(Sampling { parent_based: false, ratio: 0.0 }));
        assert_eq!(of("traceidratio", "0.25"), Ok(Sampling { parent_based: false, ratio: 0.25 }));
        assert_eq!(of("parentbased_always_on", "0.25"), Ok(Sampling { parent_based: true, ratio: 1.0 }));
        assert_eq!(of("parentbased_traceidratio", "0.25"), Ok(Sampling { parent_based: true, ratio: 0.25 }));
        assert!(of("jaeger_remote", "1").unwrap_err().contains("OTEL_TRACES_SAMPLER=\"jaeger_remote\""));
        for wrong in ["1.1", "-0.1", "NaN", "half", ""] {
            assert!(of("traceidratio", wrong).unwrap_err().contains("OTEL_TRACES_SAMPLER_ARG"), "{wrong}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_named_in_one_run_and_no_secret_is_shown() {
        let wrong = TraceArgs {
            otel_exporter_otlp_endpoint: Some("http://user:hunter2@collector".into()),
            otel_exporter_otlp_traces_endpoint: Some("collector:4317".into()),
            otel_exporter_otlp_headers: Some("authorization hunter2".into()),
            otel_resource_attributes: Some("environment".into()),
            otel_service_name: Some(" ".into()),
            ..args()
        };
        let said = checked(&wrong).unwrap_err();
        for name in ["OTLP_ENDPOINT", "TRACES_ENDPOINT", "OTLP_HEADERS", "RESOURCE_ATTRIBUTES", "SERVICE_NAME"] {
            assert!(said.contains(name), "{said}");
        }
        assert!(!said.contains("hunter2"), "{said}");
    }

    #[test]
    fn lists_are_percent_decoded_and_headers_are_not_shown() {
        let headers = Some("authorization=Bearer%20hunter2, x-tenant=a".into());
        let attributes = Some("deployment.environment.name=test%2C1".into());
        let args = TraceArgs { otel_exporter_otlp_headers: headers, otel_resource_attributes: attributes, ..args() };
        let settings = checked(&args).unwrap().unwrap();
        assert_eq!(settings.headers["authorization"], "Bearer hunter2");
        assert_eq!(settings.headers["x-tenant"], "a");
        assert_eq!(settings.attributes, [("deployment.environment.name".to_owned(), "test,1".to_owned())]);
        assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
    }
}
