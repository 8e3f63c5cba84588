use super::*;

const LONG: Duration = Duration::from_secs(600);

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn nth(n: usize) -> SocketAddr {
    let [_, _, high, low] = u32::try_from(n).unwrap().to_be_bytes();
    ([10, 0, high, low], 80).into()
}

fn orders() -> Owner {
    Owner::Service { name: ServiceName::parse("orders.shop").unwrap(), port: 80 }
}

fn owners() -> Arc<Owners> {
    let own = OwnAddresses {
        outbound: at("127.0.0.1:15001"),
        mesh: at("0.0.0.0:15008"),
        admin: at("127.0.0.1:15020"),
        inbound: None,
        local_ports: Vec::new(),
    };
    Arc::new(Owners::new(own, Arc::new(Metrics::new(8))))
}

fn open() -> Arc<Owners> {
    let owners = owners();
    owners.opened();
    owners
}

fn ask(owners: &Arc<Owners>, address: SocketAddr) -> tokio::task::JoinHandle<Owner> {
    let owners = owners.clone();
    outrigger_common::tasks::Tasks::current()
        .spawn_joinable("asks", async move { owners.owner(address, LONG).await })
}

/// Waits until there is something to tell the registry.
async fn questions(owners: &Owners) -> Questions {
    loop {
        owners.news().await;
        let questions = owners.questions();
        if questions != Questions::default() {
            return questions;
        }
    }
}

fn lookups(owners: &Owners, result: Lookup) -> u64 {
    owners.metrics.control.address_lookups.with_label_values(&[result.as_str()]).get()
}

