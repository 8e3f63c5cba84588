use std::collections::HashMap;

use super::*;

fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

type Queue = Fair<u32, u64>;

fn ask(fair: &mut Queue, caller: u32, waiter: u64, now: Instant) -> Asked<u64> {
    fair.ask(&caller, None, now, || waiter)
}

fn queue(fair: &mut Queue, caller: u32, waiter: u64, now: Instant) -> Ticket {
    match ask(fair, caller, waiter, now) {
        Asked::Queued { ticket, displaced: None, .. } => ticket,
        other => panic!("{other:?}"),
    }
}

/// Ends one request and says whose turn it is.
fn next(fair: &mut Queue, now: Instant) -> Option<u64> {
    fair.release();
    fair.turn(now).next
}

/// A bound that is full, with an empty queue.
fn full(limit: u32, max_queued: u32, now: Instant) -> Queue {
    let mut fair = Fair::new(limit, max_queued, ms(100));
    for _ in 0..limit {
        assert!(matches!(ask(&mut fair, 0, 0, now), Asked::Admitted));
    }
    fair
}

#[test]
fn there_is_room_until_there_is_none() {
    let now = Instant::now();
    let mut fair = full(2, 0, now);
    assert!(matches!(ask(&mut fair, 1, 1, now), Asked::Shed(Shed::Full)));
    assert_eq!(next(&mut fair, now), None);
    assert!(matches!(ask(&mut fair, 1, 1, now), Asked::Admitted));
    assert_eq!((fair.in_flight(), fair.queued(), fair.limit()), (2, 0, 2));
}

#[test]
fn turns_go_around_the_callers() {
    let now = Instant::now();
    let mut fair = full(1, 100, now);
    for waiter in 0..50 {
        queue(&mut fair, 1, 1000 + waiter, now);
    }
    for waiter in 0..3 {
        queue(&mut fair, 2, 2000 + waiter, now);
    }
    queue(&mut fair, 3, 3000, now);
    let order: Vec<_> = (0..8).map(|_| next(&mut fair, now).unwrap()).collect();
    assert_eq!(order, [1000, 2000, 3000, 1001, 2001, 1002, 2002, 1003]);
    assert!(matches!(ask(&mut fair, 2, 2003, now), Asked::Queued { .. }), "nobody overtakes who waits");
    assert_eq!((next(&mut fair, now), next(&mut fair, now)), (Some(1004), Some(2003)));
}

#[test]
fn a_free_place_belongs_to_who_waits() {
    let now = Instant::now();
    let mut fair = full(1, 100, now);
    queue(&mut fair, 1, 1, now);
    fair.release();
    queue(&mut fair, 2, 2, now);
    assert_eq!((fair.in_flight(), fair.turn(now).next), (0, Some(1)));
}

#[test]
fn the_greediest_caller_loses_its_place() {
    let now = Instant::now();
    let mut fair = full(1, 5, now);
    for waiter in 0..4 {
        queue(&mut fair, 1, 1000 + waiter, now);
    }
    queue(&mut fair, 2, 2000, now);
    assert!(matches!(ask(&mut fair, 1, 1004, now), Asked::Shed(Shed::Full)));
    assert!(matches!(ask(&mut fair, 2, 2001, now), Asked::Queued { displaced: Some(1003), .. }));
    assert!(matches!(ask(&mut fair, 2, 2002, now), Asked::Shed(Shed::Full)), "3 and 3 would only be a swap");
    // Late in its time the queue gives up its oldest instead.
    assert!(matches!(ask(&mut fair, 3, 3000, now + ms(51)), Asked::Queued { displaced: Some(1000), .. }));
    assert_eq!(fair.queued(), 5);
}

#[test]
fn oldest_first_until_half_of_the_time_is_used() {
    let now = Instant::now();
    let mut fair = full(1, 100, now);
    for waiter in 0..4 {
        queue(&mut fair, 1, waiter, now + ms(waiter));
    }
    assert_eq!(next(&mut fair, now + ms(50)), Some(0));
    assert_eq!(next(&mut fair, now + ms(52)), Some(3), "the oldest has used more than half");
    assert_eq!(next(&mut fair, now + ms(52)), Some(2));
    assert_eq!(next(&mut fair, now + ms(52)), Some(1));
}

#[test]
fn whose_time_is_over_gets_no_turn() {
    let now = Instant::now();
    let mut fair = full(1, 100, now);
    queue(&mut fair, 1, 1, now);
    let deadline = Some(now + ms(10));
    assert!(
        matches!(fair.ask(&2, deadline, now, || 2), Asked::Queued { until, .. } if Some(until) == deadline)
    );
    queue(&mut fair, 3, 3, now + ms(90));
    fair.release();
    let turn = fair.turn(now + ms(100));
    assert_eq!((turn.next, turn.expired), (Some(3), vec![1, 2]));
    assert!(matches!(fair.ask(&2, Some(now), now, || 2), Asked::Shed(Shed::TimedOut)));
}

#[test]
fn who_cancels_is_out() {
    let now = Instant::now();
    let mut fair = full(1, 100, now);
    let tickets: Vec<_> = (0..3).map(|waiter| queue(&mut fair, 1, waiter, now)).collect();
    let alone = queue(&mut fair, 2, 9, now);
    assert_eq!(fair.cancel(tickets[1]), Some(1));
    assert_eq!((fair.cancel(tickets[1]), fair.cancel(alone), fair.cancel(alone)), (None, Some(9), None));
    assert_eq!((next(&mut fair, now), fair.cancel(tickets[0])), (Some(0), None));
    // Its lane is somebody else's by now: the old ticket must not hit.
    queue(&mut fair, 5, 50, now);
    assert_eq!(fair.cancel(alone), None);
    assert_eq!((next(&mut fair, now), next(&mut fair, now), next(&mut fair, now)), (Some(2), Some(50), None));
}

