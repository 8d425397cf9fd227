//! Whose activity an event is.

use serde_json::value::RawValue;

use super::Violation;
use super::members::string;

/// Longest `userId`, in bytes of UTF-8.
pub const MAX_USER_ID_BYTES: usize = 256;

/// Whose activity it is: 1 to [`MAX_USER_ID_BYTES`] bytes, not only white space.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserId(String);

impl UserId {
    /// # Errors
    /// The violation, worded as the API answers it.
    pub fn parse(text: &str) -> Result<Self, Violation> {
        if text.trim().is_empty() {
            return Err(Self::required());
        }
        if text.len() > MAX_USER_ID_BYTES {
            let detail = format!("userId must be at most {MAX_USER_ID_BYTES} bytes long, this one has {}", text.len());
            return Err(Violation::new("/userId", "length", detail));
        }
        Ok(Self(text.to_owned()))
    }

    fn required() -> Violation {
        Violation::new("/userId", "required", "userId is required and must be a non-empty string")
    }

    pub(super) fn from_member(raw: Option<&RawValue>) -> Result<Self, Violation> {
        Self::parse(&raw.and_then(string).ok_or_else(Self::required)?)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
