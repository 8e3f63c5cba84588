use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

const SETTINGS: Settings =
    Settings { max_in_flight: 2, max_queued: 4, max_wait: Duration::from_secs(20), adaptive: false };

fn caller(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{name}")).unwrap()
}

fn admit(limit: &Arc<Concurrency>, name: &str) -> Permit {
    match limit.admit(&caller(name), None, Instant::now()) {
        Admission::Admit(permit) => permit,
        other => panic!("{other:?}"),
    }
}

fn wait(limit: &Arc<Concurrency>, name: &str) -> Waiting {
    match limit.admit(&caller(name), None, Instant::now()) {
        Admission::Wait(waiting) => waiting,
        other => panic!("{other:?}"),
    }
}

fn state(limit: &Concurrency) -> (u32, u32, u32) {
    let State { limit, in_flight, queued } = limit.state();
    (limit, in_flight, queued)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

#[test]
fn a_dropped_permit_is_the_next_ones_turn() {
    runtime().block_on(async {
        let limit = Concurrency::new(SETTINGS, Instant::now());
        let (first, second) = (admit(&limit, "a"), admit(&limit, "a"));
        let (third, fourth) = (wait(&limit, "a"), wait(&limit, "b"));
        assert_eq!(state(&limit), (2, 2, 2));
        drop(first);
        let third = third.turn().await.unwrap();
        second.finish(Sample { latency: Duration::ZERO, dropped: false }, Instant::now());
        let fourth = fourth.turn().await.unwrap();
        assert_eq!(state(&limit), (2, 2, 0));
        drop((third, fourth));
        assert_eq!(state(&limit), (2, 0, 0));
    });
}

#[test]
fn a_dropped_wait_frees_its_place() {
    runtime().block_on(async {
        let limit = Concurrency::new(SETTINGS, Instant::now());
        let held = (admit(&limit, "a"), admit(&limit, "a"));
        let (gone, stays) = (wait(&limit, "a"), wait(&limit, "a"));
        let mut polled = Box::pin(wait(&limit, "a").turn());
        assert!(polled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop((gone, polled));
        assert_eq!(state(&limit), (2, 2, 1));
        drop(held);
        drop(stays.turn().await.unwrap());
        assert_eq!(state(&limit), (2, 0, 0));
    });
}

#[test]
fn a_turn_given_to_a_future_dropped_unpolled_passes_on() {
    runtime().block_on(async {
        let limit = Concurrency::new(Settings { max_in_flight: 1, ..SETTINGS }, Instant::now());
        let held = admit(&limit, "a");
        let (gone, next) = (wait(&limit, "a"), wait(&limit, "a"));
        drop(held);
        assert_eq!(state(&limit), (1, 1, 1), "the turn is given but not taken");
        drop(gone);
        drop(next.turn().await.unwrap());
        assert_eq!(state(&limit), (1, 0, 0));
    });
}

#[test]
fn who_is_displaced_or_late_is_told() {
    runtime().block_on(async {
        let limit = Concurrency::new(Settings { max_in_flight: 1, ..SETTINGS }, Instant::now());
        let held = admit(&limit, "greedy");
        let mut greedy: Vec<_> = (0..4).map(|_| wait(&limit, "greedy")).collect();
        assert!(matches!(limit.admit(&caller("greedy"), None, Instant::now()), Admission::Shed(Shed::Full)));
        let quiet = wait(&limit, "quiet");
        let loser = greedy.pop().unwrap();
        assert_eq!(loser.turn().await.unwrap_err(), Shed::Displaced);
        let now = Instant::now();
        drop(greedy.pop());
        let Admission::Wait(late) = limit.admit(&caller("late"), Some(now + Duration::from_millis(5)), now)
        else {
            panic!("there was a place in the queue");
        };
        assert_eq!(late.turn().await.unwrap_err(), Shed::TimedOut);
        assert_eq!(state(&limit), (1, 1, 3));
        assert!(matches!(limit.admit(&caller("late"), Some(now), now), Admission::Shed(Shed::TimedOut)));
        drop((held, greedy, quiet));
        assert_eq!(state(&limit), (1, 0, 0));
    });
}

#[test]
fn a_raised_limit_lets_waiters_in_and_a_lowered_one_none() {
    runtime().block_on(async {
        let limit = Concurrency::new(SETTINGS, Instant::now());
        let held = (admit(&limit, "a"), admit(&limit, "a"));
        let waiting = (wait(&limit, "a"), wait(&limit, "b"));
        limit.update(Settings { max_in_flight: 4, ..SETTINGS }, Instant::now());
        let turns = (waiting.0.turn().await.unwrap(), waiting.1.turn().await.unwrap());
        limit.update(Settings { max_in_flight: 1, ..SETTINGS }, Instant::now());
        assert_eq!(state(&limit), (1, 4, 0));
        let next = wait(&limit, "a");
        drop(held);
        drop(turns.0);
        assert_eq!(state(&limit), (1, 1, 1));
        drop(turns.1);
        drop(next.turn().await.unwrap());
        assert_eq!(limit.settings().max_in_flight, 1);
    });
}

#[test]
fn an_adaptive_limit_follows_what_ends() {
    let mut now = Instant::now();
    let settings = Settings { max_in_flight: 100, adaptive: true, ..SETTINGS };
    let limit = Concurrency::new(settings, now);
    assert_eq!(state(&limit).0, 20);
    let mut answers = |limit: &Arc<Concurrency>, dropped, count| {
        for _ in 0..count {
            let held: Vec<_> = (0..limit.state().limit).map(|_| admit(limit, "a")).collect();
            now += Duration::from_millis(50);
            for permit in held {
                permit.finish(Sample { latency: Duration::from_millis(10), dropped }, now);
            }
        }
    };
    answers(&limit, false, 400);
    assert_eq!(state(&limit), (100, 0, 0));
    answers(&limit, true, 400);
    assert_eq!(state(&limit), (4, 0, 0));
    limit.update(Settings { adaptive: false, ..settings }, Instant::now());
    assert_eq!(state(&limit).0, 100, "without it the fixed limit holds");
    limit.update(settings, Instant::now());
    assert_eq!(state(&limit).0, 20);
}

/// Threads that take, wait, give up and finish at random: the limit holds and nothing is lost.
#[test]
fn no_place_is_lost_or_given_twice_between_threads() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let settings = Settings { max_in_flight: 3, max_queued: 5, ..SETTINGS };
    let limit = Concurrency::new(settings, Instant::now());
    let (inside, served) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let (limit, inside, served) = (&limit, &inside, &served);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let name = caller(&format!("c{}", seed % 3));
                runtime().block_on(async {
                    for _ in 0..2000 {
                        let permit = match limit.admit(&name, None, Instant::now()) {
                            Admission::Admit(permit) => permit,
                            Admission::Wait(waiting) => {
                                let mut turn = pin!(waiting.turn());
                                if rng.u32(0..4) == 0 {
                                    let poll = turn.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                                    match poll {
                                        Poll::Ready(Ok(permit)) => permit,
                                        Poll::Ready(Err(_)) | Poll::Pending => continue,
                                    }
                                } else {
                                    match turn.await {
                                        Ok(permit) => permit,
                                        Err(_) => continue,
                                    }
                                }
                            }
                            Admission::Shed(_) => continue,
                        };
                        let now_inside = inside.fetch_add(1, Ordering::SeqCst) + 1;
                        assert!(now_inside <= 3, "seed {seed}: {now_inside} inside");
                        tokio::task::yield_now().await;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        served.fetch_add(1, Ordering::Relaxed);
                        drop(permit);
                    }
                });
            });
        }
    });
    assert_eq!(state(&limit), (3, 0, 0));
    assert!(served.into_inner() > 0);
}
