//! Text as a cursor and as a position of the live tail: nothing panics, and what is taken is written as it was meant.

#![no_main]

use common::store::{Cursor, Order, Query, TailPosition};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for order in [Order::Ascending, Order::Descending] {
        let query = Query::all(order);
        if let Ok(cursor) = Cursor::decode(text, &query) {
            let again = Cursor::decode(&cursor.encode(&query), &query).expect("what it wrote itself");
            assert_eq!(again.encode(&query), cursor.encode(&query));
        }
    }
    if let Some(position) = TailPosition::decode(text) {
        assert_eq!(TailPosition::decode(&position.encode()), Some(position));
    }
});
