//! What `scripts/test integration` tells the tests. A missing variable fails the test that needs
//! it: a suite that skips itself proves nothing.

use std::path::PathBuf;

/// The shared Kafka, `host:port`.
///
/// # Panics
/// When the variable is missing, as every function here.
#[must_use]
pub fn kafka_brokers() -> String {
    required("TEST_KAFKA_BROKERS")
}

/// The shared Kafka of the older line, `host:port`.
#[must_use]
pub fn kafka_3_brokers() -> String {
    required("TEST_KAFKA_3_BROKERS")
}

/// The shared Redis, `redis://host:port`.
#[must_use]
pub fn redis_url() -> String {
    required("TEST_REDIS_URL")
}

/// The folder with the two binaries.
#[must_use]
pub fn bin_dir() -> PathBuf {
    required("TEST_BIN_DIR").into()
}

/// The script that runs a broker in the foreground: `SCRIPT VERSION PORT DIR`. It must replace
/// itself by the broker (`exec`), because a signal for the one is meant for the other.
#[must_use]
pub fn broker_script() -> PathBuf {
    required("TEST_KAFKA_BROKER_SCRIPT").into()
}

fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests with scripts/test integration"))
}
