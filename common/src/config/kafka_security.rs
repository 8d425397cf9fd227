//! How Kafka clients prove who they are, and to whom they talk. Everything is checked before the first connection: what
//! a broker would answer to half a configuration says little.

use clap::Args;

use super::values::one_of;
use super::{Checks, Secret, text};

/// The security part of Kafka's settings.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Kafka, security")]
pub struct KafkaSecurityArgs {
    /// How to talk to the brokers: plaintext, ssl, `sasl_plaintext` or `sasl_ssl`
    #[arg(long, env = "KAFKA_SECURITY_PROTOCOL", default_value = "plaintext", value_name = "PROTOCOL")]
    pub kafka_security_protocol: String,
    /// PEM file with the authorities that sign the brokers' certificates; those of the system where it is not set
    #[arg(long, env = "KAFKA_SSL_CA_FILE", value_name = "FILE")]
    pub kafka_ssl_ca_file: Option<String>,
    /// PEM file with this client's certificate and those up to its authority, for brokers that ask for one
    #[arg(long, env = "KAFKA_SSL_CERTIFICATE_FILE", value_name = "FILE")]
    pub kafka_ssl_certificate_file: Option<String>,
    /// PEM file with the key of that certificate
    #[arg(long, env = "KAFKA_SSL_KEY_FILE", value_name = "FILE")]
    pub kafka_ssl_key_file: Option<String>,
    /// Password of that key, where it is encrypted
    #[arg(long, env = "KAFKA_SSL_KEY_PASSWORD", value_name = "PASSWORD")]
    pub kafka_ssl_key_password: Option<Secret>,
    /// How to log in, for the sasl protocols: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
    #[arg(long, env = "KAFKA_SASL_MECHANISM", value_name = "NAME")]
    pub kafka_sasl_mechanism: Option<String>,
    /// User to log in as
    #[arg(long, env = "KAFKA_SASL_USERNAME", value_name = "NAME")]
    pub kafka_sasl_username: Option<String>,
    /// Password of that user
    #[arg(long, env = "KAFKA_SASL_PASSWORD", value_name = "PASSWORD")]
    pub kafka_sasl_password: Option<Secret>,
}

/// How to talk to the brokers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Neither encrypted nor logged in.
    #[default]
    Plaintext,
    /// Encrypted; the brokers, and where they ask for it the client, show a certificate.
    Ssl,
    /// Logged in, not encrypted.
    SaslPlaintext,
    /// Encrypted and logged in.
    SaslSsl,
}

impl Protocol {
    const WORDS: [(&str, Self); 4] = [
        ("plaintext", Self::Plaintext),
        ("ssl", Self::Ssl),
        ("sasl_plaintext", Self::SaslPlaintext),
        ("sasl_ssl", Self::SaslSsl),
    ];

