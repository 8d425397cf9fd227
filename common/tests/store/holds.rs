//! Which partitions are held is remembered for a while, and forgotten one by one.

use std::time::Duration;

use common::store::PositionScope;

use crate::world::World;

const LIFE: Duration = Duration::from_mins(10);
const HELD: Duration = Duration::from_secs(40);

#[tokio::test]
async fn a_hold_is_known_to_others_until_it_is_over() {
    let world = World::new();
    assert!(world.store.holds(&world.scope, &[0, 1]).await.unwrap().is_empty());
    world.store.note_holds(&world.scope, &[(0, HELD), (1, Duration::ZERO)], &[], LIFE).await.unwrap();
    let other = world.without_user_index();
    let found = other.store.holds(&world.scope, &[0, 1, 2]).await.unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!((HELD..HELD * 2).contains(&found[&0]) && found[&1] < HELD, "{found:?}");
    for scope in [PositionScope::new("other", "topic"), PositionScope::new("group", "other")] {
        assert!(world.store.holds(&scope, &[0, 1]).await.unwrap().is_empty());
    }
    other.store.note_holds(&world.scope, &[(1, HELD)], &[0], LIFE).await.unwrap();
    let found = world.store.holds(&world.scope, &[0, 1]).await.unwrap();
    assert!(found.len() == 1 && found[&1] >= HELD, "{found:?}");
    other.store.note_holds(&world.scope, &[], &[1], LIFE).await.unwrap();
    assert_eq!(world.command::<usize>(&["EXISTS", &world.key("held")]), 0);
}

#[tokio::test]
async fn a_hold_that_is_forgotten_is_gone_and_others_stay() {
    let world = World::new();
    world.store.note_holds(&world.scope, &[(0, HELD), (1, HELD), (2, HELD)], &[], LIFE).await.unwrap();
    world.store.forget_holds(&PositionScope::new("other", "topic"), &[1]).await.unwrap();
    world.store.forget_holds(&world.scope, &[0, 2, 7]).await.unwrap();
    let found = world.store.holds(&world.scope, &[0, 1, 2]).await.unwrap();
    assert_eq!(found.into_keys().collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_hold_that_nobody_notes_again_is_forgotten() {
    let world = World::new();
    let life = async || world.command::<i64>(&["PTTL", &world.key("held")]);
    world.store.note_holds(&world.scope, &[(0, HELD)], &[], LIFE / 10).await.unwrap();
    assert!((1..=60_000).contains(&life().await));
    world.store.note_holds(&world.scope, &[(0, HELD)], &[], LIFE).await.unwrap();
    assert!((60_001..=600_000).contains(&life().await));
}

#[tokio::test]
async fn a_hold_that_begins_later_by_our_clock_has_just_begun() {
    let world = World::new();
    world.command::<()>(&["HSET", &world.key("held"), "group|topic:0", "99999999999999"]);
    assert_eq!(world.store.holds(&world.scope, &[0]).await.unwrap()[&0], Duration::ZERO);
}
