//! What a user can do.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::Violation;
use super::members::string;

/// What the user did: one of the [`EventTypes`] this process knows. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventType(Arc<str>);

impl EventType {
    /// The type as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The event types that a process accepts. Nothing else in the program names one.
#[derive(Debug, Clone)]
pub struct EventTypes(Vec<EventType>);

impl Default for EventTypes {
    fn default() -> Self {
        Self(["LOGIN", "LOGOUT", "PRODUCT_VIEW"].map(|name| EventType(name.into())).into())
    }
}

impl EventTypes {
    /// All of them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(EventType::as_str)
    }

    /// # Errors
    /// The violation, worded as the API answers it.
    pub fn parse(&self, text: &str) -> Result<EventType, Violation> {
        self.0.iter().find(|known| &*known.0 == text).cloned().ok_or_else(|| {
            let names: Vec<&str> = self.names().collect();
            Violation::new("/eventType", "enum", format!("eventType must be one of: {}", names.join(", ")))
        })
    }

    fn required() -> Violation {
        Violation::new("/eventType", "required", "eventType is required and must be a string")
    }

    pub(super) fn of_member(&self, raw: Option<&RawValue>) -> Result<EventType, Violation> {
        let text = raw.and_then(string).filter(|text| !text.is_empty());
        self.parse(&text.ok_or_else(Self::required)?)
    }
}