    /// As the settings, and librdkafka's, call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::WORDS.iter().find(|(_, protocol)| *protocol == self).map_or("", |(name, _)| name)
    }

    fn encrypts(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    fn logs_in(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

/// A login.
#[derive(Debug, Clone, Default)]
pub struct Sasl {
    /// Name of the mechanism.
    pub mechanism: &'static str,
    /// The user.
    pub username: String,
    /// Its password.
    pub password: Secret,
}

/// A certificate of the client's own.
#[derive(Debug, Clone, Default)]
pub struct ClientCertificate {
    /// PEM file with the chain.
    pub certificate_file: String,
    /// PEM file with the key.
    pub key_file: String,
    /// Where the key is encrypted.
    pub key_password: Option<Secret>,
}

/// How to prove who one is, and to whom one talks.
#[derive(Debug, Clone, Default)]
pub struct KafkaSecurity {
    /// How to talk to the brokers.
    pub protocol: Protocol,
    /// PEM file of authorities; `None`: those of the system.
    pub ca_file: Option<String>,
    /// What to show to brokers that ask for a certificate.
    pub certificate: Option<ClientCertificate>,
    /// How to log in.
    pub sasl: Option<Sasl>,
}

impl KafkaSecurityArgs {
    /// Types the settings, and checks that they go together.
    pub fn check(&self, checks: &mut Checks) -> KafkaSecurity {
        let name = &self.kafka_security_protocol;
        let before = checks.count();
        let protocol = checks.take("KAFKA_SECURITY_PROTOCOL", name, one_of(&Protocol::WORDS));
        // What goes with an unknown protocol can't be said.
        if checks.count() == before {
            self.refuse_idle(protocol, checks);
        }
        KafkaSecurity {
            protocol,
            ca_file: pem(checks, "KAFKA_SSL_CA_FILE", self.kafka_ssl_ca_file.as_deref(), "CERTIFICATE"),
            certificate: self.certificate(checks),
            sasl: protocol.logs_in().then(|| self.sasl(checks)),
        }
    }

    /// What is set but would not be used was meant to protect something.
    fn refuse_idle(&self, protocol: Protocol, checks: &mut Checks) {
        let tls = [
            ("KAFKA_SSL_CA_FILE", self.kafka_ssl_ca_file.is_some()),
            ("KAFKA_SSL_CERTIFICATE_FILE", self.kafka_ssl_certificate_file.is_some()),
            ("KAFKA_SSL_KEY_FILE", self.kafka_ssl_key_file.is_some()),
            ("KAFKA_SSL_KEY_PASSWORD", self.kafka_ssl_key_password.is_some()),
        ];
        let login = [
            ("KAFKA_SASL_MECHANISM", self.kafka_sasl_mechanism.is_some()),
            ("KAFKA_SASL_USERNAME", self.kafka_sasl_username.is_some()),
            ("KAFKA_SASL_PASSWORD", self.kafka_sasl_password.is_some()),
        ];
        let mut refuse = |set: &[(&str, bool)], wanted: &str| {
            for (name, _) in set.iter().filter(|(_, given)| *given) {
                checks.complain(format!(
                    "{name}: has no use with KAFKA_SECURITY_PROTOCOL={}, which must be {wanted}",
                    protocol.name()
                ));
            }
        };
        if !protocol.encrypts() {
            refuse(&tls, "ssl or sasl_ssl");
        }
        if !protocol.logs_in() {
            refuse(&login, "sasl_plaintext or sasl_ssl");
        }
    }

    fn certificate(&self, checks: &mut Checks) -> Option<ClientCertificate> {
        let (chain, key) = (self.kafka_ssl_certificate_file.as_deref(), self.kafka_ssl_key_file.as_deref());
        match (chain, key) {
            (Some(_), None) => checks.complain("KAFKA_SSL_CERTIFICATE_FILE: needs KAFKA_SSL_KEY_FILE".into()),
            (None, Some(_)) => checks.complain("KAFKA_SSL_KEY_FILE: needs KAFKA_SSL_CERTIFICATE_FILE".into()),
            (None, None) if self.kafka_ssl_key_password.is_some() => {
                checks.complain("KAFKA_SSL_KEY_PASSWORD: needs KAFKA_SSL_KEY_FILE".into());
            }
            _ => {}
        }
        // Both, whatever the other says, so that each complaint is made in one run.
        let chain = pem(checks, "KAFKA_SSL_CERTIFICATE_FILE", chain, "CERTIFICATE");
        let key = pem(checks, "KAFKA_SSL_KEY_FILE", key, "PRIVATE KEY");
        let key_password = self.kafka_ssl_key_password.clone();
        chain.zip(key).map(|(certificate_file, key_file)| ClientCertificate {
            certificate_file,
            key_file,
            key_password,
        })
    }

    fn sasl(&self, checks: &mut Checks) -> Sasl {
        let mechanisms = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].map(|name| (name, name));
        let mechanism = self.kafka_sasl_mechanism.as_deref().unwrap_or_default();
        let username = self.kafka_sasl_username.as_deref().unwrap_or_default();
        let password = self.kafka_sasl_password.clone().unwrap_or_default();
        if password.expose().is_empty() {
            checks.complain("KAFKA_SASL_PASSWORD: is needed to log in, it or KAFKA_SASL_PASSWORD_FILE".into());
        }
        Sasl {
            mechanism: checks.take("KAFKA_SASL_MECHANISM", mechanism, one_of(&mechanisms)),
            username: checks.take("KAFKA_SASL_USERNAME", username, text),
            password,
        }
    }
}

/// The path, if it is given; the file must be readable and hold something of that kind in PEM form.
fn pem(checks: &mut Checks, name: &str, path: Option<&str>, kind: &str) -> Option<String> {
    checks.take(name, path?, |path| {
        let text = std::fs::read(path).map_err(|e| format!("can't be read: {e}"))?;
        let found =
            String::from_utf8_lossy(&text).lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(kind));
        if found { Ok(Some(path.to_owned())) } else { Err(format!("holds no {kind} in PEM form")) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(args: &KafkaSecurityArgs) -> String {
        let mut checks = Checks::default();
        args.check(&mut checks);
        checks.finish(()).map_or_else(|errors| errors.to_string(), |()| String::new())
    }

    fn with(protocol: &str) -> KafkaSecurityArgs {
        KafkaSecurityArgs { kafka_security_protocol: protocol.into(), ..Default::default() }
    }

    #[test]
    fn a_login_needs_a_mechanism_a_user_and_a_password_and_all_that_is_missing_is_said_at_once() {
        let said = complaints(&with("sasl_ssl"));
        for name in ["KAFKA_SASL_MECHANISM", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"] {
            assert!(said.contains(name), "{said}");
        }
        let whole = KafkaSecurityArgs {
            kafka_sasl_mechanism: Some("SCRAM-SHA-512".into()),
            kafka_sasl_username: Some("u".into()),
            kafka_sasl_password: Some(Secret::new("p".into())),
            ..with("sasl_plaintext")
        };
        assert_eq!(complaints(&whole), "");
        let unknown = KafkaSecurityArgs { kafka_sasl_mechanism: Some("GSSAPI".into()), ..whole };
        assert!(complaints(&unknown).contains("must be one of: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"));
    }

    #[test]
    fn a_certificate_and_its_key_go_together_and_are_files_of_that_kind() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            Some(folder.path().join(name).to_str().unwrap().to_owned())
        };
        let (chain, key) = (file("c", "-----BEGIN CERTIFICATE-----\n"), file("k", "-----BEGIN PRIVATE KEY-----\n"));
        let alone = KafkaSecurityArgs { kafka_ssl_certificate_file: chain.clone(), ..with("ssl") };
        assert!(complaints(&alone).contains("needs KAFKA_SSL_KEY_FILE"));
        let alone = KafkaSecurityArgs { kafka_ssl_key_file: key.clone(), ..with("ssl") };
        assert!(complaints(&alone).contains("needs KAFKA_SSL_CERTIFICATE_FILE"));
        let swapped = KafkaSecurityArgs {
            kafka_ssl_certificate_file: key.clone(),
            kafka_ssl_key_file: Some("no/such/key.pem".into()),
            ..with("ssl")
        };
        let said = complaints(&swapped);
        assert!(said.contains("holds no CERTIFICATE") && said.contains("no/such/key.pem\": can't be read"), "{said}");
        let both = KafkaSecurityArgs { kafka_ssl_certificate_file: chain, kafka_ssl_key_file: key, ..with("ssl") };
        assert_eq!(complaints(&both), "");
    }

    #[test]
    fn what_would_protect_nothing_is_refused_without_showing_it() {
        let password = Some(Secret::new("hunter2".into()));
        let idle = KafkaSecurityArgs {
            kafka_ssl_key_password: password.clone(),
            kafka_sasl_password: password,
            ..with("plaintext")
        };
        let said = complaints(&idle);
        assert!(
            said.contains("KAFKA_SSL_KEY_PASSWORD: has no use") && said.contains("KAFKA_SASL_PASSWORD: has no use")
        );
        assert!(!said.contains("hunter2") && !format!("{idle:?}").contains("hunter2"));
        assert!(complaints(&with("tls")).contains("KAFKA_SECURITY_PROTOCOL"));
    }
}
