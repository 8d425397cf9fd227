//! Bytes as a request and as a record: nothing panics, a refusal says why, and what is taken reads back as it is.

#![no_main]

use common::event::{EventTypes, Timestamp, UserEvent};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (types, now) = (EventTypes::default(), Timestamp::now());
    for read in [UserEvent::from_request(bytes, &types), UserEvent::from_record(bytes, &types, now)] {
        match read {
            Ok(event) => {
                let json = event.to_json();
                assert_eq!(UserEvent::from_record(&json, &types, now), Ok(event));
            }
            Err(violations) => assert!(!violations.is_empty()),
        }
    }
});
