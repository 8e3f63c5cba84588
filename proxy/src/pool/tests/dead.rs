//! Peers that stop answering, without a word.

use super::*;

/// A peer that has taken the preface, and from then on neither reads nor writes.
async fn frozen(end: DuplexStream) -> DuplexStream {
    // SETTINGS, and the acknowledgement of ours.
    let mut end = end;
    let hello = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];
    tokio::io::AsyncWriteExt::write_all(&mut end, &hello).await.unwrap();
    settle().await;
    end
}

#[tokio::test(start_paused = true)]
async fn a_ping_without_an_answer_ends_a_dead_connection_within_5_seconds() {
    let (place, mut accepted) = Place::new(TERMS);
    let stream = place.acquire(&limits(), Reuse::Any).await.unwrap();
    let _end = frozen(accepted.recv().await.unwrap()).await;
    let asked = tokio::time::Instant::now();
    let error = send(&stream).await.unwrap_err();
    assert!(!crate::pool::undelivered(&error));
    assert!(asked.elapsed() <= Duration::from_millis(5100), "{:?}", asked.elapsed());
    assert_eq!(place.set.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_application_gets_no_pings() {
    let (place, mut accepted) = Place::new(Terms { pings: false, ..TERMS });
    let stream = place.acquire(&limits(), Reuse::Any).await.unwrap();
    let _end = frozen(accepted.recv().await.unwrap()).await;
    let slow = tokio::time::timeout(Duration::from_secs(60), send(&stream)).await;
    assert!(slow.is_err(), "{slow:?}");
    // Slow is not dead where silence proves nothing.
    assert!(place.set.has_room(Reuse::Any));
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_peer_is_silent_is_not_picked_while_others_wait_on_it() {
    let (place, mut accepted) = Place::new(TERMS);
    let first = place.acquire(&limits(), Reuse::Any).await.unwrap();
    let _end = frozen(accepted.recv().await.unwrap()).await;
    // Asked now, and silent since.
    let second = place.acquire(&limits(), Reuse::Any).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(2900), send(&second)).await;
    assert!(waiting.is_err());
    assert!(place.set.has_room(Reuse::Any), "3 s have not passed");
    let waiting = tokio::time::timeout(Duration::from_millis(200), send(&second)).await;
    assert!(waiting.is_err());
    assert!(!place.set.has_room(Reuse::Any));
    let third = place.acquire(&limits(), Reuse::Any).await.unwrap();
    assert_eq!(place.made(), 2);
    drop((first, second, third));
}

#[tokio::test(start_paused = true)]
async fn a_suspected_connection_is_not_picked_until_its_peer_is_heard() {
    let (place, mut accepted) = Place::new(TERMS);
    let first = place.acquire(&limits(), Reuse::Any).await.unwrap();
    let end = frozen(accepted.recv().await.unwrap()).await;
    let stream = place.acquire(&limits(), Reuse::Any).await.unwrap();
    let given_up = tokio::time::timeout(Duration::from_millis(100), send(&stream)).await;
    assert!(given_up.is_err());
    stream.suspect();
    drop(stream);
    assert!(!place.set.has_room(Reuse::Any));
    // It was slow, not dead: it answers the PING that is sent while another request waits.
    let mut end = end;
    let ping = tokio::select! {
        answer = send(&first) => panic!("{answer:?}"),
        ping = until_ping(&mut end) => ping,
    };
    let mut answer = vec![0, 0, 8, 6, 1, 0, 0, 0, 0];
    answer.extend(ping);
    tokio::io::AsyncWriteExt::write_all(&mut end, &answer).await.unwrap();
    settle().await;
    assert!(place.set.has_room(Reuse::Any));
    drop(first);
    assert_eq!((place.made(), place.set.count()), (1, 1));
}

/// The payload of the next PING.
async fn until_ping(end: &mut DuplexStream) -> [u8; 8] {
    use tokio::io::AsyncReadExt;
    let mut preface = [0; 24];
    end.read_exact(&mut preface).await.unwrap();
    loop {
        let mut head = [0; 9];
        end.read_exact(&mut head).await.unwrap();
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        end.read_exact(&mut payload).await.unwrap();
        if head[3] == 6 && head[4] == 0 {
            return payload.try_into().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspected_connection_without_streams_is_given_up_and_its_place_free() {
    let (place, mut accepted) = Place::new(TERMS);
    let mut limits = limits();
    limits.connections = crate::policy::limit::Bound::new(1);
    let opening = place.acquire(&limits, Reuse::Any).await.unwrap();
    let _end = frozen(accepted.recv().await.unwrap()).await;
    drop(opening);
    let stream = place.acquire(&limits, Reuse::Any).await.unwrap();
    stream.suspect();
    drop(stream);
    assert_eq!((place.set.count(), limits.connections.taken()), (0, 0));
    place.acquire(&limits, Reuse::Any).await.unwrap();
    assert_eq!(place.made(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_others_is_not_suspected() {
    let (place, accepted) = Place::new(TERMS);
    answering(accepted, 250);
    let slow = place.acquire(&limits(), Reuse::Any).await.unwrap();
    tokio::time::advance(Duration::from_millis(1)).await;
    let quick = place.acquire(&limits(), Reuse::Any).await.unwrap();
    send(&quick).await.unwrap();
    slow.suspect();
    assert!(place.set.has_room(Reuse::Any));
}
