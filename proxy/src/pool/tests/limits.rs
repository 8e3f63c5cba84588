//! Limits of connections, and which connection a request gets.

use super::*;
use crate::policy::limit::Bound;

#[tokio::test(start_paused = true)]
async fn streams_spill_to_further_connections_and_never_queue_behind_the_peers_limit() {
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    for admitted in [1, 3, 100, 250] {
        let (place, accepted) = Place::new(TERMS);
        answering(accepted, admitted);
        let limits = limits();
        let first = place.acquire(&limits, Reuse::Any).await.unwrap();
        send(&first).await.unwrap();
        drop(first);
        let mut held = Vec::new();
        for _ in 0..600 {
            if rng.u8(..) < 40 && !held.is_empty() {
                held.swap_remove(rng.usize(..held.len()));
                continue;
            }
            let stream = place.acquire(&limits, Reuse::Any).await.unwrap();
            let most = streams_of(&held, &stream) + 1;
            assert!(most <= usize::try_from(admitted).unwrap(), "{most} of {admitted}, seed {seed}");
            // Until its connection's limit is known to the pool.
            settle().await;
            held.push(stream);
        }
        // 100 each at most, while there are fewer than 8.
        let expected = held.len().div_ceil(usize::try_from(admitted).unwrap().min(100));
        assert!(place.made() >= expected, "{} of {expected}, seed {seed}", place.made());
    }
}

fn streams_of(held: &[StreamGuard], stream: &StreamGuard) -> usize {
    held.iter().filter(|one| std::ptr::eq(one.connection(), stream.connection())).count()
}

#[tokio::test(start_paused = true)]
async fn at_the_limit_of_connections_those_there_are_fill_up_and_the_rest_is_shed_at_once() {
    let (place, accepted) = Place::new(TERMS);
    answering(accepted, 150);
    let limits = Limits { connections: Bound::new(1), ..limits() };
    let first = place.acquire(&limits, Reuse::Any).await.unwrap();
    send(&first).await.unwrap();
    let mut held = vec![first];
    while held.len() < 150 {
        held.push(place.acquire(&limits, Reuse::Any).await.unwrap());
    }
    assert!(!place.set.has_room(Reuse::Any));
    let shed = place.acquire(&limits, Reuse::Any).await;
    assert!(matches!(shed, Err(ProxyError::ConnectionLimit { limit: 1 })), "{shed:?}");
    // A policy that allows more holds from the next request on.
    limits.connections.set_limit(2);
    place.acquire(&limits, Reuse::Any).await.unwrap();
    held.pop();
    assert_eq!((place.made(), limits.pending.taken()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_for_a_connection_are_bounded() {
    let (place, _accepted) = Place::new(TERMS);
    let limits = Limits { pending: Bound::new(2), ..limits() };
    let never = async || std::future::pending().await;
    // One makes the connection, two wait for it.
    let mut waiting: Vec<_> =
        (0..3).map(|_| Box::pin(place.set.acquire(&limits, Reuse::Any, never))).collect();
    for one in &mut waiting {
        assert!(futures_poll(one.as_mut()).await.is_none());
    }
    let shed = place.set.acquire(&limits, Reuse::Any, never).await;
    assert!(matches!(shed, Err(ProxyError::PendingLimit { limit: 2 })), "{shed:?}");
    drop(waiting);
    assert_eq!((limits.pending.taken(), limits.connections.taken()), (0, 0));
    // Where nobody may wait, somebody may still connect.
    limits.pending.set_limit(0);
    place.acquire(&limits, Reuse::Any).await.unwrap();
}

/// Polls once.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_connection_takes_as_many_requests_as_it_may_and_counts_until_they_are_done() {
    let (place, accepted) = Place::new(TERMS);
    answering(accepted, 250);
    let limits = Limits { max_requests_per_connection: Some(2), connections: Bound::new(2), ..limits() };
    let mut held = Vec::new();
    for made in [1, 1, 2, 2] {
        held.push(place.acquire(&limits, Reuse::Any).await.unwrap());
        assert_eq!(place.made(), made);
    }
    let shed = place.acquire(&limits, Reuse::Any).await;
    assert!(matches!(shed, Err(ProxyError::ConnectionLimit { limit: 2 })), "{shed:?}");
    held.truncate(2);
    place.acquire(&limits, Reuse::Any).await.unwrap();
    assert_eq!(place.made(), 3);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_repeated_gets_no_connection_idle_for_more_than_a_second() {
    let (place, accepted) = Place::new(TERMS);
    answering(accepted, 250);
    let limits = Limits { connections: Bound::new(1), ..limits() };
    drop(place.acquire(&limits, Reuse::of(false)).await.unwrap());
    tokio::time::advance(Duration::from_secs(1)).await;
    drop(place.acquire(&limits, Reuse::of(false)).await.unwrap());
    assert_eq!(place.made(), 1, "idle for a second");
    tokio::time::advance(Duration::from_millis(1001)).await;
    drop(place.acquire(&limits, Reuse::of(true)).await.unwrap());
    assert_eq!(place.made(), 1, "may be repeated");
    tokio::time::advance(Duration::from_millis(1001)).await;
    // Even with one connection allowed: the new one takes the place of the old.
    drop(place.acquire(&limits, Reuse::of(false)).await.unwrap());
    assert_eq!((place.made(), place.set.count(), limits.connections.taken()), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn idle_connections_close_after_the_idle_time_in_force() {
    let (place, accepted) = Place::new(TERMS);
    answering(accepted, 250);
    let mut limits = Limits { connections: Bound::new(9), ..limits() };
    let stream = place.acquire(&limits, Reuse::Any).await.unwrap();
    tokio::time::advance(Duration::from_millis(1)).await;
    send(&stream).await.unwrap();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(place.set.count(), 1, "a stream is open");
    drop(stream);
    tokio::time::sleep(Duration::from_secs(89)).await;
    assert_eq!(place.set.count(), 1);
    // A policy shortens it; the next request brings it.
    limits.idle = Duration::from_secs(5);
    drop(place.acquire(&limits, Reuse::Any).await.unwrap());
    tokio::time::sleep(Duration::from_secs(36)).await;
    assert_eq!((place.set.count(), limits.connections.taken()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_replaced_while_its_streams_go_on() {
    let (place, accepted) = Place::new(TERMS);
    answering(accepted, 250);
    let limits = Limits { connections: Bound::new(1), ..limits() };
    let long = place.acquire(&limits, Reuse::Any).await.unwrap();
    tokio::time::sleep(TERMS.max_age.mul_f64(0.79)).await;
    assert_eq!(place.set.count(), 1);
    tokio::time::sleep(TERMS.max_age.mul_f64(0.22)).await;
    assert_eq!(place.set.count(), 0);
    let next = place.acquire(&limits, Reuse::Any).await.unwrap();
    assert_eq!((place.made(), limits.connections.taken()), (2, 1));
    send(&next).await.unwrap();
    send(&long).await.unwrap();
}