#[tokio::test(start_paused = true)]
async fn who_asks_the_same_waits_for_one_question_and_the_answer_stays() {
    let owners = open();
    let address = at("10.0.9.1:80");
    let (first, second) = (ask(&owners, address), ask(&owners, at("[::ffff:10.0.9.1]:80")));
    assert_eq!(questions(&owners).await, Questions { add: vec![address], remove: vec![] });
    tokio::task::yield_now().await;
    owners.told([(address, orders())]);
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (orders(), orders()));
    assert_eq!(owners.questions(), Questions::default(), "one question");
    assert_eq!(owners.owner(address, Duration::ZERO).await, orders());
    owners.told([(address, Owner::Outside)]);
    assert_eq!(owners.owner(address, Duration::ZERO).await, Owner::Outside);
    assert_eq!(owners.questions(), Questions::default(), "nobody's is an answer");
    assert_eq!((lookups(&owners, Lookup::Asked), lookups(&owners, Lookup::Known)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_late_is_outside_once_and_in_time_for_the_next() {
    let owners = open();
    let address = at("[fd00::9]:443");
    assert_eq!(owners.owner(address, Duration::from_millis(5)).await, Owner::Outside);
    assert_eq!(lookups(&owners, Lookup::Unanswered), 1);
    assert_eq!(questions(&owners).await.add, [address]);
    let next = ask(&owners, address);
    tokio::task::yield_now().await;
    assert_eq!(owners.questions(), Questions::default(), "the question is still under way");
    owners.told([(address, orders())]);
    assert_eq!(next.await.unwrap(), orders());
}

#[tokio::test(start_paused = true)]
async fn while_the_registry_is_away_what_is_known_stays_and_the_rest_is_outside_for_now() {
    let owners = owners();
    let (known, other) = (at("10.0.9.1:80"), at("10.0.9.2:80"));
    owners.restore([(known, orders())]);
    let waiting = ask(&owners, other);
    tokio::task::yield_now().await;
    assert_eq!(owners.questions(), Questions::default(), "nobody to ask yet");
    owners.closed();
    assert_eq!(waiting.await.unwrap(), Owner::Outside, "the first stream could not be opened");
    // At once: the limit is ten minutes of a clock that stands still.
    let begun = tokio::time::Instant::now();
    assert_eq!(owners.owner(other, LONG).await, Owner::Outside);
    assert_eq!(owners.owner(known, LONG).await, orders());
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(lookups(&owners, Lookup::Away), 1);
    owners.opened();
    assert_eq!(owners.questions(), Questions::default(), "what nobody waits for is not asked");
    assert_eq!(owners.held(), [(known, orders())]);
    let again = ask(&owners, other);
    assert_eq!(questions(&owners).await.add, [other]);
    owners.told([(other, orders())]);
    assert_eq!(again.await.unwrap(), orders());
}

#[tokio::test(start_paused = true)]
async fn questions_of_the_first_moments_wait_for_the_stream() {
    let owners = owners();
    let waiting = ask(&owners, at("10.0.9.1:80"));
    tokio::task::yield_now().await;
    assert_eq!(owners.questions(), Questions::default());
    owners.opened();
    assert_eq!(questions(&owners).await.add, [at("10.0.9.1:80")]);
    owners.told([(at("10.0.9.1:80"), orders())]);
    assert_eq!(waiting.await.unwrap(), orders());
}

#[tokio::test(start_paused = true)]
async fn those_asked_for_longest_ago_make_room() {
    let owners = open();
    let brief = Duration::from_nanos(1);
    for n in 0..CAPACITY {
        owners.owner(nth(n), brief).await;
    }
    let all = owners.questions();
    assert_eq!((all.add.len(), all.remove.len()), (CAPACITY, 0));
    owners.told((0..CAPACITY).map(|n| (nth(n), orders())));
    // The first is used again, so that it is the newest.
    assert_eq!(owners.owner(nth(0), brief).await, orders());
    owners.owner(nth(CAPACITY), brief).await;
    let change = owners.questions();
    assert_eq!(change.add, [nth(CAPACITY)]);
    let mut removed = change.remove;
    removed.sort();
    assert_eq!(removed, (1..=BATCH).map(nth).collect::<Vec<_>>());
    assert!(owners.wants(nth(0)) && !owners.wants(nth(1)) && owners.wants(nth(BATCH + 1)));
    // An answer on its way to what was given up is not kept.
    owners.told([(nth(1), orders())]);
    assert!(!owners.wants(nth(1)));
    // Asked again before the registry heard that it was given up: it is told both.
    for n in CAPACITY + 1..CAPACITY + 2 * BATCH {
        owners.owner(nth(n), brief).await;
    }
    owners.owner(nth(BATCH + 1), brief).await;
    let change = owners.questions();
    let back = nth(BATCH + 1);
    assert!(change.add.contains(&back) && change.remove.contains(&back));
    assert!(owners.table().entries.len() <= CAPACITY);
}

#[tokio::test(start_paused = true)]
async fn what_was_never_told_to_the_registry_is_not_taken_back() {
    let owners = open();
    for n in 0..=CAPACITY {
        owners.owner(nth(n), Duration::from_nanos(1)).await;
    }
    let change = owners.questions();
    assert_eq!((change.add.len(), change.remove.len()), (CAPACITY + 1 - BATCH, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_the_sidecars_own_or_no_host_is_not_asked() {
    let owners = open();
    let not_asked = ["127.0.0.1:15001", "[::ffff:127.0.0.1]:15020", "0.0.0.0:80", "[::]:80"];
    for text in
        not_asked.into_iter().chain(["224.0.0.1:80", "255.255.255.255:80", "[ff02::1]:80", "10.0.0.1:0"])
    {
        assert_eq!(owners.owner(at(text), LONG).await, Owner::Outside, "{text}");
    }
    assert_eq!(owners.questions(), Questions::default());
    assert_eq!(lookups(&owners, Lookup::Unasked), 8);
    // Another machine's application may have the port that the sidecar has on all addresses of this one.
    let _asked = ask(&owners, at("10.0.0.7:15008"));
    assert_eq!(questions(&owners).await.add, [at("10.0.0.7:15008")]);
}

#[test]
fn what_the_registry_tells_is_checked_and_can_be_given_back() {
    let endpoint = Owner::Endpoint {
        name: ServiceName::parse("orders.shop").unwrap(),
        port: 80,
        workload: "orders-1".into(),
    };
    for owner in [Owner::Outside, orders(), endpoint] {
        for address in ["10.0.9.1:80", "[fd00::9]:443"] {
            assert_eq!(facts(&message(at(address), &owner)), Ok((at(address), owner.clone())));
        }
    }
    let good = message(at("10.0.9.1:80"), &orders());
    for bad in [
        v1::AddressOwner { address: "10.0.9.1".into(), ..good.clone() },
        v1::AddressOwner { service: "orders".into(), ..good.clone() },
        v1::AddressOwner { port: 0, ..good.clone() },
        v1::AddressOwner { port: 70_000, ..good },
    ] {
        facts(&bad).unwrap_err();
    }
}