#[test]
fn a_limit_of_zero_is_one() {
    let now = Instant::now();
    let mut fair = Queue::new(0, 1, ms(100));
    assert!(matches!(ask(&mut fair, 1, 1, now), Asked::Admitted));
    fair.set_limit(0);
    queue(&mut fair, 1, 2, now);
    assert_eq!(next(&mut fair, now), Some(2));
}

/// Random asks, ends, cancels and changes of the bounds, with invariants after each.
#[test]
fn it_keeps_its_promises_whatever_happens() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut limit, max_queued) = (rng.u32(1..6), rng.u32(0..12));
        let mut fair = Queue::new(limit, max_queued, ms(rng.u64(0..60)));
        let (mut now, mut inside) = (Instant::now(), 0);
        let mut waiting: HashMap<u64, (u32, Ticket, Instant)> = HashMap::new();
        for step in 0..2000 {
            let what = format!("seed {seed} step {step}");
            now += ms(rng.u64(0..4));
            match rng.u32(0..20) {
                0..=9 => {
                    let caller = rng.u32(0..6).min(rng.u32(0..6));
                    let quietest = |caller| waiting.values().filter(|waiter| waiter.0 == caller).count();
                    match fair.ask(&caller, None, now, || step) {
                        Asked::Admitted => {
                            assert!(inside < limit && waiting.is_empty(), "{what}: overtook");
                            inside += 1;
                        }
                        Asked::Queued { ticket, until, displaced } => {
                            assert!(inside >= limit, "{what}: waits although there is room");
                            if let Some(loser) = displaced {
                                let (victim, ..) = waiting[&loser];
                                assert!(quietest(victim) > quietest(caller) + 1, "{what}: unfair");
                                waiting.remove(&loser);
                            }
                            waiting.insert(step, (caller, ticket, until));
                        }
                        Asked::Shed(_) => {
                            let most = (0..6).map(quietest).max().unwrap();
                            let fair_loser =
                                waiting.len() as u32 >= max_queued && quietest(caller) + 1 >= most;
                            assert!(fair_loser || fair.max_wait.is_zero(), "{what}: shed");
                        }
                    }
                }
                10..=15 if inside > 0 => {
                    fair.release();
                    inside -= 1;
                }
                16..=18 => {
                    if let Some((&waiter, &(_, ticket, _))) = waiting.iter().next() {
                        assert_eq!(fair.cancel(ticket), Some(waiter), "{what}");
                        assert_eq!(fair.cancel(ticket), None, "{what}");
                        waiting.remove(&waiter);
                    }
                }
                19 => {
                    limit = rng.u32(1..6);
                    fair.set_limit(limit);
                }
                _ => {}
            }
            loop {
                let turn = fair.turn(now);
                for expired in turn.expired {
                    assert!(waiting.remove(&expired).unwrap().2 <= now, "{what}: expired early");
                }
                let Some(waiter) = turn.next else { break };
                assert!(waiting.remove(&waiter).unwrap().2 > now, "{what}: served late");
                inside += 1;
                assert!(inside <= limit, "{what}: over the limit");
            }
            assert_eq!((fair.in_flight(), fair.queued()), (inside, waiting.len() as u32), "{what}");
            assert!(waiting.len() as u32 <= max_queued && (waiting.is_empty() || inside >= limit), "{what}");
            let lanes = fair.by_caller.len();
            assert_eq!((lanes, lanes), (fair.rotation.len(), fair.by_length.len()), "{what}");
            assert!(fair.lanes.len() <= 6 && fair.lanes.len() == lanes + fair.free.len(), "{what}");
        }
    }
}

/// A greedy caller offers ten times the capacity, a quiet one a tenth of it: the quiet one is served.
#[test]
fn a_greedy_caller_does_not_starve_a_quiet_one() {
    for seed in 0..20 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let start = Instant::now();
        let mut fair = Queue::new(10, 32, ms(100));
        let (mut quiet, mut greedy, mut asked, mut ends) = (0, 0, 0, VecDeque::new());
        // Ten places of 10 ms each: a thousand a second.
        for time in 0..10_000 {
            let now = start + ms(time);
            let served = |caller: u64, ends: &mut VecDeque<u64>, quiet: &mut u32, greedy: &mut u32| {
                *if caller == 2 { quiet } else { greedy } += 1;
                ends.push_back(time + 10);
            };
            while ends.front().is_some_and(|end| *end <= time) {
                ends.pop_front();
                fair.release();
                while let Some(caller) = fair.turn(now).next {
                    served(caller, &mut ends, &mut quiet, &mut greedy);
                }
            }
            let quiet_asks = u32::from(time < 9_900 && rng.u32(0..10) == 0);
            asked += quiet_asks;
            for caller in std::iter::repeat_n(1, 10).chain(std::iter::repeat_n(2, quiet_asks as usize)) {
                if matches!(ask(&mut fair, caller, u64::from(caller), now), Asked::Admitted) {
                    served(u64::from(caller), &mut ends, &mut quiet, &mut greedy);
                }
            }
        }
        assert!(quiet == asked, "seed {seed}: {quiet} of {asked} quiet requests were served");
        assert!(quiet + greedy >= 9_900, "seed {seed}: {} served", quiet + greedy);
    }
}
